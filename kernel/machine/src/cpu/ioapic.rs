#![allow(unsafe_code, reason = "device registers in memory")]
//! I/O APICs: wires of devices without message-signalled interrupts (serial port, virtio-mmio).
use alloc::vec::Vec;

use crate::{
    cpu::{exits, lock::IrqSpin},
    memory::mmio,
};

const REGISTER_VERSION: u32 = 1;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;
const MASKED: u32 = 1 << 16;
/// The highest CPU that a line can lead to.
const XAPIC_LAST_ID: u32 = 254;

struct IoApic {
    window: u64,
    first_gsi: u32,
    lines: u32,
    /// A bit for each line that leads somewhere.
    routed: u128,
}

static IOAPICS: IrqSpin<Vec<IoApic>> = IrqSpin::new(Vec::new());

impl IoApic {
    fn write(&self, register: u32, value: u32) {
        exits::mmio();
        exits::mmio();
        // SAFETY: the window maps the index and data registers of an I/O APIC that ACPI named.
        unsafe {
            (self.window as *mut u32).write_volatile(register);
            ((self.window + 0x10) as *mut u32).write_volatile(value);
        }
    }

    fn read(&self, register: u32) -> u32 {
        exits::mmio();
        exits::mmio();
        // SAFETY: as in `write`.
        unsafe {
            (self.window as *mut u32).write_volatile(register);
            ((self.window + 0x10) as *const u32).read_volatile()
        }
    }

    fn set_line(&self, line: u32, low: u32, apic_id: u32) {
        self.write(0x10 + 2 * line + 1, apic_id << 24);
        self.write(0x10 + 2 * line, low);
    }

    /// Where the line leads stays as it is: each access is an exit.
    fn mask_line(&self, line: u32) {
        self.write(0x10 + 2 * line, MASKED);
    }
}

/// Adds the I/O APIC at physical `address` and masks its lines.
pub fn add(address: u64, first_gsi: u32) {
    let mut ioapic = IoApic { window: mmio::map(address, 0x20) as u64, first_gsi, lines: 0, routed: 0 };
    // Real ones have 24 or 120; ones that are not there claim 256.
    ioapic.lines = ((ioapic.read(REGISTER_VERSION) >> 16 & 0xff) + 1).min(u128::BITS);
    for line in 0..ioapic.lines {
        ioapic.mask_line(line);
    }
    IOAPICS.lock().push(ioapic);
}

/// A global interrupt, and how its wire signals it.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub gsi: u32,
    pub level: bool,
    pub active_low: bool,
}

/// Leads a line to the vector that `vector` gives, on one CPU; it stays masked until [`unmask`]. False: no
/// I/O APIC has that line, it already leads to another vector, or there is none left.
pub fn route(line: Line, apic_id: u32, vector: impl FnOnce() -> Option<u8>) -> bool {
    let mut ioapics = IOAPICS.lock();
    let Some((ioapic, index)) = find(&mut ioapics, line.gsi) else { return false };
    // The register has eight bits for the CPU.
    if ioapic.routed >> index & 1 != 0 || apic_id > XAPIC_LAST_ID {
        return false;
    }
    let Some(vector) = vector() else { return false };
    let mut low = MASKED | u32::from(vector);
    if line.level {
        low |= LEVEL;
    }
    if line.active_low {
        low |= ACTIVE_LOW;
    }
    ioapic.routed |= 1 << index;
    ioapic.set_line(index, low, apic_id);
    true
}

/// From now on a routed line interrupts. One that is level-triggered must have a handler that can make its
/// device lower it; an edge that came before is lost.
pub fn unmask(gsi: u32) {
    let mut ioapics = IOAPICS.lock();
    let Some((ioapic, index)) = find(&mut ioapics, gsi) else { return };
    if ioapic.routed >> index & 1 != 0 {
        let low = ioapic.read(0x10 + 2 * index);
        ioapic.write(0x10 + 2 * index, low & !MASKED);
    }
}

/// The I/O APIC that has this line, and which of its own it is.
fn find(ioapics: &mut [IoApic], gsi: u32) -> Option<(&mut IoApic, u32)> {
    ioapics.iter_mut().find_map(|ioapic| {
        let index = gsi.checked_sub(ioapic.first_gsi).filter(|index| *index < ioapic.lines)?;
        Some((ioapic, index))
    })
}
