#![allow(unsafe_code, reason = "XSAVE and XRSTOR")]
//! Vector, x87 and MXCSR state over task switches, and as signal frames carry it.
//!
//! Entry paths save only the low halves of xmm0-7, which kernel code may change; all else stays in the
//! registers until a switch saves it here. So an area holds stale low halves of those eight: the task's
//! trap frame has the right ones.
use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::{arch::asm, ptr, ptr::NonNull};

use rt::{
    page::OutOfFrames,
    regs::{TrapFrame, VECTOR_STATE_BYTES, VectorState},
};

use crate::cpu::features;

const XMM_OFFSET: usize = 160;
const MXCSR_OFFSET: usize = 24;
const MXCSR_MASK_OFFSET: usize = 28;
const HEADER_OFFSET: usize = 512;
const HEADER_BYTES: usize = 64;
/// SDM: MXCSR bits without a mask in the FXSAVE image.
const MXCSR_DEFAULT_MASK: u32 = 0xffbf;
const INITIAL_CONTROL_WORD: u16 = 0x37f;
const INITIAL_MXCSR: u32 = 0x1f80;
const X87_SSE: u64 = 3;

/// A task's save area in standard XSAVE format (FXSAVE without XSAVE).
pub struct VectorArea {
    area: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the area is owned memory, used by the CPU that switches its task only.
unsafe impl Send for VectorArea {}
// SAFETY: as above.
unsafe impl Sync for VectorArea {}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 64).expect("XSAVE areas are small")
}

impl VectorArea {
    /// The architecture's initial state.
    pub fn initial() -> Result<Self, OutOfFrames> {
        let bytes = features::vector_state_bytes().max(HEADER_OFFSET + HEADER_BYTES);
        // SAFETY: the layout is not empty.
        let area = NonNull::new(unsafe { alloc_zeroed(layout(bytes)) }).ok_or(OutOfFrames)?;
        let mut this = Self { area, bytes };
        // An XSTATE_BV of 0 means initial state, but for MXCSR, which XRSTOR takes from here anyhow.
        this.bytes_mut()[..2].copy_from_slice(&INITIAL_CONTROL_WORD.to_le_bytes());
        this.bytes_mut()[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&INITIAL_MXCSR.to_le_bytes());
        Ok(this)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: owned, initialised (zeroed) memory of this length.
        unsafe { core::slice::from_raw_parts_mut(self.area.as_ptr(), self.bytes) }
    }

