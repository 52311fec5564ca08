//! Virtio over memory-mapped registers (virtio 1.2, section 4.2), with the legacy interface (4.2.4)
//! that QEMU's microvm has unless told otherwise.
use super::{
    Registers, VirtioError,
    queue::USED_ALIGN,
    transport::{QueueAddresses, Transport},
};

const MAGIC: u32 = 0x000;
const VERSION: u32 = 0x004;
const DEVICE_ID: u32 = 0x008;
const DEVICE_FEATURES: u32 = 0x010;
const DEVICE_FEATURES_SELECT: u32 = 0x014;
const DRIVER_FEATURES: u32 = 0x020;
const DRIVER_FEATURES_SELECT: u32 = 0x024;
const LEGACY_PAGE_SIZE: u32 = 0x028;
const QUEUE_SELECT: u32 = 0x030;
const QUEUE_SIZE_MAX: u32 = 0x034;
const QUEUE_SIZE: u32 = 0x038;
const LEGACY_QUEUE_ALIGN: u32 = 0x03c;
const LEGACY_QUEUE_PAGE: u32 = 0x040;
const QUEUE_READY: u32 = 0x044;
const QUEUE_NOTIFY: u32 = 0x050;
const INTERRUPT_STATUS: u32 = 0x060;
const INTERRUPT_ACKNOWLEDGE: u32 = 0x064;
const STATUS: u32 = 0x070;
const QUEUE_DESCRIPTORS: u32 = 0x080;
const QUEUE_AVAILABLE: u32 = 0x090;
const QUEUE_USED: u32 = 0x0a0;
const GENERATION: u32 = 0x0fc;
const CONFIG: u32 = 0x100;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const PAGE: u64 = 4096;

pub struct MmioTransport<R> {
    registers: R,
    device_type: u32,
    legacy: bool,
}

impl<R: Registers> MmioTransport<R> {
    /// [`VirtioError::NotThere`]: an empty slot, of which microvm has many.
    pub fn new(registers: R) -> Result<Self, VirtioError> {
        let device_type = registers.read32(DEVICE_ID);
        let version = registers.read32(VERSION);
        if registers.read32(MAGIC) != MAGIC_VALUE || !(1..=2).contains(&version) || device_type == 0 {
            return Err(VirtioError::NotThere);
        }
        Ok(Self { registers, device_type, legacy: version == 1 })
    }

    fn write64(&self, offset: u32, value: u64) {
        self.registers.write32(offset, value as u32);
        self.registers.write32(offset + 4, (value >> 32) as u32);
    }
}

impl<R: Registers> Transport for MmioTransport<R> {
    fn device_type(&self) -> u32 {
        self.device_type
    }

    fn is_legacy(&self) -> bool {
        self.legacy
    }

    fn status(&self) -> u8 {
        self.registers.read32(STATUS) as u8
    }

    fn set_status(&mut self, status: u8) {
        self.registers.write32(STATUS, u32::from(status));
        if self.legacy && status == 0 {
            self.registers.write32(LEGACY_PAGE_SIZE, PAGE as u32);
        }
    }

    fn offered_features(&mut self) -> u64 {
        let half = |n| {
            self.registers.write32(DEVICE_FEATURES_SELECT, n);
            u64::from(self.registers.read32(DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    fn accept_features(&mut self, features: u64) {
        for half in 0..2 {
            self.registers.write32(DRIVER_FEATURES_SELECT, half);
            self.registers.write32(DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.registers.write32(QUEUE_SELECT, u32::from(queue));
        self.registers.read32(QUEUE_SIZE_MAX).min(u32::from(u16::MAX)) as u16
    }

    fn set_queue(
        &mut self,
        queue: u16,
        size: u16,
        addresses: QueueAddresses,
        _vector: Option<u16>,
    ) -> Result<(), VirtioError> {
        self.registers.write32(QUEUE_SELECT, u32::from(queue));
        self.registers.write32(QUEUE_SIZE, u32::from(size));
        if self.legacy {
            let page = u32::try_from(addresses.descriptors / PAGE).map_err(|_| VirtioError::NoRoom)?;
            self.registers.write32(LEGACY_QUEUE_ALIGN, USED_ALIGN as u32);
            self.registers.write32(LEGACY_QUEUE_PAGE, page);
            return Ok(());
        }
        self.write64(QUEUE_DESCRIPTORS, addresses.descriptors);
        self.write64(QUEUE_AVAILABLE, addresses.available);
        self.write64(QUEUE_USED, addresses.used);
        self.registers.write32(QUEUE_READY, 1);
        Ok(())
    }

    fn notify(&mut self, queue: u16) {
        self.registers.write32(QUEUE_NOTIFY, u32::from(queue));
    }

    fn config32(&self, offset: u32) -> u32 {
        self.registers.read32(CONFIG + offset)
    }

    fn set_config32(&mut self, offset: u32, value: u32) {
        self.registers.write32(CONFIG + offset, value);
    }

    fn config_generation(&self) -> u32 {
        // Legacy devices have none; the register reads as 0.
        if self.legacy { 0 } else { self.registers.read32(GENERATION) }
    }

    fn acknowledge_interrupt(&mut self) {
        let status = self.registers.read32(INTERRUPT_STATUS);
        self.registers.write32(INTERRUPT_ACKNOWLEDGE, status);
    }
}
