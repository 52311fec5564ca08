//! Virtio 1.2, the driver's side: transports, split virtqueues, block, console, entropy and network devices.
//!
//! All of it is safe code over two seams: [`Registers`] (a window of device registers) and [`Dma`]
//! (memory that the device reads and writes). The machine implements them over real memory, tests
//! over a fake device.
//!
//! Devices are not trusted. What the driver needs later it keeps in memory of its own; what a device
//! writes (used ring, status bytes, configuration) is checked before use. A device that breaks the
//! rules is reset and gets no more requests ([`VirtioError::Lied`]).
use core::fmt;

pub mod balloon;
pub mod block;
pub mod console;
pub mod entropy;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod lies;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod queue;
pub mod transport;

/// A window of device registers. An access beyond its end reads as all ones and writes nothing.
pub trait Registers {
    fn read8(&self, offset: u32) -> u8;
    fn read16(&self, offset: u32) -> u16;
    fn read32(&self, offset: u32) -> u32;
    fn write8(&self, offset: u32, value: u8);
    fn write16(&self, offset: u32, value: u16);
    fn write32(&self, offset: u32, value: u32);
}

/// Physically contiguous, page-aligned memory shared with a device. Loads acquire and stores
/// release. Offsets are the driver's own, never a device's: one beyond the end panics.
pub trait Dma {
    fn physical(&self) -> u64;
    fn len_bytes(&self) -> usize;
    fn load8(&self, offset: usize) -> u8;
    fn load16(&self, offset: usize) -> u16;
    fn load32(&self, offset: usize) -> u32;
    fn store8(&self, offset: usize, value: u8);
    fn store16(&self, offset: usize, value: u16);
    fn store32(&self, offset: usize, value: u32);
    fn store64(&self, offset: usize, value: u64);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtioError {
    /// No virtio device behind these registers, or not the wanted one.
    NotThere,
    /// It lacks something the specification demands, or refuses what it offered.
    Unusable,
    /// It broke the protocol: an index, identifier or length that cannot be.
    Lied,
    /// A resource that the driver needs is too small.
    NoRoom,
    /// It did not answer in time.
    Silent,
}

impl fmt::Display for VirtioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotThere => "no such virtio device",
            Self::Unusable => "the virtio device refuses its own features or has no queue",
            Self::Lied => "the virtio device broke the protocol and was switched off",
            Self::NoRoom => "no memory for the virtio device's queue",
            Self::Silent => "the virtio device does not answer",
        })
    }
}

/// Feature bits that every device may offer.
pub mod feature {
    pub const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Device types.
pub mod device_type {
    pub const NETWORK: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const CONSOLE: u32 = 3;
    pub const ENTROPY: u32 = 4;
    pub const BALLOON: u32 = 5;
}
