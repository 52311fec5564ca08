//! The kernel: the boot story, from a machine that can run tasks to the first program's end.
#![no_std]
#![no_main]

extern crate alloc;

use machine::boot::BootInfo;

#[global_allocator]
static HEAP: machine::memory::heap::KernelHeap = machine::memory::heap::KernelHeap;

/// The machine's boot code ends here, on the boot CPU.
#[allow(unsafe_code, reason = "the machine calls it by name")]
#[unsafe(no_mangle)]
fn kernel_main(info: BootInfo) -> ! {
    machine::console::set_level(log::LevelFilter::Info);
    log::info!("command line {:?}", info.command_line);
    machine::drivers::power::exit(0)
}
