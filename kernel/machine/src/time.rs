#![allow(unsafe_code, reason = "reads the time stamp counter")]
//! Time: the time stamp counter as monotonic clock, the wall clock, and each CPU's timer.
//!
//! Who says how fast the counter runs is `logic::clock`'s matter. Where nobody does it is measured
//! against the APIC timer, and later refined against the ACPI timer, on machines that have one. On KVM
//! without an invariant counter every reading goes by the host's own structure ([`pvclock`]).
//! Tickless: a CPU's timer is armed for the nearest of its deadlines and its running task's slice end,
//! or not at all.
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use logic::{
    acpi::PmTimer,
    clock::{self, Refined, Refinement, Sample, Scale, Source, multiply, multiply_up, ticks_per_ns},
    cpuid::Cpuid as _,
};

use crate::{
    cpu::{
        apic,
        features::ThisCpu,
        lock::{InterruptsOff, IrqSpin},
    },
    tasks,
};

mod pvclock;
mod reference;
pub mod sync;

use reference::{ApicByPmTimer, ByApicTimer, ByPmTimer};

/// A TSC deadline is set no further ahead: KVM multiplies the distance by a million in 64 bits, and would
/// take one of years for any time at all. Who comes early is armed again.
const FURTHEST_NS: u64 = 600 * NS_PER_S;
/// QEMU's and KVM's local APIC timer; assumed where nobody says another until the ACPI timer does.
const ASSUMED_APIC_HZ: u64 = NS_PER_S;
const NS_PER_S: u64 = 1_000_000_000;

/// A [`Scale`] that is complete before it is the current one, and does not change from then on.
#[repr(align(64))]
struct SharedScale {
    base_ticks: AtomicU64,
    base_ns: AtomicU64,
    ns_per_tick: AtomicU64,
    /// The counter alone does not say the time: the host's structure does, or the CPUs' counters differ. The
    /// scale is right for durations.
    indirect: AtomicBool,
}

impl SharedScale {
    const fn new() -> Self {
        let one = AtomicU64::new(1 << 32);
        let (base_ticks, base_ns) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { base_ticks, base_ns, ns_per_tick: one, indirect: AtomicBool::new(false) }
    }

    #[inline]
    fn get(&self) -> Scale {
        Scale {
            base_ticks: self.base_ticks.load(Ordering::Relaxed),
            base_ns: self.base_ns.load(Ordering::Relaxed),
            ns_per_tick: self.ns_per_tick.load(Ordering::Relaxed),
        }
    }
}

/// Before [`init`]; the first; one by the ACPI timer, where the first is a guess; the refined one; one for
/// counters that differ.
static SCALES: [SharedScale; 5] = [const { SharedScale::new() }; 5];
static SCALES_USED: AtomicUsize = AtomicUsize::new(1);
static CURRENT: AtomicPtr<SharedScale> = AtomicPtr::new((&raw const SCALES).cast_mut().cast());
/// Ticks of the counter and of the APIC timer per nanosecond, 32.32 fixed point.
static TICKS_PER_NS: AtomicU64 = AtomicU64::new(1 << 32);
static APIC_PER_NS: AtomicU64 = AtomicU64::new(1 << 32);
/// QEMU counts instructions, and the counter with them.
static EXACT: AtomicBool = AtomicBool::new(false);
/// Wall clock at monotonic zero, ns since 1970.
static EPOCH_NS: AtomicU64 = AtomicU64::new(0);
/// Nobody who knows it has said the counter's rate; nor the APIC timer's.
static RATE_IS_MEASURED: AtomicBool = AtomicBool::new(false);
static APIC_IS_GUESSED: AtomicBool = AtomicBool::new(false);
static REFINEMENT: IrqSpin<Option<(ByPmTimer, Refinement)>> = IrqSpin::new(None);
/// When to look at it; `u64::MAX`: no more.
static REFINE_AT_NS: AtomicU64 = AtomicU64::new(u64::MAX);

#[inline]
pub fn counter() -> u64 {
    // SAFETY: RDTSC is always allowed at ring 0.
    unsafe { _rdtsc() }
}

#[inline]
fn shared_scale() -> &'static SharedScale {
    // SAFETY: only elements of `SCALES` are ever stored.
    unsafe { &*CURRENT.load(Ordering::Acquire) }
}

/// Monotonic nanoseconds since boot.
#[inline]
pub fn now_ns() -> u64 {
    let scale = shared_scale();
    if scale.indirect.load(Ordering::Relaxed) {
        return indirect_now_ns(scale);
    }
    scale.get().ns(counter())
}

/// As [`now_ns`], and not earlier than anything the caller has seen of other CPUs: what applications
/// read. The processor may read the counter ahead of what stands before it.
#[inline]
pub fn now_ns_in_order() -> u64 {
    fence();
    now_ns()
}

