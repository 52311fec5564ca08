//! Timers as files: timerfd_create(2).
use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use fs::{
    FileOps, FsError, Metadata, OpenFile, OpenFlags as FsFlags, Readiness, Sink,
    error::FsResult,
    eventfd::anonymous_metadata,
    file::{ReadyQueues, Wait},
};
use rt::{sync::WaitQueue, task::ParkMode};

use super::{Alarm, Expire, deadline, is_realtime, itimerspec_bytes, read_itimerspec};
use crate::{
    args::{
        Addr, Fd,
        flags::{EventFlags, TimerfdFlags},
        names::ClockId,
    },
    call::Ctx,
    errno::{EINVAL, SysResult},
    files::{get, install},
};

struct TimerFd {
    alarm: Alarm,
    realtime: bool,
    count: Arc<Count>,
}

/// Expirations that were not read, apart from the file so that the alarm does not keep it open.
#[derive(Default)]
struct Count {
    expirations: AtomicU64,
    changed: WaitQueue,
}

impl Expire for Count {
    fn expired(&self, count: u64) {
        self.expirations.fetch_add(count, Ordering::SeqCst);
        self.changed.wake_all();
    }
}

impl FileOps for TimerFd {
    fn read(&self, _at: u64, out: &mut dyn Sink, wait: Wait) -> FsResult<usize> {
        if out.remaining() < 8 {
            return Err(FsError::Invalid);
        }
        let take = || Some(self.count.expirations.swap(0, Ordering::SeqCst)).filter(|count| *count > 0);
        let count = match wait {
            Wait::Never => take().ok_or(FsError::WouldBlock)?,
            Wait::Allowed => self.count.changed.wait_until(None, ParkMode::Interruptible, take)?,
        };
        out.put(&count.to_le_bytes())?;
        Ok(8)
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn metadata(&self) -> FsResult<Metadata> {
        Ok(anonymous_metadata())
    }

    fn readiness(&self) -> Readiness {
        if self.count.expirations.load(Ordering::SeqCst) > 0 { Readiness::IN } else { Readiness::empty() }
    }

    fn ready_queues(&self) -> ReadyQueues<'_> {
        ReadyQueues { input: Some(&self.count.changed), output: None }
    }

    fn description(&self) -> Vec<u8> {
        b"anon_inode:[timerfd]".to_vec()
    }
}

/// timerfd_create(2).
pub fn timerfd_create(cx: &mut Ctx<'_>, clock: ClockId, flags: EventFlags) -> SysResult {
    if flags.0 & !(EventFlags::NONBLOCK | EventFlags::CLOEXEC) != 0 {
        return Err(EINVAL);
    }
    if clock.0 == ClockId::TAI {
        return Err(EINVAL);
    }
    let realtime = is_realtime(clock).map_err(|_| EINVAL)?;
    let timer = TimerFd { alarm: Alarm::new()?, realtime, count: Arc::new(Count::default()) };
    let status = if flags.has(EventFlags::NONBLOCK) { FsFlags::NONBLOCK } else { FsFlags::empty() };
    let file = OpenFile::new(Arc::new(timer), status | FsFlags::READ_WRITE);
    install(cx, file, flags.has(EventFlags::CLOEXEC))
}

/// timerfd_settime(2). TFD_TIMER_CANCEL_ON_SET never has a cause: the wall clock is not set.
pub fn timerfd_settime(cx: &mut Ctx<'_>, fd: Fd, flags: TimerfdFlags, new: Addr, old: Addr) -> SysResult {
    if flags.0 & !TimerfdFlags::KNOWN != 0 {
        return Err(EINVAL);
    }
    let wanted = read_itimerspec(new)?;
    let file = get(cx, fd)?;
    let timer = file.ops_as::<TimerFd>().ok_or(EINVAL)?;
    let before = timer.alarm.setting();
    // Afterwards nothing of the old setting is counted any more.
    timer.alarm.disarm();
    timer.count.expirations.store(0, Ordering::SeqCst);
    if wanted.value_ns != 0 {
        let at = deadline(wanted.value_ns, flags.has(TimerfdFlags::ABSTIME), timer.realtime);
        timer.alarm.arm(at, wanted.interval_ns, timer.count.clone());
    }
    if !old.is_null() {
        old.write(&itimerspec_bytes(before))?;
    }
    Ok(0)
}

/// timerfd_gettime(2).
pub fn timerfd_gettime(cx: &mut Ctx<'_>, fd: Fd, out: Addr) -> SysResult {
    let file = get(cx, fd)?;
    let timer = file.ops_as::<TimerFd>().ok_or(EINVAL)?;
    out.write(&itimerspec_bytes(timer.alarm.setting()))?;
    Ok(0)
}
