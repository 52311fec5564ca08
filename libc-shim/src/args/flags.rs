//! Bit sets among the arguments. Values: Linux' UAPI headers for x86-64.
use alloc::string::String;
use core::fmt::Write;

use super::Arg;

/// Writes the names of the set bits, then what is left in hexadecimal; `none` if nothing is set.
fn print_bits(out: &mut String, bits: u64, prefix: &str, names: &[(u64, &str)], none: &str) {
    let mut left = bits;
    let mut separator = "";
    for (value, name) in names {
        if *value != 0 && left & value == *value {
            let _ = write!(out, "{separator}{prefix}{name}");
            left &= !value;
            separator = "|";
        }
    }
    if left != 0 {
        let _ = write!(out, "{separator}{left:#x}");
    } else if separator.is_empty() {
        out.push_str(none);
    }
}

macro_rules! flag_args {
    ($($(#[$doc:meta])* $name:ident: $prefix:literal, $none:literal { $($bit:ident = $value:expr),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub struct $name(pub u64);

        #[allow(dead_code)]
        impl $name {
            $(pub const $bit: u64 = $value;)*
            /// All bits that are known.
            pub const KNOWN: u64 = 0 $(| $value)*;

            pub fn has(self, bits: u64) -> bool {
                self.0 & bits == bits
            }
        }

        impl Arg for $name {
            fn decode(raw: u64) -> Self {
                // All flag arguments are ints: the upper half of the register is undefined.
                Self(raw & 0xffff_ffff)
            }
            fn print(&self, out: &mut String) {
                print_bits(out, self.0, $prefix, &[$(($value, stringify!($bit))),*], $none);
            }
        }
    )*};
}

flag_args! {
    /// mmap's and mprotect's protection.
    Prot: "PROT_", "PROT_NONE" {
        READ = 1, WRITE = 2, EXEC = 4, GROWSDOWN = 0x0100_0000, GROWSUP = 0x0200_0000,
    }
    MapFlags: "MAP_", "0" {
        SHARED_VALIDATE = 3, SHARED = 1, PRIVATE = 2, FIXED = 0x10, ANONYMOUS = 0x20, BIT32 = 0x40,
        GROWSDOWN = 0x100, DENYWRITE = 0x800, EXECUTABLE = 0x1000, LOCKED = 0x2000, NORESERVE = 0x4000,
        POPULATE = 0x8000, NONBLOCK = 0x1_0000, STACK = 0x2_0000, HUGETLB = 0x4_0000, SYNC = 0x8_0000,
        FIXED_NOREPLACE = 0x10_0000,
    }
    RemapFlags: "MREMAP_", "0" { MAYMOVE = 1, FIXED = 2, DONTUNMAP = 4 }
    MsyncFlags: "MS_", "0" { ASYNC = 1, INVALIDATE = 2, SYNC = 4 }
    CloneFlags: "CLONE_", "0" {
        VM = 0x100, FS = 0x200, FILES = 0x400, SIGHAND = 0x800, PIDFD = 0x1000, PTRACE = 0x2000,
        VFORK = 0x4000, PARENT = 0x8000, THREAD = 0x1_0000, NEWNS = 0x2_0000, SYSVSEM = 0x4_0000,
        SETTLS = 0x8_0000, PARENT_SETTID = 0x10_0000, CHILD_CLEARTID = 0x20_0000, DETACHED = 0x40_0000,
        UNTRACED = 0x80_0000, CHILD_SETTID = 0x100_0000, NEWCGROUP = 0x200_0000, NEWUTS = 0x400_0000,
        NEWIPC = 0x800_0000, NEWUSER = 0x1000_0000, NEWPID = 0x2000_0000, NEWNET = 0x4000_0000,
        IO = 0x8000_0000,
    }
    OpenFlags: "O_", "O_RDONLY" {
        RDWR = 2, WRONLY = 1, CREAT = 0o100, EXCL = 0o200, NOCTTY = 0o400, TRUNC = 0o1000,
        APPEND = 0o2000, NONBLOCK = 0o4000, SYNC = 0o4010000, DSYNC = 0o10000, ASYNC = 0o20000,
        DIRECT = 0o40000, LARGEFILE = 0o100000, TMPFILE = 0o20200000, DIRECTORY = 0o200000,
        NOFOLLOW = 0o400000, NOATIME = 0o1000000, CLOEXEC = 0o2000000, PATH = 0o10000000,
    }
    AtFlags: "AT_", "0" {
        SYMLINK_NOFOLLOW = 0x100, REMOVEDIR = 0x200, SYMLINK_FOLLOW = 0x400, NO_AUTOMOUNT = 0x800,
        EMPTY_PATH = 0x1000, STATX_FORCE_SYNC = 0x2000, STATX_DONT_SYNC = 0x4000,
    }
    /// faccessat's: AT_EACCESS shares its bit with AT_REMOVEDIR.
    AccessFlags: "AT_", "0" { SYMLINK_NOFOLLOW = 0x100, EACCESS = 0x200, EMPTY_PATH = 0x1000 }
    AccessMode: "", "F_OK" { R_OK = 4, W_OK = 2, X_OK = 1 }
    RenameFlags: "RENAME_", "0" { NOREPLACE = 1, EXCHANGE = 2, WHITEOUT = 4 }
    AllocateFlags: "FALLOC_FL_", "0" {
        KEEP_SIZE = 1, PUNCH_HOLE = 2, NO_HIDE_STALE = 4, COLLAPSE_RANGE = 8, ZERO_RANGE = 16,
        INSERT_RANGE = 32, UNSHARE_RANGE = 64,
    }
    RandomFlags: "GRND_", "0" { NONBLOCK = 1, RANDOM = 2, INSECURE = 4 }
    TimerFlags: "TIMER_", "0" { ABSTIME = 1 }
    TimerfdFlags: "TFD_TIMER_", "0" { ABSTIME = 1, CANCEL_ON_SET = 2 }
    EventFlags: "EFD_", "0" { SEMAPHORE = 1, NONBLOCK = 0o4000, CLOEXEC = 0o2000000 }
    EpollFlags: "EPOLL_", "0" { CLOEXEC = 0o2000000 }
    MemfdFlags: "MFD_", "0" { CLOEXEC = 1, ALLOW_SEALING = 2, HUGETLB = 4, NOEXEC_SEAL = 8, EXEC = 16 }
    RwFlags: "RWF_", "0" { HIPRI = 1, DSYNC = 2, SYNC = 4, NOWAIT = 8, APPEND = 16 }
    StatxMask: "STATX_", "0" {
        BASIC_STATS = 0x7ff, BTIME = 0x800, MNT_ID = 0x1000, TYPE = 1, MODE = 2, NLINK = 4, UID = 8,
        GID = 16, ATIME = 32, MTIME = 64, CTIME = 128, INO = 256, SIZE = 512, BLOCKS = 1024, RESERVED = 0x8000_0000,
    }
    FlockOp: "LOCK_", "0" { SH = 1, EX = 2, NB = 4, UN = 8 }
    MlockallFlags: "MCL_", "0" { CURRENT = 1, FUTURE = 2, ONFAULT = 4 }
    RseqFlags: "RSEQ_FLAG_", "0" { UNREGISTER = 1 }
}
