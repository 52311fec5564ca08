//! The page cache over a counting source.
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::{sync::Barrier, thread, time::Duration};

use super::*;

/// 1,000 pages; page n starts with n's two bytes. Counts requests and sleeps in them.
#[derive(Default)]
struct Counting {
    requests: AtomicUsize,
    failing: AtomicUsize,
}

impl PageSource for Counting {
    fn pages(&self) -> u64 {
        1000
    }

    fn extent(&self, first: u64, max: u64) -> u64 {
        max.min(1000 - first)
    }

    fn load(&self, first: u64, pages: &[Page]) -> FsResult<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(2));
        if self.failing.load(Ordering::Relaxed) > 0 {
            self.failing.fetch_sub(1, Ordering::Relaxed);
            return Err(FsError::Io);
        }
        for (n, page) in (first..).zip(pages) {
            page.write(0, &(n as u16).to_le_bytes());
        }
        Ok(())
    }
}

fn number(page: &Page) -> u64 {
    let mut bytes = [0; 2];
    page.read(0, &mut bytes);
    u16::from_le_bytes(bytes).into()
}

#[test]
fn sequential_reads_take_few_requests() {
    rt::host::install();
    let (file, source) = (FilePages::new(), Counting::default());
    for index in 0..1000 {
        assert_eq!(number(&file.get(index, Readahead::Ahead, &source).unwrap()), index);
    }
    // 32, 64, then 128 at a time.
    assert!(source.requests.load(Ordering::Relaxed) <= 10);
    assert_eq!(file.len(), 1000);
}

#[test]
fn faults_read_around() {
    rt::host::install();
    let (file, source) = (FilePages::new(), Counting::default());
    assert_eq!(number(&file.get(45, Readahead::Around, &source).unwrap()), 45);
    assert!(file.cached(32).is_some() && file.cached(63).is_some());
    assert!(file.cached(31).is_none() && file.cached(64).is_none());
    assert_eq!(number(&file.get(999, Readahead::Around, &source).unwrap()), 999);
    assert_eq!(file.next_cached(64), Some(992));
}

#[test]
fn concurrent_misses_are_one_request() {
    rt::host::install();
    let file = FilePages::new();
    let source = Arc::new(Counting::default());
    let start = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let (file, source, start) = (file.clone(), source.clone(), start.clone());
            thread::spawn(move || {
                start.wait();
                assert_eq!(number(&file.get(n, Readahead::Around, &*source).unwrap()), n);
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(source.requests.load(Ordering::Relaxed), 1);
}

#[test]
fn a_failed_read_is_tried_again() {
    rt::host::install();
    let (file, source) = (FilePages::new(), Counting::default());
    source.failing.store(1, Ordering::Relaxed);
    assert_eq!(file.get(3, Readahead::Ahead, &source), Err(FsError::Io));
    assert_eq!(number(&file.get(3, Readahead::Ahead, &source).unwrap()), 3);
}

#[test]
fn insert_and_remove() {
    rt::host::install();
    let file = FilePages::new();
    let page = Page::alloc_zeroed().unwrap();
    assert!(file.insert(1 << 40, page.clone()).1);
    let (there, ours) = file.insert(1 << 40, Page::alloc_zeroed().unwrap());
    assert!(!ours && there == page);
    file.insert(5, page.clone());
    assert_eq!(file.next_cached(6), Some(1 << 40));
    assert_eq!(file.remove(6..u64::MAX), 1);
    assert_eq!(file.remove(0..6), 1);
    assert!(file.is_empty());
    drop(there);
    assert_eq!(page.refcount(), 1);
}

/// Unused clean pages go, those that are mapped or in use stay; and what went is read again.
#[test]
fn reclaim_frees_clean_pages() {
    rt::host::install();
    let (file, source) = (FilePages::new(), Counting::default());
    let held = file.get(7, Readahead::Around, &source).unwrap();
    // This file alone: other tests count on their pages (`tests/exhaustion.rs` reclaims from all).
    while file.len() > 1 {
        assert!(file.give_back(8, false) > 0);
    }
    assert_eq!(file.cached(7), Some(held));
    assert_eq!(number(&file.get(8, Readahead::Around, &source).unwrap()), 8);
}
