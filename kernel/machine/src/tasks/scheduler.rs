#![allow(unsafe_code, reason = "switches stacks and turns counted pointers into current tasks and back")]
//! Who runs where: run queues, parking, waking, timers.
//!
//! A running task's reference belongs to its CPU (`PerCpu::current`); a runnable one's to the run
//! queue or mailbox it is in; a parked one's to nobody: whoever moves it from parked to runnable, and
//! only one can, takes that reference over.
//!
//! # Locking
//! A CPU's timers before its run queue; both with interrupts off; never two CPUs' queues at once
//! (stealing, in [`super::idle`], tries the other's lock without its own).
use alloc::{string::String, sync::Arc};
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use logic::{
    park_word::{Ended, Ends},
    run_queue::{self, RunQueue, SLICE_NS},
    timers::Timers,
};
use rt::task::{ParkMode, Parked, Start, Task as _, TaskSpec};
use spin::Once;
use x86_64::instructions::interrupts;

use super::{
    idle::{self, POLLING},
    mailbox::Mailbox,
    task::{self, Task},
};
use crate::{
    cpu::{
        apic,
        lock::{InterruptsOff, IrqSpin},
        percpu::{self, MAX_CPUS, PerCpu, this_cpu},
    },
    time,
};

/// A task that parks with a timeout. It disarms its timer before its park returns, so the task lives,
/// and is in that park, for as long as this is found among the timers: it is used under their lock.
struct Sleeper(NonNull<Task>);

// SAFETY: tasks are shared between CPUs.
unsafe impl Send for Sleeper {}

pub(super) static QUEUES: [IrqSpin<RunQueue<Arc<Task>>>; MAX_CPUS] =
    [const { IrqSpin::new(RunQueue::new()) }; MAX_CPUS];
static TIMERS: [IrqSpin<Timers<Sleeper>>; MAX_CPUS] = [const { IrqSpin::new(Timers::new()) }; MAX_CPUS];
pub(super) static MAILBOXES: [Mailbox; MAX_CPUS] = [const { Mailbox::new() }; MAX_CPUS];
/// [`Timers::nearest_ns`] of each of `TIMERS`. Changes under that lock; read without it, a value just
/// out of date has the timer fire once for nothing.
static NEAREST: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];
/// What each CPU's timer is armed for; `u64::MAX`: nothing.
static ARMED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(u64::MAX) }; MAX_CPUS];
/// A mask was changed that excludes this CPU: see [`mask_changed`].
static MASKS_CHANGED: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// Ended tasks, and who drops them: what hangs on a task may sleep in its end.
static DEAD: Mailbox = Mailbox::new();
static REAPER: Once<Arc<Task>> = Once::new();

unsafe extern "C" {
    fn switch_stacks(old: *mut u64, new: u64);
}

fn cpu_number() -> usize {
    this_cpu().index.get() as usize
}

fn current_ref() -> &'static Task {
    // SAFETY: the CPU's own reference keeps its current task alive while the task runs, and the
    // caller *is* that task.
    unsafe { &*this_cpu().current.get() }
}

// --- switching ---------------------------------------------------------------------------------------

/// Charges the running task for its time.
fn account(cpu: &PerCpu, task: &Task) {
    let now = time::counter();
    let ticks = now.wrapping_sub(cpu.running_since.replace(now));
    task.used_ticks.fetch_add(ticks, Ordering::Relaxed);
    let virtual_ns = run_queue::virtual_ns(time::ticks_to_ns(ticks), task.weight());
    task.vruntime.fetch_add(virtual_ns, Ordering::Relaxed);
}

