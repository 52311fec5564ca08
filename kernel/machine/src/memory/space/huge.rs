//! Huge pages: 2 MiB of anonymous memory behind one directory entry.
//!
//! A mapping gets them where madvise(MADV_HUGEPAGE) asked for them (the policy that /sys shows) and
//! memory is not short. Partial changes split the page into 512 small ones, which must not fail: so
//! each huge page keeps the table that its directory entry would point at, with no entry in it
//! ([`frames::HugePage`]), and the entry goes back to that table in the end.
//!
//! # Locking
//! Every function but [`take`](frames::take_huge), [`present_bytes`] and [`give_back_unused`] needs the space's
//! lock.
//!
//! # Invariants
//! A huge page's entry is present and [`PRIVATE`]; without access rights there are small pages only.
//! A table page stays with its 2 MiB of addresses for ever: a CPU that still knows the table from
//! before finds no entry in it, faults, and is told to forget ([`refresh`]).
use core::sync::atomic::{AtomicU64, Ordering};

use logic::vma::{Vma, VmaFlags, VmaTree};
use rt::space::{ProgramId, SpaceError};

use super::{
    SPACE, Source,
    entries::{self, PRIVATE},
};
use crate::memory::{
    frames,
    paging::{self, ADDRESS_MASK, LARGE, LARGE_PAGE, Leaf, PAGE, PRESENT, WRITABLE},
    tlb,
};

/// Entries of a table.
const ENTRIES: usize = (LARGE_PAGE / PAGE) as usize;

/// Huge pages that are mapped; changed under the space's lock.
static PRESENT_PAGES: AtomicU64 = AtomicU64::new(0);

/// Bytes of all programs that lie in huge pages.
pub fn present_bytes() -> u64 {
    PRESENT_PAGES.load(Ordering::Relaxed) * LARGE_PAGE
}

/// What madvise said of huge pages, if anything.
pub fn advice(vma: &Vma<Source>) -> Option<bool> {
    vma.flags.intersects(VmaFlags::HUGE | VmaFlags::NO_HUGE).then(|| vma.flags.contains(VmaFlags::HUGE))
}

/// Notes the advice on all that the owner has mapped in the range. A hole is an error once that is done
/// (madvise(2)).
pub fn advise(
    tree: &mut VmaTree<Source>,
    owner: ProgramId,
    (start, end): (u64, u64),
    huge: bool,
) -> Result<(), SpaceError> {
    let (set, clear) = if huge { (VmaFlags::HUGE, VmaFlags::NO_HUGE) } else { (VmaFlags::NO_HUGE, VmaFlags::HUGE) };
    let mut result = Ok(());
    let mut at = start;
    while let Err(hole) = tree.flag_range(owner.0, (at, end), set, clear) {
        result = Err(SpaceError::NotMapped);
        let next = tree.iter_range(hole.at, end).find(|vma| vma.owner == owner.0);
        let Some(next) = next else { break };
        at = next.start;
    }
    result
}

/// Where the page at `address`, huge or not, ends.
pub fn page_end(address: u64) -> u64 {
    match paging::leaf(address) {
        Some(Leaf::Large(_)) => (address & !(LARGE_PAGE - 1)) + LARGE_PAGE,
        _ => address + PAGE,
    }
}

/// True if the mapping would take a huge page for `address`.
pub fn suits(vma: &Vma<Source>, address: u64) -> bool {
    let start = address & !(LARGE_PAGE - 1);
    vma.flags.contains(VmaFlags::HUGE)
        && !vma.flags.intersects(VmaFlags::STACK | VmaFlags::SHARED)
        && matches!(vma.backing, Source::Anonymous)
        && vma.prot != 0
        && start >= vma.start
        && vma.end - start >= LARGE_PAGE
        && is_vacant(start)
}

/// True if no page is there yet.
fn is_vacant(start: u64) -> bool {
    match paging::leaf(start) {
        None => true,
        Some(Leaf::Small(first)) => (0..ENTRIES).all(|at| entries::read(first.wrapping_add(at)) == 0),
        Some(Leaf::Large(_)) => false,
    }
}

