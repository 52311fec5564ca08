//! Descriptors: the references by which programs hold an open file.
//!
//! Calls in progress and waiters hold an [`OpenFile`] too, by `Arc`; what counts for "closed" is the
//! descriptors alone. With the last of them those are told who watch the file without holding it (epoll:
//! a closed file leaves the set, and a wait that is under way lets it go).
//!
//! # Locking
//! `watchers` is a leaf spin lock; a [`Watcher`] is called without it.
use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicU32, Ordering};

use rt::sync::SpinLock;

use crate::file::OpenFile;

/// One descriptor's reference. To be dropped without locks: closing may do I/O.
pub struct Descriptor(Arc<OpenFile>);

/// Who wants to know when a file's last descriptor is closed.
pub trait Watcher: Send + Sync {
    /// `token` is what [`OpenFile::watch`] was given.
    fn file_closed(&self, file: &OpenFile, token: i32);
}

/// An open file's part.
pub(crate) struct Watchers {
    descriptors: AtomicU32,
    watchers: SpinLock<Vec<(Weak<dyn Watcher>, i32)>>,
}

impl Watchers {
    pub const fn new() -> Self {
        Self { descriptors: AtomicU32::new(0), watchers: SpinLock::new(Vec::new()) }
    }
}

impl Descriptor {
    pub fn new(file: Arc<OpenFile>) -> Self {
        file.watchers.descriptors.fetch_add(1, Ordering::Relaxed);
        Self(file)
    }

    #[inline]
    pub fn file(&self) -> &Arc<OpenFile> {
        &self.0
    }
}

impl Clone for Descriptor {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if self.0.watchers.descriptors.fetch_sub(1, Ordering::AcqRel) == 1 {
            let watchers = core::mem::take(&mut *self.0.watchers.watchers.lock());
            for (watcher, token) in watchers {
                if let Some(watcher) = watcher.upgrade() {
                    watcher.file_closed(&self.0, token);
                }
            }
        }
    }
}

impl OpenFile {
    /// Has `watcher` told when the last descriptor is closed. Watch first, then look whether it
    /// [`OpenFile::is_closed`] already.
    pub fn watch(&self, watcher: Weak<dyn Watcher>, token: i32) {
        let mut watchers = self.watchers.watchers.lock();
        // Those that are gone did not say so.
        watchers.retain(|(other, _)| other.strong_count() > 0);
        watchers.push((watcher, token));
    }

    pub fn unwatch(&self, watcher: &Weak<dyn Watcher>, token: i32) {
        self.watchers.watchers.lock().retain(|(other, own)| *own != token || !other.ptr_eq(watcher));
    }

    /// No descriptor refers to the file any more.
    pub fn is_closed(&self) -> bool {
        self.watchers.descriptors.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{file::OpenFlags, pipe::Pipe};

    struct Told(AtomicU32);

    impl Watcher for Told {
        fn file_closed(&self, file: &OpenFile, token: i32) {
            assert!(file.is_closed());
            self.0.fetch_add(token as u32, Ordering::Relaxed);
        }
    }

    #[test]
    fn watchers_are_told_by_the_last_descriptor_once() {
        rt::host::install();
        let (file, _writer) = Pipe::pair(OpenFlags::empty()).unwrap();
        let told = Arc::new(Told(AtomicU32::new(0)));
        let watcher: Weak<dyn Watcher> = Arc::downgrade(&(told.clone() as Arc<dyn Watcher>));
        let one = Descriptor::new(file.clone());
        let two = one.clone();
        file.watch(watcher.clone(), 5);
        file.watch(watcher.clone(), 100);
        file.unwatch(&watcher, 100);
        drop(one);
        assert_eq!(told.0.load(Ordering::Relaxed), 0);
        drop(two);
        assert_eq!(told.0.load(Ordering::Relaxed), 5);
        drop(Descriptor::new(file.clone()));
        assert_eq!(told.0.load(Ordering::Relaxed), 5);
        file.watch(watcher.clone(), 1);
        drop(told);
        file.watch(watcher, 2);
        assert_eq!(file.watchers.watchers.lock().len(), 1, "who is gone is forgotten");
    }
}
