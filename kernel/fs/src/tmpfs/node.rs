//! A node of tmpfs: attributes, and a body by kind.
use alloc::{
    boxed::Box,
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, Ordering};

use rt::{
    page::{PAGE_SIZE, Page},
    space::{ObjectId, Pager, PagerError},
    sync::SpinLock,
};

use super::{Shared, content::Content, directory::Directory};
use crate::{
    block,
    cache::pages_of,
    devices,
    error::{FsError, FsResult},
    file::{FileOps, NoContent, OpenFlags, Wait},
    inode::{
        AllocateMode, AttributeChanges, EachEntry, FileKind, Inode, Metadata, NewNode, RenameMode, Timestamp,
        device_parts,
    },
    io::{Sink, Source},
    pipe::Pipe,
};

pub struct Node {
    shared: Arc<Shared>,
    /// For handing itself to the shadow table and the page cache's users.
    this: Weak<Node>,
    number: u64,
    kind: FileKind,
    rdev: u64,
    /// A shadow: `number` is the lower inode's.
    is_shadow: bool,
    changed: AtomicBool,
    attributes: SpinLock<Attributes>,
    body: Body,
}

#[derive(Clone, Copy)]
struct Attributes {
    permissions: u16,
    links: u32,
    uid: u32,
    gid: u32,
    accessed: Timestamp,
    modified: Timestamp,
    changed: Timestamp,
    created: Timestamp,
}

enum Body {
    File(Content),
    Directory(Directory),
    Symlink(Box<[u8]>),
    Fifo(Arc<Pipe>),
    /// Device files and sockets' names.
    Other,
}

impl Node {
    pub fn new(shared: &Arc<Shared>, node: NewNode<'_>, permissions: u16) -> Arc<Self> {
        let body = match node {
            NewNode::File => Body::File(Content::new(shared)),
            NewNode::Directory => Body::Directory(Directory::new(shared, None)),
            NewNode::Symlink(target) => Body::Symlink(target.into()),
            NewNode::Fifo => Body::Fifo(Pipe::new()),
            NewNode::Socket | NewNode::CharDevice(_) | NewNode::BlockDevice(_) => Body::Other,
        };
        let rdev = match node {
            NewNode::CharDevice(number) | NewNode::BlockDevice(number) => number,
            _ => 0,
        };
        let now = Timestamp::now();
        let links = if node.kind() == FileKind::Directory { 2 } else { 1 };
        let attributes =
            Attributes { permissions, links, uid: 0, gid: 0, accessed: now, modified: now, changed: now, created: now };
        let number = shared.next_number.fetch_add(1, Ordering::Relaxed);
        Self::build(shared, node.kind(), number, rdev, false, attributes, body)
    }

    /// A shadow of a lower inode.
    pub fn over(shared: &Arc<Shared>, lower: &Arc<dyn Inode>, metadata: &Metadata) -> FsResult<Arc<Self>> {
        let body = match metadata.kind {
            FileKind::Regular => {
                let pager = lower.clone().pager().ok_or(FsError::NotSupported)?;
                Body::File(Content::over(shared, pager, metadata.size))
            }
            FileKind::Directory => Body::Directory(Directory::new(shared, Some(lower.clone()))),
            FileKind::Symlink => Body::Symlink(lower.read_link()?.into()),
            FileKind::Fifo => Body::Fifo(Pipe::new()),
            FileKind::CharDevice | FileKind::BlockDevice | FileKind::Socket => Body::Other,
        };
        let attributes = Attributes {
            permissions: metadata.permissions,
            links: metadata.links,
            uid: metadata.uid,
            gid: metadata.gid,
            accessed: metadata.accessed,
            modified: metadata.modified,
            changed: metadata.changed,
            created: metadata.created,
        };
        Ok(Self::build(shared, metadata.kind, metadata.inode, metadata.rdev, true, attributes, body))
    }

