//! Rates from chosen CPUID leaves, and measured on a machine whose host takes the CPU away at times.
use std::cell::{Cell, RefCell};

use super::*;
use crate::{cpuid::fake::FakeCpuid, random::Stream};

const KVM: &[u8; 12] = b"KVMKVMKVM\0\0\0";

#[test]
fn the_best_source_is_asked_first() {
    let all = FakeCpuid::under(KVM, 0)
        .with(TIMING, 0, [2_400_000, 1_000_000, 0, 0])
        .with(0x15, 0, [2, 200, 25_000_000, 0])
        .with(0x16, 0, [2_600, 0, 0, 0]);
    assert_eq!(known(&all, Some(2_399_999_000)), Some((2_399_999_000, Source::Pvclock)));
    assert_eq!(known(&all, None), Some((2_400_000_000, Source::TimingLeaf)));
    let mut bare = all.clone();
    bare.0.insert((1, 0), [0; 4]);
    assert_eq!(known(&bare, None), Some((2_500_000_000, Source::CrystalLeaf)));
    // A crystal of unknown frequency, as on many desktop CPUs.
    let no_crystal = bare.with(0x15, 0, [2, 200, 0, 0]);
    assert_eq!(known(&no_crystal, None), Some((2_600_000_000, Source::FrequencyLeaf)));
    assert_eq!(known(&FakeCpuid::under(b"TCGTCGTCGTCG", 0x4000_0001), None), None);
}

#[test]
fn nonsense_in_a_leaf_is_passed_over() {
    let zeros = FakeCpuid::under(KVM, 0).with(TIMING, 0, [0; 4]).with(0x15, 0, [0, 5, 5, 0]).with(0x16, 0, [0; 4]);
    assert_eq!(known(&zeros, Some(0)), None);
    // Hyper-V has something else in the leaf of that number.
    let other = FakeCpuid::under(b"Microsoft Hv", 0).with(TIMING, 0, [2_000_000, 7, 0, 0]);
    assert_eq!((known(&other, None), known_apic_hz(&other)), (None, None));
}

#[test]
fn the_apic_timers_rate_comes_from_the_host_or_the_crystal() {
    assert_eq!(known_apic_hz(&FakeCpuid::under(KVM, 0x4000_0001)), Some(1_000_000_000));
    let told = FakeCpuid::under(KVM, 0).with(TIMING, 0, [2_400_000, 25_000, 0, 0]);
    assert_eq!(known_apic_hz(&told), Some(25_000_000));
    assert_eq!(known_apic_hz(&FakeCpuid::default().with(0x15, 0, [2, 200, 24_000_000, 0])), Some(24_000_000));
    assert_eq!(known_apic_hz(&FakeCpuid::default()), None);
}

#[test]
fn a_scale_neither_drifts_nor_steps_when_it_is_refined() {
    let scale = Scale::of_hz(2_100_000_000);
    assert_eq!(scale.ns(2_100_000_000 * 1000) / 1000, 1_000_000_000 - 1);
    let now = 210_000_000;
    let better = scale.refined(now, 2_099_000_000);
    assert_eq!(better.ns(now), scale.ns(now));
    assert!(better.ns(now + 1) >= scale.ns(now));
    // A task that has run since before: its slice is not over in a century.
    let before = better.ns(now) - better.ns(now - 2_099_000);
    assert!((1_000_000..=1_000_001).contains(&before), "{before}");
    let second = better.ns(now + 2_099_000_000) - better.ns(now);
    assert!((999_999_998..=1_000_000_000).contains(&second), "{second}");
}

#[test]
fn a_timer_is_armed_for_no_less_than_the_time_asked_for() {
    let mut random = Stream::new(1);
    for _ in 0..10_000 {
        let hz = 1_000_000 + random.below(5_000_000_000);
        let ns = random.next_u64() >> random.below(64);
        let exact = (u128::from(ns) * u128::from(hz)).div_ceil(1_000_000_000);
        let ticks = u128::from(multiply_up(ns, ticks_per_ns(hz)));
        assert!(ticks >= exact.min(u128::from(u64::MAX)), "{ns} ns at {hz} Hz");
    }
}

/// A counter and a reference clock that run by one true time; each reading costs some of it, and now
/// and then the host takes the CPU away in between.
struct Machine {
    ns: Cell<u64>,
    /// Of the clock.
    readings: Cell<u32>,
    random: RefCell<Stream>,
    counter_hz: u64,
    clock_hz: u64,
    bits: u32,
    reading_ns: u64,
    stolen_ns: u64,
}

impl Machine {
    fn new(seed: u64) -> Self {
        let random = RefCell::new(Stream::new(seed));
        let ns = Cell::new(random.borrow_mut().below(10 * NS_PER_S));
        let (bits, reading_ns, stolen_ns) = (24, 900, 300_000);
        let readings = Cell::new(0);
        Self { ns, readings, random, counter_hz: 2_345_678_901, clock_hz: PM_TIMER_HZ, bits, reading_ns, stolen_ns }
    }

