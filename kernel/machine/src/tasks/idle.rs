//! What a CPU does when nothing is runnable: takes work from others, zeroes frames ahead, polls, halts.
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use logic::{
    idle_poll::{GAP_NS, PollWindow, Polled},
    run_queue::RunQueue,
};
use x86_64::instructions::interrupts;

use super::{
    Task,
    scheduler::{enqueue, switch_away, tell},
};
use crate::{
    cpu::{
        exits,
        percpu::{self, PerCpu, this_cpu},
    },
    memory::{balloon, frames, heap, tlb},
    time,
};

/// QEMU's translator leaves its loop at each pause, under a lock that other CPUs need for their devices,
/// and gives other CPUs on the same host thread their turn.
const LOOKS_PER_PAUSE: usize = 16;

/// Makes the calling context the CPU's idle task, on the stack with these bounds.
pub fn become_idle(stack_low: u64, stack_top: u64) {
    let cpu = this_cpu();
    let idle = Arc::into_raw(Task::idle(stack_low, stack_top));
    cpu.idle_task.set(idle);
    cpu.current.set(idle);
    cpu.running_since.store(time::counter(), Ordering::Relaxed);
}

pub fn idle_loop() -> ! {
    let cpu = this_cpu();
    let index = cpu.index.get() as usize;
    let mut window = PollWindow::new();
    loop {
        heap::empty_if_unwanted();
        balloon::tell_watcher();
        interrupts::disable();
        cpu.idle.store(true, Ordering::SeqCst);
        // Whoever sets this from here on has the loop go round once more.
        cpu.reschedule.store(false, Ordering::Relaxed);
        let found = if has_work(cpu) { Found::Work } else { steal(index) };
        if found == Found::Work {
            tlb::leave_idle();
            switch_away(true);
            interrupts::enable();
        } else if found == Found::Perhaps || !time::is_exact() && frames::zero_ahead() {
            // Memory for the next faults, a page at a time. Interrupts need an instruction between `sti`
            // and the next `cli` to arrive at.
            interrupts::enable();
            core::hint::spin_loop();
        } else {
            wait(cpu, &mut window);
        }
    }
}

/// Whether something waits in this CPU's queue or is on its way there. Interrupts are off.
fn has_work(cpu: &PerCpu) -> bool {
    !cpu.scheduler.mailbox.is_empty() || !cpu.scheduler.queue.lock_while_off().is_empty()
}

/// Polls as long as that has paid lately, then halts. Interrupts are off, and on afterwards.
///
/// Where it is the only CPU, or has to repeat itself exactly, it only halts: what comes then is an
/// interrupt, which ends a halt as soon as a poll.
fn wait(cpu: &PerCpu, window: &mut PollWindow) {
    if time::is_exact() || percpu::online_count() < 2 {
        return halt();
    }
    let began = time::now_ns();
    if window.ns() > 0 {
        let how = poll(cpu, began + window.ns());
        window.polled(how);
        if due(cpu) {
            return interrupts::enable();
        }
    }
    halt();
    window.woken_from_halt(time::now_ns().saturating_sub(began));
}

/// `sti` takes effect after the next instruction: a wake-up in between ends the halt.
fn halt() {
    exits::halt();
    interrupts::enable_and_hlt();
}

/// Whether there is something to do: mail, or what an interrupt has made runnable.
fn due(cpu: &PerCpu) -> bool {
    !cpu.scheduler.mailbox.is_empty() || cpu.reschedule.load(Ordering::Relaxed)
}

/// Looks for something to do, interrupts on, until `until_ns`. Interrupts are off, before and after; the
/// caller looks once more afterwards.
fn poll(cpu: &PerCpu, until_ns: u64) -> Polled {
    cpu.scheduler.polling.begin();
    interrupts::enable();
    let mut last = time::now_ns();
    let how = loop {
        if (0..LOOKS_PER_PAUSE).any(|_| due(cpu)) {
            break Polled::Found;
        }
        core::hint::spin_loop();
        let now = time::now_ns();
        if now.saturating_sub(last) > GAP_NS {
            break Polled::TakenAway;
        }
        if now >= until_ns {
            break Polled::InVain;
        }
        last = now;
    };
    interrupts::disable();
    cpu.scheduler.polling.end();
    how
}

/// Whether a CPU is idle and stays so: nothing is on its way there. Otherwise whoever wakes several tasks
/// would send all of them to the first idle CPU, while others halt.
pub(super) fn is_free(index: usize) -> bool {
    let free = |cpu: &PerCpu| cpu.idle.load(Ordering::Relaxed) && !due(cpu);
    percpu::cpu(index).is_some_and(free)
}

/// A free CPU that could take a task from the calling one's queue.
pub(super) fn helper(index: usize, queue: &RunQueue<Arc<Task>>) -> Option<usize> {
    let others = (0..percpu::online_count()).filter(|&other| other != index);
    others.filter(|&other| is_free(other)).find(|&other| queue.any(|task| task.may_run_on(other)))
}

/// Has an idle CPU look for work again. Interrupts are off.
pub(super) fn offer(target: usize) {
    if let Some(cpu) = percpu::cpu(target) {
        cpu.reschedule.store(true, Ordering::Relaxed);
        tell(target);
    }
}

#[derive(PartialEq)]
enum Found {
    Work,
    /// Somebody has that queue now, or the task has not left its CPU yet: to be tried again.
    Perhaps,
    Nothing,
}

/// Takes a waiting task from another CPU into this one's queue. The next CPU first, so that several
/// thieves do not meet.
fn steal(index: usize) -> Found {
    let online = percpu::online_count();
    let mut found = Found::Nothing;
    for victim in (1..online).map(|distance| (index + distance) % online) {
        let Some(victim) = percpu::cpu(victim) else { continue };
        let Some(mut queue) = victim.scheduler.queue.try_lock() else {
            found = Found::Perhaps;
            continue;
        };
        let mut leaving = false;
        let stolen = queue.steal(|task| {
            let allowed = task.may_run_on(index);
            let left = !task.on_cpu.load(Ordering::Acquire);
            leaving |= allowed && !left;
            allowed && left
        });
        if let Some((vruntime, task)) = stolen {
            task.lag.store(queue.lag(vruntime), Ordering::Relaxed);
            drop(queue);
            let cpu = this_cpu();
            enqueue(cpu, &mut cpu.scheduler.queue.lock_while_off(), task);
            return Found::Work;
        }
        if leaving {
            found = Found::Perhaps;
        }
    }
    found
}
