//! Tasks as threads: park and unpark with a token, interrupts as a flag.
use std::{
    cell::{Cell, OnceCell},
    sync::{
        Arc, Condvar, Mutex, Weak,
        atomic::{AtomicI8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::HostRuntime;
use crate::{
    Extension, Runtime,
    regs::{TrapFrame, VectorState},
    task::{ParkMode, Parked, Start, Task, TaskRef, TaskSpec},
};

thread_local! {
    static CURRENT: OnceCell<Arc<HostTask>> = const { OnceCell::new() };
    static LOCK_DEPTH: Cell<i32> = const { Cell::new(0) };
}

static ALL: Mutex<Vec<Weak<HostTask>>> = Mutex::new(Vec::new());

struct HostTask {
    id: u64,
    signals: Mutex<Signals>,
    changed: Condvar,
    extension: Option<Extension>,
    started: Instant,
    affinity: AtomicU64,
    nice: AtomicI8,
    fs_base: AtomicU64,
}

#[derive(Default)]
struct Signals {
    unparked: bool,
    interrupted: bool,
}

pub fn current() -> TaskRef {
    CURRENT.with(|current| current.get_or_init(|| new_task(None)).clone())
}

pub fn spawn(spec: TaskSpec) -> TaskRef {
    let Start::Kernel(run, argument) = spec.start else { unreachable!("the caller has checked") };
    let task = new_task(spec.extension);
    let own = task.clone();
    std::thread::Builder::new()
        .name(spec.name)
        .spawn(move || {
            CURRENT.with(|current| assert!(current.set(own).is_ok()));
            run(argument);
        })
        .expect("the host has no thread left");
    task
}

pub fn park(host: &HostRuntime, deadline_ns: Option<u64>, mode: ParkMode) -> Parked {
    let me = CURRENT.with(|current| current.get_or_init(|| new_task(None)).clone());
    let mut signals = me.signals.lock().unwrap();
    loop {
        if std::mem::take(&mut signals.unparked) {
            return Parked::Woken;
        }
        if signals.interrupted && mode == ParkMode::Interruptible {
            return Parked::Interrupted;
        }
        let left = deadline_ns.map(|deadline| deadline.saturating_sub(host.now_ns()));
        signals = match left {
            Some(0) => return Parked::TimedOut,
            // At most so long, since a virtual clock may move meanwhile (it tells us, see below).
            Some(ns) => me.changed.wait_timeout(signals, Duration::from_nanos(ns)).unwrap().0,
            None => me.changed.wait(signals).unwrap(),
        };
    }
}

/// Wakes all parked threads to look at the clock again.
pub fn clock_moved() {
    let tasks: Vec<_> = ALL.lock().unwrap().iter().filter_map(Weak::upgrade).collect();
    for task in tasks {
        let _order_after_the_check = task.signals.lock().unwrap();
        task.changed.notify_all();
    }
}

pub fn lock_depth_add(by: i32) {
    LOCK_DEPTH.with(|depth| depth.set(depth.get() + by));
}

pub fn assert_may_sleep() {
    LOCK_DEPTH.with(|depth| assert_eq!(depth.get(), 0, "this may sleep, and a spin lock is held"));
}

fn new_task(extension: Option<Extension>) -> Arc<HostTask> {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    let task = Arc::new(HostTask {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        signals: Mutex::default(),
        changed: Condvar::new(),
        extension,
        started: Instant::now(),
        affinity: AtomicU64::new(0b11),
        nice: AtomicI8::new(0),
        fs_base: AtomicU64::new(0),
    });
    let mut all = ALL.lock().unwrap();
    all.retain(|task| task.strong_count() > 0);
    all.push(Arc::downgrade(&task));
    task
}

impl HostTask {
    fn signal(&self, set: impl FnOnce(&mut Signals)) {
        set(&mut self.signals.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Task for HostTask {
    fn id(&self) -> u64 {
        self.id
    }

    fn unpark(&self) {
        self.signal(|signals| signals.unparked = true);
    }

    fn interrupt(&self) {
        self.signal(|signals| signals.interrupted = true);
    }

    fn clear_interrupt(&self) {
        self.signal(|signals| signals.interrupted = false);
    }

    fn is_interrupted(&self) -> bool {
        self.signals.lock().unwrap().interrupted
    }

    fn extension(&self) -> Option<&Extension> {
        self.extension.as_ref()
    }

    /// Time since the task began: threads are not metered.
    fn cpu_time_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn set_affinity(&self, cpus: u64) -> bool {
        let known = cpus & 0b11;
        if known != 0 {
            self.affinity.store(known, Ordering::Relaxed);
        }
        known != 0
    }

    fn affinity(&self) -> u64 {
        self.affinity.load(Ordering::Relaxed)
    }

    fn set_nice(&self, nice: i8) {
        self.nice.store(nice, Ordering::Relaxed);
    }

    fn nice(&self) -> i8 {
        self.nice.load(Ordering::Relaxed)
    }

    fn fs_base(&self) -> u64 {
        self.fs_base.load(Ordering::Relaxed)
    }

    fn set_fs_base(&self, value: u64) {
        self.fs_base.store(value, Ordering::Relaxed);
    }

    /// Only the low halves, which the frame has.
    fn save_vectors(&self, frame: &TrapFrame, out: &mut VectorState) {
        out.bytes.fill(0);
        // FXSAVE's layout: XMM0 to XMM15 from byte 160 on.
        for (register, to) in frame.xmm.iter().zip(out.bytes[160..416].chunks_exact_mut(16)) {
            to.copy_from_slice(&register.to_le_bytes());
        }
        out.len = 512;
        out.features = 0;
    }

    fn load_vectors(&self, frame: &mut TrapFrame, state: &VectorState) -> bool {
        if state.len != 512 {
            return false;
        }
        for (register, from) in frame.xmm.iter_mut().zip(state.bytes[160..416].as_chunks::<16>().0) {
            *register = u128::from_le_bytes(*from);
        }
        true
    }
}