/// Runs the next task. Interrupts are off, before and after. `requeue`: the current task goes on
/// later; otherwise somebody else has, or will have, its reference.
pub(super) fn switch_away(requeue: bool) {
    let cpu = this_cpu();
    assert!(cpu.lock_depth.get() == 0, "sleep under a spin lock");
    let index = cpu_number();
    let previous = current_ref();
    account(cpu, previous);
    cpu.reschedule.store(false, Ordering::Relaxed);
    let is_idle = core::ptr::eq(previous, cpu.idle_task.get());
    let mut queue = QUEUES[index].lock_while_off();
    if !MAILBOXES[index].is_empty() {
        MAILBOXES[index].take_all(|task| enqueue(&mut queue, task));
    }
    previous.lag.store(queue.lag(previous.vruntime.load(Ordering::Relaxed)), Ordering::Relaxed);
    if requeue && !is_idle {
        if previous.may_run_on(index) {
            // SAFETY: the CPU's reference to its current task moves into the queue.
            queue.push(previous.vruntime.load(Ordering::Relaxed), unsafe { Arc::from_raw(previous) });
        } else {
            previous.must_move.store(true, Ordering::Relaxed);
        }
    }
    let next = loop {
        break match queue.pop() {
            Some((_, task)) if task.may_run_on(index) => Arc::into_raw(task),
            Some((vruntime, task)) => {
                task.lag.store(queue.lag(vruntime), Ordering::Relaxed);
                let Some(task) = send_away(previous, task) else { continue };
                Arc::into_raw(task)
            }
            None => cpu.idle_task.get(),
        };
    };
    let others = !queue.is_empty();
    drop(queue);
    if core::ptr::eq(next, previous) {
        rearm(cpu, others);
        return;
    }
    // SAFETY: `next` is the idle task, which lives for ever, or carries the reference from the queue.
    let next = unsafe { &*next };
    next.on_cpu.store(true, Ordering::Relaxed);
    next.cpu.store(cpu.index.get(), Ordering::Relaxed);
    let (low, top) = next.stack_bounds();
    cpu.stack_low.set(low);
    cpu.stack_top.set(top);
    cpu.current.set(next);
    cpu.previous.set(previous);
    previous.save_application_state();
    next.load_application_state();
    rearm(cpu, others);
    // SAFETY: `next.rsp` was stored by its own switch away, or laid out by `spawn`; both stacks stay
    // mapped; interrupts are off.
    unsafe { switch_stacks(previous.rsp.get(), *next.rsp.get()) };
    finish_switch();
}

/// On the new task's stack: lets go of the previous one.
pub fn finish_switch() {
    let cpu = this_cpu();
    let previous = cpu.previous.replace(core::ptr::null());
    if previous.is_null() {
        return;
    }
    // SAFETY: the previous task's reference is still held: by its queue, its parked state, the idle
    // slot, or (dead, must_move) by this function from here on.
    let task = unsafe { &*previous };
    let dead = task.dead.load(Ordering::Relaxed);
    let must_move = task.must_move.swap(false, Ordering::Relaxed);
    // From here on another CPU may run it, and it may end and be dropped.
    task.on_cpu.store(false, Ordering::Release);
    if dead {
        // SAFETY: a dead task is in no queue: its reference is ours.
        DEAD.push(unsafe { Arc::from_raw(previous) });
        if let Some(reaper) = REAPER.get() {
            reaper.unpark();
        }
    } else if must_move {
        // SAFETY: `switch_away` left the reference for this.
        make_runnable(unsafe { Arc::from_raw(previous) });
    }
}

// --- making runnable ----------------------------------------------------------------------------------

/// Puts a runnable task into the calling CPU's queue.
pub(super) fn enqueue(queue: &mut RunQueue<Arc<Task>>, task: Arc<Task>) {
    let vruntime = queue.adopt(task.lag.load(Ordering::Relaxed));
    task.vruntime.store(vruntime, Ordering::Relaxed);
    consider_preemption(vruntime);
    queue.push(vruntime, task);
}

/// Marks the calling CPU for a reschedule if a task with `vruntime` should run now.
fn consider_preemption(vruntime: u64) {
    let cpu = this_cpu();
    let running = cpu.current.get();
    let idle = core::ptr::eq(running, cpu.idle_task.get());
    // SAFETY: the current task is alive while this CPU runs it.
    if idle || RunQueue::<Arc<Task>>::preempts(vruntime, unsafe { &*running }.vruntime.load(Ordering::Relaxed)) {
        cpu.reschedule.store(true, Ordering::Relaxed);
    }
}

