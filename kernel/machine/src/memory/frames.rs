#![allow(unsafe_code, reason = "frame contents and frame records are raw memory")]
//! Frames: who has which 4 KiB of physical memory.
//!
//! A buddy allocator ([`logic::buddy`]) behind a small cache per CPU. Each frame has a record with its
//! reference count; the record is written when the frame is handed out, so memory that nobody uses
//! costs nothing, not even at boot.
//!
//! # Locking
//! A CPU's cache is touched by that CPU with interrupts off; the buddy allocator has a lock.
use core::{
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use logic::buddy::{Buddy, FrameLink};
use rt::page::{OutOfFrames, PAGE_SIZE};
use spin::Once;

use super::{
    early,
    paging::{PAGE, direct},
};
use crate::cpu::{
    lock::{InterruptsOff, IrqSpin},
    percpu::{self, MAX_CPUS},
};

const CACHE: usize = 64;
const CACHE_REFILL: usize = 32;
/// Bounds of the kernel's reserve: a 64th of memory in between. In frames.
const LEAST_RESERVE: u64 = 256;
const MOST_RESERVE: u64 = 4096;
/// Pages asked of the cache's owner when memory runs out.
const RECLAIM_PAGES: usize = 64;

/// What the kernel keeps of each frame in use.
struct FrameRecord {
    references: AtomicU32,
}

struct Cache {
    frames: [u64; CACHE],
    count: usize,
}

struct Caches(UnsafeCell<[Cache; MAX_CPUS]>);
// SAFETY: each CPU touches its own entry only, with interrupts off.
unsafe impl Sync for Caches {}

static CACHES: Caches = Caches(UnsafeCell::new([const { Cache { frames: [0; CACHE], count: 0 } }; MAX_CPUS]));
static BUDDY: IrqSpin<Option<Buddy<'static>>> = IrqSpin::new(None);
static RECORDS: AtomicPtr<FrameRecord> = AtomicPtr::new(ptr::null_mut());
static FIRST_FRAME: AtomicU64 = AtomicU64::new(0);
static FRAME_COUNT: AtomicU64 = AtomicU64::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);
/// Frames that only the kernel itself may take.
static RESERVE: AtomicU64 = AtomicU64::new(0);
static RECLAIMER: Once<fn(usize) -> usize> = Once::new();

/// Gives the allocator the physical ranges in `ram`, less what early boot took and `reserved` (both
/// sorted or not). Ends early allocation.
pub fn init(ram: &[(u64, u64)], reserved: &[(u64, u64)]) {
    // The buddy allocator wants its largest block's alignment.
    let first = (ram.iter().map(|range| range.0).min().unwrap_or(0) / PAGE) & !((1 << logic::buddy::MAX_ORDER) - 1);
    let last = ram.iter().map(|range| range.1).max().unwrap_or(0) / PAGE;
    let count = last - first;
    let links_at = early::take(count * size_of::<FrameLink>() as u64);
    let records_at = early::take(count * size_of::<FrameRecord>() as u64);
    // SAFETY: fresh memory of this size, mapped by the direct map; zeroed links are valid ones.
    let links = unsafe {
        ptr::write_bytes(direct(links_at) as *mut u8, 0, count as usize * size_of::<FrameLink>());
        core::slice::from_raw_parts_mut(direct(links_at) as *mut FrameLink, count as usize)
    };
    FIRST_FRAME.store(first, Ordering::Relaxed);
    FRAME_COUNT.store(count, Ordering::Relaxed);
    RECORDS.store(direct(records_at) as *mut FrameRecord, Ordering::Release);
    let mut buddy = Buddy::new(first, links);
    let early_end = early::close();
    let mut holes = holes::Ranges::new(early_end);
    for &range in reserved {
        holes.add(range);
    }
    for &range in ram {
        holes.each_free(range, |start, end| buddy.add_range(start / PAGE, (end - start) / PAGE));
    }
    TOTAL.store(buddy.total_frames() as usize, Ordering::Relaxed);
    RESERVE.store((buddy.total_frames() / 64).clamp(LEAST_RESERVE, MOST_RESERVE), Ordering::Relaxed);
    *BUDDY.lock() = Some(buddy);
}

