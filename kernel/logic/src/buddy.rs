//! The buddy allocator's bookkeeping over frame numbers. It never touches the frames themselves.
//!
//! Blocks of 2^order frames, order 0 (4 KiB) to [`MAX_ORDER`] (4 MiB), aligned to their size by
//! absolute frame number. Free blocks of an order form a doubly linked list through the caller's
//! [`FrameLink`] array, one link a frame, of which only the links of free blocks' first frames are
//! ever written: adding 16 GiB touches 4,096 links, and zeroed memory is a valid initial state.
//!
//! A free block is *reported* if the host is known to hold no memory for it: it was never used, or a
//! balloon device was told ([`Buddy::take_unreported`]). Those are listed apart and given out last.
//!
//! # Locking
//! None inside; the owner's frame lock protects it.

/// Largest block: 1,024 frames.
pub const MAX_ORDER: usize = 10;
const ORDERS: usize = MAX_ORDER + 1;

/// Link indices have 28 bits: one tebibyte of frames.
pub const MAX_FRAMES: usize = (1 << 28) - 2;
const INDEX_MASK: u32 = (1 << 28) - 1;
const REPORTED: u32 = 1 << 31;

/// The state of one frame. All zero: not the first frame of a free block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FrameLink {
    /// Low 28 bits: index + 1 of the next free block, 0: none. Highest bit: the block is reported.
    next_and_reported: u32,
    /// Low 28 bits: index + 1 of the previous free block, 0: none. High 4 bits: order + 1, 0: not
    /// the first frame of a free block.
    previous_and_order: u32,
}

impl FrameLink {
    pub const ZERO: Self = Self { next_and_reported: 0, previous_and_order: 0 };

    fn order(self) -> Option<usize> {
        (self.previous_and_order >> 28).checked_sub(1).map(|order| order as usize)
    }

    fn next(self) -> u32 {
        self.next_and_reported & INDEX_MASK
    }

    fn set_next(&mut self, next: u32) {
        self.next_and_reported = (self.next_and_reported & !INDEX_MASK) | next;
    }

    fn reported(self) -> bool {
        self.next_and_reported & REPORTED != 0
    }

    fn previous(self) -> u32 {
        self.previous_and_order & INDEX_MASK
    }

    fn set_previous(&mut self, previous: u32) {
        self.previous_and_order = (self.previous_and_order & !INDEX_MASK) | previous;
    }
}

/// See the module's documentation.
pub struct Buddy<'a> {
    /// Link 0 is frame `base`.
    links: &'a mut [FrameLink],
    base: u64,
    /// Index + 1 of each order's first free block, of those not reported and of those reported.
    heads: [[u32; ORDERS]; 2],
    blocks: [[u32; ORDERS]; 2],
    free_frames: u64,
    total_frames: u64,
}

impl<'a> Buddy<'a> {
    /// Manages frames `base..base + links.len()`, none of which is free yet. Panics if `base` is no
    /// multiple of the largest block, or if there are more links than [`MAX_FRAMES`].
    pub fn new(base: u64, links: &'a mut [FrameLink]) -> Self {
        assert!(base.is_multiple_of(1 << MAX_ORDER) && links.len() <= MAX_FRAMES);
        Self { links, base, heads: [[0; ORDERS]; 2], blocks: [[0; ORDERS]; 2], free_frames: 0, total_frames: 0 }
    }

    /// Hands over frames that no range before held, and that nobody has used. Panics if they are outside the managed ones.
    pub fn add_range(&mut self, first: u64, frames: u64) {
        let Some(first) = first.checked_sub(self.base).filter(|_| frames > 0) else {
            assert!(frames == 0, "frames below the managed range");
            return;
        };
        let end = first + frames;
        assert!(end <= self.links.len() as u64, "frames above the managed range");
        self.total_frames += frames;
        // From the top down: low addresses come first in the lists, and are used first.
        let mut end = end as usize;
        let first = first as usize;
        while end > first {
            let order = (end.trailing_zeros() as usize).min((end - first).ilog2() as usize).min(MAX_ORDER);
            end -= 1 << order;
            self.give_back(end, order, true);
        }
    }

