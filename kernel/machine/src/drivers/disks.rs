//! Finding the disks: virtio on PCI, and on memory-mapped registers that ACPI or the command line
//! announce.
use alloc::{sync::Arc, vec::Vec};

use abi::boot::MmioDevice;
use logic::{
    acpi::{Acpi, VirtioMmio},
    pci::Function,
    virtio::{
        VirtioError, device_type,
        mmio::MmioTransport,
        pci::{Layout, PciTransport},
    },
};
use rt::block::BlockDevice;

use super::{
    memory::Window,
    pci::Host,
    virtio_blk::{DISK_LIMIT, Handle, interrupt},
};
use crate::cpu::{apic, ioapic, irq};

type Disk = Arc<dyn BlockDevice>;

/// All disks, PCI first, each bus in address order. A device that cannot be used is left out with
/// one line in the log.
pub fn find(acpi: &Acpi, announced: &[MmioDevice]) -> Vec<Disk> {
    let mut disks = Vec::new();
    if let Some(host) = Host::find(&acpi.ecam) {
        for function in host.functions() {
            if logic::virtio::pci::device_type(&function) == Some(device_type::BLOCK) {
                add(&mut disks, "PCI", || on_pci(&host, &function));
            }
        }
    }
    for place in mmio_places(acpi, announced) {
        add(&mut disks, "MMIO", || on_mmio(&place));
    }
    disks
}

fn add(disks: &mut Vec<Disk>, bus: &str, start: impl FnOnce() -> Result<Disk, VirtioError>) {
    if disks.len() >= DISK_LIMIT {
        return;
    }
    match start() {
        Ok(disk) => {
            log::info!("virtio disk on {bus}: {} sectors", disk.sectors());
            disks.push(disk);
        }
        // An empty slot, or a device of another kind.
        Err(VirtioError::NotThere) => {}
        Err(error) => log::warn!("a disk on {bus} is not used: {error}"),
    }
}

fn on_pci(host: &Host, function: &Function) -> Result<Disk, VirtioError> {
    if !host.enable(function) {
        return Err(VirtioError::NoRoom);
    }
    let layout = Layout::find(host, function)?;
    let transport = PciTransport::new(&layout, |place| host.map_bar(function, place.bar, place.offset, place.len))?;
    let handle = Handle::new();
    let vector = host.connect_interrupt(function, interrupt, handle.data());
    if vector.is_none() {
        log::warn!("a disk on PCI has no MSI-X: it is polled");
    }
    Ok(handle.start(transport, vector, vector.is_some())?)
}

fn on_mmio(place: &VirtioMmio) -> Result<Disk, VirtioError> {
    let len = u32::try_from(place.len).map_err(|_| VirtioError::Unusable)?;
    let transport = MmioTransport::new(Window::map(place.address, len))?;
    if logic::virtio::transport::Transport::device_type(&transport) != device_type::BLOCK {
        return Err(VirtioError::NotThere);
    }
    let handle = Handle::new();
    let vector = irq::allocate(interrupt, handle.data());
    let routed =
        vector.is_some_and(|vector| ioapic::route(place.gsi, vector, place.level, place.active_low, apic::id()));
    if !routed {
        log::warn!("a disk on MMIO has no interrupt: it is polled");
    }
    Ok(handle.start(transport, None, routed)?)
}

/// Announced twice, as on microvm, a device counts once; the tables know more about the wire.
fn mmio_places(acpi: &Acpi, announced: &[MmioDevice]) -> Vec<VirtioMmio> {
    let mut places = acpi.virtio_mmio.clone();
    for device in announced {
        if places.iter().all(|place| place.address != device.base) {
            places.push(VirtioMmio {
                address: device.base,
                len: device.size_bytes,
                gsi: device.irq,
                // Right for a pulse and for a line that the acknowledgement lowers.
                level: false,
                active_low: false,
            });
        }
    }
    places.sort_by_key(|place| place.address);
    places
}
