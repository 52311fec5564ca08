//! Block device files over a fake device that notes the order of writes and flushes, and fails on demand.
use std::{
    collections::HashMap,
    string::ToString,
    sync::{
        Mutex, PoisonError, RwLock, RwLockReadGuard, atomic::AtomicBool, atomic::AtomicUsize, atomic::Ordering::SeqCst,
    },
    thread,
    time::Duration,
    vec,
};

use rt::{
    block::BlockError,
    space::{FileMapping, MapRequest, Placement, ProgramId, Prot},
};

use super::*;
use crate::{
    file::{OpenFile, SeekFrom},
    io::{SliceSink, SliceSource},
    testing::pattern,
};

const PAGES: u64 = 300;
const OWNER: ProgramId = ProgramId(9);

/// What reached the device, in order.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    Write(Range<u64>),
    Flush,
}

#[derive(Default)]
struct FakeDevice {
    /// What was written; other pages hold their number in each word.
    written: Mutex<HashMap<u64, Vec<u8>>>,
    events: Mutex<Vec<Event>>,
    failing: AtomicBool,
    failing_flush: AtomicBool,
    read_only: bool,
    /// Writes in progress, and by page: two of one page at once would be a fault.
    busy: Mutex<Vec<u64>>,
    most_busy: AtomicUsize,
    slow: AtomicBool,
}

impl FakeDevice {
    fn page(&self, index: u64) -> Vec<u8> {
        let original = || index.to_le_bytes().repeat(PAGE_SIZE / 8);
        self.written.lock().unwrap().get(&index).cloned().unwrap_or_else(original)
    }

    fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

impl BlockDevice for FakeDevice {
    fn sectors(&self) -> u64 {
        // Half a page more than fits.
        PAGES * SECTORS_PER_PAGE + 4
    }

    fn read_pages(&self, first_sector: u64, pages: &[Page]) -> Result<(), BlockError> {
        if self.failing.load(SeqCst) {
            return Err(BlockError::Io);
        }
        for (index, page) in (first_sector / SECTORS_PER_PAGE..).zip(pages) {
            page.write(0, &self.page(index));
        }
        Ok(())
    }

    fn write_pages(&self, first_sector: u64, pages: &[Page]) -> Result<(), BlockError> {
        let first = first_sector / SECTORS_PER_PAGE;
        let range = first..first + pages.len() as u64;
        {
            let mut busy = self.busy.lock().unwrap();
            assert!(range.clone().all(|index| !busy.contains(&index)), "two writes of one page at once");
            busy.extend(range.clone());
            self.most_busy.fetch_max(busy.len(), SeqCst);
        }
        if self.slow.load(SeqCst) {
            thread::sleep(Duration::from_millis(3));
        }
        let result = if self.failing.load(SeqCst) {
            Err(BlockError::Io)
        } else {
            for (index, page) in range.clone().zip(pages) {
                let mut bytes = vec![0; PAGE_SIZE];
                page.read(0, &mut bytes);
                self.written.lock().unwrap().insert(index, bytes);
            }
            Ok(())
        };
        self.busy.lock().unwrap().retain(|index| !range.contains(index));
        self.events.lock().unwrap().push(Event::Write(range));
        result
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.events.lock().unwrap().push(Event::Flush);
        if self.failing_flush.load(SeqCst) { Err(BlockError::Io) } else { Ok(()) }
    }

    fn read_only(&self) -> bool {
        self.read_only
    }
}

/// Taken alone by who has dirty pages of any file written.
static UNDISTURBED: RwLock<()> = RwLock::new(());

/// Nobody but the test itself writes its file's pages as long as it has this.
fn undisturbed() -> RwLockReadGuard<'static, ()> {
    UNDISTURBED.read().unwrap_or_else(PoisonError::into_inner)
}

fn device_file(device: FakeDevice) -> (Arc<FakeDevice>, Arc<BlockFile>) {
    rt::host::install();
    let device = Arc::new(device);
    let file = BlockFile::new("vdt".to_string(), device_number(MAJOR, 240), device.clone());
    (device, file)
}

fn open(file: &Arc<BlockFile>) -> Arc<OpenFile> {
    OpenFile::new(file.open(OpenFlags::READ_WRITE), OpenFlags::READ_WRITE)
}

fn read_at(file: &OpenFile, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let read = file.read_at(at, &mut SliceSink::new(&mut bytes)).unwrap();
    bytes.truncate(read);
    bytes
}

fn write_at(file: &OpenFile, at: u64, bytes: &[u8]) -> FsResult<usize> {
    file.write_at(at, &mut SliceSource::new(bytes))
}

