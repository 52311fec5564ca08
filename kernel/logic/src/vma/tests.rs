//! The VMA tree against a model that keeps every page by itself.
use std::collections::BTreeMap as Map;

use super::*;
use crate::random::Stream;

const PAGE: u64 = 4096;

/// Anonymous, or a file and the page of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Anonymous,
    File(u32, u64),
}

impl Backing for Source {
    fn advanced(&self, pages: u64) -> Self {
        match *self {
            Self::Anonymous => Self::Anonymous,
            Self::File(id, first) => Self::File(id, first + pages),
        }
    }

    fn continues(&self, previous: &Self, previous_pages: u64) -> bool {
        *self == previous.advanced(previous_pages)
    }

    fn object(&self) -> Option<(u64, u64)> {
        match *self {
            Self::Anonymous => None,
            Self::File(id, first) => Some((id.into(), first)),
        }
    }
}

fn vma(first_page: u64, pages: u64, owner: u32, prot: u8, backing: Source) -> Vma<Source> {
    Vma {
        start: first_page * PAGE,
        end: (first_page + pages) * PAGE,
        owner,
        prot,
        flags: VmaFlags::empty(),
        backing,
        label: None,
        sequence: 0,
    }
}

type PageState = (u32, u8, VmaFlags, Source);

#[derive(Default)]
struct Model {
    pages: Map<u64, PageState>,
}

impl Model {
    fn covered_until(&self, owner: u32, first: u64, last: u64) -> u64 {
        (first..last).find(|p| self.pages.get(p).is_none_or(|s| s.0 != owner)).unwrap_or(last)
    }

    fn gap(&self, pages: u64, align: u64, low: u64, high: u64, top_down: bool) -> Option<u64> {
        let fits = |at: &u64| {
            at.is_multiple_of(align) && at + pages <= high && (*at..at + pages).all(|p| !self.pages.contains_key(&p))
        };
        if top_down { (low..high).rev().find(fits) } else { (low..high).find(fits) }
    }
}

/// Same content; disjoint; neighbours merged; totals right.
fn assert_same(tree: &VmaTree<Source>, model: &Model) {
    let mut pages = Map::new();
    let mut previous: Option<&Vma<Source>> = None;
    for area in tree.iter() {
        assert!(area.start < area.end);
        if let Some(before) = previous {
            assert!(before.end <= area.start);
            assert!(!before.joins(area), "unmerged neighbours at {:#x}", area.start);
        }
        for page in area.start / PAGE..area.end / PAGE {
            pages.insert(page, (area.owner, area.prot, area.flags, area.backing_at(page * PAGE)));
        }
        previous = Some(area);
    }
    assert_eq!(pages, model.pages);
    for owner in 0..3 {
        let expected = model.pages.values().filter(|s| s.0 == owner).count() as u64 * PAGE;
        assert_eq!(tree.owned_bytes(owner), expected);
        assert_eq!(tree.iter().filter(|vma| vma.owner == owner).map(Vma::len).sum::<u64>(), expected);
    }
    for object in 1..3 {
        for first in (0..SPAN + 12).step_by(5) {
            assert_mappings(tree, object, first..first + 3);
        }
    }
}

/// The interval trees give what a scan of all VMAs gives.
fn assert_mappings(tree: &VmaTree<Source>, object: u64, pages: Range<u64>) {
    let shows = |area: &&Vma<Source>| {
        area.backing
            .object()
            .is_some_and(|(other, first)| other == object && first < pages.end && first + area.pages() > pages.start)
    };
    let expected: Vec<u64> = tree.iter().filter(shows).map(|area| area.start).collect();
    let mut found = Vec::new();
    tree.each_mapping(object, pages.clone(), |area| found.push(area.start));
    found.sort_unstable();
    assert_eq!(found, expected);
}

fn described(vma: &Vma<Source>) -> (u64, u64, u8, VmaFlags, Source, u64) {
    (vma.start, vma.end, vma.prot, vma.flags, vma.backing, vma.sequence)
}

#[test]
fn random_operations_agree_with_the_model() {
    for seed in 0..60 {
        let mut random = Stream::new(seed);
        let mut tree = VmaTree::new();
        let mut model = Model::default();
        for _ in 0..400 {
            step(&mut random, &mut tree, &mut model);
            assert_same(&tree, &model);
            // Twice: the second time it may remember.
            for page in [random.below(SPAN), random.below(SPAN)] {
                for _ in 0..2 {
                    let found = tree.find_again(page * PAGE + 5).map(described);
                    assert_eq!(found, tree.find(page * PAGE + 5).map(described));
                }
            }
        }
    }
}

const SPAN: u64 = 96;

