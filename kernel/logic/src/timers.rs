//! A hierarchical timer wheel: what a CPU's timer is armed for.
//!
//! Deadlines are nanoseconds and are kept exactly; the wheel only sorts them coarsely, as far as is
//! needed yet. A level has 64 slots; a slot of level 0 spans 1,024 ns, one of level *n* + 1 as much as
//! all of level *n*. Where a deadline belongs follows from the highest six-bit digit in which it
//! differs from the wheel's `base`, a time before which nothing is armed any more; nine levels hold
//! any 64-bit time. Arming and cancelling link and unlink one node. When time reaches a slot of a
//! higher level, its nodes are spread over the levels below, so each moves eight times at most, and
//! most timers, which are cancelled, never.
//!
//! # Invariants
//! - Every node lies in the slot that `base` and its deadline give. So all of a level comes before
//!   all of the next one, and the first slot in use of the first level in use has the nearest
//!   deadline.
//! - Equal deadlines lie in one slot, in the order of their arming; slots of level 0 are sorted.
//! - `nearest_ns` is not later than any deadline.
use alloc::vec::Vec;

const GRAIN_BITS: u32 = 10;
const DIGIT_BITS: u32 = 6;
const SLOTS_PER_LEVEL: usize = 1 << DIGIT_BITS;
const LEVELS: usize = (u64::BITS - GRAIN_BITS).div_ceil(DIGIT_BITS) as usize;
const SLOTS: usize = LEVELS * SLOTS_PER_LEVEL;
/// No node: the first links are slots.
const NONE: u32 = 0;

/// Names an armed timer, for [`Timers::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId {
    link: u32,
    number: u64,
}

/// A place in a circular list. The first [`SLOTS`] are the lists' heads; a node's is at its index
/// behind them. `next` of a free node is the next free one.
#[derive(Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
}

struct Node<T> {
    deadline_ns: u64,
    /// Which arming this is; numbers never come again, so an old [`TimerId`] finds nothing.
    number: u64,
    payload: Option<T>,
}

/// Armed timers of one CPU, each with a payload. Equal deadlines fire in the order they were armed.
/// Memory grows to the most timers ever armed at once, and stays.
pub struct Timers<T> {
    /// Empty until the first timer is armed.
    links: Vec<Link>,
    nodes: Vec<Node<T>>,
    /// First free node's link.
    free: u32,
    /// Which slots of a level have nodes.
    used: [u64; LEVELS],
    base_ns: u64,
    nearest_ns: u64,
    last_number: u64,
    len: usize,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Timers<T> {
    pub const fn new() -> Self {
        Self {
            links: Vec::new(),
            nodes: Vec::new(),
            free: NONE,
            used: [0; LEVELS],
            base_ns: 0,
            nearest_ns: u64::MAX,
            last_number: 0,
            len: 0,
        }
    }

    #[inline]
    pub fn arm(&mut self, deadline_ns: u64, payload: T) -> TimerId {
        if self.free == NONE {
            self.grow();
        }
        let link = self.free;
        self.free = self.links[link as usize].next;
        self.last_number += 1;
        let number = self.last_number;
        self.nodes[link as usize - SLOTS] = Node { deadline_ns, number, payload: Some(payload) };
        self.put(link, deadline_ns);
        self.nearest_ns = self.nearest_ns.min(deadline_ns);
        self.len += 1;
        TimerId { link, number }
    }

    /// The payload, if the timer has not fired yet.
    #[inline]
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        let node = self.nodes.get_mut(id.link as usize - SLOTS)?;
        if node.number != id.number {
            return None;
        }
        let payload = node.payload.take()?;
        self.remove(id.link);
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
        let (level, digit) = self.first_slot()?;
        let head = (level * SLOTS_PER_LEVEL + digit) as u32;
        let first = self.links[head as usize].next;
        let mut nearest = self.deadline(first);
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
            let first = self.links[head as usize].next;
            let node = &mut self.nodes[first as usize - SLOTS];
            if node.deadline_ns > now_ns {
                break;
            }
            self.nearest_ns = node.deadline_ns;
            let payload = node.payload.take();
            self.remove(first);
            return payload;
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

    /// Links a node into the slot of its deadline.
    #[inline]
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

    /// Unlinks a node and frees it; its payload is taken.
    #[inline]
    fn remove(&mut self, link: u32) {
        let Link { next, previous } = self.links[link as usize];
        self.links[next as usize].previous = previous;
        self.links[previous as usize].next = next;
        if next == previous {
            // Alone on both sides: that is the head.
            self.used[next as usize / SLOTS_PER_LEVEL] &= !(1 << (next as usize % SLOTS_PER_LEVEL));
        }
        self.links[link as usize].next = self.free;
        self.free = link;
        self.len -= 1;
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

    #[cold]
    fn grow(&mut self) {
        if self.links.is_empty() {
            self.links = (0..SLOTS as u32).map(|head| Link { next: head, previous: head }).collect();
        }
        self.free = self.links.len() as u32;
        self.links.push(Link { next: NONE, previous: NONE });
        self.nodes.push(Node { deadline_ns: 0, number: 0, payload: None });
    }
}

#[cfg(test)]
mod tests;