    /// Stores the registers.
    pub fn save(&self) {
        let area = self.area.as_ptr();
        let features = features::xcr0();
        // SAFETY: the area is 64-byte aligned and as large as CPUID asks for XCR0's features.
        unsafe {
            if features == 0 {
                asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags));
            } else if features::has_xsaveopt() {
                asm!("xsaveopt64 [{}]", in(reg) area, in("eax") features as u32, in("edx") (features >> 32) as u32, options(nostack, preserves_flags));
            } else {
                asm!("xsave64 [{}]", in(reg) area, in("eax") features as u32, in("edx") (features >> 32) as u32, options(nostack, preserves_flags));
            }
        }
    }

    /// Loads the registers, all XMM registers among them.
    pub fn restore(&self) {
        let area = self.area.as_ptr();
        let features = features::xcr0();
        // SAFETY: as in `save`; the image was stored by the CPU or checked by `load_image`.
        unsafe {
            if features == 0 {
                asm!("fxrstor64 [rdi]", in("rdi") area, clobber_abi("C"), options(nostack));
            } else {
                asm!("xrstor64 [rdi]", in("rdi") area, in("eax") features as u32, in("edx") (features >> 32) as u32, clobber_abi("C"), options(nostack));
            }
        }
    }

    /// Copies another task's state (clone).
    pub fn copy_from(&mut self, other: &Self) {
        // SAFETY: both areas have the machine's one size, and are distinct allocations.
        unsafe { ptr::copy_nonoverlapping(other.area.as_ptr(), self.area.as_ptr(), self.bytes) };
    }

    /// Stores the registers, those in their initial state as well, which XSAVEOPT leaves out.
    fn save_completely(&self) {
        let features = features::xcr0();
        if features == 0 {
            return self.save();
        }
        // SAFETY: as in `save`.
        unsafe {
            asm!("xsave64 [{}]", in(reg) self.area.as_ptr(), in("eax") features as u32, in("edx") (features >> 32) as u32, options(nostack, preserves_flags));
        }
    }

    /// The image a signal frame gets: this area with the frame's low XMM halves.
    pub fn image(&mut self, frame: &TrapFrame, out: &mut VectorState) {
        self.save_completely();
        let len = if features::xcr0() == 0 { HEADER_OFFSET } else { self.bytes.min(VECTOR_STATE_BYTES) };
        let has_xsave = features::xcr0() != 0;
        let bytes = self.bytes_mut();
        for (at, register) in frame.xmm.iter().enumerate() {
            let from = XMM_OFFSET + 16 * at;
            bytes[from..from + 16].copy_from_slice(&register.to_le_bytes());
        }
        if has_xsave {
            // The registers are all there now, in their initial state or not.
            bytes[HEADER_OFFSET] |= X87_SSE as u8;
        }
        out.bytes[..len].copy_from_slice(&bytes[..len]);
        out.len = len;
        out.features = features::xcr0();
    }

    /// Takes an image that an application wrote. False: malformed, nothing changed.
    pub fn load_image(&mut self, frame: &mut TrapFrame, state: &VectorState) -> bool {
        let supported = features::xcr0();
        let len = if supported == 0 { HEADER_OFFSET } else { self.bytes.min(VECTOR_STATE_BYTES) };
        let with_header = supported != 0 && state.len >= len;
        if state.len < HEADER_OFFSET {
            return false;
        }
        let word = |at: usize| u64::from_le_bytes(state.bytes[at..at + 8].try_into().unwrap_or_default());
        if with_header {
            let present = word(HEADER_OFFSET);
            let compact = word(HEADER_OFFSET + 8);
            let reserved = (2..8).any(|index| word(HEADER_OFFSET + 8 * index) != 0);
            if present & !supported != 0 || compact != 0 || reserved {
                return false;
            }
        }
        let own_mask = u32::from_le_bytes(
            self.bytes_mut()[MXCSR_MASK_OFFSET..MXCSR_MASK_OFFSET + 4].try_into().unwrap_or_default(),
        );
        let mask = if own_mask == 0 { MXCSR_DEFAULT_MASK } else { own_mask };
        let bytes = self.bytes_mut();
        let copied = if with_header { len } else { HEADER_OFFSET };
        bytes[..copied].copy_from_slice(&state.bytes[..copied]);
        bytes[MXCSR_MASK_OFFSET..MXCSR_MASK_OFFSET + 4].copy_from_slice(&own_mask.to_le_bytes());
        // A reserved bit set would make the restore fault.
        let mxcsr = u32::from_le_bytes(bytes[MXCSR_OFFSET..MXCSR_OFFSET + 4].try_into().unwrap_or_default()) & mask;
        bytes[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&mxcsr.to_le_bytes());
        if supported != 0 && !with_header {
            // A legacy image: the rest goes to its initial state.
            bytes[HEADER_OFFSET..HEADER_OFFSET + HEADER_BYTES].fill(0);
            bytes[HEADER_OFFSET] = X87_SSE as u8;
        }
        let sse_present = supported == 0 || bytes[HEADER_OFFSET] & 2 != 0;
        for (at, register) in frame.xmm.iter_mut().enumerate() {
            let from = XMM_OFFSET + 16 * at;
            let value: [u8; 16] = bytes[from..from + 16].try_into().unwrap_or_default();
            *register = if sse_present { u128::from_le_bytes(value) } else { 0 };
        }
        self.restore();
        true
    }
}

impl Drop for VectorArea {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.area.as_ptr(), layout(self.bytes)) };
    }
}
