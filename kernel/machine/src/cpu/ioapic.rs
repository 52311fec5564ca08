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

struct IoApic {
    window: u64,
    first_gsi: u32,
    lines: u32,
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
    let mut ioapic = IoApic { window: mmio::map(address, 0x20) as u64, first_gsi, lines: 0 };
    ioapic.lines = (ioapic.read(REGISTER_VERSION) >> 16 & 0xff) + 1;
    for line in 0..ioapic.lines {
        ioapic.mask_line(line);
    }
    IOAPICS.lock().push(ioapic);
}

/// Routes a global interrupt to `vector` on one CPU. False: no I/O APIC has that line, or it already leads
/// to another vector.
pub fn route(gsi: u32, vector: u8, level: bool, active_low: bool, apic_id: u32) -> bool {
    let ioapics = IOAPICS.lock();
    let Some(ioapic) = ioapics.iter().find(|io| (io.first_gsi..io.first_gsi + io.lines).contains(&gsi)) else {
        return false;
    };
    let mut low = u32::from(vector);
    if level {
        low |= LEVEL;
    }
    if active_low {
        low |= ACTIVE_LOW;
    }
    let line = gsi - ioapic.first_gsi;
    if ioapic.read(0x10 + 2 * line) & MASKED == 0 {
        return false;
    }
    ioapic.set_line(line, low, apic_id);
    true
}
