//! The VMA tree: which address ranges are mapped, whose they are, and what backs them.
//!
//! The machine's address space keeps one tree and its page tables beside it: the tree says what
//! *may* be at an address, the page tables what *is* there. Nothing here touches memory.
//!
//! # Locking
//! None inside; the address space's VMA lock protects the whole tree.
//!
//! # Invariants
//! - VMAs are page-aligned, not empty and disjoint.
//! - Neighbours that could be one VMA are one, where an operation here made them neighbours.
//! - Each change of a VMA (bounds, protection, flags, backing) gives it a sequence number that no
//!   VMA of this tree had before. A page fault that slept looks its address up again: the same
//!   number means that nothing about the mapping has changed.
//! - A VMA with an [`Backing::object`] stands in that object's interval tree, by the pages it shows:
//!   from a page of a file one gets to the mappings that may have it ([`VmaTree::each_mapping`]).
use alloc::{collections::BTreeMap, vec::Vec};
use core::ops::Range;

use bitflags::bitflags;

mod gap;
mod interval;
#[cfg(test)]
mod tests;

use gap::TopDownHint;
use interval::IntervalTree;

const PAGE_SHIFT: u32 = 12;
const PAGE_MASK: u64 = (1 << PAGE_SHIFT) - 1;

bitflags! {
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct VmaFlags: u16 {
        /// Writes reach the file, or other mappings.
        const SHARED = 1;
        /// Costs no budget until touched (MAP_NORESERVE).
        const NO_RESERVE = 2;
        /// A stack: never huge pages.
        const STACK = 4;
        /// madvise(MADV_HUGEPAGE).
        const HUGE = 8;
        /// madvise(MADV_NOHUGEPAGE).
        const NO_HUGE = 16;
        /// Never merged with a neighbour: moving it must not drag others along.
        const ALONE = 32;
        /// Never to be made writable.
        const READ_ONLY = 64;
    }
}

/// Where a VMA's pages come from. Anonymous memory is a unit-like value that continues itself.
pub trait Backing: Clone {
    /// The backing of what begins `pages` pages further on.
    fn advanced(&self, pages: u64) -> Self;
    /// True if `self` may follow `previous`, which is `previous_pages` long, in one VMA.
    fn continues(&self, previous: &Self, previous_pages: u64) -> bool;
    /// The object (a file's number) whose pages it shows, and the first of them.
    fn object(&self) -> Option<(u64, u64)> {
        None
    }
}

/// One mapping: `[start, end)`, page-aligned, not empty.
#[derive(Clone, Debug)]
pub struct Vma<B> {
    pub start: u64,
    pub end: u64,
    /// The program it belongs to; 0 is the kernel.
    pub owner: u32,
    /// Read 1, write 2, execute 4.
    pub prot: u8,
    pub flags: VmaFlags,
    pub backing: B,
    pub label: Option<&'static str>,
    /// Set by the tree; what the caller of [`VmaTree::insert`] puts here is ignored.
    pub sequence: u64,
}

impl<B: Backing> Vma<B> {
    // A VMA is never empty.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn pages(&self) -> u64 {
        self.len() >> PAGE_SHIFT
    }

    /// Backing of the page at `address`, which must lie in the VMA or at its end (for growing).
    pub fn backing_at(&self, address: u64) -> B {
        self.backing.advanced((address - self.start) >> PAGE_SHIFT)
    }

    /// The same mapping at another place (mremap).
    pub fn moved_to(mut self, start: u64) -> Self {
        self.end = start + self.len();
        self.start = start;
        self
    }

    fn joins(&self, next: &Self) -> bool {
        self.end == next.start
            && self.owner == next.owner
            && self.prot == next.prot
            && self.flags == next.flags
            && !self.flags.contains(VmaFlags::ALONE)
            && self.label == next.label
            && next.backing.continues(&self.backing, self.pages())
    }
}

/// The range is empty, not page-aligned, or something is mapped in it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFree;

/// Part of the range belongs to another program; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignOwner {
    pub at: u64,
}

/// `at` is the first address of the range that its owner has not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    pub at: u64,
}

/// See the module's documentation.
pub struct VmaTree<B> {
    areas: BTreeMap<u64, Vma<B>>,
    bytes: BTreeMap<u32, u64>,
    last_sequence: u64,
    hint: TopDownHint,
    objects: Objects,
    /// A copy of what [`VmaTree::find_again`] gave last; forgotten with every change.
    recent: Option<Vma<B>>,
}

/// The mappings of each object that has any; the key of an interval is its VMA's start.
struct Objects(BTreeMap<u64, IntervalTree>);

