//! Programs: Linux' processes. What the threads of one share: descriptors, directory, signal actions,
//! limits, mappings' owner, heap end, and the registry that finds a program by pid.
//!
//! Several programs live in the one address space; each owns its mappings ([`ProgramId`]). There is
//! no "the process" anywhere in this crate: a call reaches its program through its thread, others
//! through [`by_pid`].
//!
//! # Locking
//! `signals`, then `threads`, then a thread's `signals` (spin). `brk` sleeps and is taken with none of
//! them held. `timers` and `interval_timer` (spin) come before the alarm queue's lock. `files`,
//! `directory`, `limits`, `image` and the registry are leaves (spin): what comes out of them is cloned, and
//! dropped after the lock.
use alloc::{collections::BTreeMap, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};

use fs::{Location, Vfs, descriptor::Descriptor};
use logic::fd_table::FdTable;
use rt::{
    rt,
    space::ProgramId,
    sync::{Mutex, SpinLock},
    task::TaskRef,
};

use crate::{
    limits::Limits,
    mm::Brk,
    signal::{ProgramSignals, SigSet},
    thread::Thread,
    timers::{Alarm, posix::Timers},
};

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    Code(u8),
    Signal(u8),
}

impl ExitStatus {
    const CODE: u32 = 1 << 16;
    const SIGNAL: u32 = 2 << 16;

    fn encode(self) -> u32 {
        match self {
            Self::Code(code) => Self::CODE | u32::from(code),
            Self::Signal(signal) => Self::SIGNAL | u32::from(signal),
        }
    }

    fn decode(word: u32) -> Option<Self> {
        match word & !0xffff {
            Self::CODE => Some(Self::Code(word as u8)),
            Self::SIGNAL => Some(Self::Signal(word as u8)),
            _ => None,
        }
    }

    /// As a shell shows it: a signal is 128 + its number.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.wrapping_add(signal),
        }
    }
}

/// Root and working directory.
#[derive(Clone)]
pub struct Directory {
    pub root: Location,
    pub cwd: Location,
}

/// What the loader has placed, as `/proc/PID` shows it.
#[derive(Clone, Default)]
pub struct Image {
    pub exe: Option<Location>,
    /// Address ranges of the argument and environment strings.
    pub arguments: (u64, u64),
    pub environment: (u64, u64),
    pub auxv: Vec<u8>,
    pub code: (u64, u64),
    pub data: (u64, u64),
    pub stack_start: u64,
}

pub struct Program {
    pub pid: u32,
    pub parent: u32,
    pub owner: ProgramId,
    /// System calls are printed.
    pub trace: AtomicBool,
    /// PR_SET_DUMPABLE. Nothing acts on it: there are no core dumps and no ptrace.
    pub dumpable: AtomicBool,
    pub vfs: Arc<Vfs>,
    pub files: SpinLock<FdTable<Descriptor>>,
    pub directory: SpinLock<Directory>,
    pub umask: AtomicU32,
    pub signals: SpinLock<ProgramSignals>,
    /// The set of `signals.pending`, readable without the lock.
    pending: AtomicU64,
    pub threads: SpinLock<Vec<TaskRef>>,
    pub limits: SpinLock<Limits>,
    pub brk: Mutex<Brk>,
    pub image: SpinLock<Image>,
    pub timers: SpinLock<Timers>,
    /// ITIMER_REAL, once it was set.
    pub interval_timer: SpinLock<Option<Alarm>>,
    /// An [`ExitStatus`], once the program is ending; 0 before.
    ending: AtomicU32,
    /// What the main thread gave to exit(2): the program's code, if nothing else ends it.
    pub main_code: AtomicU8,
    pub started_ns: u64,
    /// `/proc/PID/coredump_filter` and `oom_score_adj`: kept and shown.
    pub coredump_filter: AtomicU32,
    pub oom_score_adj: AtomicI32,
    /// CPU time of threads that have ended. Guarded by `threads`.
    pub ended_cpu_ns: AtomicU64,
}

static REGISTRY: SpinLock<BTreeMap<u32, Arc<Program>>> = SpinLock::new(BTreeMap::new());
/// The first program: its end is the machine's.
pub const INIT_PID: u32 = 1;

