#![allow(unsafe_code, reason = "per-CPU data is reached through the GS base")]
//! Per-CPU data, reached through the GS base, which belongs to the kernel.
//!
//! # Invariants
//! The first fields are read and written by `trap/entry.S`; their offsets are asserted below. A
//! field is written only by its own CPU unless it is atomic.
use core::{
    arch::asm,
    cell::Cell,
    mem::offset_of,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use x86_64::{
    VirtAddr,
    registers::model_specific::{GsBase, KernelGsBase},
};

use crate::{
    memory::heap::Magazines,
    tasks::{self, Task},
};

pub const MAX_CPUS: usize = 64;

#[repr(C, align(64))]
pub struct PerCpu {
    this: Cell<*const PerCpu>,
    /// The application's rsp between `syscall` and the frame's completion.
    user_rsp: Cell<u64>,
    /// Bounds of the running task's kernel stack.
    pub stack_top: Cell<u64>,
    pub stack_low: Cell<u64>,
    /// Odd while application code runs; counts crossings.
    pub mode: AtomicU64,
    pub current: Cell<*const Task>,
    /// Not 0 while a trap frame is still on an IST stack.
    unmoved: AtomicU64,
    panic_stack: Cell<u64>,
    /// Reschedule before the next return to application code.
    pub reschedule: AtomicBool,
    /// Spin locks held.
    pub lock_depth: Cell<i32>,
    // --- below here the assembly does not look ---
    pub index: Cell<u32>,
    pub apic_id: Cell<u32>,
    /// This CPU halts or is about to; a wake-up must send an interrupt.
    pub idle: AtomicBool,
    pub idle_task: Cell<*const Task>,
    /// The task this CPU has just left, until the next one has let go of it.
    pub previous: Cell<*const Task>,
    /// TSC when the running task got the CPU.
    pub running_since: AtomicU64,
    /// Interrupts taken, for statistics.
    pub interrupts: AtomicU64,
    pub exits: super::exits::Counters,
    pub heap: Magazines,
    pub scheduler: tasks::Local,
}

const _: () = {
    assert!(offset_of!(PerCpu, this) == 0);
    assert!(offset_of!(PerCpu, user_rsp) == 8);
    assert!(offset_of!(PerCpu, stack_top) == 16);
    assert!(offset_of!(PerCpu, stack_low) == 24);
    assert!(offset_of!(PerCpu, mode) == 32);
    assert!(offset_of!(PerCpu, current) == 40);
    assert!(offset_of!(PerCpu, unmoved) == 48);
    assert!(offset_of!(PerCpu, panic_stack) == 56);
    assert!(offset_of!(PerCpu, reschedule) == 64);
    assert!(offset_of!(PerCpu, lock_depth) == 68);
};

static CPUS: [AtomicPtr<PerCpu>; MAX_CPUS] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CPUS];
static ONLINE: AtomicUsize = AtomicUsize::new(0);
static READY: AtomicU32 = AtomicU32::new(0);

impl Default for PerCpu {
    fn default() -> Self {
        Self::new()
    }
}

impl PerCpu {
    pub const fn new() -> Self {
        Self {
            this: Cell::new(ptr::null()),
            user_rsp: Cell::new(0),
            stack_top: Cell::new(0),
            stack_low: Cell::new(0),
            mode: AtomicU64::new(0),
            current: Cell::new(ptr::null()),
            unmoved: AtomicU64::new(0),
            panic_stack: Cell::new(0),
            reschedule: AtomicBool::new(false),
            lock_depth: Cell::new(0),
            index: Cell::new(0),
            apic_id: Cell::new(0),
            idle: AtomicBool::new(false),
            idle_task: Cell::new(ptr::null()),
            previous: Cell::new(ptr::null()),
            running_since: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            exits: [const { AtomicU64::new(0) }; 6],
            heap: Magazines::new(),
            scheduler: tasks::Local::new(),
        }
    }

