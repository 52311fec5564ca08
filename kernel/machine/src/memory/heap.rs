#![allow(unsafe_code, reason = "the global allocator hands out raw memory")]
//! The kernel heap: size classes over frames, with a magazine of free objects per CPU and class.
//!
//! Small objects come from 4 KiB slabs ([`super::slab`]); larger ones are runs of frames. A magazine is
//! a list through its objects. It takes objects from the class's depot and gives them back to it by the
//! batch; a slab of which nothing is in use any more goes back to the frame allocator.
//! Until that stands, an arena in the image serves, in pieces of the same sizes.
//!
//! # Locking
//! A magazine is touched by its own CPU only. The kernel is not preemptible, so what can come between
//! is an interrupt handler, which ends before its CPU goes on here: a flag per CPU, set while magazines
//! are in use, sends the handler to the depot. So neither half of a pair touches the interrupt flag.
//! A depot has a lock (interrupts off); the frame allocator's may be taken under it. Objects may be
//! freed on another CPU than the one that allocated them.
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence},
};

use super::{
    frames,
    paging::{self, PAGE},
    slab::{Free, GRAIN, Slabs},
};
use crate::cpu::{
    lock::IrqSpin,
    percpu::{self, MAX_CPUS, this_cpu},
};

const CLASSES: [usize; 14] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];
const LARGEST: usize = 2048;
const EARLY_BYTES: usize = 64 << 10;

/// Class of a size, by grains, rounded up.
static CLASS_OF: [u8; LARGEST / GRAIN + 1] = {
    let mut table = [0; LARGEST / GRAIN + 1];
    let (mut grains, mut class) = (0, 0);
    while grains < table.len() {
        if grains * GRAIN > CLASSES[class] {
            class += 1;
        }
        table[grains] = class as u8;
        grains += 1;
    }
    table
};

/// Objects that move between a magazine and the depot at once: few of the large ones.
const fn batch(class: usize) -> u32 {
    match CLASSES[class] {
        0..=128 => 16,
        129..=512 => 8,
        _ => 4,
    }
}

struct Magazine {
    head: *mut Free,
    /// Objects that it has room for.
    room: u32,
}

/// The magazines of one CPU, in its [`percpu::PerCpu`].
pub struct Magazines {
    /// They are in use, or there are no frames yet.
    busy: AtomicBool,
    /// All of them are to go to the depots.
    unwanted: AtomicBool,
    each: UnsafeCell<[Magazine; CLASSES.len()]>,
}

impl Default for Magazines {
    fn default() -> Self {
        Self::new()
    }
}

impl Magazines {
    pub const fn new() -> Self {
        let mut each = [const { Magazine { head: ptr::null_mut(), room: 0 } }; CLASSES.len()];
        let mut class = 0;
        while class < CLASSES.len() {
            each[class].room = 2 * batch(class);
            class += 1;
        }
        Self { busy: AtomicBool::new(true), unwanted: AtomicBool::new(false), each: UnsafeCell::new(each) }
    }

    /// For the CPU whose data this has become.
    pub fn open(&self) {
        if FRAMES_READY.load(Ordering::Acquire) {
            self.busy.store(false, Ordering::Relaxed);
        }
    }

    /// Runs `with` on the calling CPU's magazine of `class`. None: the CPU is in here already, below an
    /// interrupt. `with` allocates nothing.
    #[inline(always)]
    fn with<T>(&self, class: usize, with: impl FnOnce(&mut Magazine) -> T) -> Option<T> {
        // An interrupt between the look and the store has come to its end before the store.
        if self.busy.load(Ordering::Relaxed) {
            return None;
        }
        self.busy.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: this CPU's own, by the flag for one caller at a time; `with` does not come back here.
        let result = with(unsafe { &mut (*self.each.get())[class] });
        compiler_fence(Ordering::SeqCst);
        self.busy.store(false, Ordering::Relaxed);
        Some(result)
    }
}

impl Magazine {
    #[inline(always)]
    fn pop(&mut self) -> *mut Free {
        let object = self.head;
        if !object.is_null() {
            // SAFETY: objects of a magazine are free and were linked by `push`.
            self.head = unsafe { (*object).next };
            self.room += 1;
        }
        object
    }

    /// False: there is no room.
    ///
    /// # Safety
    /// `object` is free memory of this magazine's class, on no other list.
    #[inline(always)]
    unsafe fn push(&mut self, object: *mut Free) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        // SAFETY: by the contract; every class has room for a link.
        unsafe { (*object).next = self.head };
        self.head = object;
        true
    }
}

struct Depot {
    slabs: Slabs,
    /// Pieces of the early arena.
    early: *mut Free,
}

