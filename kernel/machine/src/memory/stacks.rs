#![allow(unsafe_code, reason = "fills fresh stack pages through the direct map")]
//! Kernel stacks: resident, with an unmapped page below each.
//!
//! Stacks of ended tasks are kept for the next ones, mapped, so a thread costs no page-table work and
//! no TLB flush.
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use rt::page::OutOfFrames;

use super::{
    frames,
    paging::{self, KERNEL_TABLES, PAGE, WRITABLE},
};
use crate::cpu::lock::IrqSpin;

pub const WINDOW: u64 = 0xffff_c900_0000_0000;

/// Bytes of a task's kernel stack.
pub const STACK_BYTES: usize = 32768;
/// What unused stack reads as, for the high-water mark.
const UNTOUCHED: u64 = 0x5aac_c0de_5aac_c0de;

static NEXT: AtomicU64 = AtomicU64::new(WINDOW);
/// Top of the first free stack; its highest word holds the next one's, 0 ends the list.
static FREE: IrqSpin<u64> = IrqSpin::new(0);

/// A task's kernel stack. Dropped only when no CPU runs on it any more.
pub struct KernelStack {
    top: u64,
}

fn link(top: u64) -> *mut u64 {
    (top - 8) as *mut u64
}

impl KernelStack {
    pub fn new() -> Result<Self, OutOfFrames> {
        let mut free = FREE.lock();
        if *free != 0 {
            let top = *free;
            // SAFETY: stacks on the list are mapped, and nobody runs on them.
            *free = unsafe { link(top).read() };
            return Ok(Self { top });
        }
        drop(free);
        map_fresh(STACK_BYTES).map(|top| Self { top })
    }

    /// One past the highest address; aligned to 16.
    pub fn top(&self) -> u64 {
        self.top
    }

    pub fn low(&self) -> u64 {
        self.top - STACK_BYTES as u64
    }

    /// Most bytes ever used of this stack, by this task or its predecessors.
    pub fn high_water_bytes(&self) -> usize {
        let words = self.low() as *const u64;
        let count = STACK_BYTES / 8;
        // SAFETY: the stack is mapped for its whole life.
        let untouched = (0..count).take_while(|&i| unsafe { words.add(i).read_volatile() } == UNTOUCHED);
        STACK_BYTES - 8 * untouched.count()
    }
}

impl Drop for KernelStack {
    fn drop(&mut self) {
        let mut free = FREE.lock();
        // SAFETY: the stack is mapped and unused from here on.
        unsafe { link(self.top).write(*free) };
        *free = self.top;
    }
}

/// A stack for good (IST, idle, panic): its top. Without memory for it the machine ends: a CPU cannot
/// run without.
pub fn leak(bytes: usize) -> u64 {
    map_fresh(bytes).unwrap_or_else(|_| crate::boot::out_of_memory(format_args!("none for a CPU's stacks")))
}

fn map_fresh(bytes: usize) -> Result<u64, OutOfFrames> {
    let bytes = (bytes as u64).next_multiple_of(PAGE);
    let low = NEXT.fetch_add(bytes + PAGE, Ordering::Relaxed) + PAGE;
    for address in (low..low + bytes).step_by(PAGE as usize) {
        if map_page(address).is_none() {
            unmap(low, address);
            return Err(OutOfFrames);
        }
    }
    Ok(low + bytes)
}

fn map_page(address: u64) -> Option<()> {
    let _tables = KERNEL_TABLES.lock();
    // The table first: then mapping the page cannot fail.
    let _entry = paging::entry(address)?;
    let frame = frames::take(false).ok()?;
    // SAFETY: the frame is ours and direct-mapped.
    unsafe {
        let words = paging::direct(frame) as *mut u64;
        for word in 0..PAGE as usize / 8 {
            ptr::write(words.add(word), UNTOUCHED);
        }
    }
    paging::map_kernel_page(address, frame, WRITABLE)
}

/// Gives the pages of a stack back for which there was not enough memory. Nobody has used them, so that no
/// TLB has them; the addresses are not used again.
fn unmap(low: u64, end: u64) {
    let _tables = KERNEL_TABLES.lock();
    for address in (low..end).step_by(PAGE as usize) {
        if let Some(frame) = paging::unmap_kernel_page(address) {
            frames::unreference(frame);
        }
    }
}
