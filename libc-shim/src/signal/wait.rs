//! Waiting for signals: rt_sigtimedwait, rt_sigsuspend, pause, and the temporary masks of ppoll and
//! its like.
use rt::{
    rt,
    task::{ParkMode, Parked},
};

use super::{SigInfo, SigSet, calls::read_set, send};
use crate::{
    args::{Addr, TimespecIn},
    call::Ctx,
    errno::{EAGAIN, EINTR, ERESTARTNOHAND, SysResult},
    time::read_timespec,
};

/// rt_sigsuspend(2): waits under another mask. The old one comes back when a handler returns.
pub fn rt_sigsuspend(cx: &mut Ctx<'_>, mask: Addr, set_bytes: u64) -> SysResult {
    let mask = read_set(mask, set_bytes)?;
    set_temporary_mask(cx, mask);
    pause(cx)
}

/// pause(2).
pub fn pause(_cx: &mut Ctx<'_>) -> SysResult {
    while rt().park(None, ParkMode::Interruptible) != Parked::Interrupted {}
    Err(ERESTARTNOHAND)
}

/// Replaces the mask until the call ends or a handler returns.
pub fn set_temporary_mask(cx: &Ctx<'_>, mask: SigSet) {
    let mut state = cx.thread.signals.lock();
    let old = state.mask;
    state.mask = mask.blockable();
    // A restarted call keeps the mask of its first start.
    state.saved_mask.get_or_insert(old);
    drop(state);
    cx.thread.recheck_pending(cx.task);
}

/// rt_sigtimedwait(2), sigwaitinfo(2).
pub fn rt_sigtimedwait(cx: &mut Ctx<'_>, set: Addr, info: Addr, timeout: TimespecIn, set_bytes: u64) -> SysResult {
    let wanted = read_set(set, set_bytes)?.blockable();
    let deadline = match timeout.0.is_null() {
        true => None,
        false => {
            let wait_ns = read_timespec(timeout.0)?;
            Some(cx.deadline_after(wait_ns))
        }
    };
    cx.thread.signals.lock().waited_for = wanted;
    let taken = loop {
        if let Some(taken) = take(cx, wanted) {
            break Ok(taken);
        }
        match rt().park(deadline, ParkMode::Interruptible) {
            Parked::Woken => {}
            Parked::TimedOut => break take(cx, wanted).ok_or(EAGAIN),
            Parked::Interrupted => {
                // Both a wanted signal and another one interrupt.
                cx.task.clear_interrupt();
                break take(cx, wanted).ok_or(EINTR);
            }
        }
    };
    cx.thread.signals.lock().waited_for = SigSet::EMPTY;
    cx.thread.recheck_pending(cx.task);
    let blocked = cx.thread.signals.lock().mask;
    send::hand_over(&cx.thread.program, cx.task, blocked);
    if cx.thread.program.ending().is_some() {
        cx.task.interrupt();
    }
    let taken = taken?;
    if !info.is_null() {
        info.write(&taken.to_bytes())?;
    }
    Ok(u64::from(taken.signal))
}

fn take(cx: &Ctx<'_>, wanted: SigSet) -> Option<SigInfo> {
    let program = &cx.thread.program;
    let mut signals = program.signals.lock();
    let mut state = cx.thread.signals.lock();
    state.pending.take(wanted).or_else(|| {
        let info = signals.pending.take(wanted)?;
        program.publish_pending(signals.pending.set());
        Some(info)
    })
}
