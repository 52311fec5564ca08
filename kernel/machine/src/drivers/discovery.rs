//! Finding virtio devices: on PCI, and on memory-mapped registers that ACPI or the command line
//! announce. [`super::start_devices`] gives each to its driver.
use alloc::{sync::Arc, vec::Vec};

use abi::boot::MmioDevice;
use logic::{
    acpi::{Acpi, VirtioMmio},
    pci::{self, Capability, Function},
    virtio::{
        VirtioError,
        mmio::MmioTransport,
        pci::{Layout, PciTransport, Place},
        transport::{QueueAddresses, Transport},
    },
};

use super::{
    memory::Window,
    pci::{Device, Host},
};
use crate::cpu::{
    apic, features,
    ioapic::{self, Line},
    irq,
    lock::InterruptsOff,
};

/// Registers and configuration of any device that is driven here; who announces more gets no more mapped.
const MMIO_BYTES: u64 = 4096;

/// A device that nobody drives yet.
pub struct Found {
    /// One of [`logic::virtio::device_type`], or another.
    pub device_type: u32,
    bus: Bus,
}

enum Bus {
    Pci(Arc<Host>, Function),
    Mmio(VirtioMmio, MmioTransport<Window>),
}

/// Either transport, so that drivers of which there is one instance need no type parameter.
pub enum DeviceTransport {
    Pci(PciTransport<Window>),
    Mmio(MmioTransport<Window>),
}

/// How a device raises interrupts.
pub enum Wire {
    Pci(Arc<Host>, Device),
    Mmio(VirtioMmio),
}

/// A connected interrupt.
#[derive(Clone, Copy, Debug)]
pub struct Connected {
    /// MSI-X table entry, where the device has a table.
    pub entry: Option<u16>,
    run: fn(usize),
    data: usize,
}

/// All virtio devices, PCI first, each bus in address order.
pub fn find(acpi: &Acpi, announced: &[MmioDevice]) -> Vec<Found> {
    let mut found = Vec::new();
    if let Some(host) = Host::find(acpi) {
        let host = Arc::new(host);
        for function in host.functions() {
            if let Some(device_type) = logic::virtio::pci::device_type(&function) {
                found.push(Found { device_type, bus: Bus::Pci(host.clone(), function) });
            }
        }
    }
    for place in mmio_places(acpi, announced) {
        let len = place.len.min(MMIO_BYTES) as u32;
        // An empty slot, of which microvm has many, is no device.
        if let Ok(transport) = MmioTransport::new(Window::map(place.address, len)) {
            found.push(Found { device_type: transport.device_type(), bus: Bus::Mmio(place, transport) });
        }
    }
    found
}

/// Announced twice, as on microvm, a device counts once; the tables know more about the wire.
fn mmio_places(acpi: &Acpi, announced: &[MmioDevice]) -> Vec<VirtioMmio> {
    let mut places = acpi.virtio_mmio.clone();
    for device in announced.iter().filter(|device| features::is_address(device.base)) {
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

impl Found {
    /// "PCI" or "MMIO", for the log.
    pub fn bus(&self) -> &'static str {
        match self.bus {
            Bus::Pci(..) => "PCI",
            Bus::Mmio(..) => "MMIO",
        }
    }

    /// Switches the device on as far as its bus is concerned.
    pub fn open(self) -> Result<(DeviceTransport, Wire), VirtioError> {
        match self.bus {
            Bus::Mmio(place, transport) => Ok((DeviceTransport::Mmio(transport), Wire::Mmio(place))),
            Bus::Pci(host, function) => {
                let listed: Vec<Capability> = pci::capabilities(&*host, &function).collect();
                let mut layout = Layout::find(&*host, &function, &listed)?;
                let device = host.enable(&function, &listed).ok_or(VirtioError::NoRoom)?;
                if device.has_messages() {
                    // Then nobody need ask why it interrupted.
                    layout.interrupt_status = None;
                }
                let map = |place: Place| device.map_bar(place.bar, place.offset, place.len);
                let transport = PciTransport::new(&layout, map)?;
                Ok((DeviceTransport::Pci(transport), Wire::Pci(host, device)))
            }
        }
    }
}

impl Wire {
    /// Lets the device's interrupt call `run(data)` on this CPU, once somebody [listens](Wire::listen). None:
    /// it has none, or all vectors are taken.
    pub fn connect(&self, run: fn(usize), data: usize) -> Option<Connected> {
        let by_wire = Connected { entry: None, run, data };
        match self {
            Self::Pci(host, device) => {
                if device.has_messages() {
                    host.connect_interrupt(device, run, data).map(|entry| Connected { entry: Some(entry), ..by_wire })
                } else {
                    host.connect_wire(device, run, data).then_some(by_wire)
                }
            }
            Self::Mmio(place) => {
                let line = Line { gsi: place.gsi, level: place.level, active_low: place.active_low };
                ioapic::route(line, apic::id(), || irq::allocate(run, data)).then_some(by_wire)
            }
        }
    }

    /// The driver is in place: opens a wire, whose interrupts nobody could have taken back before (one that is
    /// level-triggered would have come again for ever), and calls the handler for those that came too early.
    pub fn listen(&self, connected: Option<Connected>) {
        let Some(Connected { entry, run, data }) = connected else { return };
        match self {
            Self::Pci(..) if entry.is_some() => {}
            Self::Pci(host, device) => host.open_wire(device),
            Self::Mmio(place) => ioapic::unmask(place.gsi),
        }
        let _off = InterruptsOff::enter();
        run(data);
    }
}

/// Calls the same method of whichever it is.
macro_rules! either {
    ($self:ident, $transport:ident => $call:expr) => {
        match $self {
            Self::Pci($transport) => $call,
            Self::Mmio($transport) => $call,
        }
    };
}

impl Transport for DeviceTransport {
    fn device_type(&self) -> u32 {
        either!(self, transport => transport.device_type())
    }
    fn is_legacy(&self) -> bool {
        either!(self, transport => transport.is_legacy())
    }
    fn status(&self) -> u8 {
        either!(self, transport => transport.status())
    }
    fn set_status(&mut self, status: u8) {
        either!(self, transport => transport.set_status(status))
    }
    fn offered_features(&mut self) -> u64 {
        either!(self, transport => transport.offered_features())
    }
    fn accept_features(&mut self, features: u64) {
        either!(self, transport => transport.accept_features(features))
    }
    fn max_queue_size(&mut self, queue: u16) -> u16 {
        either!(self, transport => transport.max_queue_size(queue))
    }
    fn set_queue(
        &mut self,
        queue: u16,
        size: u16,
        addresses: QueueAddresses,
        vector: Option<u16>,
    ) -> Result<(), VirtioError> {
        either!(self, transport => transport.set_queue(queue, size, addresses, vector))
    }
    fn notify(&mut self, queue: u16) {
        either!(self, transport => transport.notify(queue))
    }
    fn config32(&self, offset: u32) -> u32 {
        either!(self, transport => transport.config32(offset))
    }
    fn set_config32(&mut self, offset: u32, value: u32) {
        either!(self, transport => transport.set_config32(offset, value))
    }
    fn set_config_vector(&mut self, vector: Option<u16>) -> Result<(), VirtioError> {
        either!(self, transport => transport.set_config_vector(vector))
    }
    fn config_generation(&self) -> u32 {
        either!(self, transport => transport.config_generation())
    }
    fn acknowledge_interrupt(&mut self) {
        either!(self, transport => transport.acknowledge_interrupt())
    }
}
