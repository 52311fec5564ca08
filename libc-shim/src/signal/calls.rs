//! The signal calls: actions, masks, alternate stacks, sending, and the return from a handler.
use rt::{
    regs::{TrapFrame, VECTOR_STATE_BYTES, VectorState},
    rt,
};

use super::{
    Action, AltStack, Default as DefaultAction, SI_TKILL, SI_USER, SIGNALS, SIGSEGV, SigInfo, SigSet, default_action,
    deliver::CODE_END,
    frame::{self, Context, UCONTEXT_BYTES},
    send,
};
use crate::{
    args::{
        Addr,
        names::{MaskHow, Signal},
    },
    call::Ctx,
    errno::{EFAULT, EINVAL, EPERM, ESRCH, SysResult},
    program, thread,
    thread::Thread,
};

/// The kernel's signal sets have 8 bytes; another size is EINVAL.
pub fn read_set(at: Addr, set_bytes: u64) -> SysResult<SigSet> {
    check_set_bytes(set_bytes)?;
    at.read_u64().map(SigSet)
}

fn check_set_bytes(set_bytes: u64) -> SysResult<()> {
    if set_bytes == 8 { Ok(()) } else { Err(EINVAL) }
}

/// A signal number of a call that changes something.
fn checked(signal: Signal) -> SysResult<u32> {
    match signal.0 {
        1..=64 => Ok(signal.0 as u32),
        _ => Err(EINVAL),
    }
}

/// rt_sigaction(2).
pub fn rt_sigaction(cx: &mut Ctx<'_>, signal: Signal, new: Addr, old: Addr, set_bytes: u64) -> SysResult {
    check_set_bytes(set_bytes)?;
    let wanted = match new.is_null() {
        true => None,
        false => Some(Action::from_bytes(&new.read()?)),
    };
    let signal = checked(signal)?;
    if wanted.is_some() && SigSet::UNBLOCKABLE.has(signal) {
        return Err(EINVAL);
    }
    let program = &cx.thread.program;
    let mut signals = program.signals.lock();
    let before = *signals.action(signal);
    if let Some(action) = wanted {
        *signals.action(signal) = action;
        if action.handler == Action::IGNORE
            || (action.handler == Action::DEFAULT && default_action(signal) == DefaultAction::Ignore)
        {
            signals.pending.forget(SigSet::of(signal));
            program.publish_pending(signals.pending.set());
            for task in program.threads.lock().iter() {
                if let Some(thread) = Thread::of(task) {
                    thread.signals.lock().pending.forget(SigSet::of(signal));
                }
            }
        }
    }
    drop(signals);
    if !old.is_null() {
        old.write(&before.to_bytes())?;
    }
    Ok(0)
}

/// rt_sigprocmask(2).
pub fn rt_sigprocmask(cx: &mut Ctx<'_>, how: MaskHow, new: Addr, old: Addr, set_bytes: u64) -> SysResult {
    check_set_bytes(set_bytes)?;
    let wanted = match new.is_null() {
        true => None,
        false => Some(SigSet(new.read_u64()?)),
    };
    let mut state = cx.thread.signals.lock();
    let before = state.mask;
    if let Some(set) = wanted {
        let mask = match how.0 {
            MaskHow::BLOCK => before.with(set),
            MaskHow::UNBLOCK => before.without(set),
            MaskHow::SETMASK => set,
            _ => return Err(EINVAL),
        };
        state.mask = mask.blockable();
    }
    drop(state);
    if wanted.is_some() {
        cx.thread.recheck_pending(cx.task);
    }
    if !old.is_null() {
        old.write(&before.0.to_le_bytes())?;
    }
    Ok(0)
}

/// rt_sigpending(2).
pub fn rt_sigpending(cx: &mut Ctx<'_>, set: Addr, set_bytes: u64) -> SysResult {
    if set_bytes > 8 {
        return Err(EINVAL);
    }
    let state = cx.thread.signals.lock();
    let pending = state.pending.set().0 | cx.thread.program.pending_set().0;
    let bytes = (pending & state.mask.0).to_le_bytes();
    drop(state);
    set.write(&bytes[..set_bytes as usize])?;
    Ok(0)
}

/// sigaltstack(2).
pub fn sigaltstack(cx: &mut Ctx<'_>, new: Addr, old: Addr) -> SysResult {
    let before = cx.thread.signals.lock().alt_stack;
    let before_bytes = frame::stack_bytes(&before, cx.frame.rsp);
    if !new.is_null() {
        let (base, flags, size) = frame::stack_fields(&new.read()?);
        if before.size != 0 && before.contains(cx.frame.rsp) {
            return Err(EPERM);
        }
        let wanted = AltStack::from_parts(base, flags, size)?;
        cx.thread.signals.lock().alt_stack = wanted;
    }
    if !old.is_null() {
        old.write(&before_bytes)?;
    }
    Ok(0)
}

/// rt_sigreturn(2): everything comes from the frame that the handler's return left at rsp.
pub fn rt_sigreturn(cx: &mut Ctx<'_>) -> SysResult {
    // The restorer was reached by `ret`, which took pretcode off.
    let frame_at = cx.frame.rsp;
    let Ok((registers, mask, alt_stack)) = read_frame(cx) else {
        send::force(cx.task, cx.thread, SigInfo::from_kernel(SIGSEGV));
        return Ok(cx.frame.rax);
    };
    *cx.frame = registers;
    // Every register counts now, rcx and r11 as well.
    cx.frame.vector = TrapFrame::REPLACED;
    let mut state = cx.thread.signals.lock();
    state.mask = mask;
    // As Linux, which goes through sigaltstack here: not while the stack is in use, and only if valid.
    if let Some(alt_stack) = alt_stack.filter(|_| !state.alt_stack.contains(frame_at)) {
        state.alt_stack = alt_stack;
    }
    drop(state);
    cx.thread.recheck_pending(cx.task);
    Ok(cx.frame.rax)
}

