//! epoll(7): level and edge triggered, one-shot.
//!
//! A wait stands in the queues of all watched files and looks at each, so it costs time in proportion
//! to their number. (Files wake tasks, not callbacks: a ready list needs the latter, and comes with
//! the network.)
//!
//! # Locking
//! `watches` is a spin lock; files are cloned out of it before anything is asked of them.
use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec,
    vec::Vec,
};
use core::sync::atomic::{AtomicU64, Ordering};

use fs::{
    FileKind, Metadata, OpenFile, OpenFlags as FsFlags, Readiness,
    error::FsResult,
    eventfd::anonymous_metadata,
    file::{FileOps, ReadyQueues},
};
use rt::sync::{SpinLock, WaitQueue};

use super::{get, install, poll};
use crate::{
    args::{Addr, Fd, TimespecIn, flags::EpollFlags, names::EpollOp},
    call::Ctx,
    errno::{EEXIST, EINVAL, ELOOP, ENOENT, EPERM, SysResult},
};

const EPOLLEXCLUSIVE: u32 = 1 << 28;
const EPOLLWAKEUP: u32 = 1 << 29;
const EPOLLONESHOT: u32 = 1 << 30;
const EPOLLET: u32 = 1 << 31;
const EVENT_BITS: u32 = 0xffff;
/// `struct epoll_event` is packed on x86-64.
const EVENT_BYTES: usize = 12;

struct Watch {
    file: Weak<OpenFile>,
    events: u32,
    data: u64,
    /// Edge triggered: what was reported, until it is seen to be gone.
    reported: u32,
    /// The file's wake-ups at that report: any since is a new edge, even if it was ready all along.
    wakes: u64,
    /// One-shot: reported, and silent until it is modified.
    spent: bool,
}

/// An epoll instance.
pub struct Epoll {
    watches: SpinLock<BTreeMap<i32, Watch>>,
    /// Counts changes of the set.
    generation: AtomicU64,
    changed: WaitQueue,
}

impl Epoll {
    fn new() -> Self {
        Self { watches: SpinLock::new(BTreeMap::new()), generation: AtomicU64::new(0), changed: WaitQueue::new() }
    }

    /// The files that are watched; closed ones leave the set (epoll(7), Q6).
    fn files(&self) -> Vec<Arc<OpenFile>> {
        let mut watches = self.watches.lock();
        watches.retain(|_, watch| watch.file.strong_count() > 0);
        watches.values().filter(|watch| !watch.spent).filter_map(|watch| watch.file.upgrade()).collect()
    }

    /// Takes up to `max` events out. With `keep` it only looks (an epoll that is polled itself).
    fn collect(&self, max: usize, keep: bool) -> Vec<(u32, u64)> {
        let candidates: Vec<(i32, Arc<OpenFile>, u32)> = self
            .watches
            .lock()
            .iter()
            .filter(|(_, watch)| !watch.spent)
            .filter_map(|(fd, watch)| Some((*fd, watch.file.upgrade()?, watch.events)))
            .collect();
        let mut events = Vec::new();
        for (fd, file, wanted) in candidates {
            // Read first: a wake-up between the two is seen as an edge next time.
            let wakes = wakes_of(&file);
            let watched = poll::Watched { file, events: wanted & EVENT_BITS };
            let ready = watched.ready();
            let mut watches = self.watches.lock();
            let Some(watch) = watches.get_mut(&fd) else { continue };
            let report =
                if watch.events & EPOLLET == 0 || watch.wakes != wakes { ready } else { ready & !watch.reported };
            if keep {
                if report != 0 {
                    events.push((report, watch.data));
                }
                continue;
            }
            // An edge counts again once the condition has been gone.
            watch.reported &= ready;
            if report == 0 {
                continue;
            }
            if events.len() == max {
                break;
            }
            watch.reported |= ready;
            watch.wakes = wakes;
            watch.spent = watch.events & EPOLLONESHOT != 0;
            events.push((ready, watch.data));
        }
        events
    }
}

fn wakes_of(file: &OpenFile) -> u64 {
    let queues = file.ops().ready_queues();
    [queues.input, queues.output].into_iter().flatten().map(WaitQueue::wakes).sum()
}

impl FileOps for Epoll {
    fn is_stream(&self) -> bool {
        true
    }

    fn metadata(&self) -> FsResult<Metadata> {
        Ok(anonymous_metadata())
    }

    fn readiness(&self) -> Readiness {
        if self.collect(1, true).is_empty() { Readiness::empty() } else { Readiness::IN }
    }

    fn ready_queues(&self) -> ReadyQueues<'_> {
        ReadyQueues { input: Some(&self.changed), output: None }
    }

    fn description(&self) -> Vec<u8> {
        b"anon_inode:[eventpoll]".to_vec()
    }
}

/// epoll_create(2).
pub fn epoll_create(cx: &mut Ctx<'_>, size: i32) -> SysResult {
    if size <= 0 {
        return Err(EINVAL);
    }
    epoll_create1(cx, EpollFlags(0))
}

/// epoll_create1(2).
pub fn epoll_create1(cx: &mut Ctx<'_>, flags: EpollFlags) -> SysResult {
    if flags.0 & !EpollFlags::CLOEXEC != 0 {
        return Err(EINVAL);
    }
    let file = OpenFile::new(Arc::new(Epoll::new()), FsFlags::READ_WRITE);
    install(cx, file, flags.has(EpollFlags::CLOEXEC))
}

