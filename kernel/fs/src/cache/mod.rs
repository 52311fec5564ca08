//! The page cache: the pages of each file, by index.
//!
//! A [`FilePages`] holds one file's pages. Device-backed files fill it through [`FilePages::get`],
//! which reads a window of up to 128 KiB around or 512 KiB ahead of a missing page in one request;
//! tasks that miss the same page wait for the one read. tmpfs keeps its only copy in it. Pages are
//! handed out as counted references: they are copied from, and mapped, without another copy.
//!
//! A file with a writable medium marks pages dirty ([`writeback`]); dirty ones stay until they are
//! written.
//!
//! # Locking
//! `slots` is a leaf spin lock: pages are allocated, read and freed outside it.
mod dirty;
mod reclaim;
pub mod writeback;

use alloc::{boxed::Box, collections::BTreeMap, sync::Arc, vec::Vec};
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use rt::{
    page::{PAGE_SIZE, Page},
    space::ObjectId,
    sync::{SpinGuard, SpinLock, WaitQueue},
    task::ParkMode,
};

pub use reclaim::reclaim;

use crate::{
    error::{FsError, FsResult},
    io::{Sink, page_pieces},
};

/// Pages of one allocation of slots: 256 KiB of file.
const CHUNK: u64 = 64;
/// Read around a page that a mapping faulted on: 128 KiB, aligned.
const AROUND: u64 = 32;
/// First and largest window of sequential reads: 128 and 512 KiB.
const AHEAD_FIRST: u64 = 32;
const AHEAD_MAX: u64 = 128;

/// Where missing pages come from.
pub trait PageSource {
    /// Pages of the file.
    fn pages(&self) -> u64;
    /// Of the pages from `first` on, at most `max`, those that one [`PageSource::load`] can fill.
    fn extent(&self, first: u64, max: u64) -> u64;
    /// Fills `pages` with the file's from `first` on; what is beyond the file's end becomes zero.
    fn load(&self, first: u64, pages: &[Page]) -> FsResult<()>;
    /// The page itself, if the device is memory.
    fn in_memory(&self, _index: u64) -> Option<Page> {
        None
    }
}

/// Which pages to read along with a missing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readahead {
    /// Those that follow: for reads.
    Ahead,
    /// Those beside it: for page faults.
    Around,
}

enum Slot {
    Empty,
    /// Some task reads it, by the number of that read: a slot may have been written, emptied and be read
    /// again before a slow read ends.
    Loading(u64),
    Ready {
        page: Page,
        /// Used since the reclaimer last came by.
        used: bool,
    },
}

struct Chunk {
    slots: [Slot; CHUNK as usize],
    /// A bit for each page that the medium does not have yet.
    dirty: u64,
    /// A bit for each page that is on its way to the medium; it may be dirty again.
    writing: u64,
}

impl Chunk {
    fn new() -> Box<Self> {
        Box::new(Self { slots: [const { Slot::Empty }; CHUNK as usize], dirty: 0, writing: 0 })
    }

    /// Nothing in it is anybody's.
    fn is_empty(&self) -> bool {
        (self.dirty | self.writing) == 0 && self.slots.iter().all(|slot| matches!(slot, Slot::Empty))
    }
}

#[derive(Default)]
struct Slots {
    chunks: BTreeMap<u64, Box<Chunk>>,
    /// Pages that are `Ready`.
    ready: u64,
    /// Pages that are dirty or being written.
    unwritten: u64,
    /// Chunk at which the reclaimer goes on.
    hand: u64,
    /// Number of the last read.
    reads: u64,
    /// Where the last window ended, and how long it was: a miss there is a sequential reader's.
    window_end: u64,
    window_len: u64,
    /// The reclaimer knows this file.
    registered: bool,
}

impl Slots {
    fn get(&self, index: u64) -> Option<&Slot> {
        self.chunks.get(&(index / CHUNK)).map(|chunk| &chunk.slots[(index % CHUNK) as usize])
    }

    fn get_mut(&mut self, index: u64) -> Option<&mut Slot> {
        self.chunks.get_mut(&(index / CHUNK)).map(|chunk| &mut chunk.slots[(index % CHUNK) as usize])
    }

    fn get_or_new(&mut self, index: u64) -> &mut Slot {
        let chunk = self.chunks.entry(index / CHUNK).or_insert_with(Chunk::new);
        &mut chunk.slots[(index % CHUNK) as usize]
    }

