#![allow(unsafe_code, reason = "port I/O")]
//! The PCI host: configuration space by ECAM or by ports, BAR windows, MSI-X vectors.
//!
//! An access by ECAM is one exit from the guest, by ports two. So ports are for machines whose tables name
//! no ECAM, or one that says something else of the first function than they do.
use alloc::{collections::BTreeMap, vec::Vec};

use logic::{
    acpi::{Acpi, Ecam},
    pci::{
        self, Address, BarWindow, Bars, Capability, ConfigSpace, Function, Msix,
        bridges::{self, Windows},
    },
    virtio::Registers,
};
use x86_64::instructions::port::Port;

use super::memory::Window;
use crate::cpu::{
    apic, exits, features,
    ioapic::{self, Line},
    irq,
    lock::IrqSpin,
};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Where BARs go that firmware left out (qboot assigns none): 32-bit ones in the PCI hole below the
/// APICs, where PCs and QEMU's machines have no RAM; 64-bit ones above any RAM that these machines
/// have, and within the 40 physical address bits of the smallest CPU model.
const SPARE_LOW: BarWindow = BarWindow { next: 0xf000_0000, end: 0xfe00_0000 };
const SPARE_HIGH: BarWindow = BarWindow { next: 0x40_0000_0000, end: 0x80_0000_0000 };
/// Mapped at most of one part of a BAR: no driver here reaches further, whatever a capability claims.
const PART_BYTES: u32 = 4 << 20;

enum Access {
    Ports,
    /// A window for each function that was asked for: a whole bus would be 256 pages to map.
    Ecam(Ecam, BTreeMap<Address, Window>),
}

/// A function that was switched on.
#[derive(Clone, Copy)]
pub struct Device {
    pub function: Function,
    bars: Bars,
    msix: Option<Msix>,
}

/// Configuration space of one segment.
pub struct Host {
    access: IrqSpin<Access>,
    first_bus: u8,
    last_bus: u8,
    /// For functions behind bridges that firmware left closed.
    behind: IrqSpin<Windows>,
    /// For 32-bit and for 64-bit BARs.
    spare: IrqSpin<(BarWindow, BarWindow)>,
    /// Where the ISA interrupts arrive, to which firmware may have led a function's wire: (global
    /// interrupt, active low).
    isa_routes: [(u32, bool); 16],
}

impl Host {
    /// None: a machine without PCI.
    pub fn find(acpi: &Acpi) -> Option<Self> {
        let ecam = acpi.ecam.iter().find(|ecam| ecam.segment == 0).copied();
        let by_ecam = |ecam: Ecam| (Access::Ecam(ecam, BTreeMap::new()), ecam.first_bus, ecam.last_bus);
        let (access, first_bus, last_bus) = match (ports_answer(), ecam) {
            (false, None) => return None,
            (false, Some(ecam)) => by_ecam(ecam),
            (true, ecam) => {
                let first = Address { bus: 0, device: 0, function: 0 };
                let by_ports = Access::Ports.read(first, 0);
                let agrees = |ecam: &Ecam| {
                    ecam.first_bus == 0 && by_ports != u32::MAX && by_ecam(*ecam).0.read(first, 0) == by_ports
                };
                ecam.filter(agrees).map_or((Access::Ports, 0, u8::MAX), by_ecam)
            }
        };
        let isa_routes = core::array::from_fn(|irq| {
            let (gsi, _, active_low) = acpi.isa_route(irq as u8);
            (gsi, active_low)
        });
        Some(Self {
            access: IrqSpin::new(access),
            first_bus,
            last_bus,
            behind: IrqSpin::new(Windows::new()),
            spare: IrqSpin::new(spare_windows(acpi)),
            isa_routes,
        })
    }

    pub fn functions(&self) -> Vec<Function> {
        let found = pci::enumerate(self, self.first_bus);
        if !bridges::number_buses(self, &found, self.first_bus, self.last_bus) {
            return found;
        }
        pci::enumerate(self, self.first_bus)
    }

    /// Sizes the function's BARs, gives it those that are missing, and switches it on. None: no room.
    pub fn enable(&self, function: &Function, listed: &[Capability]) -> Option<Device> {
        let mut bars = Bars::size(self, function);
        let mut spare = self.spare.lock();
        let (low, high) = &mut *spare;
        let placed = if function.address.bus != self.first_bus && bars.lack_one() {
            self.place_behind(function, &mut bars, low)
        } else {
            pci::assign_bars(self, function, &mut bars, low, high)
        };
        placed.then(|| {
            pci::enable(self, function, &bars);
            Device { function: *function, bars, msix: pci::msix(self, function, listed) }
        })
    }

    /// Gives a function behind a bridge its BARs: those of both kinds go into the bridge's window.
    fn place_behind(&self, function: &Function, bars: &mut Bars, low: &mut BarWindow) -> bool {
        let mut behind = self.behind.lock();
        let bus = function.address.bus;
        let Some(window) = bridges::window_behind(self, self.first_bus, bus, low, &mut behind) else { return false };
        let half = window.next + (window.end - window.next) / 2;
        let (mut narrow, mut wide) = (BarWindow { end: half, ..*window }, BarWindow { next: half, ..*window });
        // One function a window; the next behind the same bridge finds what the wide ones left.
        let assigned = pci::assign_bars(self, function, bars, &mut narrow, &mut wide);
        *window = wide;
        assigned
    }

