#![allow(unsafe_code, reason = "reads firmware tables by physical address")]
//! ACPI: read once at boot, applied to interrupt controllers and power-off, and kept for drivers.
use core::cell::Cell;

use logic::{
    acpi::{Acpi, AcpiError},
    physical::PhysReader,
};

use super::BootInfo;
use crate::{
    cpu::{features, ioapic, smp},
    drivers::power,
    memory::{mmio, paging},
};

/// Physical memory that may not be RAM: low memory by the direct map, the rest by windows.
struct Tables {
    /// The last window: (physical start, length, address).
    window: Cell<(u64, u64, u64)>,
    /// Beyond what the CPU reaches: a wild pointer in a table.
    end: u64,
}

/// Tables lie together, so one window serves many reads.
const WINDOW_BYTES: u64 = 64 << 10;

impl Tables {
    fn address(&self, physical: u64, len: u64) -> u64 {
        if physical + len <= smp::IDENTITY_END {
            return paging::direct(physical);
        }
        let (start, length, at) = self.window.get();
        if physical >= start && physical + len <= start + length {
            return at + (physical - start);
        }
        let length = len.max(WINDOW_BYTES).min(self.end - physical);
        let at = mmio::map(physical, length) as u64;
        self.window.set((physical, length, at));
        at
    }
}

impl PhysReader for Tables {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let len = out.len() as u64;
        if address.checked_add(len).is_none_or(|end| end > self.end) {
            return false;
        }
        let from = self.address(address, len) as *const u8;
        // SAFETY: the window maps this range; reading memory that no device answers for gives ones.
        unsafe { core::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        true
    }
}

/// Reads the tables; a machine without, or with broken ones, gets an empty result and one line.
pub fn read(info: &BootInfo) -> Acpi {
    let end = 1 << features::physical_address_bits().min(52);
    let tables = Tables { window: Cell::new((0, 0, 0)), end };
    match Acpi::read(&tables, info.rsdp) {
        Ok(mut acpi) => {
            acpi.keep_below(end);
            acpi
        }
        // Firecracker without ACPI, for one, is no reason to worry.
        Err(error @ AcpiError::NoRootPointer) if info.rsdp == 0 => {
            log::info!("{error}: one CPU, devices by command line only");
            Acpi::default()
        }
        Err(error) => {
            log::warn!("{error}: one CPU, devices by command line only");
            Acpi::default()
        }
    }
}

/// Sets up what the tables describe and the boot CPU needs at once.
pub fn apply(acpi: &Acpi) {
    for entry in &acpi.ioapics {
        ioapic::add(entry.address, entry.first_gsi);
    }
    power::set_registers(&acpi.power);
}
