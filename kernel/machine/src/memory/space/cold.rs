//! Taking file pages out of the page table that nobody used lately, so that their cache can free them.
//!
//! There is one page table and one tree of mappings, so no list of mappings per page is needed: a hand
//! goes round the file mappings by address and gives each page a second chance by its accessed bit. A
//! page that several mappings show leaves them one after the other.
//!
//! # Locking
//! The hand moves under the space's lock, a bounded number of entries at a time.
use core::sync::atomic::{AtomicU64, Ordering};

use super::{
    SPACE, Source,
    entries::{self, PRIVATE},
};
use crate::memory::{
    frames,
    paging::{self, ADDRESS_MASK, Leaf, PAGE, PRESENT, WRITABLE},
    tlb,
};

/// Where the hand is.
static HAND: AtomicU64 = AtomicU64::new(0);
/// Bytes of mappings looked at in one hold of the lock.
const STRETCH: u64 = 16 << 20;

/// What one step of the hand brought.
#[derive(Default)]
pub struct Swept {
    /// Pages taken out.
    pub unmapped: usize,
    /// The hand reached the end, and begins again.
    pub wrapped: bool,
}

/// Goes on with the hand until `wanted` pages are out, or the stretch or the address space ends.
pub fn unmap_cold(wanted: usize) -> Swept {
    let mut swept = Swept::default();
    let mut used: Option<(u64, u64)> = None;
    let tree = SPACE.vmas.lock();
    let mut left = STRETCH;
    let mut at = HAND.load(Ordering::Relaxed);
    while left > 0 && swept.unmapped < wanted {
        let Some(vma) = tree.find_first_from(at) else {
            at = 0;
            swept.wrapped = true;
            break;
        };
        let start = at.max(vma.start);
        let end =
            if matches!(vma.backing, Source::File(_)) { vma.end.min(start.saturating_add(left)) } else { vma.end };
        if matches!(vma.backing, Source::File(_)) {
            left -= end - start;
            paging::for_each_piece(start, end, |from, to, leaf| {
                let Leaf::Small(first) = leaf else { return };
                for (index, address) in (from..to).step_by(PAGE as usize).enumerate() {
                    match age(first.wrapping_add(index)) {
                        Aged::Out => swept.unmapped += 1,
                        Aged::Spared => used = Some((used.map_or(address, |range| range.0), address + PAGE)),
                        Aged::Other => {}
                    }
                }
            });
        }
        at = end;
    }
    HAND.store(at, Ordering::Relaxed);
    // With the accessed bit gone, no TLB may have the translation: that is what the bit stands for.
    if let Some((start, end)) = used {
        tlb::shoot_down(start, end);
    }
    swept
}

enum Aged {
    /// Not a file's clean page.
    Other,
    /// Used since the hand last came by.
    Spared,
    Out,
}

fn age(entry: *mut u64) -> Aged {
    let value = entries::read(entry);
    let frame = value & ADDRESS_MASK;
    if value & PRESENT == 0 || value & (PRIVATE | WRITABLE) != 0 || frames::is_adopted(frame) {
        return Aged::Other;
    }
    if entries::may_be_cached(value) {
        entries::forget_access(entry);
        return Aged::Spared;
    }
    // Unless a CPU uses it at this moment.
    if !entries::empty_if(entry, value) {
        return Aged::Spared;
    }
    frames::unreference(frame);
    Aged::Out
}
