#![allow(unsafe_code, reason = "reads the exception table between linker symbols")]
//! Page faults: who faulted, and what becomes of it.
use rt::{
    regs::TrapFrame,
    task::{AppFault, TaskRef},
};
use x86_64::instructions::interrupts;

use super::{
    paging::APPLICATION_END,
    space::{self, Access, Refused},
    user,
};
use crate::tasks;

const ERROR_PRESENT: u64 = 1;
const ERROR_WRITE: u64 = 1 << 1;
const ERROR_USER: u64 = 1 << 2;
const ERROR_RESERVED: u64 = 1 << 3;
const ERROR_FETCH: u64 = 1 << 4;
const INTERRUPT_FLAG: u64 = 1 << 9;

#[repr(C)]
struct ExceptionEntry {
    from: u64,
    to: u64,
}

unsafe extern "C" {
    static __ex_table_start: ExceptionEntry;
    static __ex_table_end: ExceptionEntry;
}

fn fixup(rip: u64) -> Option<u64> {
    let start = &raw const __ex_table_start;
    let count = (&raw const __ex_table_end as usize - start as usize) / size_of::<ExceptionEntry>();
    // SAFETY: the linker lays the table out between these symbols; it is read-only.
    let table = unsafe { core::slice::from_raw_parts(start, count) };
    table.iter().find(|entry| entry.from == rip).map(|entry| entry.to)
}

fn access(error: u64) -> Access {
    if error & ERROR_FETCH != 0 {
        Access::Execute
    } else if error & ERROR_WRITE != 0 {
        Access::Write
    } else {
        Access::Read
    }
}

/// A page fault of application code. None: served. Interrupts are on.
pub fn from_application(address: u64, error: u64) -> Option<AppFault> {
    // As Linux shows it to a signal handler.
    let shown = error & !ERROR_RESERVED | ERROR_USER;
    if address >= APPLICATION_END {
        return Some(AppFault::Segment { address, mapped: false, error: shown | ERROR_PRESENT });
    }
    match space::fault(address, access(error)) {
        Ok(()) => None,
        Err(Refused::NotMapped) => Some(AppFault::Segment { address, mapped: false, error: shown }),
        Err(Refused::Protected) => Some(AppFault::Segment { address, mapped: true, error: shown }),
        Err(Refused::BeyondEnd) => Some(AppFault::Bus { address, error: shown }),
        Err(Refused::OutOfMemory) => Some(AppFault::OutOfMemory { address }),
    }
}

/// A page fault of kernel code. True: served, or sent to its fixup. False: the kernel is wrong.
pub fn from_kernel(frame: &mut TrapFrame, address: u64) -> bool {
    let Some(fixup) = fixup(frame.rip) else { return false };
    if address >= APPLICATION_END {
        return false;
    }
    if !user::is_nofault(frame.rip) {
        // The copy was called with interrupts on, and may sleep.
        if frame.rflags & INTERRUPT_FLAG != 0 {
            interrupts::enable();
        }
        let served = match space::fault(address, access(frame.error)) {
            Ok(()) => true,
            // The instruction faults again, if something was done about it.
            Err(Refused::OutOfMemory) => {
                let task: TaskRef = tasks::current();
                rt::personality().is_some_and(|personality| personality.out_of_memory(&task))
            }
            Err(_) => false,
        };
        interrupts::disable();
        if served {
            return true;
        }
    }
    frame.rip = fixup;
    true
}
