//! The console: bytes in and out of the serial port, and the kernel's own log lines.
//!
//! Output is the application's, unchanged; the kernel adds its log (`log` crate, level from the
//! command line) and control frames ([`abi::control`]).
//!
//! # Locking
//! [`OUTPUT`] keeps one writer's bytes together. A panic writes past it.
use alloc::collections::VecDeque;
use core::fmt::{self, Write};

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
    drivers::serial,
};

static OUTPUT: IrqSpin<()> = IrqSpin::new(());
static INPUT: IrqSpin<VecDeque<u8>> = IrqSpin::new(VecDeque::new());
static INPUT_WAITERS: WaitQueue = WaitQueue::new();
/// Input kept at most when nobody reads it.
const INPUT_LIMIT: usize = 4096;

/// Bytes to the console, together.
pub fn write(bytes: &[u8]) {
    let _output = OUTPUT.lock();
    serial::write(bytes);
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
    count
}

/// Sleeps until there is input.
pub fn wait_input(deadline_ns: Option<u64>) -> Parked {
    let ready = || (!INPUT.lock().is_empty()).then_some(());
    match INPUT_WAITERS.wait_until(deadline_ns, ParkMode::Interruptible, ready) {
        Ok(()) => Parked::Woken,
        Err(parked) => parked,
    }
}

/// Routes the serial port's interrupt, so that input arrives. Without an I/O APIC there is none.
pub fn enable_input(firmware: &Acpi) {
    let (gsi, level, active_low) = firmware.isa_route(serial::ISA_IRQ);
    let Some(vector) = irq::allocate(take_input, 0) else { return };
    if ioapic::route(gsi, vector, level, active_low, apic::id()) {
        serial::enable_input_interrupt();
    } else {
        log::info!("no interrupt line for the serial port: no console input");
    }
}

/// The serial port's interrupt: takes what has arrived.
fn take_input(_: usize) {
    let mut input = INPUT.lock();
    while let Some(byte) = serial::read() {
        if input.len() < INPUT_LIMIT {
            input.push_back(byte);
        }
    }
    drop(input);
    INPUT_WAITERS.wake_all();
}

/// Writes without the lock: for whoever holds it, and for panics.
pub struct Raw;

impl Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::write(text.as_bytes());
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
    serial::init(|byte| INPUT.lock().push_back(byte));
    // A second registration is refused, which is what is wanted.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// Changes what is logged, once the command line is known.
pub fn set_level(level: log::LevelFilter) {
    log::set_max_level(level);
}