/// Where a task that becomes runnable should go: where it ran last, unless an idle CPU could have it.
fn choose_cpu(task: &Task) -> usize {
    let last = task.cpu.load(Ordering::Relaxed) as usize;
    let online = percpu::online_count();
    // Its registers may still be in that CPU: only that one may run it.
    if online < 2 || task.on_cpu.load(Ordering::Acquire) {
        return last;
    }
    let is_idle = |index: usize| percpu::cpu(index).is_some_and(|cpu| cpu.idle.load(Ordering::Relaxed));
    if task.may_run_on(last) && is_idle(last) {
        return last;
    }
    let allowed = |index: &usize| task.may_run_on(*index);
    let idle = (0..online).filter(allowed).find(|&index| is_idle(index));
    idle.or_else(|| task.may_run_on(last).then_some(last))
        .or_else(|| (0..online).find(|index| allowed(index)))
        .unwrap_or(last)
}

/// A task out of the calling CPU's queue whose mask was changed so that it may not run here. Given back
/// if there is no other CPU for it after all. The queue is locked.
#[cold]
fn send_away(previous: &Task, task: Arc<Task>) -> Option<Arc<Task>> {
    if core::ptr::eq(Arc::as_ptr(&task), previous) {
        // Its registers are still here: `finish_switch` has the reference from now on.
        previous.must_move.store(true, Ordering::Relaxed);
        let _ = Arc::into_raw(task);
        return None;
    }
    let target = choose_cpu(&task);
    if target == cpu_number() {
        return Some(task);
    }
    post(target, task);
    None
}

/// Sends a runnable task to another CPU. Interrupts are off.
fn post(target: usize, task: Arc<Task>) {
    if MAILBOXES[target].push(task) && POLLING[target].must_interrupt() {
        tell(target);
    }
}

/// Interrupts another CPU, so that it looks at its mailbox and at what its tasks may do. Interrupts
/// are off.
pub(super) fn tell(target: usize) {
    if let Some(cpu) = percpu::cpu(target) {
        apic::send_ipi(cpu.apic_id.get(), apic::VECTOR_RESCHEDULE);
    }
}

/// Makes a task run soon. Its reference goes to a queue. From any context.
pub fn make_runnable(task: Arc<Task>) {
    let _off = InterruptsOff::enter();
    let target = choose_cpu(&task);
    if target == cpu_number() {
        enqueue(&mut QUEUES[target].lock_while_off(), task);
        rearm(this_cpu(), true);
    } else {
        post(target, task);
    }
}

/// Takes what other CPUs sent. Interrupts are off.
pub fn drain_mailbox() {
    let index = cpu_number();
    if !MAILBOXES[index].is_empty() {
        let mut queue = QUEUES[index].lock_while_off();
        MAILBOXES[index].take_all(|task| enqueue(&mut queue, task));
        let others = !queue.is_empty();
        drop(queue);
        rearm(this_cpu(), others);
    }
    if MASKS_CHANGED[index].load(Ordering::Acquire) {
        heed_masks(index);
    }
}

/// After a task's mask was changed: no CPU goes on with it against the mask, and an idle one gets the
/// chance to take it.
///
/// Every CPU outside the mask is told, since the task may be on its way to any of them. Deviation from
/// sched_setaffinity(2): one that runs kernel code of the task moves it only when that ends or parks.
pub fn mask_changed(task: &Task) {
    let _off = InterruptsOff::enter();
    let here = cpu_number();
    for (index, changed) in MASKS_CHANGED.iter().enumerate().take(percpu::online_count()) {
        if !task.may_run_on(index) {
            changed.store(true, Ordering::Release);
            if index == here { heed_masks(index) } else { tell(index) }
        }
    }
    let is_idle = |&index: &usize| percpu::cpu(index).is_some_and(|cpu| cpu.idle.load(Ordering::Relaxed));
    let mut allowed = (0..percpu::online_count()).filter(|&index| index != here && task.may_run_on(index));
    if let Some(index) = allowed.find(is_idle) {
        idle::offer(index);
    }
}

