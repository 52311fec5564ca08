//! ACPI tables: CPUs, interrupt controllers, PCI configuration space, ways to power off, and the
//! virtio-mmio devices that QEMU's microvm and Firecracker describe.
//!
//! There is no AML interpreter: the DSDT is searched for the two patterns that are needed ([`aml`]).
//! Each table's length is bounded and its checksum checked before it is believed (ACPI 6.5,
//! chapter 5).
use alloc::{vec, vec::Vec};
use core::fmt;

use crate::physical::{PhysReader, u16_at, u32_at, u64_at};

pub mod aml;
#[cfg(test)]
mod tests;

const HEADER_LEN: usize = 36;
const MAX_TABLE_LEN: u32 = 1 << 20;
const MAX_TABLES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No root pointer where the loader said, and none in the BIOS area.
    NoRootPointer,
    /// A table lies outside memory.
    Unreadable(u64),
    BadChecksum([u8; 4]),
    BadLength([u8; 4], u32),
    WrongSignature([u8; 4]),
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRootPointer => write!(f, "no ACPI root pointer"),
            Self::Unreadable(address) => write!(f, "ACPI table at {address:#x} lies outside memory"),
            Self::BadChecksum(table) => write!(f, "ACPI table {} has a wrong checksum", table.escape_ascii()),
            Self::BadLength(table, len) => write!(f, "ACPI table {} has length {len}", table.escape_ascii()),
            Self::WrongSignature(table) => write!(f, "ACPI table {} where another should be", table.escape_ascii()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    pub apic_id: u32,
    /// Usable now; others could be plugged in later.
    pub enabled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    pub address: u64,
    /// Global interrupt of its first line.
    pub first_gsi: u32,
}

/// Where an ISA interrupt arrives, if not on the line of the same number, edge and active high.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    pub irq: u8,
    pub gsi: u32,
    pub level: bool,
    pub active_low: bool,
}

/// PCI configuration space in memory, one megabyte a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Where bus 0 is, or would be.
    pub base: u64,
    pub segment: u16,
    pub first_bus: u8,
    pub last_bus: u8,
}

/// A register of one byte or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    Port(u16),
    Memory(u64),
}

/// What power-off and reset need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Power {
    pub pm1a_control: Option<u16>,
    pub pm1b_control: Option<u16>,
    /// Sleep type that means S5, for PM1a and PM1b.
    pub s5_type: Option<(u8, u8)>,
    /// Hardware-reduced machines sleep by this register.
    pub sleep_control: Option<Register>,
    pub reset: Option<(Register, u8)>,
}

/// The ACPI timer: 3.579545 MHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    pub register: Register,
    /// 32 bits, else 24.
    pub wide: bool,
}

/// A virtio-mmio device, and how its interrupt arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    pub address: u64,
    pub len: u64,
    pub gsi: u32,
    pub level: bool,
    pub active_low: bool,
}

/// What the tables say. Missing tables leave their part empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acpi {
    pub local_apic: Option<u64>,
    pub cpus: Vec<Cpu>,
    pub ioapics: Vec<IoApic>,
    pub overrides: Vec<Override>,
    pub ecam: Vec<Ecam>,
    /// Where PCI devices' memory may be put, as (start, exclusive end), on a machine that has no
    /// MCFG: without one there is no firmware either that has put it anywhere.
    pub pci_windows: Vec<(u64, u64)>,
    pub power: Power,
    pub pm_timer: Option<PmTimer>,
    /// FADT's boot flags say that there is no CMOS clock.
    pub no_cmos_clock: bool,
    pub virtio_mmio: Vec<VirtioMmio>,
    bridge: Option<Ecam>,
}

impl Acpi {
    /// Reads everything. `rsdp` is what the loader said; with 0 the BIOS area is searched.
    pub fn read(memory: &impl PhysReader, rsdp: u64) -> Result<Self, AcpiError> {
        let rsdp = if rsdp != 0 { rsdp } else { find_root_pointer(memory).ok_or(AcpiError::NoRootPointer)? };
        let mut acpi = Self::default();
        for address in table_addresses(memory, rsdp)? {
            let mut signature = [0; 4];
            if !memory.read(address, &mut signature) {
                return Err(AcpiError::Unreadable(address));
            }
            match &signature {
                b"APIC" => acpi.take_madt(&read_table(memory, address, *b"APIC")?),
                b"MCFG" => acpi.take_mcfg(&read_table(memory, address, *b"MCFG")?),
                b"FACP" => {
                    let dsdt = acpi.take_fadt(&read_table(memory, address, *b"FACP")?);
                    if dsdt != 0 {
                        acpi.take_dsdt(&read_table(memory, dsdt, *b"DSDT")?);
                    }
                }
                _ => {}
            }
        }
        match acpi.bridge.take() {
            Some(bridge) if acpi.ecam.is_empty() => acpi.ecam.push(bridge),
            _ => acpi.pci_windows.clear(),
        }
        Ok(acpi)
    }