impl Objects {
    #[inline]
    fn link<B: Backing>(&mut self, vma: &Vma<B>) {
        if let Some((object, first)) = vma.backing.object() {
            self.0.entry(object).or_default().insert(first..first + vma.pages(), vma.start);
        }
    }

    #[inline]
    fn unlink<B: Backing>(&mut self, vma: &Vma<B>) {
        if let Some((object, first)) = vma.backing.object()
            && let Some(tree) = self.0.get_mut(&object)
        {
            tree.remove(first, vma.start);
            if tree.is_empty() {
                self.0.remove(&object);
            }
        }
    }
}

impl<B: Backing> Default for VmaTree<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backing> VmaTree<B> {
    pub const fn new() -> Self {
        Self {
            areas: BTreeMap::new(),
            bytes: BTreeMap::new(),
            last_sequence: 0,
            hint: TopDownHint::new(),
            objects: Objects(BTreeMap::new()),
            recent: None,
        }
    }

    /// The VMA that holds `address`.
    pub fn find(&self, address: u64) -> Option<&Vma<B>> {
        let (_, vma) = self.areas.range(..=address).next_back()?;
        (address < vma.end).then_some(vma)
    }

    /// As [`VmaTree::find`]. Faults come in rows: the last one's mapping is kept beside the tree.
    #[inline]
    pub fn find_again(&mut self, address: u64) -> Option<&Vma<B>> {
        let holds = |vma: &Vma<B>| (vma.start..vma.end).contains(&address);
        if !self.recent.as_ref().is_some_and(holds) {
            self.recent = Some(self.find(address)?.clone());
        }
        self.recent.as_ref()
    }

    /// The VMA that holds `address`, else the next above it.
    pub fn find_first_from(&self, address: u64) -> Option<&Vma<B>> {
        self.find(address).or_else(|| self.areas.range(address..).next().map(|(_, vma)| vma))
    }

