//! The balloon driver against a device of the other side's making, which may be told to lie.
use super::{
    super::fake::{Area, Device, Machine},
    *,
};

const ALL: u64 = FEATURE_STATISTICS | FEATURE_DEFLATE_ON_OOM | FEATURE_HINT | FEATURE_REPORTING;

fn device(features: u64, sizes: &[u16]) -> (Device, Machine) {
    let machine = Machine::new();
    let device = machine.device(device_type::BALLOON, features, sizes, &[0; 16]);
    (device, machine)
}

fn start(features: u64) -> (Balloon<Device, Area>, Device) {
    let (device, machine) = device(features, &[128, 128, 128, 32, 32]);
    (Balloon::new(device.clone(), machine.allocator(), None).unwrap(), device)
}

/// The numbers in the one chain of `queue`, and its head.
fn numbers(device: &Device, queue: u16) -> (u16, Vec<u32>) {
    let head = device.take(queue).pop().unwrap();
    let chain = device.chain(queue, head);
    assert!(chain.len() == 1 && !chain[0].2);
    (head, (0..chain[0].1 / 4).map(|n| device.ram.u32(chain[0].0 + 4 * u64::from(n))).collect())
}

#[test]
fn pages_go_and_come_back() {
    let (mut balloon, device) = start(ALL);
    assert!(balloon.may_deflate_on_oom());
    device.configure(CONFIG_TARGET, 300);
    assert_eq!(balloon.target(), 300);
    for (round, (direction, queue)) in
        [(Direction::Inflate, 0), (Direction::Deflate, 1)].into_iter().cycle().take(50).enumerate()
    {
        let frames: Vec<u32> = (0..=round as u32 * 5).map(|n| 0x8_0000 + n * 3).collect();
        assert!(balloon.transfer(direction, &frames) && balloon.is_transferring());
        assert!(!balloon.transfer(direction, &frames), "one at a time");
        balloon.work().unwrap();
        assert!(balloon.is_transferring(), "not answered yet");
        let (head, seen) = numbers(&device, queue);
        assert_eq!(seen, frames);
        device.answer(queue, u32::from(head), 0);
        balloon.work().unwrap();
        assert!(!balloon.is_transferring());
    }
    balloon.set_actual(300);
    assert_eq!(balloon.transport.config32(CONFIG_ACTUAL), 300);
    assert!(!balloon.transfer(Direction::Inflate, &[]));
    assert!(!balloon.transfer(Direction::Inflate, &[1; TRANSFER_PAGES + 1]));
}

#[test]
fn reports_are_one_chain_that_the_device_may_write() {
    // Where the queue stands depends on the features.
    for (features, queue) in [(ALL, 4), (FEATURE_REPORTING | FEATURE_STATISTICS, 3), (FEATURE_REPORTING, 2)] {
        let (mut balloon, device) = start(features);
        assert_eq!(balloon.report_limit(), REPORT_BLOCKS);
        let blocks: Vec<(u64, u32)> = (0..32).map(|n| (n << 22, 4 << 20)).collect();
        assert!(balloon.report(&blocks) && !balloon.report(&blocks));
        let head = device.take(queue).pop().unwrap();
        let chain = device.chain(queue, head);
        assert!(chain.iter().all(|segment| segment.2));
        assert_eq!(chain.iter().map(|&(address, len, _)| (address, len)).collect::<Vec<_>>(), blocks);
        balloon.work().unwrap();
        assert!(balloon.is_reporting());
        device.answer(queue, u32::from(head), 0);
        balloon.work().unwrap();
        assert!(!balloon.is_reporting() && balloon.report(&blocks[..1]));
    }
    let (mut balloon, _) = start(0);
    assert!(balloon.report_limit() == 0 && !balloon.report(&[(0, 4096)]) && !balloon.may_deflate_on_oom());
}

#[test]
fn a_small_report_queue_takes_small_reports() {
    let (device, machine) = device(FEATURE_REPORTING, &[8, 8, 20]);
    let mut balloon = Balloon::new(device, machine.allocator(), None).unwrap();
    assert_eq!(balloon.report_limit(), 16, "a power of two");
    assert!(!balloon.report(&[(0, 4096); 17]) && balloon.report(&[(0, 4096); 16]));
}

