//! The search for a free range.
use super::{Backing, VmaTree};

/// What earlier top-down searches learned, so that a tightly packed top is not walked every time:
/// no gap of `[low, high)` that ends above `from` is longer than `largest_above`.
///
/// Mapping only shrinks gaps, so the statement stays true; unmapping calls
/// [`TopDownHint::freed_up_to`].
pub(super) struct TopDownHint {
    low: u64,
    high: u64,
    from: u64,
    largest_above: u64,
}

impl TopDownHint {
    pub(super) const fn new() -> Self {
        Self { low: 0, high: 0, from: u64::MAX, largest_above: 0 }
    }

    /// A gap that ends at `gap_end` has grown.
    pub(super) fn freed_up_to(&mut self, gap_end: u64) {
        self.from = self.from.max(gap_end);
    }
}

impl<B: Backing> VmaTree<B> {
    /// Start of a free range of `len` bytes within `[low, high)`, a multiple of `align` (a power of
    /// two): the highest one, or the lowest.
    pub fn find_gap(&mut self, len: u64, align: u64, low: u64, high: u64, top_down: bool) -> Option<u64> {
        if len == 0 || !align.is_power_of_two() || low >= high || len > high - low {
            return None;
        }
        if top_down { self.highest_gap(len, align, low, high) } else { self.lowest_gap(len, align, low, high) }
    }

    fn highest_gap(&mut self, len: u64, align: u64, low: u64, high: u64) -> Option<u64> {
        let known = self.hint.low == low && self.hint.high == high && len > self.hint.largest_above;
        let (mut gap_end, mut largest) =
            if known { (self.hint.from.min(high), self.hint.largest_above) } else { (high, 0) };
        let mut found = None;
        loop {
            let below = self.areas.range(..gap_end).next_back().map(|(_, vma)| (vma.start, vma.end));
            let gap_start = below.map_or(low, |(_, end)| end.max(low));
            let gap = gap_end.saturating_sub(gap_start);
            if gap >= len {
                let start = (gap_end - len) & !(align - 1);
                if start >= gap_start {
                    found = Some(start);
                    break;
                }
            }
            match below {
                Some((start, _)) if start > low => {
                    largest = largest.max(gap);
                    gap_end = start;
                }
                _ => break,
            }
        }
        // Gaps above `gap_end` have all been seen; the one that ends there has not been counted.
        (self.hint.low, self.hint.high, self.hint.from, self.hint.largest_above) = (low, high, gap_end, largest);
        found
    }

    fn lowest_gap(&self, len: u64, align: u64, low: u64, high: u64) -> Option<u64> {
        let fits = |from: u64, to: u64| {
            let start = from.checked_add(align - 1)? & !(align - 1);
            (start.checked_add(len)? <= to).then_some(start)
        };
        let mut gap_start = low;
        for vma in self.iter_range(low, high) {
            if let Some(start) = fits(gap_start, vma.start) {
                return Some(start);
            }
            gap_start = gap_start.max(vma.end);
        }
        fits(gap_start, high)
    }
}