    /// Makes `this` the calling CPU's data.
    pub fn install(this: &'static PerCpu, index: u32, apic_id: u32, panic_stack: u64) {
        this.this.set(this);
        this.index.set(index);
        this.apic_id.set(apic_id);
        this.panic_stack.set(panic_stack);
        GsBase::write(VirtAddr::from_ptr(this));
        // What a program's `swapgs` would put there.
        KernelGsBase::write(VirtAddr::from_ptr(this));
        this.heap.open();
        CPUS[index as usize].store(ptr::from_ref(this).cast_mut(), Ordering::Release);
        READY.store(1, Ordering::Release);
    }
}

/// The calling CPU's data. The kernel is not preemptible, so the reference stays right until the
/// caller sleeps.
#[inline]
pub fn this_cpu() -> &'static PerCpu {
    let this: *const PerCpu;
    // SAFETY: `install` stored the CPU's own address at offset 0 of its GS area before any code
    // that calls this runs on it.
    unsafe {
        asm!("mov {}, gs:0", out(reg) this, options(nostack, preserves_flags, readonly));
        &*this
    }
}

/// The task that the calling CPU runs: the caller's own, so it stays right whatever happens meanwhile.
#[inline]
pub fn current_task() -> *const Task {
    let task: *const Task;
    // SAFETY: as in `this_cpu`; the offset is asserted above.
    unsafe { asm!("mov {}, gs:40", out(reg) task, options(nostack, preserves_flags, readonly)) };
    task
}

/// Counts the spin locks that the calling CPU holds.
#[inline]
pub fn add_lock_depth(by: i32) {
    // SAFETY: as in `current_task`: the CPU's own counter, whose offset is asserted above.
    unsafe { asm!("add dword ptr gs:[68], {:e}", in(reg) by, options(nostack)) };
}

/// Whether [`this_cpu`] may be used already (early console output asks).
pub fn ready() -> bool {
    READY.load(Ordering::Acquire) != 0
}

/// Counts the calling CPU among the online ones: it takes interrupts and runs tasks from now on.
pub fn set_online() {
    ONLINE.fetch_add(1, Ordering::AcqRel);
}

pub fn online_count() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// The data of CPU `index`, if that CPU exists.
pub fn cpu(index: usize) -> Option<&'static PerCpu> {
    // SAFETY: only `install` stores here, and only 'static references.
    unsafe { CPUS.get(index)?.load(Ordering::Acquire).as_ref() }
}

/// The calling CPU, found without trust in the GS base: by the APIC id that CPUID gives, which needs no
/// memory.
pub fn index_by_cpuid() -> Option<usize> {
    let apic_id = core::arch::x86_64::__cpuid(1).ebx >> 24;
    (0..MAX_CPUS).find(|&index| cpu(index).is_some_and(|cpu| cpu.apic_id.get() == apic_id))
}

/// Makes the GS base the calling CPU's data again, which `own` is. True: it was not.
pub fn correct_gs_base(own: &PerCpu) -> bool {
    let own = VirtAddr::from_ptr(own);
    let was_wrong = GsBase::read() != own;
    if was_wrong {
        GsBase::write(own);
    }
    was_wrong
}

/// Keeps the GS base right while it lives, whatever it was: for handlers of NMIs.
pub struct OwnGs {
    before: VirtAddr,
    /// It was not this CPU's data: application code has changed it.
    pub was_wrong: bool,
}

impl OwnGs {
    /// `index` is the calling CPU's.
    pub fn enter(index: usize) -> Option<Self> {
        let own = cpu(index)?;
        let before = GsBase::read();
        Some(Self { before, was_wrong: correct_gs_base(own) })
    }
}

impl Drop for OwnGs {
    fn drop(&mut self) {
        if self.was_wrong {
            GsBase::write(self.before);
        }
    }
}

// SAFETY: `Cell` fields are touched by the owning CPU only (`this_cpu`); other CPUs read atomics,
// and `index`/`apic_id`, which do not change after `install` published the pointer.
unsafe impl Sync for PerCpu {}
