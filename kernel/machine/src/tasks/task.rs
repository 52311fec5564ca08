#![allow(unsafe_code, reason = "lays out kernel stacks and holds state that only the running CPU touches")]
//! One task: its kernel stack, its saved state, and its handle for the services.
use alloc::{boxed::Box, string::String, sync::Arc};
use core::{
    arch::asm,
    cell::UnsafeCell,
    mem::{ManuallyDrop, offset_of},
    ptr,
    sync::atomic::{AtomicBool, AtomicI8, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use logic::{park_word::ParkWord, run_queue};
use rt::{
    Extension,
    page::OutOfFrames,
    regs::{TrapFrame, VectorState},
    task::{Start, Task as TaskHandle, TaskRef, TaskSpec},
};
use x86_64::{VirtAddr, instructions::interrupts, registers::model_specific::FsBase};

use super::{scheduler, vectors::VectorArea};
use crate::{
    cpu::{
        features,
        percpu::{self, this_cpu},
    },
    memory::stacks::KernelStack,
    time, trap,
};

core::arch::global_asm!(include_str!("start.S"), options(att_syntax));

unsafe extern "C" {
    fn task_start();
    fn leave_to_application() -> !;
}

const ALL_CPUS: u64 = u64::MAX;

pub struct Task {
    id: u64,
    pub name: String,
    stack: Option<KernelStack>,
    stack_bounds: (u64, u64),
    /// Saved stack pointer while another task runs. Touched by the switching CPU only.
    pub(super) rsp: UnsafeCell<u64>,
    /// Application tasks only. Touched by the CPU the task runs on, or switches from.
    vectors: UnsafeCell<Option<VectorArea>>,
    fs_base: AtomicU64,
    pub(super) wake: ParkWord<AtomicU8>,
    interrupted: AtomicBool,
    /// The task's registers are in a CPU, or on the way out of one.
    pub(super) on_cpu: AtomicBool,
    pub(super) dead: AtomicBool,
    /// The CPU it runs on, or waits for, or ran on last: `vruntime` is as that one's queue counts.
    pub(super) cpu: AtomicU32,
    /// Must move to another CPU as soon as it is off this one.
    pub(super) must_move: AtomicBool,
    pub(super) vruntime: AtomicU64,
    /// Virtual runtime relative to the queue it left.
    pub(super) lag: AtomicI64,
    pub(super) used_ticks: AtomicU64,
    /// The most that was ever said to be used: a clock does not go back.
    shown_ticks: AtomicU64,
    affinity: AtomicU64,
    nice: AtomicI8,
    /// That of `nice`.
    weight: AtomicU32,
    extension: Option<Extension>,
    pub(super) next_mail: AtomicPtr<Task>,
}

// SAFETY: the `UnsafeCell`s are touched only by the CPU that the task runs on or is being switched
// off; `on_cpu` (released after the switch, acquired before the next) orders one CPU after another.
unsafe impl Sync for Task {}

/// Where the assembly's way back to application code finds the interrupt flag.
pub const INTERRUPTED_OFFSET: usize = offset_of!(Task, interrupted);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Task {
    fn new(spec_name: String, stack: Option<KernelStack>, bounds: (u64, u64)) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            name: spec_name,
            stack,
            stack_bounds: bounds,
            rsp: UnsafeCell::new(0),
            vectors: UnsafeCell::new(None),
            fs_base: AtomicU64::new(0),
            wake: ParkWord::new(AtomicU8::new(0), AtomicU8::new(0)),
            interrupted: AtomicBool::new(false),
            on_cpu: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            cpu: AtomicU32::new(0),
            must_move: AtomicBool::new(false),
            vruntime: AtomicU64::new(0),
            lag: AtomicI64::new(0),
            used_ticks: AtomicU64::new(0),
            shown_ticks: AtomicU64::new(0),
            affinity: AtomicU64::new(ALL_CPUS),
            nice: AtomicI8::new(0),
            weight: AtomicU32::new(run_queue::weight(0)),
            extension: None,
            next_mail: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// The task that the calling CPU's present context becomes when nothing else runs.
    pub fn idle(stack_low: u64, stack_top: u64) -> Arc<Self> {
        let task = Self::new(String::from("idle"), None, (stack_low, stack_top));
        task.on_cpu.store(true, Ordering::Relaxed);
        task.cpu.store(this_cpu().index.get(), Ordering::Relaxed);
        Arc::new(task)
    }

    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// It sleeps, and has left its CPU.
    pub fn is_asleep(&self) -> bool {
        self.wake.is_parked() && !self.on_cpu.load(Ordering::Acquire)
    }

    /// The CPU it runs on, or waits for, or ran on last.
    pub fn cpu_number(&self) -> usize {
        self.cpu.load(Ordering::Relaxed) as usize
    }

    pub fn may_run_on(&self, cpu: usize) -> bool {
        cpu < 64 && self.affinity.load(Ordering::Relaxed) & (1 << cpu) != 0
    }

    pub(super) fn stack_bounds(&self) -> (u64, u64) {
        self.stack_bounds
    }

    /// Most bytes of the kernel stack ever used; 0 for a CPU's own stack.
    pub fn stack_high_water_bytes(&self) -> usize {
        self.stack.as_ref().map_or(0, KernelStack::high_water_bytes)
    }

    pub(super) fn take_interrupted(&self) -> bool {
        self.interrupted.swap(false, Ordering::AcqRel)
    }

    /// Leaves the CPU: what only an application has is stored.
    pub(super) fn save_application_state(&self) {
        // SAFETY: called by the CPU that the task runs on, with interrupts off.
        if let Some(vectors) = unsafe { &*self.vectors.get() } {
            vectors.save();
            if features::has_fsgsbase() {
                self.fs_base.store(read_fs_base(), Ordering::Relaxed);
            }
        }
    }

    pub(super) fn load_application_state(&self) {
        // SAFETY: called by the CPU that the task is switched to, with interrupts off.
        if let Some(vectors) = unsafe { &*self.vectors.get() } {
            vectors.restore();
            write_fs_base(self.fs_base.load(Ordering::Relaxed));
        }
    }

    fn is_current(&self) -> bool {
        ptr::eq(this_cpu().current.get(), self)
    }
}

fn read_fs_base() -> u64 {
    let base: u64;
    // SAFETY: CR4.FSGSBASE is on where `has_fsgsbase` says so.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

fn write_fs_base(base: u64) {
    if features::has_fsgsbase() {
        // SAFETY: as above; the base was checked to be canonical when it was set.
        unsafe { asm!("wrfsbase {}", in(reg) base, options(nostack, preserves_flags)) };
    } else {
        FsBase::write(VirtAddr::new_truncate(base));
    }
}

/// Bit i for CPU i.
fn online_cpus() -> u64 {
    let online = percpu::online_count();
    if online >= 64 { u64::MAX } else { (1 << online) - 1 }
}

/// The task that the calling CPU runs.
pub fn current() -> Arc<Task> {
    let task = percpu::current_task();
    // SAFETY: the CPU owns a reference to its current task; this takes another.
    unsafe {
        Arc::increment_strong_count(task);
        Arc::from_raw(task)
    }
}

/// Lends the current task's handle without counting.
pub fn with_current<T>(with: impl FnOnce(&TaskRef) -> T) -> T {
    with_caller(|task, _| with(task))
}

/// [`with_current`], with what hangs on the task.
pub fn with_caller<T>(with: impl FnOnce(&TaskRef, Option<&Extension>) -> T) -> T {
    let task = percpu::current_task();
    // SAFETY: the CPU's own reference lives while its task runs, which is as long as `with`; the
    // borrowed handle is never dropped.
    let (handle, task) = unsafe { (Arc::from_raw(task), &*task) };
    let handle: ManuallyDrop<TaskRef> = ManuallyDrop::new(handle);
    with(&handle, task.extension.as_ref())
}

/// Creates a task, calls `prepare` on it, and makes it runnable.
pub fn spawn(spec: TaskSpec, prepare: &mut dyn FnMut(&TaskRef)) -> Result<Arc<Task>, OutOfFrames> {
    let stack = KernelStack::new()?;
    let (low, top) = (stack.low(), stack.top());
    let mut task = Task::new(spec.name, Some(stack), (low, top));
    let has_a_cpu = spec.affinity & online_cpus() != 0;
    task.affinity = AtomicU64::new(if has_a_cpu { spec.affinity } else { ALL_CPUS });
    task.set_nice(spec.nice);
    task.extension = spec.extension;
    let cpu = this_cpu();
    task.cpu = AtomicU32::new(cpu.index.get());
    if !ptr::eq(cpu.current.get(), cpu.idle_task.get()) {
        // As far as its creator.
        task.vruntime = AtomicU64::new(current().vruntime.load(Ordering::Relaxed));
    }
    let (entry, argument): (extern "C" fn(u64) -> !, u64) = match spec.start {
        Start::Application { frame, fs_base, inherit_vectors } => {
            let mut area = VectorArea::initial()?;
            if inherit_vectors {
                let parent = current();
                // SAFETY: the parent is the running task; its area is only touched here and now.
                if let Some(vectors) = unsafe { &*parent.vectors.get() } {
                    let _off = crate::cpu::lock::InterruptsOff::enter();
                    vectors.save();
                    area.copy_from(vectors);
                }
            }
            task.vectors = UnsafeCell::new(Some(area));
            task.fs_base = AtomicU64::new(fs_base);
            let at = (top - size_of::<TrapFrame>() as u64) as *mut TrapFrame;
            // SAFETY: the top of the fresh stack, aligned to 16.
            unsafe { at.write(*frame) };
            (start_application, at as u64)
        }
        Start::Kernel(run, data) => (start_kernel, Box::into_raw(Box::new((run, data))) as u64),
    };
    // What `switch_stacks` returns to, and what `task_start` pops.
    let words = [task_start as *const () as u64, entry as *const () as u64, argument];
    let rsp = top - size_of::<TrapFrame>() as u64 - size_of_val(&words) as u64;
    // SAFETY: within the fresh stack, below the trap frame's place.
    unsafe { (rsp as *mut [u64; 3]).write(words) };
    task.rsp = UnsafeCell::new(rsp);
    let task = Arc::new(task);
    prepare(&(task.clone() as TaskRef));
    scheduler::make_runnable(task.clone());
    Ok(task)
}

extern "C" fn start_application(frame: u64) -> ! {
    scheduler::finish_switch();
    // SAFETY: `spawn` put the frame at the top of this stack; the assembly leaves by it.
    unsafe {
        let frame = frame as *mut TrapFrame;
        trap::exit_to_application(&mut *frame);
        (*frame).rflags = trap::sanitise_flags((*frame).rflags);
        asm!("mov rsp, {}", "jmp {}", in(reg) frame, sym leave_to_application, options(noreturn));
    }
}

extern "C" fn start_kernel(data: u64) -> ! {
    scheduler::finish_switch();
    interrupts::enable();
    // SAFETY: `spawn` boxed this for exactly this task.
    let (run, data) = *unsafe { Box::from_raw(data as *mut (fn(usize), usize)) };
    run(data);
    scheduler::exit()
}

impl TaskHandle for Task {
    fn id(&self) -> u64 {
        self.id
    }

    fn unpark(&self) {
        scheduler::unpark(self);
    }

    fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
        scheduler::interrupt(self);
    }

    fn clear_interrupt(&self) {
        // Not a store: the caller looks for reasons next, and one that comes meanwhile must find the flag
        // cleared, not have its own overwritten.
        self.interrupted.swap(false, Ordering::SeqCst);
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    fn extension(&self) -> Option<&Extension> {
        self.extension.as_ref()
    }

    fn cpu_time_ns(&self) -> u64 {
        let used = self.used_ticks.load(Ordering::Acquire);
        // The CPU stores when it last accounted before it adds to the sum: read in the other order, what
        // it is just accounting may be missing, but is never counted twice.
        let number = self.cpu_number();
        let runs_on = percpu::cpu(number).filter(|_| self.on_cpu.load(Ordering::Acquire));
        let running = runs_on
            .map_or(0, |cpu| time::sync::counter_of(number).saturating_sub(cpu.running_since.load(Ordering::Acquire)));
        // If it is another CPU that it has just come to, that was somebody else's time.
        let ticks = if self.cpu_number() == number { used + running } else { used };
        time::ticks_to_ns(ticks.max(self.shown_ticks.fetch_max(ticks, Ordering::Relaxed)))
    }

    fn set_affinity(&self, cpus: u64) -> bool {
        if cpus & online_cpus() == 0 {
            return false;
        }
        self.affinity.store(cpus, Ordering::SeqCst);
        if !self.is_current() {
            scheduler::mask_changed(self);
        } else if !self.may_run_on(this_cpu().index.get() as usize) {
            scheduler::yield_now();
        }
        true
    }

    fn affinity(&self) -> u64 {
        self.affinity.load(Ordering::Relaxed)
    }

    fn set_nice(&self, nice: i8) {
        self.nice.store(nice.clamp(-20, 19), Ordering::Relaxed);
        self.weight.store(run_queue::weight(nice), Ordering::Relaxed);
    }

    fn nice(&self) -> i8 {
        self.nice.load(Ordering::Relaxed)
    }

    fn fs_base(&self) -> u64 {
        if self.is_current() && features::has_fsgsbase() {
            read_fs_base()
        } else {
            self.fs_base.load(Ordering::Relaxed)
        }
    }

    fn set_fs_base(&self, value: u64) {
        self.fs_base.store(value, Ordering::Relaxed);
        if self.is_current() {
            write_fs_base(value);
        }
    }

    fn save_vectors(&self, frame: &TrapFrame, out: &mut VectorState) {
        assert!(self.is_current(), "vector state of a task that does not run");
        let _off = crate::cpu::lock::InterruptsOff::enter();
        // SAFETY: the running task's area, interrupts off.
        if let Some(vectors) = unsafe { &mut *self.vectors.get() } {
            vectors.image(frame, out);
        }
    }

    fn load_vectors(&self, frame: &mut TrapFrame, state: &VectorState) -> bool {
        assert!(self.is_current(), "vector state of a task that does not run");
        let _off = crate::cpu::lock::InterruptsOff::enter();
        // SAFETY: as in `save_vectors`.
        match unsafe { &mut *self.vectors.get() } {
            Some(vectors) => vectors.load_image(frame, state),
            None => false,
        }
    }
}
