//! EROFS: the read-only file system of images, over a block device.
//!
//! The layout is [`logic::erofs`]'s; here it meets devices and the page cache. Metadata is read through
//! a page cache of the device, content through one of each file. Where the device is memory (an
//! image given as a boot module) whole pages of files are the image's own, without a copy.
//!
//! # Locking
//! `inodes` is a leaf spin lock.
use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec,
    vec::Vec,
};
use core::cmp::Ordering;

use logic::erofs::{self, BLOCK_SIZE, DirBlock, ErofsError, INODE_SIZE_MAX, INODE_SIZE_MIN, SuperBlock};
use rt::{
    block::{BlockDevice, SECTOR_SIZE},
    page::{PAGE_SIZE, Page},
    space::{ObjectId, Pager, PagerError},
    sync::SpinLock,
};

use crate::{
    block,
    cache::{self, FilePages, PageSource, Readahead, read_through},
    devices,
    error::{FsError, FsResult},
    file::{FileOps, NoContent, OpenFlags, Wait},
    inode::{
        DirEntry, EachEntry, FileKind, FileSystem, FileSystemStatus, Inode, Metadata, Timestamp, device_number,
        device_parts,
    },
    io::{Sink, page_pieces},
};

/// statfs(2)'s EROFS_SUPER_MAGIC_V1.
const MAGIC: u64 = 0xe0f5_e1e2;
const SECTORS_PER_PAGE: u64 = (PAGE_SIZE / SECTOR_SIZE) as u64;

impl From<ErofsError> for FsError {
    fn from(error: ErofsError) -> Self {
        match error {
            ErofsError::BadMagic => Self::Invalid,
            ErofsError::Unsupported => Self::NotSupported,
            ErofsError::Corrupt => Self::Io,
        }
    }
}

/// A mounted EROFS image.
pub struct Erofs {
    image: Arc<Image>,
    root: Arc<ErofsInode>,
}

impl Erofs {
    /// Opens the image on a device. [`FsError::Invalid`] if there is none; [`FsError::NotSupported`] if
    /// it is compressed, or spread over devices.
    pub fn open(device: Arc<dyn BlockDevice>) -> FsResult<Arc<Self>> {
        let image_bytes = device.sectors() / SECTORS_PER_PAGE * PAGE_SIZE as u64;
        let metadata = MetadataPages { device: &*device, pages: image_bytes / PAGE_SIZE as u64 };
        let metadata_cache = FilePages::new();
        let mut bytes = [0; erofs::SUPERBLOCK_SIZE];
        metadata.read(&metadata_cache, erofs::SUPERBLOCK_OFFSET, &mut bytes)?;
        let super_block = SuperBlock::parse(&bytes, image_bytes)?;
        let image = Arc::new(Image {
            device,
            super_block,
            image_bytes,
            metadata_cache,
            device_number: crate::inode::anonymous_device(),
            inodes: SpinLock::new(BTreeMap::new()),
        });
        let root = image.inode(super_block.root_nid)?;
        if root.kind != FileKind::Directory {
            return Err(FsError::Io);
        }
        Ok(Arc::new(Self { image, root }))
    }
}

impl FileSystem for Erofs {
    fn type_name(&self) -> &'static str {
        "erofs"
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }

    fn status(&self) -> FileSystemStatus {
        FileSystemStatus {
            magic: MAGIC,
            block_size: PAGE_SIZE as u32,
            blocks: self.image.super_block.blocks.into(),
            files: self.image.super_block.inodes,
            name_max: 255,
            ..FileSystemStatus::default()
        }
    }

    fn device(&self) -> u64 {
        self.image.device_number
    }

    fn is_read_only(&self) -> bool {
        true
    }
}

struct Image {
    device: Arc<dyn BlockDevice>,
    super_block: SuperBlock,
    image_bytes: u64,
    metadata_cache: Arc<FilePages>,
    device_number: u64,
    /// Inodes in use, by number: names of one file share its page cache.
    inodes: SpinLock<BTreeMap<u64, Weak<ErofsInode>>>,
}

/// The image's own bytes as pages.
struct MetadataPages<'a> {
    device: &'a dyn BlockDevice,
    pages: u64,
}

