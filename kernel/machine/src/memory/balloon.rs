//! Frames that the host has for a while, and free memory that it need not keep: what a balloon driver
//! wants of memory.
//!
//! Lending takes frames as an application's page would, never the kernel's reserve, after clean cache
//! was asked for. When nothing else brings memory any more, reclaim asks the driver for some back.
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;

use super::{frames, paging::PAGE, reclaim};

/// Frame numbers of one piece of the list: a heap object, however many are lent.
const PIECE: usize = 512;
/// Frames after which [`Lent::gather`] looks again whether memory is short.
const LOOK_AGAIN: usize = 32;

/// The frames that the host has.
#[derive(Default)]
pub struct Lent {
    pieces: Vec<Vec<u32>>,
    count: u32,
}

impl Lent {
    pub const fn new() -> Self {
        Self { pieces: Vec::new(), count: 0 }
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    /// Notes that the host has these now.
    pub fn add(&mut self, frames: &[u32]) {
        for &frame in frames {
            match self.pieces.last_mut() {
                Some(piece) if piece.len() < PIECE => piece.push(frame),
                _ => {
                    let mut piece = Vec::with_capacity(PIECE);
                    piece.push(frame);
                    self.pieces.push(piece);
                }
            }
        }
        self.count += frames.len() as u32;
    }

    /// Takes as many as there are and `out` has room for off the list: how many.
    pub fn take(&mut self, out: &mut [u32]) -> usize {
        let mut taken = 0;
        while taken < out.len() {
            let Some(piece) = self.pieces.last_mut() else { break };
            match piece.pop() {
                Some(frame) => {
                    out[taken] = frame;
                    taken += 1;
                }
                None => drop(self.pieces.pop()),
            }
        }
        self.count -= taken as u32;
        taken
    }
}

/// Takes frames from memory, to lend them: how many. Fewer than `out` has room for: memory is short. In
/// task context, without locks.
pub fn gather(out: &mut [u32]) -> usize {
    let wanted = out.len();
    for (at, slot) in out.iter_mut().enumerate() {
        if at.is_multiple_of(LOOK_AGAIN) {
            while frames::is_short() {
                if !reclaim::reclaim_caches() {
                    return at;
                }
            }
        }
        let Ok(frame) = frames::take_page(false) else { return at };
        *slot = (frame / PAGE) as u32;
    }
    wanted
}

/// Gives frames back to memory that the host does not have any more.
pub fn scatter(numbers: &[u32]) {
    numbers.iter().for_each(|&number| frames::unreference(u64::from(number) * PAGE));
}

static WHEN_OUT: Once<fn() -> bool> = Once::new();

/// Registers who gets lent frames back when reclaim finds nothing else: called in task context without
/// locks; true: some came.
pub fn when_out_of_memory(deflate: fn() -> bool) {
    WHEN_OUT.call_once(|| deflate);
}

/// For reclaim.
pub fn deflate() -> bool {
    WHEN_OUT.get().is_some_and(|deflate| deflate())
}

/// The order of the smallest free block that is worth a report: 2 MiB, less on a machine whose free
/// memory may never be that much in one piece.
pub fn report_order() -> u32 {
    const MIB: u64 = 1 << 20;
    match frames::totals().0 / MIB {
        0..64 => 5,
        64..256 => 7,
        _ => 9,
    }
}

/// Somebody waits for memory to report, and has not been told.
static WATCHED: AtomicBool = AtomicBool::new(false);
static WATCHER: Once<(u32, fn())> = Once::new();

/// Registers who is told, by the next CPU that idles, when a free block of at least this order can be
/// reported; once for each [`watch`].
pub fn set_watcher(order: u32, tell: fn()) {
    WATCHER.call_once(|| (order, tell));
}

pub fn watch() {
    WATCHED.store(true, Ordering::Relaxed);
}

/// From the idle loop: no free is made to pay for the watching.
#[inline]
pub fn tell_watcher() {
    if !WATCHED.load(Ordering::Relaxed) {
        return;
    }
    if let Some(&(order, tell)) = WATCHER.get()
        && frames::has_unreported(order)
        && WATCHED.swap(false, Ordering::Relaxed)
    {
        tell();
    }
}
