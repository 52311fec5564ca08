//! The virtio console device (virtio 1.2, section 5.3): port 0 as a terminal, and one named port, to
//! which the driver writes.
//!
//! The ports' names come over the control queues, after the queues were set up. So the named port has
//! to be number 1, which QEMU's first `virtserialport` is: port 0 is for consoles. A device without
//! several ports has port 0 alone.
//!
//! # Invariants
//! One write to the named port is in flight at most; its bytes lie in the output area until the device
//! has used them. So do those of a terminal's slot.
use super::{
    Dma, VirtioError, device_type,
    queue::{Queue, Segment, bytes_needed},
    transport::{self, Transport},
};

mod control;
mod terminal;
#[cfg(test)]
mod tests;

use control::{Control, event};
use terminal::Terminal;

const FEATURE_MULTIPORT: u64 = 1 << 1;
const CONFIG_MAX_PORTS: u32 = 4;

const TERMINAL: u32 = 0;
const PORT: u32 = 1;
const TERMINAL_IN: u16 = 0;
const TERMINAL_OUT: u16 = 1;
const CONTROL_IN: u16 = 2;
const CONTROL_OUT: u16 = 3;
const PORT_OUT: u16 = 5;
const OUT_SIZE: u16 = 2;

/// Bytes of one write to the named port at most: a control frame.
pub const WRITE_BYTES: usize = 4096;

/// What the driver wants of the device.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Name of port 1.
    pub name: &'static str,
    /// Port 0, to read and write.
    pub terminal: bool,
    /// MSI-X table entry for what arrives at the terminal. Nothing else interrupts: the caller polls.
    pub vector: Option<u16>,
}

/// How far a port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PortState {
    added: bool,
    /// It has the name that is looked for.
    named: bool,
    /// Somebody on the host has the other end.
    host_open: bool,
}

/// The named port.
struct Output<D> {
    queue: Queue<D>,
    area: D,
    writing: bool,
}

pub struct Console<T, D> {
    transport: T,
    features: u64,
    wanted: Wanted,
    control: Option<Control<D>>,
    output: Option<Output<D>>,
    terminal: Option<Terminal<D>>,
    port: PortState,
    /// The device is reset for a while.
    quiesced: bool,
    switched_off: bool,
}

/// Gets a queue its memory.
fn queue<D: Dma>(
    transport: &mut impl Transport,
    allocate: &mut impl FnMut(usize) -> Option<D>,
    index: u16,
    size: u16,
) -> Result<Queue<D>, VirtioError> {
    if transport.max_queue_size(index) < size {
        return Err(VirtioError::Unusable);
    }
    Queue::new(allocate(bytes_needed(size)).ok_or(VirtioError::NoRoom)?, size)
}

fn area<D: Dma>(allocate: &mut impl FnMut(usize) -> Option<D>, len: usize) -> Result<D, VirtioError> {
    allocate(len).filter(|area| area.len_bytes() >= len).ok_or(VirtioError::NoRoom)
}

impl<T: Transport, D: Dma> Console<T, D> {
    /// Starts the device; [`Console::work`] then finds the ports. `allocate` gives zeroed memory of at
    /// least so many bytes. [`VirtioError::NotThere`]: it has nothing that is wanted.
    pub fn new(
        mut transport: T,
        mut allocate: impl FnMut(usize) -> Option<D>,
        wanted: Wanted,
    ) -> Result<Self, VirtioError> {
        if transport.device_type() != device_type::CONSOLE {
            return Err(VirtioError::NotThere);
        }
        let features = transport::negotiate(&mut transport, FEATURE_MULTIPORT)?;
        let several = features & FEATURE_MULTIPORT != 0;
        let has_port = several && transport.config32(CONFIG_MAX_PORTS) > PORT;
        if !has_port && !wanted.terminal {
            transport.reset();
            return Err(VirtioError::NotThere);
        }
        let terminal = match wanted.terminal {
            true => Some(Terminal::new(&mut transport, &mut allocate)?),
            false => None,
        };
        let control = match several {
            true => Some(Control::new(&mut transport, &mut allocate)?),
            false => None,
        };
        let output = match has_port {
            true => Some(Output {
                queue: queue(&mut transport, &mut allocate, PORT_OUT, OUT_SIZE)?,
                area: area(&mut allocate, WRITE_BYTES)?,
                writing: false,
            }),
            false => None,
        };
        let port = PortState::default();
        let mut console =
            Self { transport, features, wanted, control, output, terminal, port, quiesced: false, switched_off: false };
        console.start()?;
        Ok(console)
    }

