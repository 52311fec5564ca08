//! The address space: mappings (the VMA tree) and what is present of them (the page table).
//!
//! A page-table entry that holds a page owns one reference to it. Three kinds occur, told by bits
//! that the CPU ignores:
//! - [`PRIVATE`]: the mapping's own page (anonymous, or copied on write); writable as the VMA says.
//! - otherwise a page of a file's cache; writable only in a shared mapping, and from a write fault on,
//!   which the file's pager heard of, until writeback protects it again ([`reverse`]).
//! - not present but not 0 ([`entries::HELD`]): the page is kept while the VMA allows no access.
//!
//! # Locking
//! [`SPACE`]'s spin lock covers the tree and the application's half of the page table. A fault that
//! needs a file page drops it, sleeps, takes it again and checks by the VMA's sequence number that
//! nothing changed. TLB shootdown happens under it, with interrupts on; a page is released only after
//! the shootdown.
use alloc::{string::String, sync::Arc, vec::Vec};
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use logic::vma::{Backing, Vma, VmaFlags, VmaTree};
use rt::{
    space::{
        AddressSpace, FileMapping, Footprint, MapRequest, ObjectId, Placement, ProgramId, Prot, Region, SpaceError,
    },
    sync::SpinLock,
};

use super::{
    frames,
    paging::{APPLICATION_END, APPLICATION_START, PAGE},
};

mod copies;
mod entries;
mod faults;
mod huge;
mod reverse;

pub use faults::{Access, Refused, fault};
pub use huge::give_back_unused;

/// Kept free of mappings that did not ask for an address: HotSpot wants its heap below 4 or 32 GiB.
const LOW_END: u64 = 40 << 30;
/// MAP_32BIT's limit.
const MAP_32BIT_END: u64 = 2 << 30;
/// Room for the main stack above the mmap area.
const STACK_GAP: u64 = 64 << 20;

/// What backs a VMA.
#[derive(Clone)]
pub enum Source {
    Anonymous,
    File(FileMapping),
}

impl Backing for Source {
    fn advanced(&self, pages: u64) -> Self {
        match self {
            Self::Anonymous => Self::Anonymous,
            Self::File(file) => {
                Self::File(FileMapping { pager: file.pager.clone(), first_page: file.first_page + pages })
            }
        }
    }

    fn continues(&self, previous: &Self, previous_pages: u64) -> bool {
        match (self, previous) {
            (Self::Anonymous, Self::Anonymous) => true,
            (Self::File(next), Self::File(file)) => {
                Arc::ptr_eq(&next.pager, &file.pager) && next.first_page == file.first_page + previous_pages
            }
            _ => false,
        }
    }

    fn object(&self) -> Option<(u64, u64)> {
        match self {
            Self::Anonymous => None,
            Self::File(file) => Some((file.pager.object().0, file.first_page)),
        }
    }
}

pub struct Space {
    vmas: SpinLock<VmaTree<Source>>,
    /// Top of the area that mappings without a wish come from.
    mmap_top: AtomicU64,
}

/// The machine's one address space.
pub static SPACE: Space =
    Space { vmas: SpinLock::new(VmaTree::new()), mmap_top: AtomicU64::new(APPLICATION_END - STACK_GAP) };

/// Picks the random offset of the mmap area: 28 bits of pages, as Linux. Once, at boot.
pub fn randomise(random: u64) {
    SPACE.mmap_top.store(APPLICATION_END - STACK_GAP - (random & 0xfff_ffff) * PAGE, Ordering::Relaxed);
}

/// Mappings that one hold of the lock takes out: their list is one piece of the heap.
const MOST_TAKEN: usize = 16 * 1024;
/// As above where a hold may follow another (munmap): a list that finds its place in a fragmented heap, too.
const PIECE_TAKEN: usize = 1024;

/// Takes out what the owner has in the range, with the pages. The mappings are for the caller to drop
/// without the lock: with the last mapping of a file the file may end.
fn take_out(
    tree: &mut VmaTree<Source>,
    owner: ProgramId,
    start: u64,
    end: u64,
) -> Result<Vec<Vma<Source>>, SpaceError> {
    if tree.count() > MOST_TAKEN && tree.iter_range(start, end).nth(MOST_TAKEN).is_some() {
        return Err(SpaceError::NoMemory);
    }
    let removed = tree.remove_range(owner.0, start, end).map_err(|_| SpaceError::NoMemory)?;
    for piece in &removed {
        entries::clear(piece.start, piece.end);
    }
    Ok(removed)
}

