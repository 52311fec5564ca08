//! Tests of memory that is short: exhaustion and recovery, reclaim of mapped file pages, huge pages,
//! frames zeroed ahead.
use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use rt::{
    page::Page,
    rt,
    space::{AddressSpace as _, FileMapping, ObjectId, Pager, PagerError, Placement, ProgramId, Prot, SpaceError},
    sync::SpinLock,
    user::BadAddress,
};

use super::{
    check,
    memory::{comes_back, request},
    tasks::{spawn, wait_for},
};
use crate::{
    cpu::percpu,
    memory::{
        frames, reclaim,
        space::{self, SPACE},
    },
};

const OWNER: ProgramId = ProgramId(81);
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const HUGE: u64 = 2 * MIB;

pub fn shown<T>(result: Result<T, SpaceError>) -> Result<T, String> {
    result.map_err(|error| format!("{error:?}"))
}

/// Frames that nobody else can have meanwhile, so that little memory is left whatever the machine has.
struct Ballast(Vec<u64>);

impl Ballast {
    /// Leaves about as much beside the kernel's reserve.
    fn leaving(bytes: u64) -> Self {
        let (total, _) = frames::totals();
        let mut taken = Vec::with_capacity((total / PAGE) as usize);
        while frames::totals().1 > frames::reserve_bytes() + bytes {
            let Ok(frame) = frames::take_page(false) else { break };
            taken.push(frame);
        }
        Self(taken)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        self.0.drain(..).for_each(frames::unreference);
    }
}

const NUMBERED: ObjectId = ObjectId(u64::MAX);

/// A file without a device: each page begins with its index.
struct NumberedFile(SpinLock<Vec<Option<Page>>>);

static FILE: SpinLock<Option<Arc<NumberedFile>>> = SpinLock::new(None);

impl NumberedFile {
    fn cached(&self, index: u64) -> Option<Page> {
        self.0.lock().get(index as usize).and_then(Clone::clone)
    }
}

impl Pager for NumberedFile {
    fn page(&self, index: u64, _write: bool) -> Result<Page, PagerError> {
        if let Some(page) = self.cached(index) {
            return Ok(page);
        }
        let page = Page::alloc().map_err(|_| PagerError::OutOfFrames)?;
        page.write(0, &index.to_le_bytes());
        match self.0.lock().get_mut(index as usize) {
            Some(place) => Ok(place.get_or_insert(page).clone()),
            None => Err(PagerError::BeyondEnd),
        }
    }

    fn page_if_cached(&self, index: u64) -> Option<Page> {
        self.cached(index)
    }

    fn object(&self) -> ObjectId {
        NUMBERED
    }

    fn path(&self) -> String {
        String::from("/numbered")
    }

    fn identity(&self) -> (u32, u32, u64) {
        (0, 0, 81)
    }
}

/// What a file system's cache does: gives pages back that nobody else has, and if there are none takes
/// them from those that did not use them lately.
fn give_back(wanted: usize) -> usize {
    let Some(file) = FILE.lock().clone() else { return 0 };
    let mut freed = 0;
    for round in 0..3 {
        freed += give_unmapped(&file, wanted);
        if freed > 0 {
            break;
        }
        let chunks = file.0.lock().len() as u64 / 64;
        let mut unmapped = 0;
        for chunk in 0..chunks {
            unmapped += SPACE.unmap_unused(NUMBERED, chunk * 64, u64::MAX, round == 2).count_ones() as usize;
            if unmapped >= wanted {
                break;
            }
        }
    }
    freed
}

fn give_unmapped(file: &NumberedFile, wanted: usize) -> usize {
    let mut given = Vec::with_capacity(wanted);
    let mut pages = file.0.lock();
    for place in pages.iter_mut().filter(|place| place.as_ref().is_some_and(|page| page.refcount() == 1)) {
        if given.len() == wanted {
            break;
        }
        given.push(place.take());
    }
    drop(pages);
    given.len()
}

/// Maps that many pages of a file, all of them in its cache.
pub fn map_numbered_file(pages: u64) -> Result<u64, String> {
    let file = Arc::new(NumberedFile(SpinLock::new((0..pages).map(|_| None).collect())));
    for index in 0..pages {
        file.page(index, false).map_err(|error| format!("{error:?}"))?;
    }
    let mut mapping = request(pages * PAGE, Prot::READ, Placement::Anywhere);
    mapping.file = Some(FileMapping { pager: file, first_page: 0 });
    shown(SPACE.map(OWNER, mapping))
}

