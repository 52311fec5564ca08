#![allow(unsafe_code, reason = "functions that the machine defines")]
//! What each lock and each sleep asks of the machine, bound when the kernel is linked: a dynamic call for
//! each costs more than the lock. `machine` defines them, and [`crate::host`] for host tests.
use crate::task::{ParkMode, Parked, TaskRef};

unsafe extern "Rust" {
    /// Interrupts off on this CPU and one more spin lock held. True: they were on.
    pub safe fn rt_irq_lock_enter() -> bool;
    /// Undoes [`rt_irq_lock_enter`], whose result it gets.
    pub safe fn rt_irq_lock_leave(were_on: bool);
    /// Counts held spin locks on this CPU, so that sleeping under one is caught.
    pub safe fn rt_lock_depth_add(by: i32);
    /// See [`crate::Runtime::current`].
    pub safe fn rt_current() -> TaskRef;
    /// See [`crate::Runtime::park`].
    pub safe fn rt_park(deadline_ns: Option<u64>, mode: ParkMode) -> Parked;
}

#[cfg(feature = "std")]
mod of_host_tests {
    use crate::{
        host::tasks,
        task::{ParkMode, Parked, TaskRef},
    };

    #[unsafe(no_mangle)]
    fn rt_irq_lock_enter() -> bool {
        tasks::lock_depth_add(1);
        true
    }

    #[unsafe(no_mangle)]
    fn rt_irq_lock_leave(_were_on: bool) {
        tasks::lock_depth_add(-1);
    }

    #[unsafe(no_mangle)]
    fn rt_lock_depth_add(by: i32) {
        tasks::lock_depth_add(by);
    }

    #[unsafe(no_mangle)]
    fn rt_current() -> TaskRef {
        crate::rt().current()
    }

    #[unsafe(no_mangle)]
    fn rt_park(deadline_ns: Option<u64>, mode: ParkMode) -> Parked {
        crate::rt().park(deadline_ns, mode)
    }
}
