//! Tests of the disk that the machine was given: a pattern disk, each sector full of its own number
//! as 64-bit words.
use alloc::{format, string::String, vec, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use logic::random::Stream;
use rt::{
    block::{BlockDevice, BlockError, SECTOR_SIZE},
    page::{PAGE_SIZE, Page},
    rt,
    task::ParkMode,
};

use super::{
    check,
    tasks::{spawn, wait_for},
};
use crate::drivers::{first_disk, quiesce_devices, resume_devices};

const SECTORS_PER_PAGE: u64 = (PAGE_SIZE / SECTOR_SIZE) as u64;

fn pages(count: usize) -> Result<Vec<Page>, String> {
    (0..count).map(|_| Page::alloc()).collect::<Result<_, _>>().map_err(|_| String::from("no frames"))
}

/// The first sector whose content is not its number.
fn wrong_sector(first: u64, pages: &[Page]) -> Option<u64> {
    (0..pages.len() as u64 * SECTORS_PER_PAGE).find_map(|n| {
        let mut words = [0; SECTOR_SIZE];
        pages[(n / SECTORS_PER_PAGE) as usize].read((n % SECTORS_PER_PAGE) as usize * SECTOR_SIZE, &mut words);
        words.chunks_exact(8).any(|word| *word != (first + n).to_le_bytes()).then_some(first + n)
    })
}

fn read_run(disk: &dyn BlockDevice, random: &mut Stream) -> Result<(), String> {
    let longest = if random.below(10) == 0 { 200 } else { 40 };
    let count = 1 + random.below(longest);
    let pages = pages(count as usize)?;
    let first = random.below(disk.sectors() - count * SECTORS_PER_PAGE + 1);
    disk.read_pages(first, &pages).map_err(|error| format!("{error:?} at {first}"))?;
    match wrong_sector(first, &pages) {
        None => Ok(()),
        Some(sector) => Err(format!("sector {sector} of {count} pages from {first} is wrong")),
    }
}

/// Several tasks read runs of all lengths, from all offsets, at once.
pub fn reads() -> Result<(), String> {
    const TASKS: usize = 8;
    const READS: usize = 40;
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static FAILED: spin::Mutex<Option<String>> = spin::Mutex::new(None);
    let disk = first_disk().ok_or("no pattern disk")?;
    fn reader(seed: usize) {
        let mut random = Stream::new(seed as u64);
        if let Some(disk) = first_disk() {
            for _ in 0..READS {
                if let Err(error) = read_run(&*disk, &mut random) {
                    *FAILED.lock() = Some(error);
                }
            }
        }
        DONE.fetch_add(1, SeqCst);
    }
    for seed in 0..TASKS {
        spawn(reader, seed, u64::MAX, 0);
    }
    wait_for(|| DONE.load(SeqCst) == TASKS)?;
    if let Some(error) = FAILED.lock().take() {
        return Err(error);
    }
    let beyond = disk.read_pages(disk.sectors() - 1, &pages(1)?);
    check(beyond == Err(BlockError::OutOfRange), "a read beyond the end")
}

/// Several tasks write, read and flush at once, each in sectors of its own that lie between the others',
/// runs of pages that begin at any sector; all that is read is compared with what was written last.
pub fn mixed() -> Result<(), String> {
    const ROUNDS: usize = 60;
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static FAILED: spin::Mutex<Option<String>> = spin::Mutex::new(None);
    fn task(owner: usize) {
        if let Some(disk) = first_disk() {
            let mut region = Region { disk: &*disk, owner: owner as u64, versions: vec![0; REGION_SECTORS as usize] };
            let mut random = Stream::new(owner as u64 + 77);
            let result = (0..ROUNDS).try_for_each(|_| region.step(&mut random)).and_then(|()| region.restore());
            if let Err(why) = result {
                *FAILED.lock() = Some(format!("region {owner}: {why}"));
            }
        }
        DONE.fetch_add(1, SeqCst);
    }
    let disk = first_disk().ok_or("no pattern disk")?;
    check(disk.sectors() >= REGIONS * REGION_SECTORS, "the disk is too small")?;
    if disk.write_pages(0, &[]) == Err(BlockError::ReadOnly) {
        return Ok(());
    }
    DONE.store(0, SeqCst);
    for owner in 0..REGIONS as usize {
        spawn(task, owner, u64::MAX, 0);
    }
    wait_for(|| DONE.load(SeqCst) == REGIONS as usize)?;
    FAILED.lock().take().map_or(Ok(()), Err)
}

const REGIONS: u64 = 6;
const REGION_SECTORS: u64 = 1001;

/// Consecutive sectors that one task writes, and how often it wrote each.
struct Region<'a> {
    disk: &'a dyn BlockDevice,
    owner: u64,
    versions: Vec<u64>,
}