    /// First frame of a block of 2^`order` frames, aligned to its size. None: no block is large
    /// enough (or `order` is above [`MAX_ORDER`]).
    pub fn alloc(&mut self, order: usize) -> Option<u64> {
        let first = |reported: bool| (order..ORDERS).find(|&o| self.heads[usize::from(reported)][o] != 0);
        let (reported, from) = match first(false) {
            Some(from) => (false, from),
            None => (true, first(true)?),
        };
        let index = (self.heads[usize::from(reported)][from] - 1) as usize;
        self.unlink(index, from);
        for smaller in (order..from).rev() {
            self.link(index + (1 << smaller), smaller, reported);
        }
        self.free_frames -= 1 << order;
        Some(self.base + index as u64)
    }

    /// Takes a whole block of at most `most` order, to be given out frame by frame: the smallest there is,
    /// so that large blocks stay whole, else a part of a larger one. Its first frame and its order.
    pub fn alloc_for_pieces(&mut self, most: usize) -> Option<(u64, usize)> {
        let order = (0..=most).find(|&order| self.heads[0][order] != 0).unwrap_or(most);
        match self.alloc(order) {
            Some(frame) => Some((frame, order)),
            // What is left lies in smaller blocks that the host has not got.
            None => (0..order).rev().find_map(|order| Some((self.alloc(order)?, order))),
        }
    }

    /// Takes a block back that [`Buddy::alloc`] gave, whole or in aligned parts. Panics if the
    /// block is misaligned, not managed, or (as far as that is cheap to see) free already.
    pub fn free(&mut self, frame: u64, order: usize) {
        self.free_as(frame, order, false);
    }

    /// Takes a block that is not reported and has at least `least_order`, to report it: (frame, order).
    pub fn take_unreported(&mut self, least_order: usize) -> Option<(u64, usize)> {
        let order = (least_order..ORDERS).rev().find(|&o| self.heads[0][o] != 0)?;
        let index = (self.heads[0][order] - 1) as usize;
        self.unlink(index, order);
        self.free_frames -= 1 << order;
        Some((self.base + index as u64, order))
    }

    /// True if [`Buddy::take_unreported`] would find one.
    pub fn has_unreported(&self, least_order: usize) -> bool {
        (least_order..ORDERS).any(|order| self.heads[0][order] != 0)
    }

    /// As [`Buddy::free`], of a block that was reported and not used since.
    pub fn free_reported(&mut self, frame: u64, order: usize) {
        self.free_as(frame, order, true);
    }

    fn free_as(&mut self, frame: u64, order: usize, reported: bool) {
        let index = frame.checked_sub(self.base).expect("frame below the managed range") as usize;
        assert!(order <= MAX_ORDER && index.is_multiple_of(1 << order), "misaligned block {frame:#x}");
        assert!(index + (1 << order) <= self.links.len(), "frame above the managed range");
        assert!(self.links[index].order().is_none(), "double free of frame {frame:#x}");
        debug_assert!(!self.is_free(frame), "free of frame {frame:#x} inside a free block");
        self.give_back(index, order, reported);
    }

    /// True if the frame lies in a free block.
    pub fn is_free(&self, frame: u64) -> bool {
        let Some(index) = frame.checked_sub(self.base).filter(|&i| i < self.links.len() as u64) else { return false };
        (0..ORDERS).any(|order| {
            let first = index as usize & !((1 << order) - 1);
            self.links[first].order().is_some_and(|o| o >= order)
        })
    }

    pub fn free_frames(&self) -> u64 {
        self.free_frames
    }

    /// All frames that were ever added.
    pub fn total_frames(&self) -> u64 {
        self.total_frames
    }

    /// Free blocks of exactly this order.
    pub fn free_blocks(&self, order: usize) -> u32 {
        if order > MAX_ORDER { 0 } else { self.blocks[0][order] + self.blocks[1][order] }
    }

    /// Joins the block with its free buddies as far as that goes, and lists the result: as reported if
    /// all of it is.
    fn give_back(&mut self, mut index: usize, mut order: usize, mut reported: bool) {
        self.free_frames += 1 << order;
        while order < MAX_ORDER {
            let buddy = index ^ (1 << order);
            if self.links.get(buddy).and_then(|link| link.order()) != Some(order) {
                break;
            }
            reported &= self.links[buddy].reported();
            self.unlink(buddy, order);
            index &= buddy;
            order += 1;
        }
        self.link(index, order, reported);
    }

