//! A hierarchical timer wheel: what a CPU's timer is armed for.
//!
//! Deadlines are nanoseconds and are kept exactly; the wheel only sorts them coarsely, as far as is
//! needed yet. A level has 64 slots; a slot of level 0 spans 1,024 ns, one of level *n* + 1 as much as
//! all of level *n*. Where a deadline belongs follows from the highest six-bit digit in which it
//! differs from the wheel's `base`, a time before which nothing is armed any more; nine levels hold
//! any 64-bit time. When time reaches a slot of a higher level, its nodes are spread over the levels
//! below, so each moves eight times at most.
//!
//! Most timers are cancelled soon, so the latest few wait outside the wheel: arming notes them in a
//! short list, cancelling strikes them out, and they come into the wheel when the list is full or the
//! nearest deadline is due.
//!
//! # Invariants
//! - Every node of the wheel lies in the slot that `base` and its deadline give. So all of a level comes
//!   before all of the next one, and the first slot in use of the first level in use has the nearest
//!   deadline of the wheel.
//! - Equal deadlines lie in one slot, in the order of their arming; slots of level 0 are sorted. What is
//!   outside was armed later than what is in the wheel.
//! - `nearest_ns` is not later than any deadline.
use alloc::vec::Vec;

const GRAIN_BITS: u32 = 10;
const DIGIT_BITS: u32 = 6;
const SLOTS_PER_LEVEL: usize = 1 << DIGIT_BITS;
const LEVELS: usize = (u64::BITS - GRAIN_BITS).div_ceil(DIGIT_BITS) as usize;
const SLOTS: usize = LEVELS * SLOTS_PER_LEVEL;
/// Timers outside the wheel.
const RECENT: usize = 16;
const NONE: u32 = u32::MAX;

/// Names an armed timer, for [`Timers::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId {
    index: u32,
    number: u64,
}

/// A place in a slot's circular list. The first [`SLOTS`] are the lists' heads; node *n*'s is number
/// *n* behind them.
#[derive(Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
}

struct Node<T> {
    deadline_ns: u64,
    /// Which arming this is; numbers never come again, so an old [`TimerId`] finds nothing.
    number: u64,
    /// None: the node is free.
    payload: Option<T>,
    /// Of an armed one: where in the list of the recent ones, or [`NONE`]: in the wheel. Of a free one:
    /// the next free one.
    place: u32,
}

