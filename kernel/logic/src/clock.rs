//! Clocks: how fast the time stamp counter and the local APIC's timer run, and nanoseconds of ticks.
//!
//! Who knows the counter's rate best is asked first ([`known`]): the paravirtual clock's scale, the
//! hypervisor's timing leaf, CPUID 0x15, CPUID 0x16. Otherwise it is measured against a [`Reference`]
//! of the machine, for [`CALIBRATION_NS`] at boot, and again over a longer time later
//! ([`Refinement`]); a new rate holds from the moment it is set, so the clock makes no step
//! ([`Scale::refined`]).
use crate::cpuid::{Cpuid, Hypervisor};

const NS_PER_S: u64 = 1_000_000_000;
/// KVM's and QEMU's local APIC timer, divided by 1.
const EMULATED_APIC_HZ: u64 = NS_PER_S;
/// KVM's and VMware's timing leaf: kHz of the counter, kHz of the APIC's bus.
const TIMING: u32 = 0x4000_0010;
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// How long the counter is measured when nobody says its frequency.
pub const CALIBRATION_NS: u64 = 400_000;
/// How long the second measurement lasts at least; at most, so that a 24-bit reference has not wrapped.
pub const BASELINE_NS: u64 = 100_000_000;
const BASELINE_MAX_NS: u64 = 3 * NS_PER_S;
/// A counter outside these has not been measured, whatever the figures say.
const PLAUSIBLE_HZ: core::ops::RangeInclusive<u64> = 1_000_000..=100_000_000_000;

/// Ticks to nanoseconds: from a tick on, at a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    pub base_ticks: u64,
    pub base_ns: u64,
    /// 32.32 fixed point.
    pub ns_per_tick: u64,
}

impl Scale {
    pub const fn of_hz(hz: u64) -> Self {
        let ns_per_tick = ((NS_PER_S as u128) << 32) / hz as u128;
        Self { base_ticks: 0, base_ns: 0, ns_per_tick: ns_per_tick as u64 }
    }

    /// The same clock up to `ticks`, and at another rate from there.
    pub fn refined(&self, ticks: u64, hz: u64) -> Self {
        Self { base_ticks: ticks, base_ns: self.ns(ticks), ..Self::of_hz(hz) }
    }

    /// Also of ticks from before the base.
    #[inline]
    pub fn ns(&self, ticks: u64) -> u64 {
        let since_base = ticks.wrapping_sub(self.base_ticks) as i64;
        let ns = (i128::from(since_base) * i128::from(self.ns_per_tick as i64)) >> 32;
        self.base_ns.wrapping_add(ns as u64)
    }
}

/// Ticks of a nanosecond, 32.32 fixed point, rounded up: a timer must not come early.
pub const fn ticks_per_ns(hz: u64) -> u64 {
    ((hz as u128) << 32).div_ceil(NS_PER_S as u128) as u64
}

/// `value` times a 32.32 fixed point factor.
#[inline]
pub fn multiply(value: u64, factor: u64) -> u64 {
    ((u128::from(value) * u128::from(factor)) >> 32) as u64
}

/// As [`multiply`], rounded up, and at most `u64::MAX`.
#[inline]
pub fn multiply_up(value: u64, factor: u64) -> u64 {
    let product = u128::from(value) * u128::from(factor) + u128::from(u32::MAX);
    u64::try_from(product >> 32).unwrap_or(u64::MAX)
}

/// Who said a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Pvclock,
    TimingLeaf,
    CrystalLeaf,
    /// The base frequency as printed on the box: a start, to be refined.
    FrequencyLeaf,
    Measured,
}

/// The counter's rate as somebody says it. `pvclock_hz`: from [`crate::pvclock::Time::hz`].
pub fn known(cpu: &impl Cpuid, pvclock_hz: Option<u64>) -> Option<(u64, Source)> {
    let sources = [
        (pvclock_hz, Source::Pvclock),
        (timing_leaf(cpu).map(|leaf| u64::from(leaf[0]) * 1000), Source::TimingLeaf),
        (crystal_leaf_hz(cpu), Source::CrystalLeaf),
        (Some(u64::from(cpu.leaf(0x16, 0)[0] & 0xffff) * 1_000_000), Source::FrequencyLeaf),
    ];
    sources.into_iter().find_map(|(hz, source)| Some((hz.filter(|hz| PLAUSIBLE_HZ.contains(hz))?, source)))
}

/// The APIC timer's rate, if it is known. `None`: measure it.
pub fn known_apic_hz(cpu: &impl Cpuid) -> Option<u64> {
    let told = timing_leaf(cpu).map(|leaf| u64::from(leaf[1]) * 1000).filter(|&hz| hz != 0);
    told.or(match cpu.hypervisor() {
        Some(Hypervisor::Kvm | Hypervisor::Tcg) => Some(EMULATED_APIC_HZ),
        Some(_) => None,
        // SDM 11.5.4: the timer runs at the core crystal's frequency where CPUID says that.
        None => Some(u64::from(cpu.leaf(0x15, 0)[2])).filter(|&hz| hz != 0),
    })
}

fn timing_leaf(cpu: &impl Cpuid) -> Option<[u32; 4]> {
    // Others use the leaf's number for other things.
    matches!(cpu.hypervisor(), Some(Hypervisor::Kvm | Hypervisor::VMware)).then(|| cpu.leaf(TIMING, 0))
}

