//! Pseudo file systems' inodes and open files.
use alloc::{sync::Arc, vec::Vec};

use rt::sync::Mutex;

use super::{Content, Entries, Entry, Tree, directory};
use crate::{
    error::{FsError, FsResult},
    file::{FileOps, NoContent, OpenFlags, Wait},
    inode::{
        AttributeChanges, DirEntry, EachEntry, FileKind, FileSystem, FileSystemStatus, Inode, LinkTarget, Metadata,
        Timestamp, anonymous_device,
    },
    io::{Sink, Source},
};

/// Longest write that a generated file takes, as for procfs on Linux.
const WRITE_MAX: usize = 4096;

/// procfs, sysfs, or one like them.
pub struct PseudoFs {
    type_name: &'static str,
    magic: u64,
    device: u64,
    tree: Arc<Tree>,
    mounted: Timestamp,
}

impl PseudoFs {
    pub fn new(type_name: &'static str, magic: u64) -> Arc<Self> {
        Arc::new(Self { type_name, magic, device: anonymous_device(), tree: Tree::new(), mounted: Timestamp::now() })
    }

    /// The root, to enter things into.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// See [`Tree::add`].
    pub fn add(&self, path: &str, entry: Entry) {
        self.tree.add(path, entry);
    }

    /// See [`Tree::set_dynamic`].
    pub fn set_dynamic(&self, entries: Arc<dyn Entries>) {
        self.tree.set_dynamic(entries);
    }
}

impl FileSystem for PseudoFs {
    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn root(&self) -> Arc<dyn Inode> {
        let entry = directory(self.tree.clone());
        Arc::new(PseudoInode { entry, number: 1, device: self.device, mounted: self.mounted })
    }

    fn status(&self) -> FileSystemStatus {
        FileSystemStatus { magic: self.magic, block_size: 4096, name_max: 255, ..FileSystemStatus::default() }
    }

    fn device(&self) -> u64 {
        self.device
    }
}

struct PseudoInode {
    entry: Entry,
    /// From the path, so that it is the same at each lookup.
    number: u64,
    device: u64,
    mounted: Timestamp,
}

impl PseudoInode {
    fn entries(&self) -> FsResult<&Arc<dyn Entries>> {
        match &self.entry {
            Entry::Directory { entries, .. } => Ok(entries),
            _ => Err(FsError::NotDirectory),
        }
    }

    fn child_number(&self, name: &[u8]) -> u64 {
        // FNV-1a over the parent's number and the name; 0 is no inode number, and 1 the root's.
        let bytes = self.number.to_le_bytes();
        let hash = bytes
            .iter()
            .chain(name)
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        (hash & 0x7fff_ffff).max(2)
    }
}

impl Inode for PseudoInode {
    fn kind(&self) -> FileKind {
        self.entry.kind()
    }

    fn metadata(&self) -> FsResult<Metadata> {
        let (permissions, links) = match &self.entry {
            Entry::File { permissions, .. } => (*permissions, 1),
            Entry::Directory { permissions, .. } => (*permissions, 2),
            Entry::Link(_) => (0o777, 1),
        };
        Ok(Metadata {
            device: self.device,
            inode: self.number,
            kind: self.entry.kind(),
            permissions,
            links,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            block_size: 4096,
            blocks: 0,
            accessed: self.mounted,
            modified: self.mounted,
            changed: self.mounted,
            created: self.mounted,
        })
    }

    /// Refused, but for times: `touch` of a sysfs file is harmless.
    fn set_attributes(&self, changes: &AttributeChanges) -> FsResult<()> {
        if changes.permissions.is_some() || changes.uid.is_some() || changes.gid.is_some() {
            return Err(FsError::NotPermitted);
        }
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> FsResult<Arc<dyn Inode>> {
        let entry = self.entries()?.find(name)?;
        let number = self.child_number(name);
        Ok(Arc::new(Self { entry, number, device: self.device, mounted: self.mounted }))
    }

    fn lookups_cacheable(&self) -> bool {
        false
    }

    /// The cursor counts entries; a directory that changes meanwhile may repeat or omit some.
    fn read_directory(&self, cursor: u64, each: EachEntry<'_>) -> FsResult<u64> {
        let mut names = Vec::new();
        self.entries()?.list(&mut |name, kind| names.push((name.to_vec(), kind)))?;
        let mut at = cursor;
        for (name, kind) in names.iter().skip(usize::try_from(cursor).unwrap_or(usize::MAX)) {
            let entry = DirEntry { name, inode: self.child_number(name), kind: *kind, next: at + 1 };
            if !each(&entry) {
                break;
            }
            at += 1;
        }
        Ok(at)
    }

    fn read_link(&self) -> FsResult<Vec<u8>> {
        match self.follow()? {
            LinkTarget::Path(path) => Ok(path),
            LinkTarget::Object(location) => Ok(location.path_from_top()),
        }
    }

    fn follow(&self) -> FsResult<LinkTarget> {
        match &self.entry {
            Entry::Link(target) => target.target(),
            _ => Err(FsError::Invalid),
        }
    }

    fn open(self: Arc<Self>, _flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        match &self.entry {
            Entry::File { content, .. } => {
                Ok(Arc::new(Generated { content: content.clone(), snapshot: Mutex::new(None) }))
            }
            entry => Ok(Arc::new(NoContent(entry.kind()))),
        }
    }

    /// A shell's `>` truncates before it writes.
    fn truncate(&self, _size: u64) -> FsResult<()> {
        match &self.entry {
            Entry::File { .. } => Ok(()),
            _ => Err(FsError::Invalid),
        }
    }
}

/// An open generated file.
struct Generated {
    content: Arc<dyn Content>,
    /// As it was when last read from the start. Held while content is made and copied out.
    snapshot: Mutex<Option<Vec<u8>>>,
}

impl FileOps for Generated {
    fn read(&self, at: u64, out: &mut dyn Sink, _wait: Wait) -> FsResult<usize> {
        let mut snapshot = self.snapshot.lock();
        if at == 0 || snapshot.is_none() {
            let mut made = Vec::new();
            self.content.generate(&mut made)?;
            *snapshot = Some(made);
        }
        let content = snapshot.as_deref().unwrap_or_default();
        let rest = usize::try_from(at).ok().and_then(|at| content.get(at..)).unwrap_or_default();
        let len = rest.len().min(out.remaining());
        out.put(&rest[..len])?;
        Ok(len)
    }

    fn write(&self, _at: u64, from: &mut dyn Source, _wait: Wait) -> FsResult<usize> {
        let len = from.remaining();
        if len > WRITE_MAX {
            return Err(FsError::Invalid);
        }
        let mut data = alloc::vec![0; len];
        from.take(&mut data)?;
        self.content.write(&data)?;
        Ok(len)
    }

    fn size(&self) -> FsResult<u64> {
        Ok(0)
    }
}
