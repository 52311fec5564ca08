//! Giving clean cache pages back when frames run out.
//!
//! A second-chance clock over the files that were read from a device: a page is dropped if only the
//! cache holds it and nobody used it since the hand last came by. Files whose only copy is the cache
//! (tmpfs) never register.
//!
//! # Locking
//! The registry's spin lock and a file's slots are taken one after the other, never together. The
//! caller, who allocates a page, holds no spin lock.
use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use rt::{page::Page, sync::SpinLock};

use super::{FilePages, Slot};

static FILES: SpinLock<Registry> = SpinLock::new(Registry { files: VecDeque::new(), sweep_at: SWEEP_MIN });

/// Files registered at which dead ones are first swept out.
const SWEEP_MIN: usize = 1024;

struct Registry {
    files: VecDeque<Weak<FilePages>>,
    /// Length at which dead entries are swept out: twice what was alive the last time.
    sweep_at: usize,
}

/// Pages dropped in one hold of a file's lock.
const BATCH: usize = 32;

pub(super) fn register(file: Weak<FilePages>) {
    let mut registry = FILES.lock();
    if registry.files.len() >= registry.sweep_at {
        registry.files.retain(|file| file.strong_count() > 0);
        registry.sweep_at = SWEEP_MIN.max(2 * registry.files.len());
    }
    registry.files.push_back(file);
}

/// Frees up to `wanted` clean cache pages; the result is how many it freed. May be called by any
/// task that holds no spin lock; allocates nothing.
pub fn reclaim(wanted: usize) -> usize {
    let mut freed = 0;
    // The first round takes marks away, the second takes pages.
    for _round in 0..2 {
        let files = FILES.lock().files.len();
        for _ in 0..files {
            if freed >= wanted {
                return freed;
            }
            let Some(file) = next_file() else { break };
            freed += file.give_back(wanted - freed);
            // Dropping the last reference frees the file's pages as well, outside the locks.
        }
    }
    freed
}

/// The file under the hand, which moves on; dead ones fall out.
fn next_file() -> Option<Arc<FilePages>> {
    let files = &mut FILES.lock().files;
    while let Some(weak) = files.pop_front() {
        if let Some(file) = weak.upgrade() {
            files.push_back(weak);
            return Some(file);
        }
    }
    None
}

impl FilePages {
    fn give_back(&self, wanted: usize) -> usize {
        let mut freed = 0;
        let mut from = 0;
        while freed < wanted {
            let mut batch: [Option<Page>; BATCH] = [const { None }; BATCH];
            let (count, next) = self.take_unused(&mut batch[..BATCH.min(wanted - freed)], from);
            freed += count;
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        freed
    }

    /// Moves unused pages from chunk `from` on to `out`; the result is their number and the chunk to
    /// go on with, if there is one.
    fn take_unused(&self, out: &mut [Option<Page>], from: u64) -> (usize, Option<u64>) {
        let mut taken = 0;
        let mut slots = self.slots.lock();
        let mut next = None;
        for (&number, chunk) in slots.chunks.range_mut(from..) {
            if taken == out.len() {
                next = Some(number);
                break;
            }
            for slot in chunk.iter_mut() {
                let Slot::Ready { page, used } = slot else { continue };
                if core::mem::take(used) || page.refcount() > 1 || taken == out.len() {
                    continue;
                }
                if let Slot::Ready { page, .. } = core::mem::replace(slot, Slot::Empty) {
                    out[taken] = Some(page);
                    taken += 1;
                }
            }
        }
        slots.ready -= taken as u64;
        (taken, next)
    }
}