    /// Hands empty queues to a device with which the features were agreed on.
    fn start(&mut self) -> Result<(), VirtioError> {
        let transport = &mut self.transport;
        if let Some(terminal) = &self.terminal {
            transport.set_queue(
                TERMINAL_IN,
                terminal.receive.size(),
                terminal.receive.addresses(),
                self.wanted.vector,
            )?;
            transport.set_queue(TERMINAL_OUT, terminal.transmit.size(), terminal.transmit.addresses(), None)?;
        }
        if let Some(control) = &self.control {
            transport.set_queue(CONTROL_IN, control.incoming.size(), control.incoming.addresses(), None)?;
            transport.set_queue(CONTROL_OUT, control.outgoing.size(), control.outgoing.addresses(), None)?;
        }
        if let Some(output) = &self.output {
            transport.set_queue(PORT_OUT, OUT_SIZE, output.queue.addresses(), None)?;
        }
        transport::start(transport);
        if let Some(terminal) = &mut self.terminal {
            terminal.offer_all()?;
            transport.notify(TERMINAL_IN);
            // Where ports come one by one, this one has to come, too.
            terminal.ready = self.control.is_none();
        }
        if let Some(control) = &mut self.control {
            control.offer_all()?;
            transport.notify(CONTROL_IN);
            control.send(transport, (TERMINAL, event::DEVICE_READY, 1))?;
        }
        Ok(())
    }

    /// Resets the device, with which nothing may be in flight: [`Console::resume`] goes on. False: it is
    /// busy (ask [`Console::work`] first), or does not stop, and is given up.
    pub fn quiesce(&mut self) -> bool {
        let idle = !self.is_writing() && self.terminal_is_idle();
        if idle && !self.switched_off && !self.quiesced {
            self.quiesced = self.transport.reset();
            self.switched_off = !self.quiesced;
        }
        self.quiesced
    }

    /// Starts the device again, with the features it had. Its ports have to be found again.
    pub fn resume(&mut self) -> Result<(), VirtioError> {
        self.quiesced = false;
        self.start_again().inspect_err(|_| self.switch_off())
    }

    fn start_again(&mut self) -> Result<(), VirtioError> {
        transport::renegotiate(&mut self.transport, self.features)?;
        self.port = PortState::default();
        if let Some(terminal) = &mut self.terminal {
            terminal.clear();
        }
        if let Some(control) = &mut self.control {
            control.clear();
        }
        if let Some(output) = &mut self.output {
            output.queue.clear();
            output.writing = false;
        }
        self.start()
    }

    /// The named port is there, and the host listens.
    pub fn is_open(&self) -> bool {
        !self.switched_off && !self.quiesced && self.port.added && self.port.named && self.port.host_open
    }

    /// The device has room for a named port.
    pub fn may_have_port(&self) -> bool {
        self.output.is_some()
    }

    /// The host has not got round to what it was told about ports. Ask [`Console::work`] first.
    pub fn host_is_behind(&self) -> bool {
        self.control.as_ref().is_some_and(Control::is_sending)
    }

    pub fn wants_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Port 0 is there, and not stopped for a while.
    pub fn has_terminal(&self) -> bool {
        !self.switched_off && !self.quiesced && self.terminal.as_ref().is_some_and(|terminal| terminal.ready)
    }

