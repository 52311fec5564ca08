#![allow(unsafe_code, reason = "the addresses of assembly snippets")]
//! Tests of forced switches: application code that never calls is interrupted, shares its CPU fairly,
//! and finds its registers as they were.
use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{
    AtomicU8, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use rt::{
    rt,
    space::{AddressSpace as _, Placement, Prot},
    task::{ParkMode, Task as _},
};

use super::{
    application::{App, OWNER},
    check,
    memory::request,
};
use crate::{
    cpu::{apic, features, irq, percpu::this_cpu},
    memory::space::SPACE,
    tasks, time,
};

unsafe extern "C" {
    static snippet_spin: u8;
    static snippet_vectors: u8;
}

const MS: u64 = 1_000_000;

/// Starts endless loops with these nice levels and this mask, lends them to what runs on CPU 0, and ends
/// them.
pub fn with_spinners<T>(
    nices: &[i8],
    affinity: u64,
    with: impl FnOnce(&[App]) -> Result<T, String>,
) -> Result<T, String> {
    tasks::current().set_affinity(1);
    let start =
        |&nice: &i8| App::start(&raw const snippet_spin, [0; 2], affinity).inspect(|app| app.task.set_nice(nice));
    let result = nices.iter().map(start).collect::<Result<Vec<App>, _>>().and_then(|apps| {
        let result = with(&apps);
        apps.iter().try_for_each(App::kill)?;
        result
    });
    tasks::current().set_affinity(u64::MAX);
    SPACE.release(OWNER);
    result
}

fn sleep(ns: u64) {
    tasks::park(Some(time::now_ns() + ns), ParkMode::Uninterruptible);
}

/// A task that sleeps gets its CPU back from one that never calls, and soon, since it has not had its
/// share.
pub fn preemption() -> Result<(), String> {
    let mut latest = 0;
    let ran = with_spinners(&[0], 1, |apps| {
        // Its share of the time until now must be used up.
        sleep(5 * MS);
        for _ in 0..10 {
            let deadline = time::now_ns() + 2 * MS;
            tasks::park(Some(deadline), ParkMode::Uninterruptible);
            latest = latest.max(time::now_ns() - deadline);
        }
        Ok(apps[0].task.cpu_time_ns())
    })?;
    check(ran > 10 * MS, &format!("the spinning task got {ran} ns"))?;
    check(!time::is_exact() || latest < MS / 10, &format!("woken {latest} ns late beside a spinning task"))
}

/// CPU time of loops with these nice levels after a while.
fn shares(nices: &[i8], while_ns: u64) -> Result<Vec<u64>, String> {
    with_spinners(nices, 1, |apps| {
        let used = || apps.iter().map(|app| app.task.cpu_time_ns());
        let before: Vec<u64> = used().collect();
        sleep(while_ns);
        Ok(used().zip(before).map(|(after, before)| after - before).collect())
    })
}

/// Equal loops get equal time, unequal ones in proportion to their weights: within 5 % where time is
/// virtual. Elsewhere the host takes time from either as it likes, and this shows that none starves.
pub fn fairness() -> Result<(), String> {
    for nices in [[0, 0], [0, 5], [-5, -1]] {
        let got = shares(&nices, 400 * MS)?;
        let weights = nices.map(|nice| u64::from(logic::run_queue::weight(nice)));
        let expected = weights[0] * 1000 / weights[1];
        let ratio = got[0] * 1000 / got[1].max(1);
        let what = format!("nice {nices:?} got {got:?} ns, {ratio} instead of {expected} thousandths");
        let fair = (expected * 95 / 100..=expected * 105 / 100).contains(&ratio);
        check(if time::is_exact() { fair } else { got.iter().all(|&ns| ns > MS) }, &what)?;
    }
    Ok(())
}

/// A slice of the nicest loop puts it 200 ms behind an ordinary one: it has its turn again then.
pub fn nicest() -> Result<(), String> {
    let got = shares(&[0, 19], 700 * MS)?;
    check(!time::is_exact() || got[1] > 8 * MS, &format!("the nicest loop got {} ns", got[1]))
}

/// A loop that has had the CPU alone for long shares it with the next one that comes, and need not wait
/// until that has had as much.
pub fn late_comer() -> Result<(), String> {
    const ALONE_NS: u64 = 300 * MS;
    let got = with_spinners(&[0], 1, |first| {
        sleep(ALONE_NS);
        let late = App::start(&raw const snippet_spin, [0; 2], 1)?;
        let before = first[0].task.cpu_time_ns();
        sleep(ALONE_NS / 2);
        let got = first[0].task.cpu_time_ns() - before;
        late.kill()?;
        Ok(got)
    })?;
    let share = ALONE_NS / 4;
    let fair = (share * 8 / 10..=share * 12 / 10).contains(&got);
    check(!time::is_exact() || fair, &format!("{got} ns of {} beside a late comer", 2 * share))
}

const SWITCHES_WANTED: u64 = 10_000;
static SWITCHES: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);

