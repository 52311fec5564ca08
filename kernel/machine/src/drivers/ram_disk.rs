//! A boot module as a block device: an image that is in memory already, mapped without a copy.
use rt::{
    block::{BlockDevice, BlockError, SECTOR_SIZE},
    page::{PAGE_SIZE, Page, PageId},
};

use crate::memory::frames;

pub struct RamDisk {
    /// Physical address, page-aligned.
    start: u64,
    len_bytes: u64,
}

impl RamDisk {
    /// The module at physical [start, end). None: not page-aligned, which no loader does.
    pub fn new((start, end): (u64, u64)) -> Option<Self> {
        start.is_multiple_of(PAGE_SIZE as u64).then_some(Self { start, len_bytes: end - start })
    }
}

impl BlockDevice for RamDisk {
    fn sectors(&self) -> u64 {
        self.len_bytes / SECTOR_SIZE as u64
    }

    fn read_pages(&self, first_sector: u64, pages: &[Page]) -> Result<(), BlockError> {
        let offset = first_sector * SECTOR_SIZE as u64;
        if !offset.is_multiple_of(PAGE_SIZE as u64) || offset + (pages.len() * PAGE_SIZE) as u64 > self.len_bytes {
            return Err(BlockError::OutOfRange);
        }
        for (index, page) in pages.iter().enumerate() {
            frames::copy(self.start + offset + (index * PAGE_SIZE) as u64, page.id().0);
        }
        Ok(())
    }

    fn write_pages(&self, _first_sector: u64, _pages: &[Page]) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    fn read_only(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn page_in_memory(&self, first_sector: u64) -> Option<Page> {
        let offset = first_sector * SECTOR_SIZE as u64;
        let whole = offset.is_multiple_of(PAGE_SIZE as u64) && offset + PAGE_SIZE as u64 <= self.len_bytes;
        whole.then(|| {
            let frame = self.start + offset;
            frames::reference(frame);
            Page::from_id(PageId(frame))
        })
    }
}
