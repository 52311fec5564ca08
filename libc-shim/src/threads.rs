//! Threads come and go: clone, exit, and what glibc registers in between.
use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering};

use rt::{
    Extension,
    regs::TrapFrame,
    rt,
    task::{ParkMode, Start, TaskRef, TaskSpec},
};

use crate::{
    args::{
        Addr, Hex,
        flags::{CloneFlags, RseqFlags},
    },
    call::{Ctx, Ending},
    errno::{E2BIG, EAGAIN, EINVAL, ENOSYS, EPERM, ESRCH, SysResult},
    files, futex,
    mm::SPACE_END,
    program::{self, ExitStatus, Program},
    signal::{SigSet, send},
    thread::{self, Thread},
};

/// What clone and clone3 have in common.
struct CloneArgs {
    flags: u64,
    child_tid: u64,
    parent_tid: u64,
    /// rsp of the child; 0: the caller's.
    stack_pointer: u64,
    tls: u64,
}

/// clone(2).
pub fn clone(
    cx: &mut Ctx<'_>,
    flags: CloneFlags,
    stack: Addr,
    parent_tid: Addr,
    child_tid: Addr,
    tls: Hex,
) -> SysResult {
    let args = CloneArgs {
        flags: flags.0 & !0xff,
        child_tid: child_tid.0,
        parent_tid: parent_tid.0,
        stack_pointer: stack.0,
        tls: tls.0,
    };
    start_thread(cx, args)
}

/// clone3(2).
pub fn clone3(cx: &mut Ctx<'_>, args: Addr, size: u64) -> SysResult {
    const SIZE_V0: u64 = 64;
    const SIZE_V2: usize = 88;
    const PAGE: u64 = 4096;
    if size < SIZE_V0 {
        return Err(EINVAL);
    }
    if size > PAGE {
        return Err(E2BIG);
    }
    let mut bytes = [0u8; SIZE_V2];
    let known = (size as usize).min(SIZE_V2);
    rt().user().read(&mut bytes[..known], args.0)?;
    if !rest_is_zero(args.0 + known as u64, size - known as u64)? {
        return Err(E2BIG);
    }
    let word = |index: usize| bytes[index * 8..index * 8 + 8].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
    let (stack, stack_size) = (word(5), word(6));
    let stack_valid =
        (stack == 0) == (stack_size == 0) && stack.checked_add(stack_size).is_some_and(|top| top <= SPACE_END);
    // set_tid needs a privilege over pid namespaces that are not here; cgroup is unknown.
    if !stack_valid || word(4) & !0xff != 0 || word(8) != 0 || word(9) != 0 {
        return Err(EINVAL);
    }
    if word(0) & 0xff != 0 {
        return Err(EINVAL);
    }
    let args = CloneArgs {
        flags: word(0),
        child_tid: word(2),
        parent_tid: word(3),
        stack_pointer: stack + stack_size,
        tls: word(7),
    };
    start_thread(cx, args)
}

/// Whether the application knows no more of a structure than the kernel does (copy_struct_from_user).
pub fn rest_is_zero(mut at: u64, mut len: u64) -> SysResult<bool> {
    while len > 0 {
        let mut piece = [0u8; 64];
        let now = len.min(64) as usize;
        rt().user().read(&mut piece[..now], at)?;
        if piece != [0; 64] {
            return Ok(false);
        }
        at += now as u64;
        len -= now as u64;
    }
    Ok(true)
}

