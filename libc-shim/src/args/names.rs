//! Enumerations among the arguments. Values: Linux' UAPI headers for x86-64.
use alloc::string::String;
use core::fmt::Write;

use super::Arg;

macro_rules! name_args {
    ($($(#[$doc:meta])* $name:ident: $prefix:literal { $($item:ident = $value:expr),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub struct $name(pub i32);

        #[allow(dead_code)]
        impl $name {
            $(pub const $item: i32 = $value;)*

            /// The Linux name, if the value has one.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(concat!($prefix, stringify!($item))),)*
                    _ => None,
                }
            }
        }

        impl Arg for $name {
            fn decode(raw: u64) -> Self {
                Self(raw as i32)
            }
            fn print(&self, out: &mut String) {
                match self.name() {
                    Some(name) => out.push_str(name),
                    None => {
                        let _ = write!(out, "{:#x}", self.0);
                    }
                }
            }
        }
    )*};
}

name_args! {
    Signal: "SIG" {
        HUP = 1, INT = 2, QUIT = 3, ILL = 4, TRAP = 5, ABRT = 6, BUS = 7, FPE = 8, KILL = 9, USR1 = 10,
        SEGV = 11, USR2 = 12, PIPE = 13, ALRM = 14, TERM = 15, STKFLT = 16, CHLD = 17, CONT = 18,
        STOP = 19, TSTP = 20, TTIN = 21, TTOU = 22, URG = 23, XCPU = 24, XFSZ = 25, VTALRM = 26,
        PROF = 27, WINCH = 28, IO = 29, PWR = 30, SYS = 31,
    }
    ClockId: "CLOCK_" {
        REALTIME = 0, MONOTONIC = 1, PROCESS_CPUTIME_ID = 2, THREAD_CPUTIME_ID = 3, MONOTONIC_RAW = 4,
        REALTIME_COARSE = 5, MONOTONIC_COARSE = 6, BOOTTIME = 7, REALTIME_ALARM = 8,
        BOOTTIME_ALARM = 9, TAI = 11,
    }
    MaskHow: "SIG_" { BLOCK = 0, UNBLOCK = 1, SETMASK = 2 }
    Advice: "MADV_" {
        NORMAL = 0, RANDOM = 1, SEQUENTIAL = 2, WILLNEED = 3, DONTNEED = 4, FREE = 8, REMOVE = 9,
        DONTFORK = 10, DOFORK = 11, MERGEABLE = 12, UNMERGEABLE = 13, HUGEPAGE = 14, NOHUGEPAGE = 15,
        DONTDUMP = 16, DODUMP = 17, WIPEONFORK = 18, KEEPONFORK = 19, COLD = 20, PAGEOUT = 21,
        POPULATE_READ = 22, POPULATE_WRITE = 23, COLLAPSE = 25,
    }
    Whence: "SEEK_" { SET = 0, CUR = 1, END = 2, DATA = 3, HOLE = 4 }
    FcntlOp: "F_" {
        DUPFD = 0, GETFD = 1, SETFD = 2, GETFL = 3, SETFL = 4, GETLK = 5, SETLK = 6, SETLKW = 7,
        SETOWN = 8, GETOWN = 9, SETSIG = 10, GETSIG = 11, OFD_GETLK = 36, OFD_SETLK = 37,
        OFD_SETLKW = 38, DUPFD_CLOEXEC = 1030, SETPIPE_SZ = 1031, GETPIPE_SZ = 1032, ADD_SEALS = 1033,
        GET_SEALS = 1034,
    }
    IoctlOp: "" {
        TCGETS = 0x5401, TCSETS = 0x5402, TCSETSW = 0x5403, TCSETSF = 0x5404, TIOCGPGRP = 0x540f, TIOCGWINSZ = 0x5413, FIONREAD = 0x541b,
        FIONBIO = 0x5421, FIONCLEX = 0x5450, FIOCLEX = 0x5451,
    }
    EpollOp: "EPOLL_CTL_" { ADD = 1, DEL = 2, MOD = 3 }
    ArchPrctlOp: "ARCH_" {
        SET_GS = 0x1001, SET_FS = 0x1002, GET_FS = 0x1003, GET_GS = 0x1004, GET_CPUID = 0x1011,
        SET_CPUID = 0x1012, CET_STATUS = 0x3001, SHSTK_ENABLE = 0x5001, SHSTK_STATUS = 0x5005,
    }
    PrctlOp: "PR_" {
        SET_PDEATHSIG = 1, GET_PDEATHSIG = 2, GET_DUMPABLE = 3, SET_DUMPABLE = 4, SET_NAME = 15,
        GET_NAME = 16, GET_SECCOMP = 21, SET_SECCOMP = 22, CAPBSET_READ = 23, SET_TIMERSLACK = 29,
        GET_TIMERSLACK = 30, SET_NO_NEW_PRIVS = 38, GET_NO_NEW_PRIVS = 39, GET_THP_DISABLE = 42,
        SET_THP_DISABLE = 41, SET_VMA = 0x5356_4d41,
    }
    Resource: "RLIMIT_" {
        CPU = 0, FSIZE = 1, DATA = 2, STACK = 3, CORE = 4, RSS = 5, NPROC = 6, NOFILE = 7, MEMLOCK = 8,
        AS = 9, LOCKS = 10, SIGPENDING = 11, MSGQUEUE = 12, NICE = 13, RTPRIO = 14, RTTIME = 15,
    }
    RusageWho: "RUSAGE_" { SELF = 0, CHILDREN = -1, THREAD = 1 }
    PriorityWhich: "PRIO_" { PROCESS = 0, PGRP = 1, USER = 2 }
    SchedPolicy: "SCHED_" { OTHER = 0, FIFO = 1, RR = 2, BATCH = 3, IDLE = 5, DEADLINE = 6 }
    MembarrierCmd: "MEMBARRIER_CMD_" {
        QUERY = 0, GLOBAL = 1, GLOBAL_EXPEDITED = 2, REGISTER_GLOBAL_EXPEDITED = 4,
        PRIVATE_EXPEDITED = 8, REGISTER_PRIVATE_EXPEDITED = 16,
    }
    SocketFamily: "AF_" { UNSPEC = 0, UNIX = 1, INET = 2, INET6 = 10, NETLINK = 16, PACKET = 17 }
    FadviseAdvice: "POSIX_FADV_" {
        NORMAL = 0, RANDOM = 1, SEQUENTIAL = 2, WILLNEED = 3, DONTNEED = 4, NOREUSE = 5,
    }
}

