#![allow(unsafe_code, reason = "device registers and memory shared with devices")]
//! The two seams of the virtio drivers over real memory: register windows and DMA areas.
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use logic::virtio::{Dma, Registers};

use crate::cpu::exits;
use crate::memory::{
    frames, mmio,
    paging::{PAGE, direct},
};

/// Mapped registers of a device. Windows are never unmapped: devices do not go away.
pub struct Window {
    address: u64,
    len: u32,
}

impl Window {
    /// Maps `len` bytes at physical `physical`, aligned to 4.
    pub fn map(physical: u64, len: u32) -> Self {
        Self { address: mmio::map(physical, u64::from(len)) as u64, len }
    }

    /// Address of a register of type T. None: beyond the end, or misaligned.
    fn at<T>(&self, offset: u32) -> Option<*mut T> {
        let size = size_of::<T>() as u32;
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.len) && offset.is_multiple_of(size);
        inside.then(|| (self.address + u64::from(offset)) as *mut T)
    }

    fn read<T>(&self, offset: u32, absent: T) -> T {
        exits::mmio();
        // SAFETY: `at` gives aligned addresses within the mapped window only; any value is valid for
        // the integer types that this is called with.
        self.at::<T>(offset).map_or(absent, |register| unsafe { register.read_volatile() })
    }

    fn write<T>(&self, offset: u32, value: T) {
        if let Some(register) = self.at::<T>(offset) {
            exits::mmio();
            // SAFETY: as in `read`; what a write makes a device do reaches memory only by the DMA
            // addresses that the drivers give it.
            unsafe { register.write_volatile(value) }
        }
    }
}

impl Registers for Window {
    fn read8(&self, offset: u32) -> u8 {
        self.read(offset, u8::MAX)
    }
    fn read16(&self, offset: u32) -> u16 {
        self.read(offset, u16::MAX)
    }
    fn read32(&self, offset: u32) -> u32 {
        self.read(offset, u32::MAX)
    }
    fn write8(&self, offset: u32, value: u8) {
        self.write(offset, value);
    }
    fn write16(&self, offset: u32, value: u16) {
        self.write(offset, value);
    }
    fn write32(&self, offset: u32, value: u32) {
        self.write(offset, value);
    }
}

/// Contiguous frames for a device's queue. Never given back: a device that does not stop may still
/// write there.
pub struct DmaArea {
    physical: u64,
    len: usize,
}

impl DmaArea {
    /// Zeroed; at least `bytes`.
    pub fn allocate(bytes: usize) -> Option<Self> {
        let pages = bytes.div_ceil(PAGE as usize).next_power_of_two();
        let physical = frames::take_run(pages.ilog2())?;
        for page in 0..pages as u64 {
            frames::zero(physical + page * PAGE);
        }
        Some(Self { physical, len: pages * PAGE as usize })
    }

    fn at<T>(&self, offset: usize) -> &T {
        assert!(offset + size_of::<T>() <= self.len && offset.is_multiple_of(align_of::<T>()), "outside the DMA area");
        // SAFETY: within frames that this area owns and the direct map shows, aligned, and T is one
        // of the atomic integers, for which any bits and any concurrent device access are fine.
        unsafe { &*((direct(self.physical) + offset as u64) as *const T) }
    }
}

impl Dma for DmaArea {
    fn physical(&self) -> u64 {
        self.physical
    }
    fn len_bytes(&self) -> usize {
        self.len
    }
    fn load8(&self, offset: usize) -> u8 {
        self.at::<AtomicU8>(offset).load(Ordering::Acquire)
    }
    fn load16(&self, offset: usize) -> u16 {
        self.at::<AtomicU16>(offset).load(Ordering::Acquire)
    }
    fn load32(&self, offset: usize) -> u32 {
        self.at::<AtomicU32>(offset).load(Ordering::Acquire)
    }
    fn store8(&self, offset: usize, value: u8) {
        self.at::<AtomicU8>(offset).store(value, Ordering::Release);
    }
    fn store16(&self, offset: usize, value: u16) {
        self.at::<AtomicU16>(offset).store(value, Ordering::Release);
    }
    fn store32(&self, offset: usize, value: u32) {
        self.at::<AtomicU32>(offset).store(value, Ordering::Release);
    }
    fn store64(&self, offset: usize, value: u64) {
        self.at::<AtomicU64>(offset).store(value, Ordering::Release);
    }
}
