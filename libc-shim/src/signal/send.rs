//! Sending: queue a signal on a program or a thread, and wake who has to act on it.
use rt::task::TaskRef;

use super::{Action, SIGKILL, SigInfo, SigSet};
use crate::{
    errno::{EAGAIN, SysResult},
    program::{ExitStatus, Program},
    thread::Thread,
};

/// Sends to the program as a whole: any thread that does not block the signal may take it. EAGAIN
/// if its queue is full.
pub fn to_program(program: &Program, info: SigInfo) -> SysResult<()> {
    if info.signal == SIGKILL {
        program.end(ExitStatus::Signal(SIGKILL as u8));
        return Ok(());
    }
    let mut signals = program.signals.lock();
    let threads = program.threads.lock();
    let mut taker: Option<&TaskRef> = None;
    let mut waiting: Option<&TaskRef> = None;
    let mut blocked_somewhere = false;
    for task in threads.iter() {
        let Some(thread) = Thread::of(task) else { continue };
        let state = thread.signals.lock();
        if state.waited_for.has(info.signal) {
            waiting = Some(task);
        }
        if state.mask.has(info.signal) {
            blocked_somewhere = true;
        } else if taker.is_none() {
            taker = Some(task);
        }
    }
    if signals.is_ignored(info.signal) && !blocked_somewhere && waiting.is_none() {
        return Ok(());
    }
    if !signals.pending.add(info) {
        return Err(EAGAIN);
    }
    program.publish_pending(signals.pending.set());
    // A thread may have unblocked the signal since its mask was read: it looks at the published set
    // after it has changed its mask, so it finds it by itself.
    if let Some(task) = waiting {
        task.interrupt();
    } else if let Some(task) = taker {
        task.interrupt();
    }
    Ok(())
}

/// Sends to one thread.
pub fn to_thread(task: &TaskRef, thread: &Thread, info: SigInfo) -> SysResult<()> {
    if info.signal == SIGKILL {
        thread.program.end(ExitStatus::Signal(SIGKILL as u8));
        return Ok(());
    }
    let signals = thread.program.signals.lock();
    let mut state = thread.signals.lock();
    let awaited = state.waited_for.has(info.signal);
    let blocked = state.mask.has(info.signal);
    if signals.is_ignored(info.signal) && !blocked && !awaited {
        return Ok(());
    }
    if !state.pending.add(info) {
        return Err(EAGAIN);
    }
    if !blocked || awaited {
        task.interrupt();
    }
    Ok(())
}

/// Raises a signal that the calling thread has caused itself and cannot put off: blocked or ignored,
/// it takes its default action (as Linux' force_sig_info).
pub fn force(task: &TaskRef, thread: &Thread, info: SigInfo) {
    let mut signals = thread.program.signals.lock();
    let mut state = thread.signals.lock();
    let blocked = state.mask.has(info.signal);
    let action = signals.action(info.signal);
    if blocked || action.handler == Action::IGNORE {
        action.handler = Action::DEFAULT;
        state.mask = state.mask.without(SigSet::of(info.signal));
    }
    // A full queue cannot be: the signal is a standard one, of which one more always fits; if one is
    // pending already, that one does.
    state.pending.add(info);
    task.interrupt();
}
