//! Path walk, names and mounts, over tmpfs; devices and the console through /dev.
use std::{thread, vec, vec::Vec};

use super::{dentry::Dentry, *};
use crate::{
    console::Console,
    devfs::devfs,
    error::FsError,
    file::{FileOps, OpenFile, OpenFlags, Readiness, SeekFrom},
    inode::{FileKind, NewNode, RenameMode},
    io::{SliceSink, SliceSource},
    testing::{Calls, read_all, vfs},
    tmpfs::TmpFs,
};

fn tree() -> Location {
    rt::host::install();
    let root = vfs(TmpFs::new(1 << 24));
    root.mkdir("a").unwrap();
    root.mkdir("a/b").unwrap();
    root.write("a/b/file", b"content").unwrap();
    root.base().symlink(b"b/file", b"a/link").unwrap();
    root.base().symlink(b"/a/b/", b"a/abs").unwrap();
    root
}

fn resolve(root: &Location, path: &str) -> Result<Vec<u8>, FsError> {
    root.base().resolve(path.as_bytes(), Follow::Yes).map(|l| l.path(root))
}

#[test]
fn walking() {
    let root = tree();
    for path in ["/a/b/file", "a//b/./file", "a/link", "a/abs/file", "a/b/../b/file", "/../../a/link"] {
        assert_eq!(resolve(&root, path).unwrap(), b"/a/b/file", "{path}");
    }
    assert_eq!(resolve(&root, "/").unwrap(), b"/");
    assert_eq!(resolve(&root, "/a/b/.."), Ok(b"/a".to_vec()));
    assert_eq!(resolve(&root, "a/abs"), Ok(b"/a/b".to_vec()));
    assert_eq!(resolve(&root, ""), Err(FsError::NotFound));
    assert_eq!(resolve(&root, "a/nothing/file"), Err(FsError::NotFound));
    assert_eq!(resolve(&root, "a/b/file/x"), Err(FsError::NotDirectory));
    assert_eq!(resolve(&root, "a/b/file/"), Err(FsError::NotDirectory));
    assert_eq!(resolve(&root, "a/link/"), Err(FsError::NotDirectory));
    assert_eq!(resolve(&root, "a/b/file/."), Err(FsError::NotDirectory));
    assert_eq!(resolve(&root, &"x".repeat(256)), Err(FsError::NameTooLong));
    assert_eq!(resolve(&root, &"x/".repeat(2048)), Err(FsError::NameTooLong));
    let link = root.base().resolve(b"a/link", Follow::No).unwrap();
    assert_eq!(link.kind(), FileKind::Symlink);
    assert_eq!(root.base().resolve(b"a/abs/", Follow::No).unwrap().kind(), FileKind::Directory);
    let start = root.base().resolve(b"a/b", Follow::Yes).unwrap();
    let found = Base::new(&root, &start).resolve(b"../link", Follow::Yes).unwrap();
    assert_eq!(found.path(&start), b"/file");
}

#[test]
fn link_loops_end() {
    let root = tree();
    root.base().symlink(b"me", b"me").unwrap();
    assert_eq!(resolve(&root, "me"), Err(FsError::Loop));
    root.base().symlink(b"x0", b"end").unwrap();
    for n in 0..39 {
        let target = if n == 0 { std::string::String::from("a") } else { std::format!("x{}", n - 1) };
        root.base().symlink(target.as_bytes(), std::format!("x{n}").as_bytes()).unwrap();
    }
    assert_eq!(resolve(&root, "x38"), Ok(b"/a".to_vec()));
    root.base().symlink(b"x38", b"x39").unwrap();
    assert_eq!(resolve(&root, "x39"), Ok(b"/a".to_vec()));
    root.base().symlink(b"x39", b"x40").unwrap();
    assert_eq!(resolve(&root, "x40"), Err(FsError::Loop));
}