// SAFETY: the raw pointers are owned by the list, which is reached under the depot's lock only.
unsafe impl Send for Depot {}

static DEPOTS: [IrqSpin<Depot>; CLASSES.len()] = {
    let mut depots =
        [const { IrqSpin::new(Depot { slabs: Slabs::new(GRAIN), early: ptr::null_mut() }) }; CLASSES.len()];
    let mut class = 0;
    while class < CLASSES.len() {
        depots[class] = IrqSpin::new(Depot { slabs: Slabs::new(CLASSES[class]), early: ptr::null_mut() });
        class += 1;
    }
    depots
};

static FRAMES_READY: AtomicBool = AtomicBool::new(false);

#[repr(align(4096))]
struct EarlyMemory(UnsafeCell<[u8; EARLY_BYTES]>);
// SAFETY: handed out piece by piece, each to one owner.
unsafe impl Sync for EarlyMemory {}

static EARLY_MEMORY: EarlyMemory = EarlyMemory(UnsafeCell::new([0; EARLY_BYTES]));
static EARLY_USED: AtomicUsize = AtomicUsize::new(0);

/// From now on memory comes from the frame allocator.
pub fn use_frames() {
    FRAMES_READY.store(true, Ordering::Release);
    this_cpu().heap.open();
}

/// Gives what the magazines hold back to the depots, and so empty slabs to the frame allocator: at once
/// what the calling CPU has, later what the others have. The result is how many frames came back.
pub fn shrink() -> usize {
    for cpu in (0..MAX_CPUS).filter_map(percpu::cpu) {
        cpu.heap.unwanted.store(true, Ordering::Relaxed);
    }
    empty_if_unwanted()
}

/// Does what [`shrink`] asks for: from time to time on each CPU, in task context.
pub fn empty_if_unwanted() -> usize {
    let own = &this_cpu().heap;
    if !own.unwanted.load(Ordering::Relaxed) {
        return 0;
    }
    own.unwanted.store(false, Ordering::Relaxed);
    (0..CLASSES.len()).filter_map(|class| own.with(class, |magazine| drain(class, magazine, u32::MAX))).sum()
}

/// The class of a layout as most are: one look at a table.
#[inline(always)]
fn common_class(layout: Layout) -> Option<usize> {
    let usual = layout.align() <= GRAIN && layout.size() <= LARGEST;
    usual.then(|| usize::from(CLASS_OF[layout.size().div_ceil(GRAIN)]))
}

/// Class of any layout. None: whole frames. Classes of powers of two are aligned to themselves.
fn class_of(layout: Layout) -> Option<usize> {
    if layout.align() <= GRAIN {
        return common_class(layout);
    }
    let size = layout.size().max(layout.align()).checked_next_power_of_two()?;
    (size <= LARGEST).then(|| usize::from(CLASS_OF[size.div_ceil(GRAIN)]))
}

/// Buddy order of a large layout.
fn order_of(layout: Layout) -> u32 {
    layout.size().max(layout.align()).div_ceil(PAGE as usize).next_power_of_two().trailing_zeros()
}

impl Depot {
    fn take(&mut self) -> *mut Free {
        let object = self.early;
        if object.is_null() {
            return self.slabs.take();
        }
        // SAFETY: pieces on the list are free and were linked by `give`.
        self.early = unsafe { (*object).next };
        object
    }

    /// Takes an object back; the result is how many frames went to the frame allocator.
    ///
    /// # Safety
    /// `object` is free memory of this depot's class, on no other list.
    unsafe fn give(&mut self, object: *mut Free) -> usize {
        if is_early(object.cast()) {
            // SAFETY: by the contract.
            unsafe { (*object).next = self.early };
            self.early = object;
            return 0;
        }
        // SAFETY: by the contract; everything that is not early comes from slabs.
        let empty = unsafe { self.slabs.give(object) };
        empty.map(frames::give_slab).is_some().into()
    }
}

/// Puts up to a batch of objects into an empty magazine: from the depot, else from a new slab.
fn refill(class: usize, magazine: &mut Magazine) {
    let mut depot = DEPOTS[class].lock();
    for moved in 0..batch(class) {
        let mut object = depot.take();
        if object.is_null() && moved == 0 {
            drop(depot);
            let Ok(frame) = frames::take(false) else { return };
            depot = DEPOTS[class].lock();
            depot.slabs.add(frame);
            object = depot.take();
        }
        // SAFETY: the object just left the depot.
        if object.is_null() || !unsafe { magazine.push(object) } {
            return;
        }
    }
}

