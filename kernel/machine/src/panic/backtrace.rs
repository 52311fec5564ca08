#![allow(unsafe_code, reason = "walks raw frame pointers of a broken kernel")]
//! Registers and symbolised backtraces, printed without a lock or an allocation: each address is
//! looked up in the page tables before it is read.
use rt::regs::TrapFrame;

use super::print_raw;
use crate::memory::paging::{self, DIRECT_MAP};

const MAX_FRAMES: usize = 40;

/// Room for the symbol table ([`abi::ksyms`]) that the build writes here after linking.
const SYMBOL_BYTES: usize = 192 << 10;
#[used]
#[unsafe(link_section = ".ksyms")]
static SYMBOLS: [u8; SYMBOL_BYTES] = [0; SYMBOL_BYTES];

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
}

/// Registers as a person expects them.
pub fn print_registers(f: &TrapFrame) {
    print_raw(format_args!("  rip {:016x} rsp {:016x} rflags {:08x}\n", f.rip, f.rsp, f.rflags));
    print_raw(format_args!("  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\n", f.rax, f.rbx, f.rcx, f.rdx));
    print_raw(format_args!("  rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}\n", f.rsi, f.rdi, f.rbp, f.r8));
    print_raw(format_args!("  r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}\n", f.r9, f.r10, f.r11, f.r12));
    print_raw(format_args!("  r13 {:016x} r14 {:016x} r15 {:016x}\n", f.r13, f.r14, f.r15));
}

/// The symbol that an address of the kernel's text lies in, and how far into it.
pub fn symbol(address: u64) -> Option<(&'static str, u64)> {
    let start = (&raw const SYMBOLS).cast::<u8>();
    // SAFETY: the static's own bytes, by an address that the compiler cannot see through, since the
    // build changed them after it saw zeroes.
    let table = unsafe { core::slice::from_raw_parts(core::hint::black_box(start), SYMBOL_BYTES) };
    abi::ksyms::lookup(table, address)
}

fn print_frame(number: usize, address: u64) {
    match symbol(address) {
        Some((name, offset)) => print_raw(format_args!("  #{number:<2} {address:016x} {name}+{offset:#x}\n")),
        None => print_raw(format_args!("  #{number:<2} {address:016x}\n")),
    }
}

/// True if the `len` bytes at `address` may be read: in the stack window, the image or the direct map.
pub fn readable(address: u64, len: u64) -> bool {
    let kernel_half = (DIRECT_MAP..u64::MAX - 4096 - len).contains(&address);
    let end = address.wrapping_add(len);
    kernel_half && paging::is_mapped(address) && (address..end).step_by(4096).chain([end - 1]).all(paging::is_mapped)
}

/// Where the kernel's text begins.
pub fn text_start() -> u64 {
    &raw const __text_start as u64
}

/// Follows saved frame pointers from `rbp`; `first` is where the code was itself.
pub fn print(first: Option<u64>, mut rbp: u64) {
    let text = text_start()..&raw const __text_end as u64;
    let mut number = 0;
    if let Some(rip) = first {
        print_frame(0, rip);
        number = 1;
    }
    while number < MAX_FRAMES && rbp.is_multiple_of(8) && readable(rbp, 16) {
        // SAFETY: both words lie in present kernel pages.
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
