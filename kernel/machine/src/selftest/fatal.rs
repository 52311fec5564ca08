#![allow(unsafe_code, reason = "breaks the kernel on purpose")]
//! Ways to break the kernel, each of which must end the machine with a report and its exit code.
use core::{
    arch::asm,
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering},
};

use rt::task::Task as _;
use x86_64::instructions::{interrupts, tables::sidt};

use super::{application, tasks::spawn};

/// Runs the failure with this name, if there is one; it does not come back.
#[inline(never)]
pub fn run(name: &str) {
    match name {
        "fatal-panic" => panic!("asked for"),
        "fatal-panic-beside-others" => beside_others(),
        "fatal-double-fault" => double_fault(),
        "fatal-fault" => wild_write(),
        "fatal-stack-overflow" => {
            black_box(recurse(1));
        }
        "fatal-sleep-under-lock" => sleep_under_lock(),
        "fatal-gs-base" => drop(application::change_gs_base(0x1000, false)),
        "fatal-gs-base-call" => drop(application::change_gs_base(0x1000, true)),
        "fatal-gs-base-mapped" => drop(application::change_gs_base(0, false)),
        "fatal-gs-base-mapped-call" => drop(application::change_gs_base(0, true)),
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

static STARTED: AtomicUsize = AtomicUsize::new(0);

/// Panics while CPU 1 works, CPU 2 works with interrupts off, and CPU 3 has nothing to do.
fn beside_others() {
    fn busy(interrupts_on: usize) {
        STARTED.fetch_add(1, Ordering::SeqCst);
        busy_work(interrupts_on != 0);
    }
    crate::tasks::current().set_affinity(1);
    crate::tasks::yield_now();
    spawn(busy, 1, 1 << 1, 0);
    spawn(busy, 0, 1 << 2, 0);
    while STARTED.load(Ordering::SeqCst) < 2 {
        core::hint::spin_loop();
    }
    panic!("asked for, beside others");
}

#[inline(never)]
fn busy_work(interrupts_on: bool) {
    if !interrupts_on {
        interrupts::disable();
    }
    loop {
        black_box(());
        core::hint::spin_loop();
    }
}

/// A divide error whose own delivery faults: its gate is marked as not present.
#[inline(never)]
fn double_fault() {
    const PRESENT: u64 = 1 << 47;
    let idt = sidt().base.as_mut_ptr::<u64>();
    // SAFETY: none: the gate of vector 0 is broken on purpose, and then a division by zero asks for it.
    unsafe {
        idt.write_volatile(idt.read_volatile() & !PRESENT);
        asm!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _);
    }
}