#[test]
fn statistics_are_given_when_asked_for() {
    let (mut balloon, device) = start(FEATURE_STATISTICS);
    for round in 0..20u64 {
        assert!(balloon.wants_statistics());
        balloon.give_statistics(&[(statistic::FREE, round << 33), (statistic::TOTAL, u64::MAX - round)]);
        assert!(!balloon.wants_statistics());
        let head = device.take(2).pop().unwrap();
        let (address, len, _) = device.chain(2, head)[0];
        assert_eq!(len, 20);
        assert_eq!((device.ram.u16(address), device.ram.u64(address + 2)), (statistic::FREE, round << 33));
        assert_eq!(device.ram.u64(address + 12), u64::MAX - round);
        device.answer(2, u32::from(head), 0);
        balloon.work().unwrap();
    }
}

#[test]
fn goes_on_after_quiesce() {
    let (mut balloon, device) = start(ALL);
    assert!(balloon.transfer(Direction::Inflate, &[7]));
    assert!(!balloon.quiesce(), "something is in flight");
    let (head, _) = numbers(&device, 0);
    device.answer(0, u32::from(head), 0);
    balloon.work().unwrap();
    assert!(balloon.quiesce());
    assert_eq!(device.status(), 0);
    balloon.resume(1).unwrap();
    assert_eq!(balloon.transport.config32(CONFIG_ACTUAL), 1);
    assert!(balloon.transfer(Direction::Deflate, &[7]));
    assert_eq!(numbers(&device, 1).1, [7]);
    device.answer(1, 0, 0);
    balloon.work().unwrap();
    // It must be the same device.
    assert!(balloon.quiesce());
    device.offer(FEATURE_STATISTICS);
    assert_eq!(balloon.resume(1), Err(VirtioError::Unusable));
    assert!(balloon.is_switched_off());
    assert_eq!(balloon.work(), Err(VirtioError::Lied));
}

#[test]
fn a_device_that_does_not_stop_is_given_up() {
    let (mut balloon, device) = start(ALL);
    device.get_stuck();
    assert!(!balloon.quiesce() && balloon.is_switched_off());
    assert_eq!(balloon.work(), Err(VirtioError::Silent), "it may still use what it was given");
}

#[test]
fn a_device_that_lies_is_switched_off() {
    for queue in [0, 1, 2, 3, 4] {
        // Something that is not in flight, something that cannot be, and both when something is.
        for id in [0, 1, 300, u32::MAX] {
            for busy in [false, true] {
                let (mut balloon, device) = start(ALL);
                if busy {
                    assert!(balloon.transfer(Direction::Inflate, &[1, 2, 3]) && balloon.report(&[(0, 1 << 21)]));
                }
                let truth = busy && matches!((queue, id), (0 | 4, 0));
                device.answer(queue, id, 12);
                assert_eq!(balloon.work().is_ok(), truth, "queue {queue} id {id}");
                if truth {
                    // The same once more is a lie.
                    device.answer(queue, id, 12);
                    assert_eq!(balloon.work(), Err(VirtioError::Lied));
                }
                assert_eq!(device.status(), 0, "reset before the memory is used again");
                assert!(!balloon.is_transferring() && !balloon.is_reporting() && balloon.target() == 0);
                assert!(!balloon.transfer(Direction::Deflate, &[1]) && !balloon.report(&[(0, 1 << 21)]));
                assert!(!balloon.quiesce());
            }
        }
    }
}

#[test]
fn a_device_without_its_queues_is_refused() {
    for sizes in [&[][..], &[128], &[128, 0, 128, 32, 32], &[128, 128, 128, 32], &[128, 1, 128, 32, 32]] {
        let (device, machine) = device(ALL, sizes);
        assert!(matches!(Balloon::new(device, machine.allocator(), None), Err(VirtioError::Unusable)));
    }
    let machine = Machine::new();
    let disk = machine.device(device_type::BLOCK, 0, &[8], &[]);
    assert!(matches!(Balloon::new(disk, machine.allocator(), None), Err(VirtioError::NotThere)));
}