/// Sends the calling CPU's tasks away that may not run here any more: waiting ones now, the running one
/// when it leaves the kernel. Interrupts are off.
#[cold]
fn heed_masks(index: usize) {
    if !MASKS_CHANGED[index].swap(false, Ordering::AcqRel) {
        return;
    }
    let cpu = this_cpu();
    if !core::ptr::eq(cpu.current.get(), cpu.idle_task.get()) && !current_ref().may_run_on(index) {
        cpu.reschedule.store(true, Ordering::Relaxed);
    }
    loop {
        let mut queue = QUEUES[index].lock_while_off();
        let misplaced = |task: &Arc<Task>| !task.may_run_on(index) && !task.on_cpu.load(Ordering::Acquire);
        let Some((vruntime, task)) = queue.steal(misplaced) else { return };
        task.lag.store(queue.lag(vruntime), Ordering::Relaxed);
        drop(queue);
        make_runnable(task);
    }
}

/// Makes a task run whose park the caller has just ended.
fn resume(task: &Task) {
    // SAFETY: a parked task's reference belongs to whoever ends the park: the caller.
    make_runnable(unsafe { Arc::from_raw(task) });
}

pub fn unpark(task: &Task) {
    if task.wake.unpark() {
        resume(task);
    }
}

/// After the interrupt flag was set: ends an interruptible park, or reaches application code that runs
/// on another CPU.
pub fn interrupt(task: &Task) {
    if task.wake.end(Ends::Interruptible, Ended::Interrupted) {
        return resume(task);
    }
    let _off = InterruptsOff::enter();
    let index = task.cpu.load(Ordering::Relaxed) as usize;
    if task.on_cpu.load(Ordering::Acquire)
        && index != cpu_number()
        && let Some(cpu) = percpu::cpu(index)
    {
        apic::send_ipi(cpu.apic_id.get(), apic::VECTOR_RESCHEDULE);
    }
}

// --- sleeping -----------------------------------------------------------------------------------------

/// See [`rt::Runtime::park`].
pub fn park(deadline_ns: Option<u64>, mode: ParkMode) -> Parked {
    let task = current_ref();
    let interruptible = mode == ParkMode::Interruptible;
    let off = InterruptsOff::enter();
    if task.wake.take_token() {
        return Parked::Woken;
    }
    if interruptible && task.is_interrupted() {
        return Parked::Interrupted;
    }
    if deadline_ns.is_some_and(|deadline| deadline <= time::now_ns()) {
        return Parked::TimedOut;
    }
    let timer_cpu = cpu_number();
    let timer =
        deadline_ns.map(|deadline| with_timers(timer_cpu, |timers| timers.arm(deadline, Sleeper(NonNull::from(task)))));
    let ends = if interruptible { Ends::Interruptible } else { Ends::All };
    let how = if !task.wake.publish(ends) {
        Parked::Woken
    } else if interruptible && task.is_interrupted() && task.wake.withdraw(ends) {
        Parked::Interrupted
    } else {
        switch_away(false);
        match task.wake.ended() {
            Ended::Interrupted => Parked::Interrupted,
            // The timer is gone.
            Ended::TimedOut => return Parked::TimedOut,
            Ended::Woken => Parked::Woken,
        }
    };
    if let Some(timer) = timer {
        with_timers(timer_cpu, |timers| timers.cancel(timer));
    }
    drop(off);
    how
}

/// Lets others go first.
pub fn yield_now() {
    let _off = InterruptsOff::enter();
    let task = current_ref();
    if let Some(first) = QUEUES[cpu_number()].lock_while_off().first() {
        task.vruntime.fetch_max(first, Ordering::Relaxed);
    }
    switch_away(true);
}

/// A point where kernel code lets another task go first if one is due: for long loops.
pub fn preemption_point() {
    if this_cpu().reschedule.load(Ordering::Relaxed) {
        let _off = InterruptsOff::enter();
        switch_away(true);
    }
}