    /// Leaves out whatever does not lie below `end`, which is as far as the CPU's addresses reach.
    pub fn keep_below(&mut self, end: u64) {
        let below = |register: &Register| !matches!(register, Register::Memory(address) if *address >= end);
        let reaches = |start: u64, len: u64| start.checked_add(len).is_some_and(|stop| stop <= end);
        self.local_apic = self.local_apic.filter(|address| reaches(*address, 4096));
        self.ioapics.retain(|ioapic| reaches(ioapic.address, 4096));
        self.ecam.retain(|ecam| reaches(ecam.base, (u64::from(ecam.last_bus) + 1) << 20));
        self.pci_windows.retain(|window| window.1 <= end);
        self.virtio_mmio.retain(|device| reaches(device.address, 4096));
        self.power.sleep_control = self.power.sleep_control.filter(below);
        self.power.reset = self.power.reset.filter(|(register, _)| below(register));
        self.pm_timer = self.pm_timer.filter(|timer| below(&timer.register));
    }

    /// Where an ISA interrupt arrives: (global interrupt, level, active low).
    pub fn isa_route(&self, irq: u8) -> (u32, bool, bool) {
        match self.overrides.iter().find(|o| o.irq == irq) {
            Some(o) => (o.gsi, o.level, o.active_low),
            None => (u32::from(irq), false, false),
        }
    }

    /// Multiple APIC description table (5.2.12).
    fn take_madt(&mut self, table: &[u8]) {
        self.local_apic = u32_at(table, 36).map(u64::from);
        let mut rest = table.get(44..).unwrap_or(&[]);
        while let [kind, len, ..] = *rest {
            let Some(entry) = rest.get(..usize::from(len)).filter(|entry| entry.len() >= 2) else { return };
            rest = &rest[entry.len()..];
            // A short entry gives None somewhere, and is left out.
            let _ = self.take_madt_entry(kind, entry);
        }
    }

    fn take_madt_entry(&mut self, kind: u8, entry: &[u8]) -> Option<()> {
        const ENABLED: u32 = 1;
        const ONLINE_CAPABLE: u32 = 2;
        let mut add_cpu = |apic_id: u32, flags: u32| {
            // Firmware may list one twice, by an xAPIC's entry and an x2APIC's.
            let known = self.cpus.iter().any(|cpu| cpu.apic_id == apic_id);
            if flags & (ENABLED | ONLINE_CAPABLE) != 0 && !known {
                self.cpus.push(Cpu { apic_id, enabled: flags & ENABLED != 0 });
            }
        };
        match kind {
            0 => add_cpu(u32::from(*entry.get(3)?), u32_at(entry, 4)?),
            9 => add_cpu(u32_at(entry, 4)?, u32_at(entry, 8)?),
            1 => {
                self.ioapics.push(IoApic { address: u64::from(u32_at(entry, 4)?), first_gsi: u32_at(entry, 8)? });
            }
            2 => {
                let flags = u16_at(entry, 8)?;
                self.overrides.push(Override {
                    irq: *entry.get(3)?,
                    gsi: u32_at(entry, 4)?,
                    active_low: flags & 3 == 3,
                    level: flags >> 2 & 3 == 3,
                });
            }
            5 => self.local_apic = Some(u64_at(entry, 4)?),
            _ => {}
        }
        Some(())
    }

    fn take_mcfg(&mut self, table: &[u8]) {
        for entry in table.get(44..).unwrap_or(&[]).chunks_exact(16) {
            let (Some(base), Some(segment)) = (u64_at(entry, 0), u16_at(entry, 8)) else { continue };
            if entry[10] <= entry[11] && base.checked_add(256 << 20).is_some() {
                self.ecam.push(Ecam { base, segment, first_bus: entry[10], last_bus: entry[11] });
            }
        }
    }

    /// Fixed ACPI description table (5.2.9). The result is the DSDT's address, 0: none.
    fn take_fadt(&mut self, table: &[u8]) -> u64 {
        const TIMER_32_BITS: u32 = 1 << 8;
        const RESET_SUPPORTED: u32 = 1 << 10;
        const HW_REDUCED: u32 = 1 << 20;
        const NO_CMOS_CLOCK: u16 = 1 << 5;
        let flags = u32_at(table, 112).unwrap_or(0);
        let port = |extended: usize, plain: usize| {
            generic_address(table, extended).or_else(|| match u32_at(table, plain)? {
                0 => None,
                port => u16::try_from(port).ok().map(Register::Port),
            })
        };
        let as_port = |register: Option<Register>| match register {
            Some(Register::Port(port)) => Some(port),
            _ => None,
        };
        if flags & HW_REDUCED == 0 {
            self.power.pm1a_control = as_port(port(172, 64));
            self.power.pm1b_control = as_port(port(184, 68));
            self.pm_timer = port(208, 76).map(|register| PmTimer { register, wide: flags & TIMER_32_BITS != 0 });
        } else {
            self.power.sleep_control = generic_address(table, 244);
        }
        if flags & RESET_SUPPORTED != 0 {
            self.power.reset = generic_address(table, 116).zip(table.get(128).copied());
        }
        self.no_cmos_clock = u16_at(table, 109).is_some_and(|arch| arch & NO_CMOS_CLOCK != 0);
        match u64_at(table, 140) {
            Some(dsdt) if dsdt != 0 => dsdt,
            _ => u32_at(table, 40).map_or(0, u64::from),
        }
    }

