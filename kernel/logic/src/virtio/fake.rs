//! A block device of the other side's making: it reads the rings as the specification says, and may
//! be told to lie.
use std::{cell::RefCell, rc::Rc};

use super::{
    Dma, Registers, VirtioError,
    block::{Block, BlockError, Operation, SLOTS},
    mmio::MmioTransport,
    transport::{QueueAddresses, Transport},
};
use crate::random::Stream;

const BASE: u64 = 0x10_0000;
const MEMORY: usize = 0x10_0000;
const DISK_SECTORS: usize = 256;

/// Physical memory of the fake machine; areas are parts of it.
#[derive(Clone)]
struct Ram(Rc<RefCell<Vec<u8>>>);

impl Ram {
    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let at = (address - BASE) as usize;
        self.0.borrow()[at..at + N].try_into().unwrap()
    }

    fn put(&self, address: u64, data: &[u8]) {
        let at = (address - BASE) as usize;
        self.0.borrow_mut()[at..at + data.len()].copy_from_slice(data);
    }

    fn u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.get(address))
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.get(address))
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.get(address))
    }
}

struct Area {
    ram: Ram,
    start: u64,
    len: usize,
}

impl Area {
    fn at(&self, offset: usize, len: usize) -> u64 {
        assert!(offset + len <= self.len);
        self.start + offset as u64
    }
}

impl Dma for Area {
    fn physical(&self) -> u64 {
        self.start
    }
    fn len_bytes(&self) -> usize {
        self.len
    }
    fn load8(&self, offset: usize) -> u8 {
        self.ram.get::<1>(self.at(offset, 1))[0]
    }
    fn load16(&self, offset: usize) -> u16 {
        self.ram.u16(self.at(offset, 2))
    }
    fn load32(&self, offset: usize) -> u32 {
        self.ram.u32(self.at(offset, 4))
    }
    fn store8(&self, offset: usize, value: u8) {
        self.ram.put(self.at(offset, 1), &[value]);
    }
    fn store16(&self, offset: usize, value: u16) {
        self.ram.put(self.at(offset, 2), &value.to_le_bytes());
    }
    fn store32(&self, offset: usize, value: u32) {
        self.ram.put(self.at(offset, 4), &value.to_le_bytes());
    }
    fn store64(&self, offset: usize, value: u64) {
        self.ram.put(self.at(offset, 8), &value.to_le_bytes());
    }
}

#[derive(Default)]
struct DeviceState {
    features: u64,
    accepted: u64,
    status: u8,
    size: u16,
    addresses: Option<QueueAddresses>,
    notified: u32,
    seen: u16,
    /// Chains taken and not yet answered.
    taken: Vec<u16>,
    used: u16,
}

/// The device; the driver holds a clone as its transport.
#[derive(Clone)]
struct Device {
    state: Rc<RefCell<DeviceState>>,
    ram: Ram,
    disk: Rc<RefCell<Vec<u8>>>,
}

impl Transport for Device {
    fn device_type(&self) -> u32 {
        2
    }
    fn is_legacy(&self) -> bool {
        false
    }
    fn status(&self) -> u8 {
        self.state.borrow().status
    }
    fn set_status(&mut self, status: u8) {
        self.state.borrow_mut().status = status;
    }
    fn offered_features(&mut self) -> u64 {
        self.state.borrow().features
    }
    fn accept_features(&mut self, features: u64) {
        self.state.borrow_mut().accepted = features;
    }
    fn max_queue_size(&mut self, _queue: u16) -> u16 {
        self.state.borrow().size
    }
    fn set_queue(&mut self, _: u16, size: u16, addresses: QueueAddresses, _: Option<u16>) -> Result<(), VirtioError> {
        let mut state = self.state.borrow_mut();
        state.size = size;
        state.addresses = Some(addresses);
        Ok(())
    }
    fn notify(&mut self, _queue: u16) {
        self.state.borrow_mut().notified += 1;
    }
    fn config32(&self, offset: u32) -> u32 {
        match offset {
            0 => DISK_SECTORS as u32,
            12 => 20,
            _ => 0,
        }
    }
    fn config_generation(&self) -> u32 {
        0
    }
}

