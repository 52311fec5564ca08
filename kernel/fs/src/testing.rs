//! What the tests of several modules share: disks in memory, images, and short calls.
use std::{
    fs, path::Path, process::Command, string::String, sync::Arc, sync::atomic::AtomicUsize, sync::atomic::Ordering,
    vec, vec::Vec,
};

use rt::{
    block::{BlockDevice, BlockError, SECTOR_SIZE},
    page::{PAGE_SIZE, Page},
};

use crate::{
    error::FsResult,
    file::{OpenFile, OpenFlags},
    inode::FileSystem,
    io::{SliceSink, SliceSource},
    vfs::{Base, Location, MountSpec, Vfs},
};

/// A read-only disk over bytes. Counts requests.
pub struct MemDisk {
    bytes: Vec<u8>,
    /// Pages of a RAM disk, which lends them out.
    pages: Option<Vec<Page>>,
    pub requests: AtomicUsize,
}

impl MemDisk {
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes, pages: None, requests: AtomicUsize::new(0) })
    }

    pub fn in_memory(bytes: Vec<u8>) -> Arc<Self> {
        let page = |chunk: &[u8]| {
            let page = Page::alloc_zeroed().unwrap();
            page.write(0, chunk);
            page
        };
        let pages = bytes.chunks(PAGE_SIZE).map(page).collect();
        Arc::new(Self { bytes, pages: Some(pages), requests: AtomicUsize::new(0) })
    }
}

impl BlockDevice for MemDisk {
    fn sectors(&self) -> u64 {
        (self.bytes.len() / SECTOR_SIZE) as u64
    }

    fn read_pages(&self, first_sector: u64, pages: &[Page]) -> Result<(), BlockError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let start = first_sector as usize * SECTOR_SIZE;
        let bytes = self.bytes.get(start..start + pages.len() * PAGE_SIZE).ok_or(BlockError::OutOfRange)?;
        bytes.chunks(PAGE_SIZE).zip(pages).for_each(|(bytes, page)| page.write(0, bytes));
        Ok(())
    }

    fn write_pages(&self, _first_sector: u64, _pages: &[Page]) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn page_in_memory(&self, first_sector: u64) -> Option<Page> {
        self.pages.as_ref()?.get(first_sector as usize * SECTOR_SIZE / PAGE_SIZE).cloned()
    }
}

/// A folder that goes with the value.
pub struct Folder(pub std::path::PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = std::format!("demitasse-fs-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, path: &str, content: &[u8]) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An EROFS image of a folder, made by the standard tool.
pub fn erofs_image(folder: &Path, options: &[&str]) -> Vec<u8> {
    let out = Folder::new();
    let image = out.0.join("image");
    let made = Command::new("mkfs.erofs").args(options).arg(&image).arg(folder).output();
    let made = made.expect("mkfs.erofs is missing: scripts/setup installs it (package erofs-utils)");
    assert!(made.status.success(), "mkfs.erofs: {}", String::from_utf8_lossy(&made.stderr));
    fs::read(image).unwrap()
}

pub fn vfs(file_system: Arc<dyn FileSystem>) -> Location {
    rt::host::install();
    Vfs::new(file_system, MountSpec::new("test")).root()
}

/// Short forms of path calls from the root.
pub trait Calls {
    fn base(&self) -> Base<'_>;

    fn open_path(&self, path: &str, flags: OpenFlags) -> FsResult<Arc<OpenFile>> {
        self.base().open(path.as_bytes(), flags, 0o644)
    }

    fn read(&self, path: &str) -> FsResult<Vec<u8>> {
        read_all(&*self.open_path(path, OpenFlags::empty())?)
    }

    /// Makes or replaces a file.
    fn write(&self, path: &str, content: &[u8]) -> FsResult<()> {
        let flags = OpenFlags::CREATE | OpenFlags::TRUNCATE | OpenFlags::WRITE_ONLY;
        let file = self.open_path(path, flags)?;
        assert_eq!(file.write(&mut SliceSource::new(content))?, content.len());
        Ok(())
    }

    fn mkdir(&self, path: &str) -> FsResult<()> {
        self.base().create_directory(path.as_bytes(), 0o755)
    }

    /// Names in order of listing, without `.` and `..`.
    fn names(&self, path: &str) -> FsResult<Vec<String>> {
        let directory = self.open_path(path, OpenFlags::DIRECTORY)?;
        let mut names = Vec::new();
        // One entry at a time, so that every cursor is tried.
        loop {
            let before = names.len();
            directory.read_directory(&mut |entry| {
                if names.len() > before {
                    return false;
                }
                names.push(String::from_utf8_lossy(entry.name).into_owned());
                true
            })?;
            if names.len() == before {
                assert_eq!(names[..2], [".", ".."]);
                return Ok(names.split_off(2));
            }
        }
    }
}

impl Calls for Location {
    fn base(&self) -> Base<'_> {
        Base::new(self, self)
    }
}

pub fn read_all(file: &OpenFile) -> FsResult<Vec<u8>> {
    let mut all = Vec::new();
    let mut bytes = vec![0; 10_000];
    loop {
        match file.read(&mut SliceSink::new(&mut bytes))? {
            0 => return Ok(all),
            read => all.extend_from_slice(&bytes[..read]),
        }
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2654435761) >> 13) as u8).collect()
}
