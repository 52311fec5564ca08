//! Drivers: the serial port, the wall clock, ways to end the machine, PCI, and virtio disks.
//!
//! Protocols and tables are in `logic` (`pci`, `virtio`, `acpi`), tested there against fake devices;
//! here is what touches hardware, and who waits. Devices are not trusted: nothing that one wrote is
//! used as an index, a length or an address without a check.
use alloc::{sync::Arc, vec::Vec};

use rt::block::BlockDevice;
use spin::Once;

pub mod disks;
pub mod memory;
pub mod pci;
pub mod power;
pub mod ram_disk;
pub mod rtc;
pub mod serial;
pub mod virtio_blk;

static DISKS: Once<Vec<Arc<dyn BlockDevice>>> = Once::new();

/// Finds and starts the disks. Once, at boot, when interrupt controllers are set up.
pub fn find_disks(acpi: &logic::acpi::Acpi, announced: &[abi::boot::MmioDevice]) {
    DISKS.call_once(|| disks::find(acpi, announced));
}

/// The first disk that was found, if any.
pub fn first_disk() -> Option<Arc<dyn BlockDevice>> {
    DISKS.get()?.first().cloned()
}
