//! The virtio network device (virtio 1.2, section 5.1): whole frames, one buffer each.
//!
//! Of the offered features only the address and the link's state are taken: no checksum or
//! segmentation offload, no mergeable buffers, one pair of queues. So each frame is complete, and
//! the header before it says nothing.
//!
//! # Invariants
//! A receive buffer belongs to the device until its chain was used; it is offered again when the
//! frame has been copied out. A send slot is free again when its chain was used.
use alloc::{vec, vec::Vec};

use super::{
    Dma, VirtioError, device_type,
    queue::{Queue, Segment, bytes_needed},
    transport::{self, Transport},
};

const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_STATUS: u64 = 1 << 16;
const CONFIG_MAC: u32 = 0;
/// The upper half of this word is the status.
const CONFIG_MAC_END: u32 = 4;
const LINK_UP: u32 = 1 << 16;

const RECEIVE: u16 = 0;
const SEND: u16 = 1;
const RECEIVE_BUFFERS: u16 = 32;
const SEND_SLOTS: u16 = 16;
/// Header, frame, and no page boundary between.
const BUFFER_LEN: usize = 2048;
const ETHERNET_HEADER: usize = 14;
/// Without the check sequence, which the device keeps.
pub const MAX_FRAME: usize = 1514;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    Full,
    BadLength,
    /// The device lied, and is switched off.
    Gone,
}

pub struct Network<T, D> {
    transport: T,
    receive: Queue<D>,
    send: Queue<D>,
    incoming: D,
    outgoing: D,
    /// Buffer of the chain that begins at a descriptor.
    buffer_of: Vec<u8>,
    slot_of: Vec<u8>,
    free_slots: Vec<u8>,
    header_len: usize,
    features: u64,
    mac: [u8; 6],
    vector: Option<u16>,
    /// The device is reset for a while.
    quiesced: bool,
    switched_off: bool,
}

impl<T: Transport, D: Dma> Network<T, D> {
    /// Starts the device. `allocate` gives zeroed memory of at least so many bytes. `vector` is the
    /// MSI-X table entry for received frames; sent ones interrupt nobody.
    pub fn new(
        mut transport: T,
        mut allocate: impl FnMut(usize) -> Option<D>,
        vector: Option<u16>,
    ) -> Result<Self, VirtioError> {
        if transport.device_type() != device_type::NETWORK {
            return Err(VirtioError::NotThere);
        }
        let features = transport::negotiate(&mut transport, FEATURE_MAC | FEATURE_STATUS)?;
        if features & FEATURE_MAC == 0 {
            return Err(VirtioError::Unusable);
        }
        let mut queue = |index, size| {
            let size = match transport.max_queue_size(index) {
                0 => return Err(VirtioError::Unusable),
                max => (1 << max.ilog2()).min(size),
            };
            Queue::new(allocate(bytes_needed(size)).ok_or(VirtioError::NoRoom)?, size)
        };
        let receive = queue(RECEIVE, RECEIVE_BUFFERS)?;
        let send = queue(SEND, SEND_SLOTS)?;
        let mut area = |count: u16| {
            let len = usize::from(count) * BUFFER_LEN;
            allocate(len).filter(|area: &D| area.len_bytes() >= len).ok_or(VirtioError::NoRoom)
        };
        let (incoming, outgoing) = (area(receive.size())?, area(send.size())?);
        // The count of merged buffers is part of the header since version 1.0, merged or not.
        let header_len = if transport.is_legacy() { 10 } else { 12 };
        let mut network = Self {
            buffer_of: vec![0; usize::from(receive.size())],
            slot_of: vec![0; usize::from(send.size())],
            free_slots: (0..send.size() as u8).collect(),
            transport,
            receive,
            send,
            incoming,
            outgoing,
            header_len,
            features,
            mac: [0; 6],
            vector,
            quiesced: false,
            switched_off: false,
        };
        network.mac = network.address();
        network.start()?;
        Ok(network)
    }

    /// Hands the empty queues to a device with which the features were agreed on.
    fn start(&mut self) -> Result<(), VirtioError> {
        self.transport.set_queue(RECEIVE, self.receive.size(), self.receive.addresses(), self.vector)?;
        self.transport.set_queue(SEND, self.send.size(), self.send.addresses(), None)?;
        transport::start(&mut self.transport);
        for buffer in 0..self.receive.size() as u8 {
            self.offer(buffer)?;
        }
        self.transport.notify(RECEIVE);
        Ok(())
    }

    /// Resets the device once all frames are out that were sent. Until [`Network::resume`] there is no
    /// room for more. What was received and not taken is lost, as frames may be. False: some are not out
    /// yet, or the device does not stop, and is given up.
    pub fn quiesce(&mut self) -> bool {
        let idle = self.take_sent().is_ok() && self.send.is_idle();
        if idle {
            self.quiesced = self.transport.reset();
            self.switched_off = !self.quiesced;
        }
        self.quiesced
    }

