//! An interval tree: which mappings show a stretch of a file.
//!
//! A treap, ordered by first page and then by key, in which each node knows the largest end below it.
//! A search goes past every subtree that ends before what it looks for: it costs the logarithm of the
//! number of mappings, and each mapping that it finds. Priorities are a hash of the interval, so equal
//! histories make equal trees.
use alloc::boxed::Box;
use core::ops::Range;

/// Intervals of pages, each with a key; (first page, key) occurs once.
#[derive(Default)]
pub struct IntervalTree {
    root: Link,
}

type Link = Option<Box<Node>>;

struct Node {
    first: u64,
    end: u64,
    key: u64,
    /// The largest `end` of this node and of those below it.
    reach: u64,
    priority: u64,
    left: Link,
    right: Link,
}

impl IntervalTree {
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    pub fn insert(&mut self, pages: Range<u64>, key: u64) {
        let priority = mix(pages.start ^ key.rotate_left(32));
        let (first, end) = (pages.start, pages.end);
        let node = Some(Box::new(Node { first, end, key, reach: end, priority, left: None, right: None }));
        let (low, high) = split(self.root.take(), (first, key));
        self.root = join(join(low, node), high);
    }

    /// Takes an interval out. False: there is none that begins at `first` with this key.
    pub fn remove(&mut self, first: u64, key: u64) -> bool {
        remove(&mut self.root, (first, key))
    }

    /// Calls `each` with the key of every interval that overlaps `pages`, by first page.
    pub fn each_overlap(&self, pages: Range<u64>, each: &mut dyn FnMut(u64)) {
        visit(&self.root, &pages, each);
    }
}

impl Node {
    fn order(&self) -> (u64, u64) {
        (self.first, self.key)
    }

    fn update(&mut self) {
        let below = |link: &Link| link.as_ref().map_or(0, |node| node.reach);
        self.reach = self.end.max(below(&self.left)).max(below(&self.right));
    }
}

/// SplitMix64's finalizer.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// (what is before `at`, what is not).
fn split(link: Link, at: (u64, u64)) -> (Link, Link) {
    let Some(mut node) = link else { return (None, None) };
    if node.order() < at {
        let (low, high) = split(node.right.take(), at);
        node.right = low;
        node.update();
        (Some(node), high)
    } else {
        let (low, high) = split(node.left.take(), at);
        node.left = high;
        node.update();
        (low, Some(node))
    }
}

/// All of `low` is before all of `high`.
fn join(low: Link, high: Link) -> Link {
    match (low, high) {
        (None, other) | (other, None) => other,
        (Some(mut low), Some(mut high)) => Some(if low.priority > high.priority {
            low.right = join(low.right.take(), Some(high));
            low.update();
            low
        } else {
            high.left = join(Some(low), high.left.take());
            high.update();
            high
        }),
    }
}

fn remove(link: &mut Link, at: (u64, u64)) -> bool {
    let Some(node) = link else { return false };
    if node.order() == at {
        let (left, right) = (node.left.take(), node.right.take());
        *link = join(left, right);
        return true;
    }
    let removed = remove(if at < node.order() { &mut node.left } else { &mut node.right }, at);
    node.update();
    removed
}

fn visit(link: &Link, pages: &Range<u64>, each: &mut dyn FnMut(u64)) {
    let Some(node) = link else { return };
    if node.reach <= pages.start {
        return;
    }
    visit(&node.left, pages, each);
    if node.first >= pages.end {
        return;
    }
    if node.end > pages.start {
        each(node.key);
    }
    visit(&node.right, pages, each);
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, vec::Vec};

    use super::*;
    use crate::random::Stream;

    fn depth(link: &Link) -> usize {
        link.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    #[test]
    fn finds_what_a_scan_finds() {
        let mut random = Stream::new(3);
        let (mut tree, mut model) = (IntervalTree::default(), BTreeMap::new());
        for key in 0..3000u64 {
            let first = random.below(500);
            if random.below(3) == 0
                && let Some((&(first, key), _)) = model.range((first, 0)..).next()
            {
                assert!(tree.remove(first, key));
                model.remove(&(first, key));
            } else {
                let longest = if random.below(8) == 0 { 400 } else { 5 };
                let end = first + 1 + random.below(longest);
                tree.insert(first..end, key);
                model.insert((first, key), end);
            }
            let from = random.below(900);
            let to = from + 1 + random.below(20);
            let expected: Vec<u64> = model
                .iter()
                .filter(|&(&(first, _), &end)| first < to && end > from)
                .map(|(&(_, key), _)| key)
                .collect();
            let mut found = Vec::new();
            tree.each_overlap(from..to, &mut |key| found.push(key));
            assert_eq!(found, expected);
        }
        assert!(!tree.remove(10_000, 0));
        while let Some((first, key)) = model.pop_first().map(|(at, _)| at) {
            assert!(tree.remove(first, key));
        }
        assert!(tree.is_empty());
    }

    #[test]
    fn stays_shallow_when_filled_in_order() {
        let mut tree = IntervalTree::default();
        for first in 0..100_000 {
            tree.insert(first..first + 1, first << 12);
        }
        assert!(depth(&tree.root) < 60);
    }
}
