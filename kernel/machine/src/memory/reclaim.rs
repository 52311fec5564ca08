//! Reclaim: getting frames back when none are left.
//!
//! The caches above register who gives pages back. They know which pages are clean and unused, take
//! those that are mapped out of the page table through [`rt::space::AddressSpace::unmap_unused`], and
//! write dirty ones out. Called in task context without spin locks.
//!
//! # Locking
//! One task reclaims at a time: two would take turns at what the hand brings, and either could find
//! nothing while the other holds all of it. Who waited meanwhile tries again first.
use core::sync::atomic::{AtomicUsize, Ordering};

use rt::sync::Mutex;
use spin::Once;

use super::{balloon, frames, heap, space};

/// Pages asked of the caches at a time.
const PAGES: usize = 64;

type Reclaimer = fn(usize) -> usize;

/// The page cache, and one more for the kernel tests.
static RECLAIMERS: [Once<Reclaimer>; 2] = [const { Once::new() }; 2];

static RECLAIMING: Mutex<()> = Mutex::new(());
/// Pages that came back so far, whoever asked.
static FREED: AtomicUsize = AtomicUsize::new(0);

/// Registers who gives clean cache pages back: called in task context without locks, with the number of
/// pages wanted; the result is how many came.
pub fn add_reclaimer(reclaimer: Reclaimer) {
    for slot in &RECLAIMERS {
        if *slot.call_once(|| reclaimer) as usize == reclaimer as usize {
            return;
        }
    }
    log::error!("a reclaimer too many");
}

/// Asks for memory back. True if it is worth trying again.
pub fn reclaim() -> bool {
    reclaim_caches() || balloon::deflate()
}

/// As [`reclaim`], but for what was lent to the host.
pub fn reclaim_caches() -> bool {
    let freed_before = FREED.load(Ordering::Relaxed);
    let _one_at_a_time = RECLAIMING.lock();
    FREED.load(Ordering::Relaxed) != freed_before || ask_caches()
}

fn ask_caches() -> bool {
    let (_, free_before) = frames::totals();
    heap::shrink();
    let mut freed = space::give_back_unused(PAGES);
    for reclaimer in RECLAIMERS.iter().filter_map(Once::get) {
        freed += reclaimer(PAGES);
    }
    FREED.fetch_add(freed, Ordering::Relaxed);
    // The heap's frames count by what is left of them: the search for pages itself may take back the slab
    // that was just given, each time, and whoever waits for a frame would ask for ever.
    freed > 0 || frames::totals().1 > free_before || frames::collect()
}