#[test]
fn open_flags() {
    let root = tree();
    let create = OpenFlags::CREATE | OpenFlags::READ_WRITE;
    assert_eq!(root.open_path("a/link", create | OpenFlags::EXCLUSIVE).err(), Some(FsError::Exists));
    assert_eq!(root.open_path("a/link", OpenFlags::NO_FOLLOW).err(), Some(FsError::Loop));
    assert_eq!(root.open_path("a/b/file", OpenFlags::DIRECTORY).err(), Some(FsError::NotDirectory));
    assert_eq!(root.open_path("a", create).err(), Some(FsError::IsDirectory));
    assert_eq!(root.open_path("new/", create).err(), Some(FsError::IsDirectory));
    assert_eq!(root.open_path("none/new", create).err(), Some(FsError::NotFound));
    // Through a dangling link.
    root.base().symlink(b"b/made", b"a/dangling").unwrap();
    root.write("a/dangling", b"here").unwrap();
    assert_eq!(root.read("a/b/made").unwrap(), b"here");
    let path = root.open_path("a/link", OpenFlags::PATH | OpenFlags::NO_FOLLOW).unwrap();
    assert_eq!(path.metadata().unwrap().kind, FileKind::Symlink);
    assert_eq!(path.read(&mut SliceSink::new(&mut [0; 4])), Err(FsError::BadDescriptor));
    let read_only = root.open_path("a/link", OpenFlags::empty()).unwrap();
    assert_eq!(read_only.write(&mut SliceSource::new(b"x")), Err(FsError::BadDescriptor));
    assert_eq!(read_only.truncate(0), Err(FsError::Invalid));
}

#[test]
fn positions() {
    let root = tree();
    let file = root.open_path("a/link", OpenFlags::READ_WRITE).unwrap();
    assert_eq!(file.seek(SeekFrom::End(-3)), Ok(4));
    assert_eq!(read_all(&file).unwrap(), b"ent");
    assert_eq!(file.seek(SeekFrom::Current(-100)), Err(FsError::Invalid));
    file.write_at(2, &mut SliceSource::new(b"NT")).unwrap();
    assert_eq!(file.position(), 7);
    file.set_flags(OpenFlags::APPEND);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write(&mut SliceSource::new(b"!")).unwrap();
    assert_eq!(file.position(), 8);
    assert_eq!(root.read("a/b/file").unwrap(), b"coNTent!");
}

#[test]
fn names_come_and_go() {
    let root = tree();
    let base = root.base();
    let file = root.open_path("a/b/file", OpenFlags::empty()).unwrap();
    assert_eq!(base.unlink(b"a"), Err(FsError::IsDirectory));
    assert_eq!(base.unlink(b"a/b/file/"), Err(FsError::NotDirectory));
    assert_eq!(base.remove_directory(b"a/b"), Err(FsError::NotEmpty));
    assert_eq!(base.remove_directory(b"a/b/."), Err(FsError::Invalid));
    assert_eq!(base.remove_directory(b"a/link"), Err(FsError::NotDirectory));
    base.link(&base.resolve(b"a/b/file", Follow::Yes).unwrap(), b"hard").unwrap();
    assert_eq!(file.metadata().unwrap().links, 2);
    base.unlink(b"a/b/file").unwrap();
    assert_eq!(base.unlink(b"a/b/file"), Err(FsError::NotFound));
    assert_eq!(file.path(&root), b"/a/b/file (deleted)");
    assert_eq!(read_all(&file).unwrap(), b"content");
    assert_eq!(root.read("hard").unwrap(), b"content");
    base.remove_directory(b"a/b").unwrap();
    assert_eq!(root.mkdir("a"), Err(FsError::Exists));
    assert_eq!(root.names("a").unwrap(), ["link", "abs"]);
    assert_eq!(root.open_path("a", OpenFlags::empty()).unwrap().metadata().unwrap().links, 2);
}

#[test]
fn a_removed_directory_takes_no_names() {
    let root = tree();
    root.mkdir("gone").unwrap();
    let start = root.base().resolve(b"gone", Follow::Yes).unwrap();
    root.base().remove_directory(b"gone/").unwrap();
    assert_eq!(Base::new(&root, &start).create_directory(b"x", 0o755), Err(FsError::NotFound));
}