    /// Starts the device again, with the features and the address it had. If it is another one, it is
    /// given up.
    pub fn resume(&mut self) -> Result<(), VirtioError> {
        self.quiesced = false;
        let started = transport::renegotiate(&mut self.transport, self.features).and_then(|()| {
            if self.address() != self.mac {
                return Err(VirtioError::Unusable);
            }
            self.receive.clear();
            self.send.clear();
            self.start()
        });
        if started.is_err() {
            self.switch_off();
        }
        started
    }

    fn address(&self) -> [u8; 6] {
        let (low, high) = (self.transport.config32(CONFIG_MAC), self.transport.config32(CONFIG_MAC_END));
        let ([a, b, c, d], [e, f, ..]) = (low.to_le_bytes(), high.to_le_bytes());
        [a, b, c, d, e, f]
    }

    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// True also of a device that cannot tell.
    pub fn link_is_up(&self) -> bool {
        let up = || self.transport.config32(CONFIG_MAC_END) & LINK_UP != 0;
        !self.switched_off && (self.features & FEATURE_STATUS == 0 || up())
    }

    /// True once the device has lied.
    pub fn is_switched_off(&self) -> bool {
        self.switched_off
    }

    /// First thing in an interrupt handler.
    pub fn acknowledge_interrupt(&mut self) {
        self.transport.acknowledge_interrupt();
    }

