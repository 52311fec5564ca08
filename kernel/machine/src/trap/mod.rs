#![allow(unsafe_code, reason = "called by the assembly entry paths, with the frame they built")]
//! Traps: what happens between the assembly entry paths and the code that serves them.
//!
//! Everything here runs on the task's kernel stack with the frame moved there ([`entry.S`]). A
//! system call or an application's fault runs with interrupts on and may sleep; an interrupt handler
//! runs with interrupts off. The way back to application code goes through [`exit_to_application`].
use core::mem::offset_of;

use rt::{regs::TrapFrame, task::AppFault};
use x86_64::{instructions::interrupts, registers::control::Cr2};

use crate::{
    cpu::{apic, irq, percpu::this_cpu},
    memory::{fault, frames, tlb},
    panic, tasks, time,
};

core::arch::global_asm!(
    include_str!("entry.S"),
    task_interrupted = const tasks::INTERRUPTED_OFFSET,
    options(att_syntax)
);

const _: () = {
    assert!(size_of::<TrapFrame>() == 304);
    assert!(offset_of!(TrapFrame, r15) == 128);
    assert!(offset_of!(TrapFrame, rax) == 128 + 10 * 8);
    assert!(offset_of!(TrapFrame, rdi) == 128 + 14 * 8);
    assert!(offset_of!(TrapFrame, vector) == 128 + 15 * 8);
    assert!(offset_of!(TrapFrame, rflags) == 128 + 19 * 8);
    assert!(offset_of!(TrapFrame, ss) == 128 + 21 * 8);
    assert!(TrapFrame::SYSCALL == 0x100);
};

const DEBUG: u64 = 1;
const BREAKPOINT: u64 = 3;
const PAGE_FAULT: u64 = 14;
const FIRST_INTERRUPT: u64 = 32;

/// RFLAGS that application code runs with whatever it asks for: IF on, IOPL 0, no NT, VM, RF.
const FLAGS_FORCED: u64 = 1 << 9 | 1 << 1;
/// CF PF AF ZF SF TF DF OF AC ID: what an application may choose.
const FLAGS_CHOICE: u64 = 0x24_0dd5;
const TRAP_FLAG: u64 = 1 << 8;

/// Makes flags fit for application code: EFLAGS from sigreturn or a debugger are not trusted.
pub fn sanitise_flags(flags: u64) -> u64 {
    flags & FLAGS_CHOICE | FLAGS_FORCED
}

/// A system call. The assembly sees for itself whether anything is due before the return; whoever
/// changes registers other than rax marks the frame [`TrapFrame::REPLACED`].
#[unsafe(no_mangle)]
extern "C" fn syscall_from_application(frame: &mut TrapFrame) {
    match rt::personality() {
        Some(personality) => tasks::with_caller(|task, extension| personality.syscall(task, extension, frame)),
        None => panic!("system call {} before there is a personality", frame.rax),
    }
}

/// A system call's way back by `iretq`, with what is due before it.
#[unsafe(no_mangle)]
extern "C" fn syscall_leaves_slowly(frame: &mut TrapFrame) {
    exit_to_application(frame);
    frame.rflags = sanitise_flags(frame.rflags);
}

/// Does what is due before application code goes on: reschedules, delivers signals. Returns with
/// interrupts off.
pub fn exit_to_application(frame: &mut TrapFrame) {
    loop {
        interrupts::disable();
        let cpu = this_cpu();
        if cpu.reschedule.load(core::sync::atomic::Ordering::Relaxed) {
            tasks::preempt();
            continue;
        }
        let Some(personality) = rt::personality() else { return };
        if !tasks::take_interrupt_for_exit() {
            return;
        }
        interrupts::enable();
        tasks::with_current(|task| personality.exit_work(task, frame));
    }
}

/// Any vector but the fatal ones. Interrupts are off, before and after.
#[unsafe(no_mangle)]
extern "C" fn trap_from_anywhere(frame: &mut TrapFrame, from_application: u32) {
    let from_application = from_application != 0;
    if frame.vector >= FIRST_INTERRUPT {
        interrupt(frame.vector as u8);
    } else if from_application {
        application_fault(frame);
    } else {
        kernel_fault(frame);
    }
    if from_application {
        exit_to_application(frame);
        frame.rflags = sanitise_flags(frame.rflags);
    }
}

fn interrupt(vector: u8) {
    this_cpu().interrupts.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    match vector {
        apic::VECTOR_TIMER => {
            apic::end_of_interrupt();
            time::timer_fired();
        }
        apic::VECTOR_RESCHEDULE => {
            apic::end_of_interrupt();
            tasks::drain_mailbox();
        }
        apic::VECTOR_TLB => {
            apic::end_of_interrupt();
            tlb::serve();
        }
        apic::VECTOR_FRAMES => {
            apic::end_of_interrupt();
            frames::answer();
        }
        // No end of interrupt for a spurious one (SDM 11.9).
        apic::VECTOR_SPURIOUS => {}
        _ => {
            irq::dispatch(vector);
            apic::end_of_interrupt();
            tasks::reconsider();
        }
    }
}

fn application_fault(frame: &mut TrapFrame) {
    let address = Cr2::read_raw();
    interrupts::enable();
    let fault = if frame.vector == PAGE_FAULT {
        match fault::from_application(address, frame.error) {
            None => return,
            Some(fault) => fault,
        }
    } else {
        AppFault::Exception { vector: frame.vector as u8, error: frame.error }
    };
    match rt::personality() {
        Some(personality) => tasks::with_current(|task| personality.fault(task, frame, fault)),
        None => panic!("{fault:?} at {:#x} before there is a personality", frame.rip),
    }
}

fn kernel_fault(frame: &mut TrapFrame) {
    if frame.vector == PAGE_FAULT && fault::from_kernel(frame, Cr2::read_raw()) {
        return;
    }
    // A debug trap in the kernel comes from single-stepping into it; drop the flag and go on.
    if frame.vector == DEBUG || frame.vector == BREAKPOINT {
        frame.rflags &= !TRAP_FLAG;
        return;
    }
    panic::exception(frame, "kernel fault");
}
