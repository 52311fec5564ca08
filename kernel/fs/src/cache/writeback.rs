//! Writeback: dirty pages go to their medium.
//!
//! A page becomes dirty by a write call, or by a mapping's first write: shared mappings of such files
//! are read-only until a write fault, which the address space reports to the pager. Taking a page for
//! writing makes mappings read-only again *before* its bytes go out, so whatever is written later faults
//! and makes it dirty once more (docs/decisions/dirty-pages.md).
//!
//! Who writes: [`Writeback::sync`] (fsync, msync, O_SYNC), [`sync_all`] (sync, power-off), a kernel task
//! after a few seconds or when much is dirty, a writer that makes too much dirty ([`balance`]), and
//! reclaim when nothing clean is left ([`write_some`]).
//!
//! # Errors
//! A page whose write failed is not written again; as on Linux it counts as clean, and the failure is
//! kept: each open file's next fsync reports it, once ([`Errors`]). It is also said on the console.
//!
//! # Locking
//! No lock is held over I/O. The registry's spin lock is a leaf. Nothing here allocates pages, as reclaim
//! comes here.
use alloc::{
    boxed::Box,
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use rt::{
    page::{PAGE_SIZE, Page},
    rt,
    sync::{SpinLock, WaitQueue},
    task::{ParkMode, TaskSpec},
};

use super::{
    FilePages,
    dirty::{self, Found, RUN, Run},
    reclaim,
};
use crate::error::{FsError, FsResult};

/// So long a page may be dirty before the kernel writes it by itself. Tests look at what is dirty, however
/// slow their host is.
const AGE_NS: u64 = if cfg!(test) { u64::MAX / 4 } else { 5_000_000_000 };
/// At this part of memory writers have to wait, and at half of it the kernel begins to write.
const LIMIT_PART: u64 = 8;
const LIMIT_MOST_BYTES: u64 = 512 << 20;

/// Where a file's pages are kept.
pub trait Medium: Send + Sync {
    /// Writes pages from page `first` on. Sleeps; several calls may be under way, for different pages.
    fn store(&self, first: u64, pages: &[Page]) -> FsResult<()>;
    /// When it returns, everything stored before is there after a loss of power.
    fn flush(&self) -> FsResult<()>;
}

/// A file's pages and their medium.
pub struct Writeback {
    /// For messages.
    name: String,
    pages: Arc<FilePages>,
    medium: Box<dyn Medium>,
    errors: Errors,
    failures: AtomicU64,
}

static FILES: SpinLock<Vec<Weak<Writeback>>> = SpinLock::new(Vec::new());
/// The file at which [`write_some`] goes on.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Where the kernel's own task waits for something to write, and then for more or for its time.
static SOME: WaitQueue = WaitQueue::new();
static MUCH: WaitQueue = WaitQueue::new();

impl Writeback {
    /// Writeback of `pages`, which reclaim may take from now on when they are clean.
    pub fn new(name: &str, pages: Arc<FilePages>, medium: Box<dyn Medium>) -> Arc<Self> {
        if !core::mem::replace(&mut pages.slots.lock().registered, true) {
            reclaim::register(Arc::downgrade(&pages));
        }
        let name = String::from(name);
        let file = Arc::new(Self { name, pages, medium, errors: Errors::default(), failures: AtomicU64::new(0) });
        let mut files = FILES.lock();
        files.retain(|file| file.strong_count() > 0);
        files.push(Arc::downgrade(&file));
        drop(files);
        file
    }

    pub fn errors(&self) -> &Errors {
        &self.errors
    }

    /// Marks a page dirty that was written, or is about to be by a mapping. False: it is not the file's
    /// any more.
    pub fn mark_dirty(&self, index: u64, page: &Page) -> bool {
        let marked = self.pages.mark_dirty(index, page);
        start_task();
        SOME.wake_all();
        if is_much() {
            MUCH.wake_all();
        }
        marked
    }

    /// Writes what is dirty of these pages now, and has the medium keep it. What fails is for
    /// [`Errors::check`] to report.
    pub fn sync(&self, range: Range<u64>) {
        self.write_range(range);
        if let Err(error) = self.medium.flush() {
            self.failed("flush", error);
        }
    }

    fn write_range(&self, mut range: Range<u64>) {
        loop {
            match self.pages.take_run(range.clone(), false) {
                Found::Run(run) => {
                    range.start = run.range().end;
                    self.write(run);
                }
                // Two writes of one page at once could arrive in either order.
                Found::Writing(index) => {
                    self.pages.wait_written(index);
                    range.start = index;
                }
                Found::Nothing => return,
            }
        }
    }

    fn write(&self, run: Run) {
        let range = run.range();
        rt().address_space().write_protect(self.pages.object(), range.clone());
        if let Err(error) = self.medium.store(run.first, &run.pages) {
            self.failed("write", error);
        }
        drop(run);
        self.pages.end_run(range);
    }

    /// Loud, but not once for each of a million pages.
    fn failed(&self, what: &str, error: FsError) {
        self.errors.add();
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures.is_power_of_two() {
            log::error!("{}: {what} failed ({error:?}), {failures} so far: data is lost", self.name);
        }
    }
}

/// Makes who is about to make a page dirty wait while too much is. Sleeps; no locks.
pub fn balance() {
    // Each time around pages get clean, whether the medium takes them or fails.
    while dirty::unwritten() > limit() && write_some() {}
}

/// Writes a few dirty pages of any file, or waits for some that are on their way. False: there are none.
pub fn write_some() -> bool {
    let files = FILES.lock().len();
    let start = NEXT.fetch_add(1, Ordering::Relaxed);
    for skip in [true, false] {
        for at in 0..files {
            let Some(file) = file_at(start.wrapping_add(at)) else { continue };
            match file.pages.take_run(0..u64::MAX, skip) {
                Found::Run(run) => file.write(run),
                Found::Writing(index) => file.pages.wait_written(index),
                Found::Nothing => continue,
            }
            return true;
        }
    }
    false
}

/// Writes everything of every file (sync(2), power-off). False: some of it failed, now or before.
pub fn sync_all() -> bool {
    let mut whole = true;
    for file in all() {
        if file.pages.unwritten() > 0 || file.failures.load(Ordering::Relaxed) > 0 {
            file.sync(0..u64::MAX);
        } else if let Err(error) = file.medium.flush() {
            file.failed("flush", error);
        }
        whole &= file.failures.load(Ordering::Relaxed) == 0;
    }
    whole
}

fn all() -> Vec<Arc<Writeback>> {
    let mut files = Vec::new();
    let mut at = 0;
    loop {
        let next = FILES.lock().get(at).map(Weak::upgrade);
        match next {
            Some(file) => files.extend(file),
            None => return files,
        }
        at += 1;
    }
}

fn file_at(number: usize) -> Option<Arc<Writeback>> {
    let files = FILES.lock();
    files.get(number.checked_rem(files.len())?)?.upgrade()
}

/// Pages that may be dirty before writers wait.
fn limit() -> u64 {
    static LIMIT: AtomicU64 = AtomicU64::new(0);
    match LIMIT.load(Ordering::Relaxed) {
        0 => {
            let bytes = (rt().memory_bytes().0 / LIMIT_PART).min(LIMIT_MOST_BYTES);
            let pages = (bytes / PAGE_SIZE as u64).max(2 * RUN as u64);
            LIMIT.store(pages, Ordering::Relaxed);
            pages
        }
        pages => pages,
    }
}

/// Starts the kernel's task, once there is something for it to do.
fn start_task() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.load(Ordering::Relaxed) || STARTED.swap(true, Ordering::AcqRel) {
        return;
    }
    let spec = TaskSpec::kernel("writeback", task);
    if rt().spawn(spec).is_err() {
        // Writers and reclaim write themselves until there is memory for it.
        STARTED.store(false, Ordering::Release);
    }
}

