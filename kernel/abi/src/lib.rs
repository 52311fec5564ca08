//! The agreement between the guest kernel and the host tools: how a machine is told what to run
//! ([`boot`]), what it reports on the console ([`control`]), how it ends ([`exit`]), how often it left the
//! guest ([`exits`]), how a pipe's bytes reach it over the console ([`input`]), and the symbol table that
//! host tools put into the kernel image ([`ksyms`]).
//!
//! Pure data and text: no I/O, no hardware, tested on the host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod boot;
pub mod control;
pub mod exit;
pub mod exits;
pub mod input;
pub mod ksyms;
mod percent;

pub use boot::{BootConfig, ConfigError, ConsoleDevice, ConsoleInput, LogLevel, MmioDevice, Root};
pub use exits::Exits;
