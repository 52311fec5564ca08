//! Frames zeroed ahead: an idle CPU prepares what the next page faults would have to wait for.
//!
//! # Locking
//! The pool's lock is the innermost of memory's; filling zeroes outside of it.
use core::sync::atomic::{AtomicUsize, Ordering};

use super::frames;
use crate::cpu::lock::IrqSpin;

/// 1 MiB.
const POOL: usize = 256;

struct Pool {
    frames: [u64; POOL],
    count: usize,
}

static FRAMES: IrqSpin<Pool> = IrqSpin::new(Pool { frames: [0; POOL], count: 0 });
/// Length of the pool, for a look without the lock: exact mode never fills it.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Zeroes one frame ahead. False: there are enough, or memory is short. For the idle loop, which looks
/// for work after each; not in exact mode, where an idle CPU halts at once.
pub fn zero_ahead() -> bool {
    if COUNT.load(Ordering::Relaxed) == POOL || frames::is_short() {
        return false;
    }
    let Ok(frame) = frames::take_page(false) else { return false };
    frames::zero(frame);
    let mut pool = FRAMES.lock();
    let at = pool.count;
    if at == POOL {
        drop(pool);
        frames::unreference(frame);
        return false;
    }
    pool.frames[at] = frame;
    pool.count += 1;
    COUNT.store(pool.count, Ordering::Relaxed);
    true
}

/// A zeroed frame with reference count 1, if there is one.
#[inline]
pub fn take() -> Option<u64> {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let mut pool = FRAMES.lock();
    pool.count = pool.count.checked_sub(1)?;
    COUNT.store(pool.count, Ordering::Relaxed);
    Some(pool.frames[pool.count])
}

/// Gives the pool's frames back, for measurements without it.
pub fn release() {
    while let Some(frame) = take() {
        frames::unreference(frame);
    }
}

/// Frames in the pool.
pub fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}
