//! What all transports offer, and the start of every driver (virtio 1.2, section 3.1).
use super::{VirtioError, feature};

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const FAILED: u8 = 128;
/// A reset is done when the status reads 0; a device that never gets there is broken.
const RESET_PATIENCE: u32 = 100_000;
/// Firecracker's devices answer with FAILED, and stay so: each look is an exit. A device that failed before
/// may read so for a moment.
const FAILED_PATIENCE: u32 = 100;

/// Where a queue's three parts lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

pub trait Transport {
    /// One of [`super::device_type`], or another.
    fn device_type(&self) -> u32;
    /// A device of before virtio 1.0: no feature bit above 31, and no [`feature::VERSION_1`].
    fn is_legacy(&self) -> bool;
    fn status(&self) -> u8;
    fn set_status(&mut self, status: u8);
    fn offered_features(&mut self) -> u64;
    fn accept_features(&mut self, features: u64);
    /// 0: there is no such queue.
    fn max_queue_size(&mut self, queue: u16) -> u16;
    /// Sets the queue up and enables it. `vector` is an MSI-X table entry.
    fn set_queue(
        &mut self,
        queue: u16,
        size: u16,
        addresses: QueueAddresses,
        vector: Option<u16>,
    ) -> Result<(), VirtioError>;
    /// Tells the device that there are new buffers.
    fn notify(&mut self, queue: u16);
    /// Little-endian field of the device's configuration.
    fn config32(&self, offset: u32) -> u32;
    fn set_config32(&mut self, offset: u32, value: u32);
    /// Which MSI-X table entry tells of changes to the configuration. Lost by a reset.
    fn set_config_vector(&mut self, _vector: Option<u16>) -> Result<(), VirtioError> {
        Ok(())
    }
    fn config_generation(&self) -> u32;
    /// Takes the interrupt back, where a wire needs that.
    fn acknowledge_interrupt(&mut self) {}

    /// A 64-bit configuration field, never torn.
    fn config64(&self, offset: u32) -> u64 {
        let read = || u64::from(self.config32(offset)) | u64::from(self.config32(offset + 4)) << 32;
        for _ in 0..16 {
            let before = self.config_generation();
            let value = read();
            if self.config_generation() == before {
                return value;
            }
        }
        read()
    }

    /// Resets the device. It stops using the queues' memory, unless it is broken (false).
    fn reset(&mut self) -> bool {
        self.set_status(0);
        let mut failed = 0;
        for _ in 0..RESET_PATIENCE {
            match self.status() {
                0 => return true,
                status if status & FAILED != 0 && failed == FAILED_PATIENCE => return false,
                status => failed += u32::from(status & FAILED != 0),
            }
        }
        false
    }
}

/// As [`negotiate`] once more, after a reset: `before` was agreed on, and must be again.
pub fn renegotiate(transport: &mut impl Transport, before: u64) -> Result<(), VirtioError> {
    let now = negotiate(transport, before)?;
    if now == before { Ok(()) } else { Err(VirtioError::Unusable) }
}

/// Resets the device and agrees on features: the offered ones among `wanted`.
pub fn negotiate(transport: &mut impl Transport, wanted: u64) -> Result<u64, VirtioError> {
    if !transport.reset() {
        return Err(VirtioError::Unusable);
    }
    transport.set_status(ACKNOWLEDGE);
    transport.set_status(ACKNOWLEDGE | DRIVER);
    let offered = transport.offered_features();
    if transport.is_legacy() {
        let features = offered & wanted & u64::from(u32::MAX);
        transport.accept_features(features);
        return Ok(features);
    }
    let features = offered & (wanted | feature::VERSION_1 | feature::ACCESS_PLATFORM);
    if features & feature::VERSION_1 == 0 {
        transport.set_status(FAILED);
        return Err(VirtioError::Unusable);
    }
    transport.accept_features(features);
    transport.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if transport.status() & FEATURES_OK == 0 {
        transport.set_status(FAILED);
        return Err(VirtioError::Unusable);
    }
    Ok(features)
}

/// The queues are there: the device may begin.
pub fn start(transport: &mut impl Transport) {
    let agreed = if transport.is_legacy() { 0 } else { FEATURES_OK };
    transport.set_status(ACKNOWLEDGE | DRIVER | agreed | DRIVER_OK);
}