/// Armed timers of one CPU, each with a payload. Equal deadlines fire in the order they were armed.
/// Memory grows to the most timers ever armed at once, and stays.
pub struct Timers<T> {
    nodes: Vec<Node<T>>,
    /// First free node.
    free: u32,
    recent_len: u32,
    nearest_ns: u64,
    last_number: u64,
    len: usize,
    /// Nodes in the order of their arming, [`NONE`] where one was cancelled.
    recent: [u32; RECENT],
    base_ns: u64,
    /// Which slots of a level have nodes.
    used: [u64; LEVELS],
    /// Empty until the first timer is armed.
    links: Vec<Link>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Timers<T> {
    pub const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free: NONE,
            recent_len: 0,
            nearest_ns: u64::MAX,
            last_number: 0,
            len: 0,
            recent: [NONE; RECENT],
            base_ns: 0,
            used: [0; LEVELS],
            links: Vec::new(),
        }
    }

    #[inline]
    pub fn arm(&mut self, deadline_ns: u64, payload: T) -> TimerId {
        if self.free as usize >= self.nodes.len() || self.recent_len as usize >= RECENT {
            self.make_room();
        }
        let (index, place) = (self.free, self.recent_len);
        self.last_number += 1;
        let number = self.last_number;
        if let Some(node) = self.nodes.get_mut(index as usize) {
            self.free = node.place;
            *node = Node { deadline_ns, number, payload: Some(payload), place };
        }
        self.recent[place as usize % RECENT] = index;
        self.recent_len = place + 1;
        self.nearest_ns = self.nearest_ns.min(deadline_ns);
        self.len += 1;
        TimerId { index, number }
    }

    /// The payload, if the timer has not fired yet.
    #[inline]
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        let node = self.nodes.get_mut(id.index as usize)?;
        if node.number != id.number {
            return None;
        }
        let payload = node.payload.take()?;
        let place = node.place;
        node.place = self.free;
        self.free = id.index;
        if let Some(entry) = self.recent.get_mut(place as usize) {
            *entry = NONE;
            self.recent_len -= u32::from(place + 1 == self.recent_len);
        } else {
            self.unlink(id.index);
        }
        self.len -= 1;
        if self.len == 0 {
            self.nearest_ns = u64::MAX;
        }
        Some(payload)
    }

    /// A time not later than the nearest deadline; `u64::MAX`: nothing is armed. It is the nearest
    /// deadline until that timer is cancelled, which does not search for the next one:
    /// [`Self::pop_due`] does so, if it is called at the time given here and finds nothing.
    #[inline]
    pub fn nearest_ns(&self) -> u64 {
        self.nearest_ns
    }

    /// The nearest deadline. Looks at every timer of a slot.
    pub fn next_deadline(&self) -> Option<u64> {
        let recent = self.recent[..self.recent_len as usize].iter();
        let outside = recent.filter_map(|&index| self.nodes.get(index as usize)).map(|node| node.deadline_ns).min();
        let Some((level, digit)) = self.first_slot() else { return outside };
        let head = (level * SLOTS_PER_LEVEL + digit) as u32;
        let first = self.links[head as usize].next;
        let mut nearest = self.deadline(first).min(outside.unwrap_or(u64::MAX));
        if level > 0 {
            let mut link = first;
            while link != head {
                nearest = nearest.min(self.deadline(link));
                link = self.links[link as usize].next;
            }
        }
        Some(nearest)
    }

    /// Takes the first timer that is due at `now_ns`.
    pub fn pop_due(&mut self, now_ns: u64) -> Option<T> {
        if now_ns < self.nearest_ns {
            return None;
        }
        self.take_in_recent();
        while let Some((level, digit)) = self.first_slot() {
            let start_ns = self.slot_start_ns(level, digit);
            if start_ns > now_ns {
                // Within its level, so that no node changes its slot.
                self.base_ns = self.base_ns.max(now_ns);
                break;
            }
            self.base_ns = self.base_ns.max(start_ns);
            let head = (level * SLOTS_PER_LEVEL + digit) as u32;
            if level > 0 {
                self.spread(head);
                continue;
            }
            let index = self.links[head as usize].next - SLOTS as u32;
            let node = &self.nodes[index as usize];
            if node.deadline_ns > now_ns {
                break;
            }
            self.nearest_ns = node.deadline_ns;
            return self.cancel(TimerId { index, number: node.number });
        }
        self.nearest_ns = self.next_deadline().unwrap_or(u64::MAX);
        None
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A free node, and a place among the recent ones.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self) {
        if self.recent_len as usize >= RECENT {
            self.take_in_recent();
        }
        if self.free == NONE {
            if self.links.is_empty() {
                self.links = (0..SLOTS as u32).map(|head| Link { next: head, previous: head }).collect();
            }
            self.free = self.nodes.len() as u32;
            self.nodes.push(Node { deadline_ns: 0, number: 0, payload: None, place: NONE });
            self.links.push(Link { next: 0, previous: 0 });
        }
    }

    // --- the wheel ---

    fn deadline(&self, link: u32) -> u64 {
        self.nodes[link as usize - SLOTS].deadline_ns
    }

    /// The first slot in use, as (level, digit).
    fn first_slot(&self) -> Option<(usize, usize)> {
        let level = self.used.iter().position(|&used| used != 0)?;
        Some((level, self.used[level].trailing_zeros() as usize))
    }

    /// When a slot begins: `base`'s digits above the level, then the slot's own.
    fn slot_start_ns(&self, level: usize, digit: usize) -> u64 {
        let shift = GRAIN_BITS + DIGIT_BITS * level as u32;
        let above = self.base_ns.checked_shr(shift + DIGIT_BITS).unwrap_or(0);
        (above << DIGIT_BITS | digit as u64) << shift
    }

    /// Brings what is outside into the wheel, in the order of its arming.
    #[inline(never)]
    fn take_in_recent(&mut self) {
        for place in 0..self.recent_len as usize {
            let index = self.recent[place];
            if let Some(node) = self.nodes.get_mut(index as usize) {
                node.place = NONE;
                let deadline_ns = node.deadline_ns;
                self.put(index + SLOTS as u32, deadline_ns);
            }
        }
        self.recent_len = 0;
    }

    /// Links a node into the slot of its deadline.
    fn put(&mut self, link: u32, deadline_ns: u64) {
        // What is overdue comes with what is due at once.
        let placed = deadline_ns.max(self.base_ns) >> GRAIN_BITS;
        let differs = placed ^ (self.base_ns >> GRAIN_BITS);
        let level = ((differs | 1).ilog2() / DIGIT_BITS) as usize;
        let digit = (placed >> (DIGIT_BITS * level as u32)) as usize % SLOTS_PER_LEVEL;
        self.used[level] |= 1 << digit;
        let head = (level * SLOTS_PER_LEVEL + digit) as u32;
        let mut previous = self.links[head as usize].previous;
        if level == 0 {
            while previous != head && self.deadline(previous) > deadline_ns {
                previous = self.links[previous as usize].previous;
            }
        }
        let before = &mut self.links[previous as usize];
        let next = before.next;
        before.next = link;
        self.links[next as usize].previous = link;
        self.links[link as usize] = Link { next, previous };
    }

    #[inline(never)]
    fn unlink(&mut self, index: u32) {
        let Link { next, previous } = self.links[index as usize + SLOTS];
        self.links[next as usize].previous = previous;
        self.links[previous as usize].next = next;
        if next == previous {
            // Alone on both sides: that is the head.
            self.used[next as usize / SLOTS_PER_LEVEL] &= !(1 << (next as usize % SLOTS_PER_LEVEL));
        }
    }

    /// Moves the nodes of a slot that `base` has reached to lower levels, in their order.
    fn spread(&mut self, head: u32) {
        let mut link = self.links[head as usize].next;
        self.links[head as usize] = Link { next: head, previous: head };
        self.used[head as usize / SLOTS_PER_LEVEL] &= !(1 << (head as usize % SLOTS_PER_LEVEL));
        while link != head {
            let next = self.links[link as usize].next;
            self.put(link, self.deadline(link));
            link = next;
        }
    }
}

#[cfg(test)]
mod tests;
