//! The address space: mappings with owners, and where their pages come from.
use alloc::{string::String, sync::Arc};
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use bitflags::bitflags;

use crate::page::{OutOfFrames, Page};

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u8 {
        const READ = 1;
        const WRITE = 2;
        const EXEC = 4;
    }
}

/// A program: the owner of mappings. 0 is the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId(pub u32);

/// What owns the pages of a file: all mappings of the same pages name the same object, so that from a
/// page one finds its mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u64);

impl ObjectId {
    /// One that nobody had before.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Where pages of a file mapping come from: a file's page cache. The address space keeps one of
/// these per mapping.
pub trait Pager: Send + Sync {
    /// The page at `index` (4 KiB units from the file's start). May read the device, and sleep.
    /// `write` says that a shared mapping is about to write it: a file with a medium behind it then
    /// counts the page as dirty.
    fn page(&self, index: u64, write: bool) -> Result<Page, PagerError>;
    /// Asked under the address space's lock before what [`Pager::page`] gave is entered into the page
    /// table. False: it is out of date, as the file lost the page meanwhile or writeback has cleaned it;
    /// the address space asks again. Never sleeps.
    fn confirm(&self, _index: u64, _page: &Page, _write: bool) -> bool {
        true
    }
    /// Whose pages these are. Does not change; takes no lock.
    fn object(&self) -> ObjectId;
    /// Puts the dirty pages of the range on the medium (msync with MS_SYNC). Sleeps.
    fn sync(&self, _pages: Range<u64>) -> Result<(), PagerError> {
        Ok(())
    }
    /// A page only if it is in memory already; for fault-around. Never sleeps.
    fn page_if_cached(&self, index: u64) -> Option<Page>;
    /// As [`Pager::page_if_cached`] for the pages from `first` on, into `out`, whose places are `None`.
    fn pages_if_cached(&self, first: u64, out: &mut [Option<Page>]) {
        for (index, place) in (first..).zip(out) {
            *place = self.page_if_cached(index);
        }
    }
    /// As `/proc/PID/maps` shows it.
    fn path(&self) -> String;
    /// (major, minor, inode) as `/proc/PID/maps` shows them.
    fn identity(&self) -> (u32, u32, u64);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagerError {
    /// Beyond the file's end: SIGBUS.
    BeyondEnd,
    Io,
    OutOfFrames,
}

#[derive(Clone)]
pub struct FileMapping {
    pub pager: Arc<dyn Pager>,
    /// First page of the file that is mapped, 4 KiB units.
    pub first_page: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    Anywhere,
    /// Tried first, if free.
    Hint(u64),
    /// Replaces what the same owner has there; another's is an error.
    Fixed(u64),
    FixedNoReplace(u64),
    /// As `Anywhere`, but below 2 GiB (MAP_32BIT).
    Low,
}

#[derive(Clone)]
pub struct MapRequest {
    pub placement: Placement,
    /// A multiple of the page size, above 0.
    pub len: u64,
    pub prot: Prot,
    /// None: anonymous.
    pub file: Option<FileMapping>,
    /// Writes reach the file (or other mappings), not a private copy.
    pub shared: bool,
    /// Never to be made writable: shared, of a file that is open for reading only.
    pub read_only: bool,
    /// Costs no budget until touched (MAP_NORESERVE).
    pub no_reserve: bool,
    /// No huge pages here (stacks).
    pub stack: bool,
    /// Shown in maps when there is no file: `[stack]`, `[heap]`, `[vdso]`.
    pub label: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceError {
    /// Zero length, unaligned, or beyond the address space: EINVAL.
    Invalid,
    /// No room, another owner's mapping in the way, or no memory: ENOMEM.
    NoMemory,
    /// Something is mapped there (FixedNoReplace): EEXIST.
    Exists,
    /// Part of the range may not be written ([`MapRequest::read_only`]): EACCES.
    ReadOnly,
    /// Part of the range is not mapped: ENOMEM for mprotect and madvise, EFAULT for mremap.
    NotMapped,
}

impl From<OutOfFrames> for SpaceError {
    fn from(_: OutOfFrames) -> Self {
        Self::NoMemory
    }
}

/// One mapping, as `/proc/PID/maps` and smaps list it.
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub prot: Prot,
    pub shared: bool,
    pub file: Option<FileMapping>,
    pub label: Option<&'static str>,
    pub no_reserve: bool,
    /// What [`AddressSpace::advise_huge`] said last.
    pub huge: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    pub mapped_bytes: u64,
    pub resident_bytes: u64,
    /// Those of the resident bytes that lie in huge pages.
    pub huge_bytes: u64,
}

/// The machine's address space. Addresses and lengths are in bytes; ranges must be page-aligned.
pub trait AddressSpace: Sync {
    fn map(&self, owner: ProgramId, request: MapRequest) -> Result<u64, SpaceError>;
    /// Holes in the range are fine, as for munmap.
    fn unmap(&self, owner: ProgramId, start: u64, len: u64) -> Result<(), SpaceError>;
    fn protect(&self, owner: ProgramId, start: u64, len: u64, prot: Prot) -> Result<(), SpaceError>;
    /// Drops the pages; anonymous ones read as zero afterwards (MADV_DONTNEED).
    fn discard(&self, owner: ProgramId, start: u64, len: u64) -> Result<(), SpaceError>;
    /// Says that the range may have huge pages, or must not (MADV_HUGEPAGE, MADV_NOHUGEPAGE). Those that
    /// are there stay. Holes are passed over, and are an error in the end. A space without huge pages takes it as the hint it is.
    fn advise_huge(&self, _owner: ProgramId, _start: u64, _len: u64, _huge: bool) -> Result<(), SpaceError> {
        Ok(())
    }
    /// Faults the range in, for writing if asked (MADV_POPULATE_*, MAP_POPULATE).
    fn populate(&self, owner: ProgramId, start: u64, len: u64, write: bool) -> Result<(), SpaceError>;
    /// Grows, shrinks or moves (mremap). `new_address`: MREMAP_FIXED.
    fn remap(
        &self,
        owner: ProgramId,
        start: u64,
        old_len: u64,
        new_len: u64,
        may_move: bool,
        new_address: Option<u64>,
    ) -> Result<u64, SpaceError>;
    /// True for each page of the range that is in memory (mincore).
    fn resident(&self, owner: ProgramId, start: u64, len: u64, out: &mut [bool]) -> Result<(), SpaceError>;
    /// Calls `each` with the owner's mappings in address order. `each` must not call back.
    fn regions(&self, owner: ProgramId, each: &mut dyn FnMut(&Region));
    fn footprint(&self, owner: ProgramId) -> Footprint;
    /// The footprint of the owner's mappings in a range.
    fn footprint_within(&self, owner: ProgramId, start: u64, end: u64) -> Footprint;
    /// Bytes of all programs that lie in huge pages.
    fn huge_bytes(&self) -> u64 {
        0
    }
    /// A file lost pages: no mapping shows them any more, and the next touch asks the pager again. The
    /// file must give [`PagerError::BeyondEnd`], or new pages, already. With `copies` (truncation) private
    /// copies go as well.
    fn file_lost(&self, object: ObjectId, pages: Range<u64>, copies: bool);
    /// No mapping may write these pages of a file without a new fault. When it returns, every write
    /// that was made without one is in memory for whoever reads the pages: writeback can begin.
    fn write_protect(&self, object: ObjectId, pages: Range<u64>);
    /// Takes those pages of a file out of the page table that are not in use: page `first + n` for each
    /// bit n of `pages`. Which were used since the last call is forgotten, and they stay, unless `force`.
    /// The result are the pages that were taken from some mapping. Takes no memory.
    fn unmap_unused(&self, object: ObjectId, first: u64, pages: u64, force: bool) -> u64;
    /// Unmaps everything of a program that has ended.
    fn release(&self, owner: ProgramId);
}
