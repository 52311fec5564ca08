//! Copy on write: a private mapping's own copies of a file's pages.
//!
//! Who writes page after page is about to write the next ones as well (a loader that relocates, the JVM with
//! its archive of classes): from the fourth fault in a row on, some pages behind are copied ahead, twice as
//! many each time. A row goes on only if the last page copied ahead was written, so that a program which
//! writes here and there has hardly a copy that it does not need.
//!
//! Deviation from Linux: a page that is copied ahead shows no later change of the file any more, though the
//! program has not written it yet; mmap(2) leaves that unspecified.
//!
//! # Locking
//! Every function needs the space's lock.
use core::sync::atomic::{AtomicU64, Ordering};

use logic::vma::Vma;

use super::{
    Source,
    entries::{self, Batch, PRIVATE, Use},
};
use crate::memory::{
    frames,
    paging::{ADDRESS_MASK, DIRTY, PAGE, PRESENT, WRITABLE},
};

/// Faults in a row from which on more than one page is copied.
const IN_A_ROW: u64 = 4;
/// Pages copied ahead, at most.
const MOST: u64 = 15;

/// Where the next fault would be that continues the row, and how many faults were in it.
static NEXT: AtomicU64 = AtomicU64::new(0);
static ROW: AtomicU64 = AtomicU64::new(0);

/// Notes a write fault, whose page gets a copy: how many of those behind it are to get one, too. `entry` is
/// the page's own.
pub fn ahead(vma: &Vma<Source>, address: u64, entry: *mut u64) -> u64 {
    let is_first = (entry as u64).is_multiple_of(PAGE);
    let goes_on = NEXT.load(Ordering::Relaxed) == address
        && (is_first || entries::read(entry.wrapping_sub(1)) & (PRIVATE | DIRTY) == PRIVATE | DIRTY);
    let row = if goes_on { ROW.load(Ordering::Relaxed) + 1 } else { 1 };
    ROW.store(row, Ordering::Relaxed);
    NEXT.store(address + PAGE, Ordering::Relaxed);
    if row < IN_A_ROW || frames::is_short() {
        return 0;
    }
    let in_table = (PAGE - 8 - entry as u64 % PAGE) / 8;
    let in_mapping = (vma.end - address) / PAGE - 1;
    (1 << (row - IN_A_ROW).min(4)).min(MOST).min(in_table).min(in_mapping)
}

/// Copies up to `count` pages from `address` on, as far as the file's own are mapped and there is memory:
/// how many. `entry` is the first one's.
pub fn copy(vma: &Vma<Source>, address: u64, entry: *mut u64, count: u64, first_used: Use) -> u64 {
    let mut batch = Batch::new();
    let mut copied = 0;
    while copied < count {
        let (entry, address) = (entry.wrapping_add(copied as usize), address + copied * PAGE);
        let value = entries::read(entry);
        if value & (PRESENT | PRIVATE | WRITABLE) != PRESENT {
            break;
        }
        let Ok(copy) = frames::take_page(false) else { break };
        frames::copy(value & ADDRESS_MASK, copy);
        let used = if copied == 0 { first_used } else { Use::Ahead };
        // Another CPU that still read the old page would miss this program's write.
        batch.add(entries::exchange(entry, copy | entries::rights_for(vma.prot, used) | PRIVATE), address);
        NEXT.store(address + PAGE, Ordering::Relaxed);
        copied += 1;
    }
    batch.finish();
    copied
}
