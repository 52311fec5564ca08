//! Port 0 of a console device: bytes in and out.
use super::{TERMINAL_IN, TERMINAL_OUT, area, queue};
use crate::virtio::{
    Dma, VirtioError,
    queue::{Queue, Segment},
    transport::Transport,
};

const BUFFERS: u16 = 8;
const BUFFER_LEN: usize = 128;
const SLOTS: u16 = 8;
const SLOT_LEN: usize = 512;

pub struct Terminal<D> {
    pub receive: Queue<D>,
    pub transmit: Queue<D>,
    /// The port is there.
    pub ready: bool,
    incoming: D,
    outgoing: D,
    /// Which buffer or slot a chain is.
    buffer_of: [u8; BUFFERS as usize],
    slot_of: [u8; SLOTS as usize],
    /// Slots in flight, a bit each.
    flying: u8,
}

impl<D: Dma> Terminal<D> {
    pub fn new(
        transport: &mut impl Transport,
        allocate: &mut impl FnMut(usize) -> Option<D>,
    ) -> Result<Self, VirtioError> {
        Ok(Self {
            receive: queue(transport, allocate, TERMINAL_IN, BUFFERS)?,
            transmit: queue(transport, allocate, TERMINAL_OUT, SLOTS)?,
            ready: false,
            incoming: area(allocate, usize::from(BUFFERS) * BUFFER_LEN)?,
            outgoing: area(allocate, usize::from(SLOTS) * SLOT_LEN)?,
            buffer_of: [0; BUFFERS as usize],
            slot_of: [0; SLOTS as usize],
            flying: 0,
        })
    }

    /// As new, for a device that was reset.
    pub fn clear(&mut self) {
        self.receive.clear();
        self.transmit.clear();
        self.flying = 0;
        self.ready = false;
    }

    pub fn offer_all(&mut self) -> Result<(), VirtioError> {
        (0..BUFFERS as u8).try_for_each(|buffer| self.offer(buffer))
    }

    fn offer(&mut self, buffer: u8) -> Result<(), VirtioError> {
        let address = self.incoming.physical() + u64::from(buffer) * BUFFER_LEN as u64;
        let segment = Segment { address, len: BUFFER_LEN as u32, device_writes: true };
        let head = self.receive.add(&[segment]).ok_or(VirtioError::NoRoom)?;
        self.buffer_of[usize::from(head)] = buffer;
        Ok(())
    }

    /// Frees the slots that the device has taken.
    pub fn take_sent(&mut self) -> Result<(), VirtioError> {
        while let Some((head, _)) = self.transmit.pop()? {
            self.flying &= !(1 << self.slot_of[usize::from(head)]);
        }
        Ok(())
    }

    /// Sends as many bytes as there are free slots for: how many.
    pub fn write(&mut self, transport: &mut impl Transport, bytes: &[u8]) -> usize {
        let mut sent = 0;
        for piece in bytes.chunks(SLOT_LEN) {
            let slot = (!self.flying).trailing_zeros() as usize;
            if slot >= usize::from(SLOTS) {
                break;
            }
            let at = slot * SLOT_LEN;
            for (offset, byte) in piece.iter().enumerate() {
                self.outgoing.store8(at + offset, *byte);
            }
            let address = self.outgoing.physical() + at as u64;
            let segment = Segment { address, len: piece.len() as u32, device_writes: false };
            let Some(head) = self.transmit.add(&[segment]) else { break };
            self.slot_of[usize::from(head)] = slot as u8;
            self.flying |= 1 << slot;
            sent += piece.len();
        }
        if sent > 0 && self.transmit.must_notify() {
            transport.notify(TERMINAL_OUT);
        }
        sent
    }

    /// Calls `each` with what has arrived, buffer by buffer, as long as there is room for one.
    pub fn read(
        &mut self,
        transport: &mut impl Transport,
        mut room: usize,
        mut each: impl FnMut(u8),
    ) -> Result<(), VirtioError> {
        let mut offered = false;
        while room >= BUFFER_LEN
            && let Some((head, written)) = self.receive.pop()?
        {
            let buffer = self.buffer_of[usize::from(head)];
            let len = usize::try_from(written).ok().filter(|len| *len <= BUFFER_LEN).ok_or(VirtioError::Lied)?;
            let at = usize::from(buffer) * BUFFER_LEN;
            (at..at + len).for_each(|at| each(self.incoming.load8(at)));
            room -= len;
            self.offer(buffer)?;
            offered = true;
        }
        if offered && self.receive.must_notify() {
            transport.notify(TERMINAL_IN);
        }
        Ok(())
    }
}
