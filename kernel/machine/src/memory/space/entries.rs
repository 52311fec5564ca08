#![allow(unsafe_code, reason = "reads and writes page-table entries")]
//! Page-table entries of the application's half. Every function needs the space's lock.
use logic::vma::{Vma, VmaFlags};
use rt::{
    page::{Page, PageId},
    space::{Prot, SpaceError},
};

use super::{Access, Refused, Source};
use crate::memory::{
    frames,
    paging::{self, ACCESSED, ADDRESS_MASK, DIRTY, NO_EXECUTE, PAGE, PRESENT, WRITABLE},
    tlb,
};

/// Software bit: the page is the mapping's own.
pub const PRIVATE: u64 = 1 << 9;
/// Software bit: the page is kept, not present, since the VMA allows no access.
pub const HELD: u64 = 1 << 10;

/// How an entry starts out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A fault wants it now.
    Now,
    /// Mapped ahead of any use. The CPU sets the accessed bit before it caches a translation
    /// (SDM 4.10.2.3), so as long as the bit is clear no TLB has one, and taking the entry away
    /// needs no shootdown.
    Ahead,
}

/// Pages released per shootdown.
const BATCH: usize = 256;

fn rights(prot: u8) -> u64 {
    let prot = Prot::from_bits_truncate(prot);
    let mut bits = if prot.is_empty() { HELD } else { PRESENT | ACCESSED };
    if prot.contains(Prot::WRITE) {
        bits |= WRITABLE | DIRTY;
    }
    if !prot.contains(Prot::EXEC) {
        bits |= NO_EXECUTE;
    }
    bits
}

fn read(entry: *mut u64) -> u64 {
    // SAFETY: entries come from `paging` walks: they lie in direct-mapped table pages.
    unsafe { entry.read_volatile() }
}

fn write(entry: *mut u64, value: u64) {
    // SAFETY: as in `read`; the space's lock is held.
    unsafe { entry.write_volatile(value) };
}

pub fn is_empty(address: u64) -> bool {
    paging::lookup(address).is_none_or(|entry| read(entry) == 0)
}

/// Pages in memory in the range.
pub fn count(start: u64, end: u64) -> u64 {
    let mut pages = 0;
    paging::for_each_entry(start, end, |_, entry| pages += u64::from(read(entry) != 0));
    pages
}

/// Puts a page into an empty entry; the entry takes over the reference.
pub fn install(address: u64, page: Page, prot: u8, kind: u64, used: Use) -> Result<(), Refused> {
    let entry = paging::entry(address).ok_or(Refused::OutOfMemory)?;
    let unused = if used == Use::Ahead { ACCESSED | DIRTY } else { 0 };
    write(entry, page.into_id().0 | rights(prot) & !unused | kind);
    Ok(())
}

/// True if a TLB may hold the entry's translation.
fn may_be_cached(value: u64) -> bool {
    value & PRESENT != 0 && value & ACCESSED != 0
}

/// Handles a fault on an entry that holds a page already. True: served.
pub fn resolve_present(vma: &Vma<Source>, address: u64, access: Access) -> Result<bool, Refused> {
    let Some(entry) = paging::lookup(address) else { return Ok(false) };
    let value = read(entry);
    if value == 0 {
        return Ok(false);
    }
    let shared = vma.flags.contains(VmaFlags::SHARED);
    if access != Access::Write || value & WRITABLE != 0 {
        // Another CPU was first, or this TLB was behind.
        let prot = if value & PRIVATE != 0 || (shared && value & WRITABLE != 0) {
            vma.prot
        } else {
            vma.prot & !Prot::WRITE.bits()
        };
        write(entry, value & (ADDRESS_MASK | PRIVATE) | rights(prot));
        tlb::forget_local(address);
        return Ok(true);
    }
    if value & PRIVATE != 0 {
        write(entry, value & (ADDRESS_MASK | PRIVATE) | rights(vma.prot));
        tlb::forget_local(address);
        return Ok(true);
    }
    if shared {
        // The pager must learn of the first write: it serves this fault with `write` set.
        release(entry, address);
        return Ok(false);
    }
    let copy = frames::take_page(false).map_err(|_| Refused::OutOfMemory)?;
    let old = value & ADDRESS_MASK;
    frames::copy(old, copy);
    write(entry, copy | rights(vma.prot) | PRIVATE);
    // Another CPU that still read the old page would miss this program's write.
    if may_be_cached(value) {
        tlb::shoot_down(address, address + PAGE);
    }
    drop(Page::from_id(PageId(old)));
    Ok(true)
}

