//! Waiting for readiness: poll, ppoll, select, pselect6.
use alloc::{sync::Arc, vec, vec::Vec};
use core::cell::Cell;

use fs::{OpenFile, Readiness};
use rt::{
    rt,
    task::{ParkMode, Parked},
};

use super::{buffers::with_room, epoll::Epoll, get};
use crate::{
    args::{Addr, Fd, TimespecIn, pair_bytes},
    call::Ctx,
    errno::{EBADF, EINVAL, ENOMEM, ERESTARTNOHAND, Errno, SysResult},
    signal::{calls::read_set, deliver::restore_saved_mask, wait::set_temporary_mask},
    time::{NS_PER_S, read_timespec, read_timeval},
};

const POLLNVAL: u16 = 0x20;
/// POLLRDNORM and its like, which go with IN and OUT.
const RDNORM: u32 = 0x40;
const WRNORM: u32 = 0x100;
const WRBAND: u32 = 0x200;

/// One file that is waited for, with the events that are of interest.
pub struct Watched {
    pub file: Arc<OpenFile>,
    pub events: u32,
}

impl Watched {
    /// The events that are there: those wanted, and errors and hang-ups always.
    pub fn ready(&self) -> u32 {
        let mut now = self.file.readiness().bits();
        if now & Readiness::IN.bits() != 0 {
            now |= RDNORM;
        }
        if now & Readiness::OUT.bits() != 0 {
            now |= WRNORM | WRBAND;
        }
        now & (self.events | (Readiness::ERROR | Readiness::HANG_UP).bits())
    }
}

/// Sleeps until `check` gives a value or the deadline passes (None). The task stands in the queues of
/// all `files` while it checks, and of what those of them watch that are epoll instances, so no wake-up
/// is lost.
pub fn wait_for<'a, T>(
    cx: &Ctx<'_>,
    files: impl Iterator<Item = &'a Arc<OpenFile>> + Clone,
    deadline: Option<u64>,
    mut check: impl FnMut() -> Option<T>,
) -> Result<Option<T>, Errno> {
    if let Some(value) = check() {
        return Ok(Some(value));
    }
    if deadline.is_some_and(|at| at <= rt().now_ns()) {
        return Ok(None);
    }
    loop {
        files.clone().for_each(|file| file.enlist(cx.task));
        let mut watched = Vec::new();
        let instances = files.clone().filter_map(|file| file.ops_as::<Epoll>());
        instances.for_each(|epoll| epoll.enlist_in_watched(cx.task, &mut watched));
        let found = check();
        let parked = match found {
            Some(_) => Parked::Woken,
            None => rt().park(deadline, ParkMode::Interruptible),
        };
        files.clone().for_each(|file| file.delist(cx.task));
        watched.iter().for_each(|file| file.delist(cx.task));
        drop(watched);
        if let Some(value) = found.or_else(&mut check) {
            return Ok(Some(value));
        }
        match parked {
            Parked::Woken => {}
            Parked::TimedOut => return Ok(None),
            Parked::Interrupted => return Err(ERESTARTNOHAND),
        }
    }
}

/// poll(2).
pub fn poll(cx: &mut Ctx<'_>, fds: Addr, count: u32, timeout_ms: i32) -> SysResult {
    let deadline = u64::try_from(timeout_ms).ok().map(|ms| cx.deadline_after(ms * 1_000_000));
    poll_until(cx, fds, count, deadline)
}

/// ppoll(2). Linux writes the remaining time back; libc hides it.
pub fn ppoll(cx: &mut Ctx<'_>, fds: Addr, count: u32, timeout: TimespecIn, mask: Addr, set_bytes: u64) -> SysResult {
    let deadline = optional_timespec(cx, timeout)?;
    with_mask(cx, mask, set_bytes, |cx| poll_until(cx, fds, count, deadline))
}

pub fn optional_timespec(cx: &mut Ctx<'_>, timeout: TimespecIn) -> SysResult<Option<u64>> {
    if timeout.0.is_null() {
        return Ok(None);
    }
    let ns = read_timespec(timeout.0)?;
    Ok(Some(cx.deadline_after(ns)))
}

