//! PCI configuration space: which functions there are, their BARs, capabilities and MSI-X.
//!
//! Everything goes through [`ConfigSpace`]; the machine implements it over ECAM or over ports
//! 0xcf8 and 0xcfc, tests over an array. Register names are those of the PCI Local Bus
//! specification 3.0, chapter 6.
use alloc::{collections::BTreeSet, vec::Vec};

pub mod bridges;
#[cfg(test)]
mod tests;

const COMMAND: u16 = 0x04;
const HEADER_TYPE: u16 = 0x0c;
const BAR_0: u16 = 0x10;
const BUS_NUMBERS: u16 = 0x18;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT: u16 = 0x3c;

const COMMAND_PORTS: u32 = 1;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_MASTER: u32 = 1 << 2;
const COMMAND_NO_WIRE: u32 = 1 << 10;
const STATUS_CAPABILITIES: u32 = 1 << (16 + 4);

const CAPABILITY_MSIX: u8 = 0x11;
pub const CAPABILITY_VENDOR: u8 = 0x09;
/// 192 bytes of 4: more links are a loop.
const MAX_CAPABILITIES: usize = 48;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub bus: u8,
    /// Below 32.
    pub device: u8,
    /// Below 8.
    pub function: u8,
}

/// Aligned 32-bit access to configuration space; `offset` is a multiple of 4 below 256. A function
/// that is not there reads as all ones.
pub trait ConfigSpace {
    fn read(&self, at: Address, offset: u16) -> u32;
    fn write(&self, at: Address, offset: u16, value: u32);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    pub address: Address,
    pub vendor: u16,
    pub device: u16,
    /// A bridge has two BARs, other functions six.
    pub bars: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// 0: nobody assigned one.
    pub address: u64,
    pub len: u64,
    /// Takes the next BAR's register too.
    pub wide: bool,
}

/// The MSI-X capability: where the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    capability: u16,
    header: u32,
    pub entries: u16,
    pub bar: u8,
    pub offset: u32,
}

/// Bytes of one MSI-X table entry: address, data, control.
pub const MSIX_ENTRY_LEN: u32 = 16;

/// Functions on `first_bus` and on all buses behind bridges that firmware has numbered.
pub fn enumerate(config: &impl ConfigSpace, first_bus: u8) -> Vec<Function> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut buses = Vec::from([first_bus]);
    while let Some(bus) = buses.pop() {
        // A bridge that leads back makes no endless walk.
        if seen.insert(bus) {
            scan_bus(config, bus, &mut found, &mut buses);
        }
    }
    found
}

fn scan_bus(config: &impl ConfigSpace, bus: u8, found: &mut Vec<Function>, buses: &mut Vec<u8>) {
    for device in 0..32 {
        for function in 0..8 {
            let address = Address { bus, device, function };
            let id = config.read(address, 0);
            if id as u16 == 0xffff {
                if function == 0 {
                    break;
                }
                continue;
            }
            let header = config.read(address, HEADER_TYPE) >> 16;
            let bridge = header & 0x7f == 1;
            if bridge {
                buses.push((config.read(address, BUS_NUMBERS) >> 8) as u8);
            }
            found.push(Function {
                address,
                vendor: id as u16,
                device: (id >> 16) as u16,
                bars: if bridge { 2 } else { 6 },
            });
            if function == 0 && header & 0x80 == 0 {
                break;
            }
        }
    }
}

/// A function's memory BARs, each sized once: asking costs accesses, and a stop of the device.
#[derive(Clone, Copy, Debug)]
pub struct Bars {
    list: [Option<Bar>; 6],
    command: u32,
}

impl Bars {
    /// Sizes all memory BARs. The function decodes nothing from here on, until [`enable`].
    pub fn size(config: &impl ConfigSpace, function: &Function) -> Self {
        let at = function.address;
        let command = config.read(at, COMMAND) & 0xffff & !(COMMAND_PORTS | COMMAND_MEMORY);
        config.write(at, COMMAND, command);
        let mut list = [None; 6];
        let mut index = 0;
        while index < function.bars {
            let bar = size_bar(config, function, index);
            list[usize::from(index)] = bar;
            // The upper half of a wide one is no BAR of its own.
            index += 1 + u8::from(bar.is_some_and(|bar| bar.wide));
        }
        Self { list, command }
    }

    /// None: a port BAR, not there, or malformed.
    pub fn get(&self, index: u8) -> Option<Bar> {
        self.list.get(usize::from(index)).copied().flatten()
    }

    /// Firmware has left one at 0.
    pub fn lack_one(&self) -> bool {
        self.list.iter().flatten().any(|bar| bar.address == 0)
    }
}

