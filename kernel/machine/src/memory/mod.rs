//! Memory: frames, heap, page tables, the address space and copies of application memory.
//!
//! | range | what |
//! |---|---|
//! | 0x1_0000 .. 0x7fff_ffff_f000 | application mappings ([`space`]); below 40 GiB only on request |
//! | 0xffff_8880_0000_0000 .. | direct map of all RAM: writable, never executable ([`paging`]) |
//! | 0xffff_c900_0000_0000 .. | kernel stacks with guards ([`stacks`]), device windows ([`mmio`]) |
//! | 0xffff_ffff_8010_0000 .. | the kernel image: text, read-only data, data |
pub mod balloon;
pub mod early;
pub mod fault;
pub mod frames;
pub mod heap;
pub mod mmio;
pub mod paging;
pub mod reclaim;
mod slab;
pub mod space;
pub mod stacks;
pub mod tlb;
pub mod user;
mod zeroed;
