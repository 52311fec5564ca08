//! Futexes: futex(2) over hashed buckets.
//!
//! A waiter's key is its address alone: there is one address space, so a word has one address unless
//! a file is mapped twice. Private and shared operations meet therefore.
//! Deviation: two mappings of one file at different addresses do not share their futexes.
//!
//! # Locking
//! One spin lock a bucket; two are taken in index order. The user's word is read under the lock
//! without faulting; if that fails it is faulted in without the lock, and the whole is tried again.
//! Waking unparks under the lock (unpark never sleeps and takes no lock of this crate).
//!
//! # Invariants
//! `Thread::futex_queued` is set under the bucket's lock when the thread is queued and cleared under
//! it when it is taken out; `futex_bucket` changes (requeue) only under both buckets' locks.
use core::sync::atomic::{AtomicU32, Ordering, fence};

use logic::futex::{FutexQueue, Waiter, WakeOp};
use rt::{
    rt,
    sync::SpinLock,
    task::{ParkMode, Parked, TaskRef},
};

use crate::{
    args::{Addr, TimespecIn, names::FutexOp},
    call::Ctx,
    errno::{EAGAIN, EFAULT, EINVAL, ENOSYS, ERESTART_RESTARTBLOCK, ERESTARTSYS, ETIMEDOUT, SysResult},
    thread::Thread,
    time::read_timespec,
};

const BUCKETS: usize = 256;
const ANY: u32 = u32::MAX;

struct Bucket {
    queue: SpinLock<FutexQueue<TaskRef>>,
    /// Tasks that are in the queue or about to be: a waker that sees 0 needs no lock.
    waiting: AtomicU32,
}

static BUCKET: [Bucket; BUCKETS] =
    [const { Bucket { queue: SpinLock::new(FutexQueue::new()), waiting: AtomicU32::new(0) } }; BUCKETS];