impl Space {
    /// Where the request goes, and the mappings that made room for it.
    fn place(
        &self,
        tree: &mut VmaTree<Source>,
        owner: ProgramId,
        request: &MapRequest,
    ) -> Result<(u64, Vec<Vma<Source>>), SpaceError> {
        if let Placement::Fixed(start) = request.placement {
            let end = self.check_fixed(start, request.len)?;
            return Ok((start, take_out(tree, owner, start, end)?));
        }
        self.find_place(tree, request).map(|start| (start, Vec::new()))
    }

    /// The end of a range of a given address, if a mapping may lie there.
    fn check_fixed(&self, start: u64, len: u64) -> Result<u64, SpaceError> {
        if !start.is_multiple_of(PAGE) {
            return Err(SpaceError::Invalid);
        }
        let end = start.checked_add(len).filter(|&end| start >= APPLICATION_START && end <= APPLICATION_END);
        end.ok_or(SpaceError::NoMemory)
    }

    fn find_place(&self, tree: &mut VmaTree<Source>, request: &MapRequest) -> Result<u64, SpaceError> {
        let len = request.len;
        let anywhere = |tree: &mut VmaTree<Source>| {
            let top = self.mmap_top.load(Ordering::Relaxed);
            tree.find_gap(len, PAGE, LOW_END, top, true)
                .or_else(|| tree.find_gap(len, PAGE, top, APPLICATION_END, false))
        };
        match request.placement {
            Placement::Anywhere => anywhere(tree).ok_or(SpaceError::NoMemory),
            Placement::Hint(start) => {
                if self.check_fixed(start, len).is_ok_and(|end| tree.is_free(start, end)) {
                    Ok(start)
                } else {
                    anywhere(tree).ok_or(SpaceError::NoMemory)
                }
            }
            Placement::Low => {
                tree.find_gap(len, PAGE, APPLICATION_START, MAP_32BIT_END, true).ok_or(SpaceError::NoMemory)
            }
            Placement::FixedNoReplace(start) | Placement::Fixed(start) => {
                let end = self.check_fixed(start, len)?;
                if tree.is_free(start, end) { Ok(start) } else { Err(SpaceError::Exists) }
            }
        }
    }
}

fn check_range(start: u64, len: u64) -> Result<u64, SpaceError> {
    let end = start.checked_add(len).ok_or(SpaceError::Invalid)?;
    if !start.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
        return Err(SpaceError::Invalid);
    }
    if end > APPLICATION_END { Err(SpaceError::NoMemory) } else { Ok(end) }
}

impl AddressSpace for Space {
    fn map(&self, owner: ProgramId, request: MapRequest) -> Result<u64, SpaceError> {
        if request.len == 0 || !request.len.is_multiple_of(PAGE) {
            return Err(SpaceError::Invalid);
        }
        // Linux' heuristic overcommit: refuse only what could never be filled.
        let (total, _) = frames::totals();
        let counted = !request.no_reserve && !request.shared && request.prot.contains(Prot::WRITE);
        if counted && request.len > total {
            return Err(SpaceError::NoMemory);
        }
        let mut flags = VmaFlags::empty();
        flags.set(VmaFlags::SHARED, request.shared);
        flags.set(VmaFlags::READ_ONLY, request.read_only);
        flags.set(VmaFlags::NO_RESERVE, request.no_reserve);
        flags.set(VmaFlags::STACK, request.stack);
        let mut tree = self.vmas.lock();
        let (start, replaced) = self.place(&mut tree, owner, &request)?;
        let vma = Vma {
            start,
            end: start + request.len,
            owner: owner.0,
            prot: request.prot.bits(),
            flags,
            backing: request.file.map_or(Source::Anonymous, Source::File),
            label: request.label,
            sequence: 0,
        };
        let inserted = tree.insert(vma);
        drop(tree);
        drop(replaced);
        inserted.map_err(|_| SpaceError::NoMemory)?;
        Ok(start)
    }

    fn unmap(&self, owner: ProgramId, start: u64, len: u64) -> Result<(), SpaceError> {
        let end = check_range(start, len).map_err(|_| SpaceError::Invalid)?;
        if len == 0 {
            return Err(SpaceError::Invalid);
        }
        let mut from = start;
        while from < end {
            let mut tree = self.vmas.lock();
            let until = match tree.count() > PIECE_TAKEN {
                true => tree.iter_range(from, end).nth(PIECE_TAKEN).map_or(end, |vma| vma.start),
                false => end,
            };
            let removed = take_out(&mut tree, owner, from, until)?;
            drop(tree);
            drop(removed);
            from = until;
        }
        Ok(())
    }

