#![allow(unsafe_code, reason = "switches stacks and turns counted pointers into current tasks and back")]
//! Who runs where: run queues, switching, waking, slices. Parking is [`super::sleep`]'s.
//!
//! A running task's reference belongs to its CPU (`PerCpu::current`); a runnable one's to the run
//! queue or mailbox it is in; a parked one's to nobody: whoever moves it from parked to runnable, and
//! only one can, takes that reference over.
//!
//! # Locking
//! A CPU's timers before its run queue; both with interrupts off; never two CPUs' queues at once
//! (stealing, in [`super::idle`], tries the other's lock without its own).
use alloc::sync::Arc;
use core::{
    arch::asm,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
};

use logic::{
    idle_poll::Polling,
    park_word::{Ended, Ends},
    run_queue::{self, RunQueue, SLICE_NS},
    timers::Timers,
};
use rt::task::{ParkMode, Task as _, TaskSpec};
use spin::Once;
use x86_64::instructions::interrupts;

use super::{
    idle,
    mailbox::Mailbox,
    sleep::{self, Sleeper},
    task::{self, Task},
};
use crate::{
    cpu::{
        apic,
        lock::{InterruptsOff, IrqSpin},
        percpu::{self, PerCpu, this_cpu},
    },
    time,
};

/// A CPU's part of the scheduler, in its [`PerCpu`]. Others reach its mailbox, and steal from its queue.
pub struct Local {
    pub(super) queue: IrqSpin<RunQueue<Arc<Task>>>,
    pub(super) mailbox: Mailbox,
    timers: IrqSpin<Timers<Sleeper>>,
    /// [`Timers::nearest_ns`] of `timers`. Changes under that lock; read without
    /// it, a value just out of date has the timer fire once for nothing.
    nearest: AtomicU64,
    /// What the CPU's timer is armed for; `u64::MAX`: nothing. The CPU's own.
    armed: AtomicU64,
    /// A slice's end was among the reasons to arm it. The CPU's own.
    armed_for_slice: AtomicBool,
    /// A mask was changed that excludes this CPU: see [`mask_changed`].
    masks_changed: AtomicBool,
    /// Whether the CPU looks at its mailbox by itself.
    pub(super) polling: Polling<AtomicU8>,
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}

impl Local {
    pub const fn new() -> Self {
        Self {
            queue: IrqSpin::new(RunQueue::new()),
            mailbox: Mailbox::new(),
            timers: IrqSpin::new(Timers::new()),
            nearest: AtomicU64::new(u64::MAX),
            armed: AtomicU64::new(u64::MAX),
            armed_for_slice: AtomicBool::new(false),
            masks_changed: AtomicBool::new(false),
            polling: Polling::new(AtomicU8::new(0)),
        }
    }

    /// Lends the timers, interrupts off, and notes the nearest afterwards.
    #[inline]
    pub(super) fn with_timers<T>(&self, with: impl FnOnce(&mut Timers<Sleeper>) -> T) -> T {
        let mut timers = self.timers.lock_while_off();
        let result = with(&mut timers);
        self.nearest.store(timers.nearest_ns(), Ordering::Relaxed);
        result
    }
}

/// Ended tasks, and who drops them: what hangs on a task may sleep in its end.
static DEAD: Mailbox = Mailbox::new();
static REAPER: Once<Arc<Task>> = Once::new();

/// Stores the stack pointer to `*old` and goes on with `new`, where another task left by this, or with
/// what `spawn` laid out there: an address to return to.
///
/// # Safety
/// `new` is such a stack pointer, used once. Interrupts are off.
#[inline(always)]
unsafe fn switch_stacks(old: *mut u64, new: u64) {
    // SAFETY: by the contract; what is not named as clobbered is pushed and popped. Vector state and
    // MXCSR are the caller's business.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "lea rax, [rip + 2f]",
            "push rax",
            "mov [rdi], rsp",
            "mov rsp, rsi",
            "ret",
            "2:",
            "pop rbp",
            "pop rbx",
            in("rdi") old,
            in("rsi") new,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
            clobber_abi("C"),
        );
    }
}

fn cpu_number() -> usize {
    this_cpu().index.get() as usize
}

pub(super) fn current_ref() -> &'static Task {
    // SAFETY: the CPU's own reference keeps its current task alive while the task runs, and the
    // caller *is* that task.
    unsafe { &*this_cpu().current.get() }
}

