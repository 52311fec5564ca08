//! KVM's paravirtual clock: a structure per CPU that the host writes, by which the time stamp counter
//! becomes nanoseconds since the machine's start, and one for the wall clock at that start.
//!
//! The host makes `version` odd while it writes. A reader takes what it read only between two equal,
//! even versions (Linux, Documentation/virt/kvm/x86/msr.rst). Without [`STABLE`], the CPUs' structures
//! may disagree a little, and a later reading on another CPU may be earlier.
use crate::cpuid::{Cpuid, Hypervisor};

const FEATURES: u32 = 0x4000_0001;
const FEATURE_CLOCKSOURCE: u32 = 1 << 0;
const FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
/// Bit 0 of what is written to [`Msrs::system_time`].
pub const ENABLE: u64 = 1;
/// In the flags: one time for all CPUs.
pub const STABLE: u8 = 1;
/// A CPU's structure: it must not cross a page.
pub const TIME_BYTES: usize = 32;
pub const WALL_BYTES: usize = 12;
/// The host writes a few words; one that stays odd for long has died in between.
const PATIENCE: u32 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Where the host is told the physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msrs {
    pub wall_clock: u32,
    pub system_time: u32,
}

/// The registers, if the host has the clock.
pub fn msrs(cpu: &impl Cpuid) -> Option<Msrs> {
    if cpu.hypervisor() != Some(Hypervisor::Kvm) {
        return None;
    }
    let features = cpu.leaf(FEATURES, 0)[0];
    if features & FEATURE_CLOCKSOURCE2 != 0 {
        Some(Msrs { wall_clock: 0x4b56_4d00, system_time: 0x4b56_4d01 })
    } else if features & FEATURE_CLOCKSOURCE != 0 {
        Some(Msrs { wall_clock: 0x11, system_time: 0x12 })
    } else {
        None
    }
}

/// Words of a structure that changes while it is read; loads are not reordered.
pub trait Shared {
    fn word(&self, index: usize) -> u32;
}

/// A consistent copy of a CPU's structure (`pvclock_vcpu_time_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    tsc_timestamp: u64,
    system_time_ns: u64,
    multiplier: u32,
    shift: i8,
    pub flags: u8,
}

impl Time {
    /// None: nothing was written yet, or never completely.
    pub fn read(shared: &impl Shared) -> Option<Self> {
        let long = |index: usize| u64::from(shared.word(index)) | u64::from(shared.word(index + 1)) << 32;
        consistent(shared, || {
            let last = shared.word(7);
            Self {
                tsc_timestamp: long(2),
                system_time_ns: long(4),
                multiplier: shared.word(6),
                shift: last as u8 as i8,
                flags: (last >> 8) as u8,
            }
        })
        .filter(|time| time.multiplier != 0 && (-31..=31).contains(&time.shift))
    }

    /// Nanoseconds since the machine's start at this value of the CPU's counter.
    pub fn ns(&self, counter: u64) -> u64 {
        // The host may have written just after the counter was read.
        let ticks = counter.saturating_sub(self.tsc_timestamp);
        let shifted = if self.shift < 0 { ticks >> -self.shift } else { ticks << self.shift };
        let ns = (u128::from(shifted) * u128::from(self.multiplier)) >> 32;
        self.system_time_ns.wrapping_add(ns as u64)
    }

    /// Counter ticks a second.
    pub fn hz(&self) -> u64 {
        let scaled = (u128::from(NS_PER_S) << 64) / u128::from(self.multiplier);
        let ticks = if self.shift < 0 { scaled << -self.shift } else { scaled >> self.shift };
        (ticks >> 32) as u64
    }

    pub fn is_stable(&self) -> bool {
        self.flags & STABLE != 0
    }
}

/// The wall clock at the machine's start, ns since 1970 (`pvclock_wall_clock`).
pub fn wall_clock_ns(shared: &impl Shared) -> Option<u64> {
    let read = || u64::from(shared.word(1)) * NS_PER_S + u64::from(shared.word(2));
    consistent(shared, read).filter(|&ns| ns != 0)
}