impl Region<'_> {
    fn first(&self) -> u64 {
        self.owner * REGION_SECTORS
    }

    /// The word that fills a sector: its number at first, as all over the disk.
    fn word(&self, at: usize) -> [u8; 8] {
        (self.first() + at as u64 + (self.versions[at] << 32)).to_le_bytes()
    }

    fn step(&mut self, random: &mut Stream) -> Result<(), String> {
        let pages = 1 + random.below(24);
        let at = random.below(REGION_SECTORS - pages * SECTORS_PER_PAGE + 1) as usize;
        match random.below(8) {
            0 => self.disk.flush().map_err(|error| format!("flush: {error:?}")),
            1..4 => self.write(at, pages as usize, 1),
            _ => self.compare(at, pages as usize),
        }
    }

    /// As one scattered request: every other frame belongs to somebody else.
    fn scattered(pages: usize) -> Result<Vec<Page>, String> {
        Ok(self::pages(2 * pages)?.into_iter().step_by(2).collect())
    }

    fn write(&mut self, at: usize, count: usize, by: u64) -> Result<(), String> {
        let pages = Self::scattered(count)?;
        for n in 0..count * SECTORS_PER_PAGE as usize {
            self.versions[at + n] += by;
            let sector = self.word(at + n).repeat(SECTOR_SIZE / 8);
            pages[n / SECTORS_PER_PAGE as usize].write(n % SECTORS_PER_PAGE as usize * SECTOR_SIZE, &sector);
        }
        let written = self.disk.write_pages(self.first() + at as u64, &pages);
        written.map_err(|error| format!("write of {count} pages at {at}: {error:?}"))
    }

    fn compare(&self, at: usize, count: usize) -> Result<(), String> {
        let pages = Self::scattered(count)?;
        let read = self.disk.read_pages(self.first() + at as u64, &pages);
        read.map_err(|error| format!("read of {count} pages at {at}: {error:?}"))?;
        for n in 0..count * SECTORS_PER_PAGE as usize {
            let mut sector = [0; SECTOR_SIZE];
            pages[n / SECTORS_PER_PAGE as usize].read(n % SECTORS_PER_PAGE as usize * SECTOR_SIZE, &mut sector);
            let word = self.word(at + n);
            check(sector.chunks_exact(8).all(|found| found == word), &format!("sector {} has other bytes", at + n))?;
        }
        Ok(())
    }

    /// All of it compared once more, and then as it was, for the next test.
    fn restore(&mut self) -> Result<(), String> {
        const COUNT: usize = (REGION_SECTORS / SECTORS_PER_PAGE) as usize;
        let last = (REGION_SECTORS - COUNT as u64 * SECTORS_PER_PAGE) as usize;
        self.compare(0, COUNT)?;
        self.compare(last, COUNT)?;
        for at in [0, last] {
            self.versions.fill(0);
            self.write(at, COUNT, 0)?;
        }
        self.disk.flush().map_err(|error| format!("flush: {error:?}"))?;
        self.compare(0, COUNT)
    }
}

/// What is written can be read again, and nothing beside it changes.
pub fn writes() -> Result<(), String> {
    let disk = first_disk().ok_or("no pattern disk")?;
    let buffers = pages(100)?;
    let failed = |error| format!("{error:?}");
    disk.read_pages(8, &buffers).map_err(failed)?;
    for page in &buffers {
        page.write(0, &[0xa5; PAGE_SIZE]);
    }
    match disk.write_pages(8, &buffers) {
        Err(BlockError::ReadOnly) => return Ok(()),
        other => other.map_err(failed)?,
    }
    disk.flush().map_err(failed)?;
    let all = pages(102)?;
    disk.read_pages(0, &all).map_err(failed)?;
    check(wrong_sector(0, &all[..1]).is_none() && wrong_sector(808, &all[101..]).is_none(), "a neighbour changed")?;
    for page in &all[1..101] {
        let mut bytes = [0; PAGE_SIZE];
        page.read(0, &mut bytes);
        check(bytes == [0xa5; PAGE_SIZE], "what was written is not there")?;
    }
    // As it was, for the next test.
    for (n, page) in buffers.iter().enumerate() {
        for sector in 0..SECTORS_PER_PAGE {
            let number = (8 + n as u64 * SECTORS_PER_PAGE + sector).to_le_bytes();
            for word in 0..SECTOR_SIZE / 8 {
                page.write(sector as usize * SECTOR_SIZE + word * 8, &number);
            }
        }
    }
    disk.write_pages(8, &buffers).map_err(failed)
}