// --- switching ---------------------------------------------------------------------------------------

/// Charges the running task for its time.
fn account(cpu: &PerCpu, task: &Task) {
    let now = time::counter();
    let ticks = now.wrapping_sub(cpu.running_since.load(Ordering::Relaxed));
    // Before the sum, for who reads both: see `Task::cpu_time_ns`.
    cpu.running_since.store(now, Ordering::Relaxed);
    task.used_ticks.fetch_add(ticks, Ordering::Release);
    task.vruntime.fetch_add(run_queue::charge_ns(time::ticks_to_ns(ticks), task.weight()), Ordering::Relaxed);
}

/// Runs the next task. Interrupts are off, before and after. `requeue`: the current task goes on
/// later; otherwise somebody else has, or will have, its reference.
pub(super) fn switch_away(requeue: bool) {
    let cpu = this_cpu();
    assert!(cpu.lock_depth.get() == 0, "sleep under a spin lock");
    let index = cpu.index.get() as usize;
    let local = &cpu.scheduler;
    let previous = current_ref();
    account(cpu, previous);
    let is_idle = core::ptr::eq(previous, cpu.idle_task.get());
    let mut queue = local.queue.lock_while_off();
    if !local.mailbox.is_empty() {
        take_mail(cpu, local, &mut queue);
    }
    // After the mail, which may ask for what is being done here.
    cpu.reschedule.store(false, Ordering::Relaxed);
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
        rearm(cpu, local, others);
        return;
    }
    // SAFETY: `next` is the idle task, which lives for ever, or carries the reference from the queue.
    let next = unsafe { &*next };
    next.cpu.store(cpu.index.get(), Ordering::Relaxed);
    // Sequentially consistent with `interrupt`: either that sees the task on this CPU, and interrupts it,
    // or the way back to application code sees the flag.
    next.on_cpu.swap(true, Ordering::SeqCst);
    let (low, top) = next.stack_bounds();
    cpu.stack_low.set(low);
    cpu.stack_top.set(top);
    cpu.current.set(next);
    cpu.previous.set(previous);
    previous.save_application_state();
    next.load_application_state();
    rearm(cpu, local, others);
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
    let must_move = task.must_move.load(Ordering::Relaxed);
    if dead || must_move {
        finish_rarely(task, dead);
    } else {
        // From here on another CPU may run it, and it may end and be dropped.
        task.on_cpu.store(false, Ordering::Release);
    }
}

/// Ends a task that has left its CPU for good, or sends it to one that it may run on.
#[cold]
fn finish_rarely(task: &Task, dead: bool) {
    task.must_move.store(false, Ordering::Relaxed);
    task.on_cpu.store(false, Ordering::Release);
    // SAFETY: a dead task is in no queue, and `switch_away` left the reference of one that must move:
    // it is ours.
    let task = unsafe { Arc::from_raw(task) };
    if dead {
        DEAD.push(task);
        if let Some(reaper) = REAPER.get() {
            reaper.unpark();
        }
    } else {
        make_runnable(task);
    }
}

// --- making runnable ----------------------------------------------------------------------------------

/// Puts a runnable task into the calling CPU's queue. One that was here before keeps its virtual runtime:
/// while it slept others ran, so it is behind them, and soon gets the CPU.
#[inline]
pub(super) fn enqueue(cpu: &PerCpu, queue: &mut RunQueue<Arc<Task>>, task: Arc<Task>) {
    let here = cpu.index.get();
    let lag = if task.cpu.load(Ordering::Relaxed) == here {
        queue.lag(task.vruntime.load(Ordering::Relaxed))
    } else {
        task.cpu.store(here, Ordering::Relaxed);
        task.lag.load(Ordering::Relaxed)
    };
    let vruntime = queue.adopt(lag);
    task.vruntime.store(vruntime, Ordering::Relaxed);
    consider_preemption(cpu, vruntime);
    queue.push(vruntime, task);
}