fn consistent<T>(shared: &impl Shared, read: impl Fn() -> T) -> Option<T> {
    for _ in 0..PATIENCE {
        let version = shared.word(0);
        if version == 0 {
            return None;
        }
        let value = read();
        if version.is_multiple_of(2) && shared.word(0) == version {
            return Some(value);
        }
        core::hint::spin_loop();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::cpuid::fake::FakeCpuid;

    /// A structure that the host writes anew, word by word, while the first reads go on.
    struct Torn {
        words: RefCell<[u32; 8]>,
        pending: RefCell<Vec<(usize, u32)>>,
        reads: Cell<u32>,
    }

    impl Torn {
        fn new(words: [u32; 8], writes: Vec<(usize, u32)>) -> Self {
            Self { words: RefCell::new(words), pending: RefCell::new(writes), reads: Cell::new(0) }
        }
    }

    impl Shared for Torn {
        fn word(&self, index: usize) -> u32 {
            self.reads.set(self.reads.get() + 1);
            let value = self.words.borrow()[index];
            let mut pending = self.pending.borrow_mut();
            if !pending.is_empty() {
                let (at, new) = pending.remove(0);
                self.words.borrow_mut()[at] = new;
            }
            value
        }
    }

    fn words(version: u32, tsc: u64, ns: u64, multiplier: u32, shift: i8, flags: u8) -> [u32; 8] {
        let last = u32::from(shift as u8) | u32::from(flags) << 8;
        [version, 0, tsc as u32, (tsc >> 32) as u32, ns as u32, (ns >> 32) as u32, multiplier, last]
    }

    /// 2.5 GHz: 0.4 ns a tick is 0.8 of half a tick.
    const MULTIPLIER: u32 = 3_435_973_837;

    #[test]
    fn ticks_become_nanoseconds() {
        let time = Time::read(&Torn::new(words(2, 1 << 40, 5_000, MULTIPLIER, -1, STABLE), vec![])).unwrap();
        assert_eq!(time.ns((1 << 40) + 2_500_000_000), 1_000_005_000);
        assert_eq!(time.ns(1 << 40), 5_000);
        assert_eq!(time.ns(0), 5_000, "a counter from before the structure was written");
        assert_eq!(time.hz() / 1000, 2_500_000 - 1);
        assert!(time.is_stable());
        // Slower than 1 GHz: shifted to the left.
        let slow = Time::read(&Torn::new(words(2, 0, 0, 1 << 31, 2, 0), vec![])).unwrap();
        assert_eq!((slow.ns(500), slow.hz()), (1_000, 500_000_000));
        assert!(!slow.is_stable());
    }

    #[test]
    fn a_structure_that_is_being_written_is_read_again() {
        let before = words(2, 1000, 10, 1 << 31, 0, STABLE);
        let after = words(4, 9000, 90, 1 << 31, 0, STABLE);
        for delay in 0..16 {
            let mut writes = vec![(1, 0); delay];
            writes.push((0, 3));
            writes.extend((1..8).map(|at| (at, after[at])));
            writes.push((0, 4));
            let shared = Torn::new(before, writes);
            let time = Time::read(&shared).unwrap();
            assert!(matches!((time.tsc_timestamp, time.system_time_ns), (1000, 10) | (9000, 90)), "delay {delay}");
        }
    }

    #[test]
    fn a_structure_never_written_or_nonsense_is_refused() {
        assert_eq!(Time::read(&Torn::new([0; 8], vec![])), None);
        assert_eq!(Time::read(&Torn::new(words(3, 0, 0, 1, 0, 0), vec![])), None, "odd for ever");
        assert_eq!(Time::read(&Torn::new(words(2, 0, 0, 0, 0, 0), vec![])), None, "no scale");
        assert_eq!(Time::read(&Torn::new(words(2, 0, 0, 1, 99, 0), vec![])), None, "no shift");
    }

    #[test]
    fn the_wall_clock_is_seconds_and_nanoseconds() {
        let shared = Torn::new([2, 1_700_000_000, 5, 0, 0, 0, 0, 0], vec![]);
        assert_eq!(wall_clock_ns(&shared), Some(1_700_000_000_000_000_005));
        assert_eq!(wall_clock_ns(&Torn::new([0; 8], vec![])), None);
    }

    #[test]
    fn the_new_registers_come_before_the_old_ones_and_kvm_only_has_them() {
        let kvm = |features| FakeCpuid::under(b"KVMKVMKVM\0\0\0", 0).with(0x4000_0001, 0, [features, 0, 0, 0]);
        assert_eq!(msrs(&kvm(1 << 3 | 1)), Some(Msrs { wall_clock: 0x4b56_4d00, system_time: 0x4b56_4d01 }));
        assert_eq!(msrs(&kvm(1)), Some(Msrs { wall_clock: 0x11, system_time: 0x12 }));
        assert_eq!(msrs(&kvm(1 << 24)), None);
        assert_eq!(msrs(&FakeCpuid::under(b"KVMKVMKVM\0\0\0", 0x4000_0000)), None);
        let other = FakeCpuid::under(b"VMwareVMware", 0).with(0x4000_0001, 0, [u32::MAX; 4]);
        assert_eq!(msrs(&other), None);
    }
}