/// [`counter`], read after everything before it.
fn counter_in_order() -> u64 {
    fence();
    counter()
}

#[inline]
fn fence() {
    // SAFETY: a fence touches no memory and no registers.
    unsafe { core::arch::asm!("lfence", options(nostack, preserves_flags)) };
}

/// The kernel is not preemptible, so counter and structure are one CPU's. Out of line, but not rare: it is
/// every reading on KVM, unless the host shows an invariant counter.
#[inline(never)]
fn indirect_now_ns(scale: &SharedScale) -> u64 {
    let counter = counter();
    pvclock::now_ns(counter).unwrap_or_else(|| sync::in_step(scale.get(), counter))
}

/// The time of an earlier value of the calling CPU's counter.
#[inline]
pub fn ns_at(earlier: u64) -> u64 {
    let scale = shared_scale();
    if scale.indirect.load(Ordering::Relaxed) {
        return indirect_now_ns(scale).saturating_sub(ticks_to_ns(counter().wrapping_sub(earlier)));
    }
    scale.get().ns(earlier)
}

/// Counter ticks to nanoseconds: a duration.
#[inline]
pub fn ticks_to_ns(ticks: u64) -> u64 {
    multiply(ticks, shared_scale().ns_per_tick.load(Ordering::Relaxed))
}

pub fn realtime_ns() -> u64 {
    EPOCH_NS.load(Ordering::Relaxed) + now_ns_in_order()
}

/// Sets the wall clock: `epoch_ns` is now.
pub fn set_realtime(epoch_ns: u64) {
    EPOCH_NS.store(epoch_ns.saturating_sub(now_ns()), Ordering::Relaxed);
}

/// The wall clock, ns since 1970, where the hypervisor says it.
pub fn host_epoch_ns() -> Option<u64> {
    pvclock::epoch_ns(counter())
}

/// Whether this is the `exact` mode: a nanosecond is an instruction.
pub fn is_exact() -> bool {
    EXACT.load(Ordering::Relaxed)
}

// --- setting up ---------------------------------------------------------------------------------------

/// Finds the counter's frequency. The boot CPU's APIC must be on. In `exact` mode QEMU counts a virtual
/// nanosecond per instruction, and the counter with it: nothing to ask and nothing to measure.
pub fn init(exact: bool) {
    EXACT.store(exact, Ordering::Relaxed);
    if exact {
        return;
    }
    let _off = InterruptsOff::enter();
    pvclock::init();
    let host = pvclock::time();
    let apic_hz = clock::known_apic_hz(&ThisCpu);
    APIC_IS_GUESSED.store(apic_hz.is_none(), Ordering::Relaxed);
    let apic_hz = apic_hz.unwrap_or(ASSUMED_APIC_HZ);
    set_apic_rate(apic_hz);
    let (hz, source) = clock::known(&ThisCpu, host.map(|time| time.hz()))
        .unwrap_or_else(|| (measure_by_apic(apic_hz), Source::Measured));
    RATE_IS_MEASURED.store(matches!(source, Source::Measured | Source::FrequencyLeaf), Ordering::Relaxed);
    log::info!("time stamp counter at {} kHz ({source:?})", hz / 1000);
    // Monotonic zero is the counter's, which is power-on on a virtual machine; or the host's.
    let steady = ThisCpu.has_invariant_tsc() && host.is_some_and(|time| time.is_stable());
    TICKS_PER_NS.store(ticks_per_ns(hz), Ordering::Relaxed);
    publish(Scale::of_hz(hz), host.is_some() && !steady);
    apic::use_tsc_deadline();
}

/// What a CPU other than the boot CPU needs before it reads the time.
pub fn init_cpu() {
    pvclock::init_cpu();
}

/// The CPUs' counters were found to differ. A second measurement may come on another CPU than the first, so
/// there is none. On the boot CPU.
fn counters_differ() {
    let scale = shared_scale();
    *REFINEMENT.lock() = None;
    REFINE_AT_NS.store(u64::MAX, Ordering::Relaxed);
    if !scale.indirect.load(Ordering::Relaxed) {
        publish(scale.get(), true);
        // So that nobody reads less than what was read without looking at the others.
        now_ns();
    }
}

fn set_apic_rate(hz: u64) {
    APIC_PER_NS.store(ticks_per_ns(hz), Ordering::Relaxed);
}

