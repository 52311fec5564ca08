//! libc-shim: the Linux personality, what lies under a stock C library.
//!
//! [`dispatch`] gets system calls and faults from the machine through [`rt::Personality`]; [`table`]
//! has one row a call, with the handler, the argument types and the documentation; the families
//! (`mm`, `signal`, `futex`, `threads`, `time`, `files`, …) translate between Linux' ABI and the
//! services of `rt` and `fs`. [`loader`] makes a task out of an ELF file; [`procfs`] shows it all
//! under /proc and /sys. Errno exists in this crate only ([`errno`]).
//!
//! # Locking
//! See [`program`]: spin locks for state, a sleeping lock for the heap end. No lock is held over a
//! copy to or from application memory.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod args;
mod call;
mod dispatch;
mod errno;
mod files;
mod futex;
mod identity;
mod limits;
mod loader;
mod mm;
mod procfs;
mod program;
mod sched;
mod signal;
mod start;
mod sysno;
mod system;
mod table;
#[cfg(test)]
mod tests;
mod thread;
mod threads;
mod time;
mod timers;
mod unsupported;

pub use start::{StartError, start_init};
