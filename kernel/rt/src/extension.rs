#![allow(unsafe_code, reason = "a downcast without the dynamic call that `Any` needs for it")]
//! What a higher layer hangs on an object of this crate.
use alloc::sync::Arc;
use core::{
    any::{Any, TypeId},
    ptr::NonNull,
};

/// Data that a higher layer hangs on an object of this one, and gets back by its type.
///
/// It knows its type itself, and where the value is: each system call asks for the caller's thread, and
/// `dyn Any` answers by a dynamic call, after looking up in the vtable where the value lies.
#[derive(Clone)]
pub struct Extension {
    type_id: TypeId,
    value: NonNull<()>,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: `value` points into what `_owner` holds, which may be sent and shared, and only `&T` is made of it.
unsafe impl Send for Extension {}
// SAFETY: as above.
unsafe impl Sync for Extension {}

impl Extension {
    pub fn new<T: Any + Send + Sync>(value: Arc<T>) -> Self {
        Self { type_id: TypeId::of::<T>(), value: NonNull::from(&*value).cast(), _owner: value }
    }

    /// The value, if it is a `T`.
    #[inline]
    pub fn get<T: Any>(&self) -> Option<&T> {
        // SAFETY: `new` made `value` of a `T` that `_owner` keeps, since the types are the same.
        (self.type_id == TypeId::of::<T>()).then(|| unsafe { self.value.cast::<T>().as_ref() })
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn the_type_decides() {
        let number = Arc::new(5u64);
        let extension = Extension::new(number.clone());
        assert_eq!(extension.clone().get::<u64>(), Some(&5));
        assert_eq!(extension.get::<i64>(), None);
        drop(extension);
        assert_eq!(Arc::strong_count(&number), 1);
    }
}