    fn link(&mut self, index: usize, order: usize, reported: bool) {
        let name = index as u32 + 1;
        let next = core::mem::replace(&mut self.heads[usize::from(reported)][order], name);
        let flag = if reported { REPORTED } else { 0 };
        self.links[index] = FrameLink { next_and_reported: next | flag, previous_and_order: (order as u32 + 1) << 28 };
        if next != 0 {
            self.links[next as usize - 1].set_previous(name);
        }
        self.blocks[usize::from(reported)][order] += 1;
    }

    fn unlink(&mut self, index: usize, order: usize) {
        let link = core::mem::take(&mut self.links[index]);
        let list = usize::from(link.reported());
        match link.previous() {
            0 => self.heads[list][order] = link.next(),
            previous => self.links[previous as usize - 1].set_next(link.next()),
        }
        if link.next() != 0 {
            self.links[link.next() as usize - 1].set_previous(link.previous());
        }
        self.blocks[list][order] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    const BASE: u64 = 1 << 20;

    #[test]
    fn sixteen_gib_touch_few_links() {
        let frames = 4 << 20;
        let mut links = vec![FrameLink::ZERO; frames];
        let mut buddy = Buddy::new(0, &mut links);
        buddy.add_range(1, frames as u64 - 1);
        assert_eq!(buddy.free_frames(), frames as u64 - 1);
        assert_eq!(buddy.free_blocks(MAX_ORDER), 4095);
        assert_eq!(buddy.alloc(0), Some(1), "low and small first");
        assert_eq!(buddy.alloc(MAX_ORDER), Some(1024));
        assert!(links.iter().filter(|link| **link != FrameLink::ZERO).count() < 4200);
    }

    #[test]
    fn everything_comes_back_together() {
        let mut links = vec![FrameLink::ZERO; 4096];
        let mut buddy = Buddy::new(BASE, &mut links);
        buddy.add_range(BASE, 3000);
        buddy.add_range(BASE + 3000, 1096);
        assert_eq!(buddy.free_blocks(MAX_ORDER), 4);
        let mut taken: Vec<u64> = std::iter::from_fn(|| buddy.alloc(0)).collect();
        assert_eq!((taken.len(), buddy.free_frames()), (4096, 0));
        let mut random = Stream::new(3);
        while !taken.is_empty() {
            let at = random.below(taken.len() as u64) as usize;
            buddy.free(taken.swap_remove(at), 0);
        }
        assert_eq!(buddy.free_blocks(MAX_ORDER), 4);
    }

    #[test]
    fn random_blocks_never_overlap() {
        for seed in 0..20 {
            let mut random = Stream::new(seed);
            let mut links = vec![FrameLink::ZERO; 5000];
            let mut buddy = Buddy::new(BASE, &mut links);
            // Two ranges with a hole, and a tail that is never handed over.
            buddy.add_range(BASE + 5, 1800);
            buddy.add_range(BASE + 2000, 2900);
            let managed = |f: u64| (BASE + 5..BASE + 1805).contains(&f) || (BASE + 2000..BASE + 4900).contains(&f);
            let mut owned = vec![false; 5000];
            let mut taken: Vec<(u64, usize)> = Vec::new();
            for _ in 0..3000 {
                let order = random.below(12) as usize;
                if random.below(2) == 0 || taken.is_empty() {
                    let Some(frame) = buddy.alloc(order) else { continue };
                    assert!(frame.is_multiple_of(1 << order));
                    for f in frame..frame + (1 << order) {
                        assert!(managed(f) && !std::mem::replace(&mut owned[(f - BASE) as usize], true));
                        assert!(!buddy.is_free(f));
                    }
                    taken.push((frame, order));
                } else {
                    let at = random.below(taken.len() as u64) as usize;
                    let (frame, order) = taken.swap_remove(at);
                    (frame..frame + (1 << order)).for_each(|f| owned[(f - BASE) as usize] = false);
                    if random.below(4) == 0 {
                        buddy.free_reported(frame, order);
                    // Now and then in two halves.
                    } else if order > 0 && random.below(3) == 0 {
                        buddy.free(frame + (1 << (order - 1)), order - 1);
                        buddy.free(frame, order - 1);
                    } else {
                        buddy.free(frame, order);
                    }
                }
                let used = owned.iter().filter(|o| **o).count() as u64;
                assert_eq!(buddy.free_frames(), 4700 - used);
                let listed: u64 = (0..=MAX_ORDER).map(|o| u64::from(buddy.free_blocks(o)) << o).sum();
                assert_eq!(listed, 4700 - used);
            }
        }
    }

    #[test]
    fn what_was_used_is_reported_once() {
        let mut links = vec![FrameLink::ZERO; 8192];
        let mut buddy = Buddy::new(BASE, &mut links);
        buddy.add_range(BASE, 8192);
        assert!(!buddy.has_unreported(0), "nobody has used any of it");
        let used: Vec<u64> = (0..3000).map(|_| buddy.alloc(0).unwrap()).collect();
        assert!(!buddy.has_unreported(0));
        used.iter().for_each(|&frame| buddy.free(frame, 0));
        let mut taken = Vec::new();
        while let Some((frame, order)) = buddy.take_unreported(9) {
            assert!(order >= 9 && frame.is_multiple_of(1 << order));
            taken.push((frame, order));
        }
        let frames: u64 = taken.iter().map(|(_, order)| 1 << order).sum();
        assert!((3000..=3072).contains(&frames), "{frames}");
        taken.iter().for_each(|&(frame, order)| buddy.free_reported(frame, order));
        assert!(!buddy.has_unreported(0));
        assert_eq!((buddy.free_frames(), buddy.free_blocks(MAX_ORDER)), (8192, 8));
        // One frame of it used again makes its block one to report, and that alone.
        let frame = buddy.alloc(0).unwrap();
        buddy.free(frame, 0);
        let (first, order) = buddy.take_unreported(9).unwrap();
        assert!((first..first + (1 << order)).contains(&frame));
        assert_eq!(buddy.take_unreported(9), None);
    }

    #[test]
    fn what_the_host_has_not_got_is_used_last() {
        let mut links = vec![FrameLink::ZERO; 4096];
        let mut buddy = Buddy::new(BASE, &mut links);
        buddy.add_range(BASE, 4096);
        let (first, second) = (buddy.alloc(10).unwrap(), buddy.alloc(10).unwrap());
        buddy.free(second, 10);
        for _ in 0..1024 {
            let frame = buddy.alloc(0).unwrap();
            assert!((second..second + 1024).contains(&frame), "{frame:#x}");
        }
        let fresh = buddy.alloc(0).unwrap();
        assert!(!(first..second + 1024).contains(&fresh));
    }

    #[test]
    fn pieces_come_from_the_smallest_block_first() {
        let mut links = vec![FrameLink::default(); 64];
        let mut buddy = Buddy::new(0, &mut links);
        buddy.add_range(1, 63);
        // Used once, so that the host has got them.
        let whole: Vec<_> = core::iter::from_fn(|| buddy.alloc(0)).collect();
        whole.into_iter().for_each(|frame| buddy.free(frame, 0));
        let orders: Vec<_> = core::iter::from_fn(|| buddy.alloc_for_pieces(4)).collect();
        assert_eq!(orders, [(1, 0), (2, 1), (4, 2), (8, 3), (16, 4), (32, 4), (48, 4)]);
        assert_eq!(buddy.free_frames(), 0);
        (1..64).for_each(|frame| buddy.free(frame, 0));
        assert_eq!(buddy.alloc(5), Some(32));
    }

    #[test]
    #[should_panic(expected = "double free")]
    fn double_free_is_caught() {
        let mut links = vec![FrameLink::ZERO; 1024];
        let mut buddy = Buddy::new(0, &mut links);
        buddy.add_range(0, 1024);
        let frame = buddy.alloc(3).unwrap();
        let _keeps_the_buddy_apart = buddy.alloc(3).unwrap();
        buddy.free(frame, 3);
        buddy.free(frame, 3);
    }
}