/// A shared writable mapping of the first pages.
fn map(file: &OpenFile, pages: u64) -> u64 {
    let request = MapRequest {
        placement: Placement::Anywhere,
        len: pages * PAGE,
        prot: Prot::READ | Prot::WRITE,
        file: Some(FileMapping { pager: file.pager().unwrap(), first_page: 0 }),
        shared: true,
        read_only: false,
        no_reserve: false,
        stack: false,
        label: None,
    };
    rt().address_space().map(OWNER, request).unwrap()
}

#[test]
fn bytes_are_kept_and_reach_the_device_by_fsync_before_the_flush() {
    let _undisturbed = undisturbed();
    let (device, file) = device_file(FakeDevice::default());
    let open = open(&file);
    let bytes = pattern(3 * PAGE_SIZE + 100);
    assert_eq!(write_at(&open, PAGE - 50, &bytes), Ok(bytes.len()));
    assert_eq!(read_at(&open, PAGE - 50, bytes.len()), bytes);
    assert_eq!(read_at(&open, 0, 8), [0; 8]);
    assert!(device.take_events().is_empty(), "written before anyone asked");
    open.sync().unwrap();
    let events = device.take_events();
    assert_eq!(events, [Event::Write(0..5), Event::Flush]);
    let all: Vec<u8> = (0..5).flat_map(|index| device.page(index)).collect();
    assert_eq!(all[PAGE_SIZE - 50..][..bytes.len()], bytes);
    assert_eq!(all[4 * PAGE_SIZE + 50..][..8], 4u64.to_le_bytes().repeat(2)[2..10]);
    // Nothing is dirty any more.
    open.sync().unwrap();
    assert_eq!(device.take_events(), [Event::Flush]);
}

#[test]
fn the_device_has_an_end() {
    let (_, file) = device_file(FakeDevice::default());
    let open = open(&file);
    let end = PAGES * PAGE;
    assert_eq!(open.seek(SeekFrom::End(0)), Ok(end));
    assert_eq!(write_at(&open, end, b"x"), Err(FsError::NoSpace));
    assert_eq!(write_at(&open, end, b""), Ok(0));
    assert_eq!(write_at(&open, end - 3, b"12345"), Ok(3));
    assert_eq!(read_at(&open, end - 3, 10), b"123");
    assert_eq!(read_at(&open, end, 10), b"");
    assert_eq!(open.pager().unwrap().page(PAGES, false), Err(PagerError::BeyondEnd));
}

#[test]
fn a_mapping_is_tracked_from_each_first_write() {
    let _undisturbed = undisturbed();
    let (device, file) = device_file(FakeDevice::default());
    let open = open(&file);
    let at = map(&open, 4);
    let write = |page: u64, bytes: &[u8]| rt().user().write(at + page * PAGE, bytes).unwrap();
    let mut back = [0; 8];
    rt().user().read(&mut back, at + PAGE).unwrap();
    assert_eq!(back, 1u64.to_le_bytes());
    assert_eq!(file.pages.unwritten(), 0, "reading makes nothing dirty");
    write(1, b"first");
    write(1, b"again");
    write(3, b"other");
    assert_eq!(file.pages.unwritten(), 2);
    // The other view sees it at once.
    assert_eq!(read_at(&open, PAGE, 5), b"again");
    open.pager().unwrap().sync(0..2).unwrap();
    assert_eq!(device.take_events(), [Event::Write(1..2), Event::Flush]);
    assert_eq!(file.pages.unwritten(), 1);
    write(1, b"later");
    assert_eq!(file.pages.unwritten(), 2, "a write after writeback was missed");
    open.sync().unwrap();
    assert_eq!(device.page(1)[..5], *b"later");
    assert_eq!(device.page(3)[..5], *b"other");
    rt().address_space().unmap(OWNER, at, 4 * PAGE).unwrap();
}