/// The operation of futex(2), with its two flags.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FutexOp(pub u32);

impl FutexOp {
    pub const WAIT: u32 = 0;
    pub const WAKE: u32 = 1;
    pub const REQUEUE: u32 = 3;
    pub const CMP_REQUEUE: u32 = 4;
    pub const WAKE_OP: u32 = 5;
    pub const WAIT_BITSET: u32 = 9;
    pub const WAKE_BITSET: u32 = 10;
    pub const PRIVATE: u32 = 128;
    pub const CLOCK_REALTIME: u32 = 256;

    /// Without the flags.
    pub fn command(self) -> u32 {
        self.0 & !(Self::PRIVATE | Self::CLOCK_REALTIME)
    }
}

impl Arg for FutexOp {
    fn decode(raw: u64) -> Self {
        Self(raw as u32)
    }
    fn print(&self, out: &mut String) {
        const NAMES: [&str; 14] = [
            "WAIT",
            "WAKE",
            "FD",
            "REQUEUE",
            "CMP_REQUEUE",
            "WAKE_OP",
            "LOCK_PI",
            "UNLOCK_PI",
            "TRYLOCK_PI",
            "WAIT_BITSET",
            "WAKE_BITSET",
            "WAIT_REQUEUE_PI",
            "CMP_REQUEUE_PI",
            "LOCK_PI2",
        ];
        match NAMES.get(self.command() as usize) {
            Some(name) => {
                let _ = write!(out, "FUTEX_{name}");
            }
            None => {
                let _ = write!(out, "{:#x}", self.command());
            }
        }
        if self.0 & Self::PRIVATE != 0 {
            out.push_str("_PRIVATE");
        }
        if self.0 & Self::CLOCK_REALTIME != 0 {
            out.push_str("|FUTEX_CLOCK_REALTIME");
        }
    }
}
