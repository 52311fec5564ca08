//! Tests of what begins at a file and ends at its mappings, under fire from all CPUs: dirty tracking with
//! write protection, truncation.
use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use rt::{
    page::Page,
    rt,
    space::{AddressSpace as _, FileMapping, ObjectId, Pager, PagerError, Placement, ProgramId, Prot},
    sync::SpinLock,
};

use super::{
    check,
    memory::request,
    pressure::shown,
    tasks::{spawn, wait_for},
};
use crate::{cpu::percpu, memory::space::SPACE};

const OWNER: ProgramId = ProgramId(82);
const PAGE: u64 = 4096;
const PAGES: u64 = 48;

/// A file in memory that counts its pages as dirty, and can shrink.
struct TrackedFile {
    pages: Vec<Page>,
    dirty: AtomicU64,
    size: AtomicU64,
    object: ObjectId,
}

impl Pager for TrackedFile {
    fn page(&self, index: u64, write: bool) -> Result<Page, PagerError> {
        if index >= self.size.load(SeqCst) {
            return Err(PagerError::BeyondEnd);
        }
        if write {
            self.dirty.fetch_or(1 << index, SeqCst);
        }
        Ok(self.pages[index as usize].clone())
    }

    fn page_if_cached(&self, index: u64) -> Option<Page> {
        let there = index < self.size.load(SeqCst);
        there.then(|| self.pages[index as usize].clone())
    }

    fn confirm(&self, index: u64, _page: &Page, write: bool) -> bool {
        index < self.size.load(SeqCst) && (!write || self.dirty.load(SeqCst) & 1 << index != 0)
    }

    fn object(&self) -> ObjectId {
        self.object
    }

    fn path(&self) -> String {
        String::from("/tracked")
    }

    fn identity(&self) -> (u32, u32, u64) {
        (0, 0, 82)
    }
}

static FILE: SpinLock<Option<Arc<TrackedFile>>> = SpinLock::new(None);
/// Two mappings of it.
static STARTS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
static STOP: AtomicBool = AtomicBool::new(false);
static DONE: AtomicUsize = AtomicUsize::new(0);

fn map_twice() -> Result<Arc<TrackedFile>, String> {
    let pages: Result<Vec<_>, _> = (0..PAGES).map(|_| Page::alloc_zeroed()).collect();
    let file = Arc::new(TrackedFile {
        pages: pages.map_err(|_| String::from("no frames"))?,
        dirty: AtomicU64::new(0),
        size: AtomicU64::new(PAGES),
        object: ObjectId::unique(),
    });
    for start in &STARTS {
        let mut mapping = request(PAGES * PAGE, Prot::READ | Prot::WRITE, Placement::Anywhere);
        mapping.shared = true;
        mapping.file = Some(FileMapping { pager: file.clone(), first_page: 0 });
        start.store(shown(SPACE.map(OWNER, mapping))?, SeqCst);
    }
    *FILE.lock() = Some(file.clone());
    STOP.store(false, SeqCst);
    DONE.store(0, SeqCst);
    Ok(file)
}

fn finish(tasks: usize) -> Result<(), String> {
    STOP.store(true, SeqCst);
    let waited = wait_for(|| DONE.load(SeqCst) == tasks);
    SPACE.release(OWNER);
    *FILE.lock() = None;
    waited
}

/// Address of a task's own word of a page, in the mapping that is its.
fn word(task: usize, page: u64) -> u64 {
    STARTS[task % 2].load(SeqCst) + page * PAGE + task as u64 * 8
}

/// Tasks on all CPUs write through two mappings while pages are cleaned: whatever was written last is
/// either on the medium or dirty.
pub fn dirty_tracking() -> Result<(), String> {
    fn writer(me: usize) {
        for round in 1.. {
            for page in 0..PAGES {
                let _ = rt().user().write(word(me, page), &u64::to_le_bytes(round));
            }
            if STOP.load(SeqCst) {
                LAST[me].store(round, SeqCst);
                break;
            }
            rt().yield_now();
        }
        DONE.fetch_add(1, SeqCst);
    }
    static LAST: [AtomicU64; percpu::MAX_CPUS + 1] = [const { AtomicU64::new(0) }; percpu::MAX_CPUS + 1];
    let file = map_twice()?;
    let tasks = percpu::online_count() + 1;
    for me in 0..tasks {
        spawn(writer, me, u64::MAX, 0);
    }
    let mut medium = alloc::vec![[0u64; percpu::MAX_CPUS + 1]; PAGES as usize];
    let mut write_back = || {
        let dirty = file.dirty.swap(0, SeqCst);
        SPACE.write_protect(file.object, 0..PAGES);
        for page in (0..PAGES).filter(|page| dirty & 1 << page != 0) {
            for (task, kept) in medium[page as usize].iter_mut().enumerate().take(tasks) {
                let mut bytes = [0; 8];
                file.pages[page as usize].read(task * 8, &mut bytes);
                *kept = u64::from_le_bytes(bytes);
            }
        }
        dirty.count_ones()
    };
    let mut cleaned = 0;
    let deadline = rt().now_ns() + 2_000_000_000;
    while cleaned < 2000 && rt().now_ns() < deadline {
        cleaned += write_back();
        rt().yield_now();
    }
    finish(tasks)?;
    write_back();
    check(cleaned > 0, "nothing was ever dirty")?;
    for (page, kept) in medium.iter().enumerate() {
        for (task, kept) in kept.iter().enumerate().take(tasks) {
            let last = LAST[task].load(SeqCst);
            check(*kept == last, &format!("page {page}, task {task}: the medium has {kept} of {last}"))?;
        }
    }
    Ok(())
}

/// A file shrinks and grows while all CPUs touch it: what is beyond the end is in no mapping.
pub fn truncation() -> Result<(), String> {
    fn toucher(me: usize) {
        let mut page = me as u64;
        while !STOP.load(SeqCst) {
            page = (page + 7) % PAGES;
            let _ = rt().user().write(word(me, page), b"touched");
            let _ = rt().user().read(&mut [0], word(me, (page * 5) % PAGES));
            rt().yield_now();
        }
        DONE.fetch_add(1, SeqCst);
    }
    let file = map_twice()?;
    let tasks = percpu::online_count();
    for me in 0..tasks {
        spawn(toucher, me, u64::MAX, 0);
    }
    let mut result = Ok(());
    for round in 0..200 {
        let size = round * 11 % PAGES;
        file.size.store(size, SeqCst);
        SPACE.file_lost(file.object, size..u64::MAX, true);
        let shown = (size..PAGES).filter(|&page| {
            let at = STARTS.each_ref().map(|start| start.load(SeqCst) + page * PAGE);
            let mut there = [true];
            at.iter().any(|&at| SPACE.resident(OWNER, at, PAGE, &mut there).is_err() || there[0])
        });
        let count = shown.count();
        if count > 0 && result.is_ok() {
            result = Err(format!("round {round}: {count} pages beyond the end are mapped"));
        }
        file.size.store(PAGES, SeqCst);
        rt().yield_now();
    }
    finish(tasks)?;
    result?;
    let held = file.pages.iter().filter(|page| page.refcount() != 1).count();
    check(held == 0, &format!("{held} pages are still referred to"))
}
