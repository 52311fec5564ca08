//! Alarms, and what Linux makes of them: POSIX timers, interval timers, timerfds.
//!
//! [`Alarm`]s are kept in one queue by deadline; a kernel task, started with the first alarm, sleeps
//! until the earliest and calls [`Expire`] for those that are due. CPU clocks are not offered.
//!
//! # Locking
//! `QUEUE` is a leaf spin lock; [`Expire::expired`] is called without it. Who arms or disarms an alarm
//! that is just being told about waits until that is over, so that nothing of the old setting comes after
//! the new one; so `expired` takes no lock that is held while alarms are set, and does not sleep.
use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rt::{
    rt,
    sync::SpinLock,
    task::{ParkMode, TaskRef, TaskSpec},
};

use crate::{
    args::{Addr, names::ClockId},
    errno::{EAGAIN, EINVAL, EOPNOTSUPP, SysResult},
    time::{read_timespec, timespec_bytes},
};

pub mod interval;
pub mod posix;
pub mod timerfd;

/// Told about expirations, on the alarm task.
pub trait Expire: Send + Sync {
    /// `count` periods have passed since the last call. Must not sleep.
    fn expired(&self, count: u64);
}

struct Armed {
    deadline_ns: u64,
    /// 0: once.
    interval_ns: u64,
    expire: Arc<dyn Expire>,
}

#[derive(Default)]
struct Queue {
    alarms: BTreeMap<u64, Armed>,
    by_deadline: BTreeSet<(u64, u64)>,
    next_id: u64,
    task: Option<TaskRef>,
    /// The alarm whose [`Expire::expired`] runs now.
    telling: Option<u64>,
}

static QUEUE: SpinLock<Option<Queue>> = SpinLock::new(None);

fn with_queue<T>(act: impl FnOnce(&mut Queue) -> T) -> T {
    act(QUEUE.lock().get_or_insert_with(Queue::default))
}

/// An alarm; disarmed when dropped. Times are on the [`rt::Runtime::now_ns`] clock.
pub struct Alarm {
    id: u64,
}

/// Time to the next expiration (0: disarmed), and the interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    pub value_ns: u64,
    pub interval_ns: u64,
}

impl Alarm {
    /// EAGAIN if the alarm task cannot be started.
    pub fn new() -> SysResult<Self> {
        start_task()?;
        let id = with_queue(|queue| {
            queue.next_id += 1;
            queue.next_id
        });
        Ok(Self { id })
    }

    /// What is left, as timer_gettime(2) tells it.
    pub fn setting(&self) -> Setting {
        let now = rt().now_ns();
        with_queue(|queue| {
            queue.alarms.get(&self.id).map_or(Setting::default(), |armed| Setting {
                // An armed timer never reads as 0.
                value_ns: armed.deadline_ns.saturating_sub(now).max(1),
                interval_ns: armed.interval_ns,
            })
        })
    }

    pub fn arm(&self, deadline_ns: u64, interval_ns: u64, expire: Arc<dyn Expire>) {
        let (old, waker) = self.when_quiet(|queue| {
            let old = queue.remove(self.id);
            queue.alarms.insert(self.id, Armed { deadline_ns, interval_ns, expire });
            queue.by_deadline.insert((deadline_ns, self.id));
            let is_first = queue.by_deadline.first() == Some(&(deadline_ns, self.id));
            (old, queue.task.clone().filter(|_| is_first))
        });
        drop(old);
        if let Some(task) = waker {
            task.unpark();
        }
    }

    pub fn disarm(&self) {
        let old = self.when_quiet(|queue| queue.remove(self.id));
        drop(old);
    }

