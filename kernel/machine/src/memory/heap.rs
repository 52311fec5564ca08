#![allow(unsafe_code, reason = "the global allocator hands out raw memory")]
//! The kernel heap: size classes over frames, with a magazine of free objects per CPU and class.
//!
//! Small objects come from 4 KiB slabs; larger ones are runs of frames. A free object's first word
//! links it into its magazine or the class's depot, so the allocator needs no memory of its own.
//! Until the frame allocator stands, an arena in the image serves (`linked_list_allocator`).
//!
//! # Locking
//! A magazine is touched by its own CPU with interrupts off; a depot has a lock; the frame allocator
//! has its own. Objects may be freed on another CPU than the one that allocated them.
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    frames,
    paging::{self, PAGE},
};
use crate::cpu::{
    lock::{InterruptsOff, IrqSpin},
    percpu::{self, MAX_CPUS},
};

const CLASSES: [usize; 14] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];
/// Objects that move between a magazine and the depot at once.
const BATCH: u32 = 16;
const EARLY_BYTES: usize = 64 << 10;

#[derive(Clone, Copy)]
struct FreeList {
    head: *mut Free,
    count: u32,
}

struct Free {
    next: *mut Free,
}

impl FreeList {
    const EMPTY: Self = Self { head: ptr::null_mut(), count: 0 };

    /// SAFETY: `object` is free memory of at least 8 bytes, on no other list.
    unsafe fn push(&mut self, object: *mut Free) {
        // SAFETY: by the contract.
        unsafe { (*object).next = self.head };
        self.head = object;
        self.count += 1;
    }

    fn pop(&mut self) -> *mut Free {
        let object = self.head;
        if !object.is_null() {
            // SAFETY: objects on the list are free and were linked by `push`.
            self.head = unsafe { (*object).next };
            self.count -= 1;
        }
        object
    }
}

struct Magazines(UnsafeCell<[[FreeList; CLASSES.len()]; MAX_CPUS]>);
// SAFETY: each CPU touches its own row only, with interrupts off.
unsafe impl Sync for Magazines {}

struct Depot(IrqSpin<FreeList>);
// SAFETY: the list is reached under its lock only.
unsafe impl Sync for Depot {}
// SAFETY: as above; the raw pointers are owned by the list.
unsafe impl Send for FreeList {}

static MAGAZINES: Magazines = Magazines(UnsafeCell::new([[FreeList::EMPTY; CLASSES.len()]; MAX_CPUS]));
static DEPOTS: [Depot; CLASSES.len()] = [const { Depot(IrqSpin::new(FreeList::EMPTY)) }; CLASSES.len()];

static FRAMES_READY: AtomicBool = AtomicBool::new(false);
static EARLY: IrqSpin<linked_list_allocator::Heap> = IrqSpin::new(linked_list_allocator::Heap::empty());
static EARLY_MEMORY: EarlyMemory = EarlyMemory(UnsafeCell::new([0; EARLY_BYTES]));

#[repr(align(64))]
struct EarlyMemory(UnsafeCell<[u8; EARLY_BYTES]>);
// SAFETY: given to `EARLY` once, and reached through it only.
unsafe impl Sync for EarlyMemory {}

/// Opens the early arena. Once, before the first allocation.
pub fn init_early() {
    // SAFETY: the arena is static, unused otherwise, and this runs once.
    unsafe { EARLY.lock().init(EARLY_MEMORY.0.get().cast(), EARLY_BYTES) };
}

/// From now on memory comes from the frame allocator.
pub fn use_frames() {
    FRAMES_READY.store(true, Ordering::Release);
}

fn is_early(pointer: *mut u8) -> bool {
    let start = EARLY_MEMORY.0.get() as usize;
    (start..start + EARLY_BYTES).contains(&(pointer as usize))
}

/// Class index for a layout; None: whole frames.
#[inline]
fn class_of(layout: Layout) -> Option<usize> {
    let size = if layout.align() > 16 { layout.size().max(layout.align()).next_power_of_two() } else { layout.size() };
    match size {
        0..=64 => Some(size.saturating_sub(1) / 16),
        65..=2048 => CLASSES.iter().position(|&class| class >= size),
        _ => None,
    }
}

/// Buddy order of a large layout.
fn order_of(layout: Layout) -> u32 {
    layout.size().max(layout.align()).div_ceil(PAGE as usize).next_power_of_two().trailing_zeros()
}

/// Runs `with` on the calling CPU's magazine of `class`.
#[inline]
fn with_magazine<T>(class: usize, with: impl FnOnce(&mut FreeList) -> T) -> T {
    let _off = InterruptsOff::enter();
    let cpu = if percpu::ready() { percpu::this_cpu().index.get() as usize } else { 0 };
    // SAFETY: this CPU's row, and interrupts are off: no other reference exists.
    with(unsafe { &mut (*MAGAZINES.0.get())[cpu][class] })
}

/// Fills an empty magazine: from the depot, else by cutting up a new frame.
fn refill(class: usize, magazine: &mut FreeList) {
    let mut depot = DEPOTS[class].0.lock();
    while magazine.count < BATCH {
        let object = depot.pop();
        if object.is_null() {
            break;
        }
        // SAFETY: the object just left the depot.
        unsafe { magazine.push(object) };
    }
    drop(depot);
    if magazine.count > 0 {
        return;
    }
    let Ok(frame) = frames::take(false) else { return };
    let size = CLASSES[class];
    let start = paging::direct(frame) as *mut u8;
    for at in (0..PAGE as usize / size).rev() {
        // SAFETY: disjoint objects within the frame, which is ours and direct-mapped.
        unsafe { magazine.push(start.add(at * size).cast()) };
    }
}

fn drain(class: usize, magazine: &mut FreeList) {
    let mut depot = DEPOTS[class].0.lock();
    for _ in 0..BATCH {
        let object = magazine.pop();
        // SAFETY: the object just left the magazine, which holds more than BATCH.
        unsafe { depot.push(object) };
    }
}

/// The kernel's global allocator.
pub struct KernelHeap;

// SAFETY: objects are disjoint, at least as large and aligned as the layout asks (classes of powers
// of two are aligned to themselves within a frame), and belong to nobody else until freed.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !FRAMES_READY.load(Ordering::Acquire) {
            return EARLY.lock().allocate_first_fit(layout).map_or(ptr::null_mut(), |p| p.as_ptr());
        }
        let Some(class) = class_of(layout) else {
            return frames::take_run(order_of(layout))
                .map_or(ptr::null_mut(), |frame| paging::direct(frame) as *mut u8);
        };
        with_magazine(class, |magazine| {
            if magazine.count == 0 {
                refill(class, magazine);
            }
            magazine.pop().cast()
        })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if is_early(pointer) {
            if let Some(pointer) = ptr::NonNull::new(pointer) {
                // SAFETY: the caller gives back what `alloc` gave out with this layout.
                unsafe { EARLY.lock().deallocate(pointer, layout) };
            }
            return;
        }
        let Some(class) = class_of(layout) else {
            frames::give_run(paging::physical_of(pointer as u64), order_of(layout));
            return;
        };
        with_magazine(class, |magazine| {
            // SAFETY: the object is the caller's to free, and at least 16 bytes.
            unsafe { magazine.push(pointer.cast()) };
            if magazine.count > 2 * BATCH {
                drain(class, magazine);
            }
        });
    }
}
