//! Open files: what a descriptor refers to (Linux' *open file description*).
//!
//! [`OpenFile`] holds what all descriptors of one open share: access mode, status flags, position.
//! Bytes go through [`FileOps`], which a regular file's inode implements itself, and which pipes,
//! sockets, the console and epoll instances implement elsewhere: [`OpenFile::new`] takes any.
//!
//! # Locking
//! `position` is a sleeping mutex held over a read or write that uses it (POSIX makes those atomic
//! with respect to each other); positional calls and streams do not take it.
use alloc::{string::String, sync::Arc, vec::Vec};
use core::{
    any::Any,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use bitflags::bitflags;
use rt::{
    page::Page,
    space::{ObjectId, Pager, PagerError},
    sync::{Mutex, WaitQueue},
    task::TaskRef,
};

use crate::{
    descriptor::Watchers,
    error::{FsError, FsResult},
    inode::{AllocateMode, AttributeChanges, DirEntry, EachEntry, FileKind, Inode, Metadata},
    io::{Sink, Source},
    vfs::Location,
};

bitflags! {
    /// open(2)'s flags with x86-64 Linux' values, so that libc-shim takes them over by
    /// `from_bits_truncate` (which drops unknown bits, as Linux' open does).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OpenFlags: u32 {
        const WRITE_ONLY = 0o1;
        const READ_WRITE = 0o2;
        const CREATE = 0o100;
        const EXCLUSIVE = 0o200;
        const NO_CTTY = 0o400;
        const TRUNCATE = 0o1000;
        const APPEND = 0o2000;
        const NONBLOCK = 0o4000;
        const DSYNC = 0o10000;
        const ASYNC = 0o20000;
        const DIRECT = 0o40000;
        const LARGE_FILE = 0o100000;
        const DIRECTORY = 0o200000;
        const NO_FOLLOW = 0o400000;
        const NO_ATIME = 0o1000000;
        const CLOSE_ON_EXEC = 0o2000000;
        const SYNC = 0o4000000;
        const PATH = 0o10000000;
        /// The O_TMPFILE bit alone; Linux' constant includes O_DIRECTORY.
        const TEMPORARY = 0o20000000;
    }
}

impl OpenFlags {
    /// What fcntl(F_SETFL) may change.
    pub const CHANGEABLE: Self =
        Self::APPEND.union(Self::NONBLOCK).union(Self::ASYNC).union(Self::DIRECT).union(Self::NO_ATIME);

    pub fn reads(self) -> bool {
        !self.contains(Self::WRITE_ONLY)
    }

    pub fn writes(self) -> bool {
        self.intersects(Self::WRITE_ONLY | Self::READ_WRITE)
    }

    /// What F_GETFL shows: without the flags that only steered the open.
    fn lasting(self) -> Self {
        self - (Self::CREATE | Self::EXCLUSIVE | Self::NO_CTTY | Self::TRUNCATE | Self::CLOSE_ON_EXEC)
    }
}

bitflags! {
    /// What a file is ready for, with the values of poll(2) and epoll(7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Readiness: u32 {
        const IN = 0x1;
        const PRIORITY = 0x2;
        const OUT = 0x4;
        const ERROR = 0x8;
        const HANG_UP = 0x10;
        const READ_HANG_UP = 0x2000;
    }
}

/// Whether a call may sleep until it can be done. `Never` gives [`FsError::WouldBlock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Allowed,
    Never,
}

/// The queues that are woken (all waiters) when a file's [`FileOps::readiness`] may have grown. A
/// file that is always ready has none. Both may be the same queue.
#[derive(Clone, Copy, Default)]
pub struct ReadyQueues<'a> {
    pub input: Option<&'a WaitQueue>,
    pub output: Option<&'a WaitQueue>,
}

/// Where [`OpenFile::seek`] counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekFrom {
    Start(u64),
    Current(i64),
    End(i64),
    /// SEEK_DATA and SEEK_HOLE (lseek(2)).
    Data(u64),
    Hole(u64),
}