    fn protect(&self, owner: ProgramId, start: u64, len: u64, prot: Prot) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        let mut tree = self.vmas.lock();
        // As on Linux, what lies before a mapping that refuses is changed.
        let refusing = prot
            .contains(Prot::WRITE)
            .then(|| tree.iter_range(start, end).find(|vma| vma.flags.contains(VmaFlags::READ_ONLY)))
            .flatten()
            .map(|vma| vma.start.max(start));
        let until = refusing.unwrap_or(end);
        let covered = tree.covered_until(owner.0, start, until);
        let result = if until > start { tree.protect_range(owner.0, start, until, prot.bits()) } else { Ok(()) };
        entries::protect(start, covered, prot.bits(), |address| {
            tree.find(address).is_some_and(|vma| vma.flags.contains(VmaFlags::SHARED))
        });
        result.map_err(|_| SpaceError::NotMapped)?;
        if refusing.is_some() { Err(SpaceError::ReadOnly) } else { Ok(()) }
    }

    fn discard(&self, owner: ProgramId, start: u64, len: u64) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        let tree = self.vmas.lock();
        for vma in tree.iter_range(start, end).filter(|vma| vma.owner == owner.0) {
            entries::clear(vma.start.max(start), vma.end.min(end));
        }
        if tree.covered_until(owner.0, start, end) < end { Err(SpaceError::NotMapped) } else { Ok(()) }
    }

    fn advise_huge(&self, owner: ProgramId, start: u64, len: u64, huge: bool) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        huge::advise(&mut self.vmas.lock(), owner, (start, end), huge)
    }

    fn populate(&self, owner: ProgramId, start: u64, len: u64, write: bool) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        if self.vmas.lock().covered_until(owner.0, start, end) < end {
            return Err(SpaceError::NotMapped);
        }
        let access = if write { Access::Write } else { Access::Read };
        let mut address = start;
        while address < end {
            self.fault(address, access).map_err(|refused| match refused {
                Refused::OutOfMemory => SpaceError::NoMemory,
                _ => SpaceError::NotMapped,
            })?;
            let _tree = self.vmas.lock();
            address = huge::page_end(address);
        }
        Ok(())
    }

    fn remap(
        &self,
        owner: ProgramId,
        start: u64,
        old_len: u64,
        new_len: u64,
        may_move: bool,
        new_address: Option<u64>,
    ) -> Result<u64, SpaceError> {
        let old_end = check_range(start, old_len)?;
        if new_len == 0 || !new_len.is_multiple_of(PAGE) || old_len == 0 {
            return Err(SpaceError::Invalid);
        }
        if new_address.is_none() && new_len <= old_len {
            if new_len < old_len {
                self.unmap(owner, start + new_len, old_len - new_len)?;
            }
            return Ok(start);
        }
        let mut tree = self.vmas.lock();
        let vma = tree.find(start).filter(|vma| vma.owner == owner.0).ok_or(SpaceError::NotMapped)?.clone();
        if vma.end < old_end {
            return Err(SpaceError::NotMapped);
        }
        let grown = |at: u64, from: &Vma<Source>| Vma {
            start: at,
            end: at + new_len,
            backing: from.backing_at(start),
            ..from.clone()
        };
        if new_address.is_none() && vma.end == old_end {
            let end = start + new_len;
            if end <= APPLICATION_END && tree.is_free(old_end, end) {
                let more = Vma { start: old_end, end, backing: vma.backing_at(old_end), ..vma };
                tree.insert(more).map_err(|_| SpaceError::NoMemory)?;
                return Ok(start);
            }
        }
        if !may_move {
            return Err(SpaceError::NoMemory);
        }
        let target = match new_address {
            Some(at) => {
                let end = self.check_fixed(at, new_len)?;
                if at < old_end && start < end {
                    return Err(SpaceError::Invalid);
                }
                at
            }
            None => tree
                .find_gap(new_len, PAGE, LOW_END, self.mmap_top.load(Ordering::Relaxed), true)
                .ok_or(SpaceError::NoMemory)?,
        };
        let moved_len = old_len.min(new_len);
        if !entries::make_tables_for(start, target, moved_len) {
            return Err(SpaceError::NoMemory);
        }
        let replaced = take_out(&mut tree, owner, target, target + new_len)?;
        let inserted = tree.insert(grown(target, &vma)).map_err(|_| SpaceError::NoMemory);
        let old = inserted.and_then(|_| {
            entries::move_range(start, target, moved_len);
            let old = tree.take_range(owner.0, start, old_end).map_err(|_| SpaceError::NotMapped);
            entries::clear(start, old_end);
            old
        });
        drop(tree);
        drop((replaced, vma));
        old.map(|_| target)
    }

    fn resident(&self, owner: ProgramId, start: u64, len: u64, out: &mut [bool]) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        let tree = self.vmas.lock();
        if tree.covered_until(owner.0, start, end) < end {
            return Err(SpaceError::NotMapped);
        }
        for (address, slot) in (start..end).step_by(PAGE as usize).zip(out) {
            *slot = !entries::is_empty(address);
        }
        Ok(())
    }

    fn regions(&self, owner: ProgramId, each: &mut dyn FnMut(&Region)) {
        // A few at a time: neither one piece of the heap for all, nor one hold of the lock.
        const PIECE: usize = 16;
        let mut from = 0;
        loop {
            let mut piece = [const { None }; PIECE];
            let tree = self.vmas.lock();
            let owned = tree.iter_range(from, u64::MAX).filter(|vma| vma.owner == owner.0);
            piece.iter_mut().zip(owned).for_each(|(place, vma)| *place = Some(region(vma)));
            drop(tree);
            for region in piece.iter().flatten() {
                each(region);
                from = region.end;
            }
            if piece[PIECE - 1].is_none() {
                return;
            }
        }
    }

    fn footprint(&self, owner: ProgramId) -> Footprint {
        self.footprint_within(owner, 0, u64::MAX)
    }

    fn footprint_within(&self, owner: ProgramId, start: u64, end: u64) -> Footprint {
        let tree = self.vmas.lock();
        let mut sum = Footprint::default();
        for vma in tree.iter_range(start, end).filter(|vma| vma.owner == owner.0) {
            entries::count(vma.start.max(start), vma.end.min(end), &mut sum);
        }
        sum
    }

    fn huge_bytes(&self) -> u64 {
        huge::present_bytes()
    }

    fn file_lost(&self, object: ObjectId, pages: Range<u64>, copies: bool) {
        reverse::clear(&self.vmas.lock(), object, pages, copies);
    }

    fn write_protect(&self, object: ObjectId, pages: Range<u64>) {
        reverse::write_protect(&self.vmas.lock(), object, pages);
    }

    fn unmap_unused(&self, object: ObjectId, first: u64, pages: u64, force: bool) -> u64 {
        reverse::unmap_unused(&self.vmas.lock(), object, first, pages, force)
    }

    fn release(&self, owner: ProgramId) {
        // On from the last one: what others have below is not passed again for each.
        let mut from = 0;
        loop {
            let mut tree = self.vmas.lock();
            let next = tree.iter_range(from, u64::MAX).find(|vma| vma.owner == owner.0);
            let Some((start, end)) = next.map(|vma| (vma.start, vma.end)) else { return };
            let removed = take_out(&mut tree, owner, start, end);
            drop(tree);
            drop(removed);
            from = end;
        }
    }
}

fn region(vma: &Vma<Source>) -> Region {
    Region {
        start: vma.start,
        end: vma.end,
        prot: Prot::from_bits_truncate(vma.prot),
        shared: vma.flags.contains(VmaFlags::SHARED),
        file: match &vma.backing {
            Source::Anonymous => None,
            Source::File(file) => Some(file.clone()),
        },
        label: vma.label,
        no_reserve: vma.flags.contains(VmaFlags::NO_RESERVE),
        huge: huge::advice(vma),
    }
}

/// A line per mapping around `address`, for fault reports.
pub fn describe(address: u64) -> String {
    let tree = SPACE.vmas.lock();
    match tree.find(address) {
        None => String::from("not mapped"),
        Some(vma) => {
            let name = match &vma.backing {
                Source::Anonymous => String::from(vma.label.unwrap_or("anonymous")),
                Source::File(file) => file.pager.path(),
            };
            alloc::format!("{:#x}-{:#x} prot {} {}", vma.start, vma.end, vma.prot, name)
        }
    }
}
