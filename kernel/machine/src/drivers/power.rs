#![allow(unsafe_code, reason = "port I/O that ends the machine")]
//! Ways out: QEMU's debug-exit device, ACPI S5, the keyboard controller's reset line, a triple fault.
use core::fmt::Write;

use spin::Once;
use x86_64::instructions::{hlt, interrupts, port::Port};

use crate::{console, time};

const KEYBOARD_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;
const SLEEP_ENABLE: u16 = 1 << 13;

/// ACPI's soft-off: the PM1a control port and the sleep type of S5.
static SOFT_OFF: Once<(u16, u16)> = Once::new();

/// Registers what ACPI says about power-off.
pub fn set_soft_off(pm1a_control: u16, sleep_type: u16) {
    SOFT_OFF.call_once(|| (pm1a_control, sleep_type));
}

/// Ends the machine after the application ended with `code`, and tells the host so.
pub fn exit(code: u8) -> ! {
    let frame = abi::control::Frame::Exit { code, tsc: time::counter() };
    let _ = write!(console::Raw, "{frame}");
    off(abi::exit::ORDERLY)
}

/// Ends the machine. `code` reaches the host only through QEMU's debug-exit device.
pub fn off(code: u32) -> ! {
    interrupts::disable();
    // SAFETY: each of these ends the machine, or does nothing where the device is missing.
    unsafe {
        Port::<u32>::new(abi::exit::PORT).write(code);
        if let Some(&(port, sleep_type)) = SOFT_OFF.get() {
            Port::<u16>::new(port).write(sleep_type << 10 | SLEEP_ENABLE);
        }
        Port::<u8>::new(KEYBOARD_COMMAND).write(PULSE_RESET);
    }
    // An empty IDT turns the next exception into a triple fault, which every monitor takes for a reset.
    let none = x86_64::structures::DescriptorTablePointer { limit: 0, base: x86_64::VirtAddr::zero() };
    // SAFETY: this CPU is to fault now.
    unsafe {
        x86_64::instructions::tables::lidt(&none);
        core::arch::asm!("ud2", options(nomem, nostack));
    }
    loop {
        hlt();
    }
}