/// What can be done with an open object. Implementations in this crate: regular files, directories,
/// pipes, eventfds, the console, device and generated files; elsewhere sockets and epoll.
///
/// Access mode, position and flags are checked by [`OpenFile`] before these are called. Calls may
/// sleep, interruptibly ([`FsError::Interrupted`]).
pub trait FileOps: Any + Send + Sync {
    /// Reads up to `out.remaining()` bytes from byte `at` on; 0 at the end. Streams ignore `at`.
    fn read(&self, _at: u64, _out: &mut dyn Sink, _wait: Wait) -> FsResult<usize> {
        Err(FsError::Invalid)
    }
    fn write(&self, _at: u64, _from: &mut dyn Source, _wait: Wait) -> FsResult<usize> {
        Err(FsError::Invalid)
    }
    /// Writes at the end, whatever it is by then (O_APPEND): bytes written, and the end after them.
    fn append(&self, from: &mut dyn Source, wait: Wait) -> FsResult<(usize, u64)> {
        self.write(0, from, wait).map(|written| (written, 0))
    }
    /// A stream has no position: pipes, sockets, terminals. Seeking is [`FsError::NotSeekable`].
    fn is_stream(&self) -> bool {
        false
    }
    /// The end that SEEK_END counts from; by default the metadata's size.
    fn size(&self) -> FsResult<u64> {
        self.metadata().map(|m| m.size)
    }
    /// What fstat shows of an object that no path leads to. Files opened by path are asked through
    /// their inode instead.
    fn metadata(&self) -> FsResult<Metadata> {
        Err(FsError::Invalid)
    }
    fn readiness(&self) -> Readiness {
        Readiness::IN | Readiness::OUT
    }
    fn ready_queues(&self) -> ReadyQueues<'_> {
        ReadyQueues::default()
    }
    /// ioctl(2) with numbers of this object's own. `argument` is often an application address. Those
    /// of terminals are libc-shim's: it finds a [`crate::console::Console`] by
    /// [`OpenFile::ops_as`].
    fn ioctl(&self, _request: u32, _argument: u64) -> FsResult<u64> {
        Err(FsError::NotTty)
    }
    /// First offset at or after `at` that is data (`hole` false) or hole; by default all is data.
    fn seek_hole(&self, at: u64, hole: bool) -> FsResult<u64> {
        let size = self.size()?;
        if at >= size {
            return Err(FsError::NoData);
        }
        Ok(if hole { size } else { at })
    }
    fn truncate(&self, _size: u64) -> FsResult<()> {
        Err(FsError::Invalid)
    }
    fn sync(&self) -> FsResult<()> {
        Err(FsError::Invalid)
    }
    /// A mapping of an object that has no inode, or of a device.
    fn pager(&self) -> Option<Arc<dyn Pager>> {
        None
    }
    /// Whether shared mappings may write it. A read-only device's may not (EINVAL), whatever the open
    /// asked for.
    fn allows_shared_writes(&self) -> bool {
        true
    }
    /// Opens the object once more through `/proc/self/fd/N`. Sockets and most anonymous objects
    /// answer ENXIO.
    fn reopen(&self, _flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        Err(FsError::NoPeer)
    }
    /// What readlink of `/proc/self/fd/N` shows of an object without a path: `pipe:[7]`,
    /// `anon_inode:[eventfd]`.
    fn description(&self) -> Vec<u8> {
        b"anon_inode:[file]".to_vec()
    }
}

/// One open file description. Its descriptors share it by `Arc`; the object is closed with the last.
pub struct OpenFile {
    ops: Arc<dyn FileOps>,
    location: Option<Location>,
    flags: AtomicU32,
    /// It may hold an advisory lock ([`crate::flock`]).
    locked: AtomicBool,
    position: Mutex<u64>,
    pub(crate) watchers: Watchers,
}

impl OpenFile {
    /// An open object without a path. `flags` give access mode and status flags.
    pub fn new(ops: Arc<dyn FileOps>, flags: OpenFlags) -> Arc<Self> {
        Self::build(ops, None, flags)
    }

