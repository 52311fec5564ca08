#![allow(unsafe_code, reason = "port I/O")]
//! The 16550 serial port at 0x3f8: the console. No locks here: [`crate::console`] has them, and a panic
//! writes past them.
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::port::Port;

use crate::cpu::exits;

const BASE: u16 = 0x3f8;
const DATA: u16 = BASE;
const INTERRUPT_ENABLE: u16 = BASE + 1;
const FIFO_CONTROL: u16 = BASE + 2;
const LINE_CONTROL: u16 = BASE + 3;
const MODEM_CONTROL: u16 = BASE + 4;
const LINE_STATUS: u16 = BASE + 5;
const SCRATCH: u16 = BASE + 7;
const DATA_READY: u8 = 1;
const TRANSMIT_EMPTY: u8 = 1 << 5;
/// The FIFO is empty and the last bit has left.
const TRANSMITTER_IDLE: u8 = 1 << 6;
/// Bytes the transmit FIFO takes once it is empty.
const FIFO_BYTES: usize = 16;
/// Both FIFOs on and emptied; an interrupt at eight received bytes, or when no more come for the time of
/// four. At each byte, QEMU would take from its host no more than one at a time.
const FIFOS: u8 = 0x87;
/// The legacy interrupt line.
pub const ISA_IRQ: u8 = 4;

fn write_port(port: u16, value: u8) {
    exits::port();
    // SAFETY: the 16550's registers; a machine without one ignores the write.
    unsafe { Port::new(port).write(value) }
}

fn read_port(port: u16) -> u8 {
    exits::port();
    // SAFETY: as above; without a device the bus reads as all ones.
    unsafe { Port::new(port).read() }
}

static PRESENT: AtomicBool = AtomicBool::new(false);

/// [`init`] found the port.
pub fn is_present() -> bool {
    PRESENT.load(Ordering::Relaxed)
}

/// Where nobody answers, a port reads as all ones, as zeros (Cloud Hypervisor without a serial port: a
/// transmitter that is never ready), or as what was written last (KVM's buffer, on older hosts). A scratch
/// register keeps what it was given.
fn answers() -> bool {
    const PATTERN: u8 = 0x5a;
    write_port(SCRATCH, PATTERN);
    write_port(INTERRUPT_ENABLE, 0);
    read_port(SCRATCH) == PATTERN
}

/// 115,200 baud, 8N1, FIFOs on, interrupts off. Input that is there already goes to `early`, as far as it
/// has `room`: switching the FIFOs on empties them, and a host may send before the guest is up. False: there
/// is no such port.
pub fn init(room: usize, mut early: impl FnMut(u8)) -> bool {
    if !answers() {
        return false;
    }
    PRESENT.store(true, Ordering::Relaxed);
    write_port(LINE_CONTROL, 0x80);
    write_port(DATA, 1);
    write_port(INTERRUPT_ENABLE, 0);
    write_port(LINE_CONTROL, 3);
    core::iter::from_fn(read).take(room).for_each(&mut early);
    write_port(FIFO_CONTROL, FIFOS);
    // OUT2 gates the interrupt line on PCs.
    write_port(MODEM_CONTROL, 0x0b);
    true
}

/// Raises an interrupt when input arrives, from now on.
pub fn enable_input_interrupt() {
    write_port(INTERRUPT_ENABLE, 1);
}

/// Sends all bytes, a FIFO at a time.
pub fn write(bytes: &[u8]) {
    for chunk in bytes.chunks(FIFO_BYTES) {
        while read_port(LINE_STATUS) & TRANSMIT_EMPTY == 0 {
            core::hint::spin_loop();
        }
        for &byte in chunk {
            write_port(DATA, byte);
        }
    }
}

/// Waits until the last byte has left: a machine that is switched off sends no more. Not for ever.
pub fn flush() {
    const PATIENCE: usize = 100_000;
    let _ = (0..PATIENCE).find(|_| read_port(LINE_STATUS) & TRANSMITTER_IDLE != 0);
}

/// A received byte, if there is one.
pub fn read() -> Option<u8> {
    let status = read_port(LINE_STATUS);
    (status != 0xff && status & DATA_READY != 0).then(|| read_port(DATA))
}