/// On the way back to application code, interrupts off: another task goes first.
pub fn preempt() {
    switch_away(true);
}

/// Takes the current task's interrupt flag.
pub fn take_interrupt_for_exit() -> bool {
    let task = current_ref();
    task.is_interrupted() && task.take_interrupted()
}

/// Ends the current task.
pub fn exit() -> ! {
    interrupts::disable();
    current_ref().dead.store(true, Ordering::Relaxed);
    switch_away(false);
    unreachable!("a dead task was switched to");
}

// --- timers -------------------------------------------------------------------------------------------

/// The CPU's timer fired, interrupts off.
pub fn timer_fired(now_ns: u64) {
    let cpu = this_cpu();
    let index = cpu_number();
    ARMED[index].store(u64::MAX, Ordering::Relaxed);
    while let Some(task) = with_timers(index, |timers| end_due_park(timers, now_ns)) {
        resume(task);
    }
    let queue = QUEUES[index].lock_while_off();
    if !core::ptr::eq(cpu.current.get(), cpu.idle_task.get()) {
        let running = current_ref();
        let ran_ns = time::ticks_to_ns(time::counter().wrapping_sub(cpu.running_since.get()));
        let vruntime = running.vruntime.load(Ordering::Relaxed) + run_queue::virtual_ns(ran_ns, running.weight());
        if queue.slice_over(vruntime, ran_ns) {
            cpu.reschedule.store(true, Ordering::Relaxed);
        }
    }
    let others = !queue.is_empty();
    // A wake-up may just have missed that a CPU became idle: once a slice, what waits is offered again.
    let helper = if others { idle::helper(index, &queue) } else { None };
    drop(queue);
    if let Some(helper) = helper {
        idle::offer(helper);
    }
    rearm(cpu, others);
}

/// Ends the next park whose time is over, if somebody else has not ended it. The task is the caller's,
/// to be made to run.
fn end_due_park(timers: &mut Timers<Sleeper>, now_ns: u64) -> Option<&'static Task> {
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

/// Lends a CPU's timers, interrupts off, and notes the nearest afterwards.
fn with_timers<T>(index: usize, with: impl FnOnce(&mut Timers<Sleeper>) -> T) -> T {
    let mut timers = TIMERS[index].lock_while_off();
    let result = with(&mut timers);
    NEAREST[index].store(timers.nearest_ns(), Ordering::Relaxed);
    result
}

/// Arms the CPU's timer for the nearest of its deadlines and, if `others` wait for the CPU, the
/// running task's slice end. A timer that is armed for earlier stays: firing once too often is cheaper
/// than programming each time.
fn rearm(cpu: &PerCpu, others: bool) {
    let index = cpu.index.get() as usize;
    let mut deadline = NEAREST[index].load(Ordering::Relaxed);
    if others && !core::ptr::eq(cpu.current.get(), cpu.idle_task.get()) {
        let since = time::ns_at(cpu.running_since.get());
        deadline = deadline.min((since + SLICE_NS).max(time::now_ns() + SLICE_NS / 4));
    }
    if deadline < ARMED[index].load(Ordering::Relaxed) {
        ARMED[index].store(deadline, Ordering::Relaxed);
        time::arm(Some(deadline));
    }
}

// --- the reaper -----------------------------------------------------------------------------------------

/// Starts the kernel task that drops ended tasks.
pub fn start_reaper() {
    let spec = TaskSpec {
        name: String::from("reaper"),
        start: Start::Kernel(reap, 0),
        extension: None,
        affinity: u64::MAX,
        nice: 0,
    };
    let reaper = task::spawn(spec, &mut |_| ())
        .unwrap_or_else(|_| crate::boot::out_of_memory(format_args!("none for the reaper")));
    REAPER.call_once(|| reaper);
}

fn reap(_: usize) {
    loop {
        DEAD.take_all(drop);
        park(None, ParkMode::Uninterruptible);
    }
}