impl Device {
    /// Takes new chains in, and answers up to `count` of them in random order.
    fn work(&self, random: &mut Stream, count: usize) {
        let mut state = self.state.borrow_mut();
        let addresses = state.addresses.unwrap();
        while state.seen != self.ram.u16(addresses.available + 2) {
            let slot = u64::from(state.seen % state.size);
            let head = self.ram.u16(addresses.available + 4 + 2 * slot);
            state.taken.push(head);
            state.seen = state.seen.wrapping_add(1);
        }
        for _ in 0..count.min(state.taken.len()) {
            let at = random.below(state.taken.len() as u64) as usize;
            let head = state.taken.swap_remove(at);
            let written = self.serve(addresses.descriptors, head);
            self.answer(&mut state, u32::from(head), written);
        }
    }

    fn answer(&self, state: &mut DeviceState, id: u32, written: u32) {
        let used = state.addresses.unwrap().used;
        let entry = used + 4 + 8 * u64::from(state.used % state.size);
        self.ram.put(entry, &[id, written].map(u32::to_le_bytes).concat());
        state.used = state.used.wrapping_add(1);
        self.ram.put(used + 2, &state.used.to_le_bytes());
    }

    fn chain(&self, table: u64, head: u16) -> Vec<(u64, u32, bool)> {
        let mut chain = Vec::new();
        let mut index = head;
        loop {
            let at = table + 16 * u64::from(index);
            let (address, len, flags) = (self.ram.u64(at), self.ram.u32(at + 8), self.ram.u16(at + 12));
            if flags & 4 != 0 {
                return self.chain(address, 0);
            }
            chain.push((address, len, flags & 2 != 0));
            if flags & 1 == 0 {
                return chain;
            }
            index = self.ram.u16(at + 14);
        }
    }

    fn serve(&self, table: u64, head: u16) -> u32 {
        let chain = self.chain(table, head);
        let (header, status) = (chain[0], chain[chain.len() - 1]);
        assert!(header.1 == 16 && !header.2 && status.1 == 1 && status.2);
        let kind = self.ram.u32(header.0);
        let mut at = self.ram.u64(header.0 + 8) as usize * 512;
        let mut written = 1;
        let mut disk = self.disk.borrow_mut();
        for &(address, len, device_writes) in &chain[1..chain.len() - 1] {
            assert_eq!(device_writes, kind == 0);
            for n in 0..u64::from(len) {
                if kind == 0 {
                    self.ram.put(address + n, &[disk[at]]);
                    written += 1;
                } else {
                    disk[at] = self.ram.get::<1>(address + n)[0];
                }
                at += 1;
            }
        }
        self.ram.put(status.0, &[0]);
        written
    }
}

/// A started driver, its device, and the first address that neither uses.
fn start(features: u64, size: u16) -> (Block<Device, Area>, Device, u64) {
    let ram = Ram(Rc::new(RefCell::new(vec![0; MEMORY])));
    let disk = (0..DISK_SECTORS * 512).map(|n| (n / 512) as u8 ^ n as u8).collect();
    let state = DeviceState { features: features | 1 << 32, size, ..DeviceState::default() };
    let device = Device { state: Rc::new(RefCell::new(state)), ram: ram.clone(), disk: Rc::new(RefCell::new(disk)) };
    let mut next = BASE;
    let allocate = |len: usize| {
        let area = Area { ram: ram.clone(), start: next, len };
        next += len.next_multiple_of(4096) as u64;
        Some(area)
    };
    let block = Block::new(device.clone(), allocate, None).unwrap();
    (block, device, next)
}

const INDIRECT: u64 = 1 << 28;
const FLUSH: u64 = 1 << 9;