pub fn drop_numbered_file() {
    SPACE.release(OWNER);
}

/// A file four times as large as memory, mapped once and read by as many tasks as there are CPUs, twice.
pub fn file_larger_than_memory() -> Result<(), String> {
    const PAGES: u64 = 2048;
    static START: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static FAILED: AtomicU64 = AtomicU64::new(0);
    static WRONG: AtomicU64 = AtomicU64::new(0);
    fn read_all(seed: usize) {
        for step in 0..2 * PAGES {
            let index = (step * 5 + seed as u64 * 1111) % PAGES;
            let mut bytes = [0; 8];
            match rt().user().read(&mut bytes, START.load(SeqCst) + index * PAGE) {
                Ok(()) if u64::from_le_bytes(bytes) == index => {}
                Ok(()) => drop(WRONG.fetch_add(1, SeqCst)),
                Err(_) => drop(FAILED.fetch_add(1, SeqCst)),
            }
        }
        DONE.fetch_add(1, SeqCst);
    }
    let file = Arc::new(NumberedFile(SpinLock::new((0..PAGES).map(|_| None).collect())));
    *FILE.lock() = Some(file.clone());
    reclaim::add_reclaimer(give_back);
    let mut mapping = request(PAGES * PAGE, Prot::READ, Placement::Anywhere);
    mapping.file = Some(FileMapping { pager: file, first_page: 0 });
    START.store(shown(SPACE.map(OWNER, mapping))?, SeqCst);
    DONE.store(0, SeqCst);
    let ballast = Ballast::leaving(PAGES * PAGE / 4);
    let count = percpu::online_count();
    for seed in 0..count {
        spawn(read_all, seed, u64::MAX, 0);
    }
    let waited = wait_for(|| DONE.load(SeqCst) == count);
    drop(ballast);
    SPACE.release(OWNER);
    *FILE.lock() = None;
    waited?;
    let (failed, wrong) = (FAILED.load(SeqCst), WRONG.load(SeqCst));
    check(failed + wrong == 0, &format!("{failed} reads failed, {wrong} found other bytes"))
}

/// Tasks on all CPUs take what there is; every one ends with a refusal, the kernel goes on, and all of it
/// comes back.
pub fn exhaustion() -> Result<(), String> {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static REFUSED: AtomicUsize = AtomicUsize::new(0);
    fn grab(owner: usize) {
        let owner = ProgramId(owner as u32);
        let mut wanted = request(64 * MIB, Prot::READ | Prot::WRITE, Placement::Anywhere);
        wanted.no_reserve = true;
        if let Ok(start) = SPACE.map(owner, wanted)
            && SPACE.populate(owner, start, 64 * MIB, true) == Err(SpaceError::NoMemory)
        {
            REFUSED.fetch_add(1, SeqCst);
        }
        DONE.fetch_add(1, SeqCst);
    }
    let (total, _) = frames::totals();
    let mut more = request(total.next_multiple_of(PAGE) + PAGE, Prot::READ | Prot::WRITE, Placement::Anywhere);
    check(SPACE.map(OWNER, more.clone()) == Err(SpaceError::NoMemory), "mapped more than there is")?;
    more.no_reserve = true;
    shown(SPACE.map(OWNER, more))?;
    SPACE.release(OWNER);

    let round = || -> Result<(), String> {
        DONE.store(0, SeqCst);
        REFUSED.store(0, SeqCst);
        let ballast = Ballast::leaving(16 * MIB);
        let count = percpu::online_count().max(2);
        for task in 0..count {
            spawn(grab, 8100 + task, u64::MAX, 0);
        }
        let waited = wait_for(|| DONE.load(SeqCst) == count);
        let page_left = frames::take_page(false).map(frames::unreference).is_ok();
        let kernel_left = frames::take(false).map(frames::unreference).is_ok();
        let refused = REFUSED.load(SeqCst);
        for task in 0..count {
            SPACE.release(ProgramId(8100 + task as u32));
        }
        drop(ballast);
        waited?;
        check(refused == count, &format!("{refused} of {count} were refused"))?;
        check(kernel_left || page_left, "the kernel's reserve was taken")
    };
    // The first round makes page tables, stacks and heap, which stay.
    round()?;
    comes_back(MIB + MIB / 2, round)
}

