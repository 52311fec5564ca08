//! Locks and wait queues over the [`crate::Runtime`] seam. Those that sleep are in [`crate::sleep_lock`].
use alloc::{collections::VecDeque, sync::Arc};
use core::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};

pub use crate::sleep_lock::{Mutex, MutexGuard, ReadGuard, RwLock, WriteGuard};
use crate::{
    link,
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
        link::rt_lock_depth_add(1);
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
        link::rt_lock_depth_add(-1);
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
        link::rt_irq_lock_leave(self.0);
    }
}

impl<T> IrqLock<T> {
    pub const fn new(value: T) -> Self {
        Self { inner: spin::Mutex::new(value) }
    }

    pub fn lock(&self) -> IrqGuard<'_, T> {
        let enabled = link::rt_irq_lock_enter();
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
    waiters: IrqLock<Waiters>,
    /// Number of waiters; changes under their lock.
    count: AtomicUsize,
    /// Waiters with lower tickets have been woken, or have left. Changes under the lock.
    unwoken: AtomicU64,
    /// Calls of [`WaitQueue::wake_all`].
    wakes: AtomicU64,
}

/// In order of arrival, which is that of their tickets.
struct Waiters {
    tasks: VecDeque<(u64, TaskRef)>,
    next_ticket: u64,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    pub const fn new() -> Self {
        Self {
            waiters: IrqLock::new(Waiters { tasks: VecDeque::new(), next_ticket: 0 }),
            count: AtomicUsize::new(0),
            unwoken: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
        }
    }

    /// How often [`WaitQueue::wake_all`] was called: edge-triggered watchers see by it that something
    /// has happened although the condition was true before, too.
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::SeqCst)
    }

    /// Sleeps until `ready` gives a value. `ready` runs without the queue's lock, before each sleep
    /// and after each wake-up, so a wake-up between check and sleep is not lost.
    #[inline]
    pub fn wait_until<T>(
        &self,
        deadline_ns: Option<u64>,
        mode: ParkMode,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T, Parked> {
        if let Some(value) = ready() {
            return Ok(value);
        }
        loop {
            let ticket = self.add(link::rt_current());
            if let Some(value) = ready() {
                self.leave(ticket);
                return Ok(value);
            }
            let parked = link::rt_park(deadline_ns, mode);
            self.leave(ticket);
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
        self.add(task.clone());
    }

    fn add(&self, task: TaskRef) -> u64 {
        let mut waiters = self.waiters.lock();
        let ticket = waiters.next_ticket;
        waiters.next_ticket += 1;
        waiters.tasks.push_back((ticket, task));
        self.count.store(waiters.tasks.len(), Ordering::Relaxed);
        drop(waiters);
        fence(Ordering::SeqCst);
        ticket
    }

    /// Takes the task's first entry out, if it is still there. By that task itself: nobody else adds
    /// it, so a count of 0 that it sees is none of before its own [`WaitQueue::enlist`].
    pub fn delist(&self, task: &TaskRef) {
        if self.count.load(Ordering::Relaxed) != 0 {
            let mut waiters = self.waiters.lock();
            if let Some(at) = waiters.tasks.iter().position(|(_, waiter)| Arc::ptr_eq(waiter, task)) {
                self.remove(&mut waiters, at);
            }
        }
    }

    /// Takes the entry out, unless a waker has. By the task that added it.
    #[inline]
    fn leave(&self, ticket: u64) {
        // Acquire: who was woken sees what it was woken for, without the lock.
        if self.unwoken.load(Ordering::Acquire) <= ticket {
            self.take_out(ticket);
        }
    }

    #[inline(never)]
    fn take_out(&self, ticket: u64) {
        let mut waiters = self.waiters.lock();
        if let Ok(at) = waiters.tasks.binary_search_by_key(&ticket, |&(ticket, _)| ticket) {
            self.remove(&mut waiters, at);
        }
    }

    fn remove(&self, waiters: &mut Waiters, at: usize) {
        waiters.tasks.remove(at);
        self.count.store(waiters.tasks.len(), Ordering::Relaxed);
    }

    #[inline]
    pub fn wake_one(&self) {
        if !self.has_waiters() {
            return;
        }
        let mut waiters = self.waiters.lock();
        let Some((ticket, task)) = waiters.tasks.pop_front() else { return };
        self.count.store(waiters.tasks.len(), Ordering::Relaxed);
        self.unwoken.store(ticket + 1, Ordering::Release);
        drop(waiters);
        task.unpark();
    }

    /// How many are enlisted now: for tests, which thus know that somebody is about to sleep.
    #[cfg(test)]
    pub(crate) fn waiters(&self) -> usize {
        self.count.load(Ordering::SeqCst)
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
        let mut left = self.waiters.lock().tasks.len();
        while left > 0 {
            self.wake_one();
            left -= 1;
        }
    }
}
