//! The console driver against a device of the other side's making, which may be told to lie.
use super::{
    super::fake::{Area, Device, Machine},
    *,
};

const NAME: &str = "demitasse.control";
const WANTED: Wanted = Wanted { name: NAME, terminal: false, vector: None };
/// More than a device may have answers wait.
const REPLIES_AND_ONE: usize = 16;
const WITH_TERMINAL: Wanted = Wanted { terminal: true, ..WANTED };

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
    let console = Console::new(device.clone(), machine.allocator(), WANTED).unwrap();
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
        assert!(matches!(Console::new(device, machine.allocator(), WANTED), Err(VirtioError::NotThere)));
    }
}

/// A terminal alone, or beside the named port.
fn terminal(several: bool) -> (Console<Device, Area>, Host) {
    let machine = Machine::new();
    let features = if several { FEATURE_MULTIPORT } else { 0 };
    let device = machine.device(device_type::CONSOLE, features, &[128; 6], &[0, 0, 0, 0, 2, 0, 0, 0]);
    let console = Console::new(device.clone(), machine.allocator(), WITH_TERMINAL).unwrap();
    let mut host = Host { device, buffers: Vec::new() };
    let mut console = console;
    if several {
        assert_eq!(host.hear(), Some((event::DEVICE_READY, 1)));
        assert!(!console.has_terminal() && console.write_terminal(b"x") == 0, "no port yet");
        host.say(TERMINAL, event::PORT_ADD, 0, b"");
        host.say(TERMINAL, event::CONSOLE_PORT, 1, b"");
        for expected in [event::PORT_READY, event::PORT_OPEN] {
            console.work().unwrap();
            assert_eq!(host.hear(), Some((expected, 1)));
        }
    }
    assert!(console.has_terminal() && !console.is_open());
    (console, host)
}

#[test]
fn a_terminal_takes_bytes_and_gives_them() {
    for several in [false, true] {
        let (mut console, host) = terminal(several);
        let text: Vec<u8> = (0..10_000).map(|n| (n % 251) as u8).collect();
        let (mut sent, mut seen) = (0, Vec::new());
        while seen.len() < text.len() {
            sent += console.write_terminal(&text[sent..]);
            assert!(!console.terminal_is_idle());
            assert_eq!(console.write_terminal(&text[sent..]), 0, "all slots are in flight");
            for head in host.device.take(TERMINAL_OUT) {
                let (address, len, _) = host.device.chain(TERMINAL_OUT, head)[0];
                seen.extend((0..u64::from(len)).map(|n| host.device.ram.get::<1>(address + n)[0]));
                host.device.answer(TERMINAL_OUT, u32::from(head), 0);
            }
            console.work().unwrap();
            assert!(console.terminal_is_idle());
        }
        assert_eq!(seen, text);
        for round in 0..50u8 {
            for head in host.device.take(TERMINAL_IN).into_iter().take(3) {
                let (address, len, device_writes) = host.device.chain(TERMINAL_IN, head)[0];
                assert!(device_writes && len == 128);
                host.device.ram.put(address, &[round; 5]);
                host.device.answer(TERMINAL_IN, u32::from(head), 5);
            }
            let mut got = Vec::new();
            console.read_terminal(127, |byte| got.push(byte));
            assert!(got.is_empty(), "no room for a whole buffer");
            console.read_terminal(4096, |byte| got.push(byte));
            assert!(!got.is_empty() && got.iter().all(|byte| *byte == round));
        }
    }
}

#[test]
fn a_terminal_that_lies_is_switched_off() {
    for (queue, id, written) in [(TERMINAL_IN, 0, 129), (TERMINAL_IN, 99, 1), (TERMINAL_OUT, 0, 0)] {
        let (mut console, host) = terminal(false);
        host.device.answer(queue, id, written);
        let mut got = Vec::new();
        console.read_terminal(4096, |byte| got.push(byte));
        assert!(got.is_empty());
        assert_eq!(console.work(), Err(VirtioError::Lied));
        assert!(!console.has_terminal() && console.write_terminal(b"x") == 0 && host.device.status() == 0);
    }
}

#[test]
fn a_device_that_says_much_and_hears_nothing_is_switched_off() {
    let (mut console, mut host) = start();
    for _ in 0..REPLIES_AND_ONE {
        host.say(PORT, event::PORT_ADD, 0, b"");
        if console.work().is_err() {
            return assert_eq!(host.device.status(), 0);
        }
    }
    panic!("it was listened to for ever");
}

#[test]
fn a_terminal_goes_on_after_quiesce() {
    for several in [false, true] {
        let (mut console, mut host) = terminal(several);
        assert_eq!(console.write_terminal(b"text"), 4);
        assert!(!console.quiesce(), "bytes are in flight");
        let head = host.device.take(TERMINAL_OUT).pop().unwrap();
        host.device.answer(TERMINAL_OUT, u32::from(head), 0);
        console.work().unwrap();
        assert!(console.quiesce());
        assert_eq!(console.work(), Ok(()));
        assert!(!console.has_terminal() && console.write_terminal(b"x") == 0, "it takes nothing for a while");
        console.resume().unwrap();
        host.buffers.clear();
        if several {
            assert_eq!(host.hear(), Some((event::DEVICE_READY, 1)));
            assert!(!console.has_terminal(), "the port has to be found again");
            host.say(TERMINAL, event::PORT_ADD, 0, b"");
            console.work().unwrap();
        }
        assert!(console.has_terminal());
        assert_eq!(console.write_terminal(b"text"), 4);
    }
}

#[test]
fn a_device_that_does_not_stop_is_given_up() {
    let (mut console, host) = terminal(false);
    host.device.get_stuck();
    assert!(!console.quiesce() && !console.has_terminal());
    assert_eq!(console.work(), Err(VirtioError::Lied));
}

#[test]
fn goes_on_after_quiesce() {
    let (mut console, mut host) = open();
    for round in 0..5 {
        assert!(console.write(b"frame"));
        assert!(!console.quiesce(), "a write is in flight");
        let (head, _) = host.read().unwrap();
        host.device.answer(PORT_OUT, u32::from(head), 0);
        console.work().unwrap();
        assert!(console.quiesce());
        assert_eq!(host.device.status(), 0);
        console.resume().unwrap();
        assert!(!console.is_open(), "round {round}: the port has to be found again");
        host.buffers.clear();
        assert_eq!(host.hear(), Some((event::DEVICE_READY, 1)));
        host.say(PORT, event::PORT_ADD, 0, b"");
        host.say(PORT, event::PORT_NAME, 1, NAME.as_bytes());
        host.say(PORT, event::PORT_OPEN, 1, b"");
        console.work().unwrap();
        assert_eq!(host.hear(), Some((event::PORT_READY, 1)));
        console.work().unwrap();
        assert_eq!(host.hear(), Some((event::PORT_OPEN, 1)));
        assert!(console.is_open());
    }
}
