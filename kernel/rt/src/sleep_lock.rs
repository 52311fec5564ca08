//! Locks that sleep: they may be held over sleep and I/O, and are not for interrupts.
//!
//! The sleeping part stands beside a spin lock of the data, which is then always free.
use alloc::{collections::VecDeque, sync::Arc};
use core::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{
    rt,
    sync::{SpinLock, WaitQueue},
    task::{ParkMode, TaskRef},
};

/// A lock for one task at a time.
///
/// Whoever runs takes a free lock at once, even before those who wait: handing it over would cost a
/// switch each time. But once a waiter was woken and found it taken again, nobody else may pass it.
pub struct Mutex<T> {
    held: AtomicBool,
    queue: WaitQueue,
    /// Waiters that were woken in vain.
    starving: AtomicUsize,
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
        Self {
            held: AtomicBool::new(false),
            queue: WaitQueue::new(),
            starving: AtomicUsize::new(0),
            cell: spin::Mutex::new(value),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        if !self.take_unless_starving() {
            self.wait();
        }
        self.guard()
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.take_unless_starving().then(|| self.guard())
    }

    /// How many wait: for tests.
    #[cfg(test)]
    pub(crate) fn waiters(&self) -> usize {
        self.queue.waiters()
    }

    /// The lock is taken.
    fn guard(&self) -> MutexGuard<'_, T> {
        MutexGuard { cell: self.cell.lock(), _owner: Owner { held: &self.held, queue: &self.queue } }
    }

    fn take_unless_starving(&self) -> bool {
        self.starving.load(Ordering::Relaxed) == 0 && self.take()
    }

    fn take(&self) -> bool {
        self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline(never)]
    fn wait(&self) {
        // The first two looks come before the first sleep.
        let mut looks = 0;
        let taken = self.queue.wait_until(None, ParkMode::Uninterruptible, || {
            looks += 1;
            if looks <= 2 {
                return self.take_unless_starving().then_some(());
            }
            let taken = self.take();
            if !taken && looks == 3 {
                self.starving.fetch_add(1, Ordering::Relaxed);
            }
            taken.then_some(())
        });
        debug_assert!(taken.is_ok());
        if looks > 3 {
            // Before the lock is free again, so that whoever waits only for this is woken by that.
            self.starving.fetch_sub(1, Ordering::Relaxed);
        }
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

/// A lock for many readers or one writer. Fair: who asks later waits behind who waits already, whichever of
/// the two they are, so neither starves; readers that wait side by side go together. A reader must not
/// ask again while it holds the lock: a writer in between would wait for it, and it for the writer.
pub struct RwLock<T> {
    state: SpinLock<State>,
    cell: spin::RwLock<T>,
}

struct State {
    readers: usize,
    written: bool,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    task: TaskRef,
    writes: bool,
    granted: Arc<AtomicBool>,
}

impl State {
    /// Takes it for another reader or for a writer, if it is free for that.
    fn take(&mut self, writes: bool) -> bool {
        let free = !self.written && (!writes || self.readers == 0);
        if free && writes {
            self.written = true;
        } else if free {
            self.readers += 1;
        }
        free
    }

    /// Gives the lock to the first who waits, and to the readers right behind a reader: to be woken.
    fn grant(&mut self) -> VecDeque<Waiter> {
        let mut granted = VecDeque::new();
        while let Some(first) = self.waiting.pop_front() {
            if !self.take(first.writes) {
                self.waiting.push_front(first);
                break;
            }
            granted.push_back(first);
        }
        granted
    }
}

impl<T> RwLock<T> {
    pub const fn new(value: T) -> Self {
        let state = State { readers: 0, written: false, waiting: VecDeque::new() };
        Self { state: SpinLock::new(state), cell: spin::RwLock::new(value) }
    }

    pub fn read(&self) -> ReadGuard<'_, T> {
        self.acquire(false);
        ReadGuard { cell: self.cell.read(), _held: Held { state: &self.state, writes: false } }
    }

    pub fn write(&self) -> WriteGuard<'_, T> {
        self.acquire(true);
        WriteGuard { cell: self.cell.write(), _held: Held { state: &self.state, writes: true } }
    }

    /// How many wait: for tests.
    #[cfg(test)]
    pub(crate) fn waiters(&self) -> usize {
        self.state.lock().waiting.len()
    }

    fn acquire(&self, writes: bool) {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && state.take(writes) {
            return;
        }
        let granted = Arc::new(AtomicBool::new(false));
        state.waiting.push_back(Waiter { task: rt().current(), writes, granted: granted.clone() });
        drop(state);
        while !granted.load(Ordering::Acquire) {
            rt().park(None, ParkMode::Uninterruptible);
        }
    }
}

/// Gives the lock back, and on to whoever waits.
struct Held<'a> {
    state: &'a SpinLock<State>,
    writes: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if self.writes {
            state.written = false;
        } else {
            state.readers -= 1;
        }
        let granted = state.grant();
        drop(state);
        for waiter in granted {
            waiter.granted.store(true, Ordering::Release);
            waiter.task.unpark();
        }
    }
}

pub struct ReadGuard<'a, T> {
    // Declaration order is drop order: the cell is free before the next owner is let in.
    cell: spin::RwLockReadGuard<'a, T>,
    _held: Held<'a>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.cell
    }
}

pub struct WriteGuard<'a, T> {
    cell: spin::RwLockWriteGuard<'a, T>,
    _held: Held<'a>,
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.cell
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.cell
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn nobody_passes_a_waiter_that_was_woken_in_vain() {
        crate::host::install();
        let lock = Mutex::new(());
        drop(lock.try_lock().unwrap());
        lock.starving.store(1, Ordering::Relaxed);
        assert!(lock.try_lock().is_none());
        // The waiter itself takes it, and says so before it gives it back.
        assert!(lock.take());
        lock.starving.store(0, Ordering::Relaxed);
        drop(lock.guard());
        assert!(lock.try_lock().is_some());
    }
}
