//! Two patterns in AML byte code, found without interpreting it (ACPI 6.5, chapters 19.6 and 20).
use alloc::vec::Vec;

use super::VirtioMmio;
use crate::physical::u32_at;

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

fn find(haystack: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    haystack.get(from..)?.windows(needle.len()).position(|window| window == needle).map(|at| from + at)
}
