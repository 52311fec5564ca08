#![allow(unsafe_code, reason = "reads and writes page-table entries")]
//! Page-table entries of the application's half. Every function needs the space's lock.
use core::{
    mem::MaybeUninit,
    sync::atomic::{AtomicU64, Ordering},
};

use logic::vma::{Vma, VmaFlags};
use rt::{
    page::{Page, PageId},
    space::{Footprint, Prot},
};

use super::{Access, Refused, Source, copies, huge};
use crate::memory::{
    frames,
    paging::{self, ACCESSED, ADDRESS_MASK, DIRTY, LARGE, LARGE_PAGE, Leaf, NO_EXECUTE, PAGE, PRESENT, WRITABLE},
    tlb,
};

/// Software bit: the page is the mapping's own.
pub const PRIVATE: u64 = 1 << 9;
/// Software bit: the page is kept, not present, since the VMA allows no access.
pub const HELD: u64 = 1 << 10;

/// Software bit: the accessed bit was taken away without a flush, so a TLB may hold the translation.
pub const STALE: u64 = 1 << 11;

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

pub fn rights(prot: u8) -> u64 {
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

pub fn read(entry: *mut u64) -> u64 {
    // SAFETY: entries come from `paging` walks: they lie in direct-mapped table pages.
    unsafe { entry.read_volatile() }
}

/// For entries that no CPU can be using: empty, or not to be weakened. Otherwise [`exchange`].
pub fn write(entry: *mut u64, value: u64) {
    // SAFETY: as in `read`; the space's lock is held.
    unsafe { entry.write_volatile(value) };
}

/// The entry as an atomic: a CPU may set its accessed bit at any time.
fn atomic(entry: *mut u64) -> &'static AtomicU64 {
    // SAFETY: as in `read`; page tables stay for ever, and entries are aligned.
    unsafe { AtomicU64::from_ptr(entry) }
}

/// Replaces the entry; the result is what it was, accessed bit and all.
pub fn exchange(entry: *mut u64, value: u64) -> u64 {
    atomic(entry).swap(value, Ordering::AcqRel)
}

