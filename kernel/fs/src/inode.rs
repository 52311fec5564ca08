//! Inodes and file systems: what every file system implements.
use alloc::{sync::Arc, vec::Vec};
use core::any::Any;

use rt::space::Pager;

use crate::{
    error::{FsError, FsResult},
    file::{FileOps, OpenFlags},
    vfs::Location,
};

/// What an inode is; never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl FileKind {
    /// The S_IFMT bits of `st_mode` (inode(7)); EROFS stores the same.
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0o010000,
            Self::CharDevice => 0o020000,
            Self::Directory => 0o040000,
            Self::BlockDevice => 0o060000,
            Self::Regular => 0o100000,
            Self::Symlink => 0o120000,
            Self::Socket => 0o140000,
        }
    }

    pub fn from_mode_bits(mode: u16) -> Option<Self> {
        Some(match mode & 0o170000 {
            0o010000 => Self::Fifo,
            0o020000 => Self::CharDevice,
            0o040000 => Self::Directory,
            0o060000 => Self::BlockDevice,
            0o100000 => Self::Regular,
            0o120000 => Self::Symlink,
            0o140000 => Self::Socket,
            _ => return None,
        })
    }

    /// `d_type` of getdents64(2): the S_IFMT bits shifted down.
    pub fn directory_type(self) -> u8 {
        (self.mode_bits() >> 12) as u8
    }
}

/// A point in time since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    pub fn now() -> Self {
        let ns = rt::rt().realtime_ns();
        Self { seconds: (ns / 1_000_000_000) as i64, nanoseconds: (ns % 1_000_000_000) as u32 }
    }
}

/// What stat(2) and statx(2) show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// `st_dev`, in [`device_number`]'s encoding.
    pub device: u64,
    pub inode: u64,
    pub kind: FileKind,
    /// The low 12 bits of `st_mode`.
    pub permissions: u16,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// `st_rdev` of a device file, else 0.
    pub rdev: u64,
    pub size: u64,
    pub block_size: u32,
    /// 512-byte units.
    pub blocks: u64,
    pub accessed: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub created: Timestamp,
}

impl Metadata {
    /// `st_mode`: kind and permissions.
    pub fn mode(&self) -> u32 {
        u32::from(self.kind.mode_bits() | self.permissions)
    }
}

/// glibc's and Linux' 64-bit `dev_t` (makedev(3)).
pub const fn device_number(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
}

/// (major, minor) of a [`device_number`].
pub const fn device_parts(device: u64) -> (u32, u32) {
    let major = (device >> 8 & 0xfff) | (device >> 32 & !0xfff);
    let minor = (device & 0xff) | (device >> 12 & 0xffff_ff00);
    (major as u32, minor as u32)
}

/// Attributes to change; None stays as it is (chmod, chown, utimensat).
#[derive(Clone, Copy, Debug, Default)]
pub struct AttributeChanges {
    pub permissions: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub accessed: Option<Timestamp>,
    pub modified: Option<Timestamp>,
}

/// What [`Inode::create`] makes.
#[derive(Clone, Copy, Debug)]
pub enum NewNode<'a> {
    File,
    Directory,
    /// With its target.
    Symlink(&'a [u8]),
    Fifo,
    /// The name of a bound AF_UNIX socket.
    Socket,
    CharDevice(u64),
    BlockDevice(u64),
}

impl NewNode<'_> {
    pub fn kind(&self) -> FileKind {
        match self {
            Self::File => FileKind::Regular,
            Self::Directory => FileKind::Directory,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
        }
    }
}

/// One directory entry, as [`Inode::read_directory`] lists it. `.` and `..` are the VFS's.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    pub name: &'a [u8],
    pub inode: u64,
    pub kind: FileKind,
    /// The cursor of the entry after this one (`d_off`).
    pub next: u64,
}

/// Called for each entry; false stops the listing *before* this entry.
pub type EachEntry<'a> = &'a mut dyn FnMut(&DirEntry<'_>) -> bool;

/// Where a symbolic link leads.
pub enum LinkTarget {
    Path(Vec<u8>),
    /// Straight to an object, whatever the link's text says (`/proc/self/fd/N`, `/proc/self/exe`).
    Object(Location),
}

/// renameat2(2)'s flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// fallocate(2)'s modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    Reserve {
        keep_size: bool,
    },
    /// FALLOC_FL_PUNCH_HOLE (with KEEP_SIZE, as Linux demands).
    PunchHole,
    ZeroRange {
        keep_size: bool,
    },
}

/// A file, directory, link or device of one file system.
///
/// Names are single components, at most 255 bytes, without `/` and NUL, and never `.` or `..`: the
/// VFS sees to it. The VFS also refuses changes on read-only mounts. Defaults answer as a kind of
/// file that does not have the operation. Any call may sleep; none may be made under a spin lock.
pub trait Inode: Any + Send + Sync {
    /// Does no I/O.
    fn kind(&self) -> FileKind;
    fn metadata(&self) -> FsResult<Metadata>;
    fn set_attributes(&self, _changes: &AttributeChanges) -> FsResult<()> {
        Err(FsError::NotPermitted)
    }