/// The devices stop and go on fifty times while tasks read and write, and no request is lost, done twice
/// or done wrong.
pub fn quiesce() -> Result<(), String> {
    const TASKS: usize = 6;
    const REGION: u64 = 40;
    const ROUNDS: usize = 50;
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static TRANSFERS: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    static FAILED: spin::Mutex<Option<String>> = spin::Mutex::new(None);
    /// Writes a region of its own with ever new bytes and reads it again, and at last puts back what was
    /// there. A disk that cannot be written is read.
    fn work(seed: usize) -> Result<(), String> {
        let disk = first_disk().ok_or("no pattern disk")?;
        let mut random = Stream::new(seed as u64);
        let first = (8 + seed as u64 * REGION) * SECTORS_PER_PAGE;
        let failed = |error| format!("{error:?}");
        let (before, buffers, back) = (pages(REGION as usize)?, pages(REGION as usize)?, pages(REGION as usize)?);
        disk.read_pages(first, &before).map_err(failed)?;
        let mut round = 0u8;
        while !STOP.load(SeqCst) {
            let count = 1 + random.below(REGION) as usize;
            round = round.wrapping_add(1);
            for page in &buffers[..count] {
                page.write(0, &[round ^ seed as u8; PAGE_SIZE]);
            }
            match disk.write_pages(first, &buffers[..count]) {
                Err(BlockError::ReadOnly) => read_run(&*disk, &mut random)?,
                Err(error) => return Err(failed(error)),
                Ok(()) => {
                    disk.read_pages(first, &back[..count]).map_err(failed)?;
                    for page in &back[..count] {
                        let mut bytes = [0; PAGE_SIZE];
                        page.read(0, &mut bytes);
                        check(bytes == [round ^ seed as u8; PAGE_SIZE], "other bytes than were written")?;
                    }
                }
            }
            TRANSFERS.fetch_add(1, SeqCst);
        }
        match disk.write_pages(first, &before) {
            Err(BlockError::ReadOnly) => Ok(()),
            other => other.map_err(failed),
        }
    }
    fn worker(seed: usize) {
        if let Err(error) = work(seed) {
            *FAILED.lock() = Some(error);
        }
        DONE.fetch_add(1, SeqCst);
    }
    let disk = first_disk().ok_or("no pattern disk")?;
    check(disk.sectors() >= (8 + TASKS as u64 * REGION) * SECTORS_PER_PAGE, "the pattern disk is too small")?;
    STOP.store(false, SeqCst);
    DONE.store(0, SeqCst);
    for seed in 0..TASKS {
        spawn(worker, seed, u64::MAX, 0);
    }
    let pause = |ns| rt().park(Some(rt().now_ns() + ns), ParkMode::Uninterruptible);
    let mut result = Ok(());
    for round in 0..ROUNDS {
        let before = TRANSFERS.load(SeqCst);
        wait_for(|| TRANSFERS.load(SeqCst) > before + 2 || FAILED.lock().is_some())?;
        if !quiesce_devices() {
            result = Err(format!("round {round}: a device does not stop"));
            break;
        }
        let stopped = TRANSFERS.load(SeqCst);
        // A virtio terminal keeps it until it goes on.
        log::info!("round {round}: the devices are stopped");
        // Far more than a transfer takes. Each task may end the one whose last result it had already.
        pause(20_000_000);
        if TRANSFERS.load(SeqCst) > stopped + TASKS {
            result = Err(format!("round {round}: the disk works although it is stopped"));
        }
        resume_devices();
    }
    STOP.store(true, SeqCst);
    wait_for(|| DONE.load(SeqCst) == TASKS)?;
    if let Some(error) = FAILED.lock().take() {
        return Err(error);
    }
    result?;
    let all = pages(8 + TASKS * REGION as usize)?;
    disk.read_pages(0, &all).map_err(|error| format!("{error:?}"))?;
    check(wrong_sector(0, &all).is_none(), "the pattern is not as it was")
}
