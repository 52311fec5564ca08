//! How long an idle CPU polls before it halts, and how it says so to those who wake it.
//!
//! Halting and being interrupted out of it costs two exits of a virtual machine; polling costs the host
//! the time. As Linux's haltpoll, the window grows when a wake-up came soon after a halt, so that
//! polling would have caught it, and shrinks when none did.
//!
//! Beyond Linux: where the host has fewer processors than work, a virtual CPU that polls uses up its
//! share and is then itself not running when it is woken, and takes time from the CPU that would wake
//! it. It sees that by a gap in its own polling, and then halts at once for a while.
use core::sync::atomic::Ordering;

use crate::atomic::AtomicCell;

/// Never longer (`guest_halt_poll_ns`).
pub const LONGEST_NS: u64 = 200_000;
/// The shortest window that is not 0 (`guest_halt_poll_grow_start`).
const SHORTEST_NS: u64 = 50_000;

/// Longer between two looks: the host has taken the CPU away meanwhile.
pub const GAP_NS: u64 = 50_000;
/// For so many halts polling is left out after a first gap, and at most after many.
const FEWEST_SKIPPED: u32 = 128;
const MOST_SKIPPED: u32 = 32_768;

/// What became of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// There was something to do.
    Found,
    InVain,
    /// There was a gap of [`GAP_NS`] in it.
    TakenAway,
}

/// One CPU's window.
#[derive(Debug)]
pub struct PollWindow {
    ns: u64,
    /// Halts before it may open again.
    skip: u32,
    /// What `skip` will be after the next gap.
    penalty: u32,
}

impl Default for PollWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl PollWindow {
    pub const fn new() -> Self {
        Self { ns: 0, skip: 0, penalty: FEWEST_SKIPPED }
    }

    /// How long to poll before the next halt; 0: not at all.
    pub fn ns(&self) -> u64 {
        self.ns
    }

    pub fn polled(&mut self, how: Polled) {
        match how {
            Polled::Found => self.penalty = (self.penalty - self.penalty / 64).max(FEWEST_SKIPPED),
            Polled::InVain => {}
            Polled::TakenAway => {
                self.ns = 0;
                self.skip = self.penalty;
                self.penalty = (self.penalty * 4).min(MOST_SKIPPED);
            }
        }
    }

    /// The CPU halted, and was woken `idle_ns` after it became idle.
    pub fn woken_from_halt(&mut self, idle_ns: u64) {
        if self.skip > 0 {
            self.skip -= 1;
        } else if idle_ns > LONGEST_NS {
            // Not half of the shortest for ever: no window is better than one that catches nothing.
            self.ns = if self.ns <= SHORTEST_NS { 0 } else { self.ns / 2 };
        } else if idle_ns > self.ns {
            self.ns = (self.ns * 2).clamp(SHORTEST_NS, LONGEST_NS);
        }
    }
}

/// Whether a CPU looks at its mailbox by itself, so that whoever puts something in need not interrupt it.
///
/// Either side writes before it reads, sequentially consistently: the waker its mail and then this, the
/// poller this and then the mailbox. So when polling ends just as mail arrives, the waker sees the end,
/// or the poller the mail. `tests/models.rs` shows it in every interleaving.
pub struct Polling<A> {
    polls: A,
}

impl<A: AtomicCell<u8>> Polling<A> {
    /// The variable is to be 0.
    pub const fn new(polls: A) -> Self {
        Self { polls }
    }

    /// The CPU's own: from here on it looks at its mailbox again and again.
    pub fn begin(&self) {
        self.polls.store(1, Ordering::SeqCst);
    }

    /// The CPU's own. It must look once more before it halts.
    pub fn end(&self) {
        self.polls.swap(0, Ordering::SeqCst);
    }

    /// After the mail was put in: whether the CPU has to be interrupted to see it.
    pub fn must_interrupt(&self) -> bool {
        self.polls.load(Ordering::SeqCst) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(idle_ns: &[u64]) -> u64 {
        let mut window = PollWindow::new();
        idle_ns.iter().for_each(|&ns| window.woken_from_halt(ns));
        window.ns()
    }

    #[test]
    fn the_window_opens_for_early_wake_ups_and_is_bounded() {
        assert_eq!(after(&[]), 0);
        assert_eq!(after(&[20_000]), 50_000);
        assert_eq!(after(&[20_000, 80_000]), 100_000);
        assert_eq!(after(&[20_000, 80_000, 150_000]), LONGEST_NS);
        assert_eq!(after(&[20_000, 80_000, 150_000, 200_000, 200_000]), LONGEST_NS);
    }

    #[test]
    fn a_wake_up_within_the_window_leaves_it() {
        // The halt came early for another reason: polling longer would not have helped.
        assert_eq!(after(&[20_000, 30_000, 50_000]), 50_000);
    }

    #[test]
    fn the_window_closes_when_nothing_comes_soon() {
        let late = 10 * LONGEST_NS;
        assert_eq!(after(&[20_000, 80_000, 150_000, late]), 100_000);
        assert_eq!(after(&[20_000, 80_000, 150_000, late, late]), 50_000);
        assert_eq!(after(&[20_000, 80_000, 150_000, late, late, late]), 0);
        assert_eq!(after(&[late, late]), 0);
    }

    /// How many halts go by until it polls again.
    fn halts_until_open(window: &mut PollWindow) -> u32 {
        (0..)
            .find(|_| {
                window.woken_from_halt(20_000);
                window.ns() > 0
            })
            .unwrap()
    }

    #[test]
    fn a_host_without_time_to_spare_is_left_alone_longer_each_time() {
        let mut window = PollWindow::new();
        assert_eq!(halts_until_open(&mut window), 0);
        for halts in [128, 512, 2048, 8192, 32_768, 32_768] {
            window.polled(Polled::TakenAway);
            assert_eq!(window.ns(), 0);
            assert_eq!(halts_until_open(&mut window), halts);
        }
        // Polls that find something win its trust back.
        (0..1000).for_each(|_| window.polled(Polled::Found));
        window.polled(Polled::InVain);
        window.polled(Polled::TakenAway);
        assert_eq!(halts_until_open(&mut window), 128);
    }
}