    /// Runs `act` on the queue while nobody is being told about this alarm. The alarm task itself does
    /// not wait: the last reference to a program, and with it to its alarms, may go there.
    fn when_quiet<T>(&self, act: impl FnOnce(&mut Queue) -> T) -> T {
        let own_id = rt().current().id();
        loop {
            let mut locked = QUEUE.lock();
            let queue = locked.get_or_insert_with(Queue::default);
            let by_alarm_task = queue.task.as_ref().is_some_and(|task| task.id() == own_id);
            if queue.telling != Some(self.id) || by_alarm_task {
                return act(queue);
            }
            drop(locked);
            core::hint::spin_loop();
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl Queue {
    fn remove(&mut self, id: u64) -> Option<Armed> {
        let armed = self.alarms.remove(&id)?;
        self.by_deadline.remove(&(armed.deadline_ns, id));
        Some(armed)
    }

    /// Takes the first out that is due, and puts it back if it repeats: its receiver, and the periods
    /// that have passed. It counts as being told about until the next call.
    fn take_due(&mut self, now_ns: u64) -> Option<(Arc<dyn Expire>, u64)> {
        self.telling = None;
        let &(deadline, id) = self.by_deadline.first().filter(|first| first.0 <= now_ns)?;
        let armed = self.remove(id)?;
        self.telling = Some(id);
        if armed.interval_ns == 0 {
            return Some((armed.expire, 1));
        }
        let expire = armed.expire.clone();
        let count = 1 + (now_ns - deadline) / armed.interval_ns;
        let deadline_ns = deadline.saturating_add(count.saturating_mul(armed.interval_ns));
        self.by_deadline.insert((deadline_ns, id));
        self.alarms.insert(id, Armed { deadline_ns, ..armed });
        Some((expire, count))
    }
}

fn start_task() -> SysResult<()> {
    if with_queue(|queue| queue.task.is_some()) {
        return Ok(());
    }
    rt().spawn(TaskSpec::kernel("alarms", run)).map_err(|_| EAGAIN)?;
    Ok(())
}

/// The alarm task. It enters itself into the queue: an alarm that is armed before finds nobody to wake,
/// and is found by the first look below.
fn run(_: usize) {
    let own = rt().current();
    if with_queue(|queue| queue.task.get_or_insert_with(|| own.clone()).id() != own.id()) {
        // Two were started at once, and one is enough.
        return;
    }
    loop {
        let now = rt().now_ns();
        while let Some((expire, count)) = with_queue(|queue| queue.take_due(now)) {
            expire.expired(count);
        }
        let next = with_queue(|queue| queue.by_deadline.first().map(|first| first.0));
        // Periods of nanoseconds leave no time to sleep in, and parking until what is past lets nobody run.
        // Not between those that are told: who waits for one to be over spins, maybe on this CPU.
        rt().preemption_point();
        rt().park(next, ParkMode::Uninterruptible);
    }
}

/// A clock that timers may use: whether it is the wall clock.
fn is_realtime(clock: ClockId) -> SysResult<bool> {
    match clock.0 {
        ClockId::REALTIME | ClockId::TAI | ClockId::REALTIME_ALARM => Ok(true),
        ClockId::MONOTONIC | ClockId::BOOTTIME | ClockId::BOOTTIME_ALARM => Ok(false),
        // timer_create(2): ENOTSUP, which is this number.
        ClockId::PROCESS_CPUTIME_ID | ClockId::THREAD_CPUTIME_ID => Err(EOPNOTSUPP),
        id if id < 0 => Err(EOPNOTSUPP),
        _ => Err(EINVAL),
    }
}

/// Reads a `struct itimerspec`: interval, then value.
fn read_itimerspec(at: Addr) -> SysResult<Setting> {
    let interval_ns = read_timespec(at)?;
    let value_ns = read_timespec(Addr(at.0 + 16))?;
    Ok(Setting { value_ns, interval_ns })
}

fn itimerspec_bytes(setting: Setting) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&timespec_bytes(setting.interval_ns));
    bytes[16..].copy_from_slice(&timespec_bytes(setting.value_ns));
    bytes
}

/// The deadline of a value that is relative, or absolute on its clock.
fn deadline(value_ns: u64, absolute: bool, realtime: bool) -> u64 {
    let now = rt().now_ns();
    match (absolute, realtime) {
        (false, _) => now.saturating_add(value_ns),
        (true, false) => value_ns,
        (true, true) => now.saturating_add(value_ns.saturating_sub(rt().realtime_ns())),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    struct Nothing;

    impl Expire for Nothing {
        fn expired(&self, _count: u64) {}
    }

    fn queue(alarms: &[(u64, u64)]) -> Queue {
        let mut queue = Queue::default();
        for (id, (deadline_ns, interval_ns)) in alarms.iter().enumerate() {
            let armed = Armed { deadline_ns: *deadline_ns, interval_ns: *interval_ns, expire: Arc::new(Nothing) };
            queue.by_deadline.insert((*deadline_ns, id as u64));
            queue.alarms.insert(id as u64, armed);
        }
        queue
    }

    #[test]
    fn what_repeats_counts_missed_periods_and_stays() {
        let mut queue = queue(&[(10, 0), (10, 5), (100, 0)]);
        let mut counts = Vec::new();
        while let Some((_, count)) = queue.take_due(22) {
            counts.push(count);
        }
        assert_eq!(counts, [1, 3]);
        let left: Vec<_> = queue.by_deadline.iter().copied().collect();
        assert_eq!(left, [(25, 1), (100, 2)]);
        assert!(queue.take_due(24).is_none());
    }
}