    fn take_dsdt(&mut self, table: &[u8]) {
        let aml = table.get(HEADER_LEN..).unwrap_or(&[]);
        self.power.s5_type = aml::sleep_type_s5(aml);
        self.virtio_mmio = aml::virtio_mmio(aml);
        self.take_host_bridge(aml);
    }

    /// Found in the DSDT, a host bridge counts only where there is no MCFG ([`Acpi::read`]).
    fn take_host_bridge(&mut self, aml: &[u8]) {
        let Some(base) = aml::ecam_base(aml).filter(|base| base.checked_add(256 << 20).is_some()) else { return };
        self.bridge = Some(Ecam { base, segment: 0, first_bus: 0, last_bus: 255 });
        let outside = |&(start, end): &(u64, u64)| base < start || base >= end;
        self.pci_windows = aml::memory_windows(aml).into_iter().filter(outside).collect();
    }
}

/// Generic address structure (5.2.3.2). None: unused, or of a kind that cannot be reached.
fn generic_address(table: &[u8], at: usize) -> Option<Register> {
    let space = *table.get(at)?;
    let address = u64_at(table, at + 4).filter(|address| *address != 0)?;
    match space {
        0 => Some(Register::Memory(address)),
        1 => u16::try_from(address).ok().map(Register::Port),
        _ => None,
    }
}

/// "RSD PTR " on a 16-byte boundary of the BIOS area, with a valid checksum.
pub fn find_root_pointer(memory: &impl PhysReader) -> Option<u64> {
    (0xe_0000..0x10_0000).step_by(16).find(|&address| {
        let mut bytes = [0; 20];
        memory.read(address, &mut bytes) && bytes.starts_with(b"RSD PTR ") && sums_to_zero(&bytes)
    })
}

/// Addresses of the tables that the root pointer's XSDT, or else RSDT, lists.
fn table_addresses(memory: &impl PhysReader, rsdp: u64) -> Result<Vec<u64>, AcpiError> {
    let mut root = [0; 36];
    let (plain, extended) = root.split_at_mut(20);
    if !memory.read(rsdp, plain) {
        return Err(AcpiError::Unreadable(rsdp));
    }
    if !plain.starts_with(b"RSD PTR ") {
        return Err(AcpiError::NoRootPointer);
    }
    if !sums_to_zero(plain) {
        return Err(AcpiError::BadChecksum(*b"RSD "));
    }
    if plain[15] >= 2 {
        if !memory.read(rsdp.wrapping_add(20), extended) {
            return Err(AcpiError::Unreadable(rsdp));
        }
        if !sums_to_zero(&root) {
            return Err(AcpiError::BadChecksum(*b"RSD "));
        }
        if let Some(xsdt) = u64_at(&root, 24).filter(|address| *address != 0) {
            let table = read_table(memory, xsdt, *b"XSDT")?;
            return Ok(table[HEADER_LEN..].chunks_exact(8).take(MAX_TABLES).filter_map(|e| u64_at(e, 0)).collect());
        }
    }
    let rsdt = u32_at(&root, 16).map_or(0, u64::from);
    let table = read_table(memory, rsdt, *b"RSDT")?;
    let entries = table[HEADER_LEN..].chunks_exact(4).take(MAX_TABLES);
    Ok(entries.filter_map(|e| u32_at(e, 0).map(u64::from)).collect())
}

/// The whole table, its header included.
fn read_table(memory: &impl PhysReader, address: u64, wanted: [u8; 4]) -> Result<Vec<u8>, AcpiError> {
    let mut header = [0; HEADER_LEN];
    if !memory.read(address, &mut header) {
        return Err(AcpiError::Unreadable(address));
    }
    if header[..4] != wanted {
        return Err(AcpiError::WrongSignature([header[0], header[1], header[2], header[3]]));
    }
    let len = u32_at(&header, 4).unwrap_or(0);
    if (len as usize) < HEADER_LEN || len > MAX_TABLE_LEN {
        return Err(AcpiError::BadLength(wanted, len));
    }
    let mut table = vec![0; len as usize];
    if !memory.read(address, &mut table) {
        return Err(AcpiError::Unreadable(address));
    }
    if !sums_to_zero(&table) {
        return Err(AcpiError::BadChecksum(wanted));
    }
    Ok(table)
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}
