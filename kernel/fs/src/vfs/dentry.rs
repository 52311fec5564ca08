//! Dentries: names in the tree, and the cache of lookups.
//!
//! A directory's dentry keeps the lookups made below it, found (`Present`) and not found (`Absent`).
//! A cached child keeps its parent alive and the other way round; pruning breaks the circle.
//!
//! # Locking
//! `place`, `children` and `mounted` are spin locks and leaves; dentries are dropped outside them,
//! since a file system's inode may go with one.
use alloc::{boxed::Box, collections::BTreeMap, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rt::sync::{Mutex, MutexGuard, SpinLock};

use super::mount::Mount;
use crate::{
    error::{FsError, FsResult},
    inode::Inode,
};

/// Cached children of all dentries at which unused ones are dropped.
const CACHED_MAX: usize = 16 * 1024;

static CACHED: AtomicUsize = AtomicUsize::new(0);
static PRUNE_AT: AtomicUsize = AtomicUsize::new(CACHED_MAX);

pub struct Dentry {
    inode: Arc<dyn Inode>,
    place: SpinLock<Place>,
    children: SpinLock<Children>,
    /// Held over a change of the directory and the cached children together: see [`Dentry::change`].
    changing: Mutex<()>,
    /// A file system is mounted here.
    mounted: SpinLock<Option<Arc<Mount>>>,
    has_mount: AtomicBool,
    /// The name is gone; the object lives on.
    unlinked: AtomicBool,
}

/// Changes by rename. A file system's root has no parent.
struct Place {
    parent: Option<Arc<Dentry>>,
    name: Arc<[u8]>,
}

#[derive(Default)]
struct Children {
    map: BTreeMap<Box<[u8]>, Child>,
    /// Counts changes to the directory, so that a lookup that ran beside one is not cached.
    generation: u64,
}

enum Child {
    Present(Arc<Dentry>),
    Absent,
}

impl Dentry {
    pub fn new(inode: Arc<dyn Inode>, parent: Option<Arc<Dentry>>, name: &[u8]) -> Arc<Self> {
        Arc::new(Self {
            inode,
            place: SpinLock::new(Place { parent, name: name.into() }),
            children: SpinLock::new(Children::default()),
            changing: Mutex::new(()),
            mounted: SpinLock::new(None),
            has_mount: AtomicBool::new(false),
            unlinked: AtomicBool::new(false),
        })
    }

    /// An object without a name in any directory (memfd, magic links to pipes).
    pub fn unnamed(inode: Arc<dyn Inode>, shown_as: &[u8]) -> Arc<Self> {
        let dentry = Self::new(inode, None, shown_as);
        dentry.unlinked.store(true, Ordering::Relaxed);
        dentry
    }

    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }

    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.place.lock().parent.clone()
    }

    pub fn parent_and_name(&self) -> (Option<Arc<Dentry>>, Arc<[u8]>) {
        let place = self.place.lock();
        (place.parent.clone(), place.name.clone())
    }

    pub fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Relaxed)
    }

    /// The child of that name, from the cache or the file system.
    pub fn child(self: &Arc<Self>, name: &[u8]) -> FsResult<Arc<Dentry>> {
        loop {
            let generation = {
                let children = self.children.lock();
                match children.map.get(name) {
                    Some(Child::Present(child)) => return Ok(child.clone()),
                    Some(Child::Absent) => return Err(FsError::NotFound),
                    None => children.generation,
                }
            };
            let found = self.inode.lookup(name);
            let (answer, entry) = match found {
                Ok(inode) => {
                    let child = Self::new(inode, Some(self.clone()), name);
                    (Ok(child.clone()), Child::Present(child))
                }
                Err(FsError::NotFound) => (Err(FsError::NotFound), Child::Absent),
                Err(error) => return Err(error),
            };
            if !self.inode.lookups_cacheable() {
                return answer;
            }
            let mut children = self.children.lock();
            if children.generation != generation {
                continue; // the directory changed meanwhile
            }
            if let Some(Child::Present(other)) = children.map.get(name) {
                // Another task was faster; one dentry per name. Ours is dropped after the lock.
                let other = other.clone();
                drop(children);
                return Ok(other);
            }
            if children.map.insert(name.into(), entry).is_none() {
                CACHED.fetch_add(1, Ordering::Relaxed);
            }
            return answer;
        }
    }

    /// Keeps other changes of this directory out, from the file system's change to the cached children's:
    /// else a removal could mark a name absent that a creation has just made.
    pub fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// As [`Dentry::change`] for two directories, which may be one. Callers hold the file system's rename
    /// lock, so the order of the two does not matter.
    pub fn change_both<'a>(&'a self, other: &'a Self) -> (MutexGuard<'a, ()>, Option<MutexGuard<'a, ()>>) {
        let first = self.change();
        let second = if core::ptr::eq(self, other) { None } else { Some(other.change()) };
        (first, second)
    }

    /// Enters a child that the file system has just created.
    pub fn add_child(self: &Arc<Self>, name: &[u8], inode: Arc<dyn Inode>) -> Arc<Dentry> {
        let child = Self::new(inode, Some(self.clone()), name);
        if self.inode.lookups_cacheable() {
            self.set_child(name, Some(child.clone()));
        }
        child
    }

    /// The name now belongs to nobody; its dentry, if cached, is marked so.
    pub fn forget_child(&self, name: &[u8]) {
        if let Some(old) = self.set_child(name, None) {
            old.unlinked.store(true, Ordering::Relaxed);
        }
    }

    /// Drops what the cache knows about a name, after a change whose outcome it cannot tell.
    pub fn invalidate_child(&self, name: &[u8]) {
        let old = {
            let mut children = self.children.lock();
            children.generation += 1;
            children.map.remove(name)
        };
        if old.is_some() {
            CACHED.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// After the file system renamed `name` here to `to_name` in `to`: moves the dentry with
    /// everything cached below it.
    pub fn moved(&self, name: &[u8], to: &Arc<Dentry>, to_name: &[u8]) {
        let Some(child) = self.set_child(name, None) else {
            to.invalidate_child(to_name);
            return;
        };
        let old_parent = {
            let mut place = child.place.lock();
            place.name = to_name.into();
            place.parent.replace(to.clone())
        };
        drop(old_parent);
        if let Some(replaced) = to.set_child(to_name, Some(child)) {
            replaced.unlinked.store(true, Ordering::Relaxed);
        }
    }

    /// After RENAME_EXCHANGE of the two names.
    pub fn exchanged(self: &Arc<Self>, name: &[u8], other: &Arc<Dentry>, other_name: &[u8]) {
        let first = self.set_child(name, None);
        let second = other.set_child(other_name, None);
        self.invalidate_child(name);
        other.invalidate_child(other_name);
        for (child, parent, name) in [(first, other, other_name), (second, self, name)] {
            let Some(child) = child else { continue };
            let old_parent = {
                let mut place = child.place.lock();
                place.name = name.into();
                place.parent.replace(parent.clone())
            };
            drop(old_parent);
            parent.set_child(name, Some(child));
        }
    }

    fn set_child(&self, name: &[u8], child: Option<Arc<Dentry>>) -> Option<Arc<Dentry>> {
        let entry = child.map_or(Child::Absent, Child::Present);
        let old = {
            let mut children = self.children.lock();
            children.generation += 1;
            children.map.insert(name.into(), entry)
        };
        match old {
            Some(Child::Present(dentry)) => Some(dentry),
            Some(Child::Absent) => None,
            None => {
                CACHED.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Whether `self` is `other` or lies above it.
    pub fn is_same_or_above(self: &Arc<Self>, other: &Arc<Dentry>) -> bool {
        let mut at = other.clone();
        loop {
            if Arc::ptr_eq(self, &at) {
                return true;
            }
            let Some(parent) = at.parent() else { return false };
            at = parent;
        }
    }

    // --- mounts ---

    #[inline]
    pub fn mounted(&self) -> Option<Arc<Mount>> {
        // Most dentries never carry a mount; the flag spares them the lock.
        if !self.has_mount.load(Ordering::Acquire) {
            return None;
        }
        self.mounted.lock().clone()
    }

    /// [`FsError::Busy`] if something is mounted already.
    pub fn set_mounted(&self, mount: Arc<Mount>) -> FsResult<()> {
        let mut mounted = self.mounted.lock();
        if mounted.is_some() {
            return Err(FsError::Busy);
        }
        *mounted = Some(mount);
        self.has_mount.store(true, Ordering::Release);
        Ok(())
    }

    pub fn clear_mounted(&self) -> Option<Arc<Mount>> {
        let mut mounted = self.mounted.lock();
        self.has_mount.store(false, Ordering::Release);
        mounted.take()
    }

    // --- pruning ---

    /// Drops cached lookups below that nobody uses; the result is their number.
    pub fn prune(self: &Arc<Self>) -> usize {
        let mut dropped = 0;
        let mut directories = alloc::vec![self.clone()];
        let mut next = 0;
        // Breadth first to list, then from the leaves up, so that an emptied directory goes too.
        while let Some(directory) = directories.get(next).cloned() {
            next += 1;
            let children = directory.children.lock();
            directories.extend(children.map.values().filter_map(|child| match child {
                Child::Present(dentry) => Some(dentry.clone()),
                Child::Absent => None,
            }));
        }
        while let Some(directory) = directories.pop() {
            dropped += directory.prune_children();
        }
        dropped
    }

    fn prune_children(&self) -> usize {
        // A child that only the map holds has no open files, walks, or cached children. Dropped
        // after the lock.
        let unused: Vec<_> = self.children.lock().map.extract_if(.., |_, child| child.is_unused()).collect();
        CACHED.fetch_sub(unused.len(), Ordering::Relaxed);
        unused.len()
    }
}

impl Drop for Dentry {
    fn drop(&mut self) {
        // A removed directory's "not found"s go with it; found children would have kept it.
        CACHED.fetch_sub(self.children.lock().map.len(), Ordering::Relaxed);
        // A chain of removed directories may end with its last: one by one, however long it is, since a
        // kernel stack is short.
        let mut parent = self.place.lock().parent.take();
        while let Some(dentry) = parent {
            parent = Arc::into_inner(dentry).and_then(|last| last.place.lock().parent.take());
        }
    }
}

impl Child {
    fn is_unused(&self) -> bool {
        match self {
            Self::Present(dentry) => Arc::strong_count(dentry) == 1 && !dentry.has_mount.load(Ordering::Relaxed),
            Self::Absent => true,
        }
    }
}

/// Prunes the tree below `root` when the cache has grown beyond its bound.
pub fn prune_if_full(root: &Arc<Dentry>) {
    if CACHED.load(Ordering::Relaxed) < PRUNE_AT.load(Ordering::Relaxed) {
        return;
    }
    root.prune();
    // What is in use cannot go: do not try again at every lookup.
    PRUNE_AT.store(CACHED_MAX.max(2 * CACHED.load(Ordering::Relaxed)), Ordering::Relaxed);
}
