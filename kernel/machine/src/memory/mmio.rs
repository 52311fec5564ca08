//! Device registers in memory: uncached windows in the kernel's half.
use core::sync::atomic::{AtomicU64, Ordering};

use super::paging::{self, KERNEL_TABLES, PAGE, UNCACHED, WRITABLE, WRITE_THROUGH};

/// Windows are handed out upwards from here and never given back: devices do not go away.
const WINDOW: u64 = super::stacks::WINDOW + (256 << 30);

static NEXT: AtomicU64 = AtomicU64::new(WINDOW);

/// Maps `len` bytes of device registers at physical address `physical`, strongly uncached.
/// Panics when no page table can be had: devices are set up at boot.
pub fn map(physical: u64, len: u64) -> *mut u8 {
    let offset = physical % PAGE;
    let pages = (offset + len).div_ceil(PAGE);
    let start = NEXT.fetch_add((pages + 1) * PAGE, Ordering::Relaxed);
    let _tables = KERNEL_TABLES.lock();
    for page in 0..pages {
        paging::map_kernel_page(
            start + page * PAGE,
            physical - offset + page * PAGE,
            WRITABLE | UNCACHED | WRITE_THROUGH,
        )
        .unwrap_or_else(|| crate::boot::out_of_memory(format_args!("no page tables for a device window")));
    }
    (start + offset) as *mut u8
}
