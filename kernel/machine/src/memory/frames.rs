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
    arch::asm,
    cell::UnsafeCell,
    ops::Range,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use logic::buddy::{Buddy, FrameLink};
use rt::page::{OutOfFrames, PAGE_SIZE};

use super::{
    early,
    paging::{PAGE, direct},
    zeroed,
};
use crate::cpu::{
    apic,
    lock::{InterruptsOff, IrqSpin},
    percpu::{self, MAX_CPUS},
};
pub use zeroed::{release as release_zeroed, zero_ahead};

const CACHE: usize = 64;
const CACHE_REFILL: usize = 32;
/// Bounds of the kernel's reserve: a 64th of memory in between. In frames.
const LEAST_RESERVE: u64 = 256;
const MOST_RESERVE: u64 = 4096;

/// References of a frame that is not the allocator's.
const ADOPTED: u32 = 1 << 30;

/// What the kernel keeps of each frame in use.
struct FrameRecord {
    references: AtomicU32,
}

struct Cache {
    frames: [u64; CACHE],
    count: usize,
}

impl Cache {
    fn pop(&mut self) -> Option<u64> {
        self.count = self.count.checked_sub(1)?;
        Some(self.frames[self.count])
    }

    /// Gives all but the first `keep` back.
    fn shrink(&mut self, keep: usize) {
        if let Some(buddy) = BUDDY.lock().as_mut() {
            self.frames[keep..self.count].iter().for_each(|frame| buddy.free(frame / PAGE, 0));
            self.count = keep;
        }
    }
}

/// What a frame is for. Frames of the kernel and of files live long and come one by one between those of
/// applications; taken from among them, each would keep 2 MiB from coming together again. So they come
/// from blocks of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Application,
    Kernel,
    File,
}
const KINDS: usize = 3;
/// Of such a block: [`CACHE_REFILL`] frames.
const BLOCK_ORDER: usize = 5;
const _: () = assert!(1 << BLOCK_ORDER == CACHE_REFILL && CACHE >= 2 * CACHE_REFILL);

struct Caches(UnsafeCell<[[Cache; KINDS]; MAX_CPUS]>);
// SAFETY: each CPU touches its own entry only, with interrupts off.
unsafe impl Sync for Caches {}

static CACHES: Caches =
    Caches(UnsafeCell::new([const { [const { Cache { frames: [0; CACHE], count: 0 } }; KINDS] }; MAX_CPUS]));
static BUDDY: IrqSpin<Option<Buddy<'static>>> = IrqSpin::new(None);
static RECORDS: AtomicPtr<FrameRecord> = AtomicPtr::new(ptr::null_mut());
static FIRST_FRAME: AtomicU64 = AtomicU64::new(0);
static FRAME_COUNT: AtomicU64 = AtomicU64::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);
/// Frames that only the kernel itself may take.
static RESERVE: AtomicU64 = AtomicU64::new(0);

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

/// Runs `with` on this CPU's cache for `kind`.
fn with_cache<T>(kind: Kind, with: impl FnOnce(&mut Cache) -> T) -> T {
    let _off = InterruptsOff::enter();
    let cpu = if percpu::ready() { percpu::this_cpu().index.get() as usize } else { 0 };
    // SAFETY: this CPU's entry, and interrupts are off.
    with(unsafe { &mut (*CACHES.0.get())[cpu][kind as usize] })
}

/// A frame with reference count 1, for the kernel itself: it may come from the reserve. Its physical
/// address is the result.
pub fn take(zeroed: bool) -> Result<u64, OutOfFrames> {
    take_above(0, Kind::Kernel, zeroed)
}

/// A frame for an application's page or a file's: never from the reserve, so that the kernel can still
/// make the page tables and objects that reclaim and the end of a program need.
pub fn take_page(zeroed: bool) -> Result<u64, OutOfFrames> {
    take_above(RESERVE.load(Ordering::Relaxed), Kind::Application, zeroed)
}