/// What a new program starts with.
pub struct NewProgram {
    pub pid: u32,
    pub parent: u32,
    pub vfs: Arc<Vfs>,
    pub directory: Directory,
    pub trace: bool,
}

impl Program {
    /// Creates a program and registers it.
    pub fn new(new: NewProgram) -> Arc<Self> {
        let limits = Limits::default();
        let program = Arc::new(Self {
            pid: new.pid,
            parent: new.parent,
            owner: ProgramId(new.pid),
            trace: AtomicBool::new(new.trace),
            dumpable: AtomicBool::new(true),
            vfs: new.vfs,
            files: SpinLock::new(FdTable::new(limits.open_files())),
            directory: SpinLock::new(new.directory),
            umask: AtomicU32::new(0o022),
            signals: SpinLock::new(ProgramSignals::new()),
            pending: AtomicU64::new(0),
            threads: SpinLock::new(Vec::new()),
            limits: SpinLock::new(limits),
            brk: Mutex::new(Brk::default()),
            image: SpinLock::new(Image::default()),
            timers: SpinLock::new(Timers::default()),
            interval_timer: SpinLock::new(None),
            ending: AtomicU32::new(0),
            main_code: AtomicU8::new(0),
            started_ns: rt().now_ns(),
            coredump_filter: AtomicU32::new(0x33),
            oom_score_adj: AtomicI32::new(0),
            ended_cpu_ns: AtomicU64::new(0),
        });
        REGISTRY.lock().insert(program.pid, program.clone());
        program
    }

    pub fn is_init(&self) -> bool {
        self.pid == INIT_PID
    }

    /// The main thread's name (`comm`), or another one's once that has ended.
    pub fn name(&self) -> String {
        let main = self.thread(self.pid).or_else(|| self.threads.lock().first().cloned());
        main.as_ref().and_then(Thread::of).map_or_else(String::new, Thread::name_string)
    }

    pub fn thread(&self, tid: u32) -> Option<TaskRef> {
        self.threads.lock().iter().find(|task| Thread::of(task).is_some_and(|t| t.tid() == tid)).cloned()
    }

    pub fn thread_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.threads.lock().iter().filter_map(Thread::of).map(Thread::tid).collect();
        ids.sort_unstable();
        ids
    }

    /// CPU time of all threads, ended ones included.
    pub fn cpu_time_ns(&self) -> u64 {
        let threads = self.threads.lock();
        let running: u64 = threads.iter().map(|task| task.cpu_time_ns()).sum();
        running + self.ended_cpu_ns.load(Ordering::Relaxed)
    }

    pub fn pending_set(&self) -> SigSet {
        SigSet(self.pending.load(Ordering::SeqCst))
    }

    /// Called with `signals` locked, after its pending set has changed.
    pub fn publish_pending(&self, set: SigSet) {
        self.pending.store(set.0, Ordering::SeqCst);
    }

    pub fn ending(&self) -> Option<ExitStatus> {
        ExitStatus::decode(self.ending.load(Ordering::SeqCst))
    }

    /// Makes the program end with `status`, unless it is ending already: every thread leaves at its
    /// next return to application code, blocked ones are woken for it. True: it was this call.
    pub fn end(&self, status: ExitStatus) -> bool {
        if self.ending.compare_exchange(0, status.encode(), Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return false;
        }
        for task in self.threads.lock().iter() {
            task.interrupt();
        }
        true
    }

    /// Takes a thread that ends off the list; true if it was the last.
    pub fn remove_thread(&self, task: &TaskRef) -> bool {
        let mut threads = self.threads.lock();
        let gone = threads.iter().position(|other| other.id() == task.id()).map(|at| threads.swap_remove(at));
        // Under the lock: the program's time never goes back.
        self.ended_cpu_ns.fetch_add(task.cpu_time_ns(), Ordering::Relaxed);
        let last = threads.is_empty();
        drop(threads);
        drop(gone);
        last
    }
}

pub fn by_pid(pid: u32) -> Option<Arc<Program>> {
    REGISTRY.lock().get(&pid).cloned()
}

/// All programs, in order of pid.
pub fn all() -> Vec<Arc<Program>> {
    REGISTRY.lock().values().cloned().collect()
}

/// Takes an ended program out of the registry.
pub fn unregister(pid: u32) {
    let gone = REGISTRY.lock().remove(&pid);
    drop(gone);
}
