//! POSIX timers: timer_create and its family (timer_create(2), timer_settime(2)).
use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Alarm, Expire, deadline, is_realtime, itimerspec_bytes, read_itimerspec};
use crate::{
    args::{Addr, flags::TimerFlags, names::ClockId},
    call::Ctx,
    errno::{EAGAIN, EINVAL, SysResult},
    program::Program,
    signal::{SI_TIMER, SigInfo, send},
    thread::Thread,
};

const SIGEV_SIGNAL: i32 = 0;
const SIGEV_NONE: i32 = 1;
/// SIGEV_THREAD is libc's own; it reaches the kernel as this one's signal to a helper thread.
const SIGEV_THREAD_ID: i32 = 4;
const TIMERS_MAX: usize = 4096;

/// The timers of a program. Guarded by `Program::timers`.
#[derive(Default)]
pub struct Timers {
    timers: BTreeMap<i32, PosixTimer>,
    next_id: i32,
}

struct PosixTimer {
    alarm: Alarm,
    realtime: bool,
    notice: Arc<Notice>,
}

/// What an expiration does.
struct Notice {
    program: Weak<Program>,
    kind: i32,
    signal: u32,
    /// SIGEV_THREAD_ID's thread.
    tid: u32,
    timer_id: i32,
    value: u64,
    /// Expirations beyond the first of the last notice.
    overrun: AtomicU64,
}

impl Expire for Notice {
    fn expired(&self, count: u64) {
        let overrun = (count - 1).min(i32::MAX as u64);
        let Some(program) = self.program.upgrade() else { return };
        // si_timerid and si_overrun, then si_value.
        let fields = [self.timer_id as u32 as u64 | overrun << 32, self.value, 0, 0];
        let info = SigInfo { signal: self.signal, errno: 0, code: SI_TIMER, fields };
        let sent = match self.kind {
            SIGEV_SIGNAL => send::timer_to_program(&program, info),
            SIGEV_THREAD_ID => match program.thread(self.tid) {
                Some(task) => Thread::of(&task).map_or(Ok(0), |thread| send::timer_to_thread(&task, thread, info)),
                None => Ok(0),
            },
            _ => Ok(0),
        };
        // Refused if too many signals wait, as by RLIMIT_SIGPENDING.
        if let Ok(overrun) = sent {
            self.overrun.store(overrun, Ordering::Relaxed);
        }
    }
}

/// timer_create(2).
pub fn timer_create(cx: &mut Ctx<'_>, clock: ClockId, event: Addr, out: Addr) -> SysResult {
    let realtime = is_realtime(clock)?;
    const SIGALRM: u32 = 14;
    let (mut value, mut signal, mut kind, mut tid) = (None, SIGALRM, SIGEV_SIGNAL, 0);
    if !event.is_null() {
        let bytes: [u8; 20] = event.read()?;
        let int = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        value = Some(event.read_u64()?);
        (signal, kind, tid) = (int(8) as u32, int(12), int(16) as u32);
    }
    let valid = match kind {
        SIGEV_NONE => true,
        SIGEV_SIGNAL => (1..=64).contains(&signal),
        SIGEV_THREAD_ID => (1..=64).contains(&signal) && cx.program().thread(tid).is_some(),
        _ => false,
    };
    if !valid {
        return Err(EINVAL);
    }
    let alarm = Alarm::new()?;
    let mut timers = cx.program().timers.lock();
    if timers.timers.len() >= TIMERS_MAX {
        return Err(EAGAIN);
    }
    let id = timers.next_id;
    timers.next_id = id.wrapping_add(1).max(0);
    let notice = Arc::new(Notice {
        program: Arc::downgrade(cx.program()),
        kind,
        signal,
        tid,
        timer_id: id,
        // Without an event, the value is the timer's id.
        value: value.unwrap_or(id as u64),
        overrun: AtomicU64::new(0),
    });
    timers.timers.insert(id, PosixTimer { alarm, realtime, notice });
    drop(timers);
    let told = out.write(&id.to_le_bytes());
    if told.is_err() {
        // Nobody knows of it.
        let gone = cx.program().timers.lock().timers.remove(&id);
        drop(gone);
    }
    told.map(|()| 0)
}

/// timer_settime(2).
pub fn timer_settime(cx: &mut Ctx<'_>, id: i32, flags: TimerFlags, new: Addr, old: Addr) -> SysResult {
    if new.is_null() {
        return Err(EINVAL);
    }
    let wanted = read_itimerspec(new)?;
    let timers = cx.program().timers.lock();
    let timer = timers.timers.get(&id).ok_or(EINVAL)?;
    let before = timer.alarm.setting();
    if wanted.value_ns == 0 {
        timer.alarm.disarm();
    } else {
        let at = deadline(wanted.value_ns, flags.has(TimerFlags::ABSTIME), timer.realtime);
        timer.alarm.arm(at, wanted.interval_ns, timer.notice.clone());
    }
    drop(timers);
    if !old.is_null() {
        old.write(&itimerspec_bytes(before))?;
    }
    Ok(0)
}

/// timer_gettime(2).
pub fn timer_gettime(cx: &mut Ctx<'_>, id: i32, out: Addr) -> SysResult {
    let setting = cx.program().timers.lock().timers.get(&id).map(|timer| timer.alarm.setting());
    out.write(&itimerspec_bytes(setting.ok_or(EINVAL)?))?;
    Ok(0)
}

/// timer_getoverrun(2).
pub fn timer_getoverrun(cx: &mut Ctx<'_>, id: i32) -> SysResult {
    let timers = cx.program().timers.lock();
    timers.timers.get(&id).map(|timer| timer.notice.overrun.load(Ordering::Relaxed)).ok_or(EINVAL)
}

/// timer_delete(2).
pub fn timer_delete(cx: &mut Ctx<'_>, id: i32) -> SysResult {
    let gone = cx.program().timers.lock().timers.remove(&id);
    gone.map(|_| 0).ok_or(EINVAL)
}
