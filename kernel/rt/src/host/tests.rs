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
