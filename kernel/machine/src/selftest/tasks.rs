//! Tests of tasks: parking, sleeping, many at once.
use alloc::{format, string::String, sync::Arc};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use rt::{
    sync::WaitQueue,
    task::{ParkMode, Parked, Start, Task as _, TaskSpec},
};

use super::check;
use crate::{
    cpu::percpu,
    tasks::{self, Task},
    time,
};

const MS: u64 = 1_000_000;

pub fn spawn(run: fn(usize), data: usize, affinity: u64, nice: i8) -> Arc<Task> {
    let spec =
        TaskSpec { name: String::from("test"), start: Start::Kernel(run, data), extension: None, affinity, nice };
    tasks::spawn(spec, &mut |_| ()).expect("memory for a test task")
}

/// Sleeps until `done` holds, at most a minute: the host may be busy.
pub fn wait_for(done: impl Fn() -> bool) -> Result<(), String> {
    let deadline = time::now_ns() + 60_000 * MS;
    while !done() {
        if time::now_ns() > deadline {
            return Err(String::from("not done within a minute"));
        }
        tasks::park(Some(time::now_ns() + MS), ParkMode::Uninterruptible);
    }
    Ok(())
}

pub fn park_unpark() -> Result<(), String> {
    static PARTNER: spin::Mutex<Option<Arc<Task>>> = spin::Mutex::new(None);
    static TURN: AtomicUsize = AtomicUsize::new(0);
    const ROUNDS: usize = 2000;
    fn partner(_: usize) {
        for round in 0..ROUNDS {
            while TURN.load(SeqCst) != 2 * round + 1 {
                tasks::park(None, ParkMode::Uninterruptible);
            }
            TURN.store(2 * round + 2, SeqCst);
            let main = PARTNER.lock().clone();
            main.inspect(|task| task.unpark());
        }
    }
    *PARTNER.lock() = Some(tasks::current());
    let other = spawn(partner, 0, u64::MAX, 0);
    for round in 0..ROUNDS {
        TURN.store(2 * round + 1, SeqCst);
        other.unpark();
        while TURN.load(SeqCst) != 2 * round + 2 {
            tasks::park(None, ParkMode::Uninterruptible);
        }
    }
    *PARTNER.lock() = None;
    // A token that came before the park is not lost.
    tasks::current().unpark();
    check(tasks::park(None, ParkMode::Uninterruptible) == Parked::Woken, "a token was lost")
}

/// Sleeps of all lengths: never too short, and where time is virtual hardly longer.
pub fn sleep_accuracy() -> Result<(), String> {
    const LATE_NS: u64 = 20_000;
    for ns in [1, 1000, 30_000, 123_457, MS, 5 * MS + 1, 20 * MS, 70 * MS, 300 * MS] {
        let deadline = time::now_ns() + ns;
        let parked = tasks::park(Some(deadline), ParkMode::Uninterruptible);
        let now = time::now_ns();
        check(parked == Parked::TimedOut, "woken instead of timed out")?;
        check(now >= deadline, &format!("a sleep of {ns} ns ended {} ns early", deadline.saturating_sub(now)))?;
        let late = now - deadline;
        check(!time::is_exact() || late < LATE_NS, &format!("a sleep of {ns} ns ended {late} ns late"))?;
    }
    Ok(())
}

/// Many sleepers at once on all CPUs, with deadlines in no order.
pub fn sleepers() -> Result<(), String> {
    const COUNT: usize = 200;
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static EARLY: AtomicUsize = AtomicUsize::new(0);
    static LATEST: AtomicU64 = AtomicU64::new(0);
    fn one(data: usize) {
        for round in 1..4 {
            let deadline = time::now_ns() + (data * round * 7919 % 20_011) as u64 * 1000;
            while tasks::park(Some(deadline), ParkMode::Uninterruptible) != Parked::TimedOut {}
            let now = time::now_ns();
            EARLY.fetch_add(usize::from(now < deadline), SeqCst);
            LATEST.fetch_max(now.saturating_sub(deadline), SeqCst);
        }
        DONE.fetch_add(1, SeqCst);
    }
    [&DONE, &EARLY].iter().for_each(|count| count.store(0, SeqCst));
    LATEST.store(0, SeqCst);
    let cpus = percpu::online_count();
    (0..COUNT).for_each(|number| drop(spawn(one, number, 1 << (number % cpus), 0)));
    wait_for(|| DONE.load(SeqCst) == COUNT)?;
    let (early, latest) = (EARLY.load(SeqCst), LATEST.load(SeqCst));
    check(early == 0, &format!("{early} sleeps ended early"))?;
    // Late by no more than those whose turn is the same moment need.
    check(!time::is_exact() || latest < MS, &format!("a sleep ended {latest} ns late"))
}

/// Each of many sleepers costs one interrupt, whichever others sleep beside it.
pub fn timer_interrupts() -> Result<(), String> {
    const COUNT: usize = 50;
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static FROM_NS: AtomicU64 = AtomicU64::new(0);
    fn one(number: usize) {
        let deadline = FROM_NS.load(SeqCst) + number as u64 * MS / 5;
        while tasks::park(Some(deadline), ParkMode::Uninterruptible) == Parked::Woken {}
        DONE.fetch_add(1, SeqCst);
    }
    DONE.store(0, SeqCst);
    tasks::current().set_affinity(1);
    FROM_NS.store(time::now_ns() + 5 * MS, SeqCst);
    let before = percpu::this_cpu().interrupts.load(SeqCst);
    (0..COUNT).for_each(|number| drop(spawn(one, number, 1, 0)));
    while DONE.load(SeqCst) < COUNT {
        tasks::park(Some(time::now_ns() + 20 * MS), ParkMode::Uninterruptible);
    }
    let taken = percpu::this_cpu().interrupts.load(SeqCst) - before;
    tasks::current().set_affinity(u64::MAX);
    let what = format!("{taken} interrupts for {COUNT} sleepers");
    check(!time::is_exact() || (taken as usize) < COUNT * 5 / 4, &what)
}

/// A thousand tasks that all live at once, wait for one event, sleep and end.
pub fn thousand_tasks() -> Result<(), String> {
    const COUNT: usize = 1000;
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    static GO: AtomicBool = AtomicBool::new(false);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static QUEUE: WaitQueue = WaitQueue::new();
    fn one(data: usize) {
        WAITING.fetch_add(1, SeqCst);
        let _ = QUEUE.wait_until(None, ParkMode::Uninterruptible, || GO.load(SeqCst).then_some(()));
        tasks::park(Some(time::now_ns() + (data as u64 % 7) * MS), ParkMode::Uninterruptible);
        tasks::yield_now();
        DONE.fetch_add(1, SeqCst);
    }
    WAITING.store(0, SeqCst);
    GO.store(false, SeqCst);
    DONE.store(0, SeqCst);
    (0..COUNT).for_each(|number| drop(spawn(one, number, u64::MAX, 0)));
    wait_for(|| WAITING.load(SeqCst) == COUNT)?;
    check(DONE.load(SeqCst) == 0, "a task went on before it was let")?;
    GO.store(true, SeqCst);
    QUEUE.wake_all();
    wait_for(|| DONE.load(SeqCst) == COUNT)
}

pub fn stack_high_water() -> Result<(), String> {
    let used = tasks::current().stack_high_water_bytes();
    let most = crate::memory::stacks::STACK_BYTES * 3 / 4;
    check(used > 0 && used < most, &format!("{used} bytes of kernel stack used"))
}
