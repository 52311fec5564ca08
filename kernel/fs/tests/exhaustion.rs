//! Running out of pages: clean cache goes first, then callers get errors, and nothing is lost.
//!
//! A binary of its own, with one test, since the page limit is the process's.
use fs::{
    FileSystem, FsError, FsResult, OpenFlags, SliceSink, SliceSource, Vfs,
    cache::{FilePages, PageSource, Readahead, reclaim},
    tmpfs::TmpFs,
    vfs::{Base, MountSpec},
};
use rt::page::{PAGE_SIZE, Page};

/// A file of 10,000 pages that begin with their own number.
struct Numbers;

impl PageSource for Numbers {
    fn pages(&self) -> u64 {
        10_000
    }

    fn extent(&self, first: u64, max: u64) -> u64 {
        max.min(10_000 - first)
    }

    fn load(&self, first: u64, pages: &[Page]) -> FsResult<()> {
        (first..).zip(pages).for_each(|(n, page)| page.write(0, &n.to_le_bytes()));
        Ok(())
    }
}

fn number(page: &Page) -> u64 {
    let mut bytes = [0; 8];
    page.read(0, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn pages_run_out() {
    let host = rt::host::install();
    host.set_page_limit(300);
    host.set_reclaim(reclaim);

    // Far more file than memory, with some pages mapped: reads go on, what is mapped stays.
    let file = FilePages::new();
    let mapped: Vec<Page> = (0..50).map(|n| file.get(n * 7, Readahead::Around, &Numbers).unwrap()).collect();
    for index in 0..10_000 {
        assert_eq!(number(&file.get(index, Readahead::Ahead, &Numbers).unwrap()), index);
    }
    assert!(host.pages_in_use() <= 300);
    for (n, page) in mapped.iter().enumerate() {
        assert_eq!(file.cached(n as u64 * 7).as_ref(), Some(page));
    }

    // tmpfs takes what the cache gives up, and then says that there is no more.
    let tmpfs = TmpFs::new(1 << 30);
    let vfs = Vfs::new(tmpfs.clone(), MountSpec::new("tmpfs"));
    let root = vfs.root();
    let base = Base::new(&root, &root);
    let output = base.open(b"f", OpenFlags::CREATE | OpenFlags::READ_WRITE, 0o644).unwrap();
    let data: Vec<u8> = (0..400 * PAGE_SIZE).map(|n| (n / 3) as u8).collect();
    let written = output.write(&mut SliceSource::new(&data)).unwrap();
    assert!((200 * PAGE_SIZE..300 * PAGE_SIZE).contains(&written), "{written}");
    assert_eq!(output.write(&mut SliceSource::new(&data)), Err(FsError::OutOfMemory));
    let mut back = vec![0; written];
    assert_eq!(output.read_at(0, &mut SliceSink::new(&mut back)), Ok(written));
    assert!(back == data[..written]);

    // A failed read leaves nothing half done: with memory again, it works.
    drop(mapped);
    reclaim(1000);
    let held: Vec<Page> = std::iter::from_fn(|| Page::alloc().ok()).collect();
    assert_eq!(file.get(9_000, Readahead::Ahead, &Numbers), Err(FsError::OutOfMemory));
    drop(held);
    assert_eq!(number(&file.get(9_000, Readahead::Ahead, &Numbers).unwrap()), 9_000);

    drop(output);
    base.unlink(b"f").unwrap();
    assert_eq!(tmpfs.used_bytes(), 0);
    assert_eq!(tmpfs.status().blocks, tmpfs.status().blocks_free);
}
