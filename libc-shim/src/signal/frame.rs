//! The signal frame's layout: `struct rt_sigframe` of x86-64 Linux, and the x87/SSE/AVX area it points to.
//!
//! Encoding and decoding only; where a frame lies and what goes into it is [`super::deliver`]'s.
//! Sources: System V ABI AMD64 supplement, Linux' UAPI `asm/sigcontext.h` and `asm/ucontext.h`. The
//! offsets are compared with the C headers' by a test.
use rt::regs::{TrapFrame, VECTOR_STATE_BYTES, VectorState};

use super::{AltStack, SigInfo, SigSet};
use crate::args::Fields;

/// pretcode, ucontext, siginfo.
pub const FRAME_BYTES: usize = 8 + UCONTEXT_BYTES + SigInfo::BYTES;
/// The kernel's `struct ucontext`, with a signal set of 8 bytes.
pub const UCONTEXT_BYTES: usize = 304;
/// Offset of `uc_mcontext` in the ucontext.
const MCONTEXT: usize = 40;
const MCONTEXT_BYTES: usize = 256;

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

/// `struct _fpx_sw_bytes` at this offset of the FXSAVE area.
const SW_RESERVED: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
const FXSAVE_BYTES: usize = 512;
const XSTATE_BV: usize = 512;

/// What the last fault left (`err`, `trapno` and `cr2` of the context).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRecord {
    pub trap_number: u64,
    pub error: u64,
    pub cr2: u64,
}

/// What a frame holds beside the vector state.
pub struct Context {
    pub registers: TrapFrame,
    pub fault: FaultRecord,
    pub mask: SigSet,
    /// None: the frame's is not one that sigaltstack(2) would take.
    pub alt_stack: Option<AltStack>,
    /// Address of the vector-state area; 0 is none.
    pub vectors: u64,
    /// The area is a whole XSAVE image, not FXSAVE's only.
    pub extended: bool,
}

impl Context {
    fn ucontext(&self) -> [u8; UCONTEXT_BYTES] {
        let r = &self.registers;
        let flags = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS | if self.extended { UC_FP_XSTATE } else { 0 };
        let mut out = Fields::default().u64(flags).u64(0).put(&stack_bytes(&self.alt_stack.unwrap_or_default(), 0));
        for register in [
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx,
            r.rsp, r.rip, r.rflags,
        ] {
            out = out.u64(register);
        }
        // Deviation: the true selectors are the kernel's own; programs see what Linux shows.
        out.u16(0x33)
            .u16(0)
            .u16(0)
            .u16(0x2b)
            .u64(self.fault.error)
            .u64(self.fault.trap_number)
            .u64(self.mask.0)
            .u64(self.fault.cr2)
            .u64(self.vectors)
            .skip(64)
            .u64(self.mask.0)
            .finish()
    }

    /// The whole frame.
    pub fn to_bytes(&self, restorer: u64, info: &SigInfo) -> [u8; FRAME_BYTES] {
        Fields::default().u64(restorer).put(&self.ucontext()).put(&info.to_bytes()).finish()
    }

    /// Reads the ucontext of a frame back. Registers that it does not hold (and the segment
    /// selectors) are `current`'s; the flags are those that an application may set.
    pub fn from_ucontext(bytes: &[u8; UCONTEXT_BYTES], current: &TrapFrame) -> Self {
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
        let reg = |index: usize| word(MCONTEXT + 8 * index);
        let registers = TrapFrame {
            r8: reg(0),
            r9: reg(1),
            r10: reg(2),
            r11: reg(3),
            r12: reg(4),
            r13: reg(5),
            r14: reg(6),
            r15: reg(7),
            rdi: reg(8),
            rsi: reg(9),
            rbp: reg(10),
            rbx: reg(11),
            rdx: reg(12),
            rax: reg(13),
            rcx: reg(14),
            rsp: reg(15),
            rip: reg(16),
            rflags: sanitise_flags(reg(17), current.rflags),
            ..*current
        };
        Self {
            registers,
            fault: FaultRecord::default(),
            mask: SigSet(word(MCONTEXT + MCONTEXT_BYTES)).blockable(),
            alt_stack: stack_from_bytes(&bytes[16..40]),
            vectors: word(MCONTEXT + 184),
            extended: word(0) & UC_FP_XSTATE != 0,
        }
    }
}

/// Only the flags that Linux restores are the application's to set; IF stays on, IOPL as it is.
pub fn sanitise_flags(wanted: u64, current: u64) -> u64 {
    // AC, RF, OF, DF, TF, SF, ZF, AF, PF, CF.
    const SETTABLE: u64 = 0x0005_0dd5;
    const ALWAYS: u64 = 0x202;
    (current & !SETTABLE) | (wanted & SETTABLE) | ALWAYS
}

/// `stack_t` as sigaltstack(2) and the frame show it.
pub fn stack_bytes(stack: &AltStack, rsp: u64) -> [u8; 24] {
    const SS_ONSTACK: u32 = 1;
    const SS_DISABLE: u32 = 2;
    let state = match stack.size {
        0 => SS_DISABLE,
        _ if stack.contains(rsp) => SS_ONSTACK,
        _ => 0,
    };
    let flags = state | if stack.autodisarm { AltStack::AUTODISARM } else { 0 };
    Fields::default().u64(stack.base).u32(flags).skip(4).u64(stack.size).finish()
}

/// Base, flags and size of a `stack_t`.
pub fn stack_fields(bytes: &[u8; 24]) -> (u64, u32, u64) {
    let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
    (word(0), word(8) as u32, word(16))
}

