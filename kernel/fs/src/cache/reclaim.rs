//! Giving cache pages back when frames run out.
//!
//! A second-chance clock over the files that have a medium: a page is dropped if it is clean, only the
//! cache holds it, and nobody used it since the hand last came by. Pages that are mapped, the address
//! space takes out of the page table first, by the same rule and the CPU's accessed bits
//! ([`rt::space::AddressSpace::unmap_unused`]); the last round takes them whether used or not, since the
//! next step is to end a program. When all that is left is dirty, it is written out. Files whose only
//! copy is the cache (tmpfs) never register.
//!
//! # Locking
//! The registry's spin lock and a file's slots are taken one after the other, never together, and the
//! address space is called under neither. The caller, who allocates a page, holds no spin lock.
use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use rt::{page::Page, rt, sync::SpinLock};

use super::{CHUNK, FilePages, Slot, writeback};

static FILES: SpinLock<Registry> = SpinLock::new(Registry { files: VecDeque::new(), sweep_at: SWEEP_MIN });

/// Files registered at which dead ones are first swept out.
const SWEEP_MIN: usize = 1024;

struct Registry {
    files: VecDeque<Weak<FilePages>>,
    /// Length at which dead entries are swept out: twice what was alive the last time.
    sweep_at: usize,
}

/// Pages dropped in one hold of a file's lock: at least those of a chunk.
const BATCH: usize = CHUNK as usize;
/// A round takes marks away, one more accessed bits, one more unmaps, the last also what is in use.
const ROUNDS: usize = 4;

pub(super) fn register(file: Weak<FilePages>) {
    let mut registry = FILES.lock();
    if registry.files.len() >= registry.sweep_at {
        registry.files.retain(|file| file.strong_count() > 0);
        registry.sweep_at = SWEEP_MIN.max(2 * registry.files.len());
    }
    registry.files.push_back(file);
}

/// Frees up to `wanted` cache pages (a few more, for whole chunks); the result is how many it freed.
/// May be called by any task that holds no spin lock; allocates nothing. Sleeps only when it must write.
pub fn reclaim(wanted: usize) -> usize {
    let freed = reclaim_clean(wanted);
    if freed > 0 {
        return freed;
    }
    while writeback::write_some() {
        let freed = reclaim_clean(wanted);
        if freed > 0 {
            return freed;
        }
    }
    0
}

fn reclaim_clean(wanted: usize) -> usize {
    let mut freed = 0;
    for round in 0..ROUNDS {
        let files = FILES.lock().files.len();
        for _ in 0..files {
            if freed >= wanted {
                return freed;
            }
            let Some(file) = next_file() else { break };
            freed += file.give_back(wanted - freed, round + 1 == ROUNDS);
            // Dropping the last reference frees the file's pages as well, outside the locks.
        }
        if freed > 0 {
            return freed;
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
    /// One turn of the file's own hand, at most.
    pub(crate) fn give_back(&self, wanted: usize, force: bool) -> usize {
        let start = core::mem::take(&mut self.slots.lock().hand);
        let mut freed = 0;
        let mut from = Some(start);
        let mut wrapped = false;
        while freed < wanted {
            let Some(chunk) = from.filter(|&chunk| !wrapped || chunk < start) else {
                if wrapped || start == 0 {
                    break;
                }
                wrapped = true;
                from = Some(0);
                continue;
            };
            self.unmap_unused(chunk, force);
            let mut batch: [Option<Page>; BATCH] = [const { None }; BATCH];
            let (count, next) = self.take_unused(&mut batch, chunk, force);
            freed += count;
            from = next;
        }
        self.slots.lock().hand = from.unwrap_or(0);
        freed
    }

    /// Takes the mapped pages of the first chunk from `from` on out of the page table.
    fn unmap_unused(&self, from: u64, force: bool) {
        let found = {
            let mut slots = self.slots.lock();
            slots.chunks.range_mut(from..).next().map(|(&number, chunk)| {
                let kept = chunk.dirty | chunk.writing;
                let mut mapped = 0u64;
                for (at, slot) in chunk.slots.iter().enumerate() {
                    if let Slot::Ready { page, used } = slot
                        && kept & 1 << at == 0
                        && (force || !used)
                        && page.refcount() > 1
                    {
                        mapped |= 1 << at;
                    }
                }
                (number, mapped)
            })
        };
        if let Some((number, mapped)) = found.filter(|found| found.1 != 0) {
            rt().address_space().unmap_unused(self.object, number * CHUNK, mapped, force);
        }
    }

    /// Moves unused clean pages of the first chunk from `from` on to `out`; the result is their number
    /// and the chunk to go on with, if there is one.
    pub(super) fn take_unused(&self, out: &mut [Option<Page>; BATCH], from: u64, force: bool) -> (usize, Option<u64>) {
        let mut taken = 0;
        let mut slots = self.slots.lock();
        let mut chunks = slots.chunks.range_mut(from..);
        let mut emptied = None;
        if let Some((&number, chunk)) = chunks.next() {
            let kept = chunk.dirty | chunk.writing;
            for (at, slot) in chunk.slots.iter_mut().enumerate() {
                let Slot::Ready { page, used } = slot else { continue };
                if (core::mem::take(used) && !force) || page.refcount() > 1 || kept & 1 << at != 0 {
                    continue;
                }
                if let Slot::Ready { page, .. } = core::mem::replace(slot, Slot::Empty) {
                    out[taken] = Some(page);
                    taken += 1;
                }
            }
            if chunk.is_empty() {
                emptied = Some(number);
            }
        }
        let next = chunks.next().map(|(&number, _)| number);
        if let Some(number) = emptied {
            slots.chunks.remove(&number);
        }
        slots.count_out(taken as u64);
        (taken, next)
    }
}
