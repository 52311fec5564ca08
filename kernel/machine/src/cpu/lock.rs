#![allow(unsafe_code, reason = "switches the interrupt flag")]
//! Spin locks that keep interrupts off, for the machine's own data.
use core::ops::{Deref, DerefMut};

use x86_64::instructions::interrupts;

/// Interrupts are off while this lives, and as before afterwards.
pub struct InterruptsOff {
    were_on: bool,
}

impl InterruptsOff {
    #[inline]
    pub fn enter() -> Self {
        let were_on = interrupts::are_enabled();
        interrupts::disable();
        Self { were_on }
    }
}

impl Drop for InterruptsOff {
    #[inline]
    fn drop(&mut self) {
        if self.were_on {
            interrupts::enable();
        }
    }
}

/// A spin lock held with interrupts off.
pub struct IrqSpin<T> {
    inner: spin::Mutex<T>,
}

pub struct IrqSpinGuard<'a, T> {
    // Dropped in this order: the lock first, then interrupts come back.
    inner: spin::MutexGuard<'a, T>,
    _interrupts: InterruptsOff,
}

impl<T> IrqSpin<T> {
    pub const fn new(value: T) -> Self {
        Self { inner: spin::Mutex::new(value) }
    }

    #[inline]
    pub fn lock(&self) -> IrqSpinGuard<'_, T> {
        let interrupts = InterruptsOff::enter();
        IrqSpinGuard { inner: self.acquire(), _interrupts: interrupts }
    }

    /// For where interrupts are off already, and stay off for as long as the guard lives: the flag is
    /// neither read nor written.
    #[inline]
    pub fn lock_while_off(&self) -> spin::MutexGuard<'_, T> {
        debug_assert!(!interrupts::are_enabled());
        self.acquire()
    }

    #[inline]
    fn acquire(&self) -> spin::MutexGuard<'_, T> {
        match self.inner.try_lock() {
            Some(inner) => inner,
            None => self.acquire_slowly(),
        }
    }

    #[cold]
    fn acquire_slowly(&self) -> spin::MutexGuard<'_, T> {
        loop {
            // The holder may wait for this CPU to flush its TLB.
            crate::memory::tlb::serve();
            core::hint::spin_loop();
            if let Some(inner) = self.inner.try_lock() {
                return inner;
            }
        }
    }

    /// For the panic path: the lock if it is free, nothing else.
    pub fn try_lock(&self) -> Option<IrqSpinGuard<'_, T>> {
        let interrupts = InterruptsOff::enter();
        self.inner.try_lock().map(|inner| IrqSpinGuard { inner, _interrupts: interrupts })
    }
}

impl<T> Deref for IrqSpinGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for IrqSpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}