fn stack_from_bytes(bytes: &[u8]) -> Option<AltStack> {
    let (base, flags, size) = stack_fields(bytes.try_into().ok()?);
    AltStack::from_parts(base, flags, size).ok()
}

/// Bytes of the vector-state area in memory: the image, and behind an XSAVE image the second magic.
pub fn vector_area_bytes(state: &VectorState) -> usize {
    if state.len > FXSAVE_BYTES { state.len + 4 } else { state.len }
}

/// Makes the image what a frame holds: the software-reserved bytes say how far it goes.
pub fn mark_vector_area(state: &mut VectorState) {
    if state.len <= FXSAVE_BYTES {
        return;
    }
    let marks: [u8; 48] = Fields::default()
        .u32(FP_XSTATE_MAGIC1)
        .u32(vector_area_bytes(state) as u32)
        .u64(state.features)
        .u32(state.len as u32)
        .finish();
    state.bytes[SW_RESERVED..FXSAVE_BYTES].copy_from_slice(&marks);
    // x87 and SSE are always in the image, as a program that looks there expects.
    state.bytes[XSTATE_BV] |= 3;
}

pub const VECTOR_TRAILER: [u8; 4] = FP_XSTATE_MAGIC2.to_le_bytes();

/// How long the XSAVE image of a frame is, and its features, by the FXSAVE area's marks; None if
/// there is only an FXSAVE image.
pub fn extended_len(fxsave: &[u8; FXSAVE_BYTES]) -> Option<(usize, u64)> {
    let int = |at: usize| fxsave[at..at + 4].iter().rev().fold(0u32, |v, b| v << 8 | u32::from(*b));
    let len = int(SW_RESERVED + 16) as usize;
    let known = int(SW_RESERVED) == FP_XSTATE_MAGIC1
        && (FXSAVE_BYTES + 64..=VECTOR_STATE_BYTES).contains(&len)
        && int(SW_RESERVED + 4) as usize == len + 4;
    let features = u64::from(int(SW_RESERVED + 8)) | u64::from(int(SW_RESERVED + 12)) << 32;
    known.then_some((len, features))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        let registers = TrapFrame {
            r15: 15,
            rax: 0x1111,
            rsp: 0x7000_1000,
            rip: 0x40_1000,
            rflags: 0x246,
            cs: 8,
            ss: 16,
            ..TrapFrame::default()
        };
        Context {
            registers,
            fault: FaultRecord { trap_number: 14, error: 6, cr2: 0xdead_b000 },
            mask: SigSet(0x55),
            alt_stack: Some(AltStack { base: 0x9000, size: 0x2000, autodisarm: false }),
            vectors: 0x7000_0000,
            extended: true,
        }
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Offsets of `struct ucontext` and `gregset_t` in the C headers (sys/ucontext.h).
    #[test]
    fn fields_lie_where_the_abi_says() {
        let bytes = context().ucontext();
        assert_eq!(word(&bytes, 40 + 13 * 8), 0x1111); // REG_RAX
        assert_eq!(word(&bytes, 40 + 16 * 8), 0x40_1000); // REG_RIP
        assert_eq!(word(&bytes, 40 + 17 * 8), 0x246); // REG_EFL
        assert_eq!(word(&bytes, 40 + 18 * 8), 0x002b_0000_0000_0033); // REG_CSGSFS
        assert_eq!(word(&bytes, 40 + 19 * 8), 6); // REG_ERR
        assert_eq!(word(&bytes, 40 + 20 * 8), 14); // REG_TRAPNO
        assert_eq!(word(&bytes, 40 + 21 * 8), 0x55); // REG_OLDMASK
        assert_eq!(word(&bytes, 40 + 22 * 8), 0xdead_b000); // REG_CR2
        assert_eq!(word(&bytes, 40 + 23 * 8), 0x7000_0000); // fpregs
        assert_eq!(word(&bytes, 296), 0x55); // uc_sigmask
        assert_eq!(FRAME_BYTES, 440);
    }

    #[test]
    fn a_context_comes_back_as_it_was_but_for_protected_flags() {
        let before = context();
        let mut bytes = before.ucontext();
        // The handler asks for IF off, IOPL 3 and CF.
        bytes[40 + 17 * 8..40 + 18 * 8].copy_from_slice(&0x3001u64.to_le_bytes());
        let current = TrapFrame { cs: 8, ss: 16, rflags: 0x202, ..TrapFrame::default() };
        let after = Context::from_ucontext(&bytes, &current);
        assert_eq!(after.registers.rflags, 0x203);
        assert_eq!((after.registers.r15, after.registers.rip, after.registers.cs), (15, 0x40_1000, 8));
        assert_eq!((after.mask, after.alt_stack, after.vectors), (before.mask, before.alt_stack, before.vectors));
        assert!(after.extended);
    }

    #[test]
    fn the_vector_area_names_its_length() {
        // AVX; AVX-512 in AMD's layout and in Intel's.
        for (len, features) in [(832, 7), (2432, 0xe7), (2688, 0xe7)] {
            let mut state = VectorState { bytes: [0; VECTOR_STATE_BYTES], len, features };
            mark_vector_area(&mut state);
            assert_eq!(vector_area_bytes(&state), len + 4);
            let fxsave: &[u8; 512] = state.bytes[..512].try_into().unwrap();
            assert_eq!(extended_len(fxsave), Some((len, features)));
        }
        assert_eq!(extended_len(&[0; 512]), None);
    }
}
