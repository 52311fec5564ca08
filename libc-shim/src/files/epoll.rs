//! epoll(7): level and edge triggered, one-shot, nested.
//!
//! A wait stands in the queues of all watched files and looks at each, so it costs time in proportion
//! to their number. (Files wake tasks, not callbacks: a ready list needs the latter, and comes with
//! the network.) For the same reason EPOLLEXCLUSIVE wakes all, which it may.
//!
//! # Locking
//! `watches` is a spin lock; files are cloned out of it before anything is asked of them. `NESTING`
//! sleeps and is held while one instance enters another.
use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec,
    vec::Vec,
};
use core::ops::Bound;

use fs::{
    FileKind, Metadata, OpenFile, OpenFlags as FsFlags, Readiness,
    descriptor::Watcher,
    error::FsResult,
    eventfd::anonymous_metadata,
    file::{FileOps, ReadyQueues},
};
use rt::{
    sync::{Mutex, SpinLock, WaitQueue},
    task::TaskRef,
};

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
/// What may stand beside EPOLLEXCLUSIVE: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP and two modes.
const BESIDE_EXCLUSIVE: u32 = 0x1 | 0x4 | 0x8 | 0x10 | EPOLLWAKEUP | EPOLLET;
/// `struct epoll_event` is packed on x86-64.
const EVENT_BYTES: usize = 12;
/// Most that epoll_wait may be asked for, as on Linux.
const MAX_EVENTS: i32 = i32::MAX / EVENT_BYTES as i32;
/// Most that one call gives.
const EVENTS_AT_ONCE: usize = 4096;
/// How many instances may watch each other in a row (Linux' EP_MAX_NESTS), the first included.
const NESTING_MAX: usize = 5;

/// One instance at a time enters another, so that two do not close a circle together.
static NESTING: Mutex<()> = Mutex::new(());

/// A watch is of a descriptor and its file: the number may be used again while the file lives on under
/// another one (epoll(7), Q6).
type Key = (i32, usize);

fn key(fd: i32, file: &OpenFile) -> Key {
    (fd, core::ptr::from_ref(file).addr())
}

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
    watches: SpinLock<BTreeMap<Key, Watch>>,
    /// Where the last report ended: the next begins behind it, so that what is always ready does not
    /// keep others from being seen.
    last: SpinLock<Key>,
    /// Woken when the set changes.
    changed: WaitQueue,
    own: Weak<Self>,
    /// The instances that watch this one, once for each watch. Changes under `NESTING`.
    parents: SpinLock<Vec<Weak<Self>>>,
}

impl Epoll {
    fn new() -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            watches: SpinLock::new(BTreeMap::new()),
            last: SpinLock::new((i32::MIN, 0)),
            changed: WaitQueue::new(),
            own: own.clone(),
            parents: SpinLock::new(Vec::new()),
        })
    }

    /// Enters `task` into the queues of the files that are watched, and of what those of them watch that are
    /// instances, too. They are added to `out`, to be left again. The task stands in this instance's own queue
    /// already, and in each inner one's before its set is read: so no change of a set is missed.
    pub fn enlist_in_watched(&self, task: &TaskRef, out: &mut Vec<Arc<OpenFile>>) {
        let from = out.len();
        let watches = self.watches.lock();
        out.extend(watches.values().filter(|watch| !watch.spent).filter_map(|watch| watch.file.upgrade()));
        drop(watches);
        for at in from..out.len() {
            let file = out[at].clone();
            file.enlist(task);
            if let Some(inner) = file.ops_as::<Self>() {
                inner.enlist_in_watched(task, out);
            }
        }
    }

    /// How many instances are below each other from this one on, itself included; None if `instance` is
    /// among them. Never many: see [`Epoll::height`].
    fn depth(&self, instance: &Self) -> Option<usize> {
        if core::ptr::eq(self, instance) {
            return None;
        }
        let files: Vec<_> = self.watches.lock().values().filter_map(|watch| watch.file.upgrade()).collect();
        let inner = files.iter().filter_map(|file| file.ops_as::<Self>());
        inner.map(|inner| inner.depth(instance)).try_fold(0, |most, depth| Some(most.max(depth?))).map(|most| most + 1)
    }

    /// How many instances are above each other from this one on, itself included.
    fn height(&self) -> usize {
        let parents: Vec<_> = self.parents.lock().iter().filter_map(Weak::upgrade).collect();
        1 + parents.iter().map(|parent| parent.height()).max().unwrap_or(0)
    }

    /// Lets `self` watch `nested`, unless that closed a circle or made a chain too long: those who look
    /// recurse along it.
    fn adopt(&self, nested: &Self) -> SysResult<()> {
        let depth = nested.depth(self).ok_or(ELOOP)?;
        if self.height() + depth > NESTING_MAX {
            return Err(ELOOP);
        }
        let mut parents = nested.parents.lock();
        parents.retain(|parent| parent.strong_count() > 0);
        parents.push(self.own.clone());
        Ok(())
    }

    /// Takes back what [`Epoll::adopt`] did.
    fn disown(&self, nested: &Self) {
        let mut parents = nested.parents.lock();
        let own = parents.iter().position(|parent| parent.ptr_eq(&self.own));
        own.map(|at| parents.swap_remove(at));
    }

    /// Takes up to `max` events out. With `keep` it only looks (an epoll that is polled itself).
    fn collect(&self, max: usize, keep: bool) -> Vec<(u32, u64)> {
        let last = *self.last.lock();
        let watches = self.watches.lock();
        let behind = watches.range((Bound::Excluded(last), Bound::Unbounded));
        let candidates: Vec<(Key, Arc<OpenFile>, u32)> = behind
            .chain(watches.range(..=last))
            .filter(|(_, watch)| !watch.spent)
            .filter_map(|(key, watch)| Some((*key, watch.file.upgrade()?, watch.events)))
            .collect();
        drop(watches);
        let mut events = Vec::new();
        for (key, file, wanted) in candidates {
            // Read first: a wake-up between the two is seen as an edge next time.
            let wakes = wakes_of(&file);
            let watched = poll::Watched { file, events: wanted & EVENT_BITS };
            let ready = watched.ready();
            let mut watches = self.watches.lock();
            let Some(watch) = watches.get_mut(&key) else { continue };
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
            watch.reported |= ready;
            watch.wakes = wakes;
            watch.spent = watch.events & EPOLLONESHOT != 0;
            events.push((ready, watch.data));
            drop(watches);
            *self.last.lock() = key;
            if events.len() == max {
                break;
            }
        }
        events
    }
}

