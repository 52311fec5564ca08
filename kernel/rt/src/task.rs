//! Tasks as the services see them: handles to park, wake, interrupt and create.
use alloc::{string::String, sync::Arc};

use crate::{Extension, regs::TrapFrame, regs::VectorState};

/// A task handle. A task is a Linux thread, or a thread of the kernel itself.
pub type TaskRef = Arc<dyn Task>;

/// Why [`crate::Runtime::park`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    Woken,
    TimedOut,
    /// [`Task::interrupt`] is pending and the park was interruptible.
    Interrupted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParkMode {
    Interruptible,
    Uninterruptible,
}

/// One task. All methods may be called from any CPU; [`Task::unpark`] also from interrupts.
pub trait Task: Send + Sync {
    /// Unique for the machine's life; the Linux thread id.
    fn id(&self) -> u64;
    /// Makes the task runnable, or makes its next park return at once.
    fn unpark(&self);
    /// Sets the interrupt flag: an interruptible park ends, and before its next instruction of
    /// application code the task runs [`crate::Personality::exit_work`]. Reaches a task that is
    /// running application code on another CPU now.
    fn interrupt(&self);
    /// Clears the interrupt flag (nothing deliverable is pending any more).
    fn clear_interrupt(&self);
    fn is_interrupted(&self) -> bool;
    /// What the creator hung on the task ([`TaskSpec::extension`]).
    fn extension(&self) -> Option<&Extension>;
    /// CPU time used so far, nanoseconds.
    fn cpu_time_ns(&self) -> u64;
    /// Bit i allows CPU i. An empty or unknown set is refused by returning false.
    fn set_affinity(&self, cpus: u64) -> bool;
    fn affinity(&self) -> u64;
    /// Scheduler weight by nice value, -20 to 19.
    fn set_nice(&self, nice: i8);
    fn nice(&self) -> i8;
    /// FS base of the *current* task (others: the saved one).
    fn fs_base(&self) -> u64;
    fn set_fs_base(&self, value: u64);
    /// Extended vector and x87 state of the current task, in XSAVE standard format, combined with
    /// the low XMM halves that `frame` holds.
    fn save_vectors(&self, frame: &TrapFrame, out: &mut VectorState);
    /// Loads what [`Task::save_vectors`] saved (sanitised); low XMM halves go to `frame`. False if
    /// the image is malformed.
    fn load_vectors(&self, frame: &mut TrapFrame, state: &VectorState) -> bool;
}

/// What [`crate::Runtime::spawn`] needs.
pub struct TaskSpec {
    /// At most 15 bytes are shown, as on Linux.
    pub name: String,
    pub start: Start,
    pub extension: Option<Extension>,
    pub affinity: u64,
    pub nice: i8,
}

impl TaskSpec {
    /// A task of the kernel itself that may run on every CPU; `run` gets 0.
    pub fn kernel(name: &str, run: fn(usize)) -> Self {
        Self { name: name.into(), start: Start::Kernel(run, 0), extension: None, affinity: u64::MAX, nice: 0 }
    }
}

pub enum Start {
    /// Enters application code with these registers. Vector state is the architecture's initial
    /// one, or with `inherit_vectors` the current task's (clone).
    Application { frame: alloc::boxed::Box<TrapFrame>, fs_base: u64, inherit_vectors: bool },
    /// Runs a function of the kernel.
    Kernel(fn(usize), usize),
}

/// A fault of application code, as the CPU reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppFault {
    /// No mapping (`mapped` false: SEGV_MAPERR) or protection (`mapped` true: SEGV_ACCERR).
    /// `error` holds the architectural error code with the U bit set, as Linux would show it.
    Segment { address: u64, mapped: bool, error: u64 },
    /// The page lies beyond the mapped file's end, or could not be read: SIGBUS.
    Bus { address: u64, error: u64 },
    /// Any other exception: vector and error code (0 #DE, 1 #DB, 3 #BP, 6 #UD, 13 #GP, 16 #MF,
    /// 17 #AC, 19 #XM).
    Exception { vector: u8, error: u64 },
    /// Out of memory: the personality ends the largest program.
    OutOfMemory { address: u64 },
}
