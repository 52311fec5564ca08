//! From a page of a file to the mappings that show it: truncation, write protection, reclaim.
//!
//! The VMA tree keeps an interval tree of mappings per object ([`VmaTree::each_mapping`]). Whether a
//! mapping has the page in the page table is for the entry to say; pages that are a mapping's own
//! ([`PRIVATE`]) are not the file's, and only truncation takes them.
//!
//! # Locking
//! Every function gets the tree, and so the space's lock. No memory is allocated: reclaim comes here.
use core::ops::Range;

use logic::vma::{Vma, VmaFlags, VmaTree};
use rt::space::ObjectId;

use super::{
    Source,
    entries::{self, Batch, PRIVATE},
};
use crate::memory::{
    frames,
    paging::{self, ADDRESS_MASK, Leaf, PAGE, WRITABLE},
    tlb,
};

/// Takes what a file has lost away; `copies`: private copies too.
pub fn clear(tree: &VmaTree<Source>, object: ObjectId, pages: Range<u64>, copies: bool) {
    tree.each_mapping(object.0, pages.clone(), |vma| {
        if copies {
            let (start, end) = addresses(vma, &pages);
            entries::clear(start, end);
        } else {
            let mut batch = Batch::new();
            each_file_entry(vma, &pages, |_, address, entry| batch.add(entries::exchange(entry, 0), address));
            batch.finish();
        }
    });
}

/// Shared mappings lose the right to write these pages, on every CPU.
pub fn write_protect(tree: &VmaTree<Source>, object: ObjectId, pages: Range<u64>) {
    tree.each_mapping(object.0, pages.clone(), |vma| {
        if vma.flags.contains(VmaFlags::SHARED) {
            let mut written = Touched::default();
            each_file_entry(vma, &pages, |_, address, entry| {
                if entries::read(entry) & WRITABLE != 0 {
                    entries::forbid_writing(entry);
                    written.add(address);
                }
            });
            written.flush();
        }
    });
}

/// See [`rt::space::AddressSpace::unmap_unused`].
pub fn unmap_unused(tree: &VmaTree<Source>, object: ObjectId, first: u64, pages: u64, force: bool) -> u64 {
    let mut unmapped = 0;
    tree.each_mapping(object.0, first..first.saturating_add(64), |vma| {
        let mut cached = Touched::default();
        // What a CPU may still reach is given back after the flush.
        let mut taken = [0u64; 64];
        each_file_entry(vma, &(first..first.saturating_add(64)), |index, address, entry| {
            let bit = index - first;
            let value = entries::read(entry);
            let frame = value & ADDRESS_MASK;
            if pages & 1 << bit == 0 || value == 0 || frames::is_adopted(frame) {
                return;
            }
            if entries::was_accessed(value) && !force {
                return entries::forget_access(entry, value);
            }
            let value = if force { entries::exchange(entry, 0) } else { value };
            // A CPU that has used it meanwhile has changed it.
            if force || entries::empty_if(entry, value) {
                unmapped |= 1 << bit;
                taken[bit as usize] = frame;
                if entries::may_be_cached(value) {
                    cached.add(address);
                }
            }
        });
        cached.flush();
        taken.iter().filter(|&&frame| frame != 0).for_each(|&frame| frames::unreference(frame));
    });
    unmapped
}

/// The addresses at which a mapping shows the pages.
fn addresses(vma: &Vma<Source>, pages: &Range<u64>) -> (u64, u64) {
    let Source::File(file) = &vma.backing else { return (vma.start, vma.start) };
    let at = |page: u64| vma.start + page.saturating_sub(file.first_page).min(vma.pages()) * PAGE;
    (at(pages.start), at(pages.end))
}

/// Calls `each(page of the file, address, entry)` for what a mapping has of the file's own pages.
fn each_file_entry(vma: &Vma<Source>, pages: &Range<u64>, mut each: impl FnMut(u64, u64, *mut u64)) {
    let Source::File(file) = &vma.backing else { return };
    let (start, end) = addresses(vma, pages);
    paging::for_each_piece(start, end, |from, to, leaf| {
        // Files have no huge pages.
        let Leaf::Small(first) = leaf else { return };
        for (at, address) in (from..to).step_by(PAGE as usize).enumerate() {
            let entry = first.wrapping_add(at);
            let value = entries::read(entry);
            if value != 0 && value & PRIVATE == 0 {
                each(file.first_page + (address - vma.start) / PAGE, address, entry);
            }
        }
    });
}

/// The range that some TLB may hold stale translations of.
#[derive(Default)]
struct Touched(Option<(u64, u64)>);

impl Touched {
    fn add(&mut self, address: u64) {
        let start = self.0.map_or(address, |range| range.0);
        self.0 = Some((start, address + PAGE));
    }

    fn flush(self) {
        if let Some((start, end)) = self.0 {
            tlb::shoot_down(start, end);
        }
    }
}