    /// Takes in what the device says, and answers. A device that lies is reset.
    pub fn work(&mut self) -> Result<(), VirtioError> {
        if self.switched_off {
            return Err(VirtioError::Lied);
        }
        if self.quiesced {
            return Ok(());
        }
        self.exchange().inspect_err(|_| self.switch_off())
    }

    fn switch_off(&mut self) {
        self.switched_off = true;
        self.transport.reset();
    }

    /// Ends the device's work. False: it does not stop, and may still use its memory.
    pub fn stop(mut self) -> bool {
        self.transport.reset()
    }

    /// First thing in an interrupt handler.
    pub fn acknowledge_interrupt(&mut self) {
        self.transport.acknowledge_interrupt();
    }

    /// Starts a write to the named port. False: the one before is not finished, or there is no port to
    /// write to.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        if !self.is_open() || bytes.is_empty() || bytes.len() > WRITE_BYTES {
            return false;
        }
        let Some(output) = self.output.as_mut().filter(|output| !output.writing) else { return false };
        for (at, byte) in bytes.iter().enumerate() {
            output.area.store8(at, *byte);
        }
        let all = Segment { address: output.area.physical(), len: bytes.len() as u32, device_writes: false };
        output.writing = output.queue.add(&[all]).is_some();
        if output.writing && output.queue.must_notify() {
            self.transport.notify(PORT_OUT);
        }
        output.writing
    }

    /// The device has not taken the last write yet. Ask [`Console::work`] first.
    pub fn is_writing(&self) -> bool {
        self.output.as_ref().is_some_and(|output| output.writing)
    }

    /// Gives the terminal as many of the bytes as there is room for: how many.
    pub fn write_terminal(&mut self, bytes: &[u8]) -> usize {
        match self.terminal.as_mut().filter(|terminal| terminal.ready && !self.switched_off && !self.quiesced) {
            Some(terminal) => terminal.write(&mut self.transport, bytes),
            None => 0,
        }
    }

    /// The device has taken all that was written to the terminal. Ask [`Console::work`] first.
    pub fn terminal_is_idle(&self) -> bool {
        self.terminal.as_ref().is_none_or(|terminal| terminal.transmit.is_idle())
    }

    /// Calls `each` with what has arrived at the terminal, at most `room` bytes. A device that lies is reset.
    pub fn read_terminal(&mut self, room: usize, each: impl FnMut(u8)) {
        if let Some(terminal) = self.terminal.as_mut().filter(|_| !self.switched_off && !self.quiesced)
            && terminal.read(&mut self.transport, room, each).is_err()
        {
            self.switch_off();
        }
    }

    fn exchange(&mut self) -> Result<(), VirtioError> {
        if let Some(output) = &mut self.output
            && output.queue.pop()?.is_some()
        {
            output.writing = false;
        }
        if let Some(terminal) = &mut self.terminal {
            terminal.take_sent()?;
        }
        let Some(control) = &mut self.control else { return Ok(()) };
        let (port, terminal, name) = (&mut self.port, &mut self.terminal, self.wanted.name);
        control.exchange(&mut self.transport, |message| match (message.port, message.event) {
            (PORT, event::PORT_ADD) => {
                *port = PortState { added: true, ..PortState::default() };
                Some((PORT, event::PORT_READY, 1))
            }
            (PORT, event::PORT_REMOVE) => {
                *port = PortState::default();
                None
            }
            (PORT, event::PORT_NAME) => {
                port.named = message.name.eq(name.bytes());
                port.named.then_some((PORT, event::PORT_OPEN, 1))
            }
            (PORT, event::PORT_OPEN) => {
                port.host_open = message.value != 0;
                None
            }
            (TERMINAL, event::PORT_ADD) => {
                terminal.as_mut()?.ready = true;
                Some((TERMINAL, event::PORT_READY, 1))
            }
            (TERMINAL, event::PORT_REMOVE) => {
                terminal.as_mut()?.ready = false;
                None
            }
            (TERMINAL, event::CONSOLE_PORT) => terminal.as_ref().map(|_| (TERMINAL, event::PORT_OPEN, 1)),
            _ => None,
        })
    }
}