fn release(entry: *mut u64, address: u64) {
    let value = read(entry);
    write(entry, 0);
    if may_be_cached(value) {
        tlb::shoot_down(address, address + PAGE);
    }
    drop(Page::from_id(PageId(value & ADDRESS_MASK)));
}

/// Empties the entries of the range and releases their pages.
pub fn clear(start: u64, end: u64) {
    let mut batch = Batch { pages: [0; BATCH], count: 0, cached: None };
    paging::for_each_entry(start, end, |address, entry| {
        let value = read(entry);
        if value != 0 {
            write(entry, 0);
            batch.add(value, address);
        }
    });
    batch.finish();
}

/// Pages whose translations are gone from the table, but not yet from the TLBs.
struct Batch {
    pages: [u64; BATCH],
    count: usize,
    /// The range that some TLB may hold translations of.
    cached: Option<(u64, u64)>,
}

impl Batch {
    fn add(&mut self, value: u64, address: u64) {
        if self.count == BATCH {
            self.finish();
        }
        self.pages[self.count] = value & ADDRESS_MASK;
        self.count += 1;
        if may_be_cached(value) {
            let start = self.cached.map_or(address, |cached| cached.0);
            self.cached = Some((start, address + PAGE));
        }
    }

    fn finish(&mut self) {
        if let Some((start, end)) = self.cached.take() {
            tlb::shoot_down(start, end);
        }
        for &page in &self.pages[..self.count] {
            drop(Page::from_id(PageId(page)));
        }
        self.count = 0;
    }
}

/// Applies a new protection to what is present. `is_shared(address)`: a shared mapping is there.
pub fn protect(start: u64, end: u64, prot: u8, is_shared: impl Fn(u64) -> bool) {
    let mut tightened: Option<(u64, u64)> = None;
    paging::for_each_entry(start, end, |address, entry| {
        let value = read(entry);
        if value == 0 {
            return;
        }
        let may_write = value & PRIVATE != 0 || (value & WRITABLE != 0 && is_shared(address));
        let prot = if may_write { prot } else { prot & !Prot::WRITE.bits() };
        let never_used = value & PRESENT != 0 && value & ACCESSED == 0;
        let hidden = if never_used { ACCESSED | DIRTY } else { 0 };
        let new = value & (ADDRESS_MASK | PRIVATE) | rights(prot) & !hidden;
        let lost = value & !new & (PRESENT | WRITABLE) | new & !value & NO_EXECUTE;
        if lost != 0 && may_be_cached(value) {
            tightened = Some((tightened.map_or(address, |range| range.0), address + PAGE));
        }
        write(entry, new);
    });
    if let Some((start, end)) = tightened {
        tlb::shoot_down(start, end);
    }
}

/// Moves entries, and with them the pages, to another place (mremap).
pub fn move_range(from: u64, to: u64, len: u64) -> Result<(), SpaceError> {
    let mut failed = false;
    paging::for_each_entry(from, from + len, |address, entry| {
        let value = read(entry);
        if value == 0 || failed {
            return;
        }
        match paging::entry(to + (address - from)) {
            Some(target) => {
                write(target, value);
                write(entry, 0);
            }
            None => failed = true,
        }
    });
    tlb::shoot_down(from, from + len);
    if failed { Err(SpaceError::NoMemory) } else { Ok(()) }
}