/// The few ranges that boot must keep out of the allocator, without a heap.
mod holes {
    const MOST: usize = 8;

    pub struct Ranges {
        below: u64,
        ranges: [(u64, u64); MOST],
        count: usize,
    }

    impl Ranges {
        /// Everything below `below` is taken.
        pub fn new(below: u64) -> Self {
            Self { below, ranges: [(0, 0); MOST], count: 0 }
        }

        pub fn add(&mut self, (start, end): (u64, u64)) {
            assert!(self.count < MOST, "more than {MOST} reserved ranges");
            self.ranges[self.count] = (start & !4095, end.next_multiple_of(4096));
            self.count += 1;
        }

        /// Calls `each` with the page-aligned parts of `range` that are free.
        pub fn each_free(&self, (start, end): (u64, u64), mut each: impl FnMut(u64, u64)) {
            let mut at = start.max(self.below).next_multiple_of(4096);
            let end = end & !4095;
            while at < end {
                let taken = self.ranges[..self.count].iter();
                if let Some(hole) = taken.clone().find(|hole| hole.0 <= at && at < hole.1) {
                    at = hole.1;
                    continue;
                }
                let stop = taken.filter(|hole| hole.0 > at).map(|hole| hole.0).min().unwrap_or(end).min(end);
                each(at, stop);
                at = stop;
            }
        }
    }
}

fn record(frame: u64) -> Option<&'static FrameRecord> {
    let index = (frame / PAGE).wrapping_sub(FIRST_FRAME.load(Ordering::Relaxed));
    if index >= FRAME_COUNT.load(Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the array has a record for each frame in this range, and lives for ever.
    Some(unsafe { &*RECORDS.load(Ordering::Acquire).add(index as usize) })
}

fn counted(frame: u64) -> &'static FrameRecord {
    record(frame).unwrap_or_else(|| panic!("frame {frame:#x} has no record"))
}

/// Runs `with` on this CPU's cache.
fn with_cache<T>(with: impl FnOnce(&mut Cache) -> T) -> T {
    let _off = InterruptsOff::enter();
    let cpu = if percpu::ready() { percpu::this_cpu().index.get() as usize } else { 0 };
    // SAFETY: this CPU's entry, and interrupts are off.
    with(unsafe { &mut (*CACHES.0.get())[cpu] })
}

/// A frame with reference count 1, for the kernel itself: it may come from the reserve. Its physical
/// address is the result.
pub fn take(zeroed: bool) -> Result<u64, OutOfFrames> {
    take_above(0, zeroed)
}

/// A frame for an application's page or a file's: never from the reserve, so that the kernel can still
/// make the page tables and objects that reclaim and the end of a program need.
pub fn take_page(zeroed: bool) -> Result<u64, OutOfFrames> {
    take_above(RESERVE.load(Ordering::Relaxed), zeroed)
}

/// Takes a frame, if the buddy allocator keeps at least `reserve` of them.
fn take_above(reserve: u64, zeroed: bool) -> Result<u64, OutOfFrames> {
    let frame = with_cache(|cache| {
        if cache.count == 0 {
            let mut buddy = BUDDY.lock();
            let buddy = buddy.as_mut().ok_or(OutOfFrames)?;
            if buddy.free_frames() <= reserve {
                return Err(OutOfFrames);
            }
            while cache.count < CACHE_REFILL {
                let Some(number) = buddy.alloc(0) else { break };
                cache.frames[cache.count] = number * PAGE;
                cache.count += 1;
            }
        }
        if cache.count == 0 {
            return Err(OutOfFrames);
        }
        cache.count -= 1;
        Ok(cache.frames[cache.count])
    })?;
    counted(frame).references.store(1, Ordering::Relaxed);
    if zeroed {
        zero(frame);
    }
    Ok(frame)
}