    fn build(
        shared: &Arc<Shared>,
        kind: FileKind,
        number: u64,
        rdev: u64,
        is_shadow: bool,
        attributes: Attributes,
        body: Body,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            shared: shared.clone(),
            this: this.clone(),
            number,
            kind,
            rdev,
            is_shadow,
            changed: AtomicBool::new(false),
            attributes: SpinLock::new(attributes),
            body,
        })
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn set_links(&self, links: u32) {
        self.attributes.lock().links = links;
    }

    /// Must be called before anything of the node is changed for good.
    fn keep(&self) {
        if self.is_shadow
            && !self.changed.swap(true, Ordering::AcqRel)
            && let Some(this) = self.this.upgrade()
        {
            self.shared.pin(self.number, this);
        }
    }

    /// Content changed: the times follow.
    fn touch(&self) {
        let now = Timestamp::now();
        let mut attributes = self.attributes.lock();
        attributes.modified = now;
        attributes.changed = now;
    }

    fn add_links(&self, by: i32) {
        self.keep();
        let links = {
            let mut attributes = self.attributes.lock();
            attributes.links = attributes.links.saturating_add_signed(by);
            attributes.changed = Timestamp::now();
            attributes.links
        };
        let last = if self.kind == FileKind::Directory { 1 } else { 0 };
        if links <= last && self.is_shadow {
            self.shared.unpin(self.number);
        }
    }

    fn directory(&self) -> FsResult<&Directory> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(FsError::NotDirectory),
        }
    }

    fn content(&self) -> FsResult<&Content> {
        match &self.body {
            Body::File(content) => Ok(content),
            Body::Directory(_) => Err(FsError::IsDirectory),
            _ => Err(FsError::Invalid),
        }
    }

    /// Enters a node here, with what that means for times and a subdirectory's `..`.
    fn add_entry(&self, name: &[u8], node: &Arc<Node>) -> FsResult<()> {
        self.keep();
        self.directory()?.add(name, node.clone())?;
        self.entries_changed(node, 1);
        Ok(())
    }

    fn remove_entry(&self, name: &[u8], node: &Arc<Node>) -> FsResult<()> {
        self.keep();
        self.directory()?.remove(name, node)?;
        self.entries_changed(node, -1);
        Ok(())
    }

    fn entries_changed(&self, node: &Node, by: i32) {
        if node.kind == FileKind::Directory {
            self.add_links(by);
        }
        self.touch();
    }

    /// Gives two names each other's nodes. Nothing has happened if it fails.
    fn exchange(&self, name: &[u8], node: &Arc<Node>, to: &Node, to_name: &[u8], target: &Arc<Node>) -> FsResult<()> {
        [self, to, target].into_iter().for_each(Node::keep);
        let directory = self.directory()?;
        directory.replace(name, node, target.clone())?;
        let replaced = to.directory()?.replace(to_name, target, node.clone());
        replaced.inspect_err(|_| {
            // The name has its entry by now, and needs no room.
            let _ = directory.replace(name, target, node.clone());
        })?;
        for (directory, gone, new) in [(self, node, target), (to, target, node)] {
            directory.entries_changed(gone, -1);
            directory.entries_changed(new, 1);
        }
        Ok(())
    }

    /// Moves `node` from a name here over `target`, which goes: a directory only if it is empty. Nothing has
    /// happened if it fails.
    fn rename_over(&self, name: &[u8], node: &Arc<Node>, to: &Node, to_name: &[u8], target: &Node) -> FsResult<()> {
        let target = target.this.upgrade().ok_or(FsError::NotFound)?;
        let emptied = if target.kind == FileKind::Directory { Some(target.directory()?) } else { None };
        emptied.map_or(Ok(()), Directory::kill_if_empty)?;
        let moved = self.remove_entry(name, node).and_then(|()| {
            to.keep();
            // No room for another entry: its old name was paid for a moment ago.
            let replaced = to.directory()?.replace(to_name, &target, node.clone());
            replaced.inspect_err(|_| {
                let _ = self.add_entry(name, node);
            })
        });
        moved.inspect_err(|_| emptied.iter().for_each(|directory| directory.revive()))?;
        to.entries_changed(&target, -1);
        to.entries_changed(node, 1);
        target.add_links(if emptied.is_some() { -2 } else { -1 });
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.is_shadow {
            self.shared.forget(self.number);
        }
    }
}

