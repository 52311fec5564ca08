//! Block device files: `/dev/vda` and its like, through the page cache.
//!
//! One [`BlockFile`] per device holds its pages, whatever paths and programs opened it; mappings show
//! the same pages. Writes are kept in memory and go to the device by [`writeback`]. A file system that is
//! mounted from a device has caches of its own, as on Linux.
//!
//! Deviation: a device whose size is no multiple of 4 KiB ends at the last whole page.
use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::{ops::Range, sync::atomic::AtomicU64};

use rt::{
    block::{BlockDevice, SECTOR_SIZE},
    page::{PAGE_SIZE, Page},
    rt,
    space::{ObjectId, Pager, PagerError},
    sync::SpinLock,
};

use crate::{
    cache::{
        FilePages, PageSource, Readahead, copy_into, read_through,
        writeback::{self, Medium, Writeback},
    },
    error::{FsError, FsResult},
    file::{FileOps, OpenFlags, Wait},
    inode::{device_number, device_parts},
    io::{Sink, Source, page_pieces},
};

const PAGE: u64 = PAGE_SIZE as u64;
const SECTORS_PER_PAGE: u64 = (PAGE_SIZE / SECTOR_SIZE) as u64;
/// Linux' dynamic major number of virtio disks as it usually comes out, and minor numbers a disk.
const MAJOR: u32 = 254;
const MINORS: u32 = 16;
/// vda to vdz.
const MOST: usize = 26;

/// A device that programs can open.
pub struct BlockFile {
    name: String,
    number: u64,
    device: Arc<dyn BlockDevice>,
    pages: Arc<FilePages>,
    writeback: Arc<Writeback>,
}

static DEVICES: SpinLock<Vec<Arc<BlockFile>>> = SpinLock::new(Vec::new());

/// Makes a virtio disk a device: the first is vda. None: there are too many.
pub fn register(device: Arc<dyn BlockDevice>) -> Option<Arc<BlockFile>> {
    let count = DEVICES.lock().len();
    if count == MOST {
        return None;
    }
    let letter = char::from(b'a' + count as u8);
    let file = BlockFile::new(format!("vd{letter}"), device_number(MAJOR, count as u32 * MINORS), device);
    DEVICES.lock().push(file.clone());
    Some(file)
}

/// (name, device number) of all devices.
pub fn devices() -> Vec<(String, u64)> {
    DEVICES.lock().iter().map(|file| (file.name.clone(), file.number)).collect()
}

/// Opens the device of that number; [`FsError::NoPeer`] (ENXIO) if there is none.
pub fn open(number: u64, flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
    let file = DEVICES.lock().iter().find(|file| file.number == number).cloned();
    Ok(file.ok_or(FsError::NoPeer)?.open(flags))
}

impl BlockFile {
    pub fn new(name: String, number: u64, device: Arc<dyn BlockDevice>) -> Arc<Self> {
        let pages = FilePages::new();
        let writeback = Writeback::new(&name, pages.clone(), Box::new(Sectors(device.clone())));
        Arc::new(Self { name, number, device, pages, writeback })
    }

    pub fn open(self: &Arc<Self>, flags: OpenFlags) -> Arc<dyn FileOps> {
        let seen = AtomicU64::new(self.writeback.errors().sample());
        let synchronous = flags.intersects(OpenFlags::SYNC | OpenFlags::DSYNC);
        Arc::new(BlockHandle(Arc::new(Opened { file: self.clone(), seen, synchronous })))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.pages() * PAGE
    }

    fn page(&self, index: u64, readahead: Readahead) -> FsResult<Page> {
        self.pages.get(index, readahead, self)
    }

    fn write_piece(&self, index: u64, offset: usize, len: usize, from: &mut dyn Source) -> FsResult<()> {
        writeback::balance();
        if len == PAGE_SIZE && self.pages.cached(index).is_none() {
            // Nothing of the old content stays: no need to read it.
            let new = Page::alloc()?;
            from.take_into_page(&new, 0, len)?;
            let (page, ours) = self.pages.insert(index, new.clone());
            if !ours {
                copy_into(&new, &page);
            }
            return self.written(index, &page);
        }
        let page = self.page(index, Readahead::Ahead)?;
        let taken = from.take_into_page(&page, offset, len);
        // A copy that failed may have come half way. Not before: a page that is written out while the
        // copy sleeps would be clean with the rest of it.
        self.written(index, &page).and(taken)
    }

    /// The page stays the file's while it is referenced, so this does not fail.
    fn written(&self, index: u64, page: &Page) -> FsResult<()> {
        if self.writeback.mark_dirty(index, page) { Ok(()) } else { Err(FsError::Io) }
    }
}

impl PageSource for BlockFile {
    fn pages(&self) -> u64 {
        self.device.sectors() / SECTORS_PER_PAGE
    }

    fn extent(&self, first: u64, max: u64) -> u64 {
        max.min(self.pages().saturating_sub(first))
    }

    fn load(&self, first: u64, pages: &[Page]) -> FsResult<()> {
        Ok(self.device.read_pages(first * SECTORS_PER_PAGE, pages)?)
    }
}

/// A device as the medium of its own file.
struct Sectors(Arc<dyn BlockDevice>);

impl Medium for Sectors {
    fn store(&self, first: u64, pages: &[Page]) -> FsResult<()> {
        Ok(self.0.write_pages(first * SECTORS_PER_PAGE, pages)?)
    }

    fn flush(&self) -> FsResult<()> {
        if self.0.read_only() { Ok(()) } else { Ok(self.0.flush()?) }
    }
}

