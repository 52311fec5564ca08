//! The one error type of the file subsystem.
//!
//! Errno stops at the system-call ABI: libc-shim maps these to Linux' numbers, nothing below knows
//! them.
use rt::{block::BlockError, page::OutOfFrames, space::PagerError, task::Parked, user::BadAddress};

/// Why a file operation failed. The comment names the errno that Linux' man pages give the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsError {
    /// ENOENT
    NotFound,
    /// ENOTDIR
    NotDirectory,
    /// EISDIR
    IsDirectory,
    /// EEXIST
    Exists,
    /// ENOTEMPTY
    NotEmpty,
    /// EROFS
    ReadOnly,
    /// ENOSPC
    NoSpace,
    /// ELOOP: too many symbolic links, or O_NOFOLLOW met one.
    Loop,
    /// ENAMETOOLONG
    NameTooLong,
    /// EINVAL
    Invalid,
    /// EACCES
    Permission,
    /// EPERM: the object never allows this (a hard link to a directory).
    NotPermitted,
    /// EBADF: the descriptor is not open for this.
    BadDescriptor,
    /// EIO: the device failed, or the image is corrupt.
    Io,
    /// ENOMEM
    OutOfMemory,
    /// EAGAIN: it would block, and the caller does not want to.
    WouldBlock,
    /// EINTR: a signal came first.
    Interrupted,
    /// ETIMEDOUT
    TimedOut,
    /// EPIPE; the caller raises SIGPIPE as well.
    BrokenPipe,
    /// ESPIPE: a stream has no position.
    NotSeekable,
    /// EOPNOTSUPP
    NotSupported,
    /// EXDEV
    CrossDevice,
    /// EMFILE
    TooManyOpen,
    /// EMLINK
    TooManyLinks,
    /// EFAULT
    BadAddress,
    /// ENODEV: no such device, or it cannot be mapped.
    NoDevice,
    /// ENXIO: nobody at the other end (a socket's path, a FIFO without reader).
    NoPeer,
    /// ENOTTY: this object does not know that ioctl.
    NotTty,
    /// EBUSY: a mount point, or in use.
    Busy,
    /// EFBIG
    TooBig,
    /// EOVERFLOW
    Overflow,
    /// ESRCH: a /proc entry whose program has ended.
    NoProgram,
    /// ETXTBSY
    TextBusy,
    /// ENODATA: no such extended attribute, or no data beyond this offset (ENXIO for lseek).
    NoData,
}

pub type FsResult<T> = Result<T, FsError>;

impl From<BadAddress> for FsError {
    fn from(_: BadAddress) -> Self {
        Self::BadAddress
    }
}

impl From<OutOfFrames> for FsError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfMemory
    }
}

impl From<BlockError> for FsError {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::ReadOnly => Self::ReadOnly,
            BlockError::OutOfRange | BlockError::Io => Self::Io,
        }
    }
}

impl From<FsError> for PagerError {
    fn from(error: FsError) -> Self {
        match error {
            FsError::OutOfMemory => Self::OutOfFrames,
            FsError::Invalid => Self::BeyondEnd,
            // A full file system too: SIGBUS, as on Linux.
            _ => Self::Io,
        }
    }
}

impl From<PagerError> for FsError {
    fn from(error: PagerError) -> Self {
        match error {
            PagerError::BeyondEnd => Self::Invalid,
            PagerError::Io => Self::Io,
            PagerError::OutOfFrames => Self::OutOfMemory,
        }
    }
}

/// Formatting into memory does not fail; this is for `?` in generated content.
impl From<core::fmt::Error> for FsError {
    fn from(_: core::fmt::Error) -> Self {
        Self::Invalid
    }
}

/// How an interrupted or timed-out wait looks to the caller.
impl From<Parked> for FsError {
    fn from(parked: Parked) -> Self {
        match parked {
            Parked::TimedOut => Self::TimedOut,
            Parked::Interrupted | Parked::Woken => Self::Interrupted,
        }
    }
}
