//! Every driver against a device that says anything: queue sizes, configuration, identifiers, lengths and
//! indices at random, changes in the middle of everything. No driver panics, hands out a length that it
//! did not ask for, or waits for a device that it has switched off.
use super::{
    balloon::{Balloon, Direction},
    block::{Block, Operation, SLOTS},
    console::{Console, WRITE_BYTES, Wanted},
    device_type,
    entropy::{Entropy, REQUEST_BYTES},
    fake::{Area, Device, Machine},
    net::{MAX_FRAME, Network},
};
use crate::random::Stream;

const SEEDS: u64 = 300;
const STEPS: u64 = 60;

/// A machine with a device of this type that offers anything.
fn device(kind: u32, random: &mut Stream) -> (Machine, Device) {
    let machine = Machine::new();
    let sizes: Vec<u16> = (0..6)
        .map(|_| match random.below(8) {
            0 => random.next_u64() as u16,
            1 => 0,
            // As devices have them.
            _ => 1 << (3 + random.below(6)),
        })
        .collect();
    let config: Vec<u8> = (0..24).map(|_| random.next_u64() as u8 >> random.below(8)).collect();
    let device = machine.device(kind, random.next_u64() & 0x1_ffff_ffff, &sizes, &config);
    (machine, device)
}

/// Says something about a queue that the driver may have set up.
fn lie(device: &Device, random: &mut Stream) {
    let queue = random.below(6) as u16;
    if !device.is_set_up(queue) {
        return;
    }
    match random.below(8) {
        0 => device.jump(queue, random.next_u64() as u16 >> random.below(16)),
        1 => device.configure(4 * random.below(6) as u32, random.next_u64() as u32),
        2 => device.answer(queue, random.next_u64() as u32, random.next_u64() as u32),
        // Mostly plausible.
        _ => {
            let written = [0, 1, 8, 12, 64, 72, 513, 600][random.below(8) as usize];
            device.answer(queue, random.below(4) as u32, written);
        }
    }
}

fn each_seed(kind: u32, mut run: impl FnMut(&Machine, Device, &mut Stream)) {
    for seed in 0..SEEDS {
        let mut random = Stream::new(seed);
        let (machine, device) = device(kind, &mut random);
        run(&machine, device, &mut random);
    }
}

#[test]
fn block() {
    each_seed(device_type::BLOCK, |machine, device, random| {
        let Ok(mut block) = Block::<_, Area>::new(device.clone(), machine.allocator(), None) else { return };
        let buffer = machine.free_from();
        let mut flying = Vec::new();
        for step in 0..STEPS {
            let operation = [Operation::Read, Operation::Write, Operation::Flush][random.below(3) as usize];
            let data = [(buffer + 512 * step, 512)];
            let data = if operation == Operation::Flush { &[][..] } else { &data };
            if let Ok(Some(slot)) = block.submit(operation, random.below(1 << 20), data) {
                assert!(slot < SLOTS && !flying.contains(&slot));
                flying.push(slot);
            }
            lie(&device, random);
            block.complete(|slot| assert!(slot < SLOTS));
            flying.retain(|slot| block.take(*slot).is_none());
            if step % 16 == 15 {
                block.pause();
                if block.quiesce() {
                    let _ = block.resume();
                } else {
                    block.go_on();
                }
            }
        }
        assert!(!block.is_switched_off() || flying.is_empty(), "a request waits for a device that is off");
    });
}

#[test]
fn network() {
    each_seed(device_type::NETWORK, |machine, device, random| {
        let Ok(mut network) = Network::<_, Area>::new(device.clone(), machine.allocator(), None) else { return };
        for step in 0..STEPS {
            let _ = network.send(&[step as u8; 60]);
            lie(&device, random);
            let mut out = [0; MAX_FRAME];
            assert!(network.receive(&mut out).is_none_or(|len| len <= MAX_FRAME));
            let _ = network.link_is_up();
            if step % 16 == 15 && network.quiesce() {
                let _ = network.resume();
            }
        }
    });
}

#[test]
fn console() {
    each_seed(device_type::CONSOLE, |machine, device, random| {
        let wanted = Wanted { name: "port", terminal: random.below(2) == 0, vector: None };
        let Ok(mut console) = Console::<_, Area>::new(device.clone(), machine.allocator(), wanted) else { return };
        for step in 0..STEPS {
            console.write(&[1; WRITE_BYTES]);
            assert!(console.write_terminal(&[2; 9000]) <= 9000);
            lie(&device, random);
            let mut count = 0;
            console.read_terminal(1000, |_| count += 1);
            assert!(count <= 1000);
            let off = console.work().is_err();
            assert!(!off || !console.is_open() && !console.has_terminal());
            if step % 16 == 15 && console.quiesce() {
                let _ = console.resume();
            }
        }
    });
}

#[test]
fn entropy() {
    each_seed(device_type::ENTROPY, |machine, device, random| {
        let Ok(mut entropy) = Entropy::<_, Area>::new(device.clone(), machine.allocator()) else { return };
        for _ in 0..STEPS {
            let mut out = [0; REQUEST_BYTES];
            match entropy.take(&mut out) {
                Ok(count) => assert!(count.is_none_or(|count| (1..=REQUEST_BYTES).contains(&count))),
                Err(_) => break,
            }
            lie(&device, random);
        }
        entropy.stop();
    });
}

#[test]
fn balloon() {
    each_seed(device_type::BALLOON, |machine, device, random| {
        let Ok(mut balloon) = Balloon::<_, Area>::new(device.clone(), machine.allocator(), None) else { return };
        for step in 0..STEPS {
            balloon.transfer(Direction::Inflate, &[step as u32]);
            balloon.report(&[(step << 21, 1 << 21)]);
            balloon.give_statistics(&[(4, step)]);
            lie(&device, random);
            if balloon.work().is_err() {
                assert!(!balloon.is_transferring() && !balloon.is_reporting());
                assert!(!balloon.transfer(Direction::Deflate, &[1]) && balloon.target() == 0);
            }
            if step % 16 == 15 && balloon.quiesce() {
                let _ = balloon.resume(step as u32);
            }
        }
    });
}