    /// Moves the pages of the range in its first chunk from `from` on to `gone`: their number, and the chunk
    /// to go on with.
    fn take_range(
        &mut self,
        from: u64,
        range: &Range<u64>,
        gone: &mut [Option<Page>; CHUNK as usize],
    ) -> (u64, Option<u64>) {
        let end = range.end.div_ceil(CHUNK).max(from);
        let Some((&number, chunk)) = self.chunks.range_mut(from..end).next() else { return (0, None) };
        let (mut count, mut clean) = (0, 0);
        for (at, (slot, place)) in (number * CHUNK..).zip(chunk.slots.iter_mut().zip(gone)) {
            if range.contains(&at) && matches!(slot, Slot::Ready { .. }) {
                if let Slot::Ready { page, .. } = core::mem::replace(slot, Slot::Empty) {
                    *place = Some(page);
                }
                count += 1;
                clean += dirty::forget(&mut chunk.dirty, chunk.writing, at);
            }
        }
        if chunk.is_empty() {
            self.chunks.remove(&number);
        }
        self.count_out(count);
        self.unwritten -= clean;
        (count, Some(number + 1))
    }

    fn is_empty_at(&self, index: u64) -> bool {
        matches!(self.get(index), None | Some(Slot::Empty))
    }

    /// The pages to read for a miss at `index`: empty ones without a gap.
    fn window(&mut self, index: u64, readahead: Readahead, source: &dyn PageSource) -> Range<u64> {
        let (from, to) = match readahead {
            Readahead::Around => (index / AROUND * AROUND, (index / AROUND + 1) * AROUND),
            Readahead::Ahead => {
                let sequential = index == self.window_end && index != 0;
                self.window_len = if sequential { (self.window_len * 2).min(AHEAD_MAX) } else { AHEAD_FIRST };
                (index, index.saturating_add(self.window_len))
            }
        };
        let mut start = index;
        while start > from && self.is_empty_at(start - 1) {
            start -= 1;
        }
        let mut end = index + 1;
        while end < to.min(source.pages()) && self.is_empty_at(end) {
            end += 1;
        }
        // Around a fault the start may belong to another extent; then begin with the page itself.
        if start + source.extent(start, end - start) <= index {
            start = index;
        }
        let end = start + source.extent(start, end - start).max(1);
        self.window_end = end;
        start..end
    }
}

/// Pages that files without a medium and those with one have in memory.
static CACHED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// What the cache holds, in pages (/proc/meminfo).
pub struct Usage {
    /// Of files whose medium has them, or will: memory that can be had back.
    pub with_medium: u64,
    pub memory_only: u64,
    /// Dirty, or being written.
    pub unwritten: u64,
}

pub fn usage() -> Usage {
    let [memory_only, with_medium] = CACHED.each_ref().map(|count| count.load(Ordering::Relaxed));
    Usage { with_medium, memory_only, unwritten: dirty::unwritten() }
}

impl Slots {
    fn count_in(&mut self, pages: u64) {
        self.ready += pages;
        CACHED[usize::from(self.registered)].fetch_add(pages, Ordering::Relaxed);
    }

    fn count_out(&mut self, pages: u64) {
        self.ready -= pages;
        CACHED[usize::from(self.registered)].fetch_sub(pages, Ordering::Relaxed);
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.count_out(self.ready);
        dirty::dropped(self.unwritten);
    }
}

/// One file's pages.
pub struct FilePages {
    slots: SpinLock<Slots>,
    /// Woken when pages stop being `Loading`.
    loaded: WaitQueue,
    /// Woken when pages stop being written.
    written: WaitQueue,
    /// Calls of [`FilePages::remove`], or more; grows under the lock of `slots`.
    removals: AtomicU64,
    object: ObjectId,
}

impl FilePages {
    pub fn new() -> Arc<Self> {
        let slots = SpinLock::new(Slots::default());
        let object = ObjectId::unique();
        let removals = AtomicU64::new(0);
        Arc::new(Self { slots, loaded: WaitQueue::new(), written: WaitQueue::new(), removals, object })
    }

    /// What mappings of these pages name.
    pub fn object(&self) -> ObjectId {
        self.object
    }

    /// True if this is the page at `index` now. Never sleeps.
    pub fn holds(&self, index: u64, page: &Page) -> bool {
        matches!(self.slots.lock().get(index), Some(Slot::Ready { page: now, .. }) if now == page)
    }

