//! The console: bytes in and out of a serial port or a virtio terminal, and the kernel's own log lines.
//!
//! The 16550 serves from the first instruction on, where there is one. Where there is none, or the command
//! line wants the virtio terminal, what is written before that has started is kept, as far as there is
//! room, and written then; if the machine ends before, by the 16550.
//!
//! Output is the application's, unchanged; the kernel adds its log (`log` crate, level from the
//! command line) and control frames ([`abi::control`]).
//!
//! # Locking
//! [`OUTPUT`] keeps one writer's bytes together; then [`EARLY`], then the device's own. Panics and NMIs
//! write past it ([`PastLocks`]), and do without what they find taken. [`INPUT`] before the device's own.
use alloc::collections::VecDeque;
use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

use rt::{
    sync::WaitQueue,
    task::{ParkMode, Parked},
};

use logic::acpi::Acpi;

use crate::{
    cpu::{
        apic, ioapic, irq,
        lock::{IrqSpin, IrqSpinGuard},
    },
    drivers::{control, serial, virtio_console},
    panic,
};

static OUTPUT: IrqSpin<()> = IrqSpin::new(());
static INPUT: IrqSpin<VecDeque<u8>> = IrqSpin::new(VecDeque::new());
static INPUT_WAITERS: WaitQueue = WaitQueue::new();
/// Input kept at most when nobody reads it.
const INPUT_LIMIT: usize = 4096;

/// Where output goes: a number of these.
static SINK: AtomicU8 = AtomicU8::new(SERIAL);
const SERIAL: u8 = 0;
const TERMINAL: u8 = 1;
const KEPT: u8 = 2;

/// What was written before there was a device.
struct Early {
    bytes: [u8; 4096],
    len: usize,
}

static EARLY: IrqSpin<Early> = IrqSpin::new(Early { bytes: [0; 4096], len: 0 });

/// Bytes to the console, together.
pub fn write(bytes: &[u8]) {
    let _output = OUTPUT.lock();
    emit(bytes, false);
}

/// `past_locks`: the caller may have interrupted, or stopped, who holds one. Otherwise under the output's.
fn emit(bytes: &[u8], past_locks: bool) {
    let written = match SINK.load(Ordering::Relaxed) {
        SERIAL => return serial::write(bytes),
        TERMINAL if past_locks || emit_early() => virtio_console::write(bytes, past_locks),
        KEPT if past_locks && serial::is_present() => {
            // The terminal may never come.
            emit_early_to_serial();
            return serial::write(bytes);
        }
        _ => 0,
    };
    // Not there yet, or stopped for a while.
    let kept = &bytes[written..];
    if !kept.is_empty()
        && let Some(mut early) = EARLY.try_lock()
    {
        let from = early.len;
        let count = kept.len().min(early.bytes.len() - from);
        early.bytes[from..from + count].copy_from_slice(&kept[..count]);
        early.len += count;
    }
}

/// Writes what was kept to the terminal. False: not all of it goes now. Under the output's lock.
fn emit_early() -> bool {
    let mut early = EARLY.lock();
    let len = early.len;
    let written = virtio_console::write(&early.bytes[..len], false);
    early.bytes.copy_within(written..len, 0);
    early.len -= written;
    early.len == 0
}

/// Writes what was kept to the serial port, unless somebody is at it.
fn emit_early_to_serial() {
    if let Some(mut early) = EARLY.try_lock() {
        let len = core::mem::take(&mut early.len);
        serial::write(&early.bytes[..len]);
    }
}

/// From now on keeps what is written, for the terminal that is to come.
pub fn wait_for_terminal() {
    SINK.store(KEPT, Ordering::Relaxed);
}

/// No device carries the console yet: the virtio terminal has to.
pub fn waits_for_terminal() -> bool {
    SINK.load(Ordering::Relaxed) == KEPT
}

/// The virtio terminal is there.
pub fn use_terminal() {
    make_room_for_input();
    let _output = OUTPUT.lock();
    SINK.store(TERMINAL, Ordering::Relaxed);
    emit_early();
}

/// There is no terminal, although it was wanted: the serial port, if there is one.
pub fn give_up_terminal() {
    if SINK.load(Ordering::Relaxed) == KEPT && serial::is_present() {
        let _output = OUTPUT.lock();
        SINK.store(SERIAL, Ordering::Relaxed);
        emit_early_to_serial();
    }
}

