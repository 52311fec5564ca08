//! Register images that trap entry, signal frames and clone share.

/// Registers of interrupted or calling code. The assembly entry paths in `machine` build it; the
/// field offsets are asserted there.
///
/// Of the vector registers only what kernel code may change is here: the low halves of the first eight.
/// Kernel code is baseline SSE and keeps to xmm0-7 (`scripts/check/disassembly`), so everything else stays
/// in the registers ([`crate::task::Task::save_vectors`] combines the two).
#[repr(C, align(16))]
#[derive(Clone, Copy, Default, Debug)]
pub struct TrapFrame {
    pub xmm: [u128; 8],
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// [`TrapFrame::SYSCALL`] for a system call, else the vector.
    pub vector: u64,
    /// Error code of an exception; for a system call its number (Linux' `orig_rax`).
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl TrapFrame {
    /// `vector` of a system call.
    pub const SYSCALL: u64 = 0x100;
    /// `vector` once a system call has changed other registers than rax (rt_sigreturn, a handler's
    /// entry): all of them count then, so the way out is the one of a trap.
    pub const REPLACED: u64 = 0x101;
}

/// Bytes of a complete XSAVE image in standard format, x87 to AVX-512: the largest that XCR0 = 0xE7
/// gives is 2,696; rounded to a cache line.
pub const VECTOR_STATE_BYTES: usize = 2752;

/// An XSAVE image in standard (not compacted) format. The first 512 bytes are FXSAVE's.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct VectorState {
    pub bytes: [u8; VECTOR_STATE_BYTES],
    /// Bytes in use: 512 without XSAVE.
    pub len: usize,
    /// XCR0; 0 without XSAVE.
    pub features: u64,
}