    /// The page if it is in memory. Never sleeps.
    #[inline]
    pub fn cached(&self, index: u64) -> Option<Page> {
        match self.slots.lock().get_mut(index) {
            Some(Slot::Ready { page, used }) => {
                *used = true;
                Some(page.clone())
            }
            _ => None,
        }
    }

    /// Those pages from `first` on that are in memory, into the places of `out` that are still `None`.
    pub fn cached_range(&self, first: u64, out: &mut [Option<Page>]) {
        let mut slots = self.slots.lock();
        for (index, place) in (first..).zip(out).filter(|(_, place)| place.is_none()) {
            if let Some(Slot::Ready { page, used }) = slots.get_mut(index) {
                *used = true;
                *place = Some(page.clone());
            }
        }
    }

    /// The page, read with its neighbours if it is not in memory. `index` is within the source.
    pub fn get(self: &Arc<Self>, index: u64, readahead: Readahead, source: &dyn PageSource) -> FsResult<Page> {
        if let Some(page) = source.in_memory(index) {
            return Ok(page);
        }
        loop {
            let marked = {
                let mut slots = self.slots.lock();
                match slots.get_mut(index) {
                    Some(Slot::Ready { page, used }) => {
                        *used = true;
                        return Ok(page.clone());
                    }
                    Some(Slot::Loading(_)) => None,
                    Some(Slot::Empty) | None => {
                        let range = slots.window(index, readahead, source);
                        slots.reads += 1;
                        let read = slots.reads;
                        range.clone().for_each(|at| *slots.get_or_new(at) = Slot::Loading(read));
                        Some(Marked { file: self, range, read })
                    }
                }
            };
            match marked {
                Some(marked) => {
                    if let Some(page) = self.load(index, marked, source)? {
                        return Ok(page);
                    }
                }
                None => self.wait_loaded(index),
            }
        }
    }

    /// Reads a window whose slots this task has marked `Loading`. None: a page that was written meanwhile
    /// has taken the place of the one that was read.
    fn load(self: &Arc<Self>, index: u64, mut marked: Marked<'_>, source: &dyn PageSource) -> FsResult<Option<Page>> {
        let window = marked.range.clone();
        let mut pages = Vec::with_capacity((window.end - window.start) as usize);
        for at in window.clone() {
            match Page::alloc() {
                Ok(page) => pages.push(page),
                // Readahead is a luxury; the page itself is not.
                Err(_) if at > index => break,
                Err(out) => return Err(out.into()),
            }
        }
        source.load(window.start, &pages)?;
        let mut wanted = Some(pages[(index - window.start) as usize].clone());
        let mut overtaken = Vec::new();
        let register = {
            let mut slots = self.slots.lock();
            let register = !core::mem::replace(&mut slots.registered, true);
            for (at, page) in window.clone().zip(pages) {
                match slots.get_mut(at) {
                    Some(slot) if marked.has(slot) => {
                        *slot = Slot::Ready { page, used: at == index };
                        slots.count_in(1);
                    }
                    _ => {
                        wanted.take_if(|_| at == index);
                        overtaken.push(page);
                    }
                }
                marked.range.start = at + 1;
            }
            register
        };
        drop(overtaken);
        if register {
            reclaim::register(Arc::downgrade(self));
        }
        Ok(wanted)
    }

    fn wait_loaded(&self, index: u64) {
        let done = || (!matches!(self.slots.lock().get(index), Some(Slot::Loading(_)))).then_some(());
        let waited = self.loaded.wait_until(None, ParkMode::Uninterruptible, done);
        debug_assert!(waited.is_ok());
    }

    // --- files whose only copy is here ---

    /// Enters a page where none is; the result is the one that is there now. True: it is this one.
    pub fn insert(&self, index: u64, page: Page) -> (Page, bool) {
        self.insert_into(self.slots.lock(), index, page)
    }

    /// As [`FilePages::insert`], unless pages were removed since there were so many
    /// [`FilePages::removals`]: then what the page was made of may be gone from the file.
    pub fn insert_since(&self, removals: u64, index: u64, page: Page) -> Option<(Page, bool)> {
        let slots = self.slots.lock();
        (self.removals() == removals).then(|| self.insert_into(slots, index, page))
    }