#[test]
fn reads_and_writes_in_any_order() {
    for (features, size) in [(INDIRECT | FLUSH, 128), (0, 128), (1 << 2, 100), (INDIRECT, 4), (0, 4)] {
        let (mut block, device, buffers) = start(features, size);
        let mut random = Stream::new(u64::from(size) + features);
        let mut model = device.disk.borrow().clone();
        // (slot, sector, buffer, is read)
        let mut flying: Vec<(usize, usize, u64, bool)> = Vec::new();
        for round in 0..2000u64 {
            let buffer = buffers + (round % 64) * 1024;
            let sector = random.below(DISK_SECTORS as u64 - 1) as usize;
            let busy = flying.iter().any(|f| f.1.abs_diff(sector) < 2 || f.2 == buffer);
            if !busy {
                let reading = random.below(2) == 0;
                let fill = [round as u8; 1024];
                device.ram.put(buffer, &fill);
                // Two segments where the device takes them.
                let halves = [(buffer, 512), (buffer + 512, 512)];
                let data = if block.max_segments() > 1 { &halves[..] } else { &[(buffer, 1024)][..] };
                let operation = if reading { Operation::Read } else { Operation::Write };
                if let Some(slot) = block.submit(operation, sector as u64, data).unwrap() {
                    flying.push((slot, sector, buffer, reading));
                    if !reading {
                        model[sector * 512..][..1024].copy_from_slice(&fill);
                    }
                }
            }
            device.work(&mut random, (round % 3) as usize);
            let mut done = Vec::new();
            block.complete(|slot| done.push(slot));
            for slot in done {
                assert_eq!(block.take(slot), Some(Ok(())));
                let at = flying.iter().position(|f| f.0 == slot).unwrap();
                let (_, sector, buffer, reading) = flying.swap_remove(at);
                if reading {
                    assert_eq!(device.ram.get::<1024>(buffer)[..], model[sector * 512..][..1024]);
                }
            }
        }
        device.work(&mut random, 1000);
        block.complete(|_| ());
        assert_eq!(*device.disk.borrow(), model);
        assert!(device.state.borrow().notified > 100);
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let (mut block, _, buffer) = start(1 << 5, 128);
    let read = |block: &mut Block<_, _>, sector, data: &[_]| block.submit(Operation::Read, sector, data);
    assert_eq!(read(&mut block, 256, &[(buffer, 512)]), Err(BlockError::OutOfRange));
    assert_eq!(read(&mut block, u64::MAX, &[(buffer, 512)]), Err(BlockError::OutOfRange));
    assert_eq!(read(&mut block, 0, &[(buffer, 511)]), Err(BlockError::OutOfRange));
    assert_eq!(read(&mut block, 0, &[]), Err(BlockError::OutOfRange));
    assert_eq!(read(&mut block, 0, &[(buffer, 512); 62]), Err(BlockError::OutOfRange));
    assert_eq!(block.submit(Operation::Write, 0, &[(buffer, 512)]), Err(BlockError::ReadOnly));
    for _ in 0..SLOTS {
        assert!(read(&mut block, 0, &[(buffer, 512)]).unwrap().is_some());
    }
    assert_eq!(read(&mut block, 0, &[(buffer, 512)]), Ok(None));
}

#[test]
fn a_device_that_lies_is_switched_off() {
    // An unknown identifier, one that is not in flight, one twice, and an index that ran ahead.
    for lie in [vec![(500, 0)], vec![(9, 0)], vec![(0, 513), (0, 513)], vec![(u32::MAX, 513)]] {
        let (mut block, device, buffer) = start(INDIRECT, 128);
        let first = block.submit(Operation::Read, 0, &[(buffer, 512)]).unwrap().unwrap();
        let second = block.submit(Operation::Read, 1, &[(buffer, 512)]).unwrap().unwrap();
        for (id, written) in lie {
            device.answer(&mut device.state.borrow_mut(), id, written);
        }
        let mut done = Vec::new();
        block.complete(|slot| done.push(slot));
        assert!(block.is_switched_off() && done.contains(&first) && done.contains(&second));
        assert_eq!(block.take(second), Some(Err(BlockError::Io)));
        assert_eq!(device.state.borrow().status, 0, "reset before the pages are given back");
        assert_eq!(block.submit(Operation::Read, 0, &[(buffer, 512)]), Err(BlockError::Io));
    }
}

#[test]
fn a_wrong_length_or_status_fails_the_request_alone() {
    let (mut block, device, buffer) = start(0, 128);
    for written in [0, 5, 514, u32::MAX] {
        let slot = block.submit(Operation::Read, 0, &[(buffer, 512)]).unwrap().unwrap();
        device.work(&mut Stream::new(1), 0);
        let mut state = device.state.borrow_mut();
        let head = state.taken.pop().unwrap();
        device.serve(state.addresses.unwrap().descriptors, head);
        device.answer(&mut state, u32::from(head), written);
        drop(state);
        block.complete(|_| ());
        assert_eq!(block.take(slot), Some(Err(BlockError::Io)));
        assert!(!block.is_switched_off());
    }
}

struct Empty;

impl Registers for Empty {
    fn read8(&self, _: u32) -> u8 {
        0
    }
    fn read16(&self, _: u32) -> u16 {
        0
    }
    fn read32(&self, offset: u32) -> u32 {
        [u32::from_le_bytes(*b"virt"), 2, 0].get(offset as usize / 4).copied().unwrap_or(0)
    }
    fn write8(&self, _: u32, _: u8) {}
    fn write16(&self, _: u32, _: u16) {}
    fn write32(&self, _: u32, _: u32) {}
}

#[test]
fn an_empty_mmio_slot_is_no_device() {
    assert!(matches!(MmioTransport::new(Empty), Err(VirtioError::NotThere)));
}
