//! Patterns in AML byte code, found without interpreting it (ACPI 6.5, chapters 19.6 and 20).
use alloc::vec::Vec;

use super::VirtioMmio;
use crate::physical::{u16_at, u32_at, u64_at};

const NAME_OP: u8 = 0x08;
const PACKAGE_OP: u8 = 0x12;
const ROOT_CHAR: u8 = b'\\';
/// Memory32Fixed and extended interrupt resource descriptors (6.4.3.4, 6.4.3.6).
const MEMORY_32_FIXED: u8 = 0x86;
const EXTENDED_INTERRUPT: u8 = 0x89;
/// QEMU's machines have at most 32 transports; Firecracker's about as many.
const MAX_DEVICES: usize = 64;
/// A device's resources stand close behind its name.
const DEVICE_REACH: usize = 160;

/// The sleep types of `Name (_S5_, Package () {a, b, …})`.
pub fn sleep_type_s5(aml: &[u8]) -> Option<(u8, u8)> {
    let mut from = 0;
    while let Some(at) = find(aml, b"_S5_", from) {
        from = at + 4;
        let named = match at.checked_sub(1).map(|before| aml[before]) {
            Some(NAME_OP) => true,
            Some(ROOT_CHAR) => at >= 2 && aml[at - 2] == NAME_OP,
            _ => false,
        };
        if named && let Some(types) = package_of_two(&aml[from..]) {
            return Some(types);
        }
    }
    None
}

fn package_of_two(aml: &[u8]) -> Option<(u8, u8)> {
    let [PACKAGE_OP, lead, rest @ ..] = aml else { return None };
    // The top two bits of a package length say how many bytes follow.
    let rest = rest.get(usize::from(lead >> 6)..)?;
    let (&elements, rest) = rest.split_first()?;
    let (first, rest) = integer(rest)?;
    if elements < 2 {
        return Some((first, first));
    }
    Some((first, integer(rest)?.0))
}

fn integer(aml: &[u8]) -> Option<(u8, &[u8])> {
    match aml {
        [value @ 0..=1, rest @ ..] => Some((*value, rest)),
        [0x0a, value, rest @ ..] | [0x0b, value, 0, rest @ ..] | [0x0c, value, 0, 0, 0, rest @ ..] => {
            Some((*value, rest))
        }
        _ => None,
    }
}

/// Devices with `_HID` "LNRO0005": virtio over memory-mapped registers.
pub fn virtio_mmio(aml: &[u8]) -> Vec<VirtioMmio> {
    const HID: &[u8] = b"LNRO0005\0";
    let mut devices = Vec::new();
    let mut from = 0;
    while let Some(at) = find(aml, HID, from) {
        from = at + HID.len();
        let end = find(aml, HID, from).unwrap_or(aml.len()).min(from + DEVICE_REACH);
        if devices.len() < MAX_DEVICES
            && let Some(device) = resources(&aml[from..end])
        {
            devices.push(device);
        }
    }
    devices
}

fn resources(aml: &[u8]) -> Option<VirtioMmio> {
    let memory = find(aml, &[MEMORY_32_FIXED, 9, 0], 0)?;
    let (address, len) = (u32_at(aml, memory + 4)?, u32_at(aml, memory + 8)?);
    let interrupt = memory + 12 + aml.get(memory + 12..)?.iter().position(|byte| *byte == EXTENDED_INTERRUPT)?;
    let flags = *aml.get(interrupt + 3)?;
    let count = *aml.get(interrupt + 4)?;
    let gsi = u32_at(aml, interrupt + 5)?;
    (address != 0 && len >= 0x100 && count == 1).then_some(VirtioMmio {
        address: u64::from(address),
        len: u64::from(len),
        gsi,
        level: flags & 2 == 0,
        active_low: flags & 4 != 0,
    })
}

/// Where a PCI host bridge's `Method (_CBA)` says that configuration space is (PCI Firmware
/// Specification 3.3, 4.1.3): only machines without the MCFG table need it, such as microvm.
pub fn ecam_base(aml: &[u8]) -> Option<u64> {
    const METHOD_OP: u8 = 0x14;
    const RETURN_OP: u8 = 0xa4;
    let mut from = 0;
    while let Some(at) = find(aml, b"_CBA", from) {
        from = at + 4;
        // The method's length is one byte, then: name, flags, return, a 32- or 64-bit constant.
        let method = at >= 2 && aml[at - 2] == METHOD_OP;
        let value = match aml.get(from..from + 3) {
            Some([_, RETURN_OP, 0x0c]) if method => u32_at(aml, from + 3).map(u64::from),
            Some([_, RETURN_OP, 0x0e]) if method => u64_at(aml, from + 3),
            _ => None,
        };
        if value.is_some_and(|base| base != 0 && base.is_multiple_of(1 << 20)) {
            return value;
        }
    }
    None
}

/// Memory that some `_CRS` gives away in 32- and 64-bit address space descriptors (6.4.3.5), as
/// (start, exclusive end).
pub fn memory_windows(aml: &[u8]) -> Vec<(u64, u64)> {
    /// Memory; the two flag bytes may be anything.
    const MEMORY: u8 = 0;
    let mut windows = Vec::new();
    for at in 0..aml.len() {
        let range = match (aml[at], u16_at(aml, at + 1), aml.get(at + 3)) {
            (0x87, Some(23), Some(&MEMORY)) => {
                let field = |n: usize| u32_at(aml, at + 6 + 4 * n).map(u64::from);
                (field(1), field(2), field(4))
            }
            (0x8a, Some(43), Some(&MEMORY)) => {
                let field = |n: usize| u64_at(aml, at + 6 + 8 * n);
                (field(1), field(2), field(4))
            }
            _ => continue,
        };
        if let (Some(first), Some(last), Some(len)) = range
            && len > 0
            && first.checked_add(len - 1) == Some(last)
            && windows.len() < MAX_DEVICES
            && let Some(end) = last.checked_add(1)
        {
            windows.push((first, end));
        }
    }
    windows
}

fn find(haystack: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    haystack.get(from..)?.windows(needle.len()).position(|window| window == needle).map(|at| from + at)
}