/// The redirected timer: whoever runs has to go, and the next one is due soon.
fn force(_: usize) {
    let (is_application, id) = tasks::with_current(|task| (task.extension().is_some(), task.id()));
    if is_application && LAST.swap(id, Relaxed) != id {
        SWITCHES.fetch_add(1, Relaxed);
    }
    this_cpu().reschedule.store(true, Relaxed);
    // Long enough for the emulator to run application code in between.
    apic::arm_ticks(if time::is_exact() { 15_000 } else { 40_000 });
}

/// Three tasks with different vector, x87 and MXCSR state share CPU 0 and never call, while a timer takes
/// the CPU from each 10,000 times in all.
pub fn vector_state() -> Result<(), String> {
    static VECTOR: AtomicU8 = AtomicU8::new(0);
    const AVX_STATE: u64 = 0x4;
    const AVX512_STATE: u64 = 0xe0;
    if VECTOR.load(SeqCst) == 0 {
        VECTOR.store(irq::allocate(force, 0).ok_or("no vector left")?, SeqCst);
    }
    let stop =
        SPACE.map(OWNER, request(4096, Prot::READ | Prot::WRITE, Placement::Anywhere)).map_err(|e| format!("{e:?}"))?;
    let write = |at: u64, value: u64| rt().user().write(at, &value.to_le_bytes()).map_err(|_| "control words");
    write(stop, 0)?;
    let has = |state| features::xcr0() & state == state;
    write(stop + 8, u64::from(has(AVX_STATE)) + u64::from(has(AVX_STATE | AVX512_STATE)))?;
    tasks::current().set_affinity(1);
    let start = |pattern| App::start(&raw const snippet_vectors, [pattern, stop], 1);
    let apps = [start(0x1234_0000_2000)?, start(0x4321_0000_4000)?, start(0x7777_0000_6000)?];
    SWITCHES.store(0, SeqCst);
    apic::set_timer_vector(VECTOR.load(SeqCst));
    apic::arm_ticks(1000);
    // However slow a busy host makes it, it goes on.
    let mut last = (0, time::now_ns());
    let all_run = || apps.iter().all(|app| !app.ended());
    while SWITCHES.load(SeqCst) < SWITCHES_WANTED && all_run() && time::now_ns() < last.1 + 20_000 * MS {
        if SWITCHES.load(SeqCst) != last.0 {
            last = (SWITCHES.load(SeqCst), time::now_ns());
        }
        tasks::yield_now();
    }
    apic::set_timer_vector(apic::VECTOR_TIMER);
    time::arm(Some(time::now_ns() + MS));
    let switches = SWITCHES.load(SeqCst);
    write(stop, 1)?;
    let result = apps.iter().try_for_each(|app| app.expect(0));
    tasks::current().set_affinity(u64::MAX);
    SPACE.release(OWNER);
    result?;
    check(switches >= SWITCHES_WANTED, &format!("no more forced switches after {switches}"))
}
