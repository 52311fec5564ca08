//! The kernel's pure parts: data structures, policies and parsers that touch no hardware.
//!
//! Time, randomness and memory content are arguments, so everything here is tested on the host,
//! deterministically. Nothing here locks: the owner of a structure does.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod apic;
pub mod atomic;
pub mod buddy;
pub mod clock;
pub mod cmos_clock;
pub mod counter_sync;
pub mod cpuid;
pub mod elf;
pub mod erofs;
pub mod fd_table;
pub mod futex;
pub mod idle_poll;
pub mod mail_stack;
pub mod park_word;
pub mod path;
pub mod pci;
pub mod physical;
pub mod pvclock;
pub mod pvh;
pub mod random;
pub mod run_queue;
pub mod timers;
pub mod virtio;
pub mod vma;
pub mod xstate;