fn read_frame(cx: &mut Ctx<'_>) -> SysResult<(TrapFrame, SigSet, Option<AltStack>)> {
    let bytes: [u8; UCONTEXT_BYTES] = Addr(cx.frame.rsp).read()?;
    let context = Context::from_ucontext(&bytes, cx.frame);
    let mut registers = context.registers;
    if registers.rip >= CODE_END {
        return Err(EFAULT);
    }
    if context.vectors != 0 {
        let mut state = VectorState { bytes: [0; VECTOR_STATE_BYTES], len: 512, features: 0 };
        let fxsave: [u8; 512] = Addr(context.vectors).read()?;
        state.bytes[..512].copy_from_slice(&fxsave);
        if let Some((len, features)) = frame::extended_len(&fxsave).filter(|_| context.extended) {
            rt().user().read(&mut state.bytes[512..len], context.vectors + 512)?;
            let trailer: [u8; 4] = Addr(context.vectors + len as u64).read()?;
            if trailer == frame::VECTOR_TRAILER {
                (state.len, state.features) = (len, features);
            }
        }
        if !cx.task.load_vectors(&mut registers, &state) {
            return Err(EFAULT);
        }
    }
    Ok((registers, context.mask, context.alt_stack))
}

/// kill(2). Process groups and sessions do not exist yet: each program is its own group.
pub fn kill(cx: &mut Ctx<'_>, pid: i32, signal: Signal) -> SysResult {
    let target = match pid {
        0 => cx.thread.program.clone(),
        // All but the caller and the first program, which is ESRCH where there are no others (kill(2)).
        -1 => return Err(ESRCH),
        _ => program::by_pid(pid.unsigned_abs()).ok_or(ESRCH)?,
    };
    if signal.0 == 0 {
        return Ok(0);
    }
    let info = SigInfo::from_sender(checked(signal)?, SI_USER, cx.thread.program.pid);
    send::to_program(&target, info)?;
    Ok(0)
}

/// tkill(2).
pub fn tkill(cx: &mut Ctx<'_>, tid: i32, signal: Signal) -> SysResult {
    send_to_tid(cx, None, tid, signal)
}

/// tgkill(2).
pub fn tgkill(cx: &mut Ctx<'_>, pid: i32, tid: i32, signal: Signal) -> SysResult {
    if pid <= 0 {
        return Err(EINVAL);
    }
    send_to_tid(cx, Some(pid as u32), tid, signal)
}

fn send_to_tid(cx: &Ctx<'_>, pid: Option<u32>, tid: i32, signal: Signal) -> SysResult {
    if tid <= 0 {
        return Err(EINVAL);
    }
    let task = thread::by_tid(cx, tid as u32, pid).ok_or(ESRCH)?;
    check_number(signal)?;
    if signal.0 != 0 {
        let info = SigInfo::from_sender(signal.0 as u32, SI_TKILL, cx.thread.program.pid);
        send::to_thread(&task, Thread::of(&task).ok_or(ESRCH)?, info)?;
    }
    Ok(0)
}

/// rt_sigqueueinfo(2).
pub fn rt_sigqueueinfo(cx: &mut Ctx<'_>, pid: i32, signal: Signal, info: Addr) -> SysResult {
    let info = queued_info(cx, signal, info, pid)?;
    let target = u32::try_from(pid).ok().and_then(program::by_pid).ok_or(ESRCH)?;
    check_number(signal)?;
    if signal.0 != 0 {
        send::to_program(&target, info)?;
    }
    Ok(0)
}

/// rt_tgsigqueueinfo(2).
pub fn rt_tgsigqueueinfo(cx: &mut Ctx<'_>, pid: i32, tid: i32, signal: Signal, info: Addr) -> SysResult {
    if pid <= 0 || tid <= 0 {
        return Err(EINVAL);
    }
    let info = queued_info(cx, signal, info, pid)?;
    let task = thread::by_tid(cx, tid as u32, Some(pid as u32)).ok_or(ESRCH)?;
    check_number(signal)?;
    if signal.0 != 0 {
        send::to_thread(&task, Thread::of(&task).ok_or(ESRCH)?, info)?;
    }
    Ok(0)
}

/// A signal number of a call that sends: 0 only asks whether the target is there. Linux looks at it after
/// it has found the target.
fn check_number(signal: Signal) -> SysResult<()> {
    if (0..=SIGNALS as i32).contains(&signal.0) { Ok(()) } else { Err(EINVAL) }
}

fn queued_info(cx: &Ctx<'_>, signal: Signal, at: Addr, pid: i32) -> SysResult<SigInfo> {
    let info = SigInfo::from_bytes(signal.0 as u32, &at.read()?);
    // Codes that say "from the kernel" or "from kill" may not be forged for another program.
    let forged = info.code >= 0 || info.code == SI_TKILL;
    if forged && pid != cx.thread.program.pid as i32 {
        return Err(EPERM);
    }
    Ok(info)
}
