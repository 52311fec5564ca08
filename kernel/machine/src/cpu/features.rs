#![allow(unsafe_code, reason = "CPUID, XCR0 and control registers")]
//! What the CPU can do, and switching it on. Which of it is wanted, `logic` decides from CPUID.
use core::arch::{asm, x86_64::__cpuid_count};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use logic::{cpuid::Cpuid, xstate};
use rt::regs::VECTOR_STATE_BYTES;
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::exits;

static XCR0: AtomicU64 = AtomicU64::new(0);
static VECTOR_BYTES: AtomicU32 = AtomicU32::new(512);
static FSGSBASE: AtomicBool = AtomicBool::new(false);
static XSAVEOPT: AtomicBool = AtomicBool::new(false);

/// The CPU that asks.
pub struct ThisCpu;

impl Cpuid for ThisCpu {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        exits::cpuid();
        let r = __cpuid_count(leaf, subleaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    }
}

/// A CPUID leaf: (eax, ebx, ecx, edx).
pub fn cpuid(leaf: u32, subleaf: u32) -> (u32, u32, u32, u32) {
    let [a, b, c, d] = ThisCpu.cpuid(leaf, subleaf);
    (a, b, c, d)
}

/// How wide a physical address is: wider ones fault in a page table (CPUID 0x8000_0008).
pub fn physical_address_bits() -> u32 {
    const LEAF: u32 = 0x8000_0008;
    // What the SDM says of a CPU without the leaf.
    const UNKNOWN: u32 = 36;
    // Asked once: it is an exit, and each device's windows are checked against it. 0: not yet.
    static BITS: AtomicU32 = AtomicU32::new(0);
    match BITS.load(Ordering::Relaxed) {
        0 => {
            let bits = if cpuid(0x8000_0000, 0).0 >= LEAF { cpuid(LEAF, 0).0 & 0xff } else { UNKNOWN };
            BITS.store(bits, Ordering::Relaxed);
            bits
        }
        bits => bits,
    }
}

/// A page table entry can hold this physical address.
pub fn is_address(physical: u64) -> bool {
    physical >> physical_address_bits().min(52) == 0
}

/// Switches on what the kernel uses. Once on every CPU, the boot CPU first.
pub fn enable() {
    let vectors = xstate::vector_state(&ThisCpu, VECTOR_STATE_BYTES as u32);
    let fsgsbase = ThisCpu.leaf(7, 0)[1] & 1 != 0;
    let mut cr4 = Cr4::read() | Cr4Flags::PAGE_GLOBAL;
    cr4.set(Cr4Flags::FSGSBASE, fsgsbase);
    cr4.set(Cr4Flags::OSXSAVE, vectors.xcr0 != 0);
    // SAFETY: page tables hold for kernel text; GLOBAL only changes what later flushes keep, and no
    // entry has the G bit before this. CPUID has the other two.
    unsafe { Cr4::write(cr4) };
    FSGSBASE.store(fsgsbase, Ordering::Relaxed);
    if vectors.xcr0 == 0 {
        return;
    }
    let (low, high) = (vectors.xcr0 as u32, (vectors.xcr0 >> 32) as u32);
    // SAFETY: OSXSAVE is on; `xstate` gives what CPUID lists, and what belongs together, together.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high, options(nomem, nostack)) };
    XCR0.store(vectors.xcr0, Ordering::Relaxed);
    // EBX: the CPU's own figure, for the features that XCR0 enables now.
    let bytes = vectors.image_bytes.max(ThisCpu.cpuid(0xd, 0)[1]);
    VECTOR_BYTES.store(bytes, Ordering::Relaxed);
    XSAVEOPT.store(vectors.xsaveopt, Ordering::Relaxed);
}

/// XCR0; 0 when the CPU has no XSAVE.
#[inline]
pub fn xcr0() -> u64 {
    XCR0.load(Ordering::Relaxed)
}

/// Bytes of an XSAVE (or, without it, FXSAVE) image.
#[inline]
pub fn vector_state_bytes() -> usize {
    VECTOR_BYTES.load(Ordering::Relaxed) as usize
}

#[inline]
pub fn has_xsaveopt() -> bool {
    XSAVEOPT.load(Ordering::Relaxed)
}

#[inline]
pub fn has_fsgsbase() -> bool {
    FSGSBASE.load(Ordering::Relaxed)
}
