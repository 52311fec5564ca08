#![allow(unsafe_code, reason = "tells KVM where its clock's structures are")]
//! KVM's paravirtual clock, where the host has it: `logic::pvclock` over this machine's registers.
//!
//! The structures are static, so the host may write them for as long as the machine lives.
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use logic::pvclock::{self, ENABLE, Msrs, Shared, Time};
use spin::Once;
use x86_64::registers::model_specific::Msr;

use crate::{
    cpu::{
        exits,
        features::ThisCpu,
        percpu::{self, this_cpu},
    },
    memory::paging,
};

/// Written by the host. The alignment keeps it within a page.
#[repr(C, align(32))]
struct Page([AtomicU32; 8]);

impl Page {
    const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; 8])
    }

    fn physical(&'static self) -> u64 {
        core::ptr::from_ref(self) as u64 - paging::KERNEL_BASE
    }
}

impl Shared for Page {
    fn word(&self, index: usize) -> u32 {
        self.0[index].load(Ordering::Acquire)
    }
}

const _: () = assert!(size_of::<Page>() == pvclock::TIME_BYTES && pvclock::WALL_BYTES <= pvclock::TIME_BYTES);

static TIMES: [Page; percpu::MAX_CPUS] = [const { Page::new() }; percpu::MAX_CPUS];
static WALL: Page = Page::new();
static MSRS: Once<Msrs> = Once::new();
/// The latest time given out, where the CPUs' clocks may disagree.
static LATEST_NS: AtomicU64 = AtomicU64::new(0);

/// Finds the clock and switches it on for the boot CPU.
pub fn init() {
    if let Some(msrs) = pvclock::msrs(&ThisCpu) {
        MSRS.call_once(|| msrs);
        init_cpu();
    }
}

/// Switches it on for the calling CPU, if the host has it.
pub fn init_cpu() {
    if let Some(msrs) = MSRS.get() {
        let page = &TIMES[this_cpu().index.get() as usize];
        exits::msr();
        // SAFETY: KVM has this register by its CPUID leaf; the structure is static, in RAM, and nobody
        // but the host writes it.
        unsafe { Msr::new(msrs.system_time).write(page.physical() | ENABLE) };
    }
}

/// The host has the clock.
pub fn is_there() -> bool {
    MSRS.get().is_some()
}

/// What the host says about the calling CPU's counter, which must not change CPUs meanwhile.
pub fn time() -> Option<Time> {
    MSRS.get()?;
    Time::read(&TIMES[this_cpu().index.get() as usize])
}

/// The host's time at the present value of the calling CPU's counter.
pub fn now_ns(counter: u64) -> Option<u64> {
    let time = time()?;
    let now = time.ns(counter);
    if time.is_stable() {
        return Some(now);
    }
    Some(LATEST_NS.fetch_max(now, Ordering::Relaxed).max(now))
}

/// The wall clock now, ns since 1970.
pub fn epoch_ns(counter: u64) -> Option<u64> {
    let msrs = MSRS.get()?;
    exits::msr();
    // SAFETY: as in `init_cpu`; the host writes the structure during this instruction.
    unsafe { Msr::new(msrs.wall_clock).write(WALL.physical()) };
    Some(pvclock::wall_clock_ns(&WALL)? + time()?.ns(counter))
}