/// Runs a wait under a temporary signal mask, if one is given. An interrupted wait keeps it, for the
/// delivery that follows.
pub fn with_mask(
    cx: &mut Ctx<'_>,
    mask: Addr,
    set_bytes: u64,
    wait: impl FnOnce(&mut Ctx<'_>) -> SysResult,
) -> SysResult {
    if !mask.is_null() {
        let mask = read_set(mask, set_bytes)?;
        set_temporary_mask(cx, mask);
    }
    let result = wait(cx);
    if !matches!(result, Err(errno) if errno.is_restart()) {
        restore_saved_mask(cx);
    }
    result
}

/// An entry of poll's table: its file, if it has one, and what was last seen of it.
struct Entry {
    watched: Option<Watched>,
    revents: Cell<u16>,
}

impl Entry {
    /// Looks again; true if there is something to report. What the call tells is what it saw when it
    /// decided to return: it may be gone by then, but a call without a timeout never tells nothing.
    fn is_ready(&self) -> bool {
        if let Some(watched) = &self.watched {
            self.revents.set(watched.ready() as u16);
        }
        self.revents.get() != 0
    }
}

fn poll_until(cx: &mut Ctx<'_>, fds: Addr, count: u32, deadline: Option<u64>) -> SysResult {
    const ENTRY_BYTES: u64 = 8;
    if count > cx.program().files.lock().limit() {
        return Err(EINVAL);
    }
    let mut entries: Vec<Entry> = with_room(count as usize)?;
    for index in 0..u64::from(count) {
        let bytes: [u8; 8] = Addr(fds.0.wrapping_add(index * ENTRY_BYTES)).read()?;
        let fd = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let events = u32::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        entries.push(match get(cx, Fd(fd)) {
            Ok(file) => Entry { watched: Some(Watched { file, events }), revents: Cell::new(0) },
            // Negative descriptors are left out silently, closed ones are reported.
            Err(_) => Entry { watched: None, revents: Cell::new(if fd < 0 { 0 } else { POLLNVAL }) },
        });
    }
    let files = entries.iter().filter_map(|entry| Some(&entry.watched.as_ref()?.file));
    let ready = || entries.iter().filter(|entry| entry.is_ready()).count();
    let found = wait_for(cx, files, deadline, || Some(ready()).filter(|ready| *ready > 0))?;
    for (index, entry) in entries.iter().enumerate() {
        // This field alone: another thread may be changing the others for its next call.
        const REVENTS_AT: u64 = 6;
        Addr(fds.0 + index as u64 * ENTRY_BYTES + REVENTS_AT).write(&entry.revents.get().to_le_bytes())?;
    }
    Ok(found.unwrap_or(0) as u64)
}

/// select(2).
pub fn select(cx: &mut Ctx<'_>, count: i32, read: Addr, write: Addr, except: Addr, timeout: Addr) -> SysResult {
    let deadline = match timeout.is_null() {
        true => None,
        false => {
            let ns = read_timeval(timeout)?;
            Some(cx.deadline_after(ns))
        }
    };
    let result = select_until(cx, count, [read, write, except], deadline);
    // Linux' select tells what is left of the timeout, also when it was interrupted. If it is repeated,
    // its first deadline stays.
    let ended = !matches!(result, Err(e) if !e.is_restart());
    if let (Some(deadline), true) = (deadline, ended) {
        let left = deadline.saturating_sub(rt().now_ns());
        // It may lie in memory that is only read: then the call is as good without, as on Linux.
        let _ = timeout.write(&pair_bytes(left / NS_PER_S, left % NS_PER_S / 1000));
    }
    result
}

/// pselect6(2); its last argument points to the mask's address and size.
pub fn pselect6(
    cx: &mut Ctx<'_>,
    count: i32,
    read: Addr,
    write: Addr,
    except: Addr,
    timeout: Addr,
    mask: Addr,
) -> SysResult {
    let deadline = optional_timespec(cx, TimespecIn(timeout))?;
    let (mask_at, set_bytes) = match mask.is_null() {
        true => (Addr(0), 8),
        false => (Addr(mask.read_u64()?), Addr(mask.0 + 8).read_u64()?),
    };
    with_mask(cx, mask_at, set_bytes, |cx| select_until(cx, count, [read, write, except], deadline))
}

/// What each of the three sets of select waits for, in poll's terms (select(2), NOTES).
const SELECT_EVENTS: [u32; 3] = [
    Readiness::IN.bits() | RDNORM | Readiness::HANG_UP.bits() | Readiness::ERROR.bits(),
    Readiness::OUT.bits() | WRNORM | Readiness::ERROR.bits(),
    Readiness::PRIORITY.bits(),
];

fn select_until(cx: &mut Ctx<'_>, count: i32, sets: [Addr; 3], deadline: Option<u64>) -> SysResult {
    // Bits beyond the table are not looked at, as on Linux.
    let capacity = cx.program().files.lock().capacity();
    let count = usize::try_from(count).map_err(|_| EINVAL)?.min(capacity);
    let bytes = count.div_ceil(64) * 8;
    let mut wanted: [Vec<u8>; 3] = Default::default();
    for (set, at) in wanted.iter_mut().zip(sets) {
        set.resize(bytes, 0);
        if !at.is_null() {
            rt().user().read(set, at.0)?;
        }
    }
    let has = |set: &[u8], fd: usize| set[fd / 8] & 1 << (fd % 8) != 0;
    let mut watched: Vec<(usize, usize, Watched)> = Vec::new();
    for fd in 0..count {
        for (which, events) in SELECT_EVENTS.iter().enumerate() {
            if has(&wanted[which], fd) {
                let file = get(cx, Fd(fd as i32)).map_err(|_| EBADF)?;
                watched.try_reserve(1).map_err(|_| ENOMEM)?;
                watched.push((fd, which, Watched { file, events: *events }));
            }
        }
    }
    let is_ready = |w: &(usize, usize, Watched)| w.2.ready() & SELECT_EVENTS[w.1] != 0;
    let files = watched.iter().map(|w| &w.2.file);
    let mut results: [Vec<u8>; 3] = [vec![0; bytes], vec![0; bytes], vec![0; bytes]];
    let found = wait_for(cx, files, deadline, || {
        let mut found = 0;
        for entry in watched.iter().filter(|w| is_ready(w)) {
            results[entry.1][entry.0 / 8] |= 1 << (entry.0 % 8);
            found += 1;
        }
        (found > 0).then_some(found)
    })?;
    for (set, at) in results.iter().zip(sets) {
        if !at.is_null() {
            rt().user().write(at.0, set)?;
        }
    }
    Ok(found.unwrap_or(0))
}
