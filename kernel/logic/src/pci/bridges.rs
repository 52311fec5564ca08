//! Bridges that firmware left alone: bus numbers, and windows for what lies behind (PCI-to-PCI Bridge
//! Architecture Specification 1.2, chapter 3).
use alloc::{collections::BTreeMap, vec::Vec};

use super::{
    Address, BUS_NUMBERS, BarWindow, COMMAND, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, Function, enumerate,
    scan_bus,
};

const MEMORY_WINDOW: u16 = 0x20;
const PREFETCHABLE_WINDOW: u16 = 0x24;
/// Base above limit: closed.
const CLOSED: u32 = 0xfff0;
/// A window's granularity.
const LEAST: u64 = 1 << 20;
/// Of a bridge on the first bus; behind it each gets a quarter of the one before.
const LARGEST: u64 = 16 << 20;
const DEEPEST: u32 = 8;

fn is_bridge(function: &Function) -> bool {
    function.bars == 2
}

fn secondary(config: &impl ConfigSpace, at: Address) -> u8 {
    (config.read(at, BUS_NUMBERS) >> 8) as u8
}

/// Numbers the buses behind all bridges, if firmware has left one of the `functions` without a number:
/// then there may be more than those.
pub fn number_buses(config: &impl ConfigSpace, functions: &[Function], first_bus: u8, last_bus: u8) -> bool {
    let unnumbered = functions.iter().any(|function| is_bridge(function) && secondary(config, function.address) == 0);
    if unnumbered {
        number_behind(config, first_bus, last_bus, &mut first_bus.clone(), 0);
    }
    unnumbered
}

/// `last` is the highest number that was given away.
fn number_behind(config: &impl ConfigSpace, bus: u8, limit: u8, last: &mut u8, depth: u32) {
    let mut found = Vec::new();
    scan_bus(config, bus, &mut found, &mut Vec::new());
    for bridge in found.into_iter().filter(is_bridge) {
        if *last >= limit || depth == DEEPEST {
            return;
        }
        *last += 1;
        let secondary = *last;
        let number = |subordinate: u8| {
            let latency = config.read(bridge.address, BUS_NUMBERS) & 0xff00_0000;
            let numbers = u32::from(subordinate) << 16 | u32::from(secondary) << 8 | u32::from(bus);
            config.write(bridge.address, BUS_NUMBERS, latency | numbers);
        };
        // Open to all behind it as long as those are not known.
        number(limit);
        number_behind(config, secondary, limit, last, depth + 1);
        number(*last);
    }
}

/// Where BARs behind bridges may go, by bus. Empty at first.
pub type Windows = BTreeMap<u8, BarWindow>;

/// The window for functions on `bus`, which lies behind a bridge: opens those on the way, in memory taken
/// from `low`. None: there is no room, or firmware has opened them, and knows better.
pub fn window_behind<'w>(
    config: &impl ConfigSpace,
    first_bus: u8,
    bus: u8,
    low: &mut BarWindow,
    windows: &'w mut Windows,
) -> Option<&'w mut BarWindow> {
    open(config, &enumerate(config, first_bus), (first_bus, bus), low, windows, 0)?;
    windows.get_mut(&bus)
}

/// Length of the window, if it is open now.
fn open(
    config: &impl ConfigSpace,
    functions: &[Function],
    (first_bus, bus): (u8, u8),
    low: &mut BarWindow,
    windows: &mut Windows,
    depth: u32,
) -> Option<u64> {
    if depth == DEEPEST {
        return None;
    }
    if let Some(window) = windows.get(&bus) {
        // What is left of it is enough to go on with.
        return Some(window.end - window.next);
    }
    let bridge = functions.iter().find(|f| is_bridge(f) && secondary(config, f.address) == bus)?.address;
    let command = config.read(bridge, COMMAND) & 0xffff;
    if command & COMMAND_MEMORY != 0 && config.read(bridge, MEMORY_WINDOW) & 0xfff0 != 0 {
        return None;
    }
    let (len, place) = if bridge.bus == first_bus {
        (LARGEST, low.take(LARGEST)?)
    } else {
        let outer = open(config, functions, (first_bus, bridge.bus), low, windows, depth + 1)?;
        let len = (outer / 4).checked_ilog2().map(|log| 1u64 << log).filter(|len| *len >= LEAST)?;
        (len, windows.get_mut(&bridge.bus)?.take(len)?)
    };
    let end = place + len;
    if end > 1 << 32 {
        return None;
    }
    config.write(bridge, PREFETCHABLE_WINDOW, CLOSED);
    config.write(bridge, MEMORY_WINDOW, ((end - 1) >> 16 << 16) as u32 & 0xfff0_0000 | (place >> 16) as u32 & 0xfff0);
    config.write(bridge, COMMAND, command | COMMAND_MEMORY | COMMAND_MASTER);
    windows.insert(bus, BarWindow { next: place, end });
    Some(len)
}
