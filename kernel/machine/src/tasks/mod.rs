//! Tasks: threads of applications and of the kernel, and who runs where.
//!
//! [`task`] is one task and its life, [`scheduler`] the run queues and waking, [`sleep`] parking, [`idle`]
//! what a CPU does without a task, [`mailbox`] the lock-free way to another CPU's queue, [`vectors`] the
//! state beyond the general registers.
//!
//! The kernel is not preemptible: a task leaves its CPU only where it parks or yields, or on its way
//! back to application code.
mod idle;
mod mailbox;
mod scheduler;
mod sleep;
mod task;
mod vectors;

pub use idle::{become_idle, idle_loop};
pub use scheduler::{
    Local, drain_mailbox, exit, preempt, preemption_point, reconsider, start_reaper, take_interrupt_for_exit,
    timer_fired, yield_now,
};
pub use sleep::park;
pub use task::{INTERRUPTED_OFFSET, Task, current, spawn, with_caller, with_current};
