#![allow(unsafe_code, reason = "reads the frame that an NMI pushed, and another CPU's task")]
//! What every CPU was doing: after a panic, and when somebody sends the machine an NMI.
//!
//! A panic stops the other CPUs by NMI. Each records its registers and stands still; the panicking
//! CPU prints them, one after the other, and waits no longer than [`PATIENCE_NS`] for one that does not
//! answer. An NMI without a panic (QEMU's `inject-nmi`, a button) has each CPU that gets it print its
//! own state and go on.
//!
//! # Invariants
//! An NMI arrives anywhere, also where the GS base or a lock is not what it seems: the handler finds
//! its CPU by CPUID, sets the GS base right for its own time, takes no lock, and reads no memory that it has not looked up first.
use core::{
    mem::offset_of,
    ptr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rt::regs::TrapFrame;
use x86_64::instructions::{hlt, interrupts};

use super::{backtrace, print_raw};
use crate::{
    cpu::percpu::{self, MAX_CPUS, OwnGs},
    memory::paging::APPLICATION_END,
    tasks::Task,
    time,
};

/// How long the panicking CPU waits for all others together: a busy host may leave one of them out for a
/// good part of a second.
const PATIENCE_NS: u64 = 3_000_000_000;
/// How long an NMI's report waits for that of another CPU, from when that last printed something.
const TURN_NS: u64 = 1_000_000_000;
/// The part of a frame that the entry code pushes: general registers, and what the CPU adds.
const WORDS: usize = (size_of::<TrapFrame>() - offset_of!(TrapFrame, r15)) / 8;

/// What a stopped CPU left.
struct Record {
    words: [AtomicU64; WORDS],
    recorded: AtomicBool,
}

static RECORDS: [Record; MAX_CPUS] =
    [const { Record { words: [const { AtomicU64::new(0) }; WORDS], recorded: AtomicBool::new(false) } }; MAX_CPUS];

/// An NMI: another CPU's panic, or somebody's button. `registers` points at the general registers of a
/// TrapFrame, from r15 on.
#[unsafe(no_mangle)]
extern "C" fn nmi_arrived(registers: *const u64) {
    // SAFETY: `entry.S` passes what it and the CPU pushed on this CPU's NMI stack.
    let frame = unsafe { super::frame_from(registers) };
    let Some((me, gs)) = percpu::index_by_cpuid().and_then(|me| Some((me, OwnGs::enter(me)?))) else {
        // A CPU that has just started and is not known yet: it has nothing to tell.
        return if super::in_progress() {
            halt()
        };
    };
    if super::by_this_cpu(me) {
        // The panic goes on; it has said all that there is to say.
        return;
    }
    if super::in_progress() {
        record(me, &frame);
        halt();
    }
    in_turn(|| {
        if gs.was_wrong {
            print_raw(format_args!("demitasse: CPU {me}: the GS base is not the kernel's: a program changed it\n"));
        }
        report(me, &frame);
    });
}

/// Stands still, until the panicking CPU ends the machine.
pub fn halt() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}

fn record(index: usize, frame: &TrapFrame) {
    let Some(record) = RECORDS.get(index) else { return };
    let from = (&raw const frame.r15).cast::<u64>();
    for (at, word) in record.words.iter().enumerate() {
        // SAFETY: TrapFrame is repr(C) and has WORDS words from r15 on.
        word.store(unsafe { from.add(at).read() }, Ordering::Relaxed);
    }
    record.recorded.store(true, Ordering::Release);
}

/// Prints what each other CPU was doing when it was stopped. For the panicking CPU.
pub fn report_others(me: usize) {
    let deadline = time::now_ns() + PATIENCE_NS;
    for index in (0..percpu::online_count()).filter(|&index| index != me) {
        let Some(record) = RECORDS.get(index) else { break };
        while !record.recorded.load(Ordering::Acquire) && time::now_ns() < deadline {
            core::hint::spin_loop();
        }
        if !record.recorded.load(Ordering::Acquire) {
            print_raw(format_args!("demitasse: CPU {index} does not answer an NMI\n"));
            continue;
        }
        let words = record.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        // SAFETY: WORDS words, as `frame_from` wants them.
        report(index, &unsafe { super::frame_from(words.as_ptr()) });
    }
}

/// One CPU after the other; who waits for too long goes ahead.
fn in_turn(body: impl FnOnce()) {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut seen = super::printed();
    let mut deadline = time::now_ns() + TURN_NS;
    let free = || TAKEN.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
    while !free() && time::now_ns() < deadline {
        core::hint::spin_loop();
        if super::printed() != seen {
            seen = super::printed();
            deadline = time::now_ns() + TURN_NS;
        }
    }
    body();
    TAKEN.store(false, Ordering::Release);
}

/// What a CPU was doing: an idle one in one line.
fn report(index: usize, frame: &TrapFrame) {
    let task = Running::on(index);
    if task.idle && waits(frame) {
        print_raw(format_args!("demitasse: CPU {index}: idle\n"));
        return;
    }
    let place = if frame.rip < APPLICATION_END { "application code" } else { "the kernel" };
    print_raw(format_args!("demitasse: CPU {index}: in {place}, task {} {:?}\n", task.id, task.name()));
    backtrace::print_registers(frame);
    if frame.rip >= APPLICATION_END {
        backtrace::print(Some(frame.rip), frame.rbp);
    }
}

/// Whether an idle task does what it is for, and is not stuck in an interrupt's handler.
fn waits(frame: &TrapFrame) -> bool {
    const INTERRUPTS_ON: u64 = 1 << 9;
    let in_idle_code = backtrace::symbol(frame.rip).is_some_and(|(name, _)| name.starts_with("machine::tasks::idle"));
    frame.rflags & INTERRUPTS_ON != 0 || in_idle_code
}

/// The task that a CPU ran, as far as its memory still makes sense. Its id is the Linux thread's.
struct Running {
    idle: bool,
    id: u64,
    name: [u8; 15],
    len: usize,
}

impl Running {
    fn on(index: usize) -> Self {
        let mut running = Self { idle: false, id: 0, name: [0; 15], len: 0 };
        let Some(cpu) = percpu::cpu(index) else { return running };
        let task: *const Task = cpu.current.get();
        if task.is_null() || !backtrace::readable(task as u64, size_of::<Task>() as u64) {
            return running;
        }
        // SAFETY: the CPU stands still, or is this one: it keeps its current task alive, and the
        // memory was found to be mapped.
        let task = unsafe { &*task };
        running.idle = ptr::eq(task, cpu.idle_task.get());
        running.id = rt::task::Task::id(task);
        let name = task.name.as_bytes();
        if !name.is_empty() && backtrace::readable(name.as_ptr() as u64, name.len() as u64) {
            for (slot, &byte) in running.name.iter_mut().zip(name) {
                *slot = if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'?' };
                running.len += 1;
            }
        }
        running
    }

    fn name(&self) -> &str {
        core::str::from_utf8(&self.name[..self.len]).unwrap_or("")
    }
}
