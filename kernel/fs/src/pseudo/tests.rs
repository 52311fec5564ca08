//! Generated files, dynamic directories and magic links, as procfs will use them.
use alloc::format;
use core::fmt::Write;
use std::{sync::Mutex, vec};

use super::*;
use crate::{
    file::{OpenFile, OpenFlags, SeekFrom},
    io::{SliceSink, SliceSource},
    pipe::Pipe,
    testing::{Calls, read_all},
    tmpfs::TmpFs,
    vfs::{Base, Follow, Location, MountSpec, Vfs},
};

/// Open files of the "program", by descriptor.
static FILES: Mutex<Vec<Arc<OpenFile>>> = Mutex::new(Vec::new());

struct Descriptors;

impl Entries for Descriptors {
    fn find(&self, name: &[u8]) -> FsResult<Entry> {
        let number = core::str::from_utf8(name).ok().and_then(|name| name.parse::<usize>().ok());
        let file = number.and_then(|n| FILES.lock().unwrap().get(n).cloned()).ok_or(FsError::NotFound)?;
        Ok(link(move || Ok(LinkTarget::Object(Location::of_file(&file)))))
    }

    fn list(&self, each: &mut dyn FnMut(&[u8], FileKind)) -> FsResult<()> {
        let files = FILES.lock().unwrap().len();
        (0..files).for_each(|n| each(format!("{n}").as_bytes(), FileKind::Symlink));
        Ok(())
    }
}

struct Knob(Mutex<Vec<u8>>);

impl Content for Knob {
    fn generate(&self, out: &mut Vec<u8>) -> FsResult<()> {
        out.extend_from_slice(&self.0.lock().unwrap());
        Ok(())
    }

    fn write(&self, data: &[u8]) -> FsResult<()> {
        *self.0.lock().unwrap() = data.to_vec();
        Ok(())
    }
}

fn root() -> Location {
    rt::host::install();
    let vfs = Vfs::new(TmpFs::new(1 << 20), MountSpec::new("root"));
    let root = vfs.root();
    root.mkdir("proc").unwrap();
    root.write("file", b"through the descriptor").unwrap();
    let proc = PseudoFs::new("proc", PROC_MAGIC);
    let reads = Mutex::new(0);
    proc.add(
        "counter",
        text(move |out| {
            *reads.lock().unwrap() += 1;
            writeln!(out, "read {} times", reads.lock().unwrap())?;
            Ok(())
        }),
    );
    proc.add("sys/kernel/ostype", fixed("Linux\n"));
    proc.add("sys/kernel/knob", file(Arc::new(Knob(Mutex::new(b"0\n".to_vec()))), 0o644));
    proc.add("self", link_to("1"));
    proc.tree().directory("1/fd").set_dynamic(Arc::new(Descriptors));
    let at = root.base().resolve(b"proc", Follow::Yes).unwrap();
    vfs.mount(&at, proc, MountSpec::new("proc")).unwrap();
    root
}

#[test]
fn generated_files() {
    let root = root();
    assert_eq!(root.read("proc/sys/kernel/ostype").unwrap(), b"Linux\n");
    let counter = root.open_path("proc/counter", OpenFlags::empty()).unwrap();
    let mut byte = [0; 6];
    counter.read(&mut SliceSink::new(&mut byte)).unwrap();
    assert_eq!(read_all(&counter).unwrap(), b" times\n");
    counter.seek(SeekFrom::Start(0)).unwrap();
    assert_eq!(read_all(&counter).unwrap(), b"read 2 times\n");
    assert_eq!(root.names("proc").unwrap(), ["1", "counter", "self", "sys"]);
    assert_eq!(root.read("proc/none"), Err(FsError::NotFound));
    assert_eq!(root.mkdir("proc/new"), Err(FsError::NotPermitted));
    let number = |path: &[u8]| root.base().resolve(path, Follow::Yes).unwrap().metadata().unwrap().inode;
    assert_eq!(number(b"proc/sys"), number(b"proc/sys"));
    assert_ne!(number(b"proc/sys"), number(b"proc/1"));
}

#[test]
fn knobs_are_written() {
    let root = root();
    let flags = OpenFlags::WRITE_ONLY | OpenFlags::TRUNCATE | OpenFlags::CREATE;
    let knob = root.open_path("proc/sys/kernel/knob", flags).unwrap();
    assert_eq!(knob.write(&mut SliceSource::new(b"7\n")), Ok(2));
    assert_eq!(root.read("proc/sys/kernel/knob").unwrap(), b"7\n");
    let fixed = root.open_path("proc/sys/kernel/ostype", flags).unwrap();
    assert_eq!(fixed.write(&mut SliceSource::new(b"x")), Err(FsError::Permission));
}

#[test]
fn magic_links() {
    let root = root();
    let file = root.open_path("file", OpenFlags::empty()).unwrap();
    let (read_end, write_end) = Pipe::pair(OpenFlags::NONBLOCK).unwrap();
    *FILES.lock().unwrap() = vec![file, read_end.clone(), write_end];
    assert_eq!(root.names("proc/self/fd").unwrap(), ["0", "1", "2"]);
    assert_eq!(root.base().read_link(b"proc/self/fd/0").unwrap(), b"/file");
    // The link still works when the name does not.
    root.base().unlink(b"file").unwrap();
    assert_eq!(root.base().read_link(b"proc/self/fd/0").unwrap(), b"/file (deleted)");
    assert_eq!(root.read("proc/self/fd/0").unwrap(), b"through the descriptor");
    assert!(root.base().read_link(b"/proc/self/fd/1").unwrap().starts_with(b"pipe:["));
    let again = root.open_path("proc/self/fd/2", OpenFlags::WRITE_ONLY | OpenFlags::NONBLOCK).unwrap();
    again.write(&mut SliceSource::new(b"reopened")).unwrap();
    let mut bytes = [0; 8];
    read_end.read(&mut SliceSink::new(&mut bytes)).unwrap();
    assert_eq!(&bytes, b"reopened");
    let location = root.base().resolve(b"proc/self/fd/1", Follow::Yes).unwrap();
    assert_eq!(location.metadata().unwrap().kind, FileKind::Fifo);
    let base = Base::new(&root, &root);
    assert_eq!(base.resolve(b"proc/self/fd/9", Follow::Yes).err(), Some(FsError::NotFound));
}
