//! The block driver against a disk of the other side's making, which may be told to lie.
use super::{
    super::{
        Registers,
        fake::{Area, Device, Machine},
        mmio::MmioTransport,
    },
    *,
};
use crate::random::Stream;

const DISK_SECTORS: usize = 256;

/// A disk: the fake device, and what it keeps.
struct Disk {
    device: Device,
    content: Vec<u8>,
    /// Chains taken and not yet answered.
    taken: Vec<u16>,
}

impl Disk {
    /// Takes new chains in, and answers up to `count` of them in random order.
    fn work(&mut self, random: &mut Stream, count: usize) {
        self.taken.extend(self.device.take(0));
        for _ in 0..count.min(self.taken.len()) {
            let at = random.below(self.taken.len() as u64) as usize;
            let head = self.taken.swap_remove(at);
            let written = self.serve(head);
            self.device.answer(0, u32::from(head), written);
        }
    }

    fn serve(&mut self, head: u16) -> u32 {
        let ram = self.device.ram.clone();
        let chain = self.device.chain(0, head);
        let (header, status) = (chain[0], chain[chain.len() - 1]);
        assert!(header.1 == 16 && !header.2 && status.1 == 1 && status.2);
        let kind = ram.u32(header.0);
        let mut at = ram.u64(header.0 + 8) as usize * 512;
        let mut written = 1;
        for &(address, len, device_writes) in &chain[1..chain.len() - 1] {
            assert_eq!(device_writes, kind == 0);
            for n in 0..u64::from(len) {
                if kind == 0 {
                    ram.put(address + n, &[self.content[at]]);
                    written += 1;
                } else {
                    self.content[at] = ram.get::<1>(address + n)[0];
                }
                at += 1;
            }
        }
        ram.put(status.0, &[0]);
        written
    }
}

/// A started driver, its disk, and the first address that neither uses.
fn start(features: u64, size: u16) -> (Block<Device, Area>, Disk, u64) {
    let machine = Machine::new();
    let mut config = [0; 16];
    config[..4].copy_from_slice(&(DISK_SECTORS as u32).to_le_bytes());
    config[8..12].copy_from_slice(&8192u32.to_le_bytes());
    config[12] = 20;
    let device = machine.device(device_type::BLOCK, features, &[size], &config);
    let content = (0..DISK_SECTORS * 512).map(|n| (n / 512) as u8 ^ n as u8).collect();
    let block = Block::new(device.clone(), machine.allocator(), None).unwrap();
    (block, Disk { device, content, taken: Vec::new() }, machine.free_from())
}

const INDIRECT: u64 = 1 << 28;
const FLUSH: u64 = 1 << 9;

