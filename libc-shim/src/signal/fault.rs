//! Faults of application code become signals: which one, with which code and address.
//!
//! Sources: sigaction(2) for the codes; Linux' behaviour for each exception (a general protection
//! fault has no address, a breakpoint no special code). Recorded beside it is what the signal frame
//! shows as `trapno`, `err` and `cr2`.
use rt::{
    regs::{TrapFrame, VECTOR_STATE_BYTES, VectorState},
    task::{AppFault, Task},
};

use super::{SI_KERNEL, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, SigInfo, frame::FaultRecord};

const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRALN: i32 = 1;
const BUS_ADRERR: i32 = 2;
const ILL_ILLOPN: i32 = 2;
const TRAP_TRACE: i32 = 2;
const TRAP_HWBKPT: i32 = 4;
const FPE_INTDIV: i32 = 1;
const FPE_FLTDIV: i32 = 3;
const FPE_FLTOVF: i32 = 4;
const FPE_FLTUND: i32 = 5;
const FPE_FLTRES: i32 = 6;
const FPE_FLTINV: i32 = 7;

const PAGE_FAULT: u64 = 14;

/// The signal of a fault, and what its frame records. None: out of memory, which is no signal of
/// the faulting program's own.
pub fn signal(task: &dyn Task, frame: &TrapFrame, fault: AppFault) -> Option<(SigInfo, FaultRecord)> {
    let page_fault = |address, error| FaultRecord { trap_number: PAGE_FAULT, error, cr2: address };
    Some(match fault {
        AppFault::Segment { address, mapped, error } => {
            let code = if mapped { SEGV_ACCERR } else { SEGV_MAPERR };
            (SigInfo::fault(SIGSEGV, code, address), page_fault(address, error))
        }
        AppFault::Bus { address, error } => (SigInfo::fault(SIGBUS, BUS_ADRERR, address), page_fault(address, error)),
        AppFault::Exception { vector, error } => {
            let record = FaultRecord { trap_number: u64::from(vector), error, cr2: 0 };
            (exception(task, frame, vector), record)
        }
        AppFault::OutOfMemory { .. } => return None,
    })
}

fn exception(task: &dyn Task, frame: &TrapFrame, vector: u8) -> SigInfo {
    match vector {
        0 => SigInfo::fault(SIGFPE, FPE_INTDIV, frame.rip),
        1 => {
            // The trap flag is still set in the frame of a single step.
            let code = if frame.rflags & 0x100 != 0 { TRAP_TRACE } else { TRAP_HWBKPT };
            SigInfo::fault(SIGTRAP, code, frame.rip)
        }
        3 => SigInfo::from_kernel(SIGTRAP),
        6 => SigInfo::fault(SIGILL, ILL_ILLOPN, frame.rip),
        16 | 19 => SigInfo::fault(SIGFPE, float_code(task, frame, vector), frame.rip),
        // #NP and #SS, the latter for an address off rsp or rbp that is not canonical.
        11 | 12 => SigInfo { code: SI_KERNEL, ..SigInfo::fault(SIGBUS, SI_KERNEL, 0) },
        17 => SigInfo::fault(SIGBUS, BUS_ADRALN, 0),
        // #GP, #OF, #BR: no address, by Linux' custom.
        _ => SigInfo { code: SI_KERNEL, ..SigInfo::fault(SIGSEGV, SI_KERNEL, 0) },
    }
}

/// Which unmasked floating-point exception it was, from the status and control words of x87 (vector
/// 16) or MXCSR (19).
fn float_code(task: &dyn Task, frame: &TrapFrame, vector: u8) -> i32 {
    let mut state = VectorState { bytes: [0; VECTOR_STATE_BYTES], len: 0, features: 0 };
    task.save_vectors(frame, &mut state);
    let word = |at: usize| u16::from_le_bytes([state.bytes[at], state.bytes[at + 1]]);
    let raised = if vector == 16 { word(2) & !word(0) } else { word(24) & !(word(24) >> 7) };
    float_code_of_bits(raised & 0x3f)
}

fn float_code_of_bits(raised: u16) -> i32 {
    match raised {
        bits if bits & 0x01 != 0 => FPE_FLTINV,
        bits if bits & 0x04 != 0 => FPE_FLTDIV,
        bits if bits & 0x08 != 0 => FPE_FLTOVF,
        // Denormal operand and underflow share a code.
        bits if bits & 0x12 != 0 => FPE_FLTUND,
        bits if bits & 0x20 != 0 => FPE_FLTRES,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float_exceptions_have_their_codes() {
        assert_eq!(float_code_of_bits(0x01), FPE_FLTINV);
        assert_eq!(float_code_of_bits(0x04), FPE_FLTDIV);
        assert_eq!(float_code_of_bits(0x02), FPE_FLTUND);
        assert_eq!(float_code_of_bits(0x20), FPE_FLTRES);
        assert_eq!(float_code_of_bits(0x00), 0);
    }
}
