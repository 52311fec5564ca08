//! futex(2) between threads.
use std::time::Duration;

use super::{in_program, in_thread};

const FUTEX: u64 = 202;
const WAIT_PRIVATE: u64 = 128;
const WAKE_PRIVATE: u64 = 129;
const CMP_REQUEUE_PRIVATE: u64 = 132;
const EAGAIN: i64 = -11;
const ETIMEDOUT: i64 = -110;

#[test]
fn a_changed_word_and_a_deadline_end_a_wait() {
    in_program(|caller| {
        let word = caller.write(0, &7u32.to_le_bytes());
        assert_eq!(caller.call(FUTEX, &[word, WAIT_PRIVATE, 8]), EAGAIN);
        let timeout = caller.write(16, &[0u64.to_le_bytes(), 2_000_000u64.to_le_bytes()].concat());
        assert_eq!(caller.call(FUTEX, &[word, WAIT_PRIVATE, 7, timeout]), ETIMEDOUT);
        assert_eq!(caller.call(FUTEX, &[word, WAKE_PRIVATE, 1]), 0);
        assert_eq!(caller.call(FUTEX, &[word + 1, WAIT_PRIVATE, 7]), -22);
    });
}

#[test]
fn waiters_are_woken_and_requeued() {
    in_program(|caller| {
        let word = caller.write(0, &0u32.to_le_bytes());
        let other = caller.write(64, &0u32.to_le_bytes());
        let waiters: Vec<_> = (0..3)
            .map(|_| in_thread(&caller.program, move |waiter| waiter.call(FUTEX, &[word, WAIT_PRIVATE, 0])))
            .collect();
        // Nobody is told when a waiter sleeps: requeue until all three have been seen.
        let mut seen = 0;
        while seen < 3 {
            let moved = caller.call(FUTEX, &[word, CMP_REQUEUE_PRIVATE, 0, 9, other, 0]);
            assert!(moved >= 0);
            seen += moved;
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(caller.call(FUTEX, &[word, WAKE_PRIVATE, 9]), 0);
        assert_eq!(caller.call(FUTEX, &[other, WAKE_PRIVATE, 1]), 1);
        assert_eq!(caller.call(FUTEX, &[other, WAKE_PRIVATE, 9]), 2);
        assert!(waiters.into_iter().all(|waiter| waiter.recv() == Ok(0)));
    });
}
