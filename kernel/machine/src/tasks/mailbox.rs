#![allow(unsafe_code, reason = "an intrusive list of counted pointers")]
//! Mailboxes: tasks on their way to another CPU's run queue, or to the reaper, without a lock.
//!
//! A stack ([`logic::mail_stack`]) linked through [`Task::next_mail`]: any CPU pushes, one takes all. A task is in at most one
//! mailbox, since only the one who made it runnable (or its own end) puts it there.
use alloc::sync::Arc;
use core::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use logic::mail_stack::MailStack;

use super::task::Task;

pub struct Mailbox {
    stack: MailStack<*mut Task, AtomicPtr<Task>>,
}

impl Mailbox {
    pub const fn new() -> Self {
        Self { stack: MailStack::new(AtomicPtr::new(ptr::null_mut())) }
    }

    /// True if the mailbox was empty: the receiver has to be told.
    pub fn push(&self, task: Arc<Task>) -> bool {
        let task = Arc::into_raw(task).cast_mut();
        // SAFETY: the pushed reference keeps the task alive, and nobody else links it.
        let link = |task: *mut Task, next| unsafe { (*task).next_mail.store(next, Ordering::Relaxed) };
        self.stack.push(task, link).is_null()
    }

    pub fn is_empty(&self) -> bool {
        self.stack.top().is_null()
    }

    /// Takes everything and hands it on, oldest first.
    pub fn take_all(&self, mut each: impl FnMut(Arc<Task>)) {
        let mut newest = self.stack.take_all(ptr::null_mut());
        let mut oldest: *mut Task = ptr::null_mut();
        while !newest.is_null() {
            // SAFETY: the chain is ours since the swap; each link was set before its push.
            unsafe {
                let next = (*newest).next_mail.load(Ordering::Relaxed);
                (*newest).next_mail.store(oldest, Ordering::Relaxed);
                oldest = newest;
                newest = next;
            }
        }
        while !oldest.is_null() {
            // SAFETY: `push` turned an Arc into each of these pointers; this turns it back, once.
            let task = unsafe { Arc::from_raw(oldest.cast_const()) };
            oldest = task.next_mail.load(Ordering::Relaxed);
            each(task);
        }
    }
}
