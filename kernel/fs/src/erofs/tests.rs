//! EROFS against images of the standard mkfs.erofs.
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    string::ToString,
    sync::atomic,
    thread, vec,
};

use super::*;
use crate::{
    testing::{Calls, Folder, MemDisk, erofs_image, pattern, read_all, vfs},
    vfs::{Follow, Location},
};

const BIG: usize = 3_000_001;

fn sample() -> Folder {
    let folder = Folder::new();
    folder.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    folder.file("empty", b"");
    folder.file("page", &pattern(4096));
    folder.file("tail", &pattern(3 * 4096 + 77));
    folder.file("big", &pattern(BIG));
    for n in 0..1500 {
        folder.file(&std::format!("many/a-long-enough-name-{n:04}"), n.to_string().as_bytes());
    }
    symlink("etc/passwd", folder.0.join("link")).unwrap();
    symlink("/etc", folder.0.join("many/up")).unwrap();
    fs::hard_link(folder.0.join("big"), folder.0.join("same")).unwrap();
    fs::set_permissions(folder.0.join("page"), fs::Permissions::from_mode(0o4751)).unwrap();
    folder
}

fn mount(image: Vec<u8>) -> Location {
    rt::host::install();
    vfs(Erofs::open(MemDisk::new(image)).unwrap())
}

fn check_content(root: &Location) {
    assert_eq!(root.read("/etc/passwd").unwrap(), b"root:x:0:0:root:/root:/bin/sh\n");
    assert_eq!(root.read("link").unwrap(), b"root:x:0:0:root:/root:/bin/sh\n");
    assert_eq!(root.read("many/up/passwd").unwrap().len(), 30);
    assert_eq!(root.read("empty").unwrap(), b"");
    assert!(root.read("page").unwrap() == pattern(4096));
    assert!(root.read("tail").unwrap() == pattern(3 * 4096 + 77));
    assert!(root.read("big").unwrap() == pattern(BIG));
    let names = root.names("many").unwrap();
    assert_eq!(names.len(), 1501);
    assert!(names.is_sorted());
    for n in [0, 1, 700, 1499] {
        assert_eq!(root.read(&std::format!("many/a-long-enough-name-{n:04}")).unwrap(), n.to_string().as_bytes());
    }
    assert_eq!(root.read("many/a-long-enough-name-1500"), Err(FsError::NotFound));
    assert_eq!(root.read("many/a"), Err(FsError::NotFound));
    assert_eq!(root.read("many/zz"), Err(FsError::NotFound));
}

/// Extended and compact inodes, inline tails, from a disk and from memory.
#[test]
fn content_of_all_layouts() {
    let folder = sample();
    let layouts: [&[&str]; 5] =
        [&[], &["-Eforce-inode-compact"], &["-Eforce-inode-extended"], &["-Enoinline_data"], &["--chunksize=16384"]];
    for options in layouts {
        let image = erofs_image(&folder.0, options);
        check_content(&mount(image.clone()));
        check_content(&vfs(Erofs::open(MemDisk::in_memory(image)).unwrap()));
    }
}

#[test]
fn metadata_agrees_with_the_host() {
    let folder = sample();
    let root = mount(erofs_image(&folder.0, &["-Eforce-inode-extended"]));
    for name in ["big", "page", "link", "etc", "empty"] {
        let ours = root.base().resolve(name.as_bytes(), Follow::No).unwrap().metadata().unwrap();
        let host = fs::symlink_metadata(folder.0.join(name)).unwrap();
        assert_eq!(ours.mode(), host.mode(), "{name}");
        assert_eq!((ours.modified.seconds, i64::from(ours.modified.nanoseconds)), (host.mtime(), host.mtime_nsec()));
        assert_eq!((ours.uid, ours.gid, u64::from(ours.links)), (host.uid(), host.gid(), host.nlink()));
        if name != "etc" {
            assert_eq!(ours.size, host.size());
        }
    }
    let number = |name: &str| root.base().resolve(name.as_bytes(), Follow::Yes).unwrap().metadata().unwrap().inode;
    assert_eq!(number("big"), number("same"));
    assert_eq!(number("link"), number("etc/passwd"));
}