#[test]
fn renaming() {
    let root = tree();
    let base = root.base();
    let rename = |from: &str, to: &str| base.rename(from.as_bytes(), &base, to.as_bytes(), RenameMode::Replace);
    let open = root.open_path("a/b/file", OpenFlags::empty()).unwrap();
    rename("a/b", "moved").unwrap();
    assert_eq!(open.path(&root), b"/moved/file");
    assert_eq!(resolve(&root, "a/b"), Err(FsError::NotFound));
    assert_eq!(rename("moved", "moved/inside"), Err(FsError::Invalid));
    assert_eq!(rename("moved/file", "a"), Err(FsError::IsDirectory));
    assert_eq!(rename("moved", "moved/file"), Err(FsError::Invalid));
    assert_eq!(rename("a", "a/link"), Err(FsError::Invalid));
    assert_eq!(rename("moved/file/", "x"), Err(FsError::NotDirectory));
    assert_eq!(rename("none", "x"), Err(FsError::NotFound));
    root.write("other", b"other").unwrap();
    assert_eq!(base.rename(b"other", &base, b"moved/file", RenameMode::NoReplace), Err(FsError::Exists));
    base.rename(b"other", &base, b"moved/file", RenameMode::Exchange).unwrap();
    assert_eq!(root.read("other").unwrap(), b"content");
    assert_eq!(open.path(&root), b"/other");
    rename("other", "moved/file").unwrap();
    assert_eq!(root.read("moved/file").unwrap(), b"content");
    assert_eq!(resolve(&root, "other"), Err(FsError::NotFound));
    root.mkdir("empty").unwrap();
    assert_eq!(rename("empty", "moved"), Err(FsError::NotEmpty));
    rename("moved", "empty").unwrap();
    assert_eq!(root.names("/").unwrap(), ["a", "empty"]);
}

#[test]
fn mounts() {
    rt::host::install();
    let vfs = Vfs::new(TmpFs::new(1 << 20), MountSpec::new("root"));
    let root = vfs.root();
    root.mkdir("mnt").unwrap();
    root.write("mnt/hidden", b"").unwrap();
    let point = root.base().resolve(b"mnt", Follow::Yes).unwrap();
    let inner =
        vfs.mount(&point, TmpFs::new(1 << 20), MountSpec { options: "size=1m".into(), ..MountSpec::new("tmpfs") });
    assert_eq!(resolve(&root, "mnt/hidden"), Err(FsError::NotFound));
    root.write("mnt/inside", b"x").unwrap();
    assert_eq!(resolve(&root, "mnt/../mnt/inside").unwrap(), b"/mnt/inside");
    assert_eq!(
        root.base().rename(b"mnt/inside", &root.base(), b"outside", RenameMode::Replace),
        Err(FsError::CrossDevice)
    );
    assert_eq!(root.base().remove_directory(b"mnt"), Err(FsError::Busy));
    let list = vfs.mounts(&root);
    assert_eq!(list.len(), 2);
    assert_eq!((&list[1].path[..], list[1].parent_id, list[1].type_name), (&b"/mnt"[..], list[0].id, "tmpfs"));
    assert_eq!(list[1].spec.option_list(), "rw,size=1m");
    let inner = inner.unwrap();
    let file = root.open_path("mnt/inside", OpenFlags::empty()).unwrap();
    assert_eq!(vfs.unmount(&inner), Err(FsError::Busy));
    drop(file);
    vfs.unmount(&inner).unwrap();
    assert!(resolve(&root, "mnt/hidden").is_ok());
}

#[test]
fn read_only_mounts() {
    rt::host::install();
    let vfs = Vfs::new(TmpFs::new(1 << 20), MountSpec::new("root").read_only());
    assert_eq!(vfs.root().mkdir("x"), Err(FsError::ReadOnly));
    assert_eq!(vfs.root().write("x", b""), Err(FsError::ReadOnly));
}

