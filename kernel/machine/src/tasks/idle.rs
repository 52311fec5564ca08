//! What a CPU does when nothing is runnable: takes work from others, zeroes frames ahead, halts.
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use x86_64::instructions::interrupts;

use super::{
    Task,
    scheduler::{MAILBOXES, QUEUES, enqueue, switch_away},
};
use crate::{
    cpu::percpu::{self, this_cpu},
    memory::{frames, heap, tlb},
    time,
};

/// Makes the calling context the CPU's idle task, on the stack with these bounds.
pub fn become_idle(stack_low: u64, stack_top: u64) {
    let cpu = this_cpu();
    let idle = Arc::into_raw(Task::idle(stack_low, stack_top));
    cpu.idle_task.set(idle);
    cpu.current.set(idle);
    cpu.running_since.set(time::counter());
}

pub fn idle_loop() -> ! {
    let cpu = this_cpu();
    let index = cpu.index.get() as usize;
    loop {
        heap::empty_if_unwanted();
        interrupts::disable();
        cpu.idle.store(true, Ordering::SeqCst);
        let work = !MAILBOXES[index].is_empty() || !QUEUES[index].lock_while_off().is_empty() || steal(index);
        if work {
            tlb::leave_idle();
            switch_away(true);
            interrupts::enable();
        } else if !time::is_exact() && frames::zero_ahead() {
            // Memory for the next faults, a page at a time. Interrupts need an instruction between `sti`
            // and the next `cli` to arrive at.
            interrupts::enable();
            core::hint::spin_loop();
        } else {
            // `sti` takes effect after the next instruction: a wake-up in between ends the halt.
            interrupts::enable_and_hlt();
        }
    }
}

/// Takes a waiting task from another CPU into this one's queue.
fn steal(index: usize) -> bool {
    let online = percpu::online_count();
    for victim in (0..online).filter(|&victim| victim != index) {
        let Some(mut queue) = QUEUES[victim].try_lock() else { continue };
        let stolen = queue.steal(|task| !task.on_cpu.load(Ordering::Acquire) && task.may_run_on(index));
        let Some((vruntime, task)) = stolen else { continue };
        task.lag.store(queue.lag(vruntime), Ordering::Relaxed);
        drop(queue);
        enqueue(&mut QUEUES[index].lock_while_off(), task);
        return true;
    }
    false
}
