//! Locks that sleep: they may be held over sleep and I/O, and are not for interrupts.
use core::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{sync::WaitQueue, task::ParkMode};

/// A lock that sleeps, and may be held over sleep and I/O. Not for interrupts.
///
/// The sleeping part is `held` and `queue`; the cell inside is a spin lock that is then always free.
pub struct Mutex<T> {
    held: AtomicBool,
    queue: WaitQueue,
    cell: spin::Mutex<T>,
}

pub struct MutexGuard<'a, T> {
    // Declaration order is drop order: the cell is free before the next owner is let in.
    cell: spin::MutexGuard<'a, T>,
    _owner: Owner<'a>,
}

struct Owner<'a> {
    held: &'a AtomicBool,
    queue: &'a WaitQueue,
}

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        self.held.store(false, Ordering::Release);
        self.queue.wake_one();
    }
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), queue: WaitQueue::new(), cell: spin::Mutex::new(value) }
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        if !self.take() {
            let taken = self.queue.wait_until(None, ParkMode::Uninterruptible, || self.take().then_some(()));
            debug_assert!(taken.is_ok());
        }
        MutexGuard { cell: self.cell.lock(), _owner: Owner { held: &self.held, queue: &self.queue } }
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.take()
            .then(|| MutexGuard { cell: self.cell.lock(), _owner: Owner { held: &self.held, queue: &self.queue } })
    }

    fn take(&self) -> bool {
        self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.cell
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.cell
    }
}
