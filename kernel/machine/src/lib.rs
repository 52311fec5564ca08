//! The machine: the only crate that touches hardware.
//!
//! It implements [`rt::Runtime`] over x86-64: boot, CPUs, traps, memory, tasks, time and drivers.
//! Nothing above is named here; application system calls, faults and signals go up through
//! [`rt::Personality`], file pages come in through [`rt::space::Pager`].
//!
//! # Lock order
//! Outer to inner; a lock may be taken while those before it are held, never the other way round.
//! 1. sleeping locks of the services ([`rt::sync::Mutex`])
//! 2. reclaim's own (sleeping): whoever allocates a page may hold any of the first
//! 3. [`memory::space`]'s lock over VMAs and page tables (spin, interrupts on)
//! 4. the services' leaf spin locks ([`rt::sync::SpinLock`]): a pager is asked for cached pages under the
//!    space's lock, and never calls the address space under its own
//! 5. wait queues and other [`rt::sync::IrqLock`]s of the services
//! 6. a CPU's timer queue, then a CPU's run queue ([`tasks::scheduler`]; interrupts off)
//! 7. heap and frame allocator (interrupts off)
//! 8. the console (interrupts off; a panic breaks it)
//!
//! TLB shootdown waits for other CPUs: under the first three only, with interrupts on.
#![no_std]

extern crate alloc;

pub mod boot;
pub mod console;
pub mod cpu;
pub mod drivers;
pub mod memory;
pub mod panic;
pub mod random;
pub mod runtime;
pub mod selftest;
pub mod tasks;
pub mod time;
pub mod trap;
