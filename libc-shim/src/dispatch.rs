//! The way in from the machine: system calls, faults and exit work become calls of the table and of
//! signal delivery.
//!
//! An interrupted call comes back with a restart code. If no handler has to run, it is repeated here,
//! in the kernel, with its first deadline kept ([`Ctx::deadline_after`]); otherwise the handler's
//! frame says how it goes on ([`deliver`]).
use core::sync::atomic::{AtomicU64, Ordering};

use alloc::string::String;
use rt::{
    Extension, Personality,
    regs::TrapFrame,
    rt,
    task::{AppFault, TaskRef},
};

use crate::{
    call::Ctx,
    errno::{ENOMEM, ENOSYS, Errno, SysResult},
    signal::{deliver::deliver, fault, send},
    sysno,
    table::{self, Row, Support},
    thread::Thread,
    threads,
};

/// Linux, as far as programs can tell.
pub struct Linux;

impl Personality for Linux {
    fn syscall(&self, task: &TaskRef, extension: Option<&Extension>, frame: &mut TrapFrame) {
        let Some(thread) = extension.and_then(Extension::get) else {
            frame.rax = ENOSYS.as_result();
            return;
        };
        let row = table::row(number(frame));
        let mut cx = Ctx::new(task, thread, frame);
        match row {
            Some(row) if row.plain && !thread.program.trace.load(Ordering::Relaxed) => match (row.call)(&mut cx) {
                Ok(value) => cx.frame.rax = value,
                Err(code) if code.is_restart() => restart(&mut cx, row, code),
                Err(errno) => cx.frame.rax = errno.as_result(),
            },
            _ => run(&mut cx, row),
        }
        if cx.ending.is_some() {
            finish(&mut cx);
        }
    }

    fn fault(&self, task: &TaskRef, frame: &mut TrapFrame, app_fault: AppFault) {
        let Some(thread) = Thread::of(task) else {
            panic!("fault in a task without a program: {app_fault:?} at {:#x}", frame.rip);
        };
        match fault::signal(&**task, frame, app_fault) {
            Some((info, record)) => {
                thread.record_fault(record);
                send::force(task, thread, info);
            }
            None => threads::end_largest_program(&thread.program),
        }
        let mut cx = Ctx::new(task, thread, frame);
        deliver(&mut cx, None);
        finish(&mut cx);
    }

    fn out_of_memory(&self, task: &TaskRef) -> bool {
        let Some(thread) = Thread::of(task) else { return false };
        threads::end_largest_program(&thread.program);
        thread.program.ending().is_none()
    }

    fn exit_work(&self, task: &TaskRef, frame: &mut TrapFrame) {
        let Some(thread) = Thread::of(task) else {
            task.clear_interrupt();
            return;
        };
        let mut cx = Ctx::new(task, thread, frame);
        deliver(&mut cx, None);
        finish(&mut cx);
    }
}

/// Ends the thread if the call or a signal said so.
fn finish(cx: &mut Ctx<'_>) {
    if let Some(ending) = cx.ending {
        threads::leave(cx, ending);
        rt().exit_task();
    }
}

/// Which call it is: Linux looks at eax alone.
fn number(frame: &TrapFrame) -> u64 {
    frame.rax & 0xffff_ffff
}

/// A call that is not plain ([`Row::plain`]), or that is to be shown.
#[inline(never)]
fn run(cx: &mut Ctx<'_>, row: Option<&'static Row>) {
    let number = number(cx.frame);
    if row.is_none_or(|row| matches!(row.support, Support::No(_))) {
        warn_once(number, row);
    }
    let traced = cx.program().trace.load(Ordering::Relaxed);
    let shown = if traced { describe(number, row, cx.arguments()) } else { String::new() };
    let result = match row {
        Some(row) => repeat(cx, row, None),
        None => Some(Err(ENOSYS)),
    };
    if traced {
        print_result(cx, &shown, row, result);
    }
    if let Some(result) = result {
        cx.frame.rax = result.unwrap_or_else(|errno| errno.as_result());
    }
}

/// A plain call was interrupted with a restart code.
#[inline(never)]
fn restart(cx: &mut Ctx<'_>, row: &'static Row, code: Errno) {
    if let Some(result) = repeat(cx, row, Some(code)) {
        cx.frame.rax = result.unwrap_or_else(|errno| errno.as_result());
    }
}

/// Calls until the call is not interrupted, or a handler's frame says how it goes on: then `None`.
/// `interrupted` is the restart code that it has come back with already.
fn repeat(cx: &mut Ctx<'_>, row: &'static Row, mut interrupted: Option<Errno>) -> Option<SysResult> {
    loop {
        let result = match interrupted.take() {
            Some(code) => Err(code),
            None if row.allocates && rt().draw_budget().is_err() => Err(ENOMEM),
            None => (row.call)(cx),
        };
        match result {
            Err(code) if code.is_restart() => {
                if deliver(cx, Some(code)) {
                    return None;
                }
            }
            result => return Some(result),
        }
    }
}

/// Says once for each call that it is not supported.
fn warn_once(number: u64, row: Option<&'static Row>) {
    static SAID: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
    // Numbers beyond all calls share the last bit.
    let place = number.min(511);
    let bit = 1 << (place % 64);
    if SAID[(place / 64) as usize].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return;
    }
    let name = sysno::name(number).unwrap_or("unknown");
    match row.map(|row| row.support) {
        Some(Support::No(note)) => log::warn!("system call {number} ({name}) is not supported: {note}"),
        _ => log::warn!("system call {number} ({name}) is not supported"),
    }
}

fn describe(number: u64, row: Option<&'static Row>, raw: [u64; 6]) -> String {
    let mut out = String::new();
    match row {
        Some(row) => {
            out.push_str(row.name);
            out.push('(');
            (row.print)(&mut out, raw);
            out.push(')');
        }
        None => {
            let name = sysno::name(number).unwrap_or("syscall");
            out = alloc::format!("{name}[{number}]({:#x}, {:#x}, {:#x}, ...)", raw[0], raw[1], raw[2]);
        }
    }
    out
}

/// `result` is `None` if a handler's frame took its place.
fn print_result(cx: &Ctx<'_>, shown: &str, row: Option<&'static Row>, result: Option<SysResult>) {
    let text = match result {
        None => String::from("? (interrupted)"),
        _ if cx.ending.is_some() => String::from("?"),
        Some(result) => show_result(row, result),
    };
    let line = alloc::format!("[{}] {shown} = {text}\n", cx.thread.tid());
    rt().console_write(line.as_bytes());
}

fn show_result(row: Option<&'static Row>, result: SysResult) -> String {
    match result {
        Err(errno) => alloc::format!("-1 {errno}"),
        Ok(value) if row.is_some_and(|row| row.gives_address) => alloc::format!("{value:#x}"),
        Ok(value) => alloc::format!("{}", value as i64),
    }
}
