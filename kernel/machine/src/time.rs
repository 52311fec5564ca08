#![allow(unsafe_code, reason = "reads the time stamp counter")]
//! Time: the time stamp counter as monotonic clock, the wall clock, and each CPU's one-shot timer.
//!
//! The counter's frequency comes from the hypervisor (KVM's leaf, CPUID 0x15) or is measured against
//! the APIC timer, which QEMU runs at 1 GHz. Tickless: a CPU's timer is armed for the nearest of its
//! deadlines and its running task's slice end, or not at all.
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{
    cpu::{apic, features},
    tasks,
};

/// QEMU's and KVM's local APIC timer, divided by 1.
const HYPERVISOR_APIC_HZ: u64 = 1_000_000_000;
/// How long the counter is measured when nobody says its frequency.
const CALIBRATION_NS: u64 = 400_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Nanoseconds per counter tick, 32.32 fixed point.
static NS_PER_TICK: AtomicU64 = AtomicU64::new(1 << 32);
/// APIC timer ticks per nanosecond, 32.32 fixed point.
static APIC_PER_NS: AtomicU64 = AtomicU64::new(1 << 32);
/// QEMU counts instructions, and the counter with them.
static EXACT: AtomicBool = AtomicBool::new(false);
/// Counter at monotonic zero.
static BASE: AtomicU64 = AtomicU64::new(0);
/// Wall clock at monotonic zero, ns since 1970.
static EPOCH_NS: AtomicU64 = AtomicU64::new(0);

#[inline]
pub fn counter() -> u64 {
    // SAFETY: RDTSC is always allowed at ring 0.
    unsafe { _rdtsc() }
}

fn scale(value: u64, factor: u64) -> u64 {
    ((u128::from(value) * u128::from(factor)) >> 32) as u64
}

/// Monotonic nanoseconds since boot.
#[inline]
pub fn now_ns() -> u64 {
    scale(counter().wrapping_sub(BASE.load(Ordering::Relaxed)), NS_PER_TICK.load(Ordering::Relaxed))
}

/// Counter ticks to nanoseconds.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    scale(ticks, NS_PER_TICK.load(Ordering::Relaxed))
}

pub fn realtime_ns() -> u64 {
    EPOCH_NS.load(Ordering::Relaxed) + now_ns()
}

/// Sets the wall clock: `epoch_ns` is now.
pub fn set_realtime(epoch_ns: u64) {
    EPOCH_NS.store(epoch_ns.saturating_sub(now_ns()), Ordering::Relaxed);
}

/// Finds the counter's frequency. The APIC must be on. In `exact` mode QEMU counts a virtual
/// nanosecond per instruction, and the counter with it: nothing to measure.
pub fn init(exact: bool) {
    EXACT.store(exact, Ordering::Relaxed);
    let hz = if exact { NS_PER_S } else { known_hz().unwrap_or_else(measure_hz) };
    log::info!("time stamp counter at {} kHz", hz / 1000);
    NS_PER_TICK.store(((u128::from(NS_PER_S) << 32) / u128::from(hz)) as u64, Ordering::Relaxed);
    APIC_PER_NS.store(((u128::from(HYPERVISOR_APIC_HZ) << 32) / u128::from(NS_PER_S)) as u64, Ordering::Relaxed);
    // Monotonic zero is the counter's: power-on, on a virtual machine.
    BASE.store(0, Ordering::Relaxed);
}

/// Whether this is the `exact` mode: a nanosecond is an instruction.
pub fn is_exact() -> bool {
    EXACT.load(Ordering::Relaxed)
}

/// The frequency, where the CPU or the hypervisor says it.
fn known_hz() -> Option<u64> {
    if features::hypervisor().as_ref().is_some_and(|name| name.starts_with(b"KVMKVMKVM")) {
        let (max, ..) = features::cpuid(0x4000_0000, 0);
        if max >= 0x4000_0010 {
            let (khz, ..) = features::cpuid(0x4000_0010, 0);
            if khz != 0 {
                return Some(u64::from(khz) * 1000);
            }
        }
    }
    if features::cpuid(0, 0).0 >= 0x15 {
        let (denominator, numerator, crystal_hz, _) = features::cpuid(0x15, 0);
        if denominator != 0 && numerator != 0 && crystal_hz != 0 {
            return Some(u64::from(crystal_hz) * u64::from(numerator) / u64::from(denominator));
        }
    }
    None
}

/// Measures the counter against the APIC timer.
fn measure_hz() -> u64 {
    let off = crate::cpu::lock::InterruptsOff::enter();
    apic::arm_timer(u32::MAX);
    let wait = (HYPERVISOR_APIC_HZ / NS_PER_S * CALIBRATION_NS) as u32;
    let start = both_clocks();
    while start.1 - apic::timer_now() < wait {}
    let end = both_clocks();
    apic::arm_timer(0);
    drop(off);
    let (ticks, elapsed) = (end.0 - start.0, start.1 - end.1);
    ((u128::from(ticks) * u128::from(HYPERVISOR_APIC_HZ)) / u128::from(elapsed)) as u64
}

/// (counter, APIC timer) at one moment: of several readings the one with the least time between, since
/// a host may take the CPU away in the middle of any.
fn both_clocks() -> (u64, u32) {
    const READINGS: u32 = 8;
    let mut best = (0, 0);
    let mut shortest = u64::MAX;
    for _ in 0..READINGS {
        let before = counter();
        let timer = apic::timer_now();
        let after = counter();
        if after - before < shortest {
            shortest = after - before;
            best = (before + (after - before) / 2, timer);
        }
    }
    best
}

/// Arms this CPU's timer for `deadline_ns`; None disarms it.
pub fn arm(deadline_ns: Option<u64>) {
    let ticks = match deadline_ns {
        None => 0,
        Some(deadline) => {
            let ns = deadline.saturating_sub(now_ns());
            scale(ns, APIC_PER_NS.load(Ordering::Relaxed)).clamp(1, u64::from(u32::MAX)) as u32
        }
    };
    apic::arm_timer(ticks);
}

/// The timer's interrupt, interrupts off.
pub fn timer_fired() {
    tasks::timer_fired(now_ns());
}

/// Waits without sleeping, at boot.
pub fn spin_ns(ns: u64) {
    let until = now_ns() + ns;
    while now_ns() < until {
        core::hint::spin_loop();
    }
}
