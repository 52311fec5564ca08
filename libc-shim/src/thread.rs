//! Threads: what the personality hangs on a task ([`rt::task::TaskSpec::extension`]).
//!
//! # Locking
//! `signals` is a spin lock below the program's (see [`crate::signal`]); all else is atomic. The name
//! has a spin lock of its own, a leaf.
use alloc::{string::String, sync::Arc};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rt::{sync::SpinLock, task::TaskRef};

use crate::{
    call::Ctx,
    program::{self, Program},
    signal::{ThreadSignals, frame::FaultRecord},
};

/// Bytes of a thread's name, its NUL included (PR_SET_NAME).
pub const NAME_BYTES: usize = 16;

pub struct Thread {
    pub program: Arc<Program>,
    tid: AtomicU32,
    name: SpinLock<[u8; NAME_BYTES]>,
    pub signals: SpinLock<ThreadSignals>,
    /// Zeroed, and woken as a futex, when the thread ends (set_tid_address(2)); 0: none.
    pub clear_child_tid: AtomicU64,
    /// Head of the robust futex list (set_robust_list(2)); 0: none.
    pub robust_list: AtomicU64,
    /// The futex bucket that the thread waits in, while `futex_queued`.
    pub futex_bucket: AtomicUsize,
    pub futex_queued: AtomicBool,
    pub settings: Settings,
    fault: SpinLock<FaultRecord>,
}

/// What prctl(2) keeps for a thread. Nothing here acts on it: no program gains privileges, none has a
/// parent that could end first, and deadlines are exact.
pub struct Settings {
    pub no_new_privileges: AtomicBool,
    pub parent_death_signal: AtomicU32,
    pub timer_slack_ns: AtomicU64,
    /// What a slack of 0 stands for: the creator's.
    default_slack_ns: u64,
}

impl Settings {
    fn new(no_new_privileges: bool, default_slack_ns: u64) -> Self {
        Self {
            no_new_privileges: AtomicBool::new(no_new_privileges),
            parent_death_signal: AtomicU32::new(0),
            timer_slack_ns: AtomicU64::new(default_slack_ns),
            default_slack_ns,
        }
    }

    /// Those of a thread that this one creates.
    pub fn inherited(&self) -> Self {
        let no_new_privileges = self.no_new_privileges.load(Ordering::Relaxed);
        Self::new(no_new_privileges, self.timer_slack_ns.load(Ordering::Relaxed))
    }

    pub fn set_timer_slack(&self, ns: u64) {
        self.timer_slack_ns.store(if ns == 0 { self.default_slack_ns } else { ns }, Ordering::Relaxed);
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(false, 50_000)
    }
}

impl Thread {
    pub fn new(program: Arc<Program>, name: &[u8]) -> Self {
        let thread = Self {
            program,
            tid: AtomicU32::new(0),
            name: SpinLock::new([0; NAME_BYTES]),
            signals: SpinLock::new(ThreadSignals::default()),
            clear_child_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            futex_bucket: AtomicUsize::new(0),
            futex_queued: AtomicBool::new(false),
            settings: Settings::default(),
            fault: SpinLock::new(FaultRecord::default()),
        };
        thread.set_name(name);
        thread
    }

    /// The thread of a task, if it is an application's.
    pub fn of(task: &TaskRef) -> Option<&Self> {
        task.extension()?.get()
    }

    pub fn tid(&self) -> u32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// Once, when the task has its id.
    pub fn set_tid(&self, tid: u32) {
        self.tid.store(tid, Ordering::Relaxed);
    }

    /// NUL-padded.
    pub fn name(&self) -> [u8; NAME_BYTES] {
        *self.name.lock()
    }

    pub fn name_string(&self) -> String {
        let name = self.name();
        let len = name.iter().position(|b| *b == 0).unwrap_or(NAME_BYTES);
        String::from_utf8_lossy(&name[..len]).into_owned()
    }

    /// Takes the first 15 bytes, up to a NUL.
    pub fn set_name(&self, name: &[u8]) {
        let len = name.iter().position(|b| *b == 0).unwrap_or(name.len()).min(NAME_BYTES - 1);
        let mut new = [0; NAME_BYTES];
        new[..len].copy_from_slice(&name[..len]);
        *self.name.lock() = new;
    }

    pub fn fault_record(&self) -> FaultRecord {
        *self.fault.lock()
    }

    pub fn record_fault(&self, record: FaultRecord) {
        *self.fault.lock() = record;
    }

    /// After the mask has changed: asks for delivery if something pending has become deliverable.
    pub fn recheck_pending(&self, task: &TaskRef) {
        let state = self.signals.lock();
        let pending = state.pending.set().with(self.program.pending_set());
        if !pending.without(state.mask).is_empty() {
            task.interrupt();
        }
    }
}

/// The task of a thread id, within the program `pid` if one is given.
pub fn by_tid(cx: &Ctx<'_>, tid: u32, pid: Option<u32>) -> Option<TaskRef> {
    let program = match pid {
        Some(pid) if pid != cx.thread.program.pid => program::by_pid(pid)?,
        _ => cx.thread.program.clone(),
    };
    program.thread(tid).or_else(|| match pid {
        None => program::all().iter().find_map(|other| other.thread(tid)),
        Some(_) => None,
    })
}
