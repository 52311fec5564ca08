#![allow(unsafe_code, reason = "hands out raw memory before the allocators exist")]
//! Memory before the allocators: frames for page tables and frame records, taken in address order
//! from the RAM behind the kernel image.
use core::ptr;

use super::paging::{KERNEL_BASE, PAGE};
use crate::cpu::lock::IrqSpin;

/// Only this much is reachable through the boot tables.
const BOOT_REACH: u64 = 1 << 30;

struct Arena {
    next: u64,
    end: u64,
}

static ARENA: IrqSpin<Arena> = IrqSpin::new(Arena { next: 0, end: 0 });

/// Sets the physical range to take from.
pub fn init(start: u64, end: u64) {
    *ARENA.lock() = Arena { next: start.next_multiple_of(PAGE), end: end.min(BOOT_REACH) };
}

/// Physical address of `bytes` (rounded up to pages) of fresh, *not* zeroed memory. Ends the machine as
/// out of memory when it has too little; nothing can run then.
pub fn take(bytes: u64) -> u64 {
    let mut arena = ARENA.lock();
    let bytes = bytes.next_multiple_of(PAGE);
    if arena.end.saturating_sub(arena.next) < bytes {
        let there = arena.end.saturating_sub(arena.next) >> 10;
        crate::boot::out_of_memory(format_args!("boot needs {} KiB more, {there} KiB are left", bytes >> 10));
    }
    let taken = arena.next;
    arena.next += bytes;
    taken
}

pub fn take_zeroed_frame() -> u64 {
    let frame = take(PAGE);
    // SAFETY: the frame is unused RAM behind the kernel, below BOOT_REACH, all of which the boot tables
    // map at KERNEL_BASE; they are still in force.
    unsafe { ptr::write_bytes((KERNEL_BASE + frame) as *mut u8, 0, PAGE as usize) };
    frame
}

/// Ends early allocation; the result is the first physical address that was not handed out.
pub fn close() -> u64 {
    let mut arena = ARENA.lock();
    arena.end = arena.next;
    arena.next
}
