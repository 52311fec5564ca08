#![allow(unsafe_code, reason = "breaks the kernel on purpose")]
//! Ways to break the kernel, each of which must end the machine with a report and its exit code.
use core::hint::black_box;

use x86_64::instructions::interrupts;

/// Runs the failure with this name, if there is one; it does not come back.
pub fn run(name: &str) {
    match name {
        "fatal-panic" => panic!("asked for"),
        "fatal-fault" => wild_write(),
        "fatal-stack-overflow" => {
            black_box(recurse(1));
        }
        "fatal-sleep-under-lock" => sleep_under_lock(),
        _ => {}
    }
}

/// A kernel store to an address that nobody maps, outside any copy routine.
#[inline(never)]
fn wild_write() {
    let nowhere = black_box(0xffff_dead_0000_0000u64) as *mut u8;
    // SAFETY: none: this is the fault that the test is about.
    unsafe { nowhere.write_volatile(1) };
}

/// Overflows the kernel stack into its guard page, with interrupts off so that nothing else does.
#[allow(unconditional_recursion, reason = "that is the point")]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    interrupts::disable();
    let block = black_box([depth; 64]);
    black_box(recurse(depth + 1)) + block[1]
}

fn sleep_under_lock() {
    let lock = rt::sync::SpinLock::new(());
    let _guard = lock.lock();
    crate::tasks::yield_now();
}