/// Creators, lookers and removers of the same few names: each call ends in a way that fits.
#[test]
fn concurrent_names() {
    let root = tree();
    let threads: Vec<_> = (0..4u32)
        .map(|n| {
            let root = root.clone();
            thread::spawn(move || {
                for i in 0..500 {
                    let path = std::format!("a/b/n{}", i % 3);
                    match (n + i) % 4 {
                        0 => assert_eq!(root.write(&path, b"12345"), Ok(())),
                        1 => assert!(matches!(root.base().unlink(path.as_bytes()), Ok(()) | Err(FsError::NotFound))),
                        2 => match root.read(&path) {
                            // A reader beside a truncation may see the file's old length and zeroes, as on
                            // Linux, whose reads take no lock against it either; nothing else.
                            Ok(content) => {
                                let fits = content.iter().zip(b"12345").all(|(got, want)| got == want || *got == 0);
                                assert!(fits && content.len() <= 5, "{content:?}");
                            }
                            Err(error) => assert_eq!(error, FsError::NotFound),
                        },
                        _ => {
                            let to = std::format!("a/m{n}");
                            let base = root.base();
                            let renamed = base.rename(path.as_bytes(), &base, to.as_bytes(), RenameMode::Replace);
                            assert!(matches!(renamed, Ok(()) | Err(FsError::NotFound)));
                        }
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    // What the directory lists is what can be opened.
    for name in root.names("a/b").unwrap() {
        assert!(resolve(&root, &std::format!("a/b/{name}")).is_ok());
    }
}

#[test]
fn fifos_and_devices() {
    rt::host::install();
    let root = vfs(devfs().unwrap());
    root.base().create_node(b"fifo", NewNode::Fifo, 0o600).unwrap();
    let both = root.open_path("fifo", OpenFlags::READ_WRITE).unwrap();
    both.write(&mut SliceSource::new(b"round")).unwrap();
    let mut bytes = [1; 8];
    assert_eq!(both.read(&mut SliceSink::new(&mut bytes)), Ok(5));
    let read = |name: &str, bytes: &mut [u8]| {
        root.open_path(name, OpenFlags::empty()).unwrap().read(&mut SliceSink::new(bytes))
    };
    assert_eq!(read("null", &mut bytes), Ok(0));
    assert_eq!(read("zero", &mut bytes), Ok(8));
    assert_eq!(bytes, [0; 8]);
    assert_eq!(read("urandom", &mut bytes), Ok(8));
    assert_ne!(bytes, [0; 8]);
    let write =
        |name: &str| root.open_path(name, OpenFlags::WRITE_ONLY).unwrap().write(&mut SliceSource::new(b"bytes"));
    assert_eq!((write("null"), write("full")), (Ok(5), Err(FsError::NoSpace)));
    let null = root.open_path("null", OpenFlags::empty()).unwrap().metadata().unwrap();
    assert_eq!((null.kind, null.rdev, null.permissions), (FileKind::CharDevice, 0x103, 0o666));
    assert_eq!(root.base().read_link(b"stdin").unwrap(), b"/proc/self/fd/0");
}

/// The only test that types: the console is one for the process.
#[test]
fn console_lines() {
    let host = rt::host::install();
    let root = vfs(devfs().unwrap());
    let console = root.open_path("console", OpenFlags::READ_WRITE).unwrap();
    let read = |console: &OpenFile| {
        let mut bytes = vec![0; 64];
        let len = console.read(&mut SliceSink::new(&mut bytes)).unwrap();
        bytes.truncate(len);
        bytes
    };
    assert_eq!(Console::get().metadata().unwrap().kind, FileKind::CharDevice);
    console.write(&mut SliceSource::new(b"prompt\n")).unwrap();
    assert_eq!(host.take_console_output(), b"prompt\n");
    host.type_on_console(b"onX\x7fe\rtwo\nthree");
    assert_eq!(read(&console), b"one\n");
    assert_eq!(read(&console), b"two\n");
    assert!(!console.readiness().contains(Readiness::IN), "the third line is not complete");
    // Poll: enlist, look, park.
    let me = rt::rt().current();
    console.enlist(&me);
    host.type_on_console(b"\n\x04");
    while !console.readiness().contains(Readiness::IN) {
        rt::rt().park(None, rt::task::ParkMode::Uninterruptible);
    }
    console.delist(&me);
    assert_eq!(read(&console), b"three\n");
    assert_eq!(read(&console), b"");
    // More than is kept: the rest waits until there is room.
    let many: String = (0..3000).map(|line| format!("line {line}\n")).collect();
    host.type_on_console(many.as_bytes());
    let echoed: Vec<u8> = (0..3000).flat_map(|_| read(&console)).collect();
    assert_eq!(String::from_utf8(echoed).unwrap(), many);
    assert_eq!(console.seek(SeekFrom::Start(0)), Err(FsError::NotSeekable));
}

/// What keeps them is one file in the last; recursion would need a stack of megabytes.
#[test]
fn a_long_chain_of_removed_directories_ends() {
    let root = tree();
    let mut last = root.dentry.clone();
    for _ in 0..200_000 {
        last = Dentry::new(root.inode().clone(), Some(last), b"d");
    }
    drop(last);
    assert_eq!(resolve(&root, "a/b/file").unwrap(), b"/a/b/file");
}
