//! tmpfs: files in memory, alone ([`TmpFs::new`]) or over a read-only file system ([`TmpFs::over`]).
//!
//! Over another file system it is the bounded copy-up layer that makes an image writable until exit:
//! each name looked up below gets a *shadow* node here, which starts with the lower file's attributes
//! and shows its pages, and keeps whatever is changed. So a file is copied page by page, when written,
//! and renames, links and whiteouts need no special cases. Changed shadows are pinned; the others
//! are forgotten with their last user.
//!
//! A shared mapping of a lower file's page made before the first write to that page keeps showing the
//! lower content, as with Linux' overlayfs.
//!
//! # Locking
//! A node's `attributes` and directory map, and the table of shadows, are leaf spin locks. A file's
//! write lock is described in [`content`].
mod content;
mod directory;
mod node;

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicU64, Ordering};

use rt::{page::PAGE_SIZE, sync::SpinLock};

use crate::{
    error::{FsError, FsResult},
    file::{OpenFile, OpenFlags},
    inode::{FileSystem, FileSystemStatus, Inode, NewNode, anonymous_device},
    vfs::{Location, Mount},
};
use node::Node;

/// statfs(2)'s TMPFS_MAGIC and OVERLAYFS_SUPER_MAGIC.
const MAGIC: u64 = 0x0102_1994;
const OVERLAY_MAGIC: u64 = 0x794c_7630;

/// What a directory entry costs of the limit beside its name, so that empty files are not free.
const ENTRY_BYTES: u64 = 512;

/// A limit that is none.
const NO_LIMIT: u64 = u64::MAX;

/// A file system in memory.
pub struct TmpFs {
    root: Arc<Node>,
    shared: Arc<Shared>,
}

impl TmpFs {
    /// An empty one that holds at most `limit_bytes`.
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        Self::named("tmpfs", limit_bytes)
    }

    /// As [`TmpFs::new`], shown as another type (devtmpfs).
    pub fn named(type_name: &'static str, limit_bytes: u64) -> Arc<Self> {
        let shared = Shared::new(type_name, MAGIC, limit_bytes);
        let root = Node::new(&shared, NewNode::Directory, 0o1777);
        Arc::new(Self { root, shared })
    }

    /// A writable view of `lower`, which must not change. At most `limit_bytes` of changes.
    pub fn over(lower: &dyn FileSystem, limit_bytes: u64) -> FsResult<Arc<Self>> {
        let shared = Shared::new("overlay", OVERLAY_MAGIC, limit_bytes);
        let root = shared.shadow(&lower.root())?;
        Ok(Arc::new(Self { root, shared }))
    }

    /// Bytes of memory that files and entries take now.
    pub fn used_bytes(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }
}

impl FileSystem for TmpFs {
    fn type_name(&self) -> &'static str {
        self.shared.type_name
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }

    fn status(&self) -> FileSystemStatus {
        let page = PAGE_SIZE as u64;
        let named = FileSystemStatus {
            magic: self.shared.magic,
            block_size: PAGE_SIZE as u32,
            name_max: 255,
            ..FileSystemStatus::default()
        };
        if self.shared.limit == NO_LIMIT {
            // As Linux: no numbers rather than invented ones.
            return named;
        }
        let used = self.used_bytes();
        let free = self.shared.limit.saturating_sub(used) / page;
        FileSystemStatus {
            blocks: self.shared.limit / page,
            blocks_free: free,
            files: self.shared.limit / ENTRY_BYTES,
            files_free: self.shared.limit.saturating_sub(used) / ENTRY_BYTES,
            ..named
        }
    }

    fn device(&self) -> u64 {
        self.shared.device
    }
}

/// memfd_create(2): an unnamed file in memory, bounded by nothing but memory.
pub fn memfd(name: &[u8]) -> FsResult<Arc<OpenFile>> {
    type Home = (Arc<TmpFs>, Arc<Mount>);
    static HOME: SpinLock<Option<Home>> = SpinLock::new(None);
    let make = || {
        let file_system = TmpFs::new(NO_LIMIT);
        (file_system.clone(), Mount::detached(file_system))
    };
    let (file_system, mount) = HOME.lock().get_or_insert_with(make).clone();
    let node = Node::new(&file_system.shared, NewNode::File, 0o777);
    node.set_links(0);
    let shown: Vec<u8> = [b"/memfd:", name, b" (deleted)"].concat();
    Location::unnamed(mount, node, &shown).open(OpenFlags::READ_WRITE)
}

/// What all nodes of one file system share.
struct Shared {
    type_name: &'static str,
    magic: u64,
    device: u64,
    /// In bytes, both.
    limit: u64,
    used: AtomicU64,
    /// Numbers of new nodes; those of shadows are the lower file system's, below 2^32.
    next_number: AtomicU64,
    /// Nodes over lower inodes, by their number there.
    shadows: SpinLock<BTreeMap<u64, Shadow>>,
}

/// How a shadow is held.
enum Shadow {
    /// Unchanged: a new one would be as good.
    Loose(Weak<Node>),
    /// Changed: it is what the file is now.
    Pinned(Arc<Node>),
}

impl Shadow {
    fn node(&self) -> Option<Arc<Node>> {
        match self {
            Self::Loose(weak) => weak.upgrade(),
            Self::Pinned(node) => Some(node.clone()),
        }
    }
}

impl Shared {
    fn new(type_name: &'static str, magic: u64, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            type_name,
            magic,
            device: anonymous_device(),
            limit,
            used: AtomicU64::new(0),
            next_number: AtomicU64::new(1 << 32),
            shadows: SpinLock::new(BTreeMap::new()),
        })
    }

    /// Claims bytes of the limit, or [`FsError::NoSpace`].
    fn charge(&self, bytes: u64) -> FsResult<()> {
        let add = |used: u64| used.checked_add(bytes).filter(|&new| new <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(()),
            Err(_) => Err(FsError::NoSpace),
        }
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The node over a lower inode: the same as long as it is used or changed.
    fn shadow(self: &Arc<Self>, lower: &Arc<dyn Inode>) -> FsResult<Arc<Node>> {
        let metadata = lower.metadata()?;
        if let Some(node) = self.shadows.lock().get(&metadata.inode).and_then(Shadow::node) {
            return Ok(node);
        }
        let new = Node::over(self, lower, &metadata)?;
        let mut shadows = self.shadows.lock();
        if let Some(other) = shadows.get(&metadata.inode).and_then(Shadow::node) {
            drop(shadows);
            return Ok(other);
        }
        shadows.insert(metadata.inode, Shadow::Loose(Arc::downgrade(&new)));
        Ok(new)
    }

    /// Keeps a changed shadow.
    fn pin(&self, number: u64, node: Arc<Node>) {
        let old = self.shadows.lock().insert(number, Shadow::Pinned(node));
        drop(old);
    }

    /// A shadow whose last name is gone.
    fn unpin(&self, number: u64) {
        let mut shadows = self.shadows.lock();
        let Some(node) = shadows.get(&number).and_then(Shadow::node) else { return };
        let old = shadows.insert(number, Shadow::Loose(Arc::downgrade(&node)));
        drop(shadows);
        drop((old, node));
    }

    /// A loose shadow has died.
    fn forget(&self, number: u64) {
        let mut shadows = self.shadows.lock();
        let dead = matches!(shadows.get(&number), Some(Shadow::Loose(weak)) if weak.strong_count() == 0);
        let gone = if dead { shadows.remove(&number) } else { None };
        drop(shadows);
        drop(gone);
    }
}

#[cfg(test)]
mod tests;
