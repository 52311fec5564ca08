//! Tests of the clock: it goes forward on all CPUs as one.
use alloc::{format, string::String};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use rt::{rt, task::ParkMode};

use super::{check, tasks::spawn};
use crate::{cpu::percpu, tasks, time};

const MS: u64 = 1_000_000;
static LATEST_NS: AtomicU64 = AtomicU64::new(0);
static BACKWARDS_NS: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);

/// Each reading comes after one that some CPU has published: it must not be earlier.
fn look(_: usize) {
    for _ in 0..20_000 {
        let before = LATEST_NS.load(SeqCst);
        let now = rt().now_ns();
        BACKWARDS_NS.fetch_max(before.saturating_sub(now), SeqCst);
        LATEST_NS.fetch_max(now, SeqCst);
    }
    DONE.fetch_add(1, SeqCst);
}

pub fn is_monotonic() -> Result<(), String> {
    let cpus = percpu::online_count();
    for counter in [&LATEST_NS, &BACKWARDS_NS] {
        counter.store(0, SeqCst);
    }
    DONE.store(0, SeqCst);
    for cpu in 0..cpus {
        spawn(look, 0, 1 << cpu, 0);
    }
    let deadline = time::now_ns() + 20_000 * MS;
    while DONE.load(SeqCst) < cpus && time::now_ns() < deadline {
        tasks::park(Some(time::now_ns() + MS), ParkMode::Uninterruptible);
    }
    check(DONE.load(SeqCst) == cpus, "the readers did not end")?;
    let backwards = BACKWARDS_NS.load(SeqCst);
    check(backwards == 0, &format!("the clock went back by {backwards} ns"))
}

/// A moment keeps its time, whatever the clock's rate is refined to meanwhile, and is not in the future.
pub fn remembers() -> Result<(), String> {
    let (counter, then) = (time::counter(), time::now_ns());
    tasks::park(Some(then + 150 * MS), ParkMode::Uninterruptible);
    let again = time::ns_at(counter);
    check(again <= then + MS && again + MS >= then, &format!("{then} ns became {again} ns"))?;
    let (slept, by_ticks) = (time::now_ns() - then, time::ticks_to_ns(time::counter() - counter));
    // A first measurement may be off by a few parts of a thousand.
    check(slept.abs_diff(by_ticks) < slept / 100, &format!("slept {slept} ns, {by_ticks} ns by the counter"))
}