#[test]
fn reads_and_writes_in_any_order() {
    for (features, size) in [(INDIRECT | FLUSH | 1 << 2, 128), (0, 128), (1 << 2, 100), (INDIRECT, 4), (1 << 2, 4)] {
        let (mut block, mut disk, buffers) = start(features, size);
        let mut random = Stream::new(u64::from(size) + features);
        let mut model = disk.content.clone();
        // (slot, sector, buffer, is read)
        let mut flying: Vec<(usize, usize, u64, bool)> = Vec::new();
        for round in 0..2000u64 {
            let buffer = buffers + (round % 64) * 1024;
            let sector = random.below(DISK_SECTORS as u64 - 1) as usize;
            let busy = flying.iter().any(|f| f.1.abs_diff(sector) < 2 || f.2 == buffer);
            if !busy {
                let reading = random.below(2) == 0;
                let fill = [round as u8; 1024];
                disk.device.ram.put(buffer, &fill);
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
            disk.work(&mut random, (round % 3) as usize);
            let mut done = Vec::new();
            block.complete(|slot| done.push(slot));
            for slot in done {
                assert_eq!(block.take(slot), Some(Ok(())));
                let at = flying.iter().position(|f| f.0 == slot).unwrap();
                let (_, sector, buffer, reading) = flying.swap_remove(at);
                if reading {
                    assert_eq!(disk.device.ram.get::<1024>(buffer)[..], model[sector * 512..][..1024]);
                }
            }
        }
        disk.work(&mut random, 1000);
        block.complete(|_| ());
        assert_eq!(disk.content, model);
        assert!(disk.device.notified(0) > 100);
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
        let (mut block, disk, buffer) = start(INDIRECT, 128);
        let first = block.submit(Operation::Read, 0, &[(buffer, 512)]).unwrap().unwrap();
        let second = block.submit(Operation::Read, 1, &[(buffer, 512)]).unwrap().unwrap();
        for (id, written) in lie {
            disk.device.answer(0, id, written);
        }
        let mut done = Vec::new();
        block.complete(|slot| done.push(slot));
        assert!(block.is_switched_off() && done.contains(&first) && done.contains(&second));
        assert_eq!(block.take(second), Some(Err(BlockError::Io)));
        assert_eq!(disk.device.status(), 0, "reset before the pages are given back");
        assert_eq!(block.submit(Operation::Read, 0, &[(buffer, 512)]), Err(BlockError::Io));
    }
}

#[test]
fn the_status_decides_and_a_length_says_nothing() {
    let (mut block, mut disk, buffer) = start(0, 128);
    // As QEMU, Cloud Hypervisor (reading; writing), and nobody has it; 0xff: the status was not written.
    for (written, status) in [(513, 0), (512, 0), (0, 0), (u32::MAX, 0), (513, 1), (513, 2), (513, 0xff)] {
        let slot = block.submit(Operation::Read, 0, &[(buffer, 512)]).unwrap().unwrap();
        disk.work(&mut Stream::new(1), 0);
        let head = disk.taken.pop().unwrap();
        disk.serve(head);
        let at = disk.device.chain(0, head)[2].0;
        disk.device.ram.put(at, &[status]);
        disk.device.answer(0, u32::from(head), written);
        block.complete(|_| ());
        assert_eq!(block.take(slot), Some(if status == 0 { Ok(()) } else { Err(BlockError::Io) }));
        assert!(!block.is_switched_off());
    }
}

#[test]
fn a_device_that_names_no_limits_gets_one_segment_a_request() {
    const SIZE_MAX: u64 = 1 << 1;
    const SEGMENT_MAX: u64 = 1 << 2;
    for (features, segments, bytes) in [
        (0, 1, 1 << 20),
        (INDIRECT, 1, 1 << 20),
        (SEGMENT_MAX, 20, 1 << 20),
        (INDIRECT | SEGMENT_MAX | SIZE_MAX, 20, 8192),
    ] {
        let (mut block, _, buffer) = start(features, 128);
        assert_eq!((block.max_segments(), block.max_segment_bytes()), (segments, bytes));
        let mut read = |data: &[Data]| block.submit(Operation::Read, 0, data);
        assert_eq!(read(&vec![(buffer, 512); segments + 1]), Err(BlockError::OutOfRange));
        assert_eq!(read(&[(buffer, bytes + 512)]), Err(BlockError::OutOfRange));
        assert!(read(&vec![(buffer, 512); segments]).unwrap().is_some());
    }
    let machine = Machine::new();
    let device = machine.device(device_type::BLOCK, SIZE_MAX, &[128], &[1; 10]);
    assert!(matches!(Block::new(device, machine.allocator(), None), Err(VirtioError::Unusable)));
}

#[test]
fn goes_on_after_quiesce() {
    let (mut block, mut disk, buffer) = start(INDIRECT, 128);
    let mut random = Stream::new(5);
    for round in 0..20 {
        let slot = block.submit(Operation::Read, round, &[(buffer, 512)]).unwrap().unwrap();
        assert!(!block.quiesce(), "not paused");
        block.pause();
        assert_eq!(block.submit(Operation::Read, 1, &[(buffer, 512)]), Ok(None));
        assert!(!block.quiesce() && block.in_flight() == 1, "a request is in flight");
        disk.work(&mut random, 1);
        block.complete(|_| ());
        assert!(block.quiesce());
        assert_eq!(disk.device.status(), 0);
        assert_eq!(block.take(slot), Some(Ok(())), "a result outlives the reset");
        block.resume().unwrap();
        let at = round as usize * 512;
        assert_eq!(disk.device.ram.get::<512>(buffer)[..], disk.content[at..at + 512]);
    }
    // Another disk in its place is not taken for it.
    block.pause();
    assert!(block.quiesce());
    disk.device.configure(CONFIG_CAPACITY, 7);
    assert_eq!(block.resume(), Err(VirtioError::Unusable));
    assert_eq!(block.submit(Operation::Read, 0, &[(buffer, 512)]), Err(BlockError::Io));
}

#[test]
fn a_device_that_does_not_stop_is_given_up() {
    let (mut block, disk, buffer) = start(INDIRECT, 128);
    disk.device.get_stuck();
    block.pause();
    assert!(!block.quiesce() && block.is_switched_off());
    assert_eq!(block.submit(Operation::Read, 0, &[(buffer, 512)]), Err(BlockError::Io));
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