    // --- directories ---
    fn lookup(&self, _name: &[u8]) -> FsResult<Arc<dyn Inode>> {
        Err(FsError::NotDirectory)
    }
    /// Whether the VFS may remember [`Inode::lookup`]'s answers, found or not, until a change goes
    /// through the VFS. False where entries come and go by themselves (/proc).
    fn lookups_cacheable(&self) -> bool {
        true
    }
    /// [`FsError::Exists`] if the name is taken. `permissions` have the umask applied.
    fn create(&self, _name: &[u8], _node: NewNode<'_>, _permissions: u16) -> FsResult<Arc<dyn Inode>> {
        Err(FsError::NotPermitted)
    }
    /// A hard link to `target`, which is of this file system and no directory.
    fn link(&self, _name: &[u8], _target: &Arc<dyn Inode>) -> FsResult<()> {
        Err(FsError::NotPermitted)
    }
    /// Removes a name that is no directory's; the file lives on while it is open or mapped.
    fn unlink(&self, _name: &[u8]) -> FsResult<()> {
        Err(FsError::NotPermitted)
    }
    fn remove_directory(&self, _name: &[u8]) -> FsResult<()> {
        Err(FsError::NotPermitted)
    }
    /// `to_directory` is of the same file system. The VFS has checked that a directory does not
    /// move below itself, and runs one rename a file system at a time.
    fn rename(&self, _name: &[u8], _to_directory: &Arc<dyn Inode>, _to_name: &[u8], _mode: RenameMode) -> FsResult<()> {
        Err(FsError::NotPermitted)
    }
    /// Lists from `cursor` on (0 at first, then [`DirEntry::next`]); the result is the cursor to go on
    /// from. `each` may run under the directory's lock: it must not call back or touch application
    /// memory.
    fn read_directory(&self, _cursor: u64, _each: EachEntry<'_>) -> FsResult<u64> {
        Err(FsError::NotDirectory)
    }
    /// An unnamed regular file (O_TMPFILE).
    fn create_unnamed(&self, _permissions: u16) -> FsResult<Arc<dyn Inode>> {
        Err(FsError::NotSupported)
    }

    // --- symbolic links ---
    fn read_link(&self) -> FsResult<Vec<u8>> {
        Err(FsError::Invalid)
    }
    /// What path walk follows. `Object` for magic links.
    fn follow(&self) -> FsResult<LinkTarget> {
        self.read_link().map(LinkTarget::Path)
    }

    // --- content ---
    /// The object that reads and writes go to; called at each open, not for O_PATH. A regular file
    /// usually answers with itself. O_TRUNC is done by the VFS.
    fn open(self: Arc<Self>, flags: OpenFlags) -> FsResult<Arc<dyn FileOps>>;
    fn truncate(&self, _size: u64) -> FsResult<()> {
        Err(FsError::Invalid)
    }
    fn allocate(&self, _mode: AllocateMode, _offset: u64, _len: u64) -> FsResult<()> {
        Err(FsError::NotSupported)
    }
    /// Pages for mmap; None if the file cannot be mapped (ENODEV).
    fn pager(self: Arc<Self>) -> Option<Arc<dyn Pager>> {
        None
    }
    /// Writes to the medium what is only in memory.
    fn sync(&self) -> FsResult<()> {
        Ok(())
    }
}

impl dyn Inode {
    /// The inode as a file system's own type.
    pub fn downcast_ref<T: Inode>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// statfs(2).
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystemStatus {
    /// `f_type`, the magic number of statfs(2).
    pub magic: u64,
    pub block_size: u32,
    /// In blocks.
    pub blocks: u64,
    pub blocks_free: u64,
    pub files: u64,
    pub files_free: u64,
    pub name_max: u32,
}

/// A file system that can be mounted.
pub trait FileSystem: Send + Sync {
    /// As `/proc/mounts` names it: `erofs`, `tmpfs`, `proc`.
    fn type_name(&self) -> &'static str;
    fn root(&self) -> Arc<dyn Inode>;
    fn status(&self) -> FileSystemStatus;
    /// `st_dev` of its files, in [`device_number`]'s encoding.
    fn device(&self) -> u64;
    /// It can never be written (EROFS): its mounts are read-only whatever they ask for.
    fn is_read_only(&self) -> bool {
        false
    }
    fn sync(&self) -> FsResult<()> {
        Ok(())
    }
}

/// A fresh device number for a file system without a device (major 0), as Linux hands them out.
pub fn anonymous_device() -> u64 {
    use core::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    device_number(0, NEXT.fetch_add(1, Ordering::Relaxed))
}
