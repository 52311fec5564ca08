#![allow(unsafe_code, reason = "device registers in memory and model-specific registers")]
//! The local APIC: end of interrupt, inter-processor interrupts, the one-shot timer.
//!
//! xAPIC by its memory window; x2APIC by MSRs where the CPU has it switched on or offers it. QEMU
//! 7.2's TCG has no x2APIC: that path is exercised on KVM only (docs/testing.md).
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use x86_64::{instructions::port::Port, registers::model_specific::Msr};

use crate::{
    cpu::{exits, features, percpu},
    memory::{mmio, paging},
};

pub const VECTOR_TIMER: u8 = 0xef;
pub const VECTOR_RESCHEDULE: u8 = 0xf0;
pub const VECTOR_TLB: u8 = 0xf1;
pub const VECTOR_SPURIOUS: u8 = 0xff;

const APIC_BASE: u32 = 0x1b;
const X2APIC_MSRS: u32 = 0x800;
const REG_ID: u32 = 0x20;
const REG_TPR: u32 = 0x80;
const REG_EOI: u32 = 0xb0;
const REG_SPURIOUS: u32 = 0xf0;
const REG_ICR_LOW: u32 = 0x300;
const REG_ICR_HIGH: u32 = 0x310;
const REG_LVT_TIMER: u32 = 0x320;
const REG_LVT_LINT0: u32 = 0x350;
const REG_LVT_LINT1: u32 = 0x360;
const REG_TIMER_COUNT: u32 = 0x380;
const REG_TIMER_NOW: u32 = 0x390;
const REG_TIMER_DIVIDE: u32 = 0x3e0;
const DIVIDE_BY_1: u32 = 0xb;
const MASKED: u32 = 1 << 16;
const ICR_PENDING: u32 = 1 << 12;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_INIT: u32 = 5 << 8 | 1 << 14;
const DELIVER_STARTUP: u32 = 6 << 8 | 1 << 14;

static WINDOW: AtomicU64 = AtomicU64::new(0);
static X2APIC: AtomicBool = AtomicBool::new(false);

fn read(register: u32) -> u32 {
    // SAFETY: `init` mapped the window or switched x2APIC on; both registers are side-effect free.
    unsafe {
        if X2APIC.load(Ordering::Relaxed) {
            exits::msr();
            Msr::new(X2APIC_MSRS + (register >> 4)).read() as u32
        } else {
            exits::mmio();
            ((WINDOW.load(Ordering::Relaxed) + u64::from(register)) as *const u32).read_volatile()
        }
    }
}

fn write(register: u32, value: u32) {
    // SAFETY: as in `read`; callers write values that the SDM defines for the register.
    unsafe {
        if X2APIC.load(Ordering::Relaxed) {
            exits::msr();
            Msr::new(X2APIC_MSRS + (register >> 4)).write(u64::from(value));
        } else {
            exits::mmio();
            ((WINDOW.load(Ordering::Relaxed) + u64::from(register)) as *mut u32).write_volatile(value);
        }
    }
}

/// Masks the legacy interrupt controllers, where a machine has them: firmware leaves the PIT running,
/// and a line that is raised but no longer accepted would still be delivered by QEMU, as vector -1.
pub fn mask_legacy_controllers() {
    for port in [0x21, 0xa1] {
        exits::port();
        // SAFETY: the 8259s' mask registers; without them nobody listens.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}

/// Switches the calling CPU's APIC on, timer unarmed. The boot CPU first.
pub fn init() {
    exits::msr();
    exits::msr();
    // SAFETY: IA32_APIC_BASE exists on every x86-64 CPU.
    let mut base = unsafe { Msr::new(APIC_BASE).read() };
    let has_x2apic = features::cpuid(1, 0).2 & (1 << 21) != 0;
    base |= 1 << 11;
    if has_x2apic {
        base |= 1 << 10;
    }
    // SAFETY: enabling, and x2APIC only where CPUID has it.
    unsafe { Msr::new(APIC_BASE).write(base) };
    X2APIC.store(has_x2apic, Ordering::Relaxed);
    if !has_x2apic && WINDOW.load(Ordering::Relaxed) == 0 {
        WINDOW.store(mmio::map(base & paging::ADDRESS_MASK, 4096) as u64, Ordering::Relaxed);
    }
    write(REG_TPR, 0);
    write(REG_SPURIOUS, 0x100 | u32::from(VECTOR_SPURIOUS));
    write(REG_LVT_LINT0, MASKED);
    // By this line a machine's button, or QEMU's `inject-nmi`, asks each CPU what it does.
    write(REG_LVT_LINT1, DELIVER_NMI);
    write(REG_TIMER_DIVIDE, DIVIDE_BY_1);
    write(REG_LVT_TIMER, u32::from(VECTOR_TIMER));
}

pub fn id() -> u32 {
    if X2APIC.load(Ordering::Relaxed) { read(REG_ID) } else { read(REG_ID) >> 24 }
}

#[inline]
pub fn end_of_interrupt() {
    write(REG_EOI, 0);
}

/// Arms the one-shot timer, in timer ticks from now; 0 disarms it.
pub fn arm_timer(ticks: u32) {
    write(REG_TIMER_COUNT, ticks);
}

/// Which vector the timer raises: kernel tests redirect it.
pub fn set_timer_vector(vector: u8) {
    write(REG_LVT_TIMER, u32::from(vector));
}

/// Ticks left of the armed timer.
pub fn timer_now() -> u32 {
    read(REG_TIMER_NOW)
}

fn send(apic_id: u32, command: u32) {
    exits::ipi();
    if X2APIC.load(Ordering::Relaxed) {
        exits::msr();
        // SAFETY: the ICR is one MSR in x2APIC mode. The fence orders earlier stores before the
        // interrupt, which an MSR write in x2APIC mode does not (SDM 11.12.3).
        unsafe {
            core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
            Msr::new(X2APIC_MSRS + (REG_ICR_LOW >> 4)).write(u64::from(apic_id) << 32 | u64::from(command));
        }
        return;
    }
    while read(REG_ICR_LOW) & ICR_PENDING != 0 {
        core::hint::spin_loop();
    }
    write(REG_ICR_HIGH, apic_id << 24);
    write(REG_ICR_LOW, command);
}

/// Sends `vector` to another CPU. Interrupts must be off: the two ICR halves belong together.
pub fn send_ipi(apic_id: u32, vector: u8) {
    send(apic_id, u32::from(vector) | 1 << 14);
}

pub fn send_nmi(apic_id: u32) {
    send(apic_id, DELIVER_NMI | 1 << 14);
}

pub fn send_init(apic_id: u32) {
    send(apic_id, DELIVER_INIT);
}

/// Start-up at physical page `page` (address `page << 12`).
pub fn send_startup(apic_id: u32, page: u8) {
    send(apic_id, DELIVER_STARTUP | u32::from(page));
}

/// Stops every other CPU by NMI, for a panic.
pub fn stop_others() {
    let me = percpu::this_cpu().index.get() as usize;
    for index in (0..percpu::online_count()).filter(|&index| index != me) {
        if let Some(other) = percpu::cpu(index) {
            send_nmi(other.apic_id.get());
        }
    }
}
