//! The frame for procfs and sysfs: trees of files whose content is made when it is read.
//!
//! This crate knows no content. Whoever does (libc-shim) builds a [`PseudoFs`] from [`Entry`] values: a
//! file is a [`Content`], which closures implement through [`text`] and [`bytes`]; a directory with
//! fixed names is a [`Tree`]; one whose names come and go is anything that implements [`Entries`]; a
//! link's target may be text or an object itself ([`LinkTarget::Object`], as for `/proc/self/fd/N`).
//!
//! ```text
//! let proc = PseudoFs::new("proc", PROC_MAGIC);
//! proc.add("meminfo", text(|out| { write!(out, "MemTotal: …")?; Ok(()) }));
//! proc.add("sys/kernel/osrelease", fixed("6.12.0\n"));
//! proc.add("self", link(|| Ok(LinkTarget::Path(b"42".to_vec()))));
//! proc.set_dynamic(Arc::new(Programs)); // [pid] beside the fixed names
//! vfs.mount(&at, proc, MountSpec::new("proc"))?;
//! ```
//!
//! Nothing is cached: each lookup asks the tree. Each open file keeps the content as it was when it was
//! last read from the start, so that reads in pieces fit together.
//!
//! # Locking
//! A tree's spin lock is a leaf; content is made and names are asked for outside it.
mod node;

use alloc::{boxed::Box, collections::BTreeMap, string::String, sync::Arc, vec::Vec};

use rt::sync::SpinLock;

pub use node::PseudoFs;

use crate::{
    error::{FsError, FsResult},
    inode::{FileKind, LinkTarget},
};

/// statfs(2)'s PROC_SUPER_MAGIC and SYSFS_MAGIC.
pub const PROC_MAGIC: u64 = 0x9fa0;
pub const SYSFS_MAGIC: u64 = 0x6265_6572;

/// What a generated file shows and takes.
pub trait Content: Send + Sync {
    /// Appends the content as it is now.
    fn generate(&self, out: &mut Vec<u8>) -> FsResult<()>;
    /// A write, whole, whatever the file's position.
    fn write(&self, _data: &[u8]) -> FsResult<()> {
        Err(FsError::Permission)
    }
}

/// A directory's names.
pub trait Entries: Send + Sync {
    fn find(&self, name: &[u8]) -> FsResult<Entry>;
    /// All names with their kinds, in a stable order; called outside all locks.
    fn list(&self, each: &mut dyn FnMut(&[u8], FileKind)) -> FsResult<()>;
}

/// Where a generated link leads.
pub trait Target: Send + Sync {
    fn target(&self) -> FsResult<LinkTarget>;
}

/// Something in a pseudo file system.
#[derive(Clone)]
pub enum Entry {
    File { content: Arc<dyn Content>, permissions: u16 },
    Directory { entries: Arc<dyn Entries>, permissions: u16 },
    Link(Arc<dyn Target>),
}

impl Entry {
    pub fn kind(&self) -> FileKind {
        match self {
            Self::File { .. } => FileKind::Regular,
            Self::Directory { .. } => FileKind::Directory,
            Self::Link(_) => FileKind::Symlink,
        }
    }

    /// The same with other permissions; a link has none.
    pub fn with_permissions(self, permissions: u16) -> Self {
        match self {
            Self::File { content, .. } => Self::File { content, permissions },
            Self::Directory { entries, .. } => Self::Directory { entries, permissions },
            Self::Link(target) => Self::Link(target),
        }
    }
}

// --- entries from closures ---

struct Made<F>(F);

impl<F: Fn(&mut Vec<u8>) -> FsResult<()> + Send + Sync> Content for Made<F> {
    fn generate(&self, out: &mut Vec<u8>) -> FsResult<()> {
        self.0(out)
    }
}

impl<F: Fn() -> FsResult<LinkTarget> + Send + Sync> Target for Made<F> {
    fn target(&self) -> FsResult<LinkTarget> {
        self.0()
    }
}

/// A file of bytes, mode 0444.
pub fn bytes(make: impl Fn(&mut Vec<u8>) -> FsResult<()> + Send + Sync + 'static) -> Entry {
    file(Arc::new(Made(make)), 0o444)
}

/// A file of text, mode 0444.
pub fn text(make: impl Fn(&mut String) -> FsResult<()> + Send + Sync + 'static) -> Entry {
    bytes(move |out| {
        let mut text = String::from_utf8(core::mem::take(out)).map_err(|_| FsError::Invalid)?;
        make(&mut text)?;
        *out = text.into_bytes();
        Ok(())
    })
}