impl Inode for Node {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn metadata(&self) -> FsResult<Metadata> {
        let attributes = *self.attributes.lock();
        let (size, own_pages) = match &self.body {
            Body::File(content) if self.is_shadow => (content.size(), pages_of(content.size())),
            Body::File(content) => (content.size(), content.own_pages()),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Directory(_) => (PAGE_SIZE as u64, 0),
            _ => (0, 0),
        };
        Ok(Metadata {
            device: self.shared.device,
            inode: self.number,
            kind: self.kind,
            permissions: attributes.permissions,
            links: attributes.links,
            uid: attributes.uid,
            gid: attributes.gid,
            rdev: self.rdev,
            size,
            block_size: PAGE_SIZE as u32,
            blocks: own_pages * (PAGE_SIZE as u64 / 512),
            accessed: attributes.accessed,
            modified: attributes.modified,
            changed: attributes.changed,
            created: attributes.created,
        })
    }

    fn set_attributes(&self, changes: &AttributeChanges) -> FsResult<()> {
        self.keep();
        let mut attributes = self.attributes.lock();
        let old = *attributes;
        *attributes = Attributes {
            permissions: changes.permissions.unwrap_or(old.permissions) & 0o7777,
            uid: changes.uid.unwrap_or(old.uid),
            gid: changes.gid.unwrap_or(old.gid),
            accessed: changes.accessed.unwrap_or(old.accessed),
            modified: changes.modified.unwrap_or(old.modified),
            changed: Timestamp::now(),
            ..old
        };
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> FsResult<Arc<dyn Inode>> {
        Ok(self.directory()?.find(name)?)
    }

    fn create(&self, name: &[u8], node: NewNode<'_>, permissions: u16) -> FsResult<Arc<dyn Inode>> {
        self.directory()?;
        let new = Self::new(&self.shared, node, permissions);
        self.add_entry(name, &new)?;
        Ok(new)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> FsResult<()> {
        let target = target.downcast_ref::<Self>().and_then(|node| node.this.upgrade()).ok_or(FsError::CrossDevice)?;
        target.add_links(1);
        self.add_entry(name, &target).inspect_err(|_| target.add_links(-1))
    }

    fn unlink(&self, name: &[u8]) -> FsResult<()> {
        let node = self.directory()?.find(name)?;
        if node.kind == FileKind::Directory {
            return Err(FsError::IsDirectory);
        }
        self.remove_entry(name, &node)?;
        node.add_links(-1);
        Ok(())
    }

    fn remove_directory(&self, name: &[u8]) -> FsResult<()> {
        let node = self.directory()?.find(name)?;
        let directory = node.directory()?;
        directory.kill_if_empty()?;
        self.remove_entry(name, &node).inspect_err(|_| directory.revive())?;
        node.add_links(-2);
        Ok(())
    }

    /// Not atomic to lookups beside it that miss the dentry cache: for a moment neither name is found, or
    /// the target's old node.
    fn rename(&self, name: &[u8], to: &Arc<dyn Inode>, to_name: &[u8], mode: RenameMode) -> FsResult<()> {
        let to = to.downcast_ref::<Self>().ok_or(FsError::CrossDevice)?;
        let node = self.directory()?.find(name)?;
        let target = match to.directory()?.find(to_name) {
            Ok(target) => Some(target),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(error),
        };
        node.keep();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
            (RenameMode::Exchange, None) => return Err(FsError::NotFound),
            (RenameMode::Exchange, Some(target)) => return self.exchange(name, &node, to, to_name, &target),
            (RenameMode::Replace, Some(target)) if Arc::ptr_eq(&node, &target) => return Ok(()),
            (RenameMode::Replace, Some(target)) => return self.rename_over(name, &node, to, to_name, &target),
            (_, None) => {}
        }
        self.remove_entry(name, &node)?;
        to.add_entry(to_name, &node).inspect_err(|_| {
            // No room for the longer name: put it back. The name was paid for a moment ago.
            let _ = self.add_entry(name, &node);
        })
    }

    fn read_directory(&self, cursor: u64, each: EachEntry<'_>) -> FsResult<u64> {
        self.directory()?.list(cursor, each)
    }

    fn create_unnamed(&self, permissions: u16) -> FsResult<Arc<dyn Inode>> {
        self.directory()?;
        let new = Self::new(&self.shared, NewNode::File, permissions);
        new.set_links(0);
        Ok(new)
    }

    fn read_link(&self) -> FsResult<Vec<u8>> {
        match &self.body {
            Body::Symlink(target) => Ok(target.to_vec()),
            _ => Err(FsError::Invalid),
        }
    }

    fn open(self: Arc<Self>, flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        match &self.body {
            Body::File(_) => Ok(self),
            Body::Fifo(pipe) => pipe.clone().open_fifo(flags),
            Body::Other if self.kind == FileKind::CharDevice => devices::open(self.rdev, flags),
            Body::Other if self.kind == FileKind::BlockDevice => block::open(self.rdev, flags),
            Body::Other => Err(FsError::NoPeer),
            Body::Directory(_) | Body::Symlink(_) => Ok(Arc::new(NoContent(self.kind))),
        }
    }

    fn truncate(&self, size: u64) -> FsResult<()> {
        let content = self.content()?;
        self.keep();
        content.truncate(size)?;
        self.touch();
        Ok(())
    }

    fn allocate(&self, mode: AllocateMode, offset: u64, len: u64) -> FsResult<()> {
        let content = self.content()?;
        self.keep();
        content.allocate(mode, offset, len)?;
        self.touch();
        Ok(())
    }

    fn pager(self: Arc<Self>) -> Option<Arc<dyn Pager>> {
        if self.kind == FileKind::Regular { Some(self) } else { None }
    }
}

/// Deviation: reads do not change the access time, as if mounted noatime.
impl FileOps for Node {
    fn read(&self, at: u64, out: &mut dyn Sink, _wait: Wait) -> FsResult<usize> {
        self.content()?.read(at, out)
    }