/// As [`take_page`], for a page that a cache or a file keeps.
pub fn take_file_page(zeroed: bool) -> Result<u64, OutOfFrames> {
    take_above(RESERVE.load(Ordering::Relaxed), Kind::File, zeroed)
}

/// Takes a frame, if the buddy allocator keeps at least `reserve` of them.
fn take_above(reserve: u64, kind: Kind, zeroed: bool) -> Result<u64, OutOfFrames> {
    if zeroed
        && kind == Kind::Application
        && let Some(frame) = zeroed::take()
    {
        return Ok(frame);
    }
    // The last frames of all are those of the zeroed pool.
    let Ok(frame) = take_any(reserve, kind) else { return zeroed::take().ok_or(OutOfFrames) };
    counted(frame).references.store(1, Ordering::Relaxed);
    if zeroed {
        zero(frame);
    }
    Ok(frame)
}

fn take_any(reserve: u64, kind: Kind) -> Result<u64, OutOfFrames> {
    take_of(reserve, kind).or_else(|out| take_of_other_kinds(kind).ok_or(out))
}

/// Better than none: what this CPU keeps for something else. The kernel's own may come from its reserve.
#[cold]
fn take_of_other_kinds(kind: Kind) -> Option<u64> {
    let others = [Kind::Application, Kind::File].into_iter().filter(|&other| other != kind);
    others.filter_map(|other| with_cache(other, Cache::pop)).next()
}

fn take_of(reserve: u64, kind: Kind) -> Result<u64, OutOfFrames> {
    with_cache(kind, |cache| {
        if cache.count == 0 {
            let mut buddy = BUDDY.lock();
            let buddy = buddy.as_mut().ok_or(OutOfFrames)?;
            if buddy.free_frames() <= reserve {
                return Err(OutOfFrames);
            }
            while cache.count < CACHE_REFILL {
                let block = match kind {
                    Kind::Application => buddy.alloc_for_pieces(BLOCK_ORDER),
                    Kind::Kernel | Kind::File => buddy.alloc(BLOCK_ORDER).map(|first| (first, BLOCK_ORDER)),
                };
                let Some((first, order)) = block.or_else(|| buddy.alloc_for_pieces(BLOCK_ORDER)) else { break };
                // The lowest is given out first.
                let numbers = (first..first + (1 << order)).rev();
                cache.frames[cache.count..].iter_mut().zip(numbers).for_each(|(place, number)| *place = number * PAGE);
                cache.count += 1 << order;
            }
        }
        cache.pop().ok_or(OutOfFrames)
    })
}

/// CPUs that have been asked for what is in their caches, and have not given it back: bit i for CPU i.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// Has every CPU give back what is in its caches: on many CPUs that is more than a small machine can leave
/// unused. True: there are frames for everybody now. In task context, without locks; one at a time.
pub fn collect() -> bool {
    shrink_own();
    let me = percpu::this_cpu().index.get() as usize;
    for index in (0..percpu::online_count()).filter(|&index| index != me) {
        if let Some(other) = percpu::cpu(index) {
            ASKED.fetch_or(1 << index, Ordering::SeqCst);
            let _off = InterruptsOff::enter();
            apic::send_ipi(other.apic_id.get(), apic::VECTOR_FRAMES);
        }
    }
    while ASKED.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
    BUDDY.lock().as_ref().is_some_and(|buddy| buddy.free_frames() > RESERVE.load(Ordering::Relaxed))
}

/// The calling CPU's answer to [`collect`], from its interrupt.
pub fn answer() {
    shrink_own();
    ASKED.fetch_and(!(1 << percpu::this_cpu().index.get()), Ordering::Release);
}

fn shrink_own() {
    [Kind::Application, Kind::File, Kind::Kernel]
        .into_iter()
        .for_each(|kind| with_cache(kind, |cache| cache.shrink(0)));
}

/// Bytes that only the kernel itself may take.
pub fn reserve_bytes() -> u64 {
    RESERVE.load(Ordering::Relaxed) * PAGE
}

