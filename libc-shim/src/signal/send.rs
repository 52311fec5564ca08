//! Sending: queue a signal on a program or a thread, and wake who has to act on it.
use rt::task::TaskRef;

use super::{Action, Pending, SIGKILL, SigInfo, SigSet, ThreadSignals};
use crate::{
    errno::{EAGAIN, SysResult},
    program::{ExitStatus, Program},
    thread::Thread,
};

/// Sends to the program as a whole: any thread that does not block the signal may take it. EAGAIN
/// if too many are queued.
pub fn to_program(program: &Program, info: SigInfo) -> SysResult<()> {
    send_to_program(program, info, queue)
}

/// Sends to one thread.
pub fn to_thread(task: &TaskRef, thread: &Thread, info: SigInfo) -> SysResult<()> {
    send_to_thread(task, thread, info, queue)
}

/// As [`to_program`], for a timer: while its last signal waits, no other is queued, but this one's
/// expirations are counted there. The result is the overrun that the signal shows.
pub fn timer_to_program(program: &Program, info: SigInfo) -> SysResult<u64> {
    let mut overrun = 0;
    send_to_program(program, info, |pending, info| merge(pending, info).map(|shown| overrun = shown))?;
    Ok(overrun)
}

/// As [`timer_to_program`], for one thread (SIGEV_THREAD_ID).
pub fn timer_to_thread(task: &TaskRef, thread: &Thread, info: SigInfo) -> SysResult<u64> {
    let mut overrun = 0;
    send_to_thread(task, thread, info, |pending, info| merge(pending, info).map(|shown| overrun = shown))?;
    Ok(overrun)
}

fn queue(pending: &mut Pending, info: SigInfo) -> SysResult<()> {
    if pending.add(info) { Ok(()) } else { Err(EAGAIN) }
}

fn merge(pending: &mut Pending, info: SigInfo) -> SysResult<u64> {
    let (timer_id, overrun) = (info.fields[0] as i32, info.fields[0] >> 32);
    match pending.merge_timer(info.signal, timer_id, overrun + 1) {
        Some(overrun) => Ok(overrun),
        None => queue(pending, info).map(|()| overrun),
    }
}

fn send_to_program(
    program: &Program,
    info: SigInfo,
    queue: impl FnOnce(&mut Pending, SigInfo) -> SysResult<()>,
) -> SysResult<()> {
    if info.signal == SIGKILL {
        program.end(ExitStatus::Signal(SIGKILL as u8));
        return Ok(());
    }
    let mut signals = program.signals.lock();
    let threads = program.threads.lock();
    if signals.is_ignored(info.signal) {
        let awaited = |thread: &Thread| {
            let state = thread.signals.lock();
            state.mask.has(info.signal) || state.waited_for.has(info.signal)
        };
        if !threads.iter().filter_map(Thread::of).any(awaited) {
            return Ok(());
        }
    }
    queue(&mut signals.pending, info)?;
    // Before the masks are looked at: who unblocks the signal afterwards finds it there by itself.
    program.publish_pending(signals.pending.set());
    wake_takers(&threads, SigSet::of(info.signal), None);
    Ok(())
}

/// Interrupts, for each of `signals`, a thread that waits for it, or one that does not block it.
fn wake_takers(threads: &[TaskRef], mut signals: SigSet, except: Option<&TaskRef>) {
    let others = || threads.iter().filter(|task| except.is_none_or(|except| except.id() != task.id()));
    for of_thread in [|state: &ThreadSignals| state.waited_for, |state: &ThreadSignals| SigSet(!state.mask.0)] {
        for task in others() {
            if signals.is_empty() {
                return;
            }
            let Some(thread) = Thread::of(task) else { continue };
            let takes = SigSet(signals.0 & of_thread(&thread.signals.lock()).0);
            if !takes.is_empty() {
                task.interrupt();
                signals = signals.without(takes);
            }
        }
    }
}

/// Other threads get those of the program's pending signals that `own` may have been chosen for and does
/// not take: it has blocked them since, or it ends (Linux' retarget_shared_pending).
pub fn hand_over(program: &Program, own: &TaskRef, blocked: SigSet) {
    if program.pending_set().0 & blocked.0 == 0 {
        return;
    }
    let signals = program.signals.lock();
    let threads = program.threads.lock();
    wake_takers(&threads, SigSet(signals.pending.set().0 & blocked.0), Some(own));
}

fn send_to_thread(
    task: &TaskRef,
    thread: &Thread,
    info: SigInfo,
    queue: impl FnOnce(&mut Pending, SigInfo) -> SysResult<()>,
) -> SysResult<()> {
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
    queue(&mut state.pending, info)?;
    if !blocked || awaited {
        task.interrupt();
    }
    Ok(())
}

/// Raises a signal that the calling thread has caused itself and cannot put off: blocked or ignored,
/// it takes its default action (as Linux' force_sig_info).
pub fn force(task: &TaskRef, thread: &Thread, info: SigInfo) {
    force_with(task, thread, info, false);
}

/// As [`force`], but no handler gets it: it ends the program (as Linux' force_fatal_sig).
pub fn force_fatal(task: &TaskRef, thread: &Thread, info: SigInfo) {
    force_with(task, thread, info, true);
}

fn force_with(task: &TaskRef, thread: &Thread, info: SigInfo, fatal: bool) {
    let mut signals = thread.program.signals.lock();
    let mut state = thread.signals.lock();
    let blocked = state.mask.has(info.signal);
    let action = signals.action(info.signal);
    if fatal || blocked || action.handler == Action::IGNORE {
        action.handler = Action::DEFAULT;
        state.mask = state.mask.without(SigSet::of(info.signal));
    }
    // It cannot be refused, being a standard signal; if one is pending already, that one does.
    state.pending.add(info);
    task.interrupt();
}
