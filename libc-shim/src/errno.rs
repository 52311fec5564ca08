//! Errno: Linux' error numbers, and how the errors of the services below map to them.
//!
//! Errno exists in this crate only. Each mapping stands here once; a handler that needs another
//! number for a case maps it itself, with the man page that says so.
use core::fmt;

use fs::FsError;
use logic::fd_table::TableError;
use rt::{page::OutOfFrames, space::SpaceError, task::Parked, user::BadAddress};

/// An error number. Those from 512 on never reach an application: see [`Errno::is_restart`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub u16);

/// What a system call gives: the value of rax, or an error.
pub type SysResult<T = u64> = Result<T, Errno>;

macro_rules! errnos {
    ($($name:ident = $number:literal,)*) => {
        $(pub const $name: Errno = Errno($number);)*
        const NAMES: &[(u16, &str)] = &[$(($number, stringify!($name)),)*];
    };
}

errnos! {
    EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, ENOEXEC = 8, EBADF = 9,
    ECHILD = 10, EAGAIN = 11, ENOMEM = 12, EACCES = 13, EFAULT = 14, EBUSY = 16, EEXIST = 17,
    EXDEV = 18, ENODEV = 19, ENOTDIR = 20, EISDIR = 21, EINVAL = 22, EMFILE = 24, ENOTTY = 25,
    ETXTBSY = 26, EFBIG = 27, ENOSPC = 28, ESPIPE = 29, EROFS = 30, EMLINK = 31, EPIPE = 32,
    ERANGE = 34, ENAMETOOLONG = 36, ENOLCK = 37, ENOSYS = 38,
    ENOTEMPTY = 39, ELOOP = 40, ENODATA = 61, EOVERFLOW = 75, ELIBBAD = 80,
    ENOTSOCK = 88, EPROTONOSUPPORT = 93, EOPNOTSUPP = 95, EAFNOSUPPORT = 97, EISCONN = 106, ETIMEDOUT = 110,
    ECONNREFUSED = 111,
    // Linux' own internal numbers, for the same purposes.
    ERESTARTSYS = 512, ERESTARTNOHAND = 514, ERESTART_RESTARTBLOCK = 516,
}

impl Errno {
    /// The call was interrupted and is to be decided about when signals are delivered:
    /// `ERESTARTSYS` restarts unless a handler without SA_RESTART ran, the others restart only if
    /// no handler ran (signal(7), "Interruption of system calls").
    pub fn is_restart(self) -> bool {
        self.0 >= 512
    }

    /// The value of rax.
    pub fn as_result(self) -> u64 {
        (-i64::from(self.0)) as u64
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<BadAddress> for Errno {
    fn from(_: BadAddress) -> Self {
        EFAULT
    }
}

impl From<OutOfFrames> for Errno {
    fn from(_: OutOfFrames) -> Self {
        ENOMEM
    }
}

impl From<SpaceError> for Errno {
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::Invalid => EINVAL,
            SpaceError::NoMemory | SpaceError::NotMapped => ENOMEM,
            SpaceError::Exists => EEXIST,
            SpaceError::ReadOnly => EACCES,
        }
    }
}

impl From<TableError> for Errno {
    fn from(error: TableError) -> Self {
        match error {
            TableError::LimitReached => EMFILE,
            TableError::OutOfMemory => ENOMEM,
        }
    }
}

impl From<Parked> for Errno {
    fn from(parked: Parked) -> Self {
        match parked {
            Parked::TimedOut => ETIMEDOUT,
            Parked::Interrupted | Parked::Woken => ERESTARTSYS,
        }
    }
}

impl From<FsError> for Errno {
    fn from(error: FsError) -> Self {
        match error {
            FsError::NotFound => ENOENT,
            FsError::NotDirectory => ENOTDIR,
            FsError::IsDirectory => EISDIR,
            FsError::Exists => EEXIST,
            FsError::NotEmpty => ENOTEMPTY,
            FsError::ReadOnly => EROFS,
            FsError::NoSpace => ENOSPC,
            FsError::Loop => ELOOP,
            FsError::NameTooLong => ENAMETOOLONG,
            FsError::Invalid => EINVAL,
            FsError::Permission => EACCES,
            FsError::NotPermitted => EPERM,
            FsError::BadDescriptor => EBADF,
            FsError::Io => EIO,
            FsError::OutOfMemory => ENOMEM,
            FsError::WouldBlock => EAGAIN,
            FsError::Interrupted => ERESTARTSYS,
            FsError::TimedOut => ETIMEDOUT,
            FsError::BrokenPipe => EPIPE,
            FsError::NotSeekable => ESPIPE,
            FsError::NotSupported => EOPNOTSUPP,
            FsError::CrossDevice => EXDEV,
            FsError::TooManyOpen => EMFILE,
            FsError::TooManyLinks => EMLINK,
            FsError::BadAddress => EFAULT,
            FsError::NoDevice => ENODEV,
            FsError::NoPeer => ENXIO,
            FsError::NotTty => ENOTTY,
            FsError::Busy => EBUSY,
            FsError::TooBig => EFBIG,
            FsError::Overflow => EOVERFLOW,
            FsError::NoProgram => ESRCH,
            FsError::TextBusy => ETXTBSY,
            FsError::NoData => ENODATA,
        }
    }
}
