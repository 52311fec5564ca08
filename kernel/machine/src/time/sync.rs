//! Time stamp counters that differ from CPU to CPU: noticed while a CPU starts, and made up for.
//!
//! Not where KVM's clock is there, which has a structure for each CPU. A machine on which a difference was
//! found reads its clock by a longer way from then on: with the CPU's offset, and never less than another
//! CPU has read, since the offset is known to some hundred ticks only.
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use logic::{clock::Scale, counter_sync::Meeting};

use super::{counter_in_order, pvclock};
use crate::cpu::percpu::{self, this_cpu};

/// Looks of each at least: some ten microseconds.
const LOOKS: u64 = 100;

static MEETINGS: [Meeting; percpu::MAX_CPUS] = [const { Meeting::new() }; percpu::MAX_CPUS];
/// What is to be added to a CPU's counter.
static OFFSETS: [AtomicI64; percpu::MAX_CPUS] = [const { AtomicI64::new(0) }; percpu::MAX_CPUS];
/// CPUs that have looked, and CPUs that may go on. They start one at a time.
static LOOKED: AtomicUsize = AtomicUsize::new(0);
static JUDGED: AtomicUsize = AtomicUsize::new(0);
static DIFFER: AtomicBool = AtomicBool::new(false);
static LATEST_NS: AtomicU64 = AtomicU64::new(0);

/// A starting CPU's part, before it reads the time.
pub fn meet_boot_cpu() {
    let index = this_cpu().index.get() as usize;
    if pvclock::is_there() {
        return;
    }
    let mut looks = 0;
    // On and on: the boot CPU may have been away during the first ones.
    while JUDGED.load(Ordering::Acquire) != index {
        MEETINGS[index].look_as_other(counter_in_order);
        looks += 1;
        if looks == LOOKS {
            LOOKED.store(index, Ordering::Release);
        }
    }
}

/// The boot CPU's part, again and again while it waits for CPU `index`. Some: that one's counter is off by so
/// many ticks, and the clock allows for it.
pub fn meet(index: usize) -> Option<i64> {
    if JUDGED.load(Ordering::Relaxed) == index {
        return None;
    }
    let has_looked = LOOKED.load(Ordering::Acquire) == index;
    let looks = if has_looked { LOOKS } else { 1 };
    (0..looks).for_each(|_| MEETINGS[index].look_as_boot(counter_in_order));
    if !has_looked {
        return None;
    }
    let difference = MEETINGS[index].difference();
    if let Some(ticks) = difference {
        OFFSETS[index].store(ticks, Ordering::Relaxed);
        DIFFER.store(true, Ordering::Relaxed);
        // Before it may go on: it reads the time at once.
        super::counters_differ();
    }
    JUDGED.store(index, Ordering::Release);
    difference
}

/// The time at a value of the calling CPU's counter.
pub fn in_step(scale: Scale, counter: u64) -> u64 {
    if !DIFFER.load(Ordering::Relaxed) {
        return scale.ns(counter);
    }
    let offset = OFFSETS[this_cpu().index.get() as usize].load(Ordering::Relaxed);
    let now = scale.ns(counter.wrapping_add_signed(offset));
    LATEST_NS.fetch_max(now, Ordering::Relaxed).max(now)
}

/// The calling CPU's counter, as that of CPU `index` has it.
pub fn counter_of(index: usize) -> u64 {
    let counter = super::counter();
    if !DIFFER.load(Ordering::Relaxed) {
        return counter;
    }
    let offset = |cpu: usize| OFFSETS[cpu].load(Ordering::Relaxed);
    counter.wrapping_add_signed(offset(this_cpu().index.get() as usize).wrapping_sub(offset(index)))
}
