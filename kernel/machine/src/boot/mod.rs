#![allow(unsafe_code, reason = "the first Rust code: linker symbols and boot structures by address")]
//! From the PVH entry to a machine that can run tasks.
//!
//! `entry.S` enters long mode with the first GiB mapped and calls [`boot_start`]. From there:
//! early heap and console, the boot structures, final page tables, frames, this CPU's tables, time,
//! and then the kernel's own `main` (given by the `kernel` crate through [`Main`]).
use alloc::{string::String, vec::Vec};

use core::sync::atomic::{AtomicU64, Ordering};

use abi::exit;
use logic::pvh::PvhError;

use crate::{
    console,
    cpu::{apic, features, smp},
    memory::{early, frames, heap, paging},
    random, runtime, tasks, time,
};

core::arch::global_asm!(
    include_str!("entry.S"),
    out_of_memory = const exit::OUT_OF_MEMORY,
    exit_port = const exit::PORT,
    options(att_syntax)
);
core::arch::global_asm!(include_str!("mem.S"), options(att_syntax));

unsafe extern "C" {
    static __boot_start: u8;
    static __boot_end: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __ksyms_end: u8;
    static __data_start: u8;
    static __kernel_end: u8;
    static boot_stack_bottom: u8;
    static boot_stack_top: u8;
}

/// What the machine was told by whoever booted it.
pub struct BootInfo {
    pub command_line: String,
    /// Physical range of the first boot module, if there is one.
    pub module: Option<(u64, u64)>,
    /// Physical address of ACPI's RSDP; 0: none.
    pub rsdp: u64,
}

/// The time stamp counter when the first Rust code ran.
static ENTERED_AT: AtomicU64 = AtomicU64::new(0);

/// The time stamp counter at the kernel's entry: what came before it was firmware.
pub fn entered_at() -> u64 {
    ENTERED_AT.load(Ordering::Relaxed)
}

unsafe extern "Rust" {
    /// The kernel crate's way on: runs on the boot CPU, as its future idle task. Must not park.
    fn kernel_main(info: BootInfo) -> !;
}

fn address(symbol: &u8) -> u64 {
    core::ptr::from_ref(symbol) as u64
}

/// The kernel image's segments and their rights.
fn segments() -> [paging::Segment; 4] {
    // SAFETY: linker symbols; only their addresses are used.
    unsafe {
        [
            // The boot section's high alias holds the boot stack.
            paging::Segment {
                start: paging::KERNEL_BASE + address(&__boot_start),
                end: paging::KERNEL_BASE + address(&__boot_end),
                flags: paging::WRITABLE | paging::NO_EXECUTE,
            },
            paging::Segment { start: address(&__text_start), end: address(&__text_end), flags: 0 },
            paging::Segment { start: address(&__rodata_start), end: address(&__ksyms_end), flags: paging::NO_EXECUTE },
            paging::Segment {
                start: address(&__data_start),
                end: address(&__kernel_end),
                flags: paging::WRITABLE | paging::NO_EXECUTE,
            },
        ]
    }
}

/// First Rust code, on the boot stack, with the boot page tables. `start_info`: physical address of
/// PVH's `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn boot_start(start_info: u32) -> ! {
    ENTERED_AT.store(time::counter(), Ordering::Relaxed);
    // SAFETY: the boot stack is static; its high alias stays mapped.
    let (low, top) = unsafe { (address(&boot_stack_bottom), address(&boot_stack_top)) };
    smp::install_boot_cpu(0, paging::KERNEL_BASE + low, paging::KERNEL_BASE + top);
    console::init(log::LevelFilter::Warn);
    runtime::register();
    // SAFETY: linker symbols; only their addresses are used.
    let image = unsafe { (address(&__boot_start), address(&__kernel_end) - paging::KERNEL_BASE) };
    let pvh = pvh::read(u64::from(start_info), image)
        .unwrap_or_else(|error| malformed(exit_code(error), format_args!("{error}")));
    map_memory(&pvh);
    heap::use_frames();
    features::enable();
    apic::mask_legacy_controllers();
    apic::init();
    smp::finish_boot_cpu();
    tasks::become_idle(paging::KERNEL_BASE + low, paging::KERNEL_BASE + top);
    let info = BootInfo { command_line: pvh.command_line, module: pvh.module, rsdp: pvh.rsdp };
    // SAFETY: the kernel crate defines it with this signature.
    unsafe { kernel_main(info) }
}

fn exit_code(error: PvhError) -> u32 {
    match error {
        PvhError::Unreadable | PvhError::BadMagic(_) | PvhError::TooManyEntries(_) => exit::BAD_START_INFO,
        PvhError::UnreadableModules | PvhError::ModuleMisplaced { .. } => exit::BAD_MODULE,
        PvhError::NoMemoryMap | PvhError::UnreadableMemoryMap | PvhError::KernelOutsideRam => exit::BAD_MEMORY_MAP,
        PvhError::EndlessCommandLine(_) | PvhError::UnreadableCommandLine(_) => exit::BAD_COMMAND_LINE,
    }
}

/// Ends the machine with one line: what it was booted with makes no sense. `code`: see [`abi::exit`].
pub fn malformed(code: u32, what: core::fmt::Arguments<'_>) -> ! {
    crate::panic::print_raw(format_args!("demitasse: error: {what}\n"));
    crate::drivers::power::off(code)
}

/// Ends the machine: it has too little memory for the kernel alone.
pub fn out_of_memory(what: core::fmt::Arguments<'_>) -> ! {
    malformed(exit::OUT_OF_MEMORY, format_args!("too little memory: {what}"))
}

/// Final page tables and the frame allocator.
fn map_memory(pvh: &pvh::Pvh) {
    // SAFETY: a linker symbol's address.
    let image_end = unsafe { address(&__kernel_end) } - paging::KERNEL_BASE;
    let usable_end = pvh
        .ram
        .iter()
        .find(|range| range.0 <= image_end && image_end <= range.1)
        .map_or_else(|| malformed(exit::BAD_MEMORY_MAP, format_args!("no RAM behind the kernel")), |range| range.1);
    // Early memory ends below a module that was put above the kernel.
    let early_end = pvh
        .module
        .map_or(usable_end, |module| if module.0 >= image_end { module.0.min(usable_end) } else { usable_end });
    early::init(image_end, early_end);
    let segments = segments();
    let with_low: Vec<(u64, u64)> = core::iter::once((0, smp::IDENTITY_END)).chain(pvh.ram.iter().copied()).collect();
    paging::build(&segments, &with_low, smp::IDENTITY_END);
    let reserved: Vec<(u64, u64)> = pvh.module.into_iter().collect();
    frames::init(&pvh.ram, &reserved);
    if let Some((start, end)) = pvh.module {
        frames::adopt(start..end);
    }
}

/// Time and chance, once the command line is known.
pub fn init_time(exact: bool, seed: Option<u64>) {
    time::init(exact);
    if exact {
        random::seed_exact(seed.unwrap_or(0));
    } else {
        random::seed_from_machine();
    }
    crate::memory::space::randomise(random::next_u64());
}

pub mod firmware;
mod pvh;
