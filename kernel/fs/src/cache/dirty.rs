//! Which pages of a file its medium does not have yet.
//!
//! A page is dirty from the first write, by a call or by a mapping's write fault, until writeback takes
//! it; then it is being written, and may become dirty again meanwhile. Reclaim leaves both alone. The
//! number of such pages of all files ([`unwritten`]) is what bounds dirty memory.
//!
//! # Locking
//! As for the rest of a file's slots: leaf, no sleep.
use alloc::vec::Vec;
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use rt::{page::Page, task::ParkMode};

use super::{CHUNK, Chunk, FilePages, Slot, Slots};

/// Pages of all files that are dirty or being written.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);

pub fn unwritten() -> u64 {
    UNWRITTEN.load(Ordering::Relaxed)
}

/// Pages of one request to the medium.
pub(super) const RUN: usize = 64;

/// Pages taken for writing: `first` and those that follow it.
pub(super) struct Run {
    pub first: u64,
    pub pages: Vec<Page>,
}

impl Run {
    pub fn range(&self) -> Range<u64> {
        self.first..self.first + self.pages.len() as u64
    }
}

/// What writeback finds at or behind a page.
pub(super) enum Found {
    /// These are its to write now.
    Run(Run),
    /// This page is on its way already.
    Writing(u64),
    Nothing,
}

impl Chunk {
    fn bit(index: u64) -> u64 {
        1 << (index % CHUNK)
    }

    fn is_unwritten(&self, index: u64) -> bool {
        (self.dirty | self.writing) & Self::bit(index) != 0
    }
}

/// A page is dropped unwritten: the result is how many fewer there are to write. One that is on its way
/// counts until it has arrived.
pub(super) fn forget(dirty: &mut u64, writing: u64, index: u64) -> u64 {
    let bit = Chunk::bit(index);
    let was_dirty = *dirty & bit != 0;
    *dirty &= !bit;
    let fewer = u64::from(was_dirty && writing & bit == 0);
    UNWRITTEN.fetch_sub(fewer, Ordering::Relaxed);
    fewer
}

/// A file is gone with so many pages unwritten. Who has a medium must not let that happen: files of
/// devices live for ever.
pub(super) fn dropped(pages: u64) {
    if pages > 0 {
        log::error!("{pages} dirty pages went with their file");
        UNWRITTEN.fetch_sub(pages, Ordering::Relaxed);
    }
}

impl Slots {
    /// The page as one that may be taken for writing: dirty, and not on its way.
    fn take_dirty(&mut self, index: u64) -> Option<Page> {
        let chunk = self.chunks.get_mut(&(index / CHUNK))?;
        let bit = Chunk::bit(index);
        let Slot::Ready { page, .. } = &chunk.slots[(index % CHUNK) as usize] else { return None };
        if chunk.dirty & bit == 0 || chunk.writing & bit != 0 {
            return None;
        }
        chunk.dirty &= !bit;
        chunk.writing |= bit;
        Some(page.clone())
    }

    /// The first page in the range that is dirty or being written.
    fn next_unwritten(&self, range: &Range<u64>) -> Option<u64> {
        if self.unwritten == 0 || range.is_empty() {
            return None;
        }
        self.chunks.range(range.start / CHUNK..=(range.end - 1) / CHUNK).find_map(|(&number, chunk)| {
            let mut bits = chunk.dirty | chunk.writing;
            if number == range.start / CHUNK {
                bits &= u64::MAX << (range.start % CHUNK);
            }
            let index = number * CHUNK + u64::from(bits.trailing_zeros());
            (bits != 0 && index < range.end).then_some(index)
        })
    }
}

impl FilePages {
    /// Marks a page dirty, if it still is the one at `index`.
    pub fn mark_dirty(&self, index: u64, page: &Page) -> bool {
        let mut slots = self.slots.lock();
        let Some(chunk) = slots.chunks.get_mut(&(index / CHUNK)) else { return false };
        match &mut chunk.slots[(index % CHUNK) as usize] {
            Slot::Ready { page: now, used } if now == page => *used = true,
            _ => return false,
        }
        let counted = chunk.is_unwritten(index);
        chunk.dirty |= Chunk::bit(index);
        if !counted {
            slots.unwritten += 1;
            UNWRITTEN.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    pub fn is_dirty(&self, index: u64) -> bool {
        let slots = self.slots.lock();
        slots.chunks.get(&(index / CHUNK)).is_some_and(|chunk| chunk.dirty & Chunk::bit(index) != 0)
    }

    /// Pages that are dirty or being written.
    pub fn unwritten(&self) -> u64 {
        self.slots.lock().unwritten
    }

    /// Takes the first dirty pages in a row of the range for writing. With `skip` it looks past pages
    /// that are on their way.
    pub(super) fn take_run(&self, mut range: Range<u64>, skip: bool) -> Found {
        let mut pages = Vec::with_capacity(RUN);
        let mut slots = self.slots.lock();
        while let Some(first) = slots.next_unwritten(&range) {
            let Some(page) = slots.take_dirty(first) else {
                if skip {
                    range.start = first + 1;
                    continue;
                }
                return Found::Writing(first);
            };
            pages.push(page);
            while pages.len() < RUN && first + (pages.len() as u64) < range.end {
                let Some(page) = slots.take_dirty(first + pages.len() as u64) else { break };
                pages.push(page);
            }
            return Found::Run(Run { first, pages });
        }
        Found::Nothing
    }

    /// The pages of a run are on the medium, or given up.
    pub(super) fn end_run(&self, range: Range<u64>) {
        let mut clean = 0;
        {
            let mut slots = self.slots.lock();
            for index in range {
                let Some(chunk) = slots.chunks.get_mut(&(index / CHUNK)) else { continue };
                chunk.writing &= !Chunk::bit(index);
                clean += u64::from(!chunk.is_unwritten(index));
            }
            slots.unwritten -= clean;
        }
        UNWRITTEN.fetch_sub(clean, Ordering::Relaxed);
        self.written.wake_all();
    }

    /// Sleeps until the page is not on its way any more.
    pub(super) fn wait_written(&self, index: u64) {
        let is_writing = || {
            let slots = self.slots.lock();
            slots.chunks.get(&(index / CHUNK)).is_some_and(|chunk| chunk.writing & Chunk::bit(index) != 0)
        };
        let waited = self.written.wait_until(None, ParkMode::Uninterruptible, || (!is_writing()).then_some(()));
        debug_assert!(waited.is_ok());
    }

    /// Drops clean pages that nobody else holds (BLKFLSBUF).
    pub fn drop_clean(&self) {
        let mut from = Some(0);
        while let Some(chunk) = from {
            let mut gone = [const { None }; CHUNK as usize];
            from = self.take_unused(&mut gone, chunk, true).1;
        }
    }
}
