//! Locks and wait queues over the [`crate::Runtime`] seam. Those that sleep are in [`crate::sleep_lock`].
use alloc::collections::VecDeque;
use core::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};

pub use crate::sleep_lock::{Mutex, MutexGuard};
use crate::{
    rt,
    task::{ParkMode, Parked, TaskRef},
};

/// A spin lock for task context. Never sleep, copy user memory or do I/O while holding it; interrupt
/// handlers must not take it (see [`IrqLock`]).
pub struct SpinLock<T> {
    inner: spin::Mutex<T>,
}

pub struct SpinGuard<'a, T> {
    inner: spin::MutexGuard<'a, T>,
}

impl<T> SpinLock<T> {
    pub const fn new(value: T) -> Self {
        Self { inner: spin::Mutex::new(value) }
    }

    pub fn lock(&self) -> SpinGuard<'_, T> {
        rt().lock_depth_add(1);
        SpinGuard { inner: self.inner.lock() }
    }
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        rt().lock_depth_add(-1);
    }
}

/// A spin lock that is held with interrupts off, for data that interrupt handlers share.
pub struct IrqLock<T> {
    inner: spin::Mutex<T>,
}

pub struct IrqGuard<'a, T> {
    // Declaration order is drop order: the lock is released before interrupts come back.
    inner: spin::MutexGuard<'a, T>,
    _irq: IrqOff,
}

struct IrqOff(bool);

impl Drop for IrqOff {
    fn drop(&mut self) {
        rt().irq_lock_leave(self.0);
    }
}

impl<T> IrqLock<T> {
    pub const fn new(value: T) -> Self {
        Self { inner: spin::Mutex::new(value) }
    }

    pub fn lock(&self) -> IrqGuard<'_, T> {
        let enabled = rt().irq_lock_enter();
        IrqGuard { inner: self.inner.lock(), _irq: IrqOff(enabled) }
    }
}

impl<T> Deref for IrqGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for IrqGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// Tasks that wait for something. Waking is allowed from interrupts.
///
/// Most wake-ups find nobody, and then cost a fence and a load. None is lost: a waiter counts itself
/// before it looks at the condition, a waker changes the condition before it looks at the count, and
/// a sequentially consistent fence between the two on each side lets at least one see the other.
pub struct WaitQueue {
    waiters: IrqLock<VecDeque<TaskRef>>,
    /// Length of `waiters`; changes under its lock.
    count: AtomicUsize,
    /// Calls of [`WaitQueue::wake_all`].
    wakes: AtomicU64,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    pub const fn new() -> Self {
        Self { waiters: IrqLock::new(VecDeque::new()), count: AtomicUsize::new(0), wakes: AtomicU64::new(0) }
    }

    /// How often [`WaitQueue::wake_all`] was called: edge-triggered watchers see by it that something
    /// has happened although the condition was true before, too.
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::SeqCst)
    }

    /// Sleeps until `ready` gives a value. `ready` runs without the queue's lock, before each sleep
    /// and after each wake-up, so a wake-up between check and sleep is not lost.
    pub fn wait_until<T>(
        &self,
        deadline_ns: Option<u64>,
        mode: ParkMode,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T, Parked> {
        if let Some(value) = ready() {
            return Ok(value);
        }
        let me = rt().current();
        loop {
            self.enlist(&me);
            if let Some(value) = ready() {
                self.delist(&me);
                return Ok(value);
            }
            let parked = rt().park(deadline_ns, mode);
            self.delist(&me);
            if let Some(value) = ready() {
                return Ok(value);
            }
            if parked != Parked::Woken {
                return Err(parked);
            }
        }
    }

    /// Adds a waiter by hand, for waits on several queues at once (poll, epoll). Pair with
    /// [`WaitQueue::delist`].
    pub fn enlist(&self, task: &TaskRef) {
        let mut waiters = self.waiters.lock();
        waiters.push_back(task.clone());
        self.count.store(waiters.len(), Ordering::Relaxed);
        drop(waiters);
        fence(Ordering::SeqCst);
    }

    /// Takes the task's first entry out, if it is still there. By that task itself: nobody else adds
    /// it, so a count of 0 that it sees is none of before its own [`WaitQueue::enlist`].
    pub fn delist(&self, task: &TaskRef) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut waiters = self.waiters.lock();
        if let Some(at) = waiters.iter().position(|w| w.id() == task.id()) {
            waiters.remove(at);
            self.count.store(waiters.len(), Ordering::Relaxed);
        }
    }

    pub fn wake_one(&self) {
        if !self.has_waiters() {
            return;
        }
        let mut waiters = self.waiters.lock();
        let waiter = waiters.pop_front();
        self.count.store(waiters.len(), Ordering::Relaxed);
        drop(waiters);
        if let Some(task) = waiter {
            task.unpark();
        }
    }

    /// Whether a waker has to look closer.
    fn has_waiters(&self) -> bool {
        fence(Ordering::SeqCst);
        self.count.load(Ordering::Relaxed) > 0
    }

    pub fn wake_all(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        if !self.has_waiters() {
            return;
        }
        // Only those here now: a woken task may enlist again at once.
        let mut left = self.waiters.lock().len();
        while left > 0 {
            self.wake_one();
            left -= 1;
        }
    }
}
