//! One system call in progress: the calling thread, its registers, and how the call ends.
use alloc::sync::Arc;

use rt::{regs::TrapFrame, rt, task::TaskRef};

use crate::{
    program::{ExitStatus, Program},
    signal::{Default as DefaultAction, SigInfo, default_action},
    thread::Thread,
};

/// What the thread does instead of returning to application code. The dispatcher acts on it when no
/// reference is held any more, since an ended task never drops what is on its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// exit(2): this thread alone.
    Thread(u8),
    /// The program ends; its other threads have been told.
    Program(ExitStatus),
}

/// What handlers get.
pub struct Ctx<'a> {
    pub task: &'a TaskRef,
    pub thread: &'a Thread,
    pub frame: &'a mut TrapFrame,
    /// Set by a handler or a signal: the call does not return.
    pub ending: Option<Ending>,
    deadline_ns: Option<u64>,
}

impl<'a> Ctx<'a> {
    pub fn new(task: &'a TaskRef, thread: &'a Thread, frame: &'a mut TrapFrame) -> Self {
        Self { task, thread, frame, ending: None, deadline_ns: None }
    }

    /// The registers that hold a call's arguments, in their order.
    #[inline]
    pub fn arguments(&self) -> [u64; 6] {
        let frame = &*self.frame;
        [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9]
    }

    pub fn program(&self) -> &'a Arc<Program> {
        &self.thread.program
    }

    /// The deadline of a call with a relative timeout, on the [`rt::Runtime::now_ns`] clock. If the
    /// call is repeated after an interruption without a handler, the first deadline stays.
    pub fn deadline_after(&mut self, wait_ns: u64) -> u64 {
        *self.deadline_ns.get_or_insert_with(|| rt().now_ns().saturating_add(wait_ns))
    }

    /// One line about a fatal signal, as a shell would print it.
    pub fn note_fatal(&self, info: &SigInfo) {
        let what = match info.signal {
            1 => "Hangup",
            2 => return,
            4 => "Illegal instruction",
            5 => "Trace/breakpoint trap",
            6 => "Aborted",
            7 => "Bus error",
            8 => "Floating point exception",
            9 => "Killed",
            11 => "Segmentation fault",
            13 => return,
            15 => "Terminated",
            _ => "Ended by a signal",
        };
        let program = self.program();
        if default_action(info.signal) == DefaultAction::Core {
            log::error!(
                "{}[{}]: {what} (signal {}, code {}, address {:#x}) at rip {:#x}, rsp {:#x}",
                program.name(),
                self.thread.tid(),
                info.signal,
                info.code,
                // Of a sent signal this is the sender, not an address.
                if info.code > 0 { info.fields[0] } else { 0 },
                self.frame.rip,
                self.frame.rsp
            );
        } else {
            log::error!("{}[{}]: {what}", program.name(), self.thread.tid());
        }
    }
}
