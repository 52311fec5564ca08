//! Tests of the disk that the machine was given: a pattern disk, each sector full of its own number
//! as 64-bit words.
use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use logic::random::Stream;
use rt::{
    block::{BlockDevice, BlockError, SECTOR_SIZE},
    page::{PAGE_SIZE, Page},
};

use super::{
    check,
    tasks::{spawn, wait_for},
};
use crate::drivers::first_disk;

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