/// One open of a device, and its mappings.
struct Opened {
    file: Arc<BlockFile>,
    /// The failures that this open was told of.
    seen: AtomicU64,
    /// O_SYNC, O_DSYNC.
    synchronous: bool,
}

impl Opened {
    fn sync(&self, pages: Range<u64>) -> FsResult<()> {
        self.file.writeback.sync(pages);
        self.file.writeback.errors().check(&self.seen)
    }
}

impl Pager for Opened {
    fn page(&self, index: u64, write: bool) -> Result<Page, PagerError> {
        if index >= self.file.pages() {
            return Err(PagerError::BeyondEnd);
        }
        if !write {
            return Ok(self.file.page(index, Readahead::Around)?);
        }
        if self.file.device.read_only() {
            return Err(PagerError::Io);
        }
        writeback::balance();
        let page = self.file.page(index, Readahead::Around)?;
        self.file.written(index, &page)?;
        Ok(page)
    }

    fn page_if_cached(&self, index: u64) -> Option<Page> {
        self.file.pages.cached(index)
    }

    fn pages_if_cached(&self, first: u64, out: &mut [Option<Page>]) {
        self.file.pages.cached_range(first, out);
    }

    fn confirm(&self, index: u64, _page: &Page, write: bool) -> bool {
        !write || self.file.pages.is_dirty(index)
    }

    fn object(&self) -> ObjectId {
        self.file.pages.object()
    }

    fn sync(&self, pages: Range<u64>) -> Result<(), PagerError> {
        Ok(self.sync(pages)?)
    }

    fn path(&self) -> String {
        format!("/dev/{}", self.file.name)
    }

    /// As the device's own inode on Linux' internal file system of block devices would show.
    fn identity(&self) -> (u32, u32, u64) {
        let (major, minor) = device_parts(self.file.number);
        (0, 0, u64::from(major) << 20 | u64::from(minor))
    }
}

/// What a descriptor of a device refers to.
struct BlockHandle(Arc<Opened>);

impl FileOps for BlockHandle {
    fn read(&self, at: u64, out: &mut dyn Sink, _wait: Wait) -> FsResult<usize> {
        let file = &self.0.file;
        read_through(file.size(), at, out, |index| file.page(index, Readahead::Ahead).map(Some))
    }

    /// Errors as Linux' blkdev_write_iter: EPERM for a read-only device, ENOSPC at the end.
    fn write(&self, at: u64, from: &mut dyn Source, _wait: Wait) -> FsResult<usize> {
        let file = &self.0.file;
        if file.device.read_only() {
            return Err(FsError::NotPermitted);
        }
        let wanted = from.remaining();
        let len = wanted.min(usize::try_from(file.size().saturating_sub(at)).unwrap_or(usize::MAX));
        if len == 0 && wanted > 0 {
            return Err(FsError::NoSpace);
        }
        let mut done = 0;
        for (index, offset, len) in page_pieces(at, len) {
            match file.write_piece(index, offset, len, from) {
                Ok(()) => done += len,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if self.0.synchronous && done > 0 {
            self.0.sync(at / PAGE..(at + done as u64).div_ceil(PAGE))?;
        }
        Ok(done)
    }

    /// O_APPEND means nothing to a device: Linux writes at its end, where there is no room.
    fn append(&self, from: &mut dyn Source, wait: Wait) -> FsResult<(usize, u64)> {
        let end = self.0.file.size();
        self.write(end, from, wait).map(|written| (written, end))
    }

    fn size(&self) -> FsResult<u64> {
        Ok(self.0.file.size())
    }

    fn sync(&self) -> FsResult<()> {
        self.0.sync(0..u64::MAX)
    }

    fn pager(&self) -> Option<Arc<dyn Pager>> {
        Some(self.0.clone())
    }

    fn allows_shared_writes(&self) -> bool {
        !self.0.file.device.read_only()
    }

    fn ioctl(&self, request: u32, argument: u64) -> FsResult<u64> {
        let file = &self.0.file;
        let put = |bytes: &[u8]| rt().user().write(argument, bytes).map(|()| 0).map_err(FsError::from);
        match request {
            BLKGETSIZE64 => put(&file.size().to_le_bytes()),
            BLKGETSIZE => put(&(file.size() / SECTOR_SIZE as u64).to_le_bytes()),
            BLKROGET => put(&i32::from(file.device.read_only()).to_le_bytes()),
            BLKSSZGET | BLKPBSZGET | BLKIOMIN => put(&(SECTOR_SIZE as u32).to_le_bytes()),
            BLKBSZGET => put(&(PAGE_SIZE as u32).to_le_bytes()),
            BLKIOOPT | BLKALIGNOFF => put(&0u32.to_le_bytes()),
            BLKFLSBUF => {
                self.sync()?;
                file.pages.drop_clean();
                Ok(0)
            }
            _ => Err(FsError::NotTty),
        }
    }
}

// linux/fs.h, for x86-64.
const BLKROGET: u32 = 0x125e;
const BLKGETSIZE: u32 = 0x1260;
const BLKFLSBUF: u32 = 0x1261;
const BLKSSZGET: u32 = 0x1268;
const BLKIOMIN: u32 = 0x1278;
const BLKIOOPT: u32 = 0x1279;
const BLKALIGNOFF: u32 = 0x127a;
const BLKPBSZGET: u32 = 0x127b;
const BLKBSZGET: u32 = 0x8008_1270;
const BLKGETSIZE64: u32 = 0x8008_1272;

#[cfg(test)]
mod tests;
