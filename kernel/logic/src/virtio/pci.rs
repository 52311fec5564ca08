//! Virtio over PCI (virtio 1.2, section 4.1), modern interface.
use super::{
    Registers, VirtioError,
    transport::{QueueAddresses, Transport},
};
use crate::pci::{self, Capability, ConfigSpace, Function};

const VENDOR: u16 = 0x1af4;
const MODERN_ID_BASE: u16 = 0x1040;
const NO_VECTOR: u16 = 0xffff;

/// Offsets in the common configuration (4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u32 = 0;
    pub const DEVICE_FEATURE: u32 = 4;
    pub const DRIVER_FEATURE_SELECT: u32 = 8;
    pub const DRIVER_FEATURE: u32 = 12;
    pub const CONFIG_VECTOR: u32 = 16;
    pub const STATUS: u32 = 20;
    pub const GENERATION: u32 = 21;
    pub const QUEUE_SELECT: u32 = 22;
    pub const QUEUE_SIZE: u32 = 24;
    pub const QUEUE_VECTOR: u32 = 26;
    pub const QUEUE_ENABLE: u32 = 28;
    pub const QUEUE_NOTIFY_OFFSET: u32 = 30;
    pub const QUEUE_DESCRIPTORS: u32 = 32;
    pub const QUEUE_AVAILABLE: u32 = 40;
    pub const QUEUE_USED: u32 = 48;
    pub const LEN: u32 = 56;
}

/// A structure of the device's within one of its BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub bar: u8,
    pub offset: u32,
    pub len: u32,
}

/// Where the device's structures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub device_type: u32,
    pub common: Place,
    pub notify: Place,
    pub notify_multiplier: u32,
    /// Read to take the interrupt back, where it comes by wire.
    pub interrupt_status: Option<Place>,
    pub device: Option<Place>,
}

/// Type of a virtio function, from its PCI identifier. None: it is none, or has no modern interface
/// number.
pub fn device_type(function: &Function) -> Option<u32> {
    /// Network, block, balloon, console, SCSI, entropy.
    const TRANSITIONAL: [u32; 6] = [1, 2, 5, 3, 8, 4];
    match (function.vendor, function.device) {
        (VENDOR, id) if id >= MODERN_ID_BASE => Some(u32::from(id - MODERN_ID_BASE)),
        (VENDOR, id) => TRANSITIONAL.get(usize::from(id.checked_sub(0x1000)?)).copied(),
        _ => None,
    }
}

impl Layout {
    /// From the capabilities that are `listed`.
    pub fn find(config: &impl ConfigSpace, function: &Function, listed: &[Capability]) -> Result<Self, VirtioError> {
        let device_type = device_type(function).ok_or(VirtioError::NotThere)?;
        let (mut common, mut notify, mut interrupt_status, mut device) = (None, None, None, None);
        for &Capability { id, offset, header } in listed {
            let word = |n: u16| config.read(function.address, offset + n);
            let kind = header >> 24;
            // The structure is 16 bytes, and within the 256 of the space.
            let usable = offset <= 0xf0 && (header >> 16) as u8 > 15;
            if id != pci::CAPABILITY_VENDOR || !usable || !(1..=4).contains(&kind) {
                continue;
            }
            let place = Place { bar: word(4) as u8, offset: word(8), len: word(12) };
            if place.bar > 5 {
                continue;
            }
            match kind {
                1 => common = common.or(Some(place)),
                2 if offset <= 0xec => notify = notify.or(Some((place, word(16)))),
                3 if place.len > 0 => interrupt_status = interrupt_status.or(Some(place)),
                4 => device = device.or(Some(place)),
                _ => {}
            }
        }
        let common = common.filter(|place| place.len >= common::LEN).ok_or(VirtioError::Unusable)?;
        let (notify, notify_multiplier) = notify.ok_or(VirtioError::Unusable)?;
        Ok(Self { device_type, common, notify, notify_multiplier, interrupt_status, device })
    }
}

/// A device, its structures mapped.
pub struct PciTransport<R> {
    device_type: u32,
    common: R,
    notify: R,
    notify_len: u32,
    notify_multiplier: u32,
    interrupt_status: Option<R>,
    device: Option<R>,
    /// Doorbell of each queue that was set up: an offset in `notify`.
    doorbells: [Option<u32>; 8],
}

