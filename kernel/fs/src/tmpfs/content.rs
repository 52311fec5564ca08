//! A regular file's content in memory: its own pages, holes, and pages shown from a lower file.
//!
//! # Locking
//! `writing` is a sleeping mutex held over a write, including its copy from application memory, and
//! over changes of size. Reads and page faults take no lock but the page cache's, so a write may
//! fault on a mapping of the same file.
use alloc::sync::Arc;
use core::{
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rt::{
    page::{PAGE_SIZE, Page},
    rt,
    space::{ObjectId, Pager},
    sync::Mutex,
};

use super::Shared;
use crate::{
    cache::{self, FilePages, pages_of, read_through},
    error::{FsError, FsResult},
    inode::AllocateMode,
    io::{Sink, Source, page_pieces},
};

const PAGE: u64 = PAGE_SIZE as u64;

pub struct Content {
    shared: Arc<Shared>,
    pages: Arc<FilePages>,
    /// `pages` has or had some: spares unchanged shadows the lookup.
    has_own: AtomicBool,
    size: AtomicU64,
    writing: Mutex<()>,
    lower: Option<Lower>,
}

/// The file that shows where there is no own page.
struct Lower {
    pager: Arc<dyn Pager>,
    /// So many of its bytes show; a truncation lowers it for good.
    visible: AtomicU64,
}

impl Content {
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self::build(shared, 0, None)
    }

    /// Over a lower file of `size` bytes.
    pub fn over(shared: &Arc<Shared>, pager: Arc<dyn Pager>, size: u64) -> Self {
        Self::build(shared, size, Some(Lower { pager, visible: AtomicU64::new(size) }))
    }

    fn build(shared: &Arc<Shared>, size: u64, lower: Option<Lower>) -> Self {
        Self {
            shared: shared.clone(),
            pages: FilePages::new(),
            has_own: AtomicBool::new(false),
            size: AtomicU64::new(size),
            writing: Mutex::new(()),
            lower,
        }
    }

    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Pages of the lower file and own ones are mapped through the same mappings: one object.
    pub fn object(&self) -> ObjectId {
        self.lower.as_ref().map_or_else(|| self.pages.object(), |lower| lower.pager.object())
    }

    /// Pages in memory that are the file's own.
    pub fn own_pages(&self) -> u64 {
        self.pages.len()
    }

    pub fn read(&self, at: u64, out: &mut dyn Sink) -> FsResult<usize> {
        read_through(self.size(), at, out, |index| self.page(index))
    }

    /// Writes at `at`, or at the end; the result is (bytes, the position behind them). There must be some: a
    /// write of nothing does not reach a file.
    pub fn write(&self, at: Option<u64>, from: &mut dyn Source) -> FsResult<(usize, u64)> {
        let _writing = self.writing.lock();
        let at = at.unwrap_or_else(|| self.size());
        cache::check_size(at.saturating_add(from.remaining() as u64))?;
        let mut done = 0;
        for (index, offset, len) in page_pieces(at, from.remaining()) {
            let written = self.own_page(index).and_then(|page| from.take_into_page(&page, offset, len));
            match written {
                Ok(()) => done += len,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let end = at + done as u64;
        self.size.fetch_max(end, Ordering::AcqRel);
        Ok((done, end))
    }

    pub fn truncate(&self, size: u64) -> FsResult<()> {
        cache::check_size(size)?;
        let _writing = self.writing.lock();
        let old = self.size();
        if size < old {
            // The rest of the last page must read as zero if the file grows again.
            let within = (size % PAGE) as usize;
            if within != 0 && self.page(size / PAGE)?.is_some() {
                cache::zero_in_page(&self.own_page(size / PAGE)?, within..PAGE_SIZE);
            }
        }
        self.size.store(size, Ordering::Release);
        if let Some(lower) = &self.lower {
            lower.visible.fetch_min(size, Ordering::AcqRel);
        }
        if size < old {
            self.drop_pages(pages_of(size)..u64::MAX);
            // Before the lock goes: what a file that has grown again is mapped with must stay.
            rt().address_space().file_lost(self.object(), pages_of(size)..u64::MAX, true);
        }
        Ok(())
    }

    /// fallocate(2). Deviation: reserving sets the size but claims no memory, as the limit is checked
    /// when pages come to be.
    pub fn allocate(&self, mode: AllocateMode, offset: u64, len: u64) -> FsResult<()> {
        let end = offset.checked_add(len).filter(|_| len > 0).ok_or(FsError::Invalid)?;
        cache::check_size(end)?;
        let _writing = self.writing.lock();
        let keep_size = match mode {
            AllocateMode::Reserve { keep_size } => keep_size,
            AllocateMode::ZeroRange { keep_size } => {
                self.zero(offset..end)?;
                keep_size
            }
            AllocateMode::PunchHole => {
                self.zero(offset..end)?;
                true
            }
        };
        if !keep_size {
            self.size.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }

    /// First data or hole at or behind `at`.
    pub fn seek_hole(&self, at: u64, hole: bool) -> FsResult<u64> {
        let size = self.size();
        if at >= size {
            return Err(FsError::NoData);
        }
        let is_data = |index: u64| self.shows_lower(index) || self.pages.next_cached(index) == Some(index);
        let mut index = at / PAGE;
        while index < pages_of(size) && is_data(index) == hole {
            index = match hole {
                // What shows of the lower file is its begin, without a gap.
                true if self.shows_lower(index) => self.lower_pages(),
                true => index + 1,
                false => self.pages.next_cached(index).unwrap_or(u64::MAX),
            };
        }
        match index.checked_mul(PAGE).map(|found| found.max(at)) {
            Some(found) if found < size => Ok(found),
            // There is a hole at the end of every file.
            _ if hole => Ok(size),
            _ => Err(FsError::NoData),
        }
    }

    /// The page as it is now; None for a hole.
    pub fn page(&self, index: u64) -> FsResult<Option<Page>> {
        if self.has_own.load(Ordering::Acquire)
            && let Some(page) = self.pages.cached(index)
        {
            return Ok(Some(page));
        }
        match &self.lower {
            Some(lower) if self.shows_lower(index) => Ok(Some(lower.pager.page(index, false)?)),
            _ => Ok(None),
        }
    }

    /// False: a page that [`Content::page`] gave is not what the file has there now. Of a lower file's pages
    /// that an own one has taken the place of, mappings made before may go on showing them, as with
    /// overlayfs.
    pub fn still_shows(&self, index: u64, page: &Page) -> bool {
        if !self.has_own.load(Ordering::Acquire) {
            return self.shows_lower(index);
        }
        self.pages.cached(index).map_or_else(|| self.shows_lower(index), |own| own == *page)
    }

    /// As [`Content::page`], without sleeping.
    pub fn page_in_memory(&self, index: u64) -> Option<Page> {
        let own = if self.has_own.load(Ordering::Acquire) { self.pages.cached(index) } else { None };
        own.or_else(|| match &self.lower {
            Some(lower) if self.shows_lower(index) => lower.pager.page_if_cached(index),
            _ => None,
        })
    }

    /// As [`Content::page_in_memory`] for the pages from `first` on.
    pub fn pages_in_memory(&self, first: u64, out: &mut [Option<Page>]) {
        let own = self.has_own.load(Ordering::Acquire);
        match &self.lower {
            Some(lower) if !own && self.shows_lower((first + out.len() as u64).saturating_sub(1)) => {
                lower.pager.pages_if_cached(first, out);
            }
            Some(_) => {
                for (index, place) in (first..).zip(out) {
                    *place = self.page_in_memory(index);
                }
            }
            None => self.pages.cached_range(first, out),
        }
    }

    /// The page to write to: the file's own, made from the lower one or zeros if need be.
    pub fn own_page(&self, index: u64) -> FsResult<Page> {
        loop {
            // A fault holds no lock: the file may be cut short meanwhile, and what the lower one has here must
            // not come back with a page that was made before.
            let removals = self.pages.removals();
            if let Some(page) = self.pages.cached(index) {
                return Ok(page);
            }
            self.shared.charge(PAGE)?;
            let new = match &self.lower {
                Some(lower) if self.shows_lower(index) => {
                    lower.pager.page(index, false).map_err(FsError::from).and_then(|page| cache::copy_page(&page))
                }
                _ => Page::alloc_zeroed().map_err(FsError::from),
            };
            let entered = new.map(|new| {
                self.has_own.store(true, Ordering::Release);
                self.pages.insert_since(removals, index, new)
            });
            if !matches!(entered, Ok(Some((_, true)))) {
                // It failed, or another task was faster.
                self.shared.give_back(PAGE);
            }
            if let Some((page, _)) = entered? {
                return Ok(page);
            }
        }
    }

    fn shows_lower(&self, index: u64) -> bool {
        index < self.lower_pages()
    }

    /// Pages of the lower file that show where there are no own ones.
    fn lower_pages(&self) -> u64 {
        self.lower.as_ref().map_or(0, |lower| pages_of(lower.visible.load(Ordering::Acquire)))
    }

    /// Makes a range read as zero; whole pages that hide nothing are dropped.
    fn zero(&self, range: Range<u64>) -> FsResult<()> {
        let range = range.start..range.end.min(pages_of(self.size()) * PAGE);
        if range.is_empty() {
            return Ok(());
        }
        let whole = range.start.div_ceil(PAGE)..range.end / PAGE;
        let covers = |index: u64| whole.contains(&index) && !self.shows_lower(index);
        let mut index = range.start / PAGE;
        while index * PAGE < range.end {
            if covers(index) {
                // From here on, up to the last whole page, no lower page shows.
                self.drop_pages(index..whole.end);
                rt().address_space().file_lost(self.object(), index..whole.end, false);
                index = whole.end;
                continue;
            }
            if self.page(index)?.is_some() {
                let start = range.start.saturating_sub(index * PAGE).min(PAGE) as usize;
                let end = (range.end - index * PAGE).min(PAGE) as usize;
                cache::zero_in_page(&self.own_page(index)?, start..end);
            }
            index += 1;
        }
        Ok(())
    }

    fn drop_pages(&self, range: Range<u64>) {
        let dropped = self.pages.remove(range);
        self.shared.give_back(dropped * PAGE);
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.drop_pages(0..u64::MAX);
    }
}
