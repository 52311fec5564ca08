//! The wheel against an ordered map, which says what it has to do.
use std::collections::BTreeMap;

use super::*;
use crate::random::Stream;

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
    // The same node serves again: the old names must not reach it.
    let third = timers.arm(7, 3);
    assert_eq!((timers.cancel(first), timers.cancel(second)), (None, None));
    assert_eq!(timers.cancel(third), Some(3));
    assert_eq!(timers.nearest_ns(), u64::MAX);
}

#[test]
fn the_ends_of_time_can_be_armed() {
    let mut timers = Timers::new();
    timers.arm(u64::MAX, 'z');
    timers.arm(0, 'a');
    assert_eq!(timers.pop_due(0), Some('a'));
    assert_eq!(timers.pop_due(u64::MAX - 1), None);
    // Overdue already, in the order of their deadlines.
    timers.arm(4, 'c');
    timers.arm(3, 'b');
    assert_eq!(timers.pop_due(u64::MAX - 1), Some('b'));
    assert_eq!(timers.pop_due(u64::MAX - 1), Some('c'));
    assert_eq!(timers.pop_due(u64::MAX), Some('z'));
}

#[test]
fn memory_is_that_of_the_most_armed_at_once() {
    let mut timers = Timers::new();
    for round in 0..10_000_u64 {
        let ids: Vec<TimerId> = (0..3).map(|n| timers.arm(round * 1_000_000 + n, n)).collect();
        for id in ids {
            assert!(timers.cancel(id).is_some());
        }
    }
    assert_eq!(timers.nodes.len(), 3);
}

/// Deadlines of every size, near ones and equal ones among them.
fn some_deadline(random: &mut Stream, now_ns: u64, known: &BTreeMap<(u64, u64), TimerId>) -> u64 {
    match random.below(8) {
        0 => now_ns.saturating_sub(random.below(5000)),
        1 => known.keys().next().map_or(now_ns, |&(deadline, _)| deadline),
        2 => known.keys().next_back().map_or(now_ns, |&(deadline, _)| deadline),
        3 => now_ns.saturating_add(random.below(3000)),
        _ => {
            let bits = random.below(64);
            now_ns.saturating_add(random.next_u64() >> bits)
        }
    }
}

/// One sequence of random steps, each checked against the model.
fn compare_with_model(seed: u64) {
    let mut random = Stream::new(seed);
    let mut timers = Timers::new();
    let mut model: BTreeMap<(u64, u64), TimerId> = BTreeMap::new();
    let mut gone: Vec<TimerId> = Vec::new();
    let mut now_ns = random.next_u64() >> random.below(64);
    let mut last = 0;
    for _ in 0..600 {
        match random.below(10) {
            0..5 => {
                last += 1;
                let deadline_ns = some_deadline(&mut random, now_ns, &model);
                model.insert((deadline_ns, last), timers.arm(deadline_ns, last));
            }
            5..8 => {
                let at = random.below(model.len() as u64) as usize;
                if let Some((&key, &id)) = model.iter().nth(at) {
                    assert_eq!(timers.cancel(id), Some(key.1), "seed {seed}");
                    model.remove(&key);
                    gone.push(id);
                }
            }
            _ => {
                now_ns = match random.below(4) {
                    // Just before the nearest, and just at it: neither early nor late.
                    0 => now_ns.max(model.keys().next().map_or(now_ns, |key| key.0.saturating_sub(1))),
                    1 => now_ns.max(model.keys().next().map_or(now_ns, |key| key.0)),
                    _ => now_ns.saturating_add(random.next_u64() >> random.below(64)),
                };
                let most = random.below(20);
                for _ in 0..most {
                    let reached = timers.nearest_ns() <= now_ns;
                    let expected = model.first_key_value().map(|(&key, _)| key).filter(|key| key.0 <= now_ns);
                    assert_eq!(timers.pop_due(now_ns), expected.map(|key| key.1), "seed {seed}");
                    let Some(key) = expected else {
                        let nearest = model.keys().next().map_or(u64::MAX, |key| key.0);
                        assert!(!reached || timers.nearest_ns() == nearest, "seed {seed}");
                        assert!(timers.nearest_ns() > now_ns || now_ns == u64::MAX, "seed {seed}");
                        break;
                    };
                    gone.extend(model.remove(&key));
                }
            }
        }
        let nearest = model.keys().next().map(|key| key.0);
        assert_eq!(timers.next_deadline(), nearest, "seed {seed}");
        assert!(timers.nearest_ns() <= nearest.unwrap_or(u64::MAX), "seed {seed}");
        assert_eq!(timers.len(), model.len());
    }
    assert!(gone.into_iter().all(|id| timers.cancel(id).is_none()), "seed {seed}");
}

#[test]
fn does_what_an_ordered_map_does() {
    for seed in 0..400 {
        compare_with_model(seed);
    }
}
