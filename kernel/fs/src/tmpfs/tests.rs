//! tmpfs: content, limits, mappings; and the copy-up layer over an EROFS image.
use std::{string::String, thread, vec, vec::Vec};

use rt::space::PagerError;

use super::*;
use crate::{
    erofs::Erofs,
    file::SeekFrom,
    inode::{AllocateMode, AttributeChanges, FileKind, RenameMode},
    io::{SliceSink, SliceSource},
    testing::{Calls, Folder, MemDisk, erofs_image, pattern, read_all, vfs},
    vfs::Follow,
};

fn empty(limit: u64) -> (Arc<TmpFs>, Location) {
    rt::host::install();
    let tmpfs = TmpFs::new(limit);
    (tmpfs.clone(), vfs(tmpfs))
}

fn open(root: &Location, path: &str) -> Arc<OpenFile> {
    root.open_path(path, OpenFlags::CREATE | OpenFlags::READ_WRITE).unwrap()
}

fn write_at(file: &OpenFile, at: u64, bytes: &[u8]) -> FsResult<usize> {
    file.write_at(at, &mut SliceSource::new(bytes))
}

fn read_at(file: &OpenFile, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    let read = file.read_at(at, &mut SliceSink::new(&mut bytes)).unwrap();
    bytes.truncate(read);
    bytes
}

#[test]
fn holes_and_sizes() {
    let (tmpfs, root) = empty(1 << 24);
    let file = open(&root, "f");
    write_at(&file, 1_000_000_000_000, b"end").unwrap();
    write_at(&file, 5000, b"abc").unwrap();
    assert_eq!(read_at(&file, 4998, 8), b"\0\0abc\0\0\0");
    assert_eq!(read_at(&file, 999_999_999_999, 9), b"\0end");
    assert_eq!(file.metadata().unwrap().blocks, 16);
    assert_eq!(file.seek(SeekFrom::Data(0)), Ok(4096));
    assert_eq!(file.seek(SeekFrom::Hole(4096)), Ok(8192));
    assert_eq!(file.seek(SeekFrom::Data(8192)), Ok(1_000_000_000_000 / 4096 * 4096));
    assert_eq!(file.seek(SeekFrom::Data(1_000_000_000_003)), Err(FsError::NoData));
    file.truncate(5001).unwrap();
    file.truncate(6000).unwrap();
    assert_eq!(read_at(&file, 4999, 9999)[..4], *b"\0a\0\0");
    file.allocate(AllocateMode::Reserve { keep_size: false }, 0, 10_000).unwrap();
    assert_eq!(file.metadata().unwrap().size, 10_000);
    file.allocate(AllocateMode::PunchHole, 4096, 4096).unwrap();
    assert_eq!(file.metadata().unwrap().blocks, 0);
    assert_eq!(write_at(&file, i64::MAX as u64, b"x"), Err(FsError::TooBig));
    drop(file);
    root.base().unlink(b"f").unwrap();
    assert_eq!(tmpfs.used_bytes(), 0);
}

#[test]
fn the_limit_holds() {
    let (tmpfs, root) = empty(10 * 4096);
    let file = open(&root, "f");
    assert_eq!(write_at(&file, 0, &[7; 20 * 4096]), Ok(9 * 4096), "the entry takes a part of a page");
    assert_eq!(write_at(&file, 9 * 4096, b"x"), Err(FsError::NoSpace));
    assert_eq!(write_at(&file, 0, b"x"), Ok(1));
    file.truncate(4096).unwrap();
    assert_eq!(write_at(&file, 9 * 4096, b"x"), Ok(1));
    let mut made = 0;
    while root.mkdir(&std::format!("d{made}")).is_ok() {
        made += 1;
        assert!(made < 100);
    }
    assert!(made > 10);
    assert!(tmpfs.status().blocks_free <= 1);
}