fn is_much() -> bool {
    dirty::unwritten() > limit() / 2
}

/// Writes what has been dirty for a while, sooner when it is much.
fn task(_: usize) {
    loop {
        let some = || (dirty::unwritten() > 0).then_some(());
        let much = || is_much().then_some(());
        let _ = SOME.wait_until(None, ParkMode::Uninterruptible, some);
        let _ = MUCH.wait_until(Some(rt().now_ns() + AGE_NS), ParkMode::Uninterruptible, much);
        for file in all() {
            file.write_range(0..u64::MAX);
        }
    }
}

/// Failures of a file's medium, counted so that each open file is told of each once (Linux' errseq).
#[derive(Default)]
pub struct Errors {
    /// Twice the number of failures, plus 1 if some open file was told of the last.
    state: AtomicU64,
}

impl Errors {
    fn add(&self) {
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| Some((state | 1) + 1));
    }

    /// What a newly opened file has been told of: nothing yet of a failure that nobody was told of.
    pub fn sample(&self) -> u64 {
        let state = self.state.load(Ordering::Acquire);
        if state & 1 == 0 { 0 } else { state / 2 }
    }

    /// An error, if there was a failure since `seen`, which moves on.
    pub fn check(&self, seen: &AtomicU64) -> FsResult<()> {
        let failures = self.state.load(Ordering::Acquire) / 2;
        if seen.swap(failures, Ordering::AcqRel) == failures {
            return Ok(());
        }
        let _ = self.state.compare_exchange(2 * failures, 2 * failures + 1, Ordering::AcqRel, Ordering::Relaxed);
        Err(FsError::Io)
    }
}