    pub(crate) fn at(ops: Arc<dyn FileOps>, location: Location, flags: OpenFlags) -> Arc<Self> {
        Self::build(ops, Some(location), flags)
    }

    fn build(ops: Arc<dyn FileOps>, location: Option<Location>, flags: OpenFlags) -> Arc<Self> {
        let flags = AtomicU32::new(flags.lasting().bits());
        Arc::new(Self {
            ops,
            location,
            flags,
            locked: AtomicBool::new(false),
            position: Mutex::new(0),
            watchers: Watchers::new(),
        })
    }

    // --- content ---

    pub fn read(&self, out: &mut dyn Sink) -> FsResult<usize> {
        self.check_readable()?;
        if self.ops.is_stream() {
            return self.ops.read(0, out, self.wait());
        }
        let mut position = self.position.lock();
        let read = self.ops.read(*position, out, self.wait())?;
        *position += read as u64;
        Ok(read)
    }

    pub fn write(&self, from: &mut dyn Source) -> FsResult<usize> {
        self.check_writable()?;
        if self.ops.is_stream() {
            return self.ops.write(0, from, self.wait());
        }
        let mut position = self.position.lock();
        if self.flags().contains(OpenFlags::APPEND) {
            let (written, end) = self.ops.append(from, self.wait())?;
            if written > 0 {
                *position = end;
            }
            return Ok(written);
        }
        let written = self.ops.write(*position, from, self.wait())?;
        *position += written as u64;
        Ok(written)
    }

    /// pread(2).
    pub fn read_at(&self, at: u64, out: &mut dyn Sink) -> FsResult<usize> {
        self.check_readable()?;
        self.check_seekable()?;
        self.ops.read(at, out, self.wait())
    }

    /// pwrite(2). As on Linux (a documented deviation from POSIX there), O_APPEND wins over `at`.
    pub fn write_at(&self, at: u64, from: &mut dyn Source) -> FsResult<usize> {
        self.check_writable()?;
        self.check_seekable()?;
        if self.flags().contains(OpenFlags::APPEND) {
            return self.ops.append(from, self.wait()).map(|(written, _)| written);
        }
        self.ops.write(at, from, self.wait())
    }

