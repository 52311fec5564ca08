//! Delivery: what a thread does about its signals before it returns to application code.
//!
//! Runs on the receiving thread only, from the end of an interrupted system call
//! ([`crate::dispatch`]), a fault, or the exit work that an interrupt asks for.
use rt::{
    regs::{TrapFrame, VECTOR_STATE_BYTES, VectorState},
    rt,
};

use super::{
    Action, Default as DefaultAction, SIGSEGV, SigInfo, SigSet, default_action,
    frame::{self, Context, FRAME_BYTES},
    sa, send,
};
use crate::{
    call::{Ctx, Ending},
    errno::{ERESTARTSYS, Errno},
    program::ExitStatus,
};

/// End of the addresses that code may have; a return beyond it would fault in the kernel.
pub const CODE_END: u64 = 0x7fff_ffff_f000;
/// Below rsp, the ABI leaves this much to the interrupted function (AMD64 supplement, 3.2.2).
const RED_ZONE: u64 = 128;

/// Acts on everything that is pending and not blocked. `interrupted` is the restart code of the
/// system call that was cut short. True if a handler will run, or the thread ends: the frame then
/// has the call's result, and the call is not repeated by the caller.
pub fn deliver(cx: &mut Ctx<'_>, mut interrupted: Option<Errno>) -> bool {
    let mut handled = false;
    loop {
        // Cleared first: whoever interrupts after this has work that the look below may miss.
        cx.task.clear_interrupt();
        if let Some(status) = cx.thread.program.ending() {
            cx.ending = Some(Ending::Program(status));
            return true;
        }
        let Some((info, action)) = take(cx) else {
            // Under the mask that comes back there may be more: a call that were repeated instead would be
            // interrupted for it at once, and again and again.
            if !handled && restore_saved_mask(cx) {
                continue;
            }
            break;
        };
        match action.handler {
            Action::IGNORE => {}
            Action::DEFAULT => match default_action(info.signal) {
                DefaultAction::Ignore => {}
                DefaultAction::Stop => {
                    log::warn!(
                        "pid {}: signal {} would stop it; job control is not supported",
                        cx.thread.program.pid,
                        info.signal
                    );
                }
                DefaultAction::Terminate | DefaultAction::Core => {
                    cx.thread.program.end(ExitStatus::Signal(info.signal as u8));
                    cx.note_fatal(&info);
                }
            },
            _ => {
                if let Some(code) = interrupted.take() {
                    settle_interrupted_call(cx.frame, code, &action);
                }
                if !enter_handler(cx, &info, &action) {
                    // If it is SIGSEGV's own frame that has no place, its handler would have none again.
                    match info.signal {
                        SIGSEGV => send::force_fatal(cx.task, cx.thread, SigInfo::from_kernel(SIGSEGV)),
                        _ => send::force(cx.task, cx.thread, SigInfo::from_kernel(SIGSEGV)),
                    }
                    continue;
                }
                handled = true;
            }
        }
    }
    if !cx.thread.program.pending_set().is_empty() {
        // What is left is blocked here; this thread may have been the one that was chosen for it.
        let blocked = cx.thread.signals.lock().mask;
        send::hand_over(&cx.thread.program, cx.task, blocked);
    }
    handled
}

/// The first deliverable signal and its action, with SA_RESETHAND applied.
fn take(cx: &mut Ctx<'_>) -> Option<(SigInfo, Action)> {
    let program = &cx.thread.program;
    let mut signals = program.signals.lock();
    let mut state = cx.thread.signals.lock();
    let open = SigSet(!state.mask.0);
    let info = match state.pending.take(open) {
        Some(info) => info,
        None => {
            let info = signals.pending.take(open)?;
            program.publish_pending(signals.pending.set());
            info
        }
    };
    let entry = signals.action(info.signal);
    let action = *entry;
    if action.has(sa::RESETHAND) && action.handler > Action::IGNORE {
        entry.handler = Action::DEFAULT;
    }
    Some((info, action))
}