    pub fn send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        if !(ETHERNET_HEADER..=MAX_FRAME).contains(&frame.len()) {
            return Err(SendError::BadLength);
        }
        if self.quiesced {
            return Err(SendError::Full);
        }
        self.take_sent()?;
        let slot = self.free_slots.pop().ok_or(SendError::Full)?;
        let at = usize::from(slot) * BUFFER_LEN;
        // The header's fields are all 0: nothing is left to the device.
        for offset in 0..self.header_len {
            self.outgoing.store8(at + offset, 0);
        }
        for (offset, byte) in frame.iter().enumerate() {
            self.outgoing.store8(at + self.header_len + offset, *byte);
        }
        let len = (self.header_len + frame.len()) as u32;
        let segment = Segment { address: self.outgoing.physical() + at as u64, len, device_writes: false };
        let Some(head) = self.send.add(&[segment]) else {
            self.free_slots.push(slot);
            return Err(SendError::Full);
        };
        self.slot_of[usize::from(head)] = slot;
        if self.send.must_notify() {
            self.transport.notify(SEND);
        }
        Ok(())
    }

    /// Frees the slots of frames that are out.
    fn take_sent(&mut self) -> Result<(), SendError> {
        while !self.switched_off && !self.quiesced {
            match self.send.pop() {
                Ok(Some((head, _))) => self.free_slots.push(self.slot_of[usize::from(head)]),
                Ok(None) => return Ok(()),
                Err(_) => self.switch_off(),
            }
        }
        Err(SendError::Gone)
    }

    /// Copies the next frame to `out`; None: there is none. One that is no frame, or does not fit, is
    /// dropped.
    pub fn receive(&mut self, out: &mut [u8]) -> Option<usize> {
        while !self.switched_off && !self.quiesced {
            let (head, written) = match self.receive.pop() {
                Ok(next) => next?,
                Err(_) => {
                    self.switch_off();
                    break;
                }
            };
            let buffer = self.buffer_of[usize::from(head)];
            let written = written as usize;
            if !(self.header_len..=BUFFER_LEN).contains(&written) {
                self.switch_off();
                break;
            }
            let len = written - self.header_len;
            let whole = (ETHERNET_HEADER..=out.len()).contains(&len);
            if whole {
                let at = usize::from(buffer) * BUFFER_LEN + self.header_len;
                for (offset, byte) in out[..len].iter_mut().enumerate() {
                    *byte = self.incoming.load8(at + offset);
                }
            }
            if self.offer(buffer).is_err() {
                self.switch_off();
                break;
            }
            if self.receive.must_notify() {
                self.transport.notify(RECEIVE);
            }
            if whole {
                return Some(len);
            }
        }
        None
    }

    /// Something was received that [`Network::receive`] has not taken.
    pub fn has_received(&self) -> bool {
        !self.switched_off && !self.quiesced && self.receive.has_used()
    }

    fn offer(&mut self, buffer: u8) -> Result<(), VirtioError> {
        let address = self.incoming.physical() + u64::from(buffer) * BUFFER_LEN as u64;
        let segment = Segment { address, len: BUFFER_LEN as u32, device_writes: true };
        let head = self.receive.add(&[segment]).ok_or(VirtioError::NoRoom)?;
        self.buffer_of[usize::from(head)] = buffer;
        Ok(())
    }

    fn switch_off(&mut self) {
        self.switched_off = true;
        // If even that does not stop it, its memory stays its own: it is never given back.
        self.transport.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::fake::{Area, Device, Machine},
        *,
    };

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn start() -> (Network<Device, Area>, Device) {
        let machine = Machine::new();
        let config = [&MAC[..], &[1, 0]].concat();
        // Everything is offered; little is taken.
        let device = machine.device(device_type::NETWORK, u64::from(u32::MAX), &[256, 256], &config);
        let network = Network::new(device.clone(), machine.allocator(), None).unwrap();
        assert_eq!(device.accepted(), FEATURE_MAC | FEATURE_STATUS | 1 << 32);
        (network, device)
    }

    /// Puts a frame into the next of `buffers`, and claims to have written so much.
    fn deliver(device: &Device, buffers: &mut Vec<u16>, frame: &[u8], claimed: u32) {
        buffers.extend(device.take(RECEIVE));
        let head = buffers.remove(0);
        let (address, len, device_writes) = device.chain(RECEIVE, head)[0];
        assert!(device_writes && len == 2048);
        device.ram.put(address, &[&[0; 12][..], frame].concat());
        device.answer(RECEIVE, u32::from(head), claimed);
    }

    #[test]
    fn frames_go_both_ways() {
        let (mut network, device) = start();
        assert_eq!(network.mac(), MAC);
        assert!(network.link_is_up());
        let mut buffers = Vec::new();
        for round in 0..200usize {
            let frame = vec![round as u8; 14 + round * 7];
            network.send(&frame).unwrap();
            let head = device.take(SEND).pop().unwrap();
            let (address, len, _) = device.chain(SEND, head)[0];
            assert_eq!(len as usize, 12 + frame.len());
            let sent: Vec<u8> = (0..u64::from(len)).map(|n| device.ram.get::<1>(address + n)[0]).collect();
            assert!(sent[..12] == [0; 12] && sent[12..] == frame);
            device.answer(SEND, u32::from(head), 0);
            assert!(!network.has_received());
            deliver(&device, &mut buffers, &frame, len);
            assert!(network.has_received());
            let mut out = [0; MAX_FRAME];
            assert_eq!(network.receive(&mut out), Some(frame.len()));
            assert_eq!(out[..frame.len()], frame);
            assert_eq!(network.receive(&mut out), None);
        }
    }

    #[test]
    fn a_full_queue_says_so_and_recovers() {
        let (mut network, device) = start();
        for _ in 0..SEND_SLOTS {
            network.send(&[1; 60]).unwrap();
        }
        assert_eq!(network.send(&[1; 60]), Err(SendError::Full));
        for head in device.take(SEND) {
            device.answer(SEND, u32::from(head), 0);
        }
        assert_eq!(network.send(&[1; 60]), Ok(()));
        assert_eq!(network.send(&[1; 13]), Err(SendError::BadLength));
        assert_eq!(network.send(&[1; MAX_FRAME + 1]), Err(SendError::BadLength));
    }

    #[test]
    fn goes_on_after_quiesce() {
        let (mut network, device) = start();
        for round in 0..20u8 {
            network.send(&[round; 60]).unwrap();
            assert!(!network.quiesce(), "a frame is not out yet");
            let head = device.take(SEND).pop().unwrap();
            device.answer(SEND, u32::from(head), 0);
            assert!(network.quiesce());
            assert_eq!(device.status(), 0);
            assert_eq!(network.send(&[round; 60]), Err(SendError::Full));
            assert_eq!(network.receive(&mut [0; MAX_FRAME]), None);
            network.resume().unwrap();
            deliver(&device, &mut Vec::new(), &[round; 60], 72);
            let mut out = [0; MAX_FRAME];
            assert_eq!(network.receive(&mut out), Some(60));
            assert_eq!(out[..60], [round; 60]);
        }
        assert!(network.quiesce());
        device.configure(CONFIG_MAC, 7);
        assert_eq!(network.resume(), Err(VirtioError::Unusable));
        assert_eq!(network.send(&[1; 60]), Err(SendError::Gone));
        // One that does not stop is given up.
        let (mut network, device) = start();
        device.get_stuck();
        assert!(!network.quiesce() && network.is_switched_off());
    }

    #[test]
    fn what_is_no_frame_is_dropped() {
        let (mut network, device) = start();
        let mut buffers = Vec::new();
        deliver(&device, &mut buffers, &[1; 13], 12 + 13);
        deliver(&device, &mut buffers, &[], 12);
        deliver(&device, &mut buffers, &[2; 2036], 2048);
        deliver(&device, &mut buffers, &[3; 60], 72);
        let mut out = [0; MAX_FRAME];
        assert_eq!(network.receive(&mut out), Some(60));
        assert_eq!(network.receive(&mut out), None);
        assert!(!network.is_switched_off());
    }

    #[test]
    fn a_device_that_lies_is_switched_off() {
        for lie in 0..5 {
            let (mut network, device) = start();
            let mut buffers = Vec::new();
            match lie {
                0 => deliver(&device, &mut buffers, &[1; 60], 2049),
                1 => deliver(&device, &mut buffers, &[1; 60], 11),
                2 => device.answer(RECEIVE, 99, 72),
                3 => device.answer(RECEIVE, u32::MAX, 72),
                _ => device.answer(SEND, 0, 0),
            }
            let sent = network.send(&[1; 60]);
            assert_eq!(network.receive(&mut [0; MAX_FRAME]), None);
            assert!(sent.is_ok() || lie == 4);
            assert_eq!(network.send(&[1; 60]), Err(SendError::Gone));
            assert_eq!(device.status(), 0);
            assert!(!network.link_is_up() && !network.has_received());
        }
    }
}
