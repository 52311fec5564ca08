//! The control queues of a console device with several ports (virtio 1.2, section 5.3.6.2).
use super::{CONTROL_IN, CONTROL_OUT, OUT_SIZE, area, queue};
use crate::virtio::{
    Dma, VirtioError,
    queue::{Queue, Segment},
    transport::Transport,
};

/// Messages of the device's that may wait for us.
const MESSAGES_IN: u16 = 8;
const MESSAGE_LEN: usize = 128;
const HEADER_LEN: usize = 8;
/// Our own control message lies behind those of the device's.
const OUT_AT: usize = MESSAGES_IN as usize * MESSAGE_LEN;
/// Replies that wait at most; a device that says more while it takes none breaks the protocol's sense.
const REPLIES: usize = 8;

/// Events of control messages.
pub mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_REMOVE: u16 = 2;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// (port, event, value)
pub type Reply = (u32, u16, u16);

/// What the device says.
pub struct Message<N> {
    pub port: u32,
    pub event: u16,
    pub value: u16,
    /// Bytes after the header, up to a NUL.
    pub name: N,
}

pub struct Control<D> {
    pub incoming: Queue<D>,
    pub outgoing: Queue<D>,
    messages: D,
    /// Which message buffer a chain of `incoming` is.
    buffer_of: [u8; MESSAGES_IN as usize],
    /// Answers that the device is still to be given, oldest first.
    replies: [Option<Reply>; REPLIES],
    busy: bool,
}

impl<D: Dma> Control<D> {
    pub fn new(
        transport: &mut impl Transport,
        allocate: &mut impl FnMut(usize) -> Option<D>,
    ) -> Result<Self, VirtioError> {
        Ok(Self {
            incoming: queue(transport, allocate, CONTROL_IN, MESSAGES_IN)?,
            outgoing: queue(transport, allocate, CONTROL_OUT, OUT_SIZE)?,
            messages: area(allocate, OUT_AT + HEADER_LEN)?,
            buffer_of: [0; MESSAGES_IN as usize],
            replies: [None; REPLIES],
            busy: false,
        })
    }

    /// As new, for a device that was reset.
    pub fn clear(&mut self) {
        self.incoming.clear();
        self.outgoing.clear();
        self.replies = [None; REPLIES];
        self.busy = false;
    }

    pub fn offer_all(&mut self) -> Result<(), VirtioError> {
        (0..MESSAGES_IN as u8).try_for_each(|buffer| self.offer(buffer))
    }

    /// Gives a message buffer to the device.
    fn offer(&mut self, buffer: u8) -> Result<(), VirtioError> {
        let address = self.messages.physical() + u64::from(buffer) * MESSAGE_LEN as u64;
        let segment = Segment { address, len: MESSAGE_LEN as u32, device_writes: true };
        let head = self.incoming.add(&[segment]).ok_or(VirtioError::NoRoom)?;
        self.buffer_of[usize::from(head)] = buffer;
        Ok(())
    }

    /// The device has not taken yet what was sent last.
    pub fn is_sending(&self) -> bool {
        self.busy
    }

    /// Takes the device's messages in, each of which `answer` may answer, and sends the next answer.
    pub fn exchange(
        &mut self,
        transport: &mut impl Transport,
        mut answer: impl FnMut(&mut Message<&mut dyn Iterator<Item = u8>>) -> Option<Reply>,
    ) -> Result<(), VirtioError> {
        while let Some((head, written)) = self.incoming.pop()? {
            let buffer = self.buffer_of[usize::from(head)];
            let at = usize::from(buffer) * MESSAGE_LEN;
            let len = usize::try_from(written).ok().filter(|len| (HEADER_LEN..=MESSAGE_LEN).contains(len));
            let len = len.ok_or(VirtioError::Lied)?;
            let messages = &self.messages;
            let mut name = (at + HEADER_LEN..at + len).map(|at| messages.load8(at)).take_while(|byte| *byte != 0);
            let mut message = Message {
                port: messages.load32(at),
                event: messages.load16(at + 4),
                value: messages.load16(at + 6),
                name: &mut name as &mut dyn Iterator<Item = u8>,
            };
            if let Some(reply) = answer(&mut message) {
                *self.replies.iter_mut().find(|reply| reply.is_none()).ok_or(VirtioError::Lied)? = Some(reply);
            }
            self.offer(buffer)?;
            transport.notify(CONTROL_IN);
        }
        if self.outgoing.pop()?.is_some() {
            self.busy = false;
        }
        if !self.busy
            && let Some(reply) = self.replies[0].take()
        {
            self.replies.rotate_left(1);
            self.send(transport, reply)?;
        }
        Ok(())
    }

    pub fn send(&mut self, transport: &mut impl Transport, (port, event, value): Reply) -> Result<(), VirtioError> {
        self.messages.store32(OUT_AT, port);
        self.messages.store16(OUT_AT + 4, event);
        self.messages.store16(OUT_AT + 6, value);
        let address = self.messages.physical() + OUT_AT as u64;
        let message = Segment { address, len: HEADER_LEN as u32, device_writes: false };
        self.outgoing.add(&[message]).ok_or(VirtioError::NoRoom)?;
        self.busy = true;
        transport.notify(CONTROL_OUT);
        Ok(())
    }
}