/// epoll_ctl(2).
pub fn epoll_ctl(cx: &mut Ctx<'_>, epoll: Fd, op: EpollOp, fd: Fd, event: Addr) -> SysResult {
    let instance = get(cx, epoll)?;
    let target = get(cx, fd)?;
    let set = instance.ops_as::<Epoll>().ok_or(EINVAL)?;
    if Arc::ptr_eq(&instance, &target) {
        return Err(EINVAL);
    }
    if target.ops_as::<Epoll>().is_some() {
        // Nesting would need wake-ups to pass through; refused as too deep.
        return Err(ELOOP);
    }
    // Files that are always ready cannot be watched (epoll_ctl(2)).
    if target.location().is_some_and(|at| matches!(at.kind(), FileKind::Regular | FileKind::Directory)) {
        return Err(EPERM);
    }
    let (events, data) = match op.0 {
        EpollOp::DEL => (0, 0),
        _ => read_event(event)?,
    };
    if events & EPOLLEXCLUSIVE != 0 {
        return Err(EINVAL);
    }
    let watch = Watch {
        file: Arc::downgrade(&target),
        events: events & !EPOLLWAKEUP,
        data,
        reported: 0,
        wakes: 0,
        spent: false,
    };
    let mut watches = set.watches.lock();
    // A descriptor that was closed and used again is another file: its old entry is dead.
    if watches.get(&fd.0).is_some_and(|old| !old.file.upgrade().is_some_and(|file| Arc::ptr_eq(&file, &target))) {
        watches.remove(&fd.0);
    }
    let present = watches.contains_key(&fd.0);
    match (op.0, present) {
        (EpollOp::ADD, true) => return Err(EEXIST),
        (EpollOp::DEL | EpollOp::MOD, false) => return Err(ENOENT),
        (EpollOp::ADD | EpollOp::MOD, _) => drop(watches.insert(fd.0, watch)),
        (EpollOp::DEL, _) => drop(watches.remove(&fd.0)),
        _ => return Err(EINVAL),
    }
    drop(watches);
    set.generation.fetch_add(1, Ordering::SeqCst);
    // Those who wait look at the new set.
    set.changed.wake_all();
    Ok(0)
}

fn read_event(at: Addr) -> SysResult<(u32, u64)> {
    let bytes: [u8; EVENT_BYTES] = at.read()?;
    let (mut events, mut data) = ([0; 4], [0; 8]);
    events.copy_from_slice(&bytes[..4]);
    data.copy_from_slice(&bytes[4..]);
    Ok((u32::from_le_bytes(events), u64::from_le_bytes(data)))
}

/// epoll_wait(2).
pub fn epoll_wait(cx: &mut Ctx<'_>, epoll: Fd, events: Addr, max: i32, timeout_ms: i32) -> SysResult {
    let deadline = u64::try_from(timeout_ms).ok().map(|ms| cx.deadline_after(ms * 1_000_000));
    wait_until(cx, epoll, events, max, deadline)
}

/// epoll_pwait(2).
pub fn epoll_pwait(
    cx: &mut Ctx<'_>,
    epoll: Fd,
    events: Addr,
    max: i32,
    timeout_ms: i32,
    mask: Addr,
    set_bytes: u64,
) -> SysResult {
    let deadline = u64::try_from(timeout_ms).ok().map(|ms| cx.deadline_after(ms * 1_000_000));
    poll::with_mask(cx, mask, set_bytes, |cx| wait_until(cx, epoll, events, max, deadline))
}

/// epoll_pwait2(2).
pub fn epoll_pwait2(
    cx: &mut Ctx<'_>,
    epoll: Fd,
    events: Addr,
    max: i32,
    timeout: TimespecIn,
    mask: Addr,
    set_bytes: u64,
) -> SysResult {
    let deadline = poll::optional_timespec(cx, timeout)?;
    poll::with_mask(cx, mask, set_bytes, |cx| wait_until(cx, epoll, events, max, deadline))
}

fn wait_until(cx: &mut Ctx<'_>, epoll: Fd, out: Addr, max: i32, deadline: Option<u64>) -> SysResult {
    let instance = get(cx, epoll)?;
    let set = instance.ops_as::<Epoll>().ok_or(EINVAL)?;
    let max = usize::try_from(max).ok().filter(|max| (1..=1 << 20).contains(max)).ok_or(EINVAL)?;
    let events = loop {
        let seen = set.generation.load(Ordering::SeqCst);
        let mut files = set.files();
        // The instance itself: woken when the set changes.
        files.push(instance.clone());
        let changed = || set.generation.load(Ordering::SeqCst) != seen;
        let found = poll::wait_for(cx, files.iter(), deadline, || {
            let events = set.collect(max, false);
            (!events.is_empty() || changed()).then_some(events)
        })?;
        match found {
            None => return Ok(0),
            // The set has changed: stand in the new queues.
            Some(events) if events.is_empty() => {}
            Some(events) => break events,
        }
    };
    let mut bytes = vec![0u8; events.len() * EVENT_BYTES];
    for (entry, (ready, data)) in bytes.chunks_exact_mut(EVENT_BYTES).zip(&events) {
        entry[..4].copy_from_slice(&ready.to_le_bytes());
        entry[4..].copy_from_slice(&data.to_le_bytes());
    }
    out.write(&bytes)?;
    Ok(events.len() as u64)
}