/// A zeroed frame for a page table.
pub fn take_table() -> Option<u64> {
    take(true).ok()
}

/// Gives a frame back that [`take`] gave out, whatever its count says.
fn give(frame: u64) {
    with_cache(|cache| {
        if cache.count == CACHE {
            let mut buddy = BUDDY.lock();
            if let Some(buddy) = buddy.as_mut() {
                for &frame in &cache.frames[CACHE_REFILL..] {
                    buddy.free(frame / PAGE, 0);
                }
                cache.count = CACHE_REFILL;
            }
        }
        cache.frames[cache.count] = frame;
        cache.count += 1;
    });
}

/// 2^order frames in a row, aligned to their size, for the heap and for devices.
pub fn take_run(order: u32) -> Option<u64> {
    if order as usize > logic::buddy::MAX_ORDER {
        return None;
    }
    let number = BUDDY.lock().as_mut()?.alloc(order as usize)?;
    Some(number * PAGE)
}

pub fn give_run(frame: u64, order: u32) {
    if let Some(buddy) = BUDDY.lock().as_mut() {
        buddy.free(frame / PAGE, order as usize);
    }
}

/// A frame that is not the allocator's, such as a boot module's, gets a count of its own that never
/// reaches 0.
pub fn adopt(frame: u64) {
    if let Some(record) = record(frame) {
        record.references.store(1 << 30, Ordering::Relaxed);
    }
}

pub fn reference(frame: u64) {
    counted(frame).references.fetch_add(1, Ordering::Relaxed);
}

/// Drops a reference; the last one frees the frame.
pub fn unreference(frame: u64) {
    let before = counted(frame).references.fetch_sub(1, Ordering::AcqRel);
    assert!(before != 0, "frame {frame:#x} released once too often");
    if before == 1 {
        give(frame);
    }
}

pub fn references(frame: u64) -> u32 {
    counted(frame).references.load(Ordering::Acquire)
}

pub fn zero(frame: u64) {
    // SAFETY: the frame is the caller's, and direct-mapped.
    unsafe { ptr::write_bytes(direct(frame) as *mut u8, 0, PAGE_SIZE) };
}

pub fn copy(from: u64, to: u64) {
    // SAFETY: two frames the caller has references to, direct-mapped, distinct. `from` may be written
    // by applications meanwhile: a raw byte copy, no reference.
    unsafe { ptr::copy_nonoverlapping(direct(from) as *const u8, direct(to) as *mut u8, PAGE_SIZE) };
}

pub fn read(frame: u64, offset: usize, out: &mut [u8]) {
    assert!(offset + out.len() <= PAGE_SIZE, "read beyond a page");
    // SAFETY: within the frame, which is direct-mapped and referenced by the caller.
    unsafe { ptr::copy_nonoverlapping((direct(frame) as *const u8).add(offset), out.as_mut_ptr(), out.len()) };
}

pub fn write(frame: u64, offset: usize, data: &[u8]) {
    assert!(offset + data.len() <= PAGE_SIZE, "write beyond a page");
    // SAFETY: as in `read`.
    unsafe { ptr::copy_nonoverlapping(data.as_ptr(), (direct(frame) as *mut u8).add(offset), data.len()) };
}

/// (total, free) bytes.
pub fn totals() -> (u64, u64) {
    let free = BUDDY.lock().as_ref().map_or(0, Buddy::free_frames);
    (TOTAL.load(Ordering::Relaxed) as u64 * PAGE, free * PAGE)
}

/// Registers who gives clean cache pages back: called in task context without locks, with the number
/// of pages wanted; the result is how many came.
pub fn set_reclaimer(reclaimer: fn(usize) -> usize) {
    RECLAIMER.call_once(|| reclaimer);
}

/// Asks for memory back. True if it is worth trying again.
pub fn reclaim() -> bool {
    RECLAIMER.get().is_some_and(|reclaim| reclaim(RECLAIM_PAGES) > 0)
}