/// The machine ends: what was written is to reach the host.
pub fn flush() {
    let sink = SINK.load(Ordering::Relaxed);
    if sink == TERMINAL {
        virtio_console::flush();
    }
    // There was no terminal yet, or it takes nothing more.
    if sink != SERIAL && serial::is_present() {
        emit_early_to_serial();
    }
    if serial::is_present() {
        serial::flush();
    }
}

/// Keeps other writers out: for the machine's last words.
pub fn hold() -> IrqSpinGuard<'static, ()> {
    OUTPUT.lock()
}

/// Input that is there now.
pub fn read(out: &mut [u8]) -> usize {
    let mut input = INPUT.lock();
    let count = out.len().min(input.len());
    for (slot, byte) in out.iter_mut().zip(input.drain(..count)) {
        *slot = byte;
    }
    drop(input);
    // What waits at the device for room raises no further interrupt.
    if count > 0 {
        match SINK.load(Ordering::Relaxed) {
            SERIAL => take_input(0),
            _ => take_terminal_input(),
        }
    }
    count
}

/// Whether the host waits to be told before it sends input.
static UNASKED: AtomicBool = AtomicBool::new(false);

/// The host sends what it has once it is told to: when a program first waits for input. So a run whose
/// program never does is not disturbed by its input, or the end of it, at a time that no seed decides.
pub fn ask_for_input() {
    UNASKED.store(true, Ordering::Relaxed);
}

/// Sleeps until there is input.
pub fn wait_input(deadline_ns: Option<u64>) -> Parked {
    if UNASKED.swap(false, Ordering::Relaxed) {
        control::send(abi::control::Frame::Input);
    }
    let ready = || (!INPUT.lock().is_empty()).then_some(());
    match INPUT_WAITERS.wait_until(deadline_ns, ParkMode::Interruptible, ready) {
        Ok(()) => Parked::Woken,
        Err(parked) => parked,
    }
}

/// So that nothing is allocated where input is taken: in an interrupt, under the device's lock.
fn make_room_for_input() {
    let mut input = INPUT.lock();
    let room = INPUT_LIMIT.saturating_sub(input.len());
    input.reserve_exact(room);
}

/// Routes the serial port's interrupt, so that input arrives. Without an I/O APIC there is none.
pub fn enable_input(firmware: &Acpi) {
    if !serial::is_present() {
        return;
    }
    make_room_for_input();
    let (gsi, level, active_low) = firmware.isa_route(serial::ISA_IRQ);
    let line = ioapic::Line { gsi, level, active_low };
    if ioapic::route(line, apic::id(), || irq::allocate(take_input, 0)) {
        ioapic::unmask(gsi);
        serial::enable_input_interrupt();
    } else {
        log::info!("no interrupt line for the serial port: no console input");
    }
}

/// The serial port's interrupt: takes what has arrived, as far as there is room for it; the rest stays
/// with the port, and so with the host.
fn take_input(_: usize) {
    let mut input = INPUT.lock();
    while input.len() < INPUT_LIMIT
        && let Some(byte) = serial::read()
    {
        input.push_back(byte);
    }
    drop(input);
    INPUT_WAITERS.wake_all();
}

/// Takes what has arrived at the virtio terminal, as far as there is room for it; the rest stays with the
/// device, and so with the host.
pub fn take_terminal_input() {
    let mut input = INPUT.lock();
    if let Some(device) = virtio_console::device().as_mut() {
        let room = INPUT_LIMIT.saturating_sub(input.len());
        device.read_terminal(room, |byte| input.push_back(byte));
    }
    drop(input);
    INPUT_WAITERS.wake_all();
}

/// Writes without the lock: for whoever holds it, and for panics.
pub struct Raw;

impl Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        emit(text.as_bytes(), panic::in_progress());
        Ok(())
    }
}

/// Writes past every lock: for panics and NMIs.
pub struct PastLocks;

impl Write for PastLocks {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        emit(text.as_bytes(), true);
        Ok(())
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let kind = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        let _output = OUTPUT.lock();
        let _ = writeln!(Raw, "demitasse: {kind}{}", record.args());
    }

    fn flush(&self) {}
}

static LOGGER: Logger = Logger;

/// Opens the serial port and registers the logger.
pub fn init(level: log::LevelFilter) {
    if !serial::init(INPUT_LIMIT, |byte| INPUT.lock().push_back(byte)) {
        SINK.store(KEPT, Ordering::Relaxed);
    }
    // A second registration is refused, which is what is wanted.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// Changes what is logged, once the command line is known.
pub fn set_level(level: log::LevelFilter) {
    log::set_max_level(level);
}