impl MetadataPages<'_> {
    fn read(&self, cache: &Arc<FilePages>, offset: u64, out: &mut [u8]) -> FsResult<()> {
        let mut at = 0;
        for (index, within, len) in page_pieces(offset, out.len()) {
            if index >= self.pages {
                return Err(FsError::Io);
            }
            cache.get(index, Readahead::Around, self)?.read(within, &mut out[at..at + len]);
            at += len;
        }
        Ok(())
    }
}

impl PageSource for MetadataPages<'_> {
    fn pages(&self) -> u64 {
        self.pages
    }

    fn extent(&self, _first: u64, max: u64) -> u64 {
        max
    }

    fn load(&self, first: u64, pages: &[Page]) -> FsResult<()> {
        Ok(self.device.read_pages(first * SECTORS_PER_PAGE, pages)?)
    }

    fn in_memory(&self, index: u64) -> Option<Page> {
        self.device.page_in_memory(index * SECTORS_PER_PAGE)
    }
}

impl Image {
    fn read_metadata(&self, offset: u64, out: &mut [u8]) -> FsResult<()> {
        let pages = MetadataPages { device: &*self.device, pages: self.image_bytes / PAGE_SIZE as u64 };
        pages.read(&self.metadata_cache, offset, out)
    }

    fn inode(self: &Arc<Self>, nid: u64) -> FsResult<Arc<ErofsInode>> {
        if let Some(inode) = self.inodes.lock().get(&nid).and_then(Weak::upgrade) {
            return Ok(inode);
        }
        let offset = self.super_block.inode_offset(nid)?;
        let mut bytes = [0; INODE_SIZE_MAX];
        self.read_metadata(offset, &mut bytes[..INODE_SIZE_MIN])?;
        let size = erofs::Inode::size_on_disk([bytes[0], bytes[1]]);
        if size > INODE_SIZE_MIN {
            self.read_metadata(offset + INODE_SIZE_MIN as u64, &mut bytes[INODE_SIZE_MIN..size])?;
        }
        let layout = erofs::Inode::parse(&bytes[..size], offset, &self.super_block)?;
        let kind = FileKind::from_mode_bits(layout.mode).ok_or(FsError::Io)?;
        let new = Arc::new(ErofsInode { image: self.clone(), nid, kind, layout, pages: FilePages::new() });
        let mut inodes = self.inodes.lock();
        if let Some(other) = inodes.get(&nid).and_then(Weak::upgrade) {
            drop(inodes);
            return Ok(other);
        }
        inodes.insert(nid, Arc::downgrade(&new));
        Ok(new)
    }
}

/// An inode of the image; its content's pages stay cached as long as it is known to anybody.
pub struct ErofsInode {
    image: Arc<Image>,
    nid: u64,
    kind: FileKind,
    layout: erofs::Inode,
    pages: Arc<FilePages>,
}

impl Drop for ErofsInode {
    fn drop(&mut self) {
        let mut inodes = self.image.inodes.lock();
        // Another task may have made a new one already.
        if inodes.get(&self.nid).is_some_and(|weak| weak.strong_count() == 0) {
            inodes.remove(&self.nid);
        }
    }
}

impl PageSource for ErofsInode {
    fn pages(&self) -> u64 {
        self.layout.pages()
    }

    fn extent(&self, first: u64, max: u64) -> u64 {
        self.layout.contiguous_pages(first, max)
    }

    fn load(&self, first: u64, pages: &[Page]) -> FsResult<()> {
        match self.source(first)? {
            erofs::PageSource::Image { offset, .. } if offset.is_multiple_of(BLOCK_SIZE) => {
                self.image.device.read_pages(offset / SECTOR_SIZE as u64, pages)?;
                // Behind the end there should be zeros already; a mapping relies on it.
                let end = self.layout.size - first * BLOCK_SIZE;
                if end < (pages.len() * PAGE_SIZE) as u64
                    && let Some(last) = pages.get(end as usize / PAGE_SIZE)
                {
                    cache::zero_in_page(last, end as usize % PAGE_SIZE..PAGE_SIZE);
                }
            }
            erofs::PageSource::Image { offset, len } => {
                let Some(page) = pages.first() else { return Ok(()) };
                let mut bytes = vec![0; PAGE_SIZE];
                self.image.read_metadata(offset, &mut bytes[..len])?;
                page.write(0, &bytes);
            }
            erofs::PageSource::Zero | erofs::PageSource::ChunkEntry { .. } => {
                pages.iter().for_each(|page| cache::zero_in_page(page, 0..PAGE_SIZE));
            }
        }
        Ok(())
    }