    fn pass(&self, ns: u64) {
        let stolen = if self.random.borrow_mut().below(20) == 0 { self.stolen_ns } else { 0 };
        self.ns.set(self.ns.get() + ns + stolen);
    }

    fn ticks(&self, hz: u64) -> u64 {
        (u128::from(self.ns.get()) * u128::from(hz) / u128::from(NS_PER_S)) as u64
    }

    /// How far off a rate is, in parts of a million.
    fn error(&self, hz: u64) -> u64 {
        hz.abs_diff(self.counter_hz) * 1_000_000 / self.counter_hz
    }
}

impl Reference for Machine {
    fn hz(&self) -> u64 {
        self.clock_hz
    }

    fn bits(&self) -> u32 {
        self.bits
    }

    fn counter(&self) -> u64 {
        self.pass(10);
        self.ticks(self.counter_hz)
    }

    fn clock(&self) -> u64 {
        self.pass(self.reading_ns / 2);
        let value = self.ticks(self.clock_hz) & (u64::MAX >> (64 - self.bits));
        self.pass(self.reading_ns / 2);
        self.readings.set(self.readings.get() + 1);
        value
    }

    fn wait(&self, ticks: u64) {
        self.pass((u128::from(ticks) * u128::from(NS_PER_S) / u128::from(self.counter_hz)) as u64);
    }
}

#[test]
fn a_rate_is_measured_within_half_a_millisecond_and_refined_later() {
    for seed in 0..200 {
        let mut machine = Machine::new(seed);
        machine.stolen_ns = 0;
        let start = machine.ns.get();
        let (hz, first) = measure(&machine).unwrap();
        assert!(machine.ns.get() - start < 500_000, "seed {seed}: took {} ns", machine.ns.get() - start);
        assert!(machine.error(hz) < 2_500, "seed {seed}: {hz} Hz");
        assert!(machine.readings.get() < 40, "{} readings, each an exit", machine.readings.get());
        machine.stolen_ns = 300_000;
        let (hz, _) = measure(&machine).unwrap();
        assert!(machine.error(hz) < 2_500, "seed {seed}: {hz} Hz with a busy host");
        let from_ns = machine.ns.get();
        let mut refinement = Refinement::new(first, from_ns);
        machine.pass(BASELINE_NS);
        let Refined::Rate(hz) = refinement.attempt(&machine, machine.ns.get()) else { panic!("seed {seed}") };
        assert!(machine.error(hz) < 20, "seed {seed}: {hz} Hz refined");
    }
}

#[test]
fn a_counter_or_a_clock_of_any_rate_is_measured_by_few_readings() {
    for (counter_hz, clock_hz, bits) in
        [(20_000_000, 1_000_000_000, 32), (1_000_000_000, 24_000_000, 32), (50_000_000_000, PM_TIMER_HZ, 24)]
    {
        let machine = Machine { counter_hz, clock_hz, bits, ..Machine::new(3) };
        let (hz, _) = measure(&machine).unwrap();
        assert!(machine.error(hz) < 2_500 && machine.readings.get() < 60, "{hz} Hz, {}", machine.readings.get());
    }
}

#[test]
fn a_refinement_that_comes_too_late_starts_anew() {
    // A 24-bit clock has wrapped meanwhile: the figure would be plausible and wrong.
    let machine = Machine::new(1);
    let (_, first) = measure(&machine).unwrap();
    let mut refinement = Refinement::new(first, machine.ns.get());
    machine.pass(10 * NS_PER_S);
    let now = machine.ns.get();
    assert_eq!(refinement.attempt(&machine, now), Refined::Later(now + BASELINE_NS));
    machine.pass(BASELINE_NS);
    let Refined::Rate(hz) = refinement.attempt(&machine, machine.ns.get()) else { panic!("no rate") };
    assert!(machine.error(hz) < 20, "{hz} Hz");
}

/// A clock that is not there reads as all ones.
struct Dead(Cell<u64>);

impl Reference for Dead {
    fn hz(&self) -> u64 {
        PM_TIMER_HZ
    }
    fn bits(&self) -> u32 {
        32
    }
    fn counter(&self) -> u64 {
        self.0.get()
    }
    fn clock(&self) -> u64 {
        u64::from(u32::MAX)
    }
    fn wait(&self, ticks: u64) {
        self.0.set(self.0.get() + ticks);
    }
}

#[test]
fn a_clock_that_stands_still_or_readings_that_are_always_slow_give_nothing() {
    let mut machine = Machine::new(1);
    machine.clock_hz = 1;
    assert_eq!(measure(&machine).map(|(hz, _)| hz), None);
    let dead = Dead(Cell::new(0));
    assert!(measure(&dead).is_none() && dead.0.get() < 1 << 28);
    let mut machine = Machine::new(2);
    let (_, first) = measure(&machine).unwrap();
    let mut refinement = Refinement::new(first, machine.ns.get());
    machine.reading_ns = 2_000_000;
    let mut last = Refined::Later(0);
    for _ in 0..Refinement::TRIES {
        machine.pass(BASELINE_NS);
        last = refinement.attempt(&machine, machine.ns.get());
    }
    assert_eq!(last, Refined::Never);
}
