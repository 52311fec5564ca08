//! The runtime seam: what the services (file systems, network, Linux personality) need of a machine.
//!
//! The kernel implements [`Runtime`] over hardware (`machine`); host tests implement it over `std`
//! ([`host`], feature `std`). So a service blocks, times out and moves pages in a host test exactly
//! as it does in the guest, and never names the machine.
//!
//! Upward calls go through [`Personality`] and [`Pager`]: this crate owns the traits, the higher
//! layer registers an implementation.
//!
//! # Locking
//! [`sync::SpinLock`] guards short sections of task context; [`sync::IrqLock`] those that interrupt
//! handlers share. No sleep, no I/O, no user copy under either. [`sync::Mutex`] may be held over
//! sleep and I/O.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod block;
mod extension;
#[cfg(feature = "std")]
pub mod host;
mod link;
pub mod net;
pub mod page;
pub mod regs;
mod sleep_lock;
pub mod space;
pub mod sync;
pub mod task;
pub mod user;

use spin::Once;

pub use extension::Extension;
use page::{OutOfFrames, PageId};
use regs::TrapFrame;
use space::AddressSpace;
use task::{AppFault, ParkMode, Parked, TaskRef, TaskSpec};
use user::UserMemory;

/// What a machine offers to the services above it. One implementation per process: see [`init`].
pub trait Runtime: Sync {
    // --- tasks ---
    /// The calling task. Must not be called from interrupt context.
    fn current(&self) -> TaskRef;
    /// Sleeps until [`task::Task::unpark`] is called on the current task, `deadline_ns` (on the
    /// [`Runtime::now_ns`] clock) passes, or, if `mode` allows it, the task is interrupted. An
    /// unpark that came since the last park is not lost: the call then returns at once.
    fn park(&self, deadline_ns: Option<u64>, mode: ParkMode) -> Parked;
    /// Gives the CPU to another runnable task, if there is one.
    fn yield_now(&self);
    /// Lets another task go first if one is due: for loops whose length an application decides. May
    /// sleep, as far as locks are concerned.
    fn preemption_point(&self) {}
    /// Creates a task and makes it runnable.
    fn spawn(&self, spec: TaskSpec) -> Result<TaskRef, OutOfFrames>;
    /// As [`Runtime::spawn`], but `prepare` runs on the caller once the task has its id and before
    /// it is runnable (clone stores the id in application memory first). `prepare` may sleep. This
    /// default serves runtimes whose new tasks cannot run before the creator parks.
    fn spawn_prepared(&self, spec: TaskSpec, prepare: &mut dyn FnMut(&TaskRef)) -> Result<TaskRef, OutOfFrames> {
        let task = self.spawn(spec)?;
        prepare(&task);
        Ok(task)
    }
    /// Ends the calling task.
    fn exit_task(&self) -> !;

    // --- time and chance ---
    /// Monotonic nanoseconds since boot.
    fn now_ns(&self) -> u64;
    /// Nanoseconds since 1970, UTC.
    fn realtime_ns(&self) -> u64;
    /// Cryptographically strong bytes; in `exact` mode a seeded stream.
    fn random(&self, out: &mut [u8]);
    fn cpu_count(&self) -> usize;
    /// CPU the caller runs on, from 0. Stale as soon as it is returned.
    fn cpu_index(&self) -> usize;

    // --- memory ---
    /// A new page with reference count 1; zeroed if asked. May reclaim clean cache pages, and sleep.
    fn page_alloc(&self, zeroed: bool) -> Result<PageId, OutOfFrames>;
    fn page_ref(&self, page: PageId);
    /// Drops one reference; the frame is freed with the last.
    fn page_unref(&self, page: PageId);
    fn page_refcount(&self, page: PageId) -> u32;
    fn page_read(&self, page: PageId, offset: usize, out: &mut [u8]);
    fn page_write(&self, page: PageId, offset: usize, data: &[u8]);
    /// To be asked before a call that makes kernel objects: fails, after reclaim, while the memory that
    /// is kept for the kernel itself is half used up. So a call is refused (ENOMEM) before it starts
    /// rather than stuck in the middle. Task context, no locks.
    fn draw_budget(&self) -> Result<(), OutOfFrames> {
        Ok(())
    }
    /// (total, free) bytes of memory that frames are made of.
    fn memory_bytes(&self) -> (u64, u64);
    /// The one address space of the machine.
    fn address_space(&self) -> &dyn AddressSpace;
    fn user(&self) -> &dyn UserMemory;

    // --- the console and the machine's end ---
    /// Bytes to the console, unchanged.
    fn console_write(&self, bytes: &[u8]);
    /// Console input that is there now; 0 when none is.
    fn console_read(&self, out: &mut [u8]) -> usize;
    /// Parks until console input may be there; same result as [`Runtime::park`].
    fn console_wait_input(&self, deadline_ns: Option<u64>) -> Parked;
    /// Ends the machine with the application's exit code.
    fn power_off(&self, exit_code: u8) -> !;
}

/// The upper layer that gives application code its system calls and signals (libc-shim).
pub trait Personality: Sync {
    /// A system call of `task`: number in `frame.rax`, arguments in rdi, rsi, rdx, r10, r8, r9.
    /// The result goes to `frame.rax`. `extension` is the task's. Interrupts are on; may sleep.
    fn syscall(&self, task: &TaskRef, extension: Option<&Extension>, frame: &mut TrapFrame);
    /// Application code faulted: turn it into a signal. Interrupts are on; may sleep.
    fn fault(&self, task: &TaskRef, frame: &mut TrapFrame, fault: AppFault);
    /// Kernel code touches application memory for `task`, and no frame is left for it, not even by
    /// reclaim. True: something was done about it, and the access is tried again; else it fails. Interrupts
    /// are on; may sleep.
    fn out_of_memory(&self, _task: &TaskRef) -> bool {
        false
    }
    /// Called before a return to application code, once after each [`task::Task::interrupt`].
    fn exit_work(&self, task: &TaskRef, frame: &mut TrapFrame);
}

static RUNTIME: Once<&'static dyn Runtime> = Once::new();
static PERSONALITY: Once<&'static dyn Personality> = Once::new();

/// Registers the runtime. The first registration holds; later ones are ignored.
pub fn init(runtime: &'static dyn Runtime) {
    RUNTIME.call_once(|| runtime);
}

/// The registered runtime. Panics before [`init`].
#[inline]
pub fn rt() -> &'static dyn Runtime {
    *RUNTIME.get().expect("rt::init has not run")
}

/// Registers the personality. The first registration holds.
pub fn set_personality(personality: &'static dyn Personality) {
    PERSONALITY.call_once(|| personality);
}

/// The registered personality, if any.
#[inline]
pub fn personality() -> Option<&'static dyn Personality> {
    PERSONALITY.get().copied()
}
