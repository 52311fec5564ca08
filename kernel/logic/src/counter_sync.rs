//! Whether a CPU's time stamp counter agrees with the boot CPU's, and by how much it is off if not.
//!
//! While a CPU starts, both publish their counters and look at the other's, without waiting for each other: a
//! host may take either away at any time. What the boot CPU has published was its counter at some earlier
//! moment, so its counter is ahead of the other by at least what the other sees; and by at most what it sees
//! itself of the other. Only a difference that these bounds prove is believed.
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Two CPUs that compare their counters. 0: nothing was published yet.
pub struct Meeting {
    boot: AtomicU64,
    other: AtomicU64,
    /// The boot CPU's counter is ahead by at least, by at most so much.
    least: AtomicI64,
    most: AtomicI64,
}

impl Default for Meeting {
    fn default() -> Self {
        Self::new()
    }
}

impl Meeting {
    pub const fn new() -> Self {
        let (boot, other) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { boot, other, least: AtomicI64::new(i64::MIN), most: AtomicI64::new(i64::MAX) }
    }

    /// The boot CPU's part. `counter` reads not before what was asked for before it.
    pub fn look_as_boot(&self, counter: impl Fn() -> u64) {
        let other = self.other.load(Ordering::Acquire);
        let own = counter();
        if other != 0 {
            self.most.fetch_min(own.wrapping_sub(other) as i64, Ordering::Relaxed);
        }
        self.boot.store(own, Ordering::Release);
    }

    /// The other CPU's part.
    pub fn look_as_other(&self, counter: impl Fn() -> u64) {
        let boot = self.boot.load(Ordering::Acquire);
        let own = counter();
        if boot != 0 {
            self.least.fetch_max(boot.wrapping_sub(own) as i64, Ordering::Relaxed);
        }
        self.other.store(own, Ordering::Release);
    }

    /// By how much the boot CPU's counter is ahead; negative: behind. None: they may well agree.
    pub fn difference(&self) -> Option<i64> {
        let (least, most) = (self.least.load(Ordering::Relaxed), self.most.load(Ordering::Relaxed));
        // One side may have seen nothing: then the other's bound is all there is.
        match (least > 0, most < 0) {
            (false, false) => None,
            (true, _) if most == i64::MAX => Some(least),
            (_, true) if least == i64::MIN => Some(most),
            _ => Some(least.midpoint(most)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::random::Stream;

    /// Looks of both in random order, with random times between; the boot CPU is ahead by `ahead`.
    fn meet(seed: u64, ahead: i64) -> Meeting {
        let mut random = Stream::new(seed);
        let time = Cell::new(1_000_000_000_000 + random.below(1 << 40));
        let meeting = Meeting::new();
        for _ in 0..random.below(200) + 2 {
            // Reading the counter itself takes time; now and then the host takes the CPU away.
            let mut steps = [random.below(100), random.below(100)];
            if random.below(20) == 0 {
                steps[random.below(2) as usize] += 1_000_000;
            }
            let read = |offset: i64| {
                time.set(time.get() + steps[0]);
                let value = time.get().wrapping_add_signed(offset);
                time.set(time.get() + steps[1]);
                value
            };
            match random.below(2) {
                0 => meeting.look_as_boot(|| read(ahead)),
                _ => meeting.look_as_other(|| read(0)),
            }
        }
        meeting
    }

    #[test]
    fn counters_that_agree_are_never_thought_to_differ() {
        for seed in 0..5000 {
            assert_eq!(meet(seed, 0).difference(), None, "seed {seed}");
        }
    }

    #[test]
    fn a_difference_is_found_and_its_size_too() {
        for seed in 0..5000 {
            for ahead in [1_000_000_000, -1_000_000_000, 40_000_000_000_000] {
                let meeting = meet(seed, ahead);
                let sides = [&meeting.boot, &meeting.other].map(|side| side.load(Ordering::Relaxed) != 0);
                match meeting.difference() {
                    Some(found) => assert!(found.abs_diff(ahead) < 200_000_000, "seed {seed}: {found}"),
                    None => assert!(
                        !sides[0]
                            || !sides[1]
                            || meeting.least.load(Ordering::Relaxed) == i64::MIN
                            || meeting.most.load(Ordering::Relaxed) == i64::MAX,
                        "seed {seed}"
                    ),
                }
            }
        }
        // Usually both have looked often, and it is known well.
        let found = meet(1, 1_000_000).difference().unwrap();
        assert!(found.abs_diff(1_000_000) < 200, "{found}");
    }
}
