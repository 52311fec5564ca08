//! Standard input where the host has a pipe or a file for it: a pipe here as well (`stdin=pipe`).
//!
//! A kernel task, started when somebody first reads or polls, takes the console's input, which
//! `abi::input` has made of the host's bytes, and writes those into a pipe. So input is asked for when a
//! program wants it, as the console's is; what the pipe has no room for waits with the host; and the end
//! of the host's input is that of the pipe.
//!
//! # Locking
//! `WRITER` is a leaf spin lock.
use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use abi::input::Decoder;
use rt::{
    sync::SpinLock,
    task::{ParkMode, Parked, TaskSpec},
};

use crate::{
    console::Console,
    error::{FsError, FsResult},
    file::{FileOps, OpenFile, OpenFlags, Readiness, ReadyQueues, Wait},
    inode::Metadata,
    io::{Sink, SliceSource, Source},
    pipe::{Pipe, PipeEnd},
};

/// The end that the task writes to, until it has started.
static WRITER: SpinLock<Option<Arc<PipeEnd>>> = SpinLock::new(None);
static STARTED: AtomicBool = AtomicBool::new(false);
/// So long the task waits for memory.
const PATIENCE_NS: u64 = 10_000_000;

/// The read end.
pub struct PipedInput(Arc<PipeEnd>);

/// Takes the console's input away from the terminal; the result is what reads it.
pub fn open() -> Arc<OpenFile> {
    Console::get().give_up_input();
    let (reader, writer) = Pipe::new().ends();
    *WRITER.lock() = Some(writer);
    OpenFile::new(Arc::new(PipedInput(reader)), OpenFlags::empty())
}

impl PipedInput {
    /// Bytes that can be read now (FIONREAD).
    pub fn input_len(&self) -> usize {
        // Without memory for it there is nothing to read, and a read says so.
        let _ = start_task();
        self.0.input_len()
    }
}

fn start_task() -> FsResult<()> {
    if STARTED.load(Ordering::Relaxed) || STARTED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    // Refused, the next who reads or polls tries again.
    rt::rt().spawn(TaskSpec::kernel("stdin", task)).inspect_err(|_| STARTED.store(false, Ordering::Relaxed))?;
    Ok(())
}

fn task(_: usize) {
    let Some(writer) = WRITER.lock().take() else { return };
    let mut decoder = Decoder::new();
    let mut bytes = [0; 512];
    while !decoder.has_ended() {
        let len = rt::rt().console_read(&mut bytes);
        if len == 0 {
            if rt::rt().console_wait_input(None) == Parked::Interrupted {
                rt::rt().current().clear_interrupt();
            }
            continue;
        }
        let len = decoder.decode(&mut bytes[..len]);
        if !pass_on(&writer, &bytes[..len]) {
            return;
        }
    }
}

/// False: nobody is left who could read it.
fn pass_on(writer: &PipeEnd, bytes: &[u8]) -> bool {
    let mut source = SliceSource::new(bytes);
    while source.remaining() > 0 {
        match writer.write(0, &mut source, Wait::Allowed) {
            Ok(_) => {}
            Err(FsError::BrokenPipe) => return false,
            Err(FsError::Interrupted) => rt::rt().current().clear_interrupt(),
            // There is no memory for a page: nothing may be lost, so it waits.
            Err(_) => drop(rt::rt().park(Some(rt::rt().now_ns() + PATIENCE_NS), ParkMode::Uninterruptible)),
        }
    }
    true
}

impl FileOps for PipedInput {
    fn read(&self, at: u64, out: &mut dyn Sink, wait: Wait) -> FsResult<usize> {
        start_task()?;
        self.0.read(at, out, wait)
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn metadata(&self) -> FsResult<Metadata> {
        self.0.metadata()
    }

    fn readiness(&self) -> Readiness {
        if start_task().is_err() {
            return Readiness::ERROR;
        }
        self.0.readiness()
    }

    fn ready_queues(&self) -> ReadyQueues<'_> {
        self.0.ready_queues()
    }

    fn reopen(&self, flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        start_task()?;
        self.0.reopen(flags)
    }

    fn description(&self) -> Vec<u8> {
        self.0.description()
    }
}