/// Moves up to `count` objects to the depot; the result is how many frames became free.
fn drain(class: usize, magazine: &mut Magazine, count: u32) -> usize {
    let mut depot = DEPOTS[class].lock();
    let objects = core::iter::from_fn(|| Some(magazine.pop()).filter(|object| !object.is_null()));
    // SAFETY: each object just left the magazine.
    objects.take(count as usize).map(|object| unsafe { depot.give(object) }).sum()
}

#[cold]
fn allocate_slowly(layout: Layout) -> *mut u8 {
    if !FRAMES_READY.load(Ordering::Acquire) {
        return allocate_early(layout);
    }
    let Some(class) = class_of(layout) else {
        return frames::take_run(order_of(layout)).map_or(ptr::null_mut(), |frame| paging::direct(frame) as *mut u8);
    };
    empty_if_unwanted();
    let filled = this_cpu().heap.with(class, |magazine| {
        if magazine.head.is_null() {
            refill(class, magazine);
        }
        magazine.pop()
    });
    filled.unwrap_or_else(|| below_interrupt(class)).cast()
}

/// The CPU is in its magazines already.
fn below_interrupt(class: usize) -> *mut Free {
    let object = DEPOTS[class].lock().take();
    if !object.is_null() {
        return object;
    }
    let Ok(frame) = frames::take(false) else { return ptr::null_mut() };
    let mut depot = DEPOTS[class].lock();
    depot.slabs.add(frame);
    depot.take()
}

/// # Safety
/// As [`GlobalAlloc::dealloc`].
#[cold]
unsafe fn free_slowly(pointer: *mut u8, layout: Layout) {
    let Some(class) = class_of(layout) else {
        // Early memory of that size stays lost.
        if !is_early(pointer) {
            frames::give_run(paging::physical_of(pointer as u64), order_of(layout));
        }
        return;
    };
    empty_if_unwanted();
    let object = pointer.cast();
    let pushed = this_cpu().heap.with(class, |magazine| {
        if magazine.room == 0 {
            drain(class, magazine, batch(class));
        }
        // SAFETY: the caller's object, of this class.
        unsafe { magazine.push(object) }
    });
    if pushed.is_none() {
        // SAFETY: as above.
        unsafe { DEPOTS[class].lock().give(object) };
    }
}

fn is_early(pointer: *mut u8) -> bool {
    let start = EARLY_MEMORY.0.get() as usize;
    (start..start + EARLY_BYTES).contains(&(pointer as usize))
}

/// A piece of the early arena, as large and as aligned as its class, so that it may join the others
/// later. One CPU runs.
fn allocate_early(layout: Layout) -> *mut u8 {
    let class = class_of(layout);
    if let Some(class) = class {
        let object = DEPOTS[class].lock().take();
        if !object.is_null() {
            return object.cast();
        }
    }
    let (size, align) = match class {
        Some(class) => (CLASSES[class], 1 << CLASSES[class].trailing_zeros()),
        None => (layout.size(), layout.align()),
    };
    let start = EARLY_USED.load(Ordering::Relaxed).next_multiple_of(align);
    match start.checked_add(size) {
        Some(end) if end <= EARLY_BYTES && align <= PAGE as usize => {
            EARLY_USED.store(end, Ordering::Relaxed);
            // SAFETY: within the arena.
            unsafe { EARLY_MEMORY.0.get().cast::<u8>().add(start) }
        }
        _ => ptr::null_mut(),
    }
}

/// The kernel's global allocator. Not before the CPU's data is installed.
pub struct KernelHeap;

// SAFETY: objects are disjoint, at least as large and aligned as the layout asks (classes of powers
// of two are aligned to themselves within a frame), and belong to nobody else until freed.
unsafe impl GlobalAlloc for KernelHeap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(class) = common_class(layout)
            && let Some(object) = this_cpu().heap.with(class, Magazine::pop)
            && !object.is_null()
        {
            return object.cast();
        }
        allocate_slowly(layout)
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let pushed = common_class(layout).and_then(|class| {
            // SAFETY: the caller's object, of this class: `alloc` found the same.
            this_cpu().heap.with(class, |magazine| unsafe { magazine.push(pointer.cast()) })
        });
        if pushed != Some(true) {
            // SAFETY: by the contract.
            unsafe { free_slowly(pointer, layout) };
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size does not overflow with this alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let fits = match (class_of(layout), class_of(new_layout)) {
            (Some(old), Some(new)) => old == new,
            (None, None) => order_of(layout) == order_of(new_layout) && !is_early(pointer),
            _ => false,
        };
        if fits {
            return pointer;
        }
        // SAFETY: fresh memory of the new size; the old is given back once copied.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                ptr::copy_nonoverlapping(pointer, new, layout.size().min(new_size));
                self.dealloc(pointer, layout);
            }
            new
        }
    }
}