    /// lseek(2); the result is the new position.
    pub fn seek(&self, to: SeekFrom) -> FsResult<u64> {
        self.check_usable()?;
        self.check_seekable()?;
        let mut position = self.position.lock();
        let target = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => position.checked_add_signed(by).ok_or(FsError::Invalid)?,
            SeekFrom::End(by) => self.size()?.checked_add_signed(by).ok_or(FsError::Invalid)?,
            SeekFrom::Data(at) => self.ops.seek_hole(at, false)?,
            SeekFrom::Hole(at) => self.ops.seek_hole(at, true)?,
        };
        if target > i64::MAX as u64 {
            return Err(FsError::Invalid);
        }
        *position = target;
        Ok(target)
    }

    /// The position, without moving it (`/proc/self/fdinfo`).
    pub fn position(&self) -> u64 {
        *self.position.lock()
    }

    /// getdents64(2): calls `each` for the entries from the position on, `.` and `..` first; the
    /// position moves past those that it accepted.
    pub fn read_directory(&self, each: EachEntry<'_>) -> FsResult<()> {
        self.check_usable()?;
        let location = self.location.as_ref().ok_or(FsError::NotDirectory)?;
        if location.inode().kind() != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        let mut position = self.position.lock();
        for (at, name) in [(0, &b"."[..]), (1, b"..")] {
            if *position != at {
                continue;
            }
            let inode = if at == 0 { location.inode_number() } else { location.parent().inode_number() };
            if !each(&DirEntry { name, inode, kind: FileKind::Directory, next: at + 1 }) {
                return Ok(());
            }
            *position = at + 1;
        }
        // The inode's own cursors start after the two.
        let next = location
            .inode()
            .read_directory(*position - 2, &mut |entry| each(&DirEntry { next: entry.next + 2, ..*entry }))?;
        *position = next + 2;
        Ok(())
    }

    pub fn truncate(&self, size: u64) -> FsResult<()> {
        if !self.flags().writes() {
            return Err(FsError::Invalid);
        }
        match &self.location {
            Some(location) => location.inode().truncate(size),
            None => self.ops.truncate(size),
        }
    }

    /// fallocate(2).
    pub fn allocate(&self, mode: AllocateMode, offset: u64, len: u64) -> FsResult<()> {
        self.check_writable()?;
        self.check_seekable()?;
        let location = self.location.as_ref().ok_or(FsError::NoDevice)?;
        location.inode().allocate(mode, offset, len)
    }

    pub fn sync(&self) -> FsResult<()> {
        self.check_usable()?;
        match self.inode_with_content() {
            Some(location) => location.inode().sync(),
            None => self.ops.sync(),
        }
    }

    /// The location, unless the content is the object's own: a block device's is.
    fn inode_with_content(&self) -> Option<&Location> {
        self.location.as_ref().filter(|location| location.inode().kind() != FileKind::BlockDevice)
    }

    /// Pages for mmap; None: ENODEV. Access mode and MAP_SHARED are the caller's to check.
    pub fn pager(&self) -> Option<Arc<dyn Pager>> {
        let inner = match self.inode_with_content() {
            Some(location) => location.inode().clone().pager()?,
            None => self.ops.pager()?,
        };
        match &self.location {
            Some(location) => Some(Arc::new(LocatedPager { inner, location: location.clone() })),
            None => Some(inner),
        }
    }

    pub fn ioctl(&self, request: u32, argument: u64) -> FsResult<u64> {
        self.check_usable()?;
        self.ops.ioctl(request, argument)
    }

    // --- attributes ---

    pub fn metadata(&self) -> FsResult<Metadata> {
        match &self.location {
            Some(location) => location.metadata(),
            None => self.ops.metadata(),
        }
    }

    pub fn set_attributes(&self, changes: &AttributeChanges) -> FsResult<()> {
        self.check_usable()?;
        match &self.location {
            Some(location) => location.set_attributes(changes),
            None => Err(FsError::NotPermitted),
        }
    }

    /// Access mode and status flags (F_GETFL).
    pub fn flags(&self) -> OpenFlags {
        OpenFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }

    /// F_SETFL: takes over the changeable flags of `flags`.
    pub fn set_flags(&self, flags: OpenFlags) {
        let kept = self.flags() - OpenFlags::CHANGEABLE;
        self.flags.store((kept | (flags & OpenFlags::CHANGEABLE)).bits(), Ordering::Relaxed);
    }

    /// Where the file was opened; None for pipes, sockets and the like.
    pub fn location(&self) -> Option<&Location> {
        self.location.as_ref()
    }

    /// As readlink of `/proc/self/fd/N` shows it: a path as seen from `root`, or a description.
    pub fn path(&self, root: &Location) -> Vec<u8> {
        match &self.location {
            Some(location) => location.path(root),
            None => self.ops.description(),
        }
    }

    pub fn ops(&self) -> &Arc<dyn FileOps> {
        &self.ops
    }

    /// The object as its own type: a socket, an epoll instance, the console.
    pub fn ops_as<T: FileOps>(&self) -> Option<&T> {
        (&*self.ops as &dyn Any).downcast_ref()
    }

    pub(crate) fn set_locked(&self, locked: bool) {
        self.locked.store(locked, Ordering::Relaxed);
    }

    pub(crate) fn was_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }

    // --- poll ---

    pub fn readiness(&self) -> Readiness {
        self.ops.readiness()
    }

    /// Puts the task on the queues that are woken when the file may have become ready. Then check
    /// [`OpenFile::readiness`], park, and [`OpenFile::delist`].
    pub fn enlist(&self, task: &TaskRef) {
        self.each_queue(|queue| queue.enlist(task));
    }

    pub fn delist(&self, task: &TaskRef) {
        self.each_queue(|queue| queue.delist(task));
    }

    fn each_queue(&self, mut each: impl FnMut(&WaitQueue)) {
        let queues = self.ops.ready_queues();
        if let Some(input) = queues.input {
            each(input);
        }
        if let Some(output) = queues.output
            && !queues.input.is_some_and(|input| core::ptr::eq(input, output))
        {
            each(output);
        }
    }

    // --- checks ---

    fn wait(&self) -> Wait {
        if self.flags().contains(OpenFlags::NONBLOCK) { Wait::Never } else { Wait::Allowed }
    }

    fn size(&self) -> FsResult<u64> {
        match &self.location {
            Some(location) if location.inode().kind() == FileKind::Regular => {
                location.inode().metadata().map(|m| m.size)
            }
            _ => self.ops.size(),
        }
    }

    fn check_readable(&self) -> FsResult<()> {
        let flags = self.flags();
        let readable = flags.reads() && !flags.contains(OpenFlags::PATH);
        readable.then_some(()).ok_or(FsError::BadDescriptor)
    }

    fn check_writable(&self) -> FsResult<()> {
        let flags = self.flags();
        let writable = flags.writes() && !flags.contains(OpenFlags::PATH);
        writable.then_some(()).ok_or(FsError::BadDescriptor)
    }

    /// Anything but O_PATH.
    fn check_usable(&self) -> FsResult<()> {
        if self.flags().contains(OpenFlags::PATH) { Err(FsError::BadDescriptor) } else { Ok(()) }
    }

    fn check_seekable(&self) -> FsResult<()> {
        if self.ops.is_stream() { Err(FsError::NotSeekable) } else { Ok(()) }
    }
}