/// Marks the calling CPU for a reschedule if a task with `vruntime` should run now. What the running task
/// has run since it got the CPU counts only after interrupts ([`reconsider`]): who wakes others itself
/// does not keep them waiting for long.
fn consider_preemption(cpu: &PerCpu, vruntime: u64) {
    let running = cpu.current.get();
    let idle = core::ptr::eq(running, cpu.idle_task.get());
    // SAFETY: the current task is alive while this CPU runs it.
    if idle || RunQueue::<Arc<Task>>::preempts(vruntime, unsafe { &*running }.vruntime.load(Ordering::Relaxed)) {
        cpu.reschedule.store(true, Ordering::Relaxed);
    }
}

/// At the end of an interrupt, which may have woken somebody: marks the calling CPU for a reschedule if one
/// of those who wait should run now. Interrupts are off.
pub fn reconsider() {
    let cpu = this_cpu();
    reconsider_with(cpu, &cpu.scheduler.queue.lock_while_off());
}

fn reconsider_with(cpu: &PerCpu, queue: &RunQueue<Arc<Task>>) {
    let Some(first) = queue.first() else { return };
    if core::ptr::eq(cpu.current.get(), cpu.idle_task.get()) {
        return;
    }
    let ran_ns = time::ticks_to_ns(time::counter().wrapping_sub(cpu.running_since.load(Ordering::Relaxed)));
    let running = current_ref();
    let vruntime = running.vruntime.load(Ordering::Relaxed) + run_queue::charge_ns(ran_ns, running.weight());
    if RunQueue::<Arc<Task>>::preempts(first, vruntime) || queue.slice_over(vruntime, ran_ns) {
        cpu.reschedule.store(true, Ordering::Relaxed);
    }
}

/// Where a task that becomes runnable should go: where it ran last, unless a free CPU could have it.
#[inline]
fn choose_cpu(task: &Task) -> usize {
    let last = task.cpu.load(Ordering::Relaxed) as usize;
    let online = percpu::online_count();
    // Its registers may still be in that CPU: only that one may run it.
    if online < 2 || task.on_cpu.load(Ordering::Acquire) { last } else { choose_among(task, last, online) }
}

