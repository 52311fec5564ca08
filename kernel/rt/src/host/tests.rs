//! The host runtime itself, and the locks and wait queues on it.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::*;
use crate::{page::Page, rt, sync};

#[test]
fn pages_are_counted() {
    install();
    let page = Page::alloc_zeroed().unwrap();
    let id = page.id();
    let second = page.clone();
    assert_eq!(page.refcount(), 2);
    page.write(4000, &[7; 96]);
    let mut out = [0; 2];
    second.read(4094, &mut out);
    assert_eq!(out, [7, 7]);
    drop(page);
    assert_eq!(Page::from_id(second.into_id()).id(), id);
}

#[test]
#[should_panic(expected = "spin lock is held")]
fn sleeping_under_a_spin_lock_is_caught() {
    install();
    let lock = sync::SpinLock::new(());
    let _held = lock.lock();
    rt().park(Some(0), ParkMode::Interruptible);
}

#[test]
fn an_early_unpark_is_not_lost() {
    install();
    let me = rt().current();
    me.unpark();
    assert_eq!(rt().park(None, ParkMode::Interruptible), Parked::Woken);
    assert_eq!(rt().park(Some(rt().now_ns() + 1_000_000), ParkMode::Interruptible), Parked::TimedOut);
    me.interrupt();
    assert_eq!(rt().park(None, ParkMode::Interruptible), Parked::Interrupted);
    assert_eq!(rt().park(Some(0), ParkMode::Uninterruptible), Parked::TimedOut);
    me.clear_interrupt();
}

#[test]
fn mutex_and_wait_queue() {
    install();
    let counter = Arc::new(sync::Mutex::new(0));
    let done = Arc::new((AtomicUsize::new(0), sync::WaitQueue::new()));
    for _ in 0..4 {
        let (counter, done) = (counter.clone(), done.clone());
        std::thread::spawn(move || {
            for _ in 0..1000 {
                *counter.lock() += 1;
            }
            done.0.fetch_add(1, Ordering::Relaxed);
            done.1.wake_all();
        });
    }
    let all_done = || (done.0.load(Ordering::Relaxed) == 4).then_some(());
    done.1.wait_until(None, ParkMode::Uninterruptible, all_done).unwrap();
    assert_eq!(*counter.lock(), 4000);
}

/// Waits, asleep, until `done` holds.
fn until(done: impl Fn() -> bool) {
    let deadline = rt().now_ns() + 20_000_000_000;
    while !done() {
        assert!(rt().now_ns() < deadline, "not done within twenty seconds");
        rt().park(Some(rt().now_ns() + 1_000_000), ParkMode::Uninterruptible);
    }
}