    /// A write of nothing changes nothing, not even the size beyond the end (write(2)).
    fn write(&self, at: u64, from: &mut dyn Source, _wait: Wait) -> FsResult<usize> {
        if from.remaining() == 0 {
            return Ok(0);
        }
        self.keep();
        let (written, _) = self.content()?.write(Some(at), from)?;
        self.touch();
        Ok(written)
    }

    fn append(&self, from: &mut dyn Source, _wait: Wait) -> FsResult<(usize, u64)> {
        if from.remaining() == 0 {
            return Ok((0, 0));
        }
        self.keep();
        let written = self.content()?.write(None, from)?;
        self.touch();
        Ok(written)
    }

    fn size(&self) -> FsResult<u64> {
        Ok(self.content()?.size())
    }

    fn seek_hole(&self, at: u64, hole: bool) -> FsResult<u64> {
        self.content()?.seek_hole(at, hole)
    }
}

impl Pager for Node {
    /// A hole becomes a page of its own even for reading, so that all mappings see later writes.
    fn page(&self, index: u64, write: bool) -> Result<Page, PagerError> {
        let content = self.content()?;
        if index >= pages_of(content.size()) {
            return Err(PagerError::BeyondEnd);
        }
        if !write && let Some(page) = content.page(index)? {
            return Ok(page);
        }
        self.keep();
        Ok(content.own_page(index)?)
    }

    fn page_if_cached(&self, index: u64) -> Option<Page> {
        let content = self.content().ok()?;
        if index < pages_of(content.size()) { content.page_in_memory(index) } else { None }
    }

    fn pages_if_cached(&self, first: u64, out: &mut [Option<Page>]) {
        let Ok(content) = self.content() else { return };
        let within = pages_of(content.size()).saturating_sub(first).min(out.len() as u64);
        content.pages_in_memory(first, &mut out[..within as usize]);
    }

    fn confirm(&self, index: u64, page: &Page, _write: bool) -> bool {
        self.content().is_ok_and(|content| index < pages_of(content.size()) && content.still_shows(index, page))
    }

    fn object(&self) -> ObjectId {
        // Only regular files have a pager.
        self.content().map_or(ObjectId(0), Content::object)
    }

    fn path(&self) -> String {
        String::new()
    }

    fn identity(&self) -> (u32, u32, u64) {
        let (major, minor) = device_parts(self.shared.device);
        (major, minor, self.number)
    }
}
