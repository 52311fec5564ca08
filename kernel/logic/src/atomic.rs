//! The seam at which lock-free protocols meet their atomics: the kernel's are those of `core`, a
//! model checker's know every order in which they can be seen (`tests/models.rs`).
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

/// An atomic variable with values `V`.
pub trait AtomicCell<V: Copy> {
    fn load(&self, order: Ordering) -> V;
    fn store(&self, value: V, order: Ordering);
    fn swap(&self, value: V, order: Ordering) -> V;
    /// `Err` has the value that was there instead. Never fails for nothing.
    fn compare_exchange(&self, from: V, to: V, success: Ordering, failure: Ordering) -> Result<V, V>;
}

macro_rules! atomic_cell {
    ($atomic:ty, $value:ty $(, $parameter:ident)?) => {
        impl$(<$parameter>)? AtomicCell<$value> for $atomic {
            #[inline]
            fn load(&self, order: Ordering) -> $value {
                self.load(order)
            }

            #[inline]
            fn store(&self, value: $value, order: Ordering) {
                self.store(value, order);
            }

            #[inline]
            fn swap(&self, value: $value, order: Ordering) -> $value {
                self.swap(value, order)
            }

            #[inline]
            fn compare_exchange(
                &self,
                from: $value,
                to: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(from, to, success, failure)
            }
        }
    };
}

atomic_cell!(AtomicU8, u8);
atomic_cell!(AtomicPtr<T>, *mut T, T);