#[inline(never)]
fn choose_among(task: &Task, last: usize, online: usize) -> usize {
    if task.may_run_on(last) && idle::is_free(last) {
        return last;
    }
    let allowed = |index: &usize| task.may_run_on(*index);
    let free = (0..online).filter(allowed).find(|&index| idle::is_free(index));
    free.or_else(|| task.may_run_on(last).then_some(last))
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
#[inline(never)]
fn post(target: usize, task: Arc<Task>) {
    let cpu = percpu::cpu(target).expect("a task's CPU exists");
    if cpu.scheduler.mailbox.push(task) && cpu.scheduler.polling.must_interrupt() {
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
#[inline]
pub fn make_runnable(task: Arc<Task>) {
    let _off = InterruptsOff::enter();
    let cpu = this_cpu();
    let target = choose_cpu(&task);
    if target == cpu.index.get() as usize {
        enqueue(cpu, &mut cpu.scheduler.queue.lock_while_off(), task);
        rearm(cpu, &cpu.scheduler, true);
    } else {
        post(target, task);
    }
}

#[inline(never)]
fn take_mail(cpu: &PerCpu, local: &Local, queue: &mut RunQueue<Arc<Task>>) {
    local.mailbox.take_all(|task| enqueue(cpu, queue, task));
}

/// Takes what other CPUs sent. Interrupts are off.
pub fn drain_mailbox() {
    let cpu = this_cpu();
    let local = &cpu.scheduler;
    if !local.mailbox.is_empty() {
        let mut queue = local.queue.lock_while_off();
        take_mail(cpu, local, &mut queue);
        reconsider_with(cpu, &queue);
        let others = !queue.is_empty();
        drop(queue);
        rearm(cpu, local, others);
    }
    if local.masks_changed.load(Ordering::Acquire) {
        heed_masks(cpu);
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
    for index in (0..percpu::online_count()).filter(|&index| !task.may_run_on(index)) {
        if let Some(cpu) = percpu::cpu(index) {
            cpu.scheduler.masks_changed.store(true, Ordering::Release);
            if index == here { heed_masks(cpu) } else { tell(index) }
        }
    }
    let mut allowed = (0..percpu::online_count()).filter(|&index| index != here && task.may_run_on(index));
    if let Some(index) = allowed.find(|&index| idle::is_free(index)) {
        idle::offer(index);
    }
}

/// Sends the calling CPU's tasks away that may not run here any more: waiting ones now, the running one
/// when it leaves the kernel. Interrupts are off.
#[cold]
fn heed_masks(cpu: &PerCpu) {
    if !cpu.scheduler.masks_changed.swap(false, Ordering::AcqRel) {
        return;
    }
    let index = cpu.index.get() as usize;
    if !core::ptr::eq(cpu.current.get(), cpu.idle_task.get()) && !current_ref().may_run_on(index) {
        cpu.reschedule.store(true, Ordering::Relaxed);
    }
    loop {
        let mut queue = cpu.scheduler.queue.lock_while_off();
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

// --- giving way ---------------------------------------------------------------------------------------

/// Lets others go first.
pub fn yield_now() {
    let _off = InterruptsOff::enter();
    let task = current_ref();
    if let Some(first) = this_cpu().scheduler.queue.lock_while_off().first() {
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
    let local = &cpu.scheduler;
    // As if armed for the earliest of all times: not anew for each task that is woken here, but once, below.
    local.armed.store(0, Ordering::Relaxed);
    while let Some(task) = local.with_timers(|timers| sleep::end_due_park(timers, now_ns)) {
        resume(task);
    }
    let queue = local.queue.lock_while_off();
    reconsider_with(cpu, &queue);
    let others = !queue.is_empty();
    // A wake-up may just have missed that a CPU became idle: once a slice, what waits is offered again.
    let helper = if others { idle::helper(cpu.index.get() as usize, &queue) } else { None };
    drop(queue);
    if others && !cpu.reschedule.load(Ordering::Relaxed) {
        charge_slice(cpu);
    }
    if let Some(helper) = helper {
        idle::offer(helper);
    }
    local.armed.store(u64::MAX, Ordering::Relaxed);
    local.armed_for_slice.store(false, Ordering::Relaxed);
    rearm(cpu, local, others);
}

/// The running task goes on although others wait, since they are ahead: it is charged slice by slice, as
/// [`run_queue::charge_ns`] counts no more than a few at once, and one far enough ahead would wait for ever.
fn charge_slice(cpu: &PerCpu) {
    if core::ptr::eq(cpu.current.get(), cpu.idle_task.get()) {
        return;
    }
    let ran_ticks = time::counter().wrapping_sub(cpu.running_since.load(Ordering::Relaxed));
    if time::ticks_to_ns(ran_ticks) >= SLICE_NS {
        account(cpu, current_ref());
    }
}

/// Arms the CPU's timer for the nearest of its deadlines and, if `others` wait for the CPU, the
/// running task's slice end. A timer that is armed for earlier stays: firing once too often is cheaper
/// than programming each time. So does one that a slice's end has armed: that of an earlier task lies
/// before this one's, and an earlier look at this task's own is the same.
#[inline]
fn rearm(cpu: &PerCpu, local: &Local, others: bool) {
    let nearest = local.nearest.load(Ordering::Relaxed);
    let for_slice = others && !local.armed_for_slice.load(Ordering::Relaxed);
    if for_slice || nearest < local.armed.load(Ordering::Relaxed) {
        rearm_for(cpu, local, nearest, for_slice);
    }
}

#[inline(never)]
fn rearm_for(cpu: &PerCpu, local: &Local, nearest: u64, for_slice: bool) {
    let mut deadline = nearest;
    if for_slice && !core::ptr::eq(cpu.current.get(), cpu.idle_task.get()) {
        let since = time::ns_at(cpu.running_since.load(Ordering::Relaxed));
        deadline = deadline.min((since + SLICE_NS).max(time::now_ns() + SLICE_NS / 4));
        local.armed_for_slice.store(true, Ordering::Relaxed);
    }
    if deadline < local.armed.load(Ordering::Relaxed) {
        local.armed.store(deadline, Ordering::Relaxed);
        time::arm(Some(deadline));
    }
}

// --- the reaper -----------------------------------------------------------------------------------------

/// Starts the kernel task that drops ended tasks.
pub fn start_reaper() {
    let spec = TaskSpec::kernel("reaper", reap);
    let reaper = task::spawn(spec, &mut |_| ())
        .unwrap_or_else(|_| crate::boot::out_of_memory(format_args!("none for the reaper")));
    REAPER.call_once(|| reaper);
}

fn reap(_: usize) {
    loop {
        DEAD.take_all(drop);
        sleep::park(None, ParkMode::Uninterruptible);
    }
}