#[test]
fn mappings_see_writes() {
    let (_, root) = empty(1 << 20);
    let file = open(&root, "f");
    file.truncate(8192).unwrap();
    let pager = file.pager().unwrap();
    let page = pager.page(1, false).unwrap();
    write_at(&file, 4096, b"written").unwrap();
    let mut bytes = [0; 7];
    page.read(0, &mut bytes);
    assert_eq!(&bytes, b"written");
    pager.page(0, true).unwrap().write(10, b"mapped");
    assert_eq!(read_at(&file, 10, 6), b"mapped");
    assert_eq!(pager.page(2, false), Err(PagerError::BeyondEnd));
    assert_eq!(pager.identity().2, file.metadata().unwrap().inode);
}

#[test]
fn appends_do_not_overlap() {
    let (_, root) = empty(1 << 24);
    let threads: Vec<_> = (0..4u8)
        .map(|n| {
            let file = root.clone();
            thread::spawn(move || {
                let flags = OpenFlags::CREATE | OpenFlags::WRITE_ONLY | OpenFlags::APPEND;
                let file = file.open_path("log", flags).unwrap();
                (0..200).for_each(|_| assert_eq!(file.write(&mut SliceSource::new(&[n; 100])), Ok(100)));
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let content = root.read("log").unwrap();
    assert_eq!(content.len(), 80_000);
    assert!(content.chunks(100).all(|record| record.iter().all(|&b| b == record[0])));
}

#[test]
fn unnamed_files() {
    let (tmpfs, root) = empty(1 << 20);
    let file = memfd(b"heap").unwrap();
    write_at(&file, 0, b"x").unwrap();
    assert_eq!(file.path(&root), b"/memfd:heap (deleted)");
    let flags = OpenFlags::TEMPORARY | OpenFlags::DIRECTORY | OpenFlags::READ_WRITE;
    let temporary = root.open_path("/", flags).unwrap();
    write_at(&temporary, 0, &pattern(9000)).unwrap();
    assert!(read_at(&temporary, 0, 9000) == pattern(9000));
    assert!(root.names("/").unwrap().is_empty());
    drop(temporary);
    assert_eq!(tmpfs.used_bytes(), 0);
}

#[test]
fn listing_survives_changes() {
    let (_, root) = empty(1 << 20);
    (0..20).for_each(|n| root.write(&std::format!("f{n}"), b"").unwrap());
    let directory = root.open_path("/", OpenFlags::DIRECTORY).unwrap();
    let mut seen = Vec::new();
    loop {
        let before = seen.len();
        directory
            .read_directory(&mut |entry| {
                if seen.len() < before + 3 {
                    seen.push(String::from_utf8_lossy(entry.name).into_owned());
                    return true;
                }
                false
            })
            .unwrap();
        let Some(last) = seen.get(before..).and_then(|new| new.last()) else { break };
        if last.starts_with('f') {
            root.base().unlink(last.as_bytes()).unwrap();
        }
    }
    assert_eq!(seen.len(), 22);
}

// --- over an image ---

fn lower() -> Folder {
    let folder = Folder::new();
    folder.file("etc/hosts", b"127.0.0.1 localhost\n");
    folder.file("etc/passwd", b"root");
    folder.file("lib/big", &pattern(100_000));
    folder.file("empty/keep", b"");
    std::fs::hard_link(folder.0.join("etc/hosts"), folder.0.join("hosts2")).unwrap();
    std::os::unix::fs::symlink("etc/hosts", folder.0.join("link")).unwrap();
    folder
}

fn over(limit: u64) -> (Arc<TmpFs>, Location) {
    rt::host::install();
    let erofs = Erofs::open(MemDisk::new(erofs_image(&lower().0, &[]))).unwrap();
    let tmpfs = TmpFs::over(&*erofs, limit).unwrap();
    (tmpfs.clone(), vfs(tmpfs))
}

#[test]
fn lower_files_can_be_changed() {
    let (tmpfs, root) = over(1 << 20);
    assert!(root.read("lib/big").unwrap() == pattern(100_000));
    assert_eq!(tmpfs.used_bytes(), 0, "reading costs nothing");
    let file = root.open_path("lib/big", OpenFlags::READ_WRITE).unwrap();
    write_at(&file, 50_000, b"changed").unwrap();
    assert_eq!(tmpfs.used_bytes(), 4096, "one page was copied");
    let mut expected = pattern(100_000);
    expected[50_000..50_007].copy_from_slice(b"changed");
    drop(file);
    root.base().rename(b"lib/big", &root.base(), b"etc/moved", RenameMode::Replace).unwrap();
    assert!(root.read("etc/moved").unwrap() == expected);
    assert_eq!(root.read("lib/big"), Err(FsError::NotFound));
    let file = root.open_path("etc/moved", OpenFlags::READ_WRITE).unwrap();
    file.truncate(50_003).unwrap();
    file.truncate(60_000).unwrap();
    expected.truncate(50_003);
    expected.resize(60_000, 0);
    assert!(read_all(&file).unwrap() == expected);
    file.allocate(AllocateMode::PunchHole, 100, 8000).unwrap();
    expected[100..8100].fill(0);
    assert!(root.read("etc/moved").unwrap() == expected);
}

/// Names below: hidden, replaced, listed once, and the cache cannot tell.
#[test]
fn whiteouts_and_listings() {
    let (_, root) = over(1 << 20);
    let base = root.base();
    assert_eq!(root.names("etc").unwrap(), ["hosts", "passwd"]);
    base.unlink(b"etc/hosts").unwrap();
    assert_eq!(root.read("etc/hosts"), Err(FsError::NotFound));
    assert_eq!(root.read("link"), Err(FsError::NotFound));
    assert_eq!(root.read("hosts2").unwrap(), b"127.0.0.1 localhost\n");
    assert_eq!(root.names("etc").unwrap(), ["passwd"]);
    root.write("etc/hosts", b"new").unwrap();
    root.write("etc/added", b"").unwrap();
    assert_eq!(root.read("link").unwrap(), b"new");
    assert_eq!(root.names("etc").unwrap(), ["passwd", "hosts", "added"]);
    assert_eq!(root.mkdir("etc/passwd"), Err(FsError::Exists));
    assert_eq!(base.remove_directory(b"empty"), Err(FsError::NotEmpty));
    base.unlink(b"empty/keep").unwrap();
    base.remove_directory(b"empty").unwrap();
    root.mkdir("empty").unwrap();
    assert!(root.names("empty").unwrap().is_empty(), "a new directory shows nothing of the old one");
    base.rename(b"etc", &base, b"conf", RenameMode::Replace).unwrap();
    assert_eq!(root.names("conf").unwrap(), ["passwd", "hosts", "added"]);
    assert_eq!(root.read("conf/passwd").unwrap(), b"root");
}

#[test]
fn changes_outlive_the_dentry_cache() {
    let (_, root) = over(1 << 20);
    let mode = AttributeChanges { permissions: Some(0o600), ..AttributeChanges::default() };
    root.base().resolve(b"etc/passwd", Follow::Yes).unwrap().set_attributes(&mode).unwrap();
    root.write("hosts2", b"both names").unwrap();
    let before = root.base().resolve(b"lib/big", Follow::Yes).unwrap().metadata().unwrap();
    assert!(root.prune_for_test() >= 5);
    let find = |path: &str| root.base().resolve(path.as_bytes(), Follow::Yes).unwrap().metadata().unwrap();
    assert_eq!(find("etc/passwd").permissions, 0o600);
    assert_eq!(root.read("etc/hosts").unwrap(), b"both names");
    assert_eq!((find("etc/hosts").links, find("etc/hosts").kind), (2, FileKind::Regular));
    assert_eq!(find("lib/big"), before);
}

#[test]
fn the_copy_up_layer_is_bounded() {
    let (_, root) = over(8192);
    let file = root.open_path("lib/big", OpenFlags::READ_WRITE).unwrap();
    assert_eq!(write_at(&file, 0, &[1; 4096 * 3]), Ok(8192));
    assert_eq!(write_at(&file, 8192, b"x"), Err(FsError::NoSpace));
    assert_eq!(root.base().unlink(b"etc/passwd"), Err(FsError::NoSpace));
    assert_eq!(root.read("etc/passwd").unwrap(), b"root");
    assert_eq!(file.pager().unwrap().page(3, true), Err(PagerError::Io));
}

/// Writers of neighbouring bytes, a mapping and readers, on pages that are copied up meanwhile.
#[test]
fn concurrent_copy_up() {
    let (tmpfs, root) = over(1 << 20);
    let threads: Vec<_> = (0..4u64)
        .map(|n| {
            let root = root.clone();
            thread::spawn(move || {
                let file = root.open_path("lib/big", OpenFlags::READ_WRITE).unwrap();
                let pager = file.pager().unwrap();
                for page in 0..24 {
                    assert_eq!(write_at(&file, page * 4096 + n, &[n as u8]), Ok(1));
                    pager.page(page, true).unwrap().write(100 + n as usize, &[n as u8]);
                    assert_eq!(read_at(&file, page * 4096 + n, 1), [n as u8]);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let mut expected = pattern(100_000);
    for page in 0..24 {
        expected[page * 4096..][..4].copy_from_slice(&[0, 1, 2, 3]);
        expected[page * 4096 + 100..][..4].copy_from_slice(&[0, 1, 2, 3]);
    }
    assert!(root.read("lib/big").unwrap() == expected);
    assert_eq!(tmpfs.used_bytes(), 24 * 4096);
}

#[test]
fn mapped_lower_pages_are_shared() {
    let (_, root) = over(1 << 20);
    let file = root.open_path("lib/big", OpenFlags::READ_WRITE).unwrap();
    let pager = file.pager().unwrap();
    let shown = pager.page(2, false).unwrap();
    assert_eq!(pager.page_if_cached(2), Some(shown.clone()));
    let own = pager.page(2, true).unwrap();
    assert_ne!(own, shown);
    own.write(0, b"mine");
    assert_eq!(read_at(&file, 8192, 4), b"mine");
    assert!(read_at(&file, 8196, 100) == pattern(100_000)[8196..8296]);
}

/// A write of nothing is none (write(2)).
#[test]
fn nothing_written_changes_nothing() {
    let (_, root) = empty(1 << 20);
    root.write("f", b"four").unwrap();
    let file = root.open_path("f", OpenFlags::READ_WRITE | OpenFlags::APPEND).unwrap();
    assert_eq!(file.write(&mut SliceSource::new(b"")), Ok(0));
    assert_eq!(file.position(), 0);
    file.set_flags(OpenFlags::empty());
    assert_eq!(write_at(&file, 9000, b""), Ok(0));
    assert_eq!(root.read("f").unwrap(), b"four");
}

/// A disk that does something between a read's begin and its end.
struct Interrupted {
    disk: Arc<MemDisk>,
    meanwhile: std::sync::Mutex<Option<std::boxed::Box<dyn FnOnce() + Send>>>,
}

impl rt::block::BlockDevice for Interrupted {
    fn sectors(&self) -> u64 {
        self.disk.sectors()
    }

    fn read_pages(&self, first_sector: u64, pages: &[rt::page::Page]) -> Result<(), rt::block::BlockError> {
        self.disk.read_pages(first_sector, pages)?;
        let meanwhile = self.meanwhile.lock().unwrap().take();
        meanwhile.into_iter().for_each(|act| act());
        Ok(())
    }

    fn write_pages(&self, first_sector: u64, pages: &[rt::page::Page]) -> Result<(), rt::block::BlockError> {
        self.disk.write_pages(first_sector, pages)
    }

    fn flush(&self) -> Result<(), rt::block::BlockError> {
        Ok(())
    }

    fn read_only(&self) -> bool {
        true
    }
}

/// A fault copies a page up, and waits for the disk; then the file is cut short and grows again.
#[test]
fn truncated_bytes_do_not_come_back() {
    rt::host::install();
    let disk = MemDisk::new(erofs_image(&lower().0, &[]));
    let disk = Arc::new(Interrupted { disk, meanwhile: std::sync::Mutex::default() });
    let erofs = Erofs::open(disk.clone()).unwrap();
    let tmpfs = TmpFs::over(&*erofs, 1 << 20).unwrap();
    let file = vfs(tmpfs.clone()).open_path("lib/big", OpenFlags::READ_WRITE).unwrap();
    let cut = file.clone();
    *disk.meanwhile.lock().unwrap() = Some(std::boxed::Box::new(move || {
        cut.truncate(0).unwrap();
        cut.truncate(100_000).unwrap();
    }));
    let pager = file.pager().unwrap();
    let page = pager.page(2, true).unwrap();
    assert!(disk.meanwhile.lock().unwrap().is_none(), "the disk was read");
    let mut bytes = [1; 8];
    page.read(0, &mut bytes);
    assert_eq!(bytes, [0; 8]);
    assert!(pager.confirm(2, &page, true));
    assert_eq!(read_at(&file, 0, 100_000), [0; 100_000]);
    assert_eq!(tmpfs.used_bytes(), 4096);
}

/// A page that was found and then lost to a truncation is not entered into a page table.
#[test]
fn lost_pages_are_not_confirmed() {
    let (_, root) = over(1 << 20);
    let file = root.open_path("lib/big", OpenFlags::READ_WRITE).unwrap();
    let pager = file.pager().unwrap();
    let lower = pager.page(2, false).unwrap();
    assert!(pager.confirm(2, &lower, false));
    let own = pager.page(2, true).unwrap();
    assert!(pager.confirm(2, &own, true) && !pager.confirm(2, &lower, false));
    file.truncate(4096).unwrap();
    file.truncate(100_000).unwrap();
    for page in [lower, own] {
        assert!(!pager.confirm(2, &page, false));
    }
}

/// Not page by page: the size is only a number.
#[test]
fn seeking_through_a_vast_hole() {
    let (_, root) = over(1 << 20);
    let file = root.open_path("lib/big", OpenFlags::READ_WRITE).unwrap();
    let end = 1 << 62;
    file.truncate(end).unwrap();
    assert_eq!(file.seek(SeekFrom::Hole(5)), Ok(25 * 4096));
    assert_eq!(file.seek(SeekFrom::Data(25 * 4096)), Err(FsError::NoData));
    write_at(&file, end / 2, b"x").unwrap();
    assert_eq!(file.seek(SeekFrom::Data(25 * 4096)), Ok(end / 2));
    assert_eq!(file.seek(SeekFrom::Hole(end / 2)), Ok(end / 2 + 4096));
}

/// A rename that finds no room leaves both names as they are; one that needs none does not ask for any.
#[test]
fn renames_on_a_full_file_system() {
    const DIRECTORIES: usize = 3;
    let full = 4096 + 513 + 712 * DIRECTORIES as u64;
    let (tmpfs, root) = over(full);
    let base = root.base();
    root.write("a", b"mine").unwrap();
    (0..DIRECTORIES).for_each(|n| root.mkdir(&std::format!("{n:0200}")).unwrap());
    assert_eq!(tmpfs.used_bytes(), full);
    assert_eq!(base.rename(b"a", &base, b"etc/passwd", RenameMode::Replace), Err(FsError::NoSpace));
    assert_eq!((root.read("a").unwrap(), root.read("etc/passwd").unwrap()), (b"mine".to_vec(), b"root".to_vec()));
    assert_eq!(base.rename(b"hosts2", &base, b"a", RenameMode::Replace), Err(FsError::NoSpace));
    assert_eq!((root.read("a").unwrap(), root.read("hosts2").unwrap().len()), (b"mine".to_vec(), 20));
    let exchanged = base.rename(b"a", &base, b"etc/passwd", RenameMode::Exchange);
    assert_eq!(exchanged, Err(FsError::NoSpace));
    assert_eq!((root.read("a").unwrap(), root.read("etc/passwd").unwrap()), (b"mine".to_vec(), b"root".to_vec()));
    assert_eq!(tmpfs.used_bytes(), full);
    let (first, second) = (std::format!("{:0200}", 0), std::format!("{:0200}", 1));
    base.rename(first.as_bytes(), &base, second.as_bytes(), RenameMode::Replace).unwrap();
    assert_eq!(root.names("/").unwrap().iter().filter(|name| name.len() == 200).count(), DIRECTORIES - 1);
    assert!(tmpfs.used_bytes() < full);
}
