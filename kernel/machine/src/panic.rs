#![allow(unsafe_code, reason = "walks raw frame pointers of a broken kernel")]
//! When the kernel is wrong: cause, registers, a symbolised backtrace, and the end of the machine.
//!
//! Nothing here takes a lock or allocates. The other CPUs are stopped by NMI first. The VM ends with
//! [`abi::exit::PANIC`], or [`abi::exit::OUT_OF_MEMORY`].
use core::{
    arch::asm,
    fmt::{self, Write},
    panic::PanicInfo,
    sync::atomic::{AtomicU32, Ordering},
};

use rt::regs::TrapFrame;
use x86_64::instructions::{hlt, interrupts};

use crate::{
    console::Raw,
    cpu::{apic, percpu},
    drivers::{control, power},
    memory::paging::{self, DIRECT_MAP},
};

const MAX_FRAMES: usize = 40;

/// 0, or the panicking CPU's index + 1.
static PANICKING: AtomicU32 = AtomicU32::new(0);

/// Room for the symbol table ([`abi::ksyms`]) that the build writes here after linking.
const SYMBOL_BYTES: usize = 192 << 10;
#[used]
#[unsafe(link_section = ".ksyms")]
static SYMBOLS: [u8; SYMBOL_BYTES] = [0; SYMBOL_BYTES];

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
}

pub fn in_progress() -> bool {
    PANICKING.load(Ordering::Acquire) != 0
}

/// Prints past every lock.
pub fn print_raw(text: fmt::Arguments<'_>) {
    let _ = Raw.write_fmt(text);
}

/// Another CPU panics: stand still.
pub fn halt_for_panic() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}

/// Claims the console for this CPU's report; a second panic on the same CPU ends the machine at once.
fn begin() {
    interrupts::disable();
    let me = if percpu::ready() { percpu::this_cpu().index.get() + 1 } else { 1 };
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
        Err(_) => halt_for_panic(),
    }
}

fn end(cause: fmt::Arguments<'_>, code: u32) -> ! {
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
    let index = if percpu::ready() { percpu::this_cpu().index.get() } else { 0 };
    print_raw(format_args!("\ndemitasse: kernel panic on CPU {index}: {info}\n"));
    let mut rbp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    backtrace(None, rbp);
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
    let index = if percpu::ready() { percpu::this_cpu().index.get() } else { 0 };
    let name = vector_name(frame.vector);
    let address = x86_64::registers::control::Cr2::read_raw();
    print_raw(format_args!(
        "\ndemitasse: kernel panic on CPU {index}: {cause}: {name}, error {:#x}, cr2 {address:#x}\n",
        frame.error
    ));
    print_registers(frame);
    backtrace(Some(frame.rip), frame.rbp);
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

/// Registers as a person expects them.
pub fn print_registers(f: &TrapFrame) {
    print_raw(format_args!("  rip {:016x} rsp {:016x} rflags {:08x}\n", f.rip, f.rsp, f.rflags));
    print_raw(format_args!("  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\n", f.rax, f.rbx, f.rcx, f.rdx));
    print_raw(format_args!("  rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}\n", f.rsi, f.rdi, f.rbp, f.r8));
    print_raw(format_args!("  r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}\n", f.r9, f.r10, f.r11, f.r12));
    print_raw(format_args!("  r13 {:016x} r14 {:016x} r15 {:016x}\n", f.r13, f.r14, f.r15));
}

fn symbols() -> &'static [u8] {
    let start = (&raw const SYMBOLS).cast::<u8>();
    // SAFETY: the static's own bytes, read by volatile address since the build changed them after the
    // compiler saw zeroes.
    unsafe { core::slice::from_raw_parts(core::hint::black_box(start), SYMBOL_BYTES) }
}

fn print_frame(number: usize, address: u64) {
    match abi::ksyms::lookup(symbols(), address) {
        Some((name, offset)) => print_raw(format_args!("  #{number:<2} {address:016x} {name}+{offset:#x}\n")),
        None => print_raw(format_args!("  #{number:<2} {address:016x}\n")),
    }
}

/// True if `address` may be read as a saved frame: in the stack window, the image or the direct map.
fn readable(address: u64) -> bool {
    let kernel_half = (DIRECT_MAP..u64::MAX - 64).contains(&address);
    kernel_half && address.is_multiple_of(8) && paging::is_mapped(address) && paging::is_mapped(address + 15)
}

/// Where the kernel's text begins.
pub fn text_start() -> u64 {
    &raw const __text_start as u64
}

/// Follows saved frame pointers.
fn backtrace(first: Option<u64>, mut rbp: u64) {
    let text = text_start()..&raw const __text_end as u64;
    let mut number = 0;
    if let Some(rip) = first {
        print_frame(0, rip);
        number = 1;
    }
    while number < MAX_FRAMES && rbp != 0 && readable(rbp) {
        // SAFETY: both words lie in a present kernel page.
        let (next, address) = unsafe { (*(rbp as *const u64), *((rbp + 8) as *const u64)) };
        if !text.contains(&address) {
            break;
        }
        print_frame(number, address);
        number += 1;
        if next <= rbp {
            break;
        }
        rbp = next;
    }
}