/// Empties the entry if it still is `value`.
pub fn empty_if(entry: *mut u64, value: u64) -> bool {
    atomic(entry).compare_exchange(value, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Takes the accessed bit away if the entry still is `value`. No flush: a CPU that has the translation
/// will not set the bit again, which makes a page look less used than it is, and no more.
pub fn forget_access(entry: *mut u64, value: u64) {
    let aged = value & !ACCESSED | STALE;
    let _ = atomic(entry).compare_exchange(value, aged, Ordering::AcqRel, Ordering::Relaxed);
}

/// Takes the right to write away; the caller flushes.
pub fn forbid_writing(entry: *mut u64) {
    atomic(entry).fetch_and(!(WRITABLE | DIRTY), Ordering::AcqRel);
}

/// Calls `each(address, entry, bytes)` for each entry of the range, empty ones too. A huge page that
/// lies partly outside is split first.
fn visit(start: u64, end: u64, mut each: impl FnMut(u64, *mut u64, u64)) {
    paging::for_each_piece(start, end, |from, to, leaf| {
        let mut entry = match leaf {
            Leaf::Small(entry) => entry,
            Leaf::Large(entry) if to - from == LARGE_PAGE => return each(from, entry, LARGE_PAGE),
            Leaf::Large(entry) => huge::split(from, entry),
        };
        for address in (from..to).step_by(PAGE as usize) {
            each(address, entry, PAGE);
            entry = entry.wrapping_add(1);
        }
    });
}

pub fn is_empty(address: u64) -> bool {
    match paging::leaf(address) {
        None => true,
        Some(Leaf::Small(entry)) => read(entry) == 0,
        Some(Leaf::Large(_)) => false,
    }
}

/// Adds the range to `sum`, as mapped, with what of it is in memory.
pub fn count(start: u64, end: u64, sum: &mut Footprint) {
    sum.mapped_bytes += end - start;
    paging::for_each_piece(start, end, |from, to, leaf| match leaf {
        Leaf::Large(_) => {
            sum.resident_bytes += to - from;
            sum.huge_bytes += to - from;
        }
        Leaf::Small(first) => {
            let pages = ((to - from) / PAGE) as usize;
            let present = (0..pages).filter(|&at| read(first.wrapping_add(at)) != 0).count();
            sum.resident_bytes += present as u64 * PAGE;
        }
    });
}

/// Puts a page into an empty entry, and takes over the reference.
pub fn fill(entry: *mut u64, page: Page, prot: u8, kind: u64, used: Use) {
    write(entry, page.into_id().0 | rights_for(prot, used) | kind);
}

/// The bits of an entry that is used like that.
pub fn rights_for(prot: u8, used: Use) -> u64 {
    let unused = if used == Use::Ahead { ACCESSED | DIRTY } else { 0 };
    rights(prot) & !unused
}

/// True if a TLB may hold the entry's translation.
pub fn may_be_cached(value: u64) -> bool {
    value & PRESENT != 0 && value & (ACCESSED | STALE) != 0
}

/// True if a CPU has used the entry since [`forget_access`], or it is new.
pub fn was_accessed(value: u64) -> bool {
    value & ACCESSED != 0
}

/// Handles a fault on an entry that holds a page already. True: served.
pub fn resolve_present(vma: &Vma<Source>, address: u64, leaf: Leaf, access: Access) -> Result<bool, Refused> {
    let entry = match leaf {
        Leaf::Small(entry) => entry,
        Leaf::Large(entry) => {
            // Another CPU was first, or this TLB was behind.
            huge::refresh(address, entry, vma.prot);
            return Ok(true);
        }
    };
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
    let wanted = 1 + copies::ahead(vma, address, entry);
    if copies::copy(vma, address, entry, wanted, Use::Now) == 0 { Err(Refused::OutOfMemory) } else { Ok(true) }
}

fn release(entry: *mut u64, address: u64) {
    let value = exchange(entry, 0);
    if may_be_cached(value) {
        tlb::shoot_down(address, address + PAGE);
    }
    drop(Page::from_id(PageId(value & ADDRESS_MASK)));
}

/// Empties the entries of the range and releases their pages.
pub fn clear(start: u64, end: u64) {
    let mut batch = Batch::new();
    visit(start, end, |address, entry, bytes| {
        if bytes == LARGE_PAGE {
            huge::release(address, entry);
        } else if read(entry) != 0 {
            batch.add(exchange(entry, 0), address);
        }
    });
    batch.finish();
}

/// Pages whose translations are gone from the table, but not yet from the TLBs.
pub struct Batch {
    /// The first `count` are set.
    pages: [MaybeUninit<u64>; BATCH],
    count: usize,
    /// The range that some TLB may hold translations of.
    cached: Option<(u64, u64)>,
}

impl Batch {
    pub fn new() -> Self {
        Self { pages: [const { MaybeUninit::uninit() }; BATCH], count: 0, cached: None }
    }

    /// Takes the page of an entry that held `value` and has been emptied.
    pub fn add(&mut self, value: u64, address: u64) {
        if self.count == BATCH {
            self.finish();
        }
        self.pages[self.count].write(value & ADDRESS_MASK);
        self.count += 1;
        if may_be_cached(value) {
            let start = self.cached.map_or(address, |cached| cached.0);
            self.cached = Some((start, address + PAGE));
        }
    }

    /// Flushes what some TLB may hold and lets go of the pages.
    pub fn finish(&mut self) {
        if let Some((start, end)) = self.cached.take() {
            tlb::shoot_down(start, end);
        }
        for page in &self.pages[..self.count] {
            // SAFETY: `add` has written the first `count`.
            frames::unreference(unsafe { page.assume_init() });
        }
        self.count = 0;
    }
}

/// Applies a new protection to what is present. `is_shared(address)`: a shared mapping is there.
pub fn protect(start: u64, end: u64, prot: u8, is_shared: impl Fn(u64) -> bool) {
    let mut tightened: Option<(u64, u64)> = None;
    if prot == 0 {
        // A huge page is present, always.
        huge::split_all(start, end);
    }
    visit(start, end, |address, entry, bytes| {
        let value = read(entry);
        if value == 0 {
            return;
        }
        let may_write = value & PRIVATE != 0 || (value & WRITABLE != 0 && is_shared(address));
        let prot = if may_write { prot } else { prot & !Prot::WRITE.bits() };
        let never_used = value & PRESENT != 0 && value & ACCESSED == 0;
        let hidden = if never_used { ACCESSED | DIRTY } else { 0 };
        let new = value & (ADDRESS_MASK | PRIVATE | kept(bytes)) | rights(prot) & !hidden;
        let lost = value & !new & (PRESENT | WRITABLE) | new & !value & NO_EXECUTE;
        // What it was just before says whether a CPU has used it since.
        let was_cached = may_be_cached(exchange(entry, new));
        if was_cached && hidden != 0 {
            write(entry, new | ACCESSED);
        }
        if was_cached && lost != 0 {
            tightened = Some((tightened.map_or(address, |range| range.0), address + bytes));
        }
    });
    if let Some((start, end)) = tightened {
        tlb::shoot_down(start, end);
    }
}

/// The page-size bit of a huge page's entry.
fn kept(bytes: u64) -> u64 {
    if bytes == LARGE_PAGE { LARGE } else { 0 }
}

/// Makes the tables that [`move_range`] needs. False: out of memory, and nothing has changed.
pub fn make_tables_for(from: u64, to: u64, len: u64) -> bool {
    let mut made = true;
    paging::for_each_piece(from, from + len, |start, stop, _| {
        // What lies below one directory entry here may lie below two there.
        for address in [start, stop - PAGE] {
            made = made && paging::leaf_or_new(to + (address - from)).is_some();
        }
    });
    made
}

/// Moves entries, and with them the pages, to another place (mremap), where [`make_tables_for`] has made
/// tables and nothing is mapped.
pub fn move_range(from: u64, to: u64, len: u64) {
    huge::split_all(from, from + len);
    visit(from, from + len, |address, entry, _| {
        if read(entry) != 0
            && let Some(target) = paging::lookup(to + (address - from))
        {
            write(target, exchange(entry, 0));
        }
    });
    tlb::shoot_down(from, from + len);
}