#[test]
fn readers_share_and_writers_do_not() {
    install();
    let lock = Arc::new(sync::RwLock::new([0u64; 2]));
    let reads = lock.read();
    let (other, shared) = (lock.clone(), Arc::new(AtomicUsize::new(0)));
    let seen = shared.clone();
    let second = std::thread::spawn(move || {
        drop(other.read());
        seen.store(1, Ordering::SeqCst);
    });
    until(|| shared.load(Ordering::SeqCst) == 1);
    drop(reads);
    second.join().unwrap();
    let readers_inside = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..6)
        .map(|number| {
            let (lock, inside) = (lock.clone(), readers_inside.clone());
            std::thread::spawn(move || {
                for round in 0..500 {
                    if (number + round) % 3 == 0 {
                        let mut pair = lock.write();
                        assert_eq!(inside.load(Ordering::SeqCst), 0, "a reader beside a writer");
                        pair[0] += 1;
                        rt().yield_now();
                        pair[1] += 1;
                    } else {
                        let pair = lock.read();
                        inside.fetch_add(1, Ordering::SeqCst);
                        rt().yield_now();
                        assert_eq!(pair[0], pair[1], "a reader saw half a write");
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(*lock.read(), [1000, 1000]);
}

/// Readers that overlap without end do not keep a writer out, nor do writers a reader.
#[test]
fn neither_readers_nor_writers_starve() {
    install();
    for hogs_write in [false, true] {
        let lock = Arc::new(sync::RwLock::new(()));
        let stop = Arc::new(AtomicUsize::new(0));
        let hogs: Vec<_> = (0..3)
            .map(|_| {
                let (lock, stop) = (lock.clone(), stop.clone());
                std::thread::spawn(move || {
                    let hold = || rt().park(Some(rt().now_ns() + 2_000_000), ParkMode::Uninterruptible);
                    while stop.load(Ordering::SeqCst) == 0 {
                        if hogs_write {
                            let _held = lock.write();
                            hold();
                        } else {
                            let _held = lock.read();
                            hold();
                        }
                    }
                })
            })
            .collect();
        let (other, done) = (lock.clone(), Arc::new(AtomicUsize::new(0)));
        let seen = done.clone();
        let victim = std::thread::spawn(move || {
            for _ in 0..10 {
                if hogs_write {
                    drop(other.read())
                } else {
                    drop(other.write())
                }
                seen.fetch_add(1, Ordering::SeqCst);
            }
        });
        until(|| done.load(Ordering::SeqCst) == 10);
        stop.store(1, Ordering::SeqCst);
        hogs.into_iter().chain([victim]).for_each(|thread| thread.join().unwrap());
    }
}

/// Those who ask are let in in the order in which they asked, readers side by side together.
#[test]
fn the_reader_writer_lock_is_fair() {
    install();
    let lock = Arc::new(sync::RwLock::new(()));
    let order = Arc::new(sync::Mutex::new(Vec::new()));
    let first = lock.write();
    let mut threads = Vec::new();
    for (number, writes) in [true, false, false, true, false].into_iter().enumerate() {
        let (asked, order) = (lock.clone(), order.clone());
        threads.push(std::thread::spawn(move || {
            if writes {
                let _held = asked.write();
                order.lock().push(number);
            } else {
                let _held = asked.read();
                order.lock().push(number);
            }
        }));
        until(|| lock.waiters() == number + 1);
    }
    drop(first);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut order = order.lock().clone();
    order[1..3].sort_unstable();
    assert_eq!(order, [0, 1, 2, 3, 4]);
}

/// A task that takes a mutex again as soon as it gave it back leaves room for another, round for round.
#[test]
fn a_busy_mutex_is_shared() {
    install();
    let lock = Arc::new(sync::Mutex::new(0));
    let other = lock.clone();
    let rounds = Arc::new(AtomicUsize::new(0));
    let seen = rounds.clone();
    let mut held = lock.lock();
    let waiter = std::thread::spawn(move || {
        for _ in 0..20 {
            let mut count = other.lock();
            *count += 1;
            // Under the lock: the round in which its holder sees this count is still to come.
            let before = seen.load(Ordering::SeqCst);
            drop(count);
            until(|| seen.load(Ordering::SeqCst) != before);
        }
    });
    while *held < 20 {
        // The waiter has asked, or was woken, has found the lock taken again, and is back in the queue.
        until(|| lock.waiters() == 1);
        drop(held);
        held = lock.lock();
        let round = rounds.fetch_add(1, Ordering::SeqCst);
        assert!(round < 3 * 20, "the waiter got the lock {} times in {round} rounds", *held);
    }
    drop(held);
    waiter.join().unwrap();
}

#[test]
fn user_memory() {
    let host = install();
    let at = host.space().map_anonymous(10_000);
    host.user().write(at + 4090, b"across pages").unwrap();
    let mut out = [0; 12];
    host.user().read(&mut out, at + 4090).unwrap();
    assert_eq!(&out, b"across pages");
    assert_eq!(host.user().read_c_str(&mut [0; 64], at + 4090), Ok(Some(12)));
    assert_eq!(host.user().compare_exchange_u32(at, 0, 5), Ok(0));
    assert_eq!(host.user().load_u32_nofault(at), Ok(5));
    assert!(host.user().read(&mut out, at + 12_280).is_err());
    host.space().unmap(crate::space::ProgramId(1), at, 4096).unwrap();
    assert!(host.user().read(&mut out, at).is_err());
}

#[test]
fn console() {
    let host = install();
    host.type_on_console(b"hi");
    assert_eq!(host.console_wait_input(None), Parked::Woken);
    let mut out = [0; 8];
    assert_eq!(host.console_read(&mut out), 2);
    host.console_write(b"out");
    assert_eq!(host.take_console_output(), b"out");
}

/// Two threads wake each other 20,000 times; a lost wake-up hangs.
#[test]
fn no_wake_up_is_lost() {
    install();
    let shared = Arc::new((AtomicUsize::new(0), sync::WaitQueue::new()));
    let turn = |me: usize, shared: Arc<(AtomicUsize, sync::WaitQueue)>| {
        for round in 0..20_000 {
            let mine = round * 2 + me;
            let ready = || (shared.0.load(Ordering::Relaxed) == mine).then_some(());
            shared.1.wait_until(None, ParkMode::Uninterruptible, ready).unwrap();
            shared.0.store(mine + 1, Ordering::Relaxed);
            shared.1.wake_all();
        }
    };
    let other = shared.clone();
    let second = std::thread::spawn(move || turn(1, other));
    turn(0, shared);
    second.join().unwrap();
}