fn crystal_leaf_hz(cpu: &impl Cpuid) -> Option<u64> {
    let [denominator, numerator, crystal_hz, _] = cpu.leaf(0x15, 0).map(u64::from);
    (denominator != 0).then(|| crystal_hz * numerator / denominator)
}

/// A counter to be measured and a clock of known rate, both counting upwards.
pub trait Reference {
    /// Ticks of `clock` a second.
    fn hz(&self) -> u64;
    /// Bits that `clock` has before it wraps.
    fn bits(&self) -> u32;
    fn counter(&self) -> u64;
    /// A device's register, mostly: each reading is an exit from a virtual machine.
    fn clock(&self) -> u64;
    /// Lets so many ticks of the time stamp counter pass, without an exit.
    fn wait(&self, ticks: u64);
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    counter: u64,
    clock: u64,
    /// Counter ticks within which `clock` was read.
    window: u64,
}

impl Sample {
    /// Of several readings the one with the least time between, since a host may take the CPU away in
    /// the middle of any. Where the clock is slower than its reading, only those count that saw it tick.
    pub fn take(reference: &impl Reference) -> Self {
        const READINGS: u32 = 64;
        const ENOUGH: u32 = 8;
        let mut best = Self { counter: 0, clock: 0, window: u64::MAX };
        let mut last = reference.clock();
        let mut good = 0;
        for _ in 0..READINGS {
            let before = reference.counter();
            let clock = reference.clock();
            let window = reference.counter().wrapping_sub(before);
            if clock != last {
                good += 1;
                if window < best.window {
                    best = Self { counter: before.wrapping_add(window / 2), clock, window };
                }
            }
            if good == ENOUGH {
                break;
            }
            last = clock;
        }
        best
    }

    fn elapsed(&self, later: &Self, bits: u32) -> u64 {
        let mask = u64::MAX >> (64 - bits);
        later.clock.wrapping_sub(self.clock) & mask
    }

    /// The counter's rate between two samples, and how far off it may be, in parts of a million.
    pub fn rate(&self, later: &Self, reference: &impl Reference) -> Option<(u64, u64)> {
        if self.window == u64::MAX || later.window == u64::MAX {
            return None;
        }
        let (elapsed, ticks) = (self.elapsed(later, reference.bits()), later.counter.wrapping_sub(self.counter));
        if elapsed == 0 || ticks == 0 {
            return None;
        }
        let hz = u128::from(ticks) * u128::from(reference.hz()) / u128::from(elapsed);
        let hz = u64::try_from(hz).ok().filter(|hz| PLAUSIBLE_HZ.contains(hz))?;
        let uncertain = u128::from(self.window / 2 + later.window / 2 + hz / reference.hz());
        Some((hz, u64::try_from(uncertain * 1_000_000 / u128::from(ticks)).unwrap_or(u64::MAX)))
    }
}

/// A first measurement. None: the clock does not run.
pub fn measure(reference: &impl Reference) -> Option<(u64, Sample)> {
    /// A few microseconds of any counter.
    const FIRST_WAIT: u64 = 10_000;
    /// [`CALIBRATION_NS`] of the fastest counter: a clock that has not moved by then is dead.
    const PATIENCE: u64 = 1 << 26;
    let wanted = CALIBRATION_NS * reference.hz() / NS_PER_S;
    let from = Sample::take(reference);
    let (mut waited, mut wait) = (0, FIRST_WAIT);
    while wait <= PATIENCE {
        reference.wait(wait);
        waited += wait;
        let now = Sample { counter: 0, clock: reference.clock(), window: 0 };
        let elapsed = from.elapsed(&now, reference.bits());
        if elapsed >= wanted {
            let to = Sample::take(reference);
            return from.rate(&to, reference).map(|(hz, _)| (hz, from));
        }
        // Twice as long until enough has passed to tell how long the rest takes.
        wait = if elapsed > wanted / 32 { waited * (wanted - elapsed) / elapsed } else { waited }.max(FIRST_WAIT);
    }
    None
}

/// The second measurement, over a longer time.
#[derive(Clone, Copy, Debug)]
pub struct Refinement {
    from: Sample,
    from_ns: u64,
    tries: u32,
}

/// What came of an attempt at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refined {
    Rate(u64),
    /// Try again then.
    Later(u64),
    /// It will not become better.
    Never,
}

impl Refinement {
    const TRIES: u32 = 5;
    /// Parts of a million: ten times better than what [`CALIBRATION_NS`] gives.
    const GOOD: u64 = 200;

    pub fn new(from: Sample, from_ns: u64) -> Self {
        Self { from, from_ns, tries: 0 }
    }

    /// When to call [`Self::attempt`] first.
    pub fn due_ns(&self) -> u64 {
        self.from_ns + BASELINE_NS
    }

    pub fn attempt(&mut self, reference: &impl Reference, now_ns: u64) -> Refined {
        self.tries += 1;
        let sample = Sample::take(reference);
        let elapsed_ns = now_ns.saturating_sub(self.from_ns);
        if (BASELINE_NS..BASELINE_MAX_NS).contains(&elapsed_ns)
            && let Some((hz, error)) = self.from.rate(&sample, reference)
            && error <= Self::GOOD
        {
            return Refined::Rate(hz);
        }
        if self.tries >= Self::TRIES {
            return Refined::Never;
        }
        if elapsed_ns >= BASELINE_MAX_NS / 2 {
            // Too late for this baseline, or no good: from here anew.
            (self.from, self.from_ns) = (sample, now_ns);
        }
        Refined::Later(now_ns + BASELINE_NS)
    }
}

#[cfg(test)]
mod tests;