    fn insert_into(&self, mut slots: SpinGuard<'_, Slots>, index: u64, page: Page) -> (Page, bool) {
        let slot = slots.get_or_new(index);
        if let Slot::Ready { page: other, .. } = slot {
            let other = other.clone();
            drop(slots);
            return (other, false);
        }
        let overtakes = matches!(slot, Slot::Loading(_));
        *slot = Slot::Ready { page: page.clone(), used: true };
        slots.count_in(1);
        drop(slots);
        if overtakes {
            self.loaded.wake_all();
        }
        (page, true)
    }

    /// How often pages were removed.
    pub fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }

    /// Drops the pages of the range; the result is how many there were. A chunk at a time: however large
    /// the file is, nothing is allocated to shrink it, and nobody spins for long.
    pub fn remove(&self, range: Range<u64>) -> u64 {
        let mut removed = 0;
        let mut from = Some(range.start / CHUNK);
        while let Some(chunk) = from {
            let mut gone = [const { None::<Page> }; CHUNK as usize];
            let mut slots = self.slots.lock();
            self.removals.fetch_add(1, Ordering::Release);
            let (count, next) = slots.take_range(chunk, &range, &mut gone);
            drop(slots);
            removed += count;
            from = next;
        }
        removed
    }

    /// The first page in memory at or behind `index`.
    pub fn next_cached(&self, index: u64) -> Option<u64> {
        let slots = self.slots.lock();
        slots.chunks.range(index / CHUNK..).find_map(|(&number, chunk)| {
            let cached = |(_, slot): &(u64, &Slot)| matches!(slot, Slot::Ready { .. });
            (number * CHUNK..).zip(chunk.slots.iter()).filter(cached).map(|(at, _)| at).find(|&at| at >= index)
        })
    }

    /// Pages in memory.
    pub fn len(&self) -> u64 {
        self.slots.lock().ready
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Slots that the current task marked `Loading`; those not filled in the end become empty again, so
/// that the next comer tries.
struct Marked<'a> {
    file: &'a FilePages,
    range: Range<u64>,
    read: u64,
}

impl Marked<'_> {
    /// True if the slot is still this read's.
    fn has(&self, slot: &Slot) -> bool {
        matches!(slot, Slot::Loading(read) if *read == self.read)
    }
}

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        if !self.range.is_empty() {
            let mut slots = self.file.slots.lock();
            for at in self.range.clone() {
                if let Some(slot) = slots.get_mut(at)
                    && self.has(slot)
                {
                    *slot = Slot::Empty;
                }
            }
        }
        self.file.loaded.wake_all();
    }
}

/// Copies from a file of `size` bytes, page by page; `page` gives them, None for a hole. Short if it
/// fails after the first bytes.
pub fn read_through(
    size: u64,
    at: u64,
    out: &mut dyn Sink,
    mut page: impl FnMut(u64) -> FsResult<Option<Page>>,
) -> FsResult<usize> {
    let len = out.remaining().min(usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX));
    let mut done = 0;
    for (index, offset, len) in page_pieces(at, len) {
        let put = page(index).and_then(|page| match page {
            Some(page) => out.put_page(&page, offset, len),
            None => out.put_zeros(len),
        });
        match put {
            Ok(()) => done += len,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Zeroes the page's bytes in the range.
pub fn zero_in_page(page: &Page, range: Range<usize>) {
    let zeros = [0; 512];
    let mut at = range.start;
    while at < range.end {
        let now = (range.end - at).min(zeros.len());
        page.write(at, &zeros[..now]);
        at += now;
    }
}

/// A new page with the content of another.
pub fn copy_page(page: &Page) -> FsResult<Page> {
    let copy = Page::alloc()?;
    copy_into(page, &copy);
    Ok(copy)
}

/// Copies a page's content into another.
pub fn copy_into(from: &Page, to: &Page) {
    let mut bytes = [0; 512];
    for at in (0..PAGE_SIZE).step_by(bytes.len()) {
        from.read(at, &mut bytes);
        to.write(at, &bytes);
    }
}

/// The index behind the last page of a file of that size.
pub fn pages_of(size: u64) -> u64 {
    size.div_ceil(PAGE_SIZE as u64)
}

/// An error for a write that would make a file larger than Linux allows.
pub fn check_size(size: u64) -> FsResult<()> {
    if size > i64::MAX as u64 { Err(FsError::TooBig) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
