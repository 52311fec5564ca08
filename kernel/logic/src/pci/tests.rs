//! Functions of a fake configuration space.
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use super::*;
use crate::{random::Stream, virtio::pci::Layout};

/// 64 registers a function; BAR registers keep only the bits that their mask allows.
#[derive(Default)]
struct Fake {
    functions: RefCell<BTreeMap<Address, [u32; 64]>>,
    bar_masks: BTreeMap<(Address, u16), u32>,
    accesses: Cell<u32>,
}

impl ConfigSpace for Fake {
    fn read(&self, at: Address, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 256 && at.device < 32 && at.function < 8);
        self.accesses.set(self.accesses.get() + 1);
        self.functions.borrow().get(&at).map_or(u32::MAX, |registers| registers[usize::from(offset / 4)])
    }

    fn write(&self, at: Address, offset: u16, value: u32) {
        self.accesses.set(self.accesses.get() + 1);
        let mut functions = self.functions.borrow_mut();
        let Some(registers) = functions.get_mut(&at) else { return };
        let register = &mut registers[usize::from(offset / 4)];
        *register = match self.bar_masks.get(&(at, offset)) {
            Some(mask) => value & mask | *register & 0xf & !mask,
            None if offset == COMMAND => *register & 0xffff_0000 | value & 0xffff,
            None => value,
        };
    }
}

const DISK: Address = Address { bus: 1, device: 2, function: 0 };

fn machine() -> Fake {
    let mut fake = Fake::default();
    let add = |address, registers: &[(u16, u32)]| {
        let mut all = [0; 64];
        registers.iter().for_each(|(offset, value)| all[usize::from(offset / 4)] = *value);
        fake.functions.borrow_mut().insert(address, all);
    };
    add(Address { bus: 0, device: 0, function: 0 }, &[(0, 0x29c0_8086)]);
    let bridge = Address { bus: 0, device: 3, function: 1 };
    add(Address { function: 0, ..bridge }, &[(0, 0x1234_8086), (HEADER_TYPE, 0x80_0000)]);
    // Its subordinate bus, and a second bridge that leads back.
    add(bridge, &[(0, 0x000c_1b36), (HEADER_TYPE, 0x81_0000), (BUS_NUMBERS, 0x0001_0100)]);
    add(Address { function: 2, ..bridge }, &[(0, 0x000c_1b36), (HEADER_TYPE, 0x81_0000), (BUS_NUMBERS, 0)]);
    add(
        DISK,
        &[
            (0, 0x1042_1af4),
            (COMMAND, STATUS_CAPABILITIES),
            (BAR_0 + 4, 0xfeb0_0000),
            (BAR_0 + 16, 0xc),
            (CAPABILITIES, 0x98),
            (0x98, 0x8002_0011 | 0x84 << 8),
            (0x9c, 0x0000_0801),
            (0x84, 0x0010_0009 | 0x98 << 8),
        ],
    );
    for (offset, mask) in [
        (BAR_0 + 4, 0xffff_f000),
        (BAR_0 + 16, 0xffff_c000),
        (BAR_0 + 20, u32::MAX),
        (BAR_0, 0),
        (BAR_0 + 8, 0),
        (BAR_0 + 12, 0),
    ] {
        fake.bar_masks.insert((DISK, offset), mask);
    }
    fake
}

fn disk(fake: &Fake) -> Function {
    *enumerate(fake, 0).iter().find(|f| f.address == DISK).unwrap()
}

#[test]
fn finds_functions_behind_bridges_once() {
    let functions = enumerate(&machine(), 0);
    assert_eq!(functions.len(), 5);
    assert_eq!(functions.iter().filter(|f| f.vendor == 0x1af4 && f.device == 0x1042).count(), 1);
}

#[test]
fn sizes_and_assigns_bars() {
    let fake = machine();
    let disk = disk(&fake);
    fake.accesses.set(0);
    let mut bars = Bars::size(&fake, &disk);
    assert!(fake.accesses.get() <= 24, "{} accesses, each an exit or two", fake.accesses.get());
    assert_eq!(bars.get(1), Some(Bar { address: 0xfeb0_0000, len: 0x1000, wide: false }));
    assert_eq!(bars.get(4), Some(Bar { address: 0, len: 0x4000, wide: true }));
    assert_eq!((bars.get(0), bars.get(5), bars.get(6)), (None, None, None));
    assert!(bars.lack_one());
    assert_eq!(fake.read(DISK, BAR_0 + 4), 0xfeb0_0000, "as it was");
    let mut low = BarWindow { next: 0xf000_0000, end: 0xf100_0000 };
    let mut high = BarWindow { next: 0x40_0000_1000, end: 0x40_0000_5000 };
    let no_room = BarWindow { next: 0, end: 0 };
    assert!(!assign_bars(&fake, &disk, &mut bars, &mut no_room.clone(), &mut high));
    high.end = u64::MAX;
    assert!(assign_bars(&fake, &disk, &mut bars, &mut low, &mut high));
    assert_eq!(bars.get(4).unwrap().address, 0x40_0000_4000);
    assert_eq!(Bars::size(&fake, &disk).get(4), bars.get(4));
    assert_eq!(bars.get(1).unwrap().address, 0xfeb0_0000);
    assert_eq!(fake.read(DISK, COMMAND) & 3, 0, "nothing is decoded yet");
    // As after qboot, which assigns nothing: the 32-bit BAR goes below 4 GiB.
    fake.write(DISK, BAR_0 + 4, 0);
    let mut bars = Bars::size(&fake, &disk);
    assert!(assign_bars(&fake, &disk, &mut bars, &mut low, &mut high));
    assert_eq!(bars.get(1).unwrap().address, 0xf000_0000);
    assert_eq!(low.next, 0xf000_1000);
    // So does a 64-bit one, if the CPU's addresses reach no higher.
    fake.write(DISK, BAR_0 + 16, 0);
    fake.write(DISK, BAR_0 + 20, 0);
    let mut bars = Bars::size(&fake, &disk);
    assert!(assign_bars(&fake, &disk, &mut bars, &mut low, &mut no_room.clone()));
    assert_eq!(bars.get(4).unwrap().address, 0xf000_4000);
}

