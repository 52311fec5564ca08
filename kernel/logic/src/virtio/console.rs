//! The virtio console device with several ports (virtio 1.2, section 5.3): one named port, to which
//! the driver writes.
//!
//! The ports' names come over the control queues, after the queues were set up. So the port has to
//! be number 1, which QEMU's first `virtserialport` is: port 0 is for consoles.
//!
//! # Invariants
//! One write is in flight at most; its bytes lie in the output area until the device has used them.
use super::{
    Dma, VirtioError, device_type,
    queue::{Queue, Segment, bytes_needed},
    transport::{self, Transport},
};

const FEATURE_MULTIPORT: u64 = 1 << 1;
const CONFIG_MAX_PORTS: u32 = 4;

const PORT: u32 = 1;
const CONTROL_IN: u16 = 2;
const CONTROL_OUT: u16 = 3;
const PORT_OUT: u16 = 5;

/// Messages of the device's that may wait for us.
const MESSAGES_IN: u16 = 8;
const MESSAGE_LEN: usize = 128;
const HEADER_LEN: usize = 8;
const OUT_SIZE: u16 = 2;
/// Our own control message lies behind those of the device's.
const CONTROL_OUT_AT: usize = MESSAGES_IN as usize * MESSAGE_LEN;
/// Bytes of one write at most: a control frame.
pub const WRITE_BYTES: usize = 4096;

/// Events of control messages (5.3.6.2).
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_REMOVE: u16 = 2;
    pub const PORT_READY: u16 = 3;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// How far the port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PortState {
    added: bool,
    /// It has the name that is looked for.
    named: bool,
    /// Somebody on the host has the other end.
    host_open: bool,
}

pub struct Console<T, D> {
    transport: T,
    control_in: Queue<D>,
    control_out: Queue<D>,
    port_out: Queue<D>,
    messages: D,
    output: D,
    /// Which message buffer a chain of `control_in` is.
    buffer_of: [u8; MESSAGES_IN as usize],
    name: &'static str,
    port: PortState,
    /// Answers that the device is still to be given: (event, value).
    replies: [Option<(u16, u16)>; 2],
    control_busy: bool,
    writing: bool,
    switched_off: bool,
}

impl<T: Transport, D: Dma> Console<T, D> {
    /// Starts the device; [`Console::work`] then finds the port called `name`. `allocate` gives
    /// zeroed memory of at least so many bytes. Nothing is interrupted: the caller polls.
    pub fn new(
        mut transport: T,
        mut allocate: impl FnMut(usize) -> Option<D>,
        name: &'static str,
    ) -> Result<Self, VirtioError> {
        if transport.device_type() != device_type::CONSOLE {
            return Err(VirtioError::NotThere);
        }
        let features = transport::negotiate(&mut transport, FEATURE_MULTIPORT)?;
        if features & FEATURE_MULTIPORT == 0 || transport.config32(CONFIG_MAX_PORTS) <= PORT {
            // A console with one port: it has no name.
            transport.reset();
            return Err(VirtioError::NotThere);
        }
        let mut queue = |index, size| {
            if transport.max_queue_size(index) < size {
                return Err(VirtioError::Unusable);
            }
            let queue = Queue::new(allocate(bytes_needed(size)).ok_or(VirtioError::NoRoom)?, size)?;
            transport.set_queue(index, size, queue.addresses(), None)?;
            Ok(queue)
        };
        let control_in = queue(CONTROL_IN, MESSAGES_IN)?;
        let control_out = queue(CONTROL_OUT, OUT_SIZE)?;
        let port_out = queue(PORT_OUT, OUT_SIZE)?;
        let mut area = |len| allocate(len).filter(|area: &D| area.len_bytes() >= len).ok_or(VirtioError::NoRoom);
        let messages = area(CONTROL_OUT_AT + HEADER_LEN)?;
        let output = area(WRITE_BYTES)?;
        transport::start(&mut transport);
        let mut console = Self {
            transport,
            control_in,
            control_out,
            port_out,
            messages,
            output,
            buffer_of: [0; MESSAGES_IN as usize],
            name,
            port: PortState::default(),
            replies: [None; 2],
            control_busy: false,
            writing: false,
            switched_off: false,
        };
        for buffer in 0..MESSAGES_IN as u8 {
            console.offer(buffer)?;
        }
        console.transport.notify(CONTROL_IN);
        console.send_control(event::DEVICE_READY, 1)?;
        Ok(console)
    }

    /// The named port is there, and the host listens.
    pub fn is_open(&self) -> bool {
        !self.switched_off && self.port.added && self.port.named && self.port.host_open
    }

    /// Takes in what the device says, and answers. A device that lies is reset.
    pub fn work(&mut self) -> Result<(), VirtioError> {
        if self.switched_off {
            return Err(VirtioError::Lied);
        }
        self.exchange().inspect_err(|_| {
            self.switched_off = true;
            self.transport.reset();
        })
    }

