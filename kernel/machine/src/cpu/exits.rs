#![allow(unsafe_code, reason = "counts in per-CPU data by one instruction")]
//! Counts, for each CPU, what a hypervisor has to step in for: [`abi::exits`] says what belongs to it.
//!
//! The functions stand beside the few accesses to hardware there are: serial port, CMOS, PCI, power-off
//! by ports; APIC, I/O APIC and device windows in memory; x2APIC registers; the idle loop's halt; CPUID.
//! Not counted: what runs once in `boot/entry.S`, and the last words of a panic.
use core::{
    arch::asm,
    mem::offset_of,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use abi::exits::Exits;

use super::percpu::{self, PerCpu};

/// One counter for each kind, in the order of [`Exits::NAMES`].
pub type Counters = [AtomicU64; 6];

/// Whether the host wants to know, at the end.
static WANTED: AtomicBool = AtomicBool::new(false);

/// One instruction, so that an interrupt in between loses nothing. Each CPU installs its per-CPU data
/// before it does anything that counts.
#[inline(always)]
fn count<const KIND: usize>() {
    // SAFETY: the GS base points at this CPU's PerCpu, and the field is an array of six words.
    unsafe {
        asm!("inc qword ptr gs:[{}]", const offset_of!(PerCpu, exits) + 8 * KIND, options(nostack));
    }
}

#[inline(always)]
pub fn port() {
    count::<0>();
}

#[inline(always)]
pub fn mmio() {
    count::<1>();
}

#[inline(always)]
pub fn msr() {
    count::<2>();
}

#[inline(always)]
pub fn halt() {
    count::<3>();
}

/// How often the calling CPU has halted.
pub fn halts_here() -> u64 {
    percpu::this_cpu().exits[3].load(Ordering::Relaxed)
}

#[inline(always)]
pub fn ipi() {
    count::<4>();
}

#[inline(always)]
pub fn cpuid() {
    count::<5>();
}

/// Of all CPUs since power-on.
pub fn total() -> Exits {
    let mut sum = [0u64; 6];
    for cpu in (0..percpu::MAX_CPUS).filter_map(percpu::cpu) {
        for (sum, counter) in sum.iter_mut().zip(&cpu.exits) {
            *sum += counter.load(Ordering::Relaxed);
        }
    }
    Exits::from_values(sum)
}

/// Has the machine report its exits right before it ends.
pub fn report_at_end() {
    WANTED.store(true, Ordering::Relaxed);
}

pub fn are_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}