/// True if there is no frame to spare for preparations.
pub fn is_short() -> bool {
    let least = 2 * RESERVE.load(Ordering::Relaxed);
    BUDDY.lock().as_ref().is_none_or(|buddy| buddy.free_frames() < least)
}

/// A zeroed frame for a page table.
pub fn take_table() -> Option<u64> {
    take(true).ok()
}

/// Gives a frame back that [`take`] gave out, whatever its count says.
fn give(frame: u64) {
    with_cache(Kind::Application, |cache| {
        if cache.count == CACHE {
            cache.shrink(CACHE_REFILL);
        }
        cache.frames[cache.count] = frame;
        cache.count += 1;
    });
}

/// The record's word of a frame that a slab has: the slab's own.
pub fn slab_word(frame: u64) -> &'static AtomicU32 {
    &counted(frame).references
}

/// Takes a slab's frame back.
pub fn give_slab(frame: u64) {
    give(frame);
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

/// A free block of at least this order that the host may still have memory for, taken to be reported:
/// (address, order).
pub fn take_unreported(least_order: u32) -> Option<(u64, u32)> {
    let (number, order) = BUDDY.lock().as_mut()?.take_unreported(least_order as usize)?;
    Some((number * PAGE, order as u32))
}

/// True if [`take_unreported`] would find one.
pub fn has_unreported(least_order: u32) -> bool {
    BUDDY.lock().as_ref().is_some_and(|buddy| buddy.has_unreported(least_order as usize))
}

/// Gives a block of [`take_unreported`] back; `reported`: the host has let go of it.
pub fn give_after_report(frame: u64, order: u32, reported: bool) {
    if let Some(buddy) = BUDDY.lock().as_mut() {
        let give = if reported { Buddy::free_reported } else { Buddy::free };
        give(buddy, frame / PAGE, order as usize);
    }
}

/// Order of a huge page's run.
const HUGE_ORDER: u32 = 9;
/// Memory stays this part free (a sixteenth) when huge pages are taken.
const HUGE_WATERMARK: u64 = 16;

/// 2 MiB of zeroed memory for one mapping, with the page table that a split needs. While it is whole,
/// the record of its second frame holds the table's frame number.
pub struct HugePage(u64);

/// A huge page, if memory is not short of one. Takes as long as zeroing it: not under the space's lock.
pub fn take_huge() -> Option<HugePage> {
    let total = TOTAL.load(Ordering::Relaxed) as u64;
    let least = RESERVE.load(Ordering::Relaxed) + total / HUGE_WATERMARK + (1 << HUGE_ORDER);
    if BUDDY.lock().as_ref()?.free_frames() < least {
        return None;
    }
    let table = take_table()?;
    let Some(frame) = take_run(HUGE_ORDER) else {
        give(table);
        return None;
    };
    (0..1 << HUGE_ORDER).for_each(|at| zero(frame + at * PAGE));
    counted(frame).references.store(1, Ordering::Relaxed);
    Some(HugePage(frame).linked(table))
}

impl HugePage {
    /// The page whose entry holds `frame`: the inverse of [`HugePage::into_frame`].
    pub fn from_frame(frame: u64) -> Self {
        Self(frame)
    }

    pub fn into_frame(self) -> u64 {
        let frame = self.0;
        core::mem::forget(self);
        frame
    }

    fn linked(self, table: u64) -> Self {
        counted(self.0 + PAGE).references.store((table / PAGE) as u32, Ordering::Relaxed);
        self
    }

    /// Physical address of its table.
    pub fn table(&self) -> u64 {
        u64::from(counted(self.0 + PAGE).references.load(Ordering::Relaxed)) * PAGE
    }

    /// The same with the table that is at its place already.
    pub fn with_table(self, table: u64) -> Self {
        give(self.table());
        self.linked(table)
    }

    /// Gives the memory back; the table is the caller's.
    pub fn free(self) {
        give_run(self.into_frame(), HUGE_ORDER);
    }

    /// Its frames, one reference each; the table is the caller's.
    pub fn into_small(self) -> impl Iterator<Item = u64> {
        let first = self.into_frame();
        (0..1u64 << HUGE_ORDER).map(move |at| first + at * PAGE).inspect(|&frame| {
            counted(frame).references.store(1, Ordering::Relaxed);
        })
    }
}

impl Drop for HugePage {
    fn drop(&mut self) {
        give(self.table());
        give_run(self.0, HUGE_ORDER);
    }
}

/// Frames that are not the allocator's, a boot module's: each gets a count of its own that never reaches 0.
pub fn adopt(frames: Range<u64>) {
    let first = FIRST_FRAME.load(Ordering::Relaxed);
    let end = first + FRAME_COUNT.load(Ordering::Relaxed);
    let numbers = (frames.start / PAGE).max(first)..frames.end.div_ceil(PAGE).min(end);
    if numbers.is_empty() {
        return;
    }
    // SAFETY: the array has a record for each frame in this range, and lives for ever.
    let records = unsafe {
        let start = RECORDS.load(Ordering::Acquire).add((numbers.start - first) as usize);
        core::slice::from_raw_parts(start, (numbers.end - numbers.start) as usize)
    };
    for record in records {
        record.references.store(ADOPTED, Ordering::Relaxed);
    }
}

/// True for a frame that no reclaim brings back.
pub fn is_adopted(frame: u64) -> bool {
    references(frame) >= ADOPTED / 2
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

/// Bytes per round of the two loops below, which spend one instruction or two on 16 bytes; memset and
/// memcpy, made for any length, need half as many again.
const ROUND: usize = 512;

#[inline(never)]
pub fn zero(frame: u64) {
    // SAFETY: the frame is the caller's, direct-mapped, and a whole number of rounds.
    unsafe {
        asm!(
            "xorps {zero}, {zero}",
            "2:",
            ".set step, 0",
            ".rept {stores}",
            "movaps [{at} + step], {zero}",
            ".set step, step + 16",
            ".endr",
            "add {at}, {round}",
            "cmp {at}, {end}",
            "jne 2b",
            at = inout(reg) direct(frame) => _,
            end = in(reg) direct(frame) + PAGE,
            zero = out(xmm_reg) _,
            round = const ROUND,
            stores = const ROUND / 16,
            options(nostack),
        );
    }
}

/// True if the frame holds zeros only. An application may be writing it: then the answer is a guess.
pub fn is_zero(frame: u64) -> bool {
    let words = direct(frame) as *const u64;
    // SAFETY: within the frame, which is direct-mapped and the caller's or kept by the space's lock; volatile,
    // since an application may write it meanwhile.
    (0..PAGE_SIZE / 8).all(|at| unsafe { words.add(at).read_volatile() } == 0)
}

#[inline(never)]
pub fn copy(from: u64, to: u64) {
    // SAFETY: two frames the caller has references to, direct-mapped, distinct. `from` may be written
    // by applications meanwhile: a raw byte copy, no reference.
    unsafe {
        asm!(
            "2:",
            ".set step, 0",
            ".rept {moves}",
            "movaps {bytes}, [{from} + step]",
            "movaps [{to} + step], {bytes}",
            ".set step, step + 16",
            ".endr",
            "add {from}, {round}",
            "add {to}, {round}",
            "cmp {to}, {end}",
            "jne 2b",
            from = inout(reg) direct(from) => _,
            to = inout(reg) direct(to) => _,
            end = in(reg) direct(to) + PAGE,
            bytes = out(xmm_reg) _,
            round = const ROUND,
            moves = const ROUND / 16,
            options(nostack),
        );
    }
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

/// True while less than half of the kernel's reserve is left: time to refuse calls that would need more.
pub fn reserve_is_low() -> bool {
    BUDDY.lock().as_ref().is_none_or(|buddy| buddy.free_frames() < RESERVE.load(Ordering::Relaxed) / 2)
}

/// (total, free) bytes.
pub fn totals() -> (u64, u64) {
    let free = BUDDY.lock().as_ref().map_or(0, Buddy::free_frames) + zeroed::count() as u64;
    (TOTAL.load(Ordering::Relaxed) as u64 * PAGE, free * PAGE)
}