    /// VMAs that overlap `[start, end)`, whole, in address order.
    pub fn iter_range(&self, start: u64, end: u64) -> impl Iterator<Item = &Vma<B>> {
        let first = self.find(start).map_or(start, |vma| vma.start);
        self.areas.range(first..end.max(first)).map(|(_, vma)| vma).filter(move |vma| start < end && vma.end > start)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Vma<B>> {
        self.areas.values()
    }

    pub fn owned_bytes(&self, owner: u32) -> u64 {
        self.bytes.get(&owner).copied().unwrap_or(0)
    }

    /// Number of VMAs of all owners.
    pub fn count(&self) -> usize {
        self.areas.len()
    }

    /// Calls `each` with every VMA that shows one of these pages of an object.
    pub fn each_mapping(&self, object: u64, pages: Range<u64>, mut each: impl FnMut(&Vma<B>)) {
        let Some(tree) = self.objects.0.get(&object) else { return };
        tree.each_overlap(pages, &mut |start| {
            if let Some(vma) = self.areas.get(&start) {
                each(vma);
            }
        });
    }

    pub fn is_free(&self, start: u64, end: u64) -> bool {
        self.iter_range(start, end).next().is_none()
    }

    /// Adds a mapping and merges it with neighbours that it continues. The result is the new
    /// sequence number.
    pub fn insert(&mut self, mut vma: Vma<B>) -> Result<u64, NotFree> {
        let aligned = (vma.start | vma.end) & PAGE_MASK == 0;
        if !aligned || vma.start >= vma.end || !self.is_free(vma.start, vma.end) {
            return Err(NotFree);
        }
        let (start, end) = (vma.start, vma.end);
        *self.bytes.entry(vma.owner).or_insert(0) += vma.len();
        vma.sequence = self.next_sequence();
        self.objects.link(&vma);
        self.areas.insert(start, vma);
        self.merge_at(end);
        self.merge_at(start);
        Ok(self.last_sequence)
    }

    /// Takes out what `owner` has in the range; holes are fine (munmap). The pieces are cut to the
    /// range, in address order.
    pub fn remove_range(&mut self, owner: u32, start: u64, end: u64) -> Result<Vec<Vma<B>>, ForeignOwner> {
        if let Some(foreign) = self.iter_range(start, end).find(|vma| vma.owner != owner) {
            return Err(ForeignOwner { at: foreign.start.max(start) });
        }
        Ok(self.cut_out(start, end))
    }

    /// As [`VmaTree::remove_range`], but the owner must have mapped all of the range (mremap).
    pub fn take_range(&mut self, owner: u32, start: u64, end: u64) -> Result<Vec<Vma<B>>, Hole> {
        let covered = self.covered_until(owner, start, end);
        if covered < end {
            return Err(Hole { at: covered });
        }
        Ok(self.cut_out(start, end))
    }

    /// Sets the protection. As on Linux, an error means that everything below the hole *is* changed.
    pub fn protect_range(&mut self, owner: u32, start: u64, end: u64, prot: u8) -> Result<(), Hole> {
        self.change_range(owner, start, end, |vma| {
            let changed = vma.prot != prot;
            vma.prot = prot;
            changed
        })
    }

    /// Sets and clears flags, up to the first hole.
    pub fn flag_range(
        &mut self,
        owner: u32,
        (start, end): (u64, u64),
        set: VmaFlags,
        clear: VmaFlags,
    ) -> Result<(), Hole> {
        self.change_range(owner, start, end, |vma| {
            let flags = vma.flags.difference(clear).union(set);
            let changed = vma.flags != flags;
            vma.flags = flags;
            changed
        })
    }

    /// First address from `start` on, at most `end`, that `owner` has not mapped.
    pub fn covered_until(&self, owner: u32, start: u64, end: u64) -> u64 {
        let mut at = start;
        for vma in self.iter_range(start, end) {
            if vma.start > at || vma.owner != owner {
                return at;
            }
            at = vma.end.min(end);
        }
        at
    }

    /// Applies `change`, which says whether it changed anything, to all of the range up to the
    /// first hole.
    fn change_range(
        &mut self,
        owner: u32,
        start: u64,
        end: u64,
        change: impl Fn(&mut Vma<B>) -> bool,
    ) -> Result<(), Hole> {
        let mut at = start;
        while at < end {
            let Some(vma) = self.find(at).filter(|vma| vma.owner == owner) else {
                self.merge_at(at);
                return Err(Hole { at });
            };
            let piece_end = vma.end.min(end);
            // A change to what is already there must not disturb sleeping faults.
            if change(&mut vma.clone()) {
                self.split_at(at);
                self.split_at(piece_end);
                let sequence = self.next_sequence();
                if let Some(piece) = self.areas.get_mut(&at) {
                    change(piece);
                    piece.sequence = sequence;
                }
            }
            // Unchanged pieces too: the one before may have become equal to this one.
            self.merge_at(at);
            at = piece_end;
        }
        self.merge_at(end);
        Ok(())
    }

    fn cut_out(&mut self, start: u64, end: u64) -> Vec<Vma<B>> {
        self.recent = None;
        self.split_at(start);
        self.split_at(end);
        let mut pieces = Vec::new();
        while let Some((&at, _)) = self.areas.range(start..end.max(start)).next() {
            let Some(piece) = self.areas.remove(&at) else { break };
            self.subtract_bytes(piece.owner, piece.len());
            self.objects.unlink(&piece);
            pieces.push(piece);
        }
        if !pieces.is_empty() {
            let gap_end = self.areas.range(end..).next().map_or(u64::MAX, |(&next, _)| next);
            self.hint.freed_up_to(gap_end);
        }
        pieces
    }

    fn subtract_bytes(&mut self, owner: u32, len: u64) {
        if let Some(bytes) = self.bytes.get_mut(&owner) {
            *bytes -= len;
            if *bytes == 0 {
                self.bytes.remove(&owner);
            }
        }
    }

    /// Makes `at` a boundary, if it lies inside a VMA. Both halves count as changed.
    fn split_at(&mut self, at: u64) {
        self.recent = None;
        let (low_sequence, high_sequence) = (self.last_sequence + 1, self.last_sequence + 2);
        let Some((_, low)) = self.areas.range_mut(..at).next_back() else { return };
        if at >= low.end {
            return;
        }
        let mut high = low.clone();
        high.start = at;
        high.backing = low.backing_at(at);
        high.sequence = high_sequence;
        self.objects.unlink(low);
        low.end = at;
        low.sequence = low_sequence;
        self.objects.link(low);
        self.objects.link(&high);
        self.last_sequence = high_sequence;
        self.areas.insert(at, high);
    }

    /// Joins the VMA that begins at `at` to the one before it, if it continues that one.
    fn merge_at(&mut self, at: u64) {
        let Some(next) = self.areas.get(&at) else { return };
        let next_end = next.end;
        match self.areas.range(..at).next_back() {
            Some((_, previous)) if previous.joins(next) => {}
            _ => return,
        }
        if let Some(next) = self.areas.remove(&at) {
            self.objects.unlink(&next);
        }
        let sequence = self.next_sequence();
        if let Some((_, previous)) = self.areas.range_mut(..at).next_back() {
            self.objects.unlink(previous);
            previous.end = next_end;
            previous.sequence = sequence;
            self.objects.link(previous);
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.recent = None;
        self.last_sequence += 1;
        self.last_sequence
    }
}
