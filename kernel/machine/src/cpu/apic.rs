#![allow(unsafe_code, reason = "device registers in memory and model-specific registers")]
//! The local APIC: end of interrupt, inter-processor interrupts, the timer.
//!
//! What is written where, and in which order, is `logic::apic`'s matter; here are the registers. QEMU
//! 7.2's TCG has neither x2APIC nor TSC deadlines (docs/testing.md).
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use logic::{
    apic::{APIC_BASE, LocalApic, Message, Registers},
    cpuid::Cpuid as _,
};
use x86_64::{instructions::port::Port, registers::model_specific::Msr};

use crate::{
    cpu::{
        exits,
        features::ThisCpu,
        percpu::{self, this_cpu},
    },
    memory::{mmio, paging},
    time,
};

pub const VECTOR_TIMER: u8 = 0xef;
pub const VECTOR_RESCHEDULE: u8 = 0xf0;
pub const VECTOR_TLB: u8 = 0xf1;
pub const VECTOR_FRAMES: u8 = 0xf2;
pub const VECTOR_SPURIOUS: u8 = 0xff;

static WINDOW: AtomicU64 = AtomicU64::new(0);
static X2APIC: AtomicBool = AtomicBool::new(false);
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);

/// The calling CPU's registers.
struct Hardware;

impl Registers for Hardware {
    fn read_msr(&self, msr: u32) -> u64 {
        exits::msr();
        // SAFETY: `logic::apic` reads IA32_APIC_BASE, which every x86-64 CPU has, and, in x2APIC mode,
        // its registers, whose reading changes nothing.
        unsafe { Msr::new(msr).read() }
    }

    fn write_msr(&self, msr: u32, value: u64) {
        exits::msr();
        // SAFETY: `logic::apic` writes what the SDM defines for the mode that the APIC is in, and the
        // deadline only where CPUID has it.
        unsafe { Msr::new(msr).write(value) }
    }

    fn read_window(&self, offset: u32) -> u32 {
        exits::mmio();
        // SAFETY: `init` mapped the window; reading its registers changes nothing.
        unsafe { ((WINDOW.load(Ordering::Relaxed) + u64::from(offset)) as *const u32).read_volatile() }
    }

    fn write_window(&self, offset: u32, value: u32) {
        exits::mmio();
        // SAFETY: as in `read_window`; `logic::apic` writes what the SDM defines for the register.
        unsafe { ((WINDOW.load(Ordering::Relaxed) + u64::from(offset)) as *mut u32).write_volatile(value) }
    }

    fn fence(&self) {
        // SAFETY: fences touch no memory and no registers.
        unsafe { core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags)) }
    }
}

#[inline]
fn apic() -> LocalApic {
    LocalApic { x2apic: X2APIC.load(Ordering::Relaxed), tsc_deadline: TSC_DEADLINE.load(Ordering::Relaxed) }
}

/// Masks the legacy interrupt controllers, where a machine has them: firmware leaves the PIT running,
/// and a line that is raised but no longer accepted would still be delivered by QEMU, as vector -1.
pub fn mask_legacy_controllers() {
    for port in [0x21, 0xa1] {
        // SAFETY: the 8259s' mask registers; without them nobody listens.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}

/// Switches the calling CPU's APIC on, timer unarmed. The boot CPU first.
pub fn init() {
    let x2apic = LocalApic::enable(&Hardware, &ThisCpu);
    X2APIC.store(x2apic, Ordering::Relaxed);
    if !x2apic && WINDOW.load(Ordering::Relaxed) == 0 {
        let base = Hardware.read_msr(APIC_BASE) & paging::ADDRESS_MASK;
        WINDOW.store(mmio::map(base, 4096) as u64, Ordering::Relaxed);
    }
    apic().init(&Hardware, VECTOR_SPURIOUS, VECTOR_TIMER);
}

/// From now on timers are armed for a value of the time stamp counter, if the CPU can. On the boot
/// CPU, before the others start.
pub fn use_tsc_deadline() {
    if ThisCpu.has_tsc_deadline() {
        arm_after(0);
        TSC_DEADLINE.store(true, Ordering::Relaxed);
        set_timer_vector(VECTOR_TIMER);
    }
}

pub fn is_x2apic() -> bool {
    X2APIC.load(Ordering::Relaxed)
}

/// Whether timers are armed by [`arm_at`], else by [`arm_after`].
#[inline]
pub fn has_tsc_deadline() -> bool {
    TSC_DEADLINE.load(Ordering::Relaxed)
}

pub fn id() -> u32 {
    apic().id(&Hardware)
}

#[inline]
pub fn end_of_interrupt() {
    apic().end_of_interrupt(&Hardware);
}

/// Arms the one-shot timer, in timer ticks from now; 0 disarms it.
#[inline]
pub fn arm_after(ticks: u32) {
    apic().arm_after(&Hardware, ticks);
}

/// Arms the timer for a value of the time stamp counter.
#[inline]
pub fn arm_at(counter: u64) {
    apic().arm_at(&Hardware, counter);
}

pub fn disarm() {
    apic().disarm(&Hardware);
}

/// Arms the timer for a number of its ticks, whichever they are: for kernel tests.
pub fn arm_ticks(ticks: u32) {
    if has_tsc_deadline() { arm_at(time::counter() + u64::from(ticks)) } else { arm_after(ticks) }
}

/// Which vector the timer raises: kernel tests redirect it.
pub fn set_timer_vector(vector: u8) {
    apic().set_timer_vector(&Hardware, vector);
}

/// Ticks left of the armed one-shot timer.
pub fn timer_left() -> u32 {
    apic().timer_left(&Hardware)
}

/// Whether a CPU can be sent anything.
pub fn reaches(apic_id: u32) -> bool {
    apic().reaches(apic_id)
}

fn send(apic_id: u32, message: Message) {
    exits::ipi();
    apic().send(&Hardware, apic_id, message);
}

/// Sends `vector` to another CPU. Interrupts must be off: the two ICR halves belong together.
pub fn send_ipi(apic_id: u32, vector: u8) {
    send(apic_id, Message::Vector(vector));
}

pub fn send_nmi(apic_id: u32) {
    send(apic_id, Message::Nmi);
}

pub fn send_init(apic_id: u32) {
    send(apic_id, Message::Init);
}

/// Start-up at physical page `page` (address `page << 12`).
pub fn send_startup(apic_id: u32, page: u8) {
    send(apic_id, Message::Startup(page));
}

/// Stops every other CPU by NMI, for a panic.
pub fn stop_others() {
    let me = this_cpu().index.get() as usize;
    for index in (0..percpu::online_count()).filter(|&index| index != me) {
        if let Some(other) = percpu::cpu(index) {
            send_nmi(other.apic_id.get());
        }
    }
}