impl Watcher for Epoll {
    fn file_closed(&self, file: &OpenFile, fd: i32) {
        let gone = self.watches.lock().remove(&key(fd, file));
        if gone.is_some() {
            // Who waits lets the file go.
            self.changed.wake_all();
        }
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
    let file = OpenFile::new(Epoll::new(), FsFlags::READ_WRITE);
    install(cx, file, flags.has(EpollFlags::CLOEXEC))
}

/// epoll_ctl(2).
pub fn epoll_ctl(cx: &mut Ctx<'_>, epoll: Fd, op: EpollOp, fd: Fd, event: Addr) -> SysResult {
    let (events, data) = match op.0 {
        EpollOp::DEL => (0, 0),
        _ => read_event(event)?,
    };
    let instance = get(cx, epoll)?;
    let target = get(cx, fd)?;
    // Files that are always ready cannot be watched (epoll_ctl(2)).
    if target.location().is_some_and(|at| matches!(at.kind(), FileKind::Regular | FileKind::Directory)) {
        return Err(EPERM);
    }
    let set = instance.ops_as::<Epoll>().ok_or(EINVAL)?;
    if Arc::ptr_eq(&instance, &target) {
        return Err(EINVAL);
    }
    let nested = target.ops_as::<Epoll>();
    if events & EPOLLEXCLUSIVE != 0
        && (op.0 != EpollOp::ADD || nested.is_some() || events & !(BESIDE_EXCLUSIVE | EPOLLEXCLUSIVE) != 0)
    {
        return Err(EINVAL);
    }
    match op.0 {
        EpollOp::ADD => {
            let _alone = nested.map(|_| NESTING.lock());
            nested.map_or(Ok(()), |nested| set.adopt(nested))?;
            let added = set.add(fd.0, &target, events & !EPOLLWAKEUP, data);
            added.inspect_err(|_| nested.into_iter().for_each(|nested| set.disown(nested)))?;
        }
        EpollOp::MOD => set.modify(fd.0, &target, events & !EPOLLWAKEUP, data)?,
        EpollOp::DEL => {
            let gone = set.watches.lock().remove(&key(fd.0, &target));
            gone.ok_or(ENOENT)?;
            target.unwatch(&set.watcher(), fd.0);
            let _alone = nested.map(|_| NESTING.lock());
            nested.into_iter().for_each(|nested| set.disown(nested));
        }
        _ => return Err(EINVAL),
    }
    // Those who wait look at the new set.
    set.changed.wake_all();
    Ok(0)
}

impl Epoll {
    fn watcher(&self) -> Weak<dyn Watcher> {
        self.own.clone()
    }

    fn add(&self, fd: i32, file: &Arc<OpenFile>, events: u32, data: u64) -> SysResult<()> {
        let watch = Watch { file: Arc::downgrade(file), events, data, reported: 0, wakes: 0, spent: false };
        let mut watches = self.watches.lock();
        if watches.contains_key(&key(fd, file)) {
            return Err(EEXIST);
        }
        watches.insert(key(fd, file), watch);
        drop(watches);
        file.watch(self.watcher(), fd);
        if file.is_closed() {
            // By another thread, since it was looked up: nobody else takes it out.
            self.watches.lock().remove(&key(fd, file));
        }
        Ok(())
    }

    fn modify(&self, fd: i32, file: &OpenFile, events: u32, data: u64) -> SysResult<()> {
        let mut watches = self.watches.lock();
        let watch = watches.get_mut(&key(fd, file)).ok_or(ENOENT)?;
        if watch.events & EPOLLEXCLUSIVE != 0 {
            return Err(EINVAL);
        }
        let file = watch.file.clone();
        *watch = Watch { file, events, data, reported: 0, wakes: 0, spent: false };
        Ok(())
    }
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
    if !(1..=MAX_EVENTS).contains(&max) {
        return Err(EINVAL);
    }
    let max = (max as usize).min(EVENTS_AT_ONCE);
    let instance = get(cx, epoll)?;
    let set = instance.ops_as::<Epoll>().ok_or(EINVAL)?;
    let collect = || Some(set.collect(max, false)).filter(|events| !events.is_empty());
    let Some(events) = poll::wait_for(cx, core::iter::once(&instance), deadline, collect)? else { return Ok(0) };
    let mut bytes = vec![0u8; events.len() * EVENT_BYTES];
    for (entry, (ready, data)) in bytes.chunks_exact_mut(EVENT_BYTES).zip(&events) {
        entry[..4].copy_from_slice(&ready.to_le_bytes());
        entry[4..].copy_from_slice(&data.to_le_bytes());
    }
    out.write(&bytes)?;
    Ok(events.len() as u64)
}