fn publish(scale: Scale, indirect: bool) {
    let Some(shared) = SCALES.get(SCALES_USED.fetch_add(1, Ordering::Relaxed)) else { return };
    shared.base_ticks.store(scale.base_ticks, Ordering::Relaxed);
    shared.base_ns.store(scale.base_ns, Ordering::Relaxed);
    shared.ns_per_tick.store(scale.ns_per_tick, Ordering::Relaxed);
    shared.indirect.store(indirect, Ordering::Relaxed);
    CURRENT.store(core::ptr::from_ref(shared).cast_mut(), Ordering::Release);
}

/// The counter at another rate from now on, without a step.
fn change_rate(hz: u64) {
    let scale = shared_scale();
    TICKS_PER_NS.store(ticks_per_ns(hz), Ordering::Relaxed);
    publish(scale.get().refined(counter(), hz), scale.indirect.load(Ordering::Relaxed));
}

/// Measures the counter against the APIC timer, interrupts off.
fn measure_by_apic(apic_hz: u64) -> u64 {
    apic::arm_after(u32::MAX);
    let measured = clock::measure(&ByApicTimer { hz: apic_hz });
    apic::arm_after(0);
    measured.map_or_else(
        || {
            log::warn!("the APIC timer does not run: the time stamp counter's rate is a guess");
            NS_PER_S
        },
        |(hz, _)| hz,
    )
}

/// The machine's ACPI timer, if it has one: whatever was guessed is measured against it, and what was
/// measured is measured again later, over a longer time. On the boot CPU, before the others start.
pub fn set_reference(timer: Option<PmTimer>) {
    let Some(timer) = timer.and_then(ByPmTimer::new) else { return };
    let (is_measured, apic_is_guessed) =
        (RATE_IS_MEASURED.load(Ordering::Relaxed), APIC_IS_GUESSED.load(Ordering::Relaxed));
    if is_exact() || !is_measured && !apic_is_guessed {
        return;
    }
    let mut refinement = REFINEMENT.lock();
    let mut from = None;
    if apic_is_guessed {
        if is_measured {
            let Some((hz, sample)) = clock::measure(&timer) else { return };
            log::info!("time stamp counter at {} kHz (by the ACPI timer)", hz / 1000);
            change_rate(hz);
            from = Some(sample);
        }
        if !apic::has_tsc_deadline() {
            apic::arm_after(u32::MAX);
            if let Some((hz, _)) = clock::measure(&ApicByPmTimer(timer)) {
                log::info!("APIC timer at {} kHz", hz / 1000);
                set_apic_rate(hz);
            }
            apic::arm_after(0);
        }
    }
    if !is_measured {
        return;
    }
    let first = Refinement::new(from.unwrap_or_else(|| Sample::take(&timer)), now_ns());
    REFINE_AT_NS.store(first.due_ns(), Ordering::Relaxed);
    *refinement = Some((timer, first));
}

/// The clock's rate will not change any more.
pub fn is_settled() -> bool {
    REFINE_AT_NS.load(Ordering::Relaxed) == u64::MAX
}

/// The second measurement is due.
#[cold]
fn refine(now_ns: u64) {
    let mut refinement = REFINEMENT.lock();
    let Some((timer, attempt)) = refinement.as_mut() else { return };
    let next = match attempt.attempt(timer, now_ns) {
        Refined::Rate(hz) => {
            log::info!("time stamp counter at {} kHz (refined)", hz / 1000);
            change_rate(hz);
            u64::MAX
        }
        Refined::Later(at_ns) => at_ns,
        Refined::Never => u64::MAX,
    };
    if next == u64::MAX {
        *refinement = None;
    }
    REFINE_AT_NS.store(next, Ordering::Relaxed);
}

// --- each CPU's timer -----------------------------------------------------------------------------------

/// Arms this CPU's timer for `deadline_ns`; None disarms it.
pub fn arm(deadline_ns: Option<u64>) {
    let Some(deadline_ns) = deadline_ns else { return apic::disarm() };
    let ns = deadline_ns.saturating_sub(now_ns());
    if apic::has_tsc_deadline() {
        let ticks = multiply_up(ns.min(FURTHEST_NS), TICKS_PER_NS.load(Ordering::Relaxed));
        apic::arm_at(counter().saturating_add(ticks));
    } else {
        let ticks = multiply_up(ns, APIC_PER_NS.load(Ordering::Relaxed));
        apic::arm_after(ticks.clamp(1, u64::from(u32::MAX)) as u32);
    }
}

/// The timer's interrupt, interrupts off.
pub fn timer_fired() {
    let now_ns = now_ns();
    if now_ns >= REFINE_AT_NS.load(Ordering::Relaxed) {
        refine(now_ns);
    }
    tasks::timer_fired(now_ns);
}

/// Waits without sleeping, at boot.
pub fn spin_ns(ns: u64) {
    let until = now_ns() + ns;
    while now_ns() < until {
        core::hint::spin_loop();
    }
}
