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

/// The counter and the clock at one moment.
fn moment() -> Result<(u64, u64), String> {
    // A CPU that the host takes away in between reads them anew.
    for _ in 0..1000 {
        let (before, now_ns, after) = (time::counter(), time::now_ns(), time::counter());
        if time::ticks_to_ns(after.saturating_sub(before)) < MS / 10 {
            return Ok((before, now_ns));
        }
    }
    Err("no two readings of the counter are near each other".into())
}

/// A moment keeps its time, whatever the clock's rate is refined to meanwhile, and is not in the future.
pub fn remembers() -> Result<(), String> {
    let (counter, then) = moment()?;
    for _ in 0..6 {
        tasks::park(Some(time::now_ns() + 150 * MS), ParkMode::Uninterruptible);
        if time::is_settled() {
            break;
        }
    }
    let (later, now) = moment()?;
    let (again, slept, by_ticks) = (time::ns_at(counter), now - then, time::ticks_to_ns(later - counter));
    // A first measurement may be off by a few parts of a thousand.
    check(again.abs_diff(then) < slept / 100, &format!("{then} ns became {again} ns"))?;
    check(slept.abs_diff(by_ticks) < slept / 100, &format!("slept {slept} ns, {by_ticks} ns by the counter"))
}