#[test]
fn finds_msix_in_a_list_that_loops() {
    let fake = machine();
    let disk = disk(&fake);
    let listed: Vec<Capability> = capabilities(&fake, &disk).collect();
    assert_eq!(listed.len(), MAX_CAPABILITIES);
    let msix = msix(&fake, &disk, &listed).unwrap();
    assert_eq!((msix.entries, msix.bar, msix.offset), (3, 1, 0x800));
    enable(&fake, &disk, &Bars::size(&fake, &disk));
    enable_msix(&fake, &disk, &msix);
    assert_eq!(fake.read(DISK, COMMAND) & 0x406, 0x406);
    assert_eq!(fake.read(DISK, 0x98) >> 16, 0x8002);
}

/// Two bridges in a row and a disk, as no firmware has touched them.
#[test]
fn numbers_and_opens_bridges_that_firmware_left_alone() {
    let mut fake = Fake::default();
    let (outer, inner) = (Address { bus: 0, device: 1, function: 0 }, Address { bus: 1, device: 0, function: 0 });
    let disk = Address { bus: 2, device: 3, function: 0 };
    for (address, registers) in [
        (outer, &[(0, 0x000c_1b36), (HEADER_TYPE, 0x1_0000)][..]),
        (inner, &[(0, 0x000e_1b36), (HEADER_TYPE, 0x1_0000)]),
        (disk, &[(0, 0x1042_1af4), (BAR_0 + 16, 0xc)]),
    ] {
        let mut all = [0; 64];
        registers.iter().for_each(|(offset, value): &(u16, u32)| all[usize::from(offset / 4)] = *value);
        fake.functions.borrow_mut().insert(address, all);
        for bar in 0..6 {
            fake.bar_masks.insert((address, BAR_0 + 4 * bar), 0);
        }
    }
    for bridge in [outer, inner] {
        // These are other registers of a bridge.
        for bar in 2..6 {
            fake.bar_masks.remove(&(bridge, BAR_0 + 4 * bar));
        }
    }
    fake.bar_masks.insert((disk, BAR_0 + 16), 0xffff_c000);
    fake.bar_masks.insert((disk, BAR_0 + 20), u32::MAX);
    assert!(bridges::number_buses(&fake, &enumerate(&fake, 0), 0, 255));
    assert!(!bridges::number_buses(&fake, &enumerate(&fake, 0), 0, 255));
    assert_eq!(fake.read(outer, BUS_NUMBERS), 0x02_01_00);
    assert_eq!(fake.read(inner, BUS_NUMBERS), 0x02_02_01);
    let function = *enumerate(&fake, 0).iter().find(|f| f.address == disk).unwrap();
    assert!(Bars::size(&fake, &function).lack_one());
    let mut low = BarWindow { next: 0xf000_1000, end: 0xfe00_0000 };
    let mut windows = bridges::Windows::new();
    let window = *bridges::window_behind(&fake, 0, 2, &mut low, &mut windows).unwrap();
    assert_eq!((window.next, window.end), (0xf100_0000, 0xf140_0000));
    assert_eq!(fake.read(outer, 0x20), 0xf1f0_f100);
    assert_eq!(fake.read(inner, 0x20), 0xf130_f100);
    assert_eq!(fake.read(inner, COMMAND) & 6, 6);
    fake.write(disk, BAR_0 + 16, 0xf100_0000);
    assert!(!Bars::size(&fake, &function).lack_one(), "the upper half of a wide BAR is no BAR");
    // What firmware has opened stays as it is.
    let mut none = bridges::Windows::new();
    assert!(bridges::window_behind(&fake, 0, 2, &mut low, &mut none).is_none());
    assert!(bridges::window_behind(&fake, 0, 77, &mut low, &mut none).is_none(), "no such bus");
}

#[test]
fn nonsense_does_no_harm() {
    for seed in 0..500 {
        let mut random = Stream::new(seed);
        let fake = machine();
        for _ in 0..20 {
            let mut functions = fake.functions.borrow_mut();
            let all = functions.len() as u64;
            let registers = functions.values_mut().nth(random.below(all) as usize).unwrap();
            registers[random.below(64) as usize] = random.next_u64() as u32;
        }
        bridges::number_buses(&fake, &enumerate(&fake, 0), 0, 255);
        for function in enumerate(&fake, 0) {
            let mut low = BarWindow { next: 0x1000_0000, end: 1 << 32 };
            let bus = function.address.bus;
            let _ = bridges::window_behind(&fake, 0, bus, &mut low, &mut bridges::Windows::new());
            let listed: Vec<Capability> = capabilities(&fake, &function).collect();
            let _ = (msix(&fake, &function, &listed), Layout::find(&fake, &function, &listed));
            let mut bars = Bars::size(&fake, &function);
            let mut window = BarWindow { next: 0x1000, end: 1 << 40 };
            if assign_bars(&fake, &function, &mut bars, &mut window.clone(), &mut window) {
                assert!(!bars.lack_one());
            }
        }
    }
}
