//! Tests of who runs where: affinity masks, their change at any moment, stealing.
use alloc::{format, string::String, vec, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use logic::random::Stream;
use rt::task::{ParkMode, Task as _};

use super::{
    application::App,
    check, preemption,
    tasks::{spawn, wait_for},
};
use crate::{cpu::percpu, tasks, time};

const MS: u64 = 1_000_000;

fn here() -> usize {
    percpu::this_cpu().index.get() as usize
}

fn sleep(ns: u64) {
    tasks::park(Some(time::now_ns() + ns), ParkMode::Uninterruptible);
}

fn work(ns: u64) {
    let until = time::now_ns() + ns;
    while time::now_ns() < until {
        core::hint::spin_loop();
    }
}

/// Tasks bound to a CPU each run there only, asleep and awake.
pub fn affinity() -> Result<(), String> {
    let cpus = percpu::online_count();
    static SEEN: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    fn look(wanted: usize) {
        for _ in 0..20 {
            if here() != wanted {
                SEEN.fetch_or(1 << here(), SeqCst);
            }
            sleep(MS / 10);
        }
        DONE.fetch_add(1, SeqCst);
    }
    SEEN.store(0, SeqCst);
    DONE.store(0, SeqCst);
    for cpu in 0..cpus {
        spawn(look, cpu, 1 << cpu, 0);
    }
    wait_for(|| DONE.load(SeqCst) == cpus)?;
    check(SEEN.load(SeqCst) == 0, &format!("ran on the wrong CPUs {:#x}", SEEN.load(SeqCst)))?;
    check(!tasks::current().set_affinity(1 << 63), "an empty CPU set was accepted")
}

/// More tasks than CPUs, made on one: every CPU gets some.
pub fn stealing() -> Result<(), String> {
    let cpus = percpu::online_count();
    static USED: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    fn run(_: usize) {
        for _ in 0..40 {
            USED.fetch_or(1 << here(), SeqCst);
            work(MS / 2);
            tasks::yield_now();
        }
        DONE.fetch_add(1, SeqCst);
    }
    USED.store(0, SeqCst);
    DONE.store(0, SeqCst);
    for _ in 0..4 * cpus {
        spawn(run, 0, u64::MAX, 0);
    }
    wait_for(|| DONE.load(SeqCst) == 4 * cpus)?;
    check(USED.load(SeqCst).count_ones() as usize == cpus, &format!("used CPUs {:#x} of {cpus}", USED.load(SeqCst)))
}

/// Tasks bound to a busy CPU stay there while the others are idle and look for work; so does their
/// sleeper when it wakes.
pub fn bound_to_a_busy_cpu() -> Result<(), String> {
    static STRAY: AtomicU64 = AtomicU64::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    fn until_stop(cpu: usize, step: impl Fn()) {
        while !STOP.load(SeqCst) {
            if here() != cpu {
                STRAY.fetch_or(1 << here(), SeqCst);
            }
            step();
        }
        DONE.fetch_add(1, SeqCst);
    }
    fn run(cpu: usize) {
        until_stop(cpu, || {
            work(MS / 10);
            tasks::yield_now();
        });
    }
    fn wake_often(cpu: usize) {
        until_stop(cpu, || sleep(MS / 5));
    }
    let cpu = percpu::online_count() - 1;
    STRAY.store(0, SeqCst);
    STOP.store(false, SeqCst);
    DONE.store(0, SeqCst);
    for body in [run, run, run, wake_often] {
        spawn(body, cpu, 1 << cpu, 0);
    }
    for _ in 0..30 {
        sleep(MS);
    }
    STOP.store(true, SeqCst);
    wait_for(|| DONE.load(SeqCst) == 4)?;
    check(STRAY.load(SeqCst) == 0, &format!("tasks of CPU {cpu} ran on CPUs {:#x}", STRAY.load(SeqCst)))
}

/// Waits until each task is on a CPU that is allowed to it, and says how long that took.
fn until_placed(apps: &[App], allowed: impl Fn(usize, usize) -> bool) -> Result<u64, String> {
    let from = time::now_ns();
    wait_for(|| apps.iter().enumerate().all(|(at, app)| allowed(at, app.task.cpu_number())))?;
    Ok(time::now_ns() - from)
}

/// A new mask of a task that runs, or waits for its CPU, or sleeps, takes effect at once, though its code
/// never calls; and where the mask becomes wider, a CPU that is idle takes the task.
pub fn mask_changes() -> Result<(), String> {
    if percpu::online_count() < 2 {
        return Ok(());
    }
    // This test on CPU 0; two endless loops on CPU 1, of which one waits.
    preemption::with_spinners(&[0, 0], 2, |apps| {
        until_placed(apps, |_, cpu| cpu == 1)?;
        sleep(5 * MS);
        check(apps.iter().all(|app| app.task.set_affinity(1)), "mask refused")?;
        let moving = until_placed(apps, |_, cpu| cpu == 0)?;
        // Both on CPU 0, CPU 1 idle: one of them may go there, and does.
        check(apps.iter().all(|app| app.task.set_affinity(3)), "mask refused")?;
        let on = |wanted| apps.iter().filter(|app| app.task.cpu_number() == wanted).count();
        // No bound: while CPU 1 runs a loop without a timer, QEMU's one thread for all CPUs may leave this
        // test waiting for up to 100 ms of virtual time.
        wait_for(|| on(0) == 1 && on(1) == 1)?;
        check(!time::is_exact() || moving < 10 * MS, &format!("moved after {moving} ns"))
    })?;
    asleep()
}

/// The mask of a sleeping task decides where it wakes.
fn asleep() -> Result<(), String> {
    static WOKE_ON: AtomicUsize = AtomicUsize::new(0);
    static WOKEN: AtomicUsize = AtomicUsize::new(0);
    fn sleeper(_: usize) {
        for _ in 0..20 {
            tasks::park(None, ParkMode::Uninterruptible);
            WOKE_ON.store(here(), SeqCst);
            WOKEN.fetch_add(1, SeqCst);
        }
    }
    WOKEN.store(0, SeqCst);
    let task = spawn(sleeper, 0, u64::MAX, 0);
    for round in 0..20 {
        sleep(MS / 10);
        let cpu = round % percpu::online_count();
        wait_for(|| task.is_asleep())?;
        check(task.set_affinity(1 << cpu), "mask refused")?;
        sleep(MS / 10);
        task.unpark();
        wait_for(|| WOKEN.load(SeqCst) > round)?;
        let woke_on = WOKE_ON.load(SeqCst);
        check(woke_on == cpu, &format!("woke on CPU {woke_on} instead of {cpu}"))?;
    }
    Ok(())
}

/// Masks of several endless loops change all the time; in the end each is where its last mask says, and
/// all run.
pub fn mask_storm() -> Result<(), String> {
    let cpus = percpu::online_count() as u64;
    let mut random = Stream::new(cpus);
    preemption::with_spinners(&[0; 6], u64::MAX, |apps| {
        let mut masks: Vec<u64> = vec![u64::MAX; apps.len()];
        for _ in 0..300 {
            let at = random.below(apps.len() as u64) as usize;
            masks[at] = 1 + random.below((1 << cpus) - 1);
            check(apps[at].task.set_affinity(masks[at]), "mask refused")?;
            if random.below(4) == 0 {
                sleep(random.below(200) * 1000);
            }
        }
        let in_mask = |at: usize, cpu: usize| masks[at] & 1 << cpu != 0;
        until_placed(apps, in_mask)?;
        let before: Vec<u64> = apps.iter().map(|app| app.task.cpu_time_ns()).collect();
        wait_for(|| apps.iter().zip(&before).all(|(app, before)| app.task.cpu_time_ns() > *before))
            .map_err(|_| String::from("a task does not run any more"))?;
        let strays = apps.iter().enumerate().filter(|(at, app)| !in_mask(*at, app.task.cpu_number())).count();
        check(strays == 0, &format!("{strays} tasks left their masks"))
    })
}

/// Two tasks that are woken at once, while several CPUs have nothing to do, run at once.
pub fn woken_together() -> Result<(), String> {
    static GO: AtomicUsize = AtomicUsize::new(0);
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static LATE_NS: AtomicU64 = AtomicU64::new(0);
    const ROUNDS: usize = 20;
    const PATIENCE_NS: u64 = 20 * MS;
    fn partner(_: usize) {
        for round in 1..=ROUNDS {
            while GO.load(SeqCst) < round {
                tasks::park(None, ParkMode::Uninterruptible);
            }
            let from = time::now_ns();
            RUNNING.fetch_add(1, SeqCst);
            while RUNNING.load(SeqCst) < 2 * round && time::now_ns() - from < PATIENCE_NS {
                core::hint::spin_loop();
            }
            LATE_NS.fetch_max(time::now_ns() - from, SeqCst);
        }
    }
    if percpu::online_count() < 3 {
        return Ok(());
    }
    [&GO, &RUNNING].iter().for_each(|count| count.store(0, SeqCst));
    LATE_NS.store(0, SeqCst);
    tasks::current().set_affinity(1);
    let partners = [(); 2].map(|()| spawn(partner, 0, u64::MAX, 0));
    for round in 1..=ROUNDS {
        // Where both have run last, this CPU, is busy.
        for mask in [1, u64::MAX] {
            check(partners.iter().all(|task| task.set_affinity(mask)), "mask refused")?;
            partners.iter().filter(|_| mask == 1).for_each(|task| task.unpark());
            sleep(MS);
        }
        GO.store(round, SeqCst);
        partners.iter().for_each(|task| task.unpark());
        wait_for(|| RUNNING.load(SeqCst) >= 2 * round)?;
        sleep(MS);
    }
    tasks::current().set_affinity(u64::MAX);
    let late_ns = LATE_NS.load(SeqCst);
    check(!time::is_exact() || late_ns < MS / 4, &format!("one of two ran {late_ns} ns before the other"))
}

/// A task that is woken on another CPU, at all distances in time from its last run, runs soon.
pub fn wake_on_another_cpu() -> Result<(), String> {
    static WOKEN_AT: AtomicU64 = AtomicU64::new(0);
    static ROUND: AtomicUsize = AtomicUsize::new(0);
    const ROUNDS: usize = 50;
    fn partner(_: usize) {
        for round in 1..=ROUNDS {
            while ROUND.load(SeqCst) < round {
                tasks::park(None, ParkMode::Uninterruptible);
            }
            WOKEN_AT.store(time::now_ns(), SeqCst);
        }
    }
    let cpu = percpu::online_count() - 1;
    ROUND.store(0, SeqCst);
    WOKEN_AT.store(0, SeqCst);
    tasks::current().set_affinity(1);
    let task = spawn(partner, 0, 1 << cpu, 0);
    let mut latest = 0;
    for round in 1..=ROUNDS {
        // Sometimes while that CPU still polls, sometimes after it halted.
        sleep((round as u64 % 7) * 50_000 + 1000);
        let from = time::now_ns();
        ROUND.store(round, SeqCst);
        task.unpark();
        wait_for(|| WOKEN_AT.load(SeqCst) >= from)?;
        latest = latest.max(WOKEN_AT.load(SeqCst) - from);
    }
    tasks::current().set_affinity(u64::MAX);
    check(!time::is_exact() || latest < 50_000, &format!("woke {latest} ns late"))
}