fn start_thread(cx: &mut Ctx<'_>, args: CloneArgs) -> SysResult {
    let has = |bits: u64| args.flags & bits == bits;
    // clone(2): THREAD needs SIGHAND needs VM.
    if has(CloneFlags::THREAD) && !has(CloneFlags::SIGHAND) || has(CloneFlags::SIGHAND) && !has(CloneFlags::VM) {
        return Err(EINVAL);
    }
    let shared_all = CloneFlags::VM | CloneFlags::FS | CloneFlags::FILES | CloneFlags::SIGHAND | CloneFlags::THREAD;
    if !has(shared_all) {
        // A new process (fork, vfork, posix_spawn), or a thread that shares less than pthreads do.
        log::warn!("pid {}: clone with flags {:#x} is not supported: only threads are", cx.program().pid, args.flags);
        return Err(ENOSYS);
    }
    if args.flags
        & (CloneFlags::PIDFD | CloneFlags::NEWNS | CloneFlags::NEWPID | CloneFlags::NEWUSER | CloneFlags::NEWNET)
        != 0
    {
        return Err(EINVAL);
    }

    let mut frame = Box::new(*cx.frame);
    frame.rax = 0;
    frame.vector = TrapFrame::REPLACED;
    if args.stack_pointer != 0 {
        frame.rsp = args.stack_pointer;
    }
    let fs_base = if has(CloneFlags::SETTLS) { args.tls } else { cx.task.fs_base() };
    if fs_base >= SPACE_END {
        return Err(EPERM);
    }

    let mut thread = Thread::new(cx.program().clone(), &cx.thread.name());
    thread.settings = cx.thread.settings.inherited();
    let thread = Arc::new(thread);
    thread.signals.lock().mask = cx.thread.signals.lock().mask;
    if has(CloneFlags::CHILD_CLEARTID) {
        thread.clear_child_tid.store(args.child_tid, Ordering::Relaxed);
    }
    let spec = TaskSpec {
        name: thread.name_string(),
        start: Start::Application { frame, fs_base, inherit_vectors: true },
        extension: Some(Extension::new(thread.clone())),
        affinity: cx.task.affinity(),
        nice: cx.task.nice(),
    };
    let mut stored = Ok(());
    let spawned = rt().spawn_prepared(spec, &mut |task| {
        let tid = task.id() as u32;
        thread.set_tid(tid);
        if has(CloneFlags::PARENT_SETTID) {
            stored = Addr(args.parent_tid).write(&tid.to_le_bytes());
        }
        if has(CloneFlags::CHILD_SETTID) {
            // The child would write it itself on Linux, where a failure goes unseen as well.
            let _ = Addr(args.child_tid).write(&tid.to_le_bytes());
        }
        cx.thread.program.threads.lock().push(task.clone());
    });
    let Ok(task) = spawned else {
        log::warn!("pid {}: no memory for another thread", cx.program().pid);
        return Err(EAGAIN);
    };
    if cx.program().ending().is_some() {
        // `end` may have looked at the list before the thread was on it.
        task.interrupt();
    }
    // Linux checks PARENT_SETTID's address when the thread exists already, and ignores the failure.
    let _ = stored;
    Ok(u64::from(thread.tid()))
}

/// fork(2), vfork(2).
pub fn refuse_fork(_cx: &mut Ctx<'_>) -> SysResult {
    Err(ENOSYS)
}

/// set_tid_address(2).
pub fn set_tid_address(cx: &mut Ctx<'_>, at: Addr) -> SysResult {
    cx.thread.clear_child_tid.store(at.0, Ordering::Relaxed);
    Ok(u64::from(cx.thread.tid()))
}

/// set_robust_list(2).
pub fn set_robust_list(cx: &mut Ctx<'_>, head: Addr, len: u64) -> SysResult {
    if len != 24 {
        return Err(EINVAL);
    }
    cx.thread.robust_list.store(head.0, Ordering::Relaxed);
    Ok(0)
}

/// get_robust_list(2).
pub fn get_robust_list(cx: &mut Ctx<'_>, tid: i32, head: Addr, len: Addr) -> SysResult {
    let list = match tid {
        0 => cx.thread.robust_list.load(Ordering::Relaxed),
        _ => {
            let task = thread::by_tid(cx, tid as u32, None).ok_or(ESRCH)?;
            Thread::of(&task).ok_or(ESRCH)?.robust_list.load(Ordering::Relaxed)
        }
    };
    len.write(&24u64.to_le_bytes())?;
    head.write(&list.to_le_bytes())?;
    Ok(0)
}

/// rseq(2): refused. Restartable sequences need cpu_id to be right at every preemption, which is the
/// scheduler's to promise; glibc works without (its sched_getcpu then asks the kernel).
pub fn rseq(_cx: &mut Ctx<'_>, _area: Addr, _len: u32, _flags: RseqFlags, _signature: Hex) -> SysResult {
    Err(ENOSYS)
}