/// Puts a huge page at `start`, which [`suits`]. Gives it back when a table is missing.
pub fn install(start: u64, page: frames::HugePage, prot: u8) -> Result<(), frames::HugePage> {
    let Some(entry) = paging::directory_entry(start) else { return Err(page) };
    let old = entries::read(entry);
    let page = if old & PRESENT != 0 { page.with_table(old & ADDRESS_MASK) } else { page };
    entries::write(entry, page.into_frame() | entries::rights(prot) | LARGE | PRIVATE);
    PRESENT_PAGES.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// The entry as the mapping has it now, for a CPU that knew less.
pub fn refresh(address: u64, entry: *mut u64, prot: u8) {
    entries::write(entry, entries::read(entry) & (ADDRESS_MASK | PRIVATE | LARGE) | entries::rights(prot));
    tlb::forget_local(address);
}

/// Takes the page out of the table and gives its memory back.
pub fn release(start: u64, entry: *mut u64) {
    let page = take_out(start, entry);
    entries::write(entry, page.table() | PRESENT | WRITABLE);
    page.free();
}

/// Makes small pages of it. The result is the small entry of `address`.
pub fn split(address: u64, entry: *mut u64) -> *mut u64 {
    let start = address & !(LARGE_PAGE - 1);
    let first = make_small(start, entry, |_| true);
    first.wrapping_add(((address - start) / PAGE) as usize)
}

/// Makes small pages of those frames that `keep` wants, and frees the others. No CPU can write them when
/// it is asked. The result is the first entry.
fn make_small(start: u64, entry: *mut u64, mut keep: impl FnMut(u64) -> bool) -> *mut u64 {
    let rights = entries::read(entry) & !(ADDRESS_MASK | LARGE);
    let page = take_out(start, entry);
    let table = page.table();
    let first = paging::entries_of(table);
    for (at, frame) in page.into_small().enumerate() {
        if keep(frame) {
            entries::write(first.wrapping_add(at), frame | rights);
        } else {
            frames::unreference(frame);
        }
    }
    entries::write(entry, table | PRESENT | WRITABLE);
    first
}

/// Splits all huge pages that overlap the range.
pub fn split_all(start: u64, end: u64) {
    paging::for_each_piece(start, end, |address, _, leaf| {
        if let Leaf::Large(entry) = leaf {
            split(address, entry);
        }
    });
}

/// No CPU knows the page afterwards; those that touch it wait for the space's lock.
fn take_out(start: u64, entry: *mut u64) -> frames::HugePage {
    let value = entries::exchange(entry, 0);
    PRESENT_PAGES.fetch_sub(1, Ordering::Relaxed);
    if entries::may_be_cached(value) {
        tlb::shoot_down(start, start + LARGE_PAGE);
    }
    frames::HugePage::from_frame(value & ADDRESS_MASK)
}

/// Where the hand is that looks for unused pages. Moves under the space's lock.
static HAND: AtomicU64 = AtomicU64::new(0);
/// Huge pages looked at in one call, at most one in a hold of the lock.
const LOOKED_AT: usize = 16;
/// A huge page is split if at least so many of its pages are unused.
const WORTH_IT: usize = 64;
/// Bytes searched for the next huge page.
const STRETCH: u64 = 1 << 30;

/// Frees the parts of huge pages that no program has used, `wanted` pages if that many are soon found:
/// memory is short, and small pages would not have taken them. A page of zeros counts as unused, since
/// the next touch finds zeros again. Takes the space's lock.
pub fn give_back_unused(wanted: usize) -> usize {
    let (mut freed, mut looked_at, mut ends) = (0, 0, 0);
    while freed < wanted && looked_at < LOOKED_AT && ends < 2 && PRESENT_PAGES.load(Ordering::Relaxed) > 0 {
        let tree = SPACE.vmas.lock();
        match next_huge(&tree, HAND.load(Ordering::Relaxed)) {
            Some((start, Some(entry))) => {
                HAND.store(start + LARGE_PAGE, Ordering::Relaxed);
                freed += drop_unused(start, entry);
                looked_at += 1;
            }
            Some((end, None)) => HAND.store(end, Ordering::Relaxed),
            None => {
                // From the beginning again.
                HAND.store(0, Ordering::Relaxed);
                ends += 1;
            }
        }
    }
    freed
}

/// The first huge page of the next stretch from `from` on: its address and entry; without an entry, where
/// to go on.
fn next_huge(tree: &VmaTree<Source>, from: u64) -> Option<(u64, Option<*mut u64>)> {
    let mut at = from;
    loop {
        let vma = tree.find_first_from(at)?;
        let start = at.max(vma.start);
        at = vma.end;
        if matches!(vma.backing, Source::Anonymous) {
            let end = vma.end.min(start.saturating_add(STRETCH));
            let mut found = None;
            paging::for_each_piece(start, end, |piece, _, leaf| {
                if let Leaf::Large(entry) = leaf {
                    found.get_or_insert((piece & !(LARGE_PAGE - 1), entry));
                }
            });
            return Some(found.map_or((end, None), |(start, entry)| (start, Some(entry))));
        }
    }
}

fn drop_unused(start: u64, entry: *mut u64) -> usize {
    let first_frame = entries::read(entry) & ADDRESS_MASK;
    let unused = (0..ENTRIES as u64).filter(|at| frames::is_zero(first_frame + at * PAGE)).count();
    if unused < WORTH_IT {
        return 0;
    }
    // It was a guess so far: a program may have been writing.
    let mut freed = 0;
    make_small(start, entry, |frame| {
        let keep = !frames::is_zero(frame);
        freed += usize::from(!keep);
        keep
    });
    freed
}