    /// Lets the function's interrupt wire call `run(data)` on this CPU, for a function without MSI-X.
    /// False: firmware has not said where the wire leads, another has that line, or all vectors are taken.
    /// (Whoever has messages does not use its wire.)
    pub fn connect_wire(&self, Device { function, .. }: &Device, run: fn(usize), data: usize) -> bool {
        let Some(irq) = pci::interrupt_line(self, function) else { return false };
        let (gsi, active_low) = self.isa_routes[usize::from(irq)];
        // The function itself keeps it low until `open_wire`.
        let routed = ioapic::route(Line { gsi, level: true, active_low }, apic::id(), || irq::allocate(run, data));
        if routed {
            ioapic::unmask(gsi);
        }
        routed
    }

    /// Lets the function use its wire, which [`Host::connect_wire`] connected.
    pub fn open_wire(&self, Device { function, .. }: &Device) {
        pci::use_wire(self, function);
    }

    /// Points MSI-X table entry 0 at `run(data)` on this CPU, and turns MSI-X on. None: the function
    /// has no MSI-X, or all vectors are taken.
    pub fn connect_interrupt(&self, device: &Device, run: fn(usize), data: usize) -> Option<u16> {
        const ENTRY: u16 = 0;
        let msix = device.msix?;
        let entry = device.map_bar(msix.bar, msix.offset, pci::MSIX_ENTRY_LEN)?;
        let (address, value) = irq::message(apic::id(), irq::allocate(run, data)?)?;
        entry.write32(0, address as u32);
        entry.write32(4, (address >> 32) as u32);
        entry.write32(8, value);
        entry.write32(12, 0);
        pci::enable_msix(self, &device.function, &msix);
        Some(ENTRY)
    }
}

impl Device {
    /// Maps part of a BAR. None: it does not lie in one.
    pub fn map_bar(&self, bar: u8, offset: u32, len: u32) -> Option<Window> {
        let bar = self.bars.get(bar)?;
        let end = u64::from(offset).checked_add(u64::from(len))?;
        let reached = bar.address.checked_add(end).is_some_and(features::is_address);
        let usable = reached && len > 0 && end <= bar.len && bar.address != 0 && offset.is_multiple_of(4);
        usable.then(|| Window::map(bar.address + u64::from(offset), len.min(PART_BYTES)))
    }

    /// It can interrupt by messages.
    pub fn has_messages(&self) -> bool {
        self.msix.is_some()
    }
}

impl ConfigSpace for Host {
    fn read(&self, at: Address, offset: u16) -> u32 {
        self.access.lock().read(at, offset)
    }

    fn write(&self, at: Address, offset: u16, value: u32) {
        self.access.lock().write(at, offset, value);
    }
}

impl Access {
    fn read(&mut self, at: Address, offset: u16) -> u32 {
        match self {
            Self::Ports => {
                select(at, offset);
                exits::port();
                // SAFETY: reads the configuration register that was selected; whoever has the ports for
                // good has them under a lock.
                unsafe { Port::new(DATA_PORT).read() }
            }
            Self::Ecam(ecam, windows) => match window(ecam, windows, at) {
                Some(window) => window.read32(u32::from(offset)),
                None => u32::MAX,
            },
        }
    }

    fn write(&mut self, at: Address, offset: u16, value: u32) {
        match self {
            Self::Ports => {
                select(at, offset);
                exits::port();
                // SAFETY: writes the selected register; the callers keep BARs away from RAM.
                unsafe { Port::new(DATA_PORT).write(value) }
            }
            Self::Ecam(ecam, windows) => {
                if let Some(window) = window(ecam, windows, at) {
                    window.write32(u32::from(offset), value);
                }
            }
        }
    }
}

/// For 32-bit and for 64-bit BARs: what the tables give away, else what is known to be free.
fn spare_windows(acpi: &Acpi) -> (BarWindow, BarWindow) {
    const LOW_END: u64 = 1 << 32;
    let windows = || acpi.pci_windows.iter().map(|&(next, end)| BarWindow { next, end });
    let reach = 1 << features::physical_address_bits().min(52);
    let low = windows().filter(|window| window.next >= 1 << 20).find(|window| window.end <= LOW_END);
    let high = windows().find(|window| window.next >= LOW_END);
    let high = high.unwrap_or(SPARE_HIGH);
    (low.unwrap_or(SPARE_LOW), BarWindow { end: high.end.min(reach), ..high })
}

fn select(at: Address, offset: u16) {
    let function = u32::from(at.bus) << 16 | u32::from(at.device) << 11 | u32::from(at.function) << 8;
    exits::port();
    // SAFETY: the address port only selects.
    unsafe { Port::new(ADDRESS_PORT).write(ENABLE | function | u32::from(offset & 0xfc)) }
}

fn ports_answer() -> bool {
    let mut port: Port<u32> = Port::new(ADDRESS_PORT);
    exits::port();
    exits::port();
    // SAFETY: the address port reads back what was written, where there is a host bridge.
    unsafe {
        port.write(ENABLE);
        port.read() == ENABLE
    }
}

fn window<'w>(ecam: &Ecam, windows: &'w mut BTreeMap<Address, Window>, at: Address) -> Option<&'w Window> {
    let there = (ecam.first_bus..=ecam.last_bus).contains(&at.bus);
    let offset = u64::from(at.bus) << 20 | u64::from(at.device) << 15 | u64::from(at.function) << 12;
    there.then(|| &*windows.entry(at).or_insert_with(|| Window::map(ecam.base + offset, 4096)))
}
