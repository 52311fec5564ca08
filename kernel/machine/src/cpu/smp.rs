#![allow(unsafe_code, reason = "copies the trampoline and starts processors on fresh stacks")]
//! Bringing up the application processors, one at a time, by INIT and start-up interrupts.
use alloc::boxed::Box;
use core::{
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use x86_64::instructions::interrupts;

use super::{
    apic, features,
    percpu::{self, PerCpu},
    tables,
};
use crate::{
    memory::{paging, stacks, tlb},
    tasks, time,
};

/// Physical address of the trampoline: one page below 1 MiB. Kept in step with `entry.S`.
pub const TRAMPOLINE: u64 = 0x8000;
/// Physical memory below this is mapped at its own address while processors start.
pub const IDENTITY_END: u64 = 0x10_0000;
const PANIC_STACK_BYTES: usize = 32768;
const INIT_WAIT_NS: u64 = 200_000;
/// A processor that has not seen the first start-up interrupt by then gets a second (SDM 9.4.4.1); one
/// that runs ignores it.
const AGAIN_NS: u64 = 10_000_000;
/// QEMU's TCG may need this long on a busy host.
const START_WAIT_NS: u64 = 2_000_000_000;

/// A processor was told to start, and has not begun. Who takes this away decides: the processor, which goes
/// on then, or the boot CPU, which gives it up.
static AWAITED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_parameters: u8;
}

/// Everything a CPU needs before it runs Rust code of its own.
struct Start {
    index: u32,
    cpu: &'static PerCpu,
    panic_stack: u64,
}

/// Makes the calling CPU the boot CPU: its per-CPU data, with the boot stack as kernel stack.
pub fn install_boot_cpu(apic_id: u32, stack_low: u64, stack_top: u64) {
    static BOOT_CPU: PerCpu = PerCpu::new();
    BOOT_CPU.stack_low.set(stack_low);
    BOOT_CPU.stack_top.set(stack_top);
    // The panic stack comes once there is memory: until then the boot stack serves.
    PerCpu::install(&BOOT_CPU, 0, apic_id, stack_top);
}

/// Gives the boot CPU what needs memory.
pub fn finish_boot_cpu() {
    let cpu = percpu::this_cpu();
    PerCpu::install(cpu, 0, apic::id(), stacks::leak(PANIC_STACK_BYTES));
    tables::load();
    percpu::set_online();
}

/// Starts the processors with these APIC ids (the boot CPU's own is skipped). The result is how many
/// CPUs are online; one that does not answer is reported and left out.
pub fn start(apic_ids: &[u32]) -> usize {
    let own = apic::id();
    // SAFETY: physical page TRAMPOLINE is RAM below 1 MiB that nobody owns, direct-mapped; the
    // symbols bound the trampoline, which fits one page.
    unsafe {
        let len = &raw const ap_trampoline_end as usize - &raw const ap_trampoline as usize;
        ptr::copy_nonoverlapping(low_alias(&raw const ap_trampoline), paging::direct(TRAMPOLINE) as *mut u8, len);
    }
    for &apic_id in apic_ids.iter().filter(|&&id| id != own) {
        if !apic::reaches(apic_id) {
            log::warn!("processor with APIC id {apic_id} needs x2APIC, which this machine has not: it stays off");
            continue;
        }
        let index = percpu::online_count();
        if index >= percpu::MAX_CPUS {
            log::warn!("more than {} processors: the rest stay off", percpu::MAX_CPUS);
            break;
        }
        if !start_one(apic_id, index as u32) {
            log::warn!("processor with APIC id {apic_id} did not start");
            break;
        }
    }
    percpu::online_count()
}

/// The boot section's symbols are physical addresses, mapped low only as long as the boot map stands;
/// the high alias is always there.
fn low_alias(symbol: *const u8) -> *const u8 {
    (symbol as u64 + paging::KERNEL_BASE) as *const u8
}

fn start_one(apic_id: u32, index: u32) -> bool {
    let cpu: &'static PerCpu = Box::leak(Box::new(PerCpu::new()));
    let top = stacks::leak(stacks::STACK_BYTES);
    cpu.stack_top.set(top);
    cpu.stack_low.set(top - stacks::STACK_BYTES as u64);
    cpu.apic_id.set(apic_id);
    let start = Box::into_raw(Box::new(Start { index, cpu, panic_stack: stacks::leak(PANIC_STACK_BYTES) }));
    let offset = &raw const ap_parameters as u64 - &raw const ap_trampoline as u64;
    // SAFETY: the copied trampoline has three words for parameters at this offset; the processor
    // reads them only after the start-up interrupt.
    unsafe {
        let parameters = paging::direct(TRAMPOLINE + offset) as *mut u64;
        parameters.write_volatile(paging::root());
        parameters.add(1).write_volatile(top);
        parameters.add(2).write_volatile(start as u64);
    }
    let before = percpu::online_count();
    AWAITED.store(true, Ordering::Release);
    interrupts::without_interrupts(|| apic::send_init(apic_id));
    time::spin_ns(INIT_WAIT_NS);
    let send = || interrupts::without_interrupts(|| apic::send_startup(apic_id, (TRAMPOLINE >> 12) as u8));
    send();
    let sent_ns = time::now_ns();
    let mut again = false;
    while percpu::online_count() == before {
        if let Some(ticks) = time::sync::meet(index as usize) {
            log::warn!(
                "the time stamp counter of CPU {index} is {ticks} ticks behind: its offset is added from now on"
            );
        }
        let waited_ns = time::now_ns() - sent_ns;
        // One that has begun is waited for: stopped, it might leave a lock locked for ever.
        if waited_ns > START_WAIT_NS && AWAITED.swap(false, Ordering::AcqRel) {
            // It must not come later, when the trampoline's map is gone and its stack is another's.
            interrupts::without_interrupts(|| apic::send_init(apic_id));
            return false;
        }
        if waited_ns > AGAIN_NS && !again {
            again = true;
            send();
        }
        core::hint::spin_loop();
    }
    true
}

/// First Rust code of an application processor, on its own stack.
#[unsafe(no_mangle)]
extern "C" fn ap_start(start: *mut Start) -> ! {
    while !AWAITED.swap(false, Ordering::AcqRel) {
        x86_64::instructions::hlt();
    }
    // SAFETY: `start_one` passed a Box through the trampoline, for this processor alone.
    let start = unsafe { Box::from_raw(start) };
    // Nothing may allocate before this, nor touch hardware: allocators ask which CPU they run on, and
    // accesses are counted by CPU.
    PerCpu::install(start.cpu, start.index, start.cpu.apic_id.get(), start.panic_stack);
    features::enable();
    tables::load();
    apic::init();
    time::init_cpu();
    time::sync::meet_boot_cpu();
    tlb::join();
    tasks::become_idle(start.cpu.stack_low.get(), start.cpu.stack_top.get());
    percpu::set_online();
    drop(start);
    tasks::idle_loop()
}
