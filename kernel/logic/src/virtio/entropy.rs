//! The virtio entropy device (virtio 1.2, section 5.4): random bytes, one request at a time.
use super::{
    Dma, VirtioError, device_type,
    queue::{Queue, Segment, bytes_needed},
    transport::{self, Transport},
};

const QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 2;

/// Bytes asked for at once.
pub const REQUEST_BYTES: usize = 64;

pub struct Entropy<T, D> {
    transport: T,
    queue: Queue<D>,
    buffer: D,
    asked: bool,
}

impl<T: Transport, D: Dma> Entropy<T, D> {
    /// Starts the device. `allocate` gives zeroed memory of at least so many bytes. Nothing is
    /// interrupted: the caller polls.
    pub fn new(mut transport: T, mut allocate: impl FnMut(usize) -> Option<D>) -> Result<Self, VirtioError> {
        if transport.device_type() != device_type::ENTROPY {
            return Err(VirtioError::NotThere);
        }
        transport::negotiate(&mut transport, 0)?;
        if transport.max_queue_size(QUEUE) < QUEUE_SIZE {
            return Err(VirtioError::Unusable);
        }
        let queue = Queue::new(allocate(bytes_needed(QUEUE_SIZE)).ok_or(VirtioError::NoRoom)?, QUEUE_SIZE)?;
        let buffer =
            allocate(REQUEST_BYTES).filter(|area| area.len_bytes() >= REQUEST_BYTES).ok_or(VirtioError::NoRoom)?;
        transport.set_queue(QUEUE, QUEUE_SIZE, queue.addresses(), None)?;
        transport::start(&mut transport);
        Ok(Self { transport, queue, buffer, asked: false })
    }

    /// What the device has for us; asks for it first. None: not yet. It may give less than it was
    /// asked for, but not nothing, and not more.
    pub fn take(&mut self, out: &mut [u8; REQUEST_BYTES]) -> Result<Option<usize>, VirtioError> {
        if !self.asked {
            let all = Segment { address: self.buffer.physical(), len: REQUEST_BYTES as u32, device_writes: true };
            self.queue.add(&[all]).ok_or(VirtioError::NoRoom)?;
            self.asked = true;
            if self.queue.must_notify() {
                self.transport.notify(QUEUE);
            }
        }
        let Some((_, written)) = self.queue.pop()? else { return Ok(None) };
        self.asked = false;
        let count = usize::try_from(written).ok().filter(|n| (1..=REQUEST_BYTES).contains(n));
        let count = count.ok_or(VirtioError::Lied)?;
        for (at, byte) in out[..count].iter_mut().enumerate() {
            *byte = self.buffer.load8(at);
            // What was random once must not be found here again.
            self.buffer.store8(at, 0);
        }
        Ok(Some(count))
    }

    /// Ends the device's work. False: it does not stop, and may still write to its buffer.
    pub fn stop(mut self) -> bool {
        self.transport.reset()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::fake::{Device, Machine},
        *,
    };

    fn start() -> (Entropy<Device, super::super::fake::Area>, Device) {
        let machine = Machine::new();
        let device = machine.device(device_type::ENTROPY, 0, &[8], &[]);
        let entropy = Entropy::new(device.clone(), machine.allocator()).unwrap();
        (entropy, device)
    }

    /// Answers the request with `count` bytes of 0xa5, and says that it wrote `claimed`.
    fn answer(device: &Device, count: usize, claimed: u32) {
        let head = device.take(0).pop().unwrap();
        let chain = device.chain(0, head);
        assert!(chain.len() == 1 && chain[0].1 == 64 && chain[0].2);
        device.ram.put(chain[0].0, &vec![0xa5; count]);
        device.answer(0, u32::from(head), claimed);
    }

    #[test]
    fn bytes_come_in_any_portion_and_are_wiped() {
        let (mut entropy, device) = start();
        let mut out = [0; REQUEST_BYTES];
        for count in [64, 1, 33, 64] {
            assert_eq!(entropy.take(&mut out), Ok(None));
            assert_eq!(entropy.take(&mut out), Ok(None), "asked once");
            answer(&device, count, count as u32);
            assert_eq!(entropy.take(&mut out), Ok(Some(count)));
            assert!(out[..count].iter().all(|byte| *byte == 0xa5));
            assert!((0..count).all(|at| entropy.buffer.load8(at) == 0));
        }
        assert!(entropy.stop());
    }

    #[test]
    fn a_device_that_claims_too_much_or_nothing_is_refused() {
        for claimed in [0, 65, 4096, u32::MAX] {
            let (mut entropy, device) = start();
            let mut out = [0; REQUEST_BYTES];
            assert_eq!(entropy.take(&mut out), Ok(None));
            answer(&device, 64, claimed);
            assert_eq!(entropy.take(&mut out), Err(VirtioError::Lied));
            assert_eq!(out, [0; REQUEST_BYTES], "nothing of it is used");
        }
        let (mut entropy, device) = start();
        assert_eq!(entropy.take(&mut [0; REQUEST_BYTES]), Ok(None));
        device.answer(0, 7, 64);
        assert_eq!(entropy.take(&mut [0; REQUEST_BYTES]), Err(VirtioError::Lied));
    }

    #[test]
    fn a_device_that_answers_a_reset_by_failed_is_not_looked_at_for_long() {
        let (entropy, device) = start();
        device.fail();
        assert!(!entropy.stop());
        assert!(device.looks() < 1000);
    }

    #[test]
    fn another_device_is_not_taken() {
        let machine = Machine::new();
        let disk = machine.device(device_type::BLOCK, 0, &[8], &[]);
        assert!(matches!(Entropy::new(disk, machine.allocator()), Err(VirtioError::NotThere)));
        let queueless = machine.device(device_type::ENTROPY, 0, &[], &[]);
        assert!(matches!(Entropy::new(queueless, machine.allocator()), Err(VirtioError::Unusable)));
    }
}
