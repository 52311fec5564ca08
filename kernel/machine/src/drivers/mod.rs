//! Drivers: the serial port, ways to end the machine, and (through `virtio-drivers`) disks.
pub mod power;
pub mod ram_disk;
pub mod serial;

/// The first disk that was found, if any.
pub fn first_disk() -> Option<alloc::sync::Arc<dyn rt::block::BlockDevice>> {
    None
}