    /// Ends the device's work. False: it does not stop, and may still use its memory.
    pub fn stop(mut self) -> bool {
        self.transport.reset()
    }

    /// Starts a write. False: the one before is not finished, or there is no port to write to.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        if self.writing || !self.is_open() || bytes.is_empty() || bytes.len() > WRITE_BYTES {
            return false;
        }
        for (at, byte) in bytes.iter().enumerate() {
            self.output.store8(at, *byte);
        }
        let all = Segment { address: self.output.physical(), len: bytes.len() as u32, device_writes: false };
        self.writing = self.port_out.add(&[all]).is_some();
        if self.writing && self.port_out.must_notify() {
            self.transport.notify(PORT_OUT);
        }
        self.writing
    }

    /// The device has not taken the last write yet. Ask [`Console::work`] first.
    pub fn is_writing(&self) -> bool {
        self.writing
    }

    fn exchange(&mut self) -> Result<(), VirtioError> {
        if self.port_out.pop()?.is_some() {
            self.writing = false;
        }
        while let Some((head, written)) = self.control_in.pop()? {
            let buffer = self.buffer_of[usize::from(head)];
            self.take_message(usize::from(buffer) * MESSAGE_LEN, written)?;
            self.offer(buffer)?;
            self.transport.notify(CONTROL_IN);
        }
        if self.control_out.pop()?.is_some() {
            self.control_busy = false;
        }
        if !self.control_busy
            && let Some(reply) = self.replies.iter_mut().find_map(Option::take)
        {
            self.send_control(reply.0, reply.1)?;
        }
        Ok(())
    }

    /// One control message: port, event, value, and for a name its bytes.
    fn take_message(&mut self, at: usize, written: u32) -> Result<(), VirtioError> {
        let len = usize::try_from(written).ok().filter(|len| (HEADER_LEN..=MESSAGE_LEN).contains(len));
        let len = len.ok_or(VirtioError::Lied)?;
        if self.messages.load32(at) != PORT {
            return Ok(());
        }
        let value = self.messages.load16(at + 6);
        match self.messages.load16(at + 4) {
            event::PORT_ADD => {
                self.port = PortState { added: true, ..PortState::default() };
                self.replies[0] = Some((event::PORT_READY, 1));
            }
            event::PORT_REMOVE => self.port = PortState::default(),
            event::PORT_NAME => {
                let name = (at + HEADER_LEN..at + len).map(|at| self.messages.load8(at));
                // With or without a NUL at its end.
                let name = name.take_while(|byte| *byte != 0);
                self.port.named = name.eq(self.name.bytes());
                if self.port.named {
                    self.replies[1] = Some((event::PORT_OPEN, 1));
                }
            }
            event::PORT_OPEN => self.port.host_open = value != 0,
            _ => {}
        }
        Ok(())
    }

    /// Gives a message buffer to the device.
    fn offer(&mut self, buffer: u8) -> Result<(), VirtioError> {
        let address = self.messages.physical() + u64::from(buffer) * MESSAGE_LEN as u64;
        let segment = Segment { address, len: MESSAGE_LEN as u32, device_writes: true };
        let head = self.control_in.add(&[segment]).ok_or(VirtioError::NoRoom)?;
        self.buffer_of[usize::from(head)] = buffer;
        Ok(())
    }

    fn send_control(&mut self, event: u16, value: u16) -> Result<(), VirtioError> {
        self.messages.store32(CONTROL_OUT_AT, PORT);
        self.messages.store16(CONTROL_OUT_AT + 4, event);
        self.messages.store16(CONTROL_OUT_AT + 6, value);
        let address = self.messages.physical() + CONTROL_OUT_AT as u64;
        let message = Segment { address, len: HEADER_LEN as u32, device_writes: false };
        self.control_out.add(&[message]).ok_or(VirtioError::NoRoom)?;
        self.control_busy = true;
        self.transport.notify(CONTROL_OUT);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::fake::{Area, Device, Machine},
        *,
    };

    const NAME: &str = "demitasse.control";

    /// What stands on the other side.
    struct Host {
        device: Device,
        /// Message buffers of the driver's that are free: (head, address).
        buffers: Vec<(u16, u64)>,
    }

    impl Host {
        fn say(&mut self, port: u32, event: u16, value: u16, name: &[u8]) {
            let message = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes(), name].concat();
            self.say_raw(&message, message.len() as u32);
        }

        fn say_raw(&mut self, message: &[u8], claimed: u32) {
            for head in self.device.take(CONTROL_IN) {
                let chain = self.device.chain(CONTROL_IN, head);
                assert!(chain.len() == 1 && chain[0].1 == 128 && chain[0].2);
                self.buffers.push((head, chain[0].0));
            }
            let (head, address) = self.buffers.remove(0);
            self.device.ram.put(address, message);
            self.device.answer(CONTROL_IN, u32::from(head), claimed);
        }

        /// The driver's next control message: (event, value).
        fn hear(&self) -> Option<(u16, u16)> {
            let head = self.device.take(CONTROL_OUT).pop()?;
            let chain = self.device.chain(CONTROL_OUT, head);
            assert!(chain.len() == 1 && chain[0].1 == 8 && !chain[0].2);
            self.device.answer(CONTROL_OUT, u32::from(head), 0);
            Some((self.device.ram.u16(chain[0].0 + 4), self.device.ram.u16(chain[0].0 + 6)))
        }

        fn read(&self) -> Option<(u16, Vec<u8>)> {
            let head = self.device.take(PORT_OUT).pop()?;
            let (address, len, _) = self.device.chain(PORT_OUT, head)[0];
            Some((head, (0..u64::from(len)).map(|n| self.device.ram.get::<1>(address + n)[0]).collect()))
        }
    }

    fn start() -> (Console<Device, Area>, Host) {
        let machine = Machine::new();
        let config = [0, 0, 0, 0, 2, 0, 0, 0];
        let device = machine.device(device_type::CONSOLE, FEATURE_MULTIPORT, &[128; 6], &config);
        let console = Console::new(device.clone(), machine.allocator(), NAME).unwrap();
        (console, Host { device, buffers: Vec::new() })
    }

    fn open() -> (Console<Device, Area>, Host) {
        let (mut console, mut host) = start();
        assert_eq!(host.hear(), Some((event::DEVICE_READY, 1)));
        host.say(PORT, event::PORT_ADD, 0, b"");
        console.work().unwrap();
        assert_eq!(host.hear(), Some((event::PORT_READY, 1)));
        host.say(PORT, event::PORT_NAME, 1, NAME.as_bytes());
        host.say(PORT, event::PORT_OPEN, 1, b"");
        console.work().unwrap();
        assert_eq!(host.hear(), Some((event::PORT_OPEN, 1)));
        assert!(console.is_open());
        (console, host)
    }

    #[test]
    fn a_named_port_opens_and_takes_bytes() {
        let (mut console, host) = open();
        for round in 1..100u8 {
            let text = vec![round; usize::from(round) * 40];
            assert!(console.write(&text) && console.is_writing());
            assert!(!console.write(b"two at once"));
            let (head, seen) = host.read().unwrap();
            assert_eq!(seen, text);
            console.work().unwrap();
            assert!(console.is_writing());
            host.device.answer(PORT_OUT, u32::from(head), 0);
            console.work().unwrap();
            assert!(!console.is_writing());
        }
        assert!(!console.write(&[0; WRITE_BYTES + 1]) && !console.write(b""));
    }

    #[test]
    fn other_ports_and_names_are_left_alone() {
        let (mut console, mut host) = start();
        host.hear();
        host.say(0, event::PORT_ADD, 0, b"");
        host.say(2, event::PORT_ADD, 0, b"");
        host.say(2, event::PORT_NAME, 1, NAME.as_bytes());
        host.say(PORT, event::PORT_ADD, 0, b"");
        host.say(PORT, event::PORT_NAME, 1, b"demitasse.controls");
        host.say(PORT, event::PORT_OPEN, 1, b"");
        console.work().unwrap();
        assert!(!console.is_open() && !console.write(b"x"));
    }

    #[test]
    fn what_closes_or_goes_away_takes_no_more() {
        let (mut console, mut host) = open();
        host.say(PORT, event::PORT_OPEN, 0, b"");
        console.work().unwrap();
        assert!(!console.write(b"x"));
        // More messages than there are buffers, in turns.
        for _ in 0..50 {
            host.say(PORT, event::PORT_OPEN, 1, b"");
            console.work().unwrap();
            assert!(console.is_open());
        }
        host.say(PORT, event::PORT_REMOVE, 0, b"");
        console.work().unwrap();
        assert!(!console.is_open());
    }

    #[test]
    fn a_device_that_lies_is_switched_off() {
        for lie in 0..4 {
            let (mut console, mut host) = open();
            match lie {
                0 => host.say_raw(&[0; 8], 7),
                1 => host.say_raw(&[0; 8], 129),
                2 => host.device.answer(PORT_OUT, 0, 0),
                _ => host.device.answer(CONTROL_IN, 300, 8),
            }
            assert_eq!(console.work(), Err(VirtioError::Lied));
            assert_eq!(host.device.status(), 0);
            assert!(!console.is_open() && !console.write(b"x"));
            assert_eq!(console.work(), Err(VirtioError::Lied));
        }
    }

    #[test]
    fn a_console_with_one_port_is_not_ours() {
        let machine = Machine::new();
        for (features, ports) in [(0, 2), (FEATURE_MULTIPORT, 1)] {
            let device = machine.device(device_type::CONSOLE, features, &[8; 6], &[0, 0, 0, 0, ports]);
            assert!(matches!(Console::new(device, machine.allocator(), NAME), Err(VirtioError::NotThere)));
        }
    }
}
