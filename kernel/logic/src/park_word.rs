//! The word by which a task parks and others end its park: who wins, and what is never lost.
//!
//! The parker publishes that it is parked, and then gives its CPU away; whoever moves the word from
//! parked to runnable, and only one can, owns the task from then on and makes it run. An unpark of a
//! task that is not parked leaves a token, which ends its next park at once.
//!
//! A token that is there already may just be being taken. So whoever leaves one writes the word all the
//! same, and taking it is an exchange: the task sees all that came before each unpark whose token it takes,
//! with no other lock or fence between what it waits for and the word.
//!
//! An interrupt's flag is set before [`ParkWord::end`] looks at the word, and read again after
//! [`ParkWord::publish`]: both are sequentially consistent, so at least one side sees the other.
//! `tests/models.rs` shows all of it to hold in every interleaving.
use core::sync::atomic::Ordering;

use crate::atomic::AtomicCell;

/// Runs, or waits for a CPU.
const RUNNABLE: u8 = 0;
/// As above, with a token: the next park returns at once.
const NOTIFIED: u8 = 1;
const PARKED: u8 = 2;
const PARKED_INTERRUPTIBLE: u8 = 3;

/// Which parks an event ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    All,
    Interruptible,
}

/// What ended a park.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Woken,
    TimedOut,
    Interrupted,
}

pub struct ParkWord<A> {
    word: A,
    /// An [`Ended`]; written by whoever ended the park, before the task runs again.
    ended: A,
}

impl<A: AtomicCell<u8>> ParkWord<A> {
    /// Both variables are to be 0.
    pub const fn new(word: A, ended: A) -> Self {
        Self { word, ended }
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.word.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// The task's own: takes the token, if there is one.
    pub fn take_token(&self) -> bool {
        self.change(NOTIFIED, RUNNABLE)
    }

    /// The task's own: from here on others may end its park. False: an unpark came before; its token
    /// is taken, and there is no park.
    pub fn publish(&self, ends: Ends) -> bool {
        let published = self.change(RUNNABLE, parked(ends));
        if !published {
            self.word.swap(RUNNABLE, Ordering::SeqCst);
        }
        published
    }

    /// Nobody has ended the park yet. True of a task that is still on its way off its CPU, too.
    pub fn is_parked(&self) -> bool {
        matches!(self.word.load(Ordering::SeqCst), PARKED | PARKED_INTERRUPTIBLE)
    }

    /// The task's own: takes the park back. False: somebody has ended it, and owns the task.
    pub fn withdraw(&self, ends: Ends) -> bool {
        self.change(parked(ends), RUNNABLE)
    }

    /// Ends a park of this kind. True: the caller has to make the task run.
    pub fn end(&self, ends: Ends, how: Ended) -> bool {
        let interruptible = self.end_state(PARKED_INTERRUPTIBLE, how);
        interruptible || ends == Ends::All && self.end_state(PARKED, how)
    }

    fn end_state(&self, state: u8, how: Ended) -> bool {
        self.word.load(Ordering::SeqCst) == state && self.take_over(state, how)
    }

    #[inline]
    fn take_over(&self, state: u8, how: Ended) -> bool {
        let won = self.change(state, RUNNABLE);
        if won {
            self.ended.store(how as u8, Ordering::Relaxed);
        }
        won
    }

    /// Ends the park, whatever it is, or leaves a token. True: the caller has to make the task run.
    pub fn unpark(&self) -> bool {
        loop {
            match self.word.load(Ordering::Relaxed) {
                state @ (RUNNABLE | NOTIFIED) if self.change(state, NOTIFIED) => return false,
                RUNNABLE | NOTIFIED => {}
                state if self.take_over(state, Ended::Woken) => return true,
                _ => {}
            }
        }
    }

    /// The task's own, after its park: what ended it.
    pub fn ended(&self) -> Ended {
        match self.ended.load(Ordering::Relaxed) {
            how if how == Ended::TimedOut as u8 => Ended::TimedOut,
            how if how == Ended::Interrupted as u8 => Ended::Interrupted,
            _ => Ended::Woken,
        }
    }
}

fn parked(ends: Ends) -> u8 {
    if ends == Ends::Interruptible { PARKED_INTERRUPTIBLE } else { PARKED }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU8;

    fn word() -> ParkWord<AtomicU8> {
        ParkWord::new(AtomicU8::new(0), AtomicU8::new(0))
    }

    #[test]
    fn a_token_ends_the_next_park_once() {
        let word = word();
        assert!(!word.unpark() && !word.unpark());
        assert!(word.take_token() && !word.take_token());
        assert!(!word.unpark());
        assert!(!word.publish(Ends::All));
        assert!(word.publish(Ends::All));
    }

    #[test]
    fn a_park_is_ended_once_and_says_by_what() {
        let word = word();
        assert!(!word.is_parked());
        assert!(word.publish(Ends::Interruptible));
        assert!(word.is_parked());
        assert!(word.end(Ends::Interruptible, Ended::Interrupted));
        assert!(!word.is_parked());
        assert!(!word.withdraw(Ends::Interruptible) && !word.end(Ends::All, Ended::TimedOut));
        assert_eq!(word.ended(), Ended::Interrupted);
    }

    #[test]
    fn an_interrupt_leaves_other_parks_alone() {
        let word = word();
        assert!(word.publish(Ends::All));
        assert!(!word.end(Ends::Interruptible, Ended::Interrupted));
        assert!(word.end(Ends::All, Ended::TimedOut));
        assert_eq!(word.ended(), Ended::TimedOut);
    }
}