/// exit(2).
pub fn exit(cx: &mut Ctx<'_>, code: i32) -> SysResult {
    cx.ending = Some(Ending::Thread(code as u8));
    Ok(0)
}

/// exit_group(2).
pub fn exit_group(cx: &mut Ctx<'_>, code: i32) -> SysResult {
    cx.program().end(ExitStatus::Code(code as u8));
    cx.ending = Some(Ending::Program(cx.program().ending().unwrap_or(ExitStatus::Code(code as u8))));
    Ok(0)
}

/// Everything a thread leaves behind. Afterwards only [`rt::Runtime::exit_task`] remains.
pub fn leave(cx: &Ctx<'_>, ending: Ending) {
    let program = cx.program();
    if let Ending::Program(status) = ending
        && program.is_init()
    {
        // Nothing outlives the first program: no need to wait for its other threads.
        power_off(status);
    }
    let robust = cx.thread.robust_list.load(Ordering::Relaxed);
    if robust != 0 {
        futex::walk_robust_list(cx, robust);
    }
    let clear = cx.thread.clear_child_tid.load(Ordering::Relaxed);
    if clear != 0 && Addr(clear).write(&0u32.to_le_bytes()).is_ok() {
        futex::wake(clear, 1, u32::MAX);
    }
    if let Ending::Thread(code) = ending
        && cx.thread.tid() == program.pid
    {
        program.main_code.store(code, Ordering::Relaxed);
    }
    let last = program.remove_thread(cx.task);
    send::hand_over(program, cx.task, SigSet(u64::MAX));
    if last {
        let status = program.ending().unwrap_or(match ending {
            Ending::Thread(_) => ExitStatus::Code(program.main_code.load(Ordering::Relaxed)),
            Ending::Program(status) => status,
        });
        end_program(cx, status);
    }
}

/// The last thread has left: gives everything back.
fn end_program(cx: &Ctx<'_>, status: ExitStatus) {
    let program = cx.program();
    if program.is_init() {
        power_off(status);
    }
    files::open::close_each(program, 0, u32::MAX);
    let timers = core::mem::take(&mut *program.timers.lock());
    let interval_timer = program.interval_timer.lock().take();
    drop((timers, interval_timer));
    rt().address_space().release(program.owner);
    program::unregister(program.pid);
}

fn power_off(status: ExitStatus) -> ! {
    if !fs::cache::writeback::sync_all() {
        log::error!("a device has not kept all that was written to it");
    }
    rt().power_off(status.shell_code())
}

/// Memory has run out under a task of `own`: the largest program is ended. While one is on its way out,
/// others wait for what it leaves, for a while; then the next one goes.
pub fn end_largest_program(own: &Program) {
    const PATIENCE_NS: u64 = 2_000_000_000;
    static LAST_NS: AtomicU64 = AtomicU64::new(0);
    if own.ending().is_some() {
        return;
    }
    let now = rt().now_ns();
    let programs = program::all();
    let one_is_leaving = programs.iter().any(|program| program.ending().is_some());
    if one_is_leaving && now.saturating_sub(LAST_NS.load(Ordering::Relaxed)) < PATIENCE_NS {
        rt().park(Some(now + 1_000_000), ParkMode::Uninterruptible);
        return;
    }
    let space = rt().address_space();
    let resident = |program: &Program| space.footprint(program.owner).resident_bytes;
    let alive = programs.iter().filter(|program| program.ending().is_none());
    let Some((bytes, program)) = alive.map(|program| (resident(program), program)).max_by_key(|found| found.0) else {
        return;
    };
    LAST_NS.store(now, Ordering::Relaxed);
    let name = program.name();
    if program.end(ExitStatus::Signal(crate::signal::SIGKILL as u8)) {
        log::error!("out of memory: ended {name}[{}], {} KiB resident", program.pid, bytes >> 10);
    }
}

/// Makes a thread the first of its program: id and list.
pub fn adopt_first(task: &TaskRef, thread: &Thread) {
    thread.set_tid(thread.program.pid);
    thread.program.threads.lock().push(task.clone());
}
