//! Deadlines in time order: what a CPU's timer is armed for.
use alloc::collections::BTreeMap;

/// Names an armed timer, for [`Timers::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId {
    deadline_ns: u64,
    number: u64,
}

/// Armed timers of one CPU, each with a payload. Equal deadlines fire in the order they were armed.
pub struct Timers<T> {
    armed: BTreeMap<(u64, u64), T>,
    last: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Timers<T> {
    pub const fn new() -> Self {
        Self { armed: BTreeMap::new(), last: 0 }
    }

    pub fn arm(&mut self, deadline_ns: u64, payload: T) -> TimerId {
        self.last += 1;
        self.armed.insert((deadline_ns, self.last), payload);
        TimerId { deadline_ns, number: self.last }
    }

    /// The payload, if the timer has not fired yet.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        self.armed.remove(&(id.deadline_ns, id.number))
    }

    pub fn next_deadline(&self) -> Option<u64> {
        self.armed.first_key_value().map(|(&(deadline, _), _)| deadline)
    }

    /// Takes the first timer that is due at `now_ns`.
    pub fn pop_due(&mut self, now_ns: u64) -> Option<T> {
        let entry = self.armed.first_entry()?;
        (entry.key().0 <= now_ns).then(|| entry.remove())
    }

    pub fn len(&self) -> usize {
        self.armed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.armed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_in_order_and_only_when_due() {
        let mut timers = Timers::new();
        timers.arm(30, 'c');
        timers.arm(10, 'a');
        timers.arm(10, 'b');
        assert_eq!(timers.next_deadline(), Some(10));
        assert_eq!(timers.pop_due(9), None);
        assert_eq!(timers.pop_due(10), Some('a'));
        assert_eq!(timers.pop_due(10), Some('b'));
        assert_eq!(timers.pop_due(29), None);
        assert_eq!(timers.pop_due(31), Some('c'));
        assert!(timers.is_empty());
    }

    #[test]
    fn a_cancelled_timer_is_gone_and_a_fired_one_cannot_be_cancelled() {
        let mut timers = Timers::new();
        let first = timers.arm(5, 1);
        let second = timers.arm(5, 2);
        assert_eq!(timers.cancel(first), Some(1));
        assert_eq!(timers.cancel(first), None);
        assert_eq!(timers.pop_due(5), Some(2));
        assert_eq!(timers.cancel(second), None);
        assert_eq!(timers.next_deadline(), None);
    }
}
