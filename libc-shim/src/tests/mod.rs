//! Whole calls on the host's runtime: a program with a task, fake application memory and a tmpfs, whose
//! "application" is test code that fills a [`TrapFrame`] and enters through [`Linux`].
use std::{
    boxed::Box,
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
        mpsc,
    },
};

use alloc::{string::String, sync::Arc};
use fs::{Vfs, tmpfs::TmpFs, vfs::MountSpec};
use rt::{
    Extension, Personality,
    regs::TrapFrame,
    rt,
    task::{Start, TaskRef, TaskSpec},
};

use crate::{
    dispatch::Linux,
    program::{Directory, NewProgram, Program},
    thread::Thread,
    threads,
};

mod files;
mod futexes;
mod fuzz;
mod loading;
mod signals;

/// The application's side of one thread.
pub struct Caller {
    pub task: TaskRef,
    pub program: Arc<Program>,
    /// Scratch memory, one page.
    pub memory: u64,
    pub stack_top: u64,
}

/// Where the fake application's system calls are.
pub const RIP: u64 = 0x40_1002;

impl Caller {
    pub fn frame(&self, number: u64, arguments: &[u64]) -> TrapFrame {
        let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
        TrapFrame {
            rax: number,
            error: number,
            vector: TrapFrame::SYSCALL,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            rip: RIP,
            rsp: self.stack_top - 256,
            rflags: 0x202,
            ..TrapFrame::default()
        }
    }

    /// Makes a call and comes back as the machine would: with exit work done.
    pub fn enter(&self, frame: &mut TrapFrame) {
        Linux.syscall(&self.task, self.task.extension(), frame);
        while self.task.is_interrupted() {
            Linux.exit_work(&self.task, frame);
        }
    }

    /// The value of rax after a call.
    pub fn call(&self, number: u64, arguments: &[u64]) -> i64 {
        let mut frame = self.frame(number, arguments);
        self.enter(&mut frame);
        frame.rax as i64
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) -> u64 {
        rt().user().write(self.memory + offset, bytes).unwrap();
        self.memory + offset
    }

    pub fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        rt().user().read(&mut bytes, self.memory + offset).unwrap();
        bytes
    }
}

type Job = Box<dyn FnOnce() + Send>;
static JOBS: Mutex<Option<HashMap<usize, Job>>> = Mutex::new(None);

fn run_job(number: usize) {
    let job = JOBS.lock().unwrap().as_mut().and_then(|jobs| jobs.remove(&number));
    job.expect("each job is run once")();
}

/// Runs `work` as the only thread of a new program, and gives its result.
pub fn in_program<T: Send + 'static>(work: impl FnOnce(&Caller) -> T + Send + 'static) -> T {
    rt::host::install();
    static NEXT_PID: AtomicU32 = AtomicU32::new(1_000_000);
    let vfs = Vfs::new(TmpFs::new(64 << 20), MountSpec::new("tmpfs"));
    let directory = Directory { root: vfs.root(), cwd: vfs.root() };
    let pid = NEXT_PID.fetch_add(1, Ordering::Relaxed);
    let program = Program::new(NewProgram { pid, parent: 0, vfs, directory, trace: false });
    let thread = Arc::new(Thread::new(program.clone(), b"test"));
    start(program, thread, threads::adopt_first, work).recv().unwrap()
}

/// Runs `work` as another thread of `program`.
pub fn in_thread<T: Send + 'static>(
    program: &Arc<Program>,
    work: impl FnOnce(&Caller) -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let thread = Arc::new(Thread::new(program.clone(), b"other"));
    let adopt = |task: &TaskRef, thread: &Thread| {
        thread.set_tid(task.id() as u32);
        thread.program.threads.lock().push(task.clone());
    };
    start(program.clone(), thread, adopt, work)
}

fn start<T: Send + 'static>(
    program: Arc<Program>,
    thread: Arc<Thread>,
    adopt: fn(&TaskRef, &Thread),
    work: impl FnOnce(&Caller) -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    static NEXT_JOB: AtomicUsize = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let extension = Extension::new(thread.clone());
    let job: Job = Box::new(move || {
        let task = rt().current();
        adopt(&task, &thread);
        let map = |len| {
            use rt::space::{MapRequest, Placement, Prot};
            let request = MapRequest {
                placement: Placement::Anywhere,
                len,
                prot: Prot::READ | Prot::WRITE,
                file: None,
                shared: false,
                read_only: false,
                no_reserve: false,
                stack: false,
                label: None,
            };
            rt().address_space().map(program.owner, request).unwrap()
        };
        let (memory, stack) = (map(4096), map(65536));
        let caller = Caller { task, program, memory, stack_top: stack + 65536 };
        let _ = sender.send(work(&caller));
    });
    let number = NEXT_JOB.fetch_add(1, Ordering::Relaxed);
    JOBS.lock().unwrap().get_or_insert_with(HashMap::new).insert(number, job);
    let spec = TaskSpec {
        name: String::from("test"),
        start: Start::Kernel(run_job, number),
        extension: Some(extension),
        affinity: u64::MAX,
        nice: 0,
    };
    rt().spawn(spec).unwrap();
    receiver
}
