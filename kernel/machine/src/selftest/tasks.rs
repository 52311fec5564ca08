//! Tests of tasks: parking, timers, fairness, moving between CPUs.
use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use rt::task::{ParkMode, Parked, Start, Task as _, TaskSpec};

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

/// Sleeps until `done` holds, at most ten seconds.
pub fn wait_for(done: impl Fn() -> bool) -> Result<(), String> {
    let deadline = time::now_ns() + 10_000 * MS;
    while !done() {
        if time::now_ns() > deadline {
            return Err(String::from("not done within ten seconds"));
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

pub fn park_timeout() -> Result<(), String> {
    for ms in [1, 5, 20] {
        let start = time::now_ns();
        let parked = tasks::park(Some(start + ms * MS), ParkMode::Uninterruptible);
        let slept = time::now_ns() - start;
        check(parked == Parked::TimedOut, "woken instead of timed out")?;
        check(slept >= ms * MS, &format!("slept {slept} ns of {ms} ms"))?;
    }
    Ok(())
}

pub fn thousand_tasks() -> Result<(), String> {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    fn one(data: usize) {
        tasks::park(Some(time::now_ns() + (data as u64 % 7) * MS), ParkMode::Uninterruptible);
        tasks::yield_now();
        DONE.fetch_add(1, SeqCst);
    }
    DONE.store(0, SeqCst);
    let all: Vec<_> = (0..1000).map(|number| spawn(one, number, u64::MAX, 0)).collect();
    drop(all);
    wait_for(|| DONE.load(SeqCst) == 1000)
}

static SPINNING: AtomicBool = AtomicBool::new(false);
static SPINNERS: AtomicUsize = AtomicUsize::new(0);

/// Uses the CPU in small steps, since kernel tasks are not preempted.
fn spinner(_: usize) {
    while SPINNING.load(SeqCst) {
        let until = time::now_ns() + MS / 4;
        while time::now_ns() < until {
            core::hint::spin_loop();
        }
        tasks::preemption_point();
    }
    SPINNERS.fetch_sub(1, SeqCst);
}

/// CPU time of tasks with these nice levels that share CPU 0 for a while.
fn shares(nices: &[i8]) -> Result<Vec<u64>, String> {
    SPINNING.store(true, SeqCst);
    SPINNERS.store(nices.len(), SeqCst);
    let all: Vec<_> = nices.iter().map(|&nice| spawn(spinner, 0, 1, nice)).collect();
    tasks::park(Some(time::now_ns() + 400 * MS), ParkMode::Uninterruptible);
    SPINNING.store(false, SeqCst);
    wait_for(|| SPINNERS.load(SeqCst) == 0)?;
    Ok(all.iter().map(|task| task.cpu_time_ns()).collect())
}

pub fn fair_shares() -> Result<(), String> {
    let equal = shares(&[0, 0])?;
    let ratio = equal[0] as i64 * 1000 / equal[1].max(1) as i64;
    check((900..=1111).contains(&ratio), &format!("equal tasks got {} and {} ns", equal[0], equal[1]))?;
    let weighted = shares(&[0, 5])?;
    let ratio = weighted[0] * 1000 / weighted[1].max(1);
    // 1024 to 335.
    check((2400..=3700).contains(&ratio), &format!("nice 0 and 5 got {} and {} ns", weighted[0], weighted[1]))
}

pub fn affinity() -> Result<(), String> {
    let cpus = percpu::online_count();
    static SEEN: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    fn look(wanted: usize) {
        for _ in 0..20 {
            let here = percpu::this_cpu().index.get() as usize;
            if here != wanted {
                SEEN.fetch_or(1 << here, SeqCst);
            }
            tasks::park(Some(time::now_ns() + MS / 10), ParkMode::Uninterruptible);
        }
        DONE.fetch_add(1, SeqCst);
    }
    SEEN.store(0, SeqCst);
    DONE.store(0, SeqCst);
    for cpu in 0..cpus {
        spawn(look, cpu, 1 << cpu, 0);
    }
    wait_for(|| DONE.load(SeqCst) == cpus)?;
    check(SEEN.load(SeqCst) == 0, &format!("ran on the wrong CPUs {:#x}", SEEN.load(SeqCst)))?;
    check(!tasks::current().set_affinity(1 << 63), "an empty CPU set was accepted")
}

pub fn stealing() -> Result<(), String> {
    let cpus = percpu::online_count();
    static USED: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    fn work(_: usize) {
        for _ in 0..40 {
            USED.fetch_or(1 << percpu::this_cpu().index.get(), SeqCst);
            let until = time::now_ns() + MS / 2;
            while time::now_ns() < until {
                core::hint::spin_loop();
            }
            tasks::yield_now();
        }
        DONE.fetch_add(1, SeqCst);
    }
    USED.store(0, SeqCst);
    DONE.store(0, SeqCst);
    for _ in 0..4 * cpus {
        spawn(work, 0, u64::MAX, 0);
    }
    wait_for(|| DONE.load(SeqCst) == 4 * cpus)?;
    check(USED.load(SeqCst).count_ones() as usize == cpus, &format!("used CPUs {:#x} of {cpus}", USED.load(SeqCst)))
}

pub fn stack_high_water() -> Result<(), String> {
    let used = tasks::current().stack_high_water_bytes();
    let most = crate::memory::stacks::STACK_BYTES * 3 / 4;
    check(used > 0 && used < most, &format!("{used} bytes of kernel stack used"))
}