/// A file that never changes, mode 0444.
pub fn fixed(content: impl AsRef<[u8]> + Send + Sync + 'static) -> Entry {
    bytes(move |out| {
        out.extend_from_slice(content.as_ref());
        Ok(())
    })
}

pub fn file(content: Arc<dyn Content>, permissions: u16) -> Entry {
    Entry::File { content, permissions }
}

/// A directory, mode 0555.
pub fn directory(entries: Arc<dyn Entries>) -> Entry {
    Entry::Directory { entries, permissions: 0o555 }
}

pub fn link(target: impl Fn() -> FsResult<LinkTarget> + Send + Sync + 'static) -> Entry {
    Entry::Link(Arc::new(Made(target)))
}

/// A link whose text never changes.
pub fn link_to(path: &'static str) -> Entry {
    link(move || Ok(LinkTarget::Path(path.as_bytes().to_vec())))
}

// --- fixed directories ---

/// A directory whose names are entered once, possibly with a dynamic directory behind it, which is
/// asked for every other name.
pub struct Tree {
    inner: SpinLock<TreeInner>,
}

#[derive(Default)]
struct TreeInner {
    names: BTreeMap<Box<[u8]>, TreeEntry>,
    dynamic: Option<Arc<dyn Entries>>,
}

/// Subtrees are kept apart from other entries, so that more can be entered into them.
#[derive(Clone)]
enum TreeEntry {
    Tree(Arc<Tree>),
    Other(Entry),
}

impl From<TreeEntry> for Entry {
    fn from(entry: TreeEntry) -> Self {
        match entry {
            TreeEntry::Tree(tree) => directory(tree),
            TreeEntry::Other(entry) => entry,
        }
    }
}

impl Tree {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { inner: SpinLock::new(TreeInner::default()) })
    }

    /// Enters `entry` at a path below, with the directories on the way; an earlier one is replaced.
    pub fn add(&self, path: &str, entry: Entry) {
        match path.split_once('/') {
            Some((directory, rest)) => self.subtree(directory).add(rest, entry),
            None => self.set(path, TreeEntry::Other(entry)),
        }
    }

    /// The directory at a path below, made if need be.
    pub fn directory(&self, path: &str) -> Arc<Tree> {
        match path.split_once('/') {
            Some((directory, rest)) => self.subtree(directory).directory(rest),
            None => self.subtree(path),
        }
    }

    /// Names that come and go, beside those entered.
    pub fn set_dynamic(&self, entries: Arc<dyn Entries>) {
        let old = self.inner.lock().dynamic.replace(entries);
        drop(old);
    }

    fn subtree(&self, name: &str) -> Arc<Tree> {
        if let Some(TreeEntry::Tree(tree)) = self.inner.lock().names.get(name.as_bytes()) {
            return tree.clone();
        }
        let tree = Self::new();
        self.set(name, TreeEntry::Tree(tree.clone()));
        tree
    }

    fn set(&self, name: &str, entry: TreeEntry) {
        let old = self.inner.lock().names.insert(name.as_bytes().into(), entry);
        drop(old);
    }
}

impl Entries for Tree {
    fn find(&self, name: &[u8]) -> FsResult<Entry> {
        let (entry, dynamic) = {
            let inner = self.inner.lock();
            (inner.names.get(name).cloned(), inner.dynamic.clone())
        };
        match (entry, dynamic) {
            (Some(entry), _) => Ok(entry.into()),
            (None, Some(dynamic)) => dynamic.find(name),
            (None, None) => Err(FsError::NotFound),
        }
    }

    fn list(&self, each: &mut dyn FnMut(&[u8], FileKind)) -> FsResult<()> {
        let (names, dynamic) = {
            let inner = self.inner.lock();
            let kind = |entry: &TreeEntry| match entry {
                TreeEntry::Tree(_) => FileKind::Directory,
                TreeEntry::Other(entry) => entry.kind(),
            };
            let names: Vec<_> = inner.names.iter().map(|(name, entry)| (name.clone(), kind(entry))).collect();
            (names, inner.dynamic.clone())
        };
        names.iter().for_each(|(name, kind)| each(name, *kind));
        match dynamic {
            Some(dynamic) => dynamic.list(each),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
