#![allow(unsafe_code, reason = "timers refer to the sleeping task without counting")]
//! Parking: how a task sleeps until it is woken, interrupted, or its time is over.
use core::ptr::NonNull;

use logic::{
    park_word::{Ended, Ends},
    timers::Timers,
};
use rt::task::{ParkMode, Parked, Task as _};

use super::{
    scheduler::{current_ref, switch_away},
    task::Task,
};
use crate::{
    cpu::{lock::InterruptsOff, percpu::this_cpu},
    time,
};

/// A task that parks with a timeout. It disarms its timer before its park returns, so the task lives,
/// and is in that park, for as long as this is found among the timers: it is used under their lock.
pub struct Sleeper(NonNull<Task>);

// SAFETY: tasks are shared between CPUs.
unsafe impl Send for Sleeper {}

/// See [`rt::Runtime::park`].
#[inline]
pub fn park(deadline_ns: Option<u64>, mode: ParkMode) -> Parked {
    let _off = InterruptsOff::enter();
    let task = current_ref();
    match deadline_ns {
        None => sleep(task, mode),
        Some(deadline) => sleep_until(task, mode, deadline),
    }
}

/// Parks, unless there is a token or an interruption. Interrupts are off.
#[inline]
fn sleep(task: &Task, mode: ParkMode) -> Parked {
    let interruptible = mode == ParkMode::Interruptible;
    let ends = if interruptible { Ends::Interruptible } else { Ends::All };
    if !task.wake.publish(ends) {
        return Parked::Woken;
    }
    // After the publication: whoever sets the flag later sees the park, and ends it.
    if interruptible && task.is_interrupted() && task.wake.withdraw(ends) {
        return Parked::Interrupted;
    }
    switch_away(false);
    match task.wake.ended() {
        Ended::Interrupted => Parked::Interrupted,
        Ended::TimedOut => Parked::TimedOut,
        Ended::Woken => Parked::Woken,
    }
}

fn sleep_until(task: &Task, mode: ParkMode, deadline_ns: u64) -> Parked {
    if task.wake.take_token() {
        return Parked::Woken;
    }
    if mode == ParkMode::Interruptible && task.is_interrupted() {
        return Parked::Interrupted;
    }
    if deadline_ns <= time::now_ns() {
        return Parked::TimedOut;
    }
    let local = &this_cpu().scheduler;
    let timer = local.with_timers(|timers| timers.arm(deadline_ns, Sleeper(NonNull::from(task))));
    let parked = sleep(task, mode);
    // Otherwise the timer is gone.
    if parked != Parked::TimedOut {
        local.with_timers(|timers| timers.cancel(timer));
    }
    parked
}

/// Ends the next park whose time is over, if somebody else has not ended it. The task is the caller's,
/// to be made to run.
pub fn end_due_park(timers: &mut Timers<Sleeper>, now_ns: u64) -> Option<&'static Task> {
    while let Some(Sleeper(task)) = timers.pop_due(now_ns) {
        // SAFETY: the timers' lock is held, so this task has not come to disarm its timer yet. If its
        // park ends here, it stays parked until it is made to run.
        let task = unsafe { task.as_ref() };
        if task.wake.end(Ends::All, Ended::TimedOut) {
            return Some(task);
        }
    }
    None
}