#[test]
fn it_is_read_only() {
    let root = mount(erofs_image(&sample().0, &[]));
    assert_eq!(root.write("new", b""), Err(FsError::ReadOnly));
    assert_eq!(root.write("page", b""), Err(FsError::ReadOnly));
    assert_eq!(root.mkdir("etc"), Err(FsError::Exists));
    assert_eq!(root.mkdir("new"), Err(FsError::ReadOnly));
    assert_eq!(root.base().unlink(b"page"), Err(FsError::ReadOnly));
    assert_eq!(root.open_path("etc", OpenFlags::READ_WRITE).err(), Some(FsError::IsDirectory));
}

#[test]
fn mappings_share_the_cache() {
    rt::host::install();
    let disk = MemDisk::new(erofs_image(&sample().0, &[]));
    let root = vfs(Erofs::open(disk.clone()).unwrap());
    let file = root.open_path("tail", OpenFlags::empty()).unwrap();
    let pager = file.pager().unwrap();
    let page = pager.page(3, false).unwrap();
    let mut bytes = vec![1; PAGE_SIZE];
    page.read(0, &mut bytes);
    assert!(bytes[..77] == pattern(3 * 4096 + 77)[3 * 4096..] && bytes[77..].iter().all(|&b| b == 0));
    assert_eq!(pager.page_if_cached(3), Some(page));
    assert_eq!(pager.page(4, false), Err(PagerError::BeyondEnd));
    assert_eq!(pager.path(), "/tail");
    let before = disk.requests.load(atomic::Ordering::Relaxed);
    assert_eq!(read_all(&root.open_path("big", OpenFlags::empty()).unwrap()).unwrap().len(), BIG);
    // 733 pages in windows of 32 to 128.
    assert!(disk.requests.load(atomic::Ordering::Relaxed) - before <= 15);
}

#[test]
fn many_readers_at_once() {
    let root = mount(erofs_image(&sample().0, &[]));
    let readers: Vec<_> = (0..8)
        .map(|n| {
            let root = root.clone();
            thread::spawn(move || {
                assert!(root.read(["big", "tail", "same"][n % 3]).unwrap().len() > 4096);
                assert_eq!(root.names("many").unwrap().len(), 1501);
            })
        })
        .collect();
    readers.into_iter().for_each(|r| r.join().unwrap());
}

/// Flipped bytes and cut images: errors are fine, panics and endless loops are not.
#[test]
fn corrupt_images_give_errors() {
    rt::host::install();
    let folder = Folder::new();
    folder.file("dir/file", &pattern(9000));
    folder.file("dir/other", b"x");
    symlink("dir/file", folder.0.join("link")).unwrap();
    let image = erofs_image(&folder.0, &[]);
    let mut seed = 7u64;
    for round in 0..400 {
        let mut bad = image.clone();
        for _ in 0..1 + round % 8 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // The first block holds the superblock and most inodes.
            let range = if round % 2 == 0 { 4096.min(bad.len()) } else { bad.len() };
            bad[(seed >> 33) as usize % range] = (seed >> 25) as u8;
        }
        if round % 5 == 0 {
            bad.truncate(round * 41 % image.len());
        }
        let Ok(opened) = Erofs::open(MemDisk::new(bad)) else { continue };
        let root = vfs(opened);
        let _ = root.base().read_link(b"link");
        let mut names = 0;
        let _ = root.open_path("dir", OpenFlags::empty()).and_then(|d| {
            d.read_directory(&mut |_| {
                names += 1;
                names < 1000
            })
        });
        if let Ok(file) = root.open_path("dir/file", OpenFlags::empty()) {
            let mut bytes = vec![0; 10_000];
            let _ = file.read(&mut crate::io::SliceSink::new(&mut bytes));
        }
    }
}

#[test]
fn not_an_image() {
    rt::host::install();
    assert_eq!(Erofs::open(MemDisk::new(vec![0; 8192])).err(), Some(FsError::Invalid));
    assert_eq!(Erofs::open(MemDisk::new(Vec::new())).err(), Some(FsError::Io));
}
