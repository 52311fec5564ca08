#![allow(unsafe_code, reason = "reads frames and registers of a broken kernel")]
//! When the kernel is wrong: cause, registers, a symbolised backtrace of every CPU ([`cpus`]), and
//! the end of the machine.
//!
//! Nothing here takes a lock or allocates. The other CPUs are stopped by NMI first. The VM ends with
//! [`abi::exit::PANIC`], or [`abi::exit::OUT_OF_MEMORY`].
use core::{
    arch::asm,
    fmt::{self, Write},
    mem::offset_of,
    panic::PanicInfo,
    sync::atomic::{AtomicU32, Ordering},
};

use rt::regs::TrapFrame;
use x86_64::instructions::interrupts;

use crate::{
    console::PastLocks,
    cpu::{
        apic,
        percpu::{self, PerCpu},
    },
    drivers::{control, power},
};

mod backtrace;
mod cpus;

pub use backtrace::text_start;

/// 0, or the panicking CPU's index + 1.
static PANICKING: AtomicU32 = AtomicU32::new(0);

pub fn in_progress() -> bool {
    PANICKING.load(Ordering::Acquire) != 0
}

/// Calls of [`print_raw`] that have come to their end.
static PRINTED: AtomicU32 = AtomicU32::new(0);

/// Prints past every lock.
pub fn print_raw(text: fmt::Arguments<'_>) {
    let _ = PastLocks.write_fmt(text);
    PRINTED.fetch_add(1, Ordering::Relaxed);
}

/// Grows as long as somebody prints.
fn printed() -> u32 {
    PRINTED.load(Ordering::Relaxed)
}

/// Whether it is CPU `index` that panics.
fn by_this_cpu(index: usize) -> bool {
    PANICKING.load(Ordering::Acquire) == index as u32 + 1
}

/// The calling CPU's index, as far as it is known.
fn this_index() -> u32 {
    if percpu::ready() { percpu::this_cpu().index.get() } else { 0 }
}

/// A frame from its general registers on, without what the vector registers held.
///
/// # Safety
/// `registers` points at the words of a TrapFrame from r15 on, 8 bytes each.
unsafe fn frame_from(registers: *const u64) -> TrapFrame {
    let mut frame = TrapFrame::default();
    let words = (size_of::<TrapFrame>() - offset_of!(TrapFrame, r15)) / 8;
    // SAFETY: TrapFrame is repr(C) and has just these words from r15 on; the rest is the caller's word.
    unsafe { core::ptr::copy_nonoverlapping(registers, &raw mut frame.r15, words) };
    frame
}

/// Claims the console for this CPU's report; a second panic on the same CPU ends the machine at once.
fn begin() {
    interrupts::disable();
    let me = this_index() + 1;
    match PANICKING.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            if percpu::ready() {
                apic::stop_others();
            }
        }
        Err(other) if other == me => {
            print_raw(format_args!("\ndemitasse: panic while panicking\n"));
            power::off(abi::exit::PANIC);
        }
        Err(_) => cpus::halt(),
    }
}

fn end(cause: fmt::Arguments<'_>, code: u32) -> ! {
    if percpu::ready() {
        cpus::report_others(this_index() as usize);
    }
    // The host tools read the cause from a control frame; a person reads the text above it.
    control::send_last(abi::control::Frame::Panic { cause: &OneLine::new(cause) });
    power::off(code)
}

/// A cause cut to what fits a control frame, without allocation.
struct OneLine {
    text: [u8; 200],
    len: usize,
}

impl OneLine {
    fn new(cause: fmt::Arguments<'_>) -> Self {
        let mut line = Self { text: [0; 200], len: 0 };
        let _ = line.write_fmt(cause);
        line
    }
}

impl Write for OneLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.len < self.text.len() {
                self.text[self.len] = if byte.is_ascii_graphic() { byte } else { b' ' };
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl core::ops::Deref for OneLine {
    type Target = str;
    fn deref(&self) -> &str {
        core::str::from_utf8(&self.text[..self.len]).unwrap_or("")
    }
}

#[panic_handler]
fn rust_panic(info: &PanicInfo<'_>) -> ! {
    begin();
    let index = this_index();
    print_raw(format_args!("\ndemitasse: kernel panic on CPU {index}: {info}\n"));
    let mut rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    backtrace::print(None, rbp);
    // The allocation error of `alloc` reaches us as a panic with this message.
    let message = OneLine::new(format_args!("{}", info.message()));
    if message.starts_with("memory allocation of") {
        print_raw(format_args!("demitasse: the kernel itself is out of memory: give the VM more\n"));
        end(format_args!("kernel out of memory: {}", &*message), abi::exit::OUT_OF_MEMORY)
    }
    end(format_args!("{info}"), abi::exit::PANIC)
}

/// An exception of kernel code.
pub fn exception(frame: &TrapFrame, cause: &str) -> ! {
    begin();
    let index = this_index();
    let name = vector_name(frame.vector);
    let address = x86_64::registers::control::Cr2::read_raw();
    print_raw(format_args!(
        "\ndemitasse: kernel panic on CPU {index}: {cause}: {name}, error {:#x}, cr2 {address:#x}\n",
        frame.error
    ));
    backtrace::print_registers(frame);
    backtrace::print(Some(frame.rip), frame.rbp);
    end(format_args!("{cause}: {name} at {:#x}, cr2 {address:#x}", frame.rip), abi::exit::PANIC)
}

fn vector_name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "NMI",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "no x87",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD error",
        _ => "exception",
    }
}

/// From the assembly when nothing may be trusted: `registers` points at the general registers of a
/// TrapFrame (from r15 on), still on an IST stack; `cpu`: what that says is the calling CPU's data.
#[unsafe(no_mangle)]
extern "C" fn trap_fatal(registers: *const u64, reason: u32, cpu: &'static PerCpu) -> ! {
    let gs_was_wrong = percpu::correct_gs_base(cpu);
    // SAFETY: `entry.S` passes what it and the CPU pushed.
    let frame = unsafe { frame_from(registers) };
    let cause = match reason {
        _ if gs_was_wrong => "the GS base is not the kernel's: a program has changed it",
        1 => "kernel stack overflow, or a stack pointer outside the kernel stack",
        2 => "fault while a trap frame was being moved",
        _ if frame.vector == 8 => "double fault",
        _ => "machine check",
    };
    exception(&frame, cause)
}