impl<R: Registers> PciTransport<R> {
    /// `map` maps a structure; None: it does not lie in a BAR.
    pub fn new(layout: &Layout, mut map: impl FnMut(Place) -> Option<R>) -> Result<Self, VirtioError> {
        let mut mapped = |place| map(place).ok_or(VirtioError::Unusable);
        Ok(Self {
            device_type: layout.device_type,
            common: mapped(layout.common)?,
            notify: mapped(layout.notify)?,
            notify_len: layout.notify.len,
            notify_multiplier: layout.notify_multiplier,
            interrupt_status: layout.interrupt_status.map(&mut mapped).transpose()?,
            device: layout.device.map(mapped).transpose()?,
            doorbells: [None; 8],
        })
    }

    fn write64(&mut self, offset: u32, value: u64) {
        self.common.write32(offset, value as u32);
        self.common.write32(offset + 4, (value >> 32) as u32);
    }
}

impl<R: Registers> Transport for PciTransport<R> {
    fn device_type(&self) -> u32 {
        self.device_type
    }

    fn is_legacy(&self) -> bool {
        false
    }

    fn status(&self) -> u8 {
        self.common.read8(common::STATUS)
    }

    fn set_status(&mut self, status: u8) {
        self.common.write8(common::STATUS, status);
    }

    fn offered_features(&mut self) -> u64 {
        let half = |n| {
            self.common.write32(common::DEVICE_FEATURE_SELECT, n);
            u64::from(self.common.read32(common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    fn accept_features(&mut self, features: u64) {
        for half in 0..2 {
            self.common.write32(common::DRIVER_FEATURE_SELECT, half);
            self.common.write32(common::DRIVER_FEATURE, (features >> (32 * half)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.common.write16(common::QUEUE_SELECT, queue);
        self.common.read16(common::QUEUE_SIZE)
    }

    fn set_queue(
        &mut self,
        queue: u16,
        size: u16,
        addresses: QueueAddresses,
        vector: Option<u16>,
    ) -> Result<(), VirtioError> {
        self.common.write16(common::QUEUE_SELECT, queue);
        let offset = u32::from(self.common.read16(common::QUEUE_NOTIFY_OFFSET)).checked_mul(self.notify_multiplier);
        let doorbell = offset.filter(|at| at.checked_add(2).is_some_and(|end| end <= self.notify_len));
        let slot = self.doorbells.get_mut(usize::from(queue)).ok_or(VirtioError::NoRoom)?;
        *slot = Some(doorbell.filter(|at| at.is_multiple_of(2)).ok_or(VirtioError::Lied)?);
        self.common.write16(common::QUEUE_SIZE, size);
        let vector = vector.unwrap_or(NO_VECTOR);
        self.common.write16(common::QUEUE_VECTOR, vector);
        // The device answers "none" when it has no room for another vector.
        if self.common.read16(common::QUEUE_VECTOR) != vector {
            return Err(VirtioError::Unusable);
        }
        self.write64(common::QUEUE_DESCRIPTORS, addresses.descriptors);
        self.write64(common::QUEUE_AVAILABLE, addresses.available);
        self.write64(common::QUEUE_USED, addresses.used);
        self.common.write16(common::QUEUE_ENABLE, 1);
        Ok(())
    }

    fn notify(&mut self, queue: u16) {
        if let Some(Some(doorbell)) = self.doorbells.get(usize::from(queue)) {
            self.notify.write16(*doorbell, queue);
        }
    }

    fn config32(&self, offset: u32) -> u32 {
        self.device.as_ref().map_or(0, |device| device.read32(offset))
    }

    fn acknowledge_interrupt(&mut self) {
        if let Some(status) = &self.interrupt_status {
            status.read8(0);
        }
    }

    fn set_config32(&mut self, offset: u32, value: u32) {
        if let Some(device) = &self.device {
            device.write32(offset, value);
        }
    }

    fn set_config_vector(&mut self, vector: Option<u16>) -> Result<(), VirtioError> {
        let vector = vector.unwrap_or(NO_VECTOR);
        self.common.write16(common::CONFIG_VECTOR, vector);
        if self.common.read16(common::CONFIG_VECTOR) == vector { Ok(()) } else { Err(VirtioError::Unusable) }
    }

    fn config_generation(&self) -> u32 {
        u32::from(self.common.read8(common::GENERATION))
    }
}