/// Decides, once a handler is sure to run, whether the call it interrupted is repeated after it.
fn settle_interrupted_call(frame: &mut TrapFrame, code: Errno, action: &Action) {
    const SYSCALL_BYTES: u64 = 2;
    if code == ERESTARTSYS && action.has(sa::RESTART) {
        frame.rax = frame.error;
        frame.rip -= SYSCALL_BYTES;
    } else {
        frame.rax = crate::errno::EINTR.as_result();
    }
}

/// Builds the frame and points the registers at the handler. False if the stack cannot take it.
fn enter_handler(cx: &mut Ctx<'_>, info: &SigInfo, action: &Action) -> bool {
    let state = cx.thread.signals.lock();
    let mask_to_restore = state.saved_mask.unwrap_or(state.mask);
    let alt_stack = state.alt_stack;
    let blocked = if action.has(sa::NODEFER) { SigSet::EMPTY } else { SigSet::of(info.signal) };
    drop(state);

    let mut vectors = VectorState { bytes: [0; VECTOR_STATE_BYTES], len: 0, features: 0 };
    cx.task.save_vectors(cx.frame, &mut vectors);
    frame::mark_vector_area(&mut vectors);

    let on_alt = action.has(sa::ONSTACK) && alt_stack.size != 0 && !alt_stack.contains(cx.frame.rsp);
    let top = if on_alt { alt_stack.base.wrapping_add(alt_stack.size) } else { cx.frame.rsp.wrapping_sub(RED_ZONE) };
    let vectors_at = top.wrapping_sub(frame::vector_area_bytes(&vectors) as u64) & !63;
    // At the handler's first instruction rsp + 8 is a multiple of 16, as after a call.
    let frame_at = (vectors_at.wrapping_sub(FRAME_BYTES as u64) & !15).wrapping_sub(8);
    let nested_on_alt = alt_stack.size != 0 && alt_stack.contains(cx.frame.rsp) && !on_alt;
    if (on_alt || nested_on_alt) && frame_at < alt_stack.base {
        return false;
    }

    let registers = TrapFrame { rflags: cx.frame.rflags, ..*cx.frame };
    let context = Context {
        registers,
        fault: cx.thread.fault_record(),
        mask: mask_to_restore,
        alt_stack: Some(alt_stack),
        vectors: vectors_at,
        extended: vectors.len > 512,
    };
    if action.handler >= CODE_END
        || !action.has(sa::RESTORER)
        || write_frame(frame_at, &context, action.restorer, info, &vectors).is_err()
    {
        return false;
    }

    let mut state = cx.thread.signals.lock();
    state.saved_mask = None;
    state.mask = SigSet(state.mask.0 | action.mask.0).with(blocked).blockable();
    if alt_stack.autodisarm {
        state.alt_stack = super::AltStack::default();
    }
    drop(state);

    let r = &mut *cx.frame;
    r.vector = TrapFrame::REPLACED;
    r.rip = action.handler;
    r.rsp = frame_at;
    r.rdi = u64::from(info.signal);
    r.rsi = frame_at + 8 + frame::UCONTEXT_BYTES as u64;
    r.rdx = frame_at + 8;
    r.rax = 0;
    // DF, RF and TF are clear at a handler's entry.
    r.rflags = frame::sanitise_flags(r.rflags & !0x0001_0500, r.rflags);
    true
}

fn write_frame(
    at: u64,
    context: &Context,
    restorer: u64,
    info: &SigInfo,
    vectors: &VectorState,
) -> Result<(), rt::user::BadAddress> {
    let user = rt().user();
    user.write(context.vectors, &vectors.bytes[..vectors.len])?;
    if context.extended {
        user.write(context.vectors + vectors.len as u64, &frame::VECTOR_TRAILER)?;
    }
    user.write(at, &context.to_bytes(restorer, info))
}

/// Puts the mask back that sigsuspend or ppoll had replaced, when no handler ran to do it. False: none had.
pub fn restore_saved_mask(cx: &Ctx<'_>) -> bool {
    let mut state = cx.thread.signals.lock();
    let Some(mask) = state.saved_mask.take() else { return false };
    state.mask = mask;
    drop(state);
    cx.thread.recheck_pending(cx.task);
    true
}