fn step(random: &mut Stream, tree: &mut VmaTree<Source>, model: &mut Model) {
    let first = random.below(SPAN);
    let pages = 1 + random.below(12);
    let last = first + pages;
    let owner = u32::from(random.below(8) == 0);
    let prot = random.below(3) as u8;
    let (start, end) = (first * PAGE, last * PAGE);
    match random.below(6) {
        0 | 1 => {
            let backing = match random.below(4) {
                0 | 1 => Source::Anonymous,
                2 => Source::File(1, first),
                // Several mappings of the same pages.
                _ => Source::File(2, first % 16),
            };
            let free = (first..last).all(|p| !model.pages.contains_key(&p));
            assert_eq!(tree.is_free(start, end), free);
            assert_eq!(tree.insert(vma(first, pages, owner, prot, backing)).is_ok(), free);
            if free {
                for page in first..last {
                    model.pages.insert(page, (owner, prot, VmaFlags::empty(), backing.advanced(page - first)));
                }
            }
        }
        2 => {
            let foreign = (first..last).find(|p| model.pages.get(p).is_some_and(|s| s.0 != owner));
            match tree.remove_range(owner, start, end) {
                Err(error) => assert_eq!(Some(error.at / PAGE), foreign),
                Ok(pieces) => {
                    assert_eq!(foreign, None);
                    for page in pieces.iter().flat_map(|v| v.start / PAGE..v.end / PAGE) {
                        assert!((first..last).contains(&page) && model.pages.remove(&page).is_some());
                    }
                    assert!(tree.is_free(start, end));
                }
            }
        }
        3 => {
            let covered = model.covered_until(owner, first, last);
            let set = VmaFlags::from_bits_truncate(1 << random.below(3));
            let by_flag = random.below(3) == 0;
            let result = if by_flag {
                tree.flag_range(owner, (start, end), set, VmaFlags::SHARED)
            } else {
                tree.protect_range(owner, start, end, prot)
            };
            assert_eq!(result.err().map(|hole| hole.at), (covered < last).then_some(covered * PAGE));
            for page in first..covered {
                let state = model.pages.get_mut(&page).unwrap();
                if by_flag {
                    state.2 = (state.2 - VmaFlags::SHARED) | set;
                } else {
                    state.1 = prot;
                }
            }
        }
        4 => {
            let covered = model.covered_until(owner, first, last);
            match tree.take_range(owner, start, end) {
                Err(hole) => assert_eq!(hole.at, covered * PAGE),
                Ok(pieces) => {
                    assert_eq!(covered, last);
                    assert_eq!(pieces.iter().map(Vma::pages).sum::<u64>(), pages);
                    (first..last).for_each(|page| assert!(model.pages.remove(&page).is_some()));
                }
            }
        }
        _ => {
            let align = 1 << random.below(4);
            let (low, high) = if random.below(3) == 0 { (10, SPAN) } else { (0, SPAN + 8) };
            let top_down = random.below(4) != 0;
            let found = tree.find_gap(pages * PAGE, align * PAGE, low * PAGE, high * PAGE, top_down);
            assert_eq!(found, model.gap(pages, align, low, high, top_down).map(|p| p * PAGE));
        }
    }
}

#[test]
fn every_change_gives_a_new_sequence_and_only_a_change_does() {
    let mut tree = VmaTree::new();
    tree.insert(vma(10, 10, 1, 3, Source::Anonymous)).unwrap();
    tree.insert(vma(40, 1, 1, 3, Source::File(7, 0))).unwrap();
    let sequence = |tree: &VmaTree<Source>, page: u64| tree.find(page * PAGE).unwrap().sequence;
    let (wide, other) = (sequence(&tree, 10), sequence(&tree, 40));
    tree.protect_range(1, 10 * PAGE, 20 * PAGE, 3).unwrap();
    tree.protect_range(1, 12 * PAGE, 13 * PAGE, 3).unwrap();
    assert_eq!(sequence(&tree, 12), wide);
    tree.protect_range(1, 12 * PAGE, 13 * PAGE, 1).unwrap();
    let after = [10, 12, 13].map(|page| sequence(&tree, page));
    assert!(after.iter().all(|s| *s > other));
    assert!(after[0] != after[1] && after[1] != after[2] && after[0] != after[2]);
    // Back again: one VMA, and still not one that was there before.
    tree.protect_range(1, 12 * PAGE, 13 * PAGE, 3).unwrap();
    assert_eq!(tree.count(), 2);
    assert!(sequence(&tree, 10) > after[2]);
    assert_eq!(sequence(&tree, 40), other);
}

#[test]
fn files_merge_only_where_they_continue() {
    let mut tree = VmaTree::new();
    tree.insert(vma(1, 2, 1, 1, Source::File(1, 5))).unwrap();
    tree.insert(vma(3, 2, 1, 1, Source::File(1, 7))).unwrap();
    tree.insert(vma(5, 2, 1, 1, Source::File(1, 8))).unwrap();
    assert_eq!(tree.count(), 2);
    assert_eq!(tree.find(4 * PAGE).unwrap().backing_at(4 * PAGE), Source::File(1, 8));
    assert_eq!(tree.find_first_from(0).unwrap().start, PAGE);
    assert!(tree.find_first_from(7 * PAGE).is_none());
}

#[test]
fn bad_ranges_are_refused() {
    let mut tree: VmaTree<Source> = VmaTree::new();
    let mut odd = vma(1, 1, 1, 1, Source::Anonymous);
    odd.start += 1;
    assert_eq!(tree.insert(odd), Err(NotFree));
    assert_eq!(tree.insert(vma(1, 0, 1, 1, Source::Anonymous)), Err(NotFree));
    assert_eq!(tree.find_gap(0, PAGE, 0, u64::MAX, true), None);
    assert_eq!(tree.find_gap(PAGE, PAGE, u64::MAX - 5, u64::MAX, false), None);
    assert_eq!(tree.protect_range(1, 5 * PAGE, 5 * PAGE, 1), Ok(()));
    assert_eq!(tree.iter_range(5, 4).count(), 0);
}