    fn in_memory(&self, index: u64) -> Option<Page> {
        match self.layout.page_source(index) {
            erofs::PageSource::Image { offset, .. } if offset.is_multiple_of(BLOCK_SIZE) => {
                self.image.device.page_in_memory(offset / SECTOR_SIZE as u64)
            }
            _ => None,
        }
    }
}

impl ErofsInode {
    fn source(&self, index: u64) -> FsResult<erofs::PageSource> {
        match self.layout.page_source(index) {
            erofs::PageSource::ChunkEntry { offset } => {
                let mut entry = [0; 4];
                self.image.read_metadata(offset, &mut entry)?;
                Ok(self.layout.resolve_chunk(index, entry)?)
            }
            source => Ok(source),
        }
    }

    fn page_at(&self, index: u64, readahead: Readahead) -> FsResult<Page> {
        self.pages.get(index, readahead, self)
    }

    /// Content as bytes: a directory block or a link's target.
    fn bytes(&self, at: u64, len: usize) -> FsResult<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        for (index, within, len) in page_pieces(at, len) {
            self.page_at(index, Readahead::Ahead)?.read(within, &mut bytes[done..done + len]);
            done += len;
        }
        Ok(bytes)
    }

    fn directory_block(&self, number: u64) -> FsResult<Vec<u8>> {
        let at = number * BLOCK_SIZE;
        self.bytes(at, (self.layout.size - at).min(BLOCK_SIZE) as usize)
    }

    fn check_directory(&self) -> FsResult<()> {
        if self.kind == FileKind::Directory { Ok(()) } else { Err(FsError::NotDirectory) }
    }
}

fn kind_of_type(file_type: u8) -> FileKind {
    match file_type {
        2 => FileKind::Directory,
        3 => FileKind::CharDevice,
        4 => FileKind::BlockDevice,
        5 => FileKind::Fifo,
        6 => FileKind::Socket,
        7 => FileKind::Symlink,
        _ => FileKind::Regular,
    }
}

/// Linux' on-disk device number (new_decode_dev) as [`device_number`].
fn decode_device(rdev: u32) -> u64 {
    device_number(rdev >> 8 & 0xfff, (rdev & 0xff) | (rdev >> 12 & 0xf_ff00))
}

impl Inode for ErofsInode {
    fn kind(&self) -> FileKind {
        self.kind
    }

    fn metadata(&self) -> FsResult<Metadata> {
        let (seconds, nanoseconds) = self.layout.modified;
        let time = Timestamp { seconds, nanoseconds };
        Ok(Metadata {
            device: self.image.device_number,
            inode: self.nid,
            kind: self.kind,
            permissions: self.layout.mode & 0o7777,
            links: self.layout.links,
            uid: self.layout.uid,
            gid: self.layout.gid,
            rdev: decode_device(self.layout.rdev),
            size: self.layout.size,
            block_size: PAGE_SIZE as u32,
            blocks: self.layout.pages() * SECTORS_PER_PAGE,
            accessed: time,
            modified: time,
            changed: time,
            created: time,
        })
    }

    /// Binary search over the blocks, then within one.
    fn lookup(&self, name: &[u8]) -> FsResult<Arc<dyn Inode>> {
        self.check_directory()?;
        let (mut low, mut high) = (0, self.layout.pages());
        while low < high {
            let middle = (low + high) / 2;
            let bytes = self.directory_block(middle)?;
            match DirBlock::parse(&bytes)?.find(name)? {
                Ok(entry) => return Ok(self.image.inode(entry.nid)?),
                Err(Ordering::Less) => high = middle,
                Err(Ordering::Greater) => low = middle + 1,
                Err(Ordering::Equal) => break,
            }
        }
        Err(FsError::NotFound)
    }