/// Writes each page's number into it.
fn number_pages(start: u64, pages: u64) -> Result<(), String> {
    (0..pages).try_for_each(|at| {
        rt().user().write(start + at * PAGE, &at.to_le_bytes()).map_err(|_| String::from("write refused"))
    })
}

/// Checks that page `at` of the mapping reads as `expected`.
fn numbered(start: u64, at: u64, expected: u64) -> Result<(), String> {
    let mut bytes = [0; 8];
    rt().user().read(&mut bytes, start + at * PAGE).map_err(|_| format!("page {at} not readable"))?;
    let found = u64::from_le_bytes(bytes);
    check(found == expected, &format!("page {at} reads {found}, not {expected}"))
}

fn resident() -> u64 {
    SPACE.footprint(OWNER).resident_bytes
}

/// 8 MiB, aligned, with huge pages wanted.
fn huge_mapping() -> Result<u64, String> {
    let start = shown(SPACE.map(OWNER, request(10 * MIB, Prot::READ | Prot::WRITE, Placement::Anywhere)))?;
    let aligned = start.next_multiple_of(HUGE);
    shown(SPACE.advise_huge(OWNER, aligned, 8 * MIB, true))?;
    Ok(aligned)
}

pub fn huge_pages() -> Result<(), String> {
    // A small machine has no huge page left after the other tests; then this shows the small ones.
    let plenty = frames::totals().1 > 128 * MIB;
    let round = || -> Result<(), String> {
        let start = huge_mapping()?;
        rt().user().write(start + HUGE + 5 * PAGE, b"x").map_err(|_| "write refused")?;
        check(!plenty || resident() == HUGE, "one touch is not one huge page")?;
        number_pages(start, 2048)?;
        check(resident() == 8 * MIB, "four huge pages")?;
        // The middle of the first goes, and only that.
        shown(SPACE.unmap(OWNER, start + 7 * PAGE, PAGE))?;
        check(resident() == 8 * MIB - PAGE, "unmapping one page took others")?;
        numbered(start, 6, 6)?;
        numbered(start, 8, 8)?;
        check(rt().user().write(start + 7 * PAGE, b"x") == Err(BadAddress), "the unmapped page is there")?;
        // A part of the second becomes read-only, then the whole.
        shown(SPACE.protect(OWNER, start + HUGE, 3 * PAGE, Prot::READ))?;
        check(rt().user().write(start + HUGE + 2 * PAGE, b"x") == Err(BadAddress), "wrote to a read-only page")?;
        numbered(start, 514, 514)?;
        rt().user().write(start + HUGE + 3 * PAGE, &515u64.to_le_bytes()).map_err(|_| "write beside it refused")?;
        // The third stays whole through a change of rights, and comes back after none.
        shown(SPACE.protect(OWNER, start + 2 * HUGE, HUGE, Prot::READ))?;
        check(rt().user().write(start + 2 * HUGE, b"x") == Err(BadAddress), "wrote to a read-only huge page")?;
        shown(SPACE.protect(OWNER, start + 2 * HUGE, HUGE, Prot::empty()))?;
        check(rt().user().read(&mut [0], start + 2 * HUGE) == Err(BadAddress), "read without the right to")?;
        shown(SPACE.protect(OWNER, start + 2 * HUGE, HUGE, Prot::READ | Prot::WRITE))?;
        numbered(start, 1024 + 511, 1024 + 511)?;
        // Of the fourth a part is discarded, then the rest moves.
        shown(SPACE.discard(OWNER, start + 3 * HUGE + PAGE, 2 * PAGE))?;
        numbered(start, 1536, 1536)?;
        numbered(start, 1537, 0)?;
        numbered(start, 1539, 1539)?;
        let moved = shown(SPACE.remap(OWNER, start + 3 * HUGE, HUGE, 2 * HUGE, true, None))?;
        numbered(moved, 511, 2047)?;
        // Dropped whole, it reads as zero, huge again.
        shown(SPACE.protect(OWNER, start + HUGE, 3 * PAGE, Prot::READ | Prot::WRITE))?;
        let before = resident();
        shown(SPACE.discard(OWNER, start + HUGE, HUGE))?;
        check(resident() == before - HUGE, "discarded pages are there")?;
        numbered(start, 513, 0)?;
        check(!plenty || resident() == before, "no huge page where small ones were")?;
        SPACE.release(OWNER);
        check(resident() == 0, "pages left after release")
    };
    round()?;
    let (_, before) = frames::totals();
    for _ in 0..5 {
        round()?;
    }
    let (_, after) = frames::totals();
    let lost = before.saturating_sub(after);
    check(lost < MIB + MIB / 2, &format!("{lost} bytes of frames lost"))
}

