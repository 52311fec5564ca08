//! Inodes that are made when they are asked for: directories over a [`Listing`], files whose bytes are
//! rendered at open, and links.
//!
//! # Invariants
//! A node's number depends on its path alone, so it is the same at each look-up.
use alloc::{borrow::Cow, boxed::Box, sync::Arc, vec, vec::Vec};

use fs::{
    FileKind, FileOps, FileSystem, FsError, Inode, Metadata, OpenFlags, Sink, Source,
    error::FsResult,
    file::Wait,
    inode::{AttributeChanges, DirEntry, EachEntry, FileSystemStatus, LinkTarget, Timestamp, anonymous_device},
};

/// What a directory has. Asked anew at each look-up and listing.
pub trait Listing: Send + Sync {
    fn find(&self, name: &[u8]) -> FsResult<Kind>;
    fn names(&self) -> FsResult<Vec<(Cow<'static, [u8]>, FileKind)>>;
}

type Render = Box<dyn Fn() -> FsResult<Vec<u8>> + Send + Sync>;
type Store = Box<dyn Fn(&[u8]) -> FsResult<()> + Send + Sync>;
type Follow = Box<dyn Fn() -> FsResult<(Vec<u8>, LinkTarget)> + Send + Sync>;

pub enum Kind {
    Directory(Box<dyn Listing>),
    File { render: Render, store: Option<Store> },
    /// Its text, and where it leads.
    Link(Follow),
}

impl Kind {
    pub fn file(render: impl Fn() -> FsResult<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::File { render: Box::new(render), store: None }
    }

    fn file_kind(&self) -> FileKind {
        match self {
            Self::Directory(_) => FileKind::Directory,
            Self::File { .. } => FileKind::Regular,
            Self::Link(_) => FileKind::Symlink,
        }
    }
}

struct Node {
    kind: Kind,
    number: u64,
    device: u64,
}

/// FNV-1a over the parent's number and the name.
fn child_number(parent: u64, name: &[u8]) -> u64 {
    let bytes = parent.to_le_bytes();
    let hash = bytes.iter().chain(name).fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 16
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        self.kind.file_kind()
    }

    fn metadata(&self) -> FsResult<Metadata> {
        let permissions = match &self.kind {
            Kind::Directory(_) => 0o555,
            Kind::File { store: None, .. } => 0o444,
            Kind::File { .. } => 0o644,
            Kind::Link(_) => 0o777,
        };
        let now = Timestamp::now();
        Ok(Metadata {
            device: self.device,
            inode: self.number,
            kind: self.kind(),
            permissions,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            block_size: 1024,
            blocks: 0,
            accessed: now,
            modified: now,
            changed: now,
            created: Timestamp::default(),
        })
    }

    /// O_TRUNC and O_CREAT reach files that can be written; their size is always 0.
    fn truncate(&self, _size: u64) -> FsResult<()> {
        match &self.kind {
            Kind::File { store: Some(_), .. } => Ok(()),
            _ => Err(FsError::NotPermitted),
        }
    }

    fn set_attributes(&self, _changes: &AttributeChanges) -> FsResult<()> {
        Err(FsError::NotPermitted)
    }

    fn lookup(&self, name: &[u8]) -> FsResult<Arc<dyn Inode>> {
        let Kind::Directory(listing) = &self.kind else { return Err(FsError::NotDirectory) };
        let kind = listing.find(name)?;
        Ok(Arc::new(Self { kind, number: child_number(self.number, name), device: self.device }))
    }

    fn lookups_cacheable(&self) -> bool {
        false
    }

    fn read_directory(&self, cursor: u64, each: EachEntry<'_>) -> FsResult<u64> {
        let Kind::Directory(listing) = &self.kind else { return Err(FsError::NotDirectory) };
        let mut at = cursor;
        for (name, kind) in listing.names()?.into_iter().skip(cursor as usize) {
            let entry = DirEntry { name: &name, inode: child_number(self.number, &name), kind, next: at + 1 };
            if !each(&entry) {
                break;
            }
            at += 1;
        }
        Ok(at)
    }

    fn read_link(&self) -> FsResult<Vec<u8>> {
        match &self.kind {
            Kind::Link(follow) => Ok(follow()?.0),
            _ => Err(FsError::Invalid),
        }
    }

    fn follow(&self) -> FsResult<LinkTarget> {
        match &self.kind {
            Kind::Link(follow) => Ok(follow()?.1),
            _ => Err(FsError::Invalid),
        }
    }

    fn open(self: Arc<Self>, flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        match &self.kind {
            Kind::File { store: None, .. } if flags.writes() => Err(FsError::Permission),
            Kind::File { render, .. } => {
                let bytes = if flags.reads() { render()? } else { Vec::new() };
                Ok(Arc::new(Snapshot { bytes, node: self }))
            }
            _ => Err(FsError::Invalid),
        }
    }
}

/// An open file: the bytes as they were at the open, so that reads of several pieces fit together.
struct Snapshot {
    bytes: Vec<u8>,
    node: Arc<Node>,
}

impl FileOps for Snapshot {
    fn read(&self, at: u64, out: &mut dyn Sink, _wait: Wait) -> FsResult<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)).unwrap_or(&[]);
        let now = rest.len().min(out.remaining());
        out.put(&rest[..now])?;
        Ok(now)
    }

    fn write(&self, _at: u64, from: &mut dyn Source, _wait: Wait) -> FsResult<usize> {
        const LINE_MAX: usize = 4096;
        let Kind::File { store: Some(store), .. } = &self.node.kind else { return Err(FsError::BadDescriptor) };
        let mut bytes = vec![0; from.remaining().min(LINE_MAX)];
        from.take(&mut bytes)?;
        store(&bytes)?;
        Ok(bytes.len())
    }

    fn append(&self, from: &mut dyn Source, wait: Wait) -> FsResult<(usize, u64)> {
        Ok((self.write(0, from, wait)?, 0))
    }

    fn size(&self) -> FsResult<u64> {
        Ok(0)
    }
}

/// A file system of such nodes.
pub struct GeneratedFs {
    type_name: &'static str,
    magic: u64,
    device: u64,
    root: Arc<Node>,
}

impl GeneratedFs {
    pub fn new(type_name: &'static str, magic: u64, root: Box<dyn Listing>) -> Arc<Self> {
        let device = anonymous_device();
        let root = Arc::new(Node { kind: Kind::Directory(root), number: 1, device });
        Arc::new(Self { type_name, magic, device, root })
    }
}

impl FileSystem for GeneratedFs {
    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }

    fn status(&self) -> FileSystemStatus {
        FileSystemStatus { magic: self.magic, block_size: 4096, name_max: 255, ..FileSystemStatus::default() }
    }

    fn device(&self) -> u64 {
        self.device
    }
}