    /// The cursor is the block's number times 4,096, plus the entry's place in it.
    fn read_directory(&self, cursor: u64, each: EachEntry<'_>) -> FsResult<u64> {
        self.check_directory()?;
        let mut place = (cursor % BLOCK_SIZE) as usize;
        for number in cursor / BLOCK_SIZE..self.layout.pages() {
            let bytes = self.directory_block(number)?;
            let block = DirBlock::parse(&bytes)?;
            for at in place..block.count() {
                let entry = block.entry(at)?;
                if matches!(entry.name, b"." | b"..") {
                    continue;
                }
                let next = number * BLOCK_SIZE + at as u64 + 1;
                let kind = kind_of_type(entry.file_type);
                if !each(&DirEntry { name: entry.name, inode: entry.nid, kind, next }) {
                    return Ok(next - 1);
                }
            }
            place = 0;
        }
        Ok(self.layout.pages() * BLOCK_SIZE)
    }

    fn read_link(&self) -> FsResult<Vec<u8>> {
        match self.kind {
            FileKind::Symlink if self.layout.size >= logic::path::PATH_MAX as u64 => Err(FsError::Io),
            FileKind::Symlink => self.bytes(0, self.layout.size as usize),
            _ => Err(FsError::Invalid),
        }
    }

    fn open(self: Arc<Self>, flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        match self.kind {
            FileKind::Regular if flags.writes() => Err(FsError::ReadOnly),
            FileKind::Regular => Ok(self),
            FileKind::CharDevice => devices::open(decode_device(self.layout.rdev), flags),
            // A FIFO needs memory behind it: those of tmpfs and of the copy-up layer have it.
            FileKind::Fifo | FileKind::Socket => Err(FsError::NoPeer),
            FileKind::BlockDevice => block::open(decode_device(self.layout.rdev), flags),
            kind => Ok(Arc::new(NoContent(kind))),
        }
    }

    fn truncate(&self, _size: u64) -> FsResult<()> {
        Err(FsError::ReadOnly)
    }

    fn pager(self: Arc<Self>) -> Option<Arc<dyn Pager>> {
        if self.kind == FileKind::Regular { Some(self) } else { None }
    }
}

impl FileOps for ErofsInode {
    fn read(&self, at: u64, out: &mut dyn Sink, _wait: Wait) -> FsResult<usize> {
        read_through(self.layout.size, at, out, |index| self.page_at(index, Readahead::Ahead).map(Some))
    }

    fn size(&self) -> FsResult<u64> {
        Ok(self.layout.size)
    }
}

impl Pager for ErofsInode {
    /// The cache's page, for writing too: a shared mapping of a file on a read-only mount is never
    /// writable.
    fn page(&self, index: u64, write: bool) -> Result<Page, PagerError> {
        if index >= self.layout.pages() {
            return Err(PagerError::BeyondEnd);
        }
        if write {
            return Err(PagerError::Io);
        }
        Ok(self.page_at(index, Readahead::Around)?)
    }

    fn page_if_cached(&self, index: u64) -> Option<Page> {
        self.in_memory(index).or_else(|| self.pages.cached(index))
    }

    fn pages_if_cached(&self, first: u64, out: &mut [Option<Page>]) {
        // What lies in a row on a device that is memory is found by its first page.
        let row = self.layout.contiguous_pages(first, out.len() as u64) as usize;
        if let erofs::PageSource::Image { offset, .. } = self.layout.page_source(first)
            && offset.is_multiple_of(BLOCK_SIZE)
        {
            let sectors = (offset / SECTOR_SIZE as u64..).step_by(SECTORS_PER_PAGE as usize);
            for (place, sector) in out.iter_mut().take(row).zip(sectors) {
                *place = self.image.device.page_in_memory(sector);
                if place.is_none() {
                    break;
                }
            }
        }
        // On another device, and of a file's tail.
        if out.iter().any(Option::is_none) {
            self.pages.cached_range(first, out);
        }
    }

    fn object(&self) -> ObjectId {
        self.pages.object()
    }

    fn path(&self) -> alloc::string::String {
        alloc::string::String::new()
    }

    fn identity(&self) -> (u32, u32, u64) {
        let (major, minor) = device_parts(self.image.device_number);
        (major, minor, self.nid)
    }
}

#[cfg(test)]
mod tests;