fn bucket_of(address: u64) -> usize {
    // Fibonacci hashing of the word's index: neighbouring words go to different buckets.
    ((address >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % BUCKETS
}

fn check_address(address: Addr) -> SysResult<u64> {
    if !address.0.is_multiple_of(4) {
        return Err(EINVAL);
    }
    if address.0 >= crate::mm::SPACE_END {
        return Err(EFAULT);
    }
    Ok(address.0)
}

/// futex(2).
pub fn futex(cx: &mut Ctx<'_>, word: Addr, op: FutexOp, value: u32, arg4: u64, word2: Addr, value3: u32) -> SysResult {
    let address = check_address(word)?;
    let realtime = op.0 & FutexOp::CLOCK_REALTIME != 0;
    if realtime && op.command() != FutexOp::WAIT_BITSET {
        return Err(ENOSYS);
    }
    match op.command() {
        FutexOp::WAIT => {
            let timeout = TimespecIn(Addr(arg4));
            let deadline = if timeout.0.is_null() { None } else { Some(cx.deadline_after(read_timespec(timeout.0)?)) };
            wait(cx, address, value, deadline, ANY)
        }
        FutexOp::WAIT_BITSET => {
            let timeout = TimespecIn(Addr(arg4));
            let deadline = match timeout.0.is_null() {
                true => None,
                false => Some(absolute_deadline(read_timespec(timeout.0)?, realtime)),
            };
            wait(cx, address, value, deadline, value3)
        }
        FutexOp::WAKE => Ok(u64::from(wake(address, value, ANY))),
        FutexOp::WAKE_BITSET if value3 == 0 => Err(EINVAL),
        FutexOp::WAKE_BITSET => Ok(u64::from(wake(address, value, value3))),
        FutexOp::REQUEUE => requeue(address, value, arg4 as u32, check_address(word2)?, None),
        FutexOp::CMP_REQUEUE => requeue(address, value, arg4 as u32, check_address(word2)?, Some(value3)),
        FutexOp::WAKE_OP => wake_op(address, value, arg4 as u32, check_address(word2)?, value3),
        _ => Err(ENOSYS),
    }
}

fn absolute_deadline(at_ns: u64, realtime: bool) -> u64 {
    if !realtime {
        return at_ns;
    }
    let now = rt().realtime_ns();
    rt().now_ns().saturating_add(at_ns.saturating_sub(now))
}

fn wait(cx: &mut Ctx<'_>, address: u64, expected: u32, deadline: Option<u64>, bitset: u32) -> SysResult {
    if bitset == 0 {
        return Err(EINVAL);
    }
    let bucket = bucket_of(address);
    enqueue(cx, bucket, address, expected, bitset)?;
    let result = sleep(cx, deadline);
    // The queue it left may be another one by now; each entry counts for the bucket it is in.
    match result {
        Err(ERESTARTSYS) if deadline.is_some() => Err(ERESTART_RESTARTBLOCK),
        other => other,
    }
}

/// Checks the word and queues the thread, as one step towards wakers.
fn enqueue(cx: &Ctx<'_>, bucket: usize, address: u64, expected: u32, bitset: u32) -> SysResult<()> {
    let Bucket { queue, waiting } = &BUCKET[bucket];
    loop {
        waiting.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence in `wake`: either the waker sees the count, or this sees its store.
        fence(Ordering::SeqCst);
        let mut locked = queue.lock();
        match rt().user().load_u32_nofault(address) {
            Ok(found) if found == expected => {
                cx.thread.futex_bucket.store(bucket, Ordering::Relaxed);
                cx.thread.futex_queued.store(true, Ordering::Relaxed);
                locked.push(Waiter { key: address, id: cx.task.id(), bitset, value: cx.task.clone() });
                return Ok(());
            }
            Ok(_) => {
                drop(locked);
                waiting.fetch_sub(1, Ordering::SeqCst);
                return Err(EAGAIN);
            }
            Err(_) => {
                drop(locked);
                waiting.fetch_sub(1, Ordering::SeqCst);
                rt().user().load_u32(address)?;
            }
        }
    }
}

fn sleep(cx: &Ctx<'_>, deadline: Option<u64>) -> SysResult {
    loop {
        let parked = rt().park(deadline, ParkMode::Interruptible);
        if !cx.thread.futex_queued.load(Ordering::Acquire) {
            return Ok(0);
        }
        let error = match parked {
            // An unpark that was meant for an earlier wait.
            Parked::Woken => continue,
            Parked::TimedOut => ETIMEDOUT,
            Parked::Interrupted => ERESTARTSYS,
        };
        return if leave_queue(cx) { Err(error) } else { Ok(0) };
    }
}

/// Takes the thread out of the bucket it is in; false if a waker was faster.
fn leave_queue(cx: &Ctx<'_>) -> bool {
    loop {
        let bucket = cx.thread.futex_bucket.load(Ordering::Acquire);
        let mut locked = BUCKET[bucket].queue.lock();
        if !cx.thread.futex_queued.load(Ordering::Acquire) {
            return false;
        }
        if cx.thread.futex_bucket.load(Ordering::Acquire) == bucket {
            let was_there = locked.remove(cx.task.id());
            debug_assert!(was_there);
            cx.thread.futex_queued.store(false, Ordering::Release);
            BUCKET[bucket].waiting.fetch_sub(1, Ordering::SeqCst);
            return true;
        }
    }
}

/// Wakes up to `limit` waiters of `address`; their number.
pub fn wake(address: u64, limit: u32, bitset: u32) -> u32 {
    let bucket = &BUCKET[bucket_of(address)];
    fence(Ordering::SeqCst);
    if bucket.waiting.load(Ordering::SeqCst) == 0 {
        return 0;
    }
    // Negative counts have always meant one (Linux takes val as int and stops after the first).
    let limit = if limit as i32 <= 0 { 1 } else { limit };
    wake_in(bucket, &mut bucket.queue.lock(), address, limit, bitset)
}

fn wake_in(bucket: &Bucket, queue: &mut FutexQueue<TaskRef>, address: u64, limit: u32, bitset: u32) -> u32 {
    let woken = queue.wake(address, limit, bitset, |waiter| release(&waiter.value));
    bucket.waiting.fetch_sub(woken, Ordering::SeqCst);
    woken
}

fn release(task: &TaskRef) {
    if let Some(thread) = Thread::of(task) {
        thread.futex_queued.store(false, Ordering::Release);
    }
    task.unpark();
}

/// Runs `act` with both buckets locked, in index order; one lock if they are the same.
fn with_both<T>(
    first: usize,
    second: usize,
    act: impl FnOnce(&mut FutexQueue<TaskRef>, Option<&mut FutexQueue<TaskRef>>) -> T,
) -> T {
    if first == second {
        return act(&mut BUCKET[first].queue.lock(), None);
    }
    if first < second {
        let mut one = BUCKET[first].queue.lock();
        let mut two = BUCKET[second].queue.lock();
        act(&mut one, Some(&mut two))
    } else {
        let mut two = BUCKET[second].queue.lock();
        let mut one = BUCKET[first].queue.lock();
        act(&mut one, Some(&mut two))
    }
}

fn requeue(address: u64, wake_limit: u32, move_limit: u32, target: u64, expected: Option<u32>) -> SysResult {
    if (wake_limit as i32) < 0 || (move_limit as i32) < 0 {
        return Err(EINVAL);
    }
    let (from, to) = (bucket_of(address), bucket_of(target));
    loop {
        let done = with_both(from, to, |queue, other| {
            if let Some(expected) = expected {
                match rt().user().load_u32_nofault(address) {
                    Ok(found) if found == expected => {}
                    Ok(_) => return Some(Err(EAGAIN)),
                    Err(_) => return None,
                }
            }
            let woken = wake_in(&BUCKET[from], queue, address, wake_limit, ANY);
            let moved = queue.take_for_requeue(address, target, move_limit);
            let moved_count = moved.len() as u32;
            BUCKET[from].waiting.fetch_sub(moved_count, Ordering::SeqCst);
            BUCKET[to].waiting.fetch_add(moved_count, Ordering::SeqCst);
            let destination = match other {
                Some(other) => other,
                None => queue,
            };
            for waiter in moved {
                if let Some(thread) = Thread::of(&waiter.value) {
                    thread.futex_bucket.store(to, Ordering::Release);
                }
                destination.push(waiter);
            }
            // The moved ones count as well; of FUTEX_REQUEUE futex(2) says otherwise, and Linux does this.
            Some(Ok(u64::from(woken + moved_count)))
        });
        match done {
            Some(result) => return result,
            None => rt().user().load_u32(address)?,
        };
    }
}

/// The operation on the second word comes first and without the locks: a waiter that checks the word
/// before it and queues is found by the wake-up after it, and one that checks later sees the change.
fn wake_op(address: u64, limit: u32, limit2: u32, word2: u64, operation: u32) -> SysResult {
    let operation = WakeOp::decode(operation).ok_or(ENOSYS)?;
    let mut old = rt().user().load_u32(word2)?;
    loop {
        let found = rt().user().compare_exchange_u32(word2, old, operation.apply(old))?;
        if found == old {
            break;
        }
        old = found;
    }
    let mut woken = wake(address, limit, ANY);
    if operation.compare(old) {
        woken += wake(word2, limit2, ANY);
    }
    Ok(u64::from(woken))
}

/// What the kernel does with the futexes that an ending thread holds (set_robust_list(2)): marks each
/// as orphaned, and wakes a waiter.
pub fn walk_robust_list(cx: &Ctx<'_>, head: u64) {
    /// Lists longer than this are broken, by Linux' definition.
    const LIMIT: u32 = 2048;
    let Ok(offset) = Addr(head.wrapping_add(8)).read_u64() else { return };
    let pending = Addr(head.wrapping_add(16)).read_u64().unwrap_or(0) & !1;
    let Ok(mut entry) = Addr(head).read_u64() else { return };
    let mut left = LIMIT;
    while entry & !1 != head && left > 0 {
        let node = entry & !1;
        let Ok(next) = Addr(node).read_u64() else { break };
        if node != pending {
            orphan(cx, node.wrapping_add(offset), false);
        }
        entry = next;
        left -= 1;
    }
    if pending != 0 {
        orphan(cx, pending.wrapping_add(offset), true);
    }
}

/// `pending`: the thread was about to take or had just given the lock. If it is free, the thread may have
/// ended before it woke a waiter.
fn orphan(cx: &Ctx<'_>, word: u64, pending: bool) {
    const WAITERS: u32 = 0x8000_0000;
    const OWNER_DIED: u32 = 0x4000_0000;
    const TID_MASK: u32 = 0x3fff_ffff;
    if !word.is_multiple_of(4) || word >= crate::mm::SPACE_END {
        return;
    }
    let Ok(mut old) = rt().user().load_u32(word) else { return };
    if pending && old & TID_MASK == 0 {
        wake(word, 1, ANY);
        return;
    }
    while old & TID_MASK == cx.thread.tid() {
        match rt().user().compare_exchange_u32(word, old, old & WAITERS | OWNER_DIED) {
            Ok(found) if found == old => {
                if old & WAITERS != 0 {
                    wake(word, 1, ANY);
                }
                return;
            }
            Ok(found) => old = found,
            Err(_) => return,
        }
    }
}
