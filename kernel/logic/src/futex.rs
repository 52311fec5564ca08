//! Futex queues: who waits at which address, in order. Pure; the owner locks it.
//!
//! One [`FutexQueue`] is a hash bucket's content. Waking takes the longest-waiting matching waiters
//! first (futex(2) promises no order; fairness keeps latencies even).
use alloc::{collections::VecDeque, vec::Vec};

/// A waiter: `id` names it for removal, `value` is what the owner wakes.
#[derive(Debug)]
pub struct Waiter<W> {
    pub key: u64,
    pub id: u64,
    pub bitset: u32,
    pub value: W,
}

#[derive(Debug)]
pub struct FutexQueue<W> {
    waiters: VecDeque<Waiter<W>>,
}

impl<W> Default for FutexQueue<W> {
    fn default() -> Self {
        Self::new()
    }
}

impl<W> FutexQueue<W> {
    pub const fn new() -> Self {
        Self { waiters: VecDeque::new() }
    }

    pub fn push(&mut self, waiter: Waiter<W>) {
        self.waiters.push_back(waiter);
    }

    /// Takes a waiter out that gives up; false if it was woken before.
    pub fn remove(&mut self, id: u64) -> bool {
        match self.waiters.iter().position(|waiter| waiter.id == id) {
            Some(at) => self.waiters.remove(at).is_some(),
            None => false,
        }
    }

    /// Takes out up to `limit` waiters at `key` whose bitset meets `bitset`, calls `each` for them,
    /// and gives their number.
    pub fn wake(&mut self, key: u64, limit: u32, bitset: u32, mut each: impl FnMut(Waiter<W>)) -> u32 {
        let mut woken = 0;
        let mut at = 0;
        while woken < limit && at < self.waiters.len() {
            let waiter = &self.waiters[at];
            if waiter.key == key && waiter.bitset & bitset != 0 {
                // The first one is the common case; taking it out moves nothing.
                let taken = if at == 0 { self.waiters.pop_front() } else { self.waiters.remove(at) };
                if let Some(waiter) = taken {
                    each(waiter);
                    woken += 1;
                }
            } else {
                at += 1;
            }
        }
        woken
    }

    /// Takes up to `limit` waiters at `key` out, to wait at `new_key` from now on: the caller puts
    /// them into the queue of that key, in order.
    pub fn take_for_requeue(&mut self, key: u64, new_key: u64, limit: u32) -> Vec<Waiter<W>> {
        let mut taken = Vec::new();
        self.wake(key, limit, u32::MAX, |waiter| taken.push(Waiter { key: new_key, ..waiter }));
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }
}

/// What FUTEX_WAKE_OP does to its second word, and the comparison after it, decoded from its last
/// argument (futex(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeOp {
    op: u32,
    cmp: u32,
    op_arg: u32,
    cmp_arg: i32,
}

impl WakeOp {
    /// None if the operation or comparison does not exist.
    pub fn decode(word: u32) -> Option<Self> {
        let signed12 = |value: u32| (value << 20) as i32 >> 20;
        let op = word >> 28 & 7;
        let shifted = word >> 31 != 0;
        let arg = signed12(word >> 12 & 0xfff);
        let op_arg = if shifted { 1u32.checked_shl(arg as u32 & 31)? } else { arg as u32 };
        let decoded = Self { op, cmp: word >> 24 & 15, op_arg, cmp_arg: signed12(word & 0xfff) };
        (decoded.op <= 4 && decoded.cmp <= 5).then_some(decoded)
    }

    pub fn apply(&self, old: u32) -> u32 {
        match self.op {
            0 => self.op_arg,
            1 => old.wrapping_add(self.op_arg),
            2 => old | self.op_arg,
            3 => old & !self.op_arg,
            _ => old ^ self.op_arg,
        }
    }

    /// Whether the waiters of the second word are woken, too.
    pub fn compare(&self, old: u32) -> bool {
        let old = old as i32;
        match self.cmp {
            0 => old == self.cmp_arg,
            1 => old != self.cmp_arg,
            2 => old < self.cmp_arg,
            3 => old <= self.cmp_arg,
            4 => old > self.cmp_arg,
            _ => old >= self.cmp_arg,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(waiters: &[(u64, u64, u32)]) -> FutexQueue<()> {
        let mut queue = FutexQueue::new();
        for &(key, id, bitset) in waiters {
            queue.push(Waiter { key, id, bitset, value: () });
        }
        queue
    }

    fn wake(queue: &mut FutexQueue<()>, key: u64, limit: u32, bitset: u32) -> Vec<u64> {
        let mut ids = Vec::new();
        queue.wake(key, limit, bitset, |waiter| ids.push(waiter.id));
        ids
    }

    #[test]
    fn waking_is_first_come_first_served_per_key_and_bitset() {
        let mut queue = queue(&[(8, 1, 1), (4, 2, 1), (8, 3, 2), (8, 4, 3)]);
        assert_eq!(wake(&mut queue, 8, 1, 2), [3]);
        assert_eq!(wake(&mut queue, 8, 10, u32::MAX), [1, 4]);
        assert_eq!(wake(&mut queue, 8, 10, u32::MAX), []);
        assert!(!queue.is_empty());
    }

    #[test]
    fn a_waiter_that_gave_up_is_not_woken() {
        let mut queue = queue(&[(8, 1, 1), (8, 2, 1)]);
        assert!(queue.remove(1));
        assert!(!queue.remove(1));
        assert_eq!(wake(&mut queue, 8, 1, 1), [2]);
    }

    #[test]
    fn requeued_waiters_wait_at_the_new_key() {
        let mut queue = queue(&[(8, 1, 1), (8, 2, 1), (8, 3, 1)]);
        for waiter in queue.take_for_requeue(8, 16, 2) {
            queue.push(waiter);
        }
        assert_eq!(wake(&mut queue, 8, 9, 1), [3]);
        assert_eq!(wake(&mut queue, 16, 9, 1), [1, 2]);
    }

    #[test]
    fn wake_op_decodes_as_the_manual_says() {
        // FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_GT, 0)
        let op = WakeOp::decode(1 << 28 | 4 << 24 | 1 << 12).unwrap();
        assert_eq!(op.apply(5), 6);
        assert!(op.compare(1) && !op.compare(0));
        // SET with a negative argument; OR with a shifted one.
        assert_eq!(WakeOp::decode(0xfff << 12).unwrap().apply(0), u32::MAX);
        assert_eq!(WakeOp::decode(1 << 31 | 2 << 28 | 4 << 12).unwrap().apply(1), 17);
        assert_eq!(WakeOp::decode(6 << 28), None);
        assert_eq!(WakeOp::decode(9 << 24), None);
    }
}
