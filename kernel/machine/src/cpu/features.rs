#![allow(unsafe_code, reason = "CPUID, XCR0 and model-specific registers")]
//! What the CPU can do, and switching it on.
use core::arch::{asm, x86_64::__cpuid_count};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use x86_64::registers::control::{Cr4, Cr4Flags};

use super::exits;

/// x87, SSE, AVX and AVX-512 state: what the kernel saves. PKRU and AMX are left off.
const XCR0_SUPPORTED: u64 = 0xe7;

static XCR0: AtomicU64 = AtomicU64::new(0);
static XSAVE_BYTES: AtomicU32 = AtomicU32::new(512);
static FSGSBASE: AtomicBool = AtomicBool::new(false);
static XSAVEOPT: AtomicBool = AtomicBool::new(false);

/// A CPUID leaf: (eax, ebx, ecx, edx).
pub fn cpuid(leaf: u32, subleaf: u32) -> (u32, u32, u32, u32) {
    exits::cpuid();
    let r = __cpuid_count(leaf, subleaf);
    (r.eax, r.ebx, r.ecx, r.edx)
}

/// Switches on what the kernel uses. Once on every CPU, the boot CPU first.
pub fn enable() {
    let (max_leaf, ..) = cpuid(0, 0);
    let (_, _, leaf1_ecx, _) = cpuid(1, 0);
    let mut cr4 = Cr4::read() | Cr4Flags::PAGE_GLOBAL;
    // SAFETY: page tables hold for kernel text; GLOBAL only changes what later flushes keep, and no
    // entry has the G bit before this.
    unsafe {
        if max_leaf >= 7 && cpuid(7, 0).1 & 1 != 0 {
            cr4 |= Cr4Flags::FSGSBASE;
            FSGSBASE.store(true, Ordering::Relaxed);
        }
        if leaf1_ecx & (1 << 26) != 0 {
            cr4 |= Cr4Flags::OSXSAVE;
        }
        Cr4::write(cr4);
    }
    if leaf1_ecx & (1 << 26) != 0 {
        let xcr0 = u64::from(cpuid(0xd, 0).0) & XCR0_SUPPORTED;
        // SAFETY: OSXSAVE is on, and only features that CPUID lists are set. Bits 5 to 7 come
        // together in CPUID.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") xcr0 as u32, in("edx") (xcr0 >> 32) as u32, options(nomem, nostack));
        }
        XCR0.store(xcr0, Ordering::Relaxed);
        // EBX: size for the features that XCR0 enables now.
        XSAVE_BYTES.store(cpuid(0xd, 0).1, Ordering::Relaxed);
        XSAVEOPT.store(cpuid(0xd, 1).0 & 1 != 0, Ordering::Relaxed);
    }
}

/// XCR0; 0 when the CPU has no XSAVE.
#[inline]
pub fn xcr0() -> u64 {
    XCR0.load(Ordering::Relaxed)
}

/// Bytes of an XSAVE (or, without it, FXSAVE) image.
#[inline]
pub fn vector_state_bytes() -> usize {
    XSAVE_BYTES.load(Ordering::Relaxed) as usize
}

#[inline]
pub fn has_xsaveopt() -> bool {
    XSAVEOPT.load(Ordering::Relaxed)
}

#[inline]
pub fn has_fsgsbase() -> bool {
    FSGSBASE.load(Ordering::Relaxed)
}

/// The hypervisor's signature (CPUID 0x4000_0000), if there is one.
pub fn hypervisor() -> Option<[u8; 12]> {
    if cpuid(1, 0).2 & (1 << 31) == 0 {
        return None;
    }
    let (_, b, c, d) = cpuid(0x4000_0000, 0);
    let mut signature = [0; 12];
    signature[..4].copy_from_slice(&b.to_le_bytes());
    signature[4..8].copy_from_slice(&c.to_le_bytes());
    signature[8..].copy_from_slice(&d.to_le_bytes());
    Some(signature)
}