/// EIO once for each open file that was there, and for the next one if nobody was told.
#[test]
fn a_failure_is_reported_once_to_each() {
    let _undisturbed = undisturbed();
    let (device, file) = device_file(FakeDevice::default());
    let (first, second) = (open(&file), open(&file));
    write_at(&first, 0, b"lost").unwrap();
    device.failing.store(true, SeqCst);
    assert_eq!(first.sync(), Err(FsError::Io));
    device.failing.store(false, SeqCst);
    assert_eq!(first.sync(), Ok(()));
    assert_eq!(second.sync(), Err(FsError::Io));
    assert_eq!(second.sync(), Ok(()));
    assert_eq!(open(&file).sync(), Ok(()));
    // Nobody's fsync was there when the kernel failed to write by itself.
    write_at(&first, 0, b"lost").unwrap();
    device.failing.store(true, SeqCst);
    file.writeback.sync(0..1);
    device.failing.store(false, SeqCst);
    drop((first, second));
    let third = open(&file);
    assert_eq!(third.sync(), Err(FsError::Io));
    assert_eq!(open(&file).sync(), Ok(()));
    // A device that cannot flush has not kept anything.
    device.failing_flush.store(true, SeqCst);
    assert_eq!(third.sync(), Err(FsError::Io));
    device.failing_flush.store(false, SeqCst);
    assert_eq!(third.sync(), Ok(()));
    // What is read is said at once.
    device.failing.store(true, SeqCst);
    assert_eq!(third.read_at(200 * PAGE, &mut SliceSink::new(&mut [0; 10])), Err(FsError::Io));
    device.failing.store(false, SeqCst);
    assert_eq!(read_at(&third, 200 * PAGE, 1), [200]);
}

#[test]
fn a_read_only_device_refuses_writes() {
    let (_, file) = device_file(FakeDevice { read_only: true, ..FakeDevice::default() });
    let open = open(&file);
    assert_eq!(write_at(&open, 0, b"x"), Err(FsError::NotPermitted));
    assert!(!open.ops().allows_shared_writes());
    assert_eq!(open.pager().unwrap().page(0, true), Err(PagerError::Io));
    assert_eq!(read_at(&open, 5 * PAGE, 1), [5]);
}

#[test]
fn synchronous_writes_are_on_the_device() {
    let _undisturbed = undisturbed();
    let (device, file) = device_file(FakeDevice::default());
    let flags = OpenFlags::READ_WRITE | OpenFlags::DSYNC;
    let open = OpenFile::new(file.open(flags), flags);
    write_at(&open, 7 * PAGE, b"now").unwrap();
    assert_eq!(device.take_events(), [Event::Write(7..8), Event::Flush]);
    device.failing.store(true, SeqCst);
    assert_eq!(write_at(&open, 7 * PAGE, b"not"), Err(FsError::Io));
}

/// Dirty pages survive reclaim, and clean ones come back from the device, mapped or not.
#[test]
fn reclaim_takes_clean_pages_and_leaves_dirty_ones() {
    let _alone = UNDISTURBED.write().unwrap_or_else(PoisonError::into_inner);
    let (device, file) = device_file(FakeDevice::default());
    let open = open(&file);
    let at = map(&open, 64);
    for page in 0..64u64 {
        rt().user().write(at + page * PAGE, &(1000 + page).to_le_bytes()).unwrap();
    }
    file.pages.drop_clean();
    assert_eq!(file.pages.len(), 64);
    // This file alone: other tests count on their pages, and on what they have not written.
    let mut turns = 0;
    while !file.pages.is_empty() {
        if file.pages.give_back(64, false) == 0 {
            file.writeback.sync(0..PAGES);
        }
        turns += 1;
        assert!(turns < 100, "{} left", file.pages.len());
    }
    assert_eq!(file.pages.unwritten(), 0);
    for page in 0..64u64 {
        assert_eq!(device.page(page)[..8], (1000 + page).to_le_bytes());
        let mut back = [0; 8];
        rt().user().read(&mut back, at + page * PAGE).unwrap();
        assert_eq!(back, (1000 + page).to_le_bytes());
    }
    rt().address_space().unmap(OWNER, at, 64 * PAGE).unwrap();
}

/// Writers by call and by mapping, syncs and reclaim at once: in the end the device has the last word of
/// each.
#[test]
fn nothing_is_lost_between_writers_and_writeback() {
    const ROUNDS: u64 = 60;
    let (device, file) = device_file(FakeDevice::default());
    device.slow.store(true, SeqCst);
    let open = open(&file);
    let at = map(&open, 16);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|me| {
                let open = &open;
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        for page in 0..16u64 {
                            let place = page * PAGE + me * 8;
                            if me % 2 == 0 {
                                rt().user().write(at + place, &round.to_le_bytes()).unwrap();
                            } else {
                                write_at(open, place, &round.to_le_bytes()).unwrap();
                            }
                        }
                        thread::sleep(Duration::from_micros(200));
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                open.sync().unwrap();
            }
        });
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                file.pages.give_back(4, false);
                thread::yield_now();
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, SeqCst);
    });
    open.sync().unwrap();
    for page in 0..16 {
        assert_eq!(device.page(page)[..32], ROUNDS.to_le_bytes().repeat(4), "page {page}");
    }
    rt().address_space().unmap(OWNER, at, 16 * PAGE).unwrap();
}