/// With memory short, what nobody used of a huge page comes back, and nothing else.
pub fn huge_pages_unused() -> Result<(), String> {
    let start = huge_mapping()?;
    number_pages(start, 10)?;
    number_pages(start + HUGE, 512)?;
    let whole = resident();
    // A small machine has no huge page left after the other tests; then there is nothing unused.
    let unused = if whole == 2 * HUGE { (HUGE - 9 * PAGE) / PAGE } else { 0 };
    let (_, before) = frames::totals();
    let freed = (0..4).map(|_| space::give_back_unused(1024) as u64).sum::<u64>();
    // The first page's number is 0: it is unused as well.
    check(freed == unused, &format!("{freed} pages came back, not {unused}"))?;
    check(resident() == whole - freed * PAGE, "the footprint does not show it")?;
    check(frames::totals().1 + MIB > before + freed * PAGE, "the frames are not free")?;
    numbered(start, 9, 9)?;
    numbered(start + HUGE, 511, 511)?;
    rt().user().write(start + 11 * PAGE, b"x").map_err(|_| "an unused page is not there any more")?;
    numbered(start + 12 * PAGE, 0, 0)?;
    SPACE.release(OWNER);
    check(resident() == 0, "pages left after release")
}

/// One CPU splits and drops huge pages while the others write them.
pub fn huge_pages_shared() -> Result<(), String> {
    static START: AtomicU64 = AtomicU64::new(0);
    static STOP: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static WRONG: AtomicUsize = AtomicUsize::new(0);
    fn write_own(seed: usize) {
        let mut round = 0u64;
        while STOP.load(SeqCst) == 0 {
            round += 1;
            // The last page of each huge page is nobody's to discard.
            let at = START.load(SeqCst) + (round % 4 + 1) * HUGE - PAGE + seed as u64 * 8;
            let mut back = [0; 8];
            let wrote = rt().user().write(at, &round.to_le_bytes());
            if wrote.is_err() || rt().user().read(&mut back, at).is_err() || back != round.to_le_bytes() {
                WRONG.fetch_add(1, SeqCst);
            }
            rt().yield_now();
        }
        DONE.fetch_add(1, SeqCst);
    }
    let start = huge_mapping()?;
    START.store(start, SeqCst);
    STOP.store(0, SeqCst);
    DONE.store(0, SeqCst);
    let count = percpu::online_count();
    for seed in 0..count {
        spawn(write_own, seed, u64::MAX, 0);
    }
    for round in 0..100 {
        let huge = start + round % 2 * HUGE;
        shown(SPACE.protect(OWNER, huge, HUGE / 2, Prot::READ))?;
        shown(SPACE.discard(OWNER, huge, HUGE - PAGE))?;
        shown(SPACE.protect(OWNER, huge, HUGE / 2, Prot::READ | Prot::WRITE))?;
        if round > 1 {
            // The other two are still whole, and all but their last pages unused.
            space::give_back_unused(1);
        }
        rt().yield_now();
    }
    STOP.store(1, SeqCst);
    wait_for(|| DONE.load(SeqCst) == count)?;
    SPACE.release(OWNER);
    let wrong = WRONG.load(SeqCst);
    check(wrong == 0, &format!("{wrong} writes were lost"))
}

pub fn zeroed_ahead() -> Result<(), String> {
    // Frames with something in them, so that zero is no accident.
    let start = shown(SPACE.map(OWNER, request(4 * MIB, Prot::READ | Prot::WRITE, Placement::Anywhere)))?;
    number_pages(start, 1024)?;
    shown(SPACE.discard(OWNER, start, 4 * MIB))?;
    let (_, before) = frames::totals();
    let mut count = 0;
    while frames::zero_ahead() {
        count += 1;
    }
    check(count <= 256, &format!("{count} frames zeroed ahead"))?;
    let (_, after) = frames::totals();
    check(before.abs_diff(after) < MIB / 2, "frames zeroed ahead do not count as free")?;
    let mut bytes = [0; 8];
    for at in 0..1024 {
        rt().user().read(&mut bytes, start + at * PAGE).map_err(|_| "read refused")?;
        check(bytes == [0; 8], "a page that is not zero")?;
    }
    SPACE.release(OWNER);
    Ok(())
}