/// An inode's pager, together with the path under which it was opened. Holding the location also
/// keeps the file in the dentry cache while it is mapped.
struct LocatedPager {
    inner: Arc<dyn Pager>,
    location: Location,
}

impl Pager for LocatedPager {
    fn page(&self, index: u64, write: bool) -> Result<Page, PagerError> {
        self.inner.page(index, write)
    }

    fn page_if_cached(&self, index: u64) -> Option<Page> {
        self.inner.page_if_cached(index)
    }

    fn pages_if_cached(&self, first: u64, out: &mut [Option<Page>]) {
        self.inner.pages_if_cached(first, out);
    }

    fn confirm(&self, index: u64, page: &Page, write: bool) -> bool {
        self.inner.confirm(index, page, write)
    }

    fn object(&self) -> ObjectId {
        self.inner.object()
    }

    fn sync(&self, pages: Range<u64>) -> Result<(), PagerError> {
        self.inner.sync(pages)
    }

    fn path(&self) -> String {
        String::from_utf8_lossy(&self.location.path_from_top()).into_owned()
    }

    fn identity(&self) -> (u32, u32, u64) {
        self.inner.identity()
    }
}

/// An inode's object for opens that never reach the content: O_PATH, and directories, whose entries
/// [`OpenFile::read_directory`] gets from the inode.
pub struct NoContent(pub FileKind);

impl FileOps for NoContent {
    fn read(&self, _at: u64, _out: &mut dyn Sink, _wait: Wait) -> FsResult<usize> {
        Err(if self.0 == FileKind::Directory { FsError::IsDirectory } else { FsError::Invalid })
    }

    fn size(&self) -> FsResult<u64> {
        Ok(0)
    }
}

/// The inode behind a magic link to an object without a path: opening it reopens the object.
pub(crate) struct ObjectInode(pub Arc<OpenFile>);

impl Inode for ObjectInode {
    fn kind(&self) -> FileKind {
        self.0.metadata().map_or(FileKind::Fifo, |m| m.kind)
    }

    fn metadata(&self) -> FsResult<Metadata> {
        self.0.metadata()
    }

    fn open(self: Arc<Self>, flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        self.0.ops.reopen(flags)
    }

    fn pager(self: Arc<Self>) -> Option<Arc<dyn Pager>> {
        self.0.ops.pager()
    }
}
