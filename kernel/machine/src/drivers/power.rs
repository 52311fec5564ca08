#![allow(unsafe_code, reason = "port I/O that ends the machine")]
//! Ways out: QEMU's debug-exit device, ACPI S5, the sleep and reset registers, the keyboard
//! controller's reset line, a triple fault.
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;
use x86_64::instructions::{hlt, interrupts, port::Port};

use logic::acpi::{Power, Register};

use crate::{console, cpu::exits, memory::mmio, time};

const KEYBOARD_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;
const SLEEP_ENABLE: u16 = 1 << 13;

/// ACPI's soft-off: the PM1a control port and the sleep type of S5; the same of PM1b, if there is one.
static SOFT_OFF: Once<[Option<(u16, u16)>; 2]> = Once::new();

/// A register that [`off`] may use, and the value that works.
#[derive(Clone, Copy)]
enum Way {
    Port(u16, u8),
    /// Virtual address of a device window.
    Memory(u64, u8),
}

/// The sleep control register of hardware-reduced machines, then the reset register.
static REGISTERS: Once<[Option<Way>; 2]> = Once::new();

/// Takes over what ACPI says about power-off. Registers are mapped now: a panic must not need to.
pub fn set_registers(power: &Power) {
    if let Some((type_a, type_b)) = power.s5_type {
        let control = |port: Option<u16>, sleep_type| port.map(|port| (port, u16::from(sleep_type)));
        SOFT_OFF.call_once(|| [control(power.pm1a_control, type_a), control(power.pm1b_control, type_b)]);
    }
    REGISTERS.call_once(|| {
        let way = |(register, value)| match register {
            Register::Port(port) => Way::Port(port, value),
            Register::Memory(physical) => Way::Memory(mmio::map(physical, 1) as u64, value),
        };
        let sleep = power.sleep_control.zip(power.s5_type).map(|(register, (kind, _))| {
            const ENABLE: u8 = 1 << 5;
            (register, (kind & 7) << 2 | ENABLE)
        });
        [sleep.map(way), power.reset.map(way)]
    });
}

/// Ends the machine after the application ended with `code`, and tells the host so. Once: another
/// CPU that comes here meanwhile stands still.
pub fn exit(code: u8) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    if ENDING.swap(true, Ordering::AcqRel) {
        loop {
            interrupts::disable();
            hlt();
        }
    }
    let _output = console::hold();
    if exits::are_wanted() {
        super::control::send_last(abi::control::Frame::Exits(exits::total()));
    }
    super::control::send_last(abi::control::Frame::Exit { code, tsc: time::counter() });
    off(abi::exit::ORDERLY)
}

/// A monitor may end the machine by another thread, and let this one run on meanwhile: the next way, a reset,
/// must not overtake the power-off that was asked for.
fn give_time() {
    const PATIENCE_NS: u64 = 200_000_000;
    time::spin_ns(PATIENCE_NS);
}

/// Ends the machine. `code` reaches the host only through QEMU's debug-exit device.
pub fn off(code: u32) -> ! {
    interrupts::disable();
    console::flush();
    // SAFETY: each of these ends the machine, or does nothing where the device is missing; the memory
    // registers are device windows that `set_registers` mapped for good.
    unsafe {
        Port::<u32>::new(abi::exit::PORT).write(code);
        let soft_off = SOFT_OFF.get().into_iter().flatten().flatten();
        for &(port, sleep_type) in soft_off.clone() {
            Port::<u16>::new(port).write(sleep_type << 10 | SLEEP_ENABLE);
        }
        if soft_off.count() > 0 {
            give_time();
        }
        for way in REGISTERS.get().into_iter().flatten().flatten() {
            match *way {
                Way::Port(port, value) => Port::new(port).write(value),
                Way::Memory(address, value) => (address as *mut u8).write_volatile(value),
            }
            give_time();
        }
        Port::<u8>::new(KEYBOARD_COMMAND).write(PULSE_RESET);
    }
    give_time();
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