fn size_bar(config: &impl ConfigSpace, function: &Function, index: u8) -> Option<Bar> {
    let (at, offset) = (function.address, BAR_0 + 4 * u16::from(index));
    let low = config.read(at, offset);
    let wide = match low & 7 {
        0 => false,
        4 if index + 1 < function.bars => true,
        _ => return None,
    };
    let probe = |offset, value| {
        config.write(at, offset, u32::MAX);
        let mask = config.read(at, offset);
        // A register that took nothing needs nothing back.
        if mask != 0 || value != 0 {
            config.write(at, offset, value);
        }
        mask
    };
    let mask = probe(offset, low);
    let (high, high_mask) = if wide {
        let high = config.read(at, offset + 4);
        (high, probe(offset + 4, high))
    } else {
        (0, u32::MAX)
    };
    let mask = u64::from(high_mask) << 32 | u64::from(mask & !0xf);
    let len = (!mask).wrapping_add(1);
    if mask & 0xffff_fff0 == 0 && !wide || !len.is_power_of_two() {
        return None;
    }
    let address = u64::from(high) << 32 | u64::from(low & !0xf);
    (address.is_multiple_of(len) && address.checked_add(len).is_some()).then_some(Bar { address, len, wide })
}

/// Where unassigned BARs may go: `[next, end)`, filled from the bottom up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarWindow {
    pub next: u64,
    pub end: u64,
}

impl BarWindow {
    /// An aligned place of `len` bytes (a power of two).
    pub fn take(&mut self, len: u64) -> Option<u64> {
        let address = self.next.checked_next_multiple_of(len)?;
        let after = address.checked_add(len).filter(|after| *after <= self.end)?;
        self.next = after;
        Some(address)
    }
}

/// Gives memory BARs that firmware left at 0 a place: 32-bit ones in `low`, 64-bit ones in `high`, or in `low`
/// if there is no room. False: no room.
pub fn assign_bars(
    config: &impl ConfigSpace,
    function: &Function,
    bars: &mut Bars,
    low: &mut BarWindow,
    high: &mut BarWindow,
) -> bool {
    for (index, bar) in bars.list.iter_mut().enumerate() {
        let Some(bar) = bar.as_mut().filter(|bar| bar.address == 0) else { continue };
        let above = if bar.wide { high.take(bar.len) } else { None };
        let Some(address) = above.or_else(|| low.take(bar.len)) else { return false };
        let offset = BAR_0 + 4 * index as u16;
        config.write(function.address, offset, address as u32);
        if bar.wide {
            config.write(function.address, offset + 4, (address >> 32) as u32);
        }
        bar.address = address;
    }
    true
}

/// An entry of a function's list of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    pub id: u8,
    pub offset: u16,
    /// The first word.
    pub header: u32,
}

/// A function's capabilities, read as they are asked for.
pub fn capabilities<'c, C: ConfigSpace>(
    config: &'c C,
    function: &Function,
) -> impl Iterator<Item = Capability> + use<'c, C> {
    let at = function.address;
    let listed = config.read(at, COMMAND) & STATUS_CAPABILITIES != 0;
    let mut next = if listed { config.read(at, CAPABILITIES) as u8 } else { 0 };
    core::iter::from_fn(move || {
        let offset = u16::from(next & !3);
        if offset < 0x40 {
            return None;
        }
        let header = config.read(at, offset);
        next = (header >> 8) as u8;
        Some(Capability { id: header as u8, offset, header })
    })
    .take(MAX_CAPABILITIES)
}

/// Memory decoding and bus mastering on, the interrupt wire off.
pub fn enable(config: &impl ConfigSpace, function: &Function, bars: &Bars) {
    let command = bars.command | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_WIRE;
    config.write(function.address, COMMAND, command);
}

/// Lets the function use its interrupt wire.
pub fn use_wire(config: &impl ConfigSpace, function: &Function) {
    let command = config.read(function.address, COMMAND) & 0xffff;
    config.write(function.address, COMMAND, command & !COMMAND_NO_WIRE);
}

/// The ISA interrupt to which firmware has led the function's wire, if it has one and did.
pub fn interrupt_line(config: &impl ConfigSpace, function: &Function) -> Option<u8> {
    let register = config.read(function.address, INTERRUPT);
    let (line, pin) = (register as u8, (register >> 8) as u8);
    ((1..16).contains(&line) && (1..=4).contains(&pin)).then_some(line)
}

/// The MSI-X capability among those that are `listed`.
pub fn msix(config: &impl ConfigSpace, function: &Function, listed: &[Capability]) -> Option<Msix> {
    let Capability { offset, header, .. } = *listed.iter().find(|capability| capability.id == CAPABILITY_MSIX)?;
    if offset > 0xf4 {
        return None;
    }
    let table = config.read(function.address, offset + 4);
    Some(Msix {
        capability: offset,
        header,
        entries: (header >> 16 & 0x7ff) as u16 + 1,
        bar: (table & 7) as u8,
        offset: table & !7,
    })
}

/// Turns MSI-X on. Write the table before; entries are masked one by one there.
pub fn enable_msix(config: &impl ConfigSpace, function: &Function, msix: &Msix) {
    const ENABLE: u32 = 1 << 31;
    const MASK_ALL: u32 = 1 << 30;
    config.write(function.address, msix.capability, (msix.header | ENABLE) & !MASK_ALL);
}
