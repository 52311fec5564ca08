//! What the kernel's common paths cost (`test=bench`), in ticks of the time stamp counter: in `exact`
//! mode a tick is an instruction, on one CPU. Each is reported as a test that passes, with the figure
//! as its detail.
//!
//! With two CPUs a wake-up from one to the other is measured as well; that one says something by time
//! only.
use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::{
    hint::black_box,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use abi::exits::Exits;
use logic::timers::{TimerId, Timers};
use rt::{
    rt,
    space::{AddressSpace as _, Placement, ProgramId, Prot},
    sync::WaitQueue,
    task::{ParkMode, Task as _},
};

use super::{application, memory::request, report, tasks::spawn};
use crate::{
    cpu::{exits, percpu},
    memory::space::SPACE,
    tasks::{self, Task},
    time,
};

mod faults;

const OWNER: ProgramId = ProgramId(80);
const ROUNDS: u64 = 1000;
const PAGE: u64 = 4096;
const S: u64 = 1_000_000_000;

type Bench = (&'static str, fn() -> Result<u64, String>);

/// Each gives the ticks of one piece.
const BENCHES: &[Bench] = &[
    ("null-syscall", || in_all(ROUNDS, application::null_syscall_ticks)),
    ("switch-by-unpark-and-park", || ping_pong(Kind::Park)),
    ("switch-by-unpark-and-park-with-timeout", || ping_pong(Kind::ParkWithTimeout)),
    ("switch-by-wait-queue", || ping_pong(Kind::Queue)),
    ("switch-by-yield", switch_by_yield),
    ("park-that-finds-its-token", token),
    ("timer-armed-and-cancelled-at-once", || Ok(timer_pair())),
    ("timer-arm", || Ok(timer_arm_and_cancel().0)),
    ("timer-cancel", || Ok(timer_arm_and_cancel().1)),
    ("page-fault-4-kib", || in_all(256, application::fault_ticks)),
    ("page-fault-4-kib-zeroed-ahead", faults::zeroed_ahead),
    ("page-fault-2-mib", faults::huge),
    ("page-fault-cached-file-16-pages", faults::cached_file),
    ("map-and-unmap-64-kib", || map_and_unmap(false)),
    ("map-touch-and-unmap-64-kib", || map_and_unmap(true)),
    ("heap-pair-64-bytes", heap_pair::<64>),
    ("heap-pair-1-kib", heap_pair::<1024>),
    ("task-spawn-to-its-end", spawn_and_end),
];

pub fn run() -> bool {
    // On one CPU, as the exact mode has it, and as the switches are meant.
    tasks::current().set_affinity(1);
    let mut failed = false;
    for (name, bench) in BENCHES {
        // Once to fill the caches of the allocators: the second counts.
        let _ = bench();
        let before = exits::total();
        *MEASURED.lock() = None;
        let result = bench();
        // What measures by itself tells its rounds; else all of it counts as one.
        MEASURED.lock().get_or_insert_with(|| (exits::total() - before, 1));
        failed |= !tell(name, result);
    }
    if percpu::online_count() > 1 {
        *MEASURED.lock() = None;
        failed |= !tell("wake-up-on-another-cpu", between_cpus());
    }
    !failed
}

fn tell(name: &str, result: Result<u64, String>) -> bool {
    match &result {
        Ok(ticks) if time::is_exact() => report(name, true, &format!("{ticks} instructions; {}", exits_each())),
        Ok(ticks) => report(name, true, &format!("{} ns; {}", time::ticks_to_ns(*ticks), exits_each())),
        Err(why) => report(name, false, why),
    }
    result.is_ok()
}

/// Exits of the last measurement, and how many rounds had them.
static MEASURED: spin::Mutex<Option<(Exits, u64)>> = spin::Mutex::new(None);

/// Exits of one round, in hundredths: the kernel has no floating arithmetic.
fn exits_each() -> String {
    let Some((exits, rounds)) = MEASURED.lock().take() else { return String::from("exits not counted") };
    let mut text = String::from("exits:");
    for (name, count) in Exits::NAMES.iter().zip(exits.values()).filter(|(_, count)| *count > 0) {
        text += &format!(" {name} {}.{:02}", count / rounds, count % rounds * 100 / rounds);
    }
    if exits == Exits::default() {
        text += " none";
    }
    text
}

/// A measurement by application code; its start and end count as well.
fn in_all(rounds: u64, measure: fn(u64) -> Result<u64, String>) -> Result<u64, String> {
    let before = exits::total();
    let result = measure(rounds);
    *MEASURED.lock() = Some((exits::total() - before, rounds));
    result
}

/// `result`, of which the last measurement's rounds had `pieces` each.
fn pieces(pieces: u64, result: u64) -> Result<u64, String> {
    if let Some((_, rounds)) = &mut *MEASURED.lock() {
        *rounds *= pieces;
    }
    Ok(result / pieces)
}

/// Ticks of a round of `body`, less those of reading the counter.
fn per_round(rounds: u64, mut body: impl FnMut()) -> u64 {
    let before = exits::total();
    let from = time::counter();
    for _ in 0..rounds {
        body();
    }
    let ticks = time::counter() - from;
    *MEASURED.lock() = Some((exits::total() - before, rounds));
    ticks / rounds
}

#[derive(Clone, Copy)]
enum Kind {
    Park,
    ParkWithTimeout,
    Queue,
}

static MAIN: spin::Mutex<Option<Arc<Task>>> = spin::Mutex::new(None);
static TURN: AtomicU64 = AtomicU64::new(0);
static WITH_TIMEOUT: AtomicBool = AtomicBool::new(false);
static QUEUE: WaitQueue = WaitQueue::new();

/// Waits by parking until it is this turn.
fn park_until(turn: u64) {
    while TURN.load(SeqCst) != turn {
        let deadline = WITH_TIMEOUT.load(SeqCst).then(|| time::now_ns() + S);
        tasks::park(deadline, ParkMode::Interruptible);
    }
}

fn queue_until(turn: u64) {
    let _ = QUEUE.wait_until(None, ParkMode::Interruptible, || (TURN.load(SeqCst) == turn).then_some(()));
}

fn park_partner(_: usize) {
    let Some(main) = MAIN.lock().clone() else { return };
    for round in 0..ROUNDS {
        park_until(2 * round + 1);
        TURN.store(2 * round + 2, SeqCst);
        main.unpark();
    }
}

fn queue_partner(_: usize) {
    for round in 0..ROUNDS {
        queue_until(2 * round + 1);
        TURN.store(2 * round + 2, SeqCst);
        QUEUE.wake_one();
    }
}

/// Two tasks wake each other and wait: the ticks of one wake-up with the switch it leads to.
fn ping_pong(kind: Kind) -> Result<u64, String> {
    one_way(kind, 1)
}

/// From a task on CPU 0 to one on CPU 1.
fn between_cpus() -> Result<u64, String> {
    one_way(Kind::Park, 2)
}

fn one_way(kind: Kind, partner_affinity: u64) -> Result<u64, String> {
    TURN.store(0, SeqCst);
    WITH_TIMEOUT.store(matches!(kind, Kind::ParkWithTimeout), SeqCst);
    *MAIN.lock() = Some(tasks::current());
    let by_queue = matches!(kind, Kind::Queue);
    let partner = spawn(if by_queue { queue_partner } else { park_partner }, 0, partner_affinity, 0);
    let mut round = 0;
    let ticks = per_round(ROUNDS, || {
        TURN.store(2 * round + 1, SeqCst);
        if by_queue {
            QUEUE.wake_one();
            queue_until(2 * round + 2);
        } else {
            partner.unpark();
            park_until(2 * round + 2);
        }
        round += 1;
    });
    *MAIN.lock() = None;
    pieces(2, ticks)
}

fn switch_by_yield() -> Result<u64, String> {
    static STOP: AtomicBool = AtomicBool::new(false);
    fn partner(_: usize) {
        while !STOP.load(SeqCst) {
            tasks::yield_now();
        }
    }
    STOP.store(false, SeqCst);
    spawn(partner, 0, 1, 0);
    tasks::yield_now();
    let ticks = per_round(ROUNDS, tasks::yield_now);
    STOP.store(true, SeqCst);
    tasks::yield_now();
    pieces(2, ticks)
}

/// An unpark that comes before the park, which then returns at once.
fn token() -> Result<u64, String> {
    Ok(tasks::with_current(|me| {
        per_round(ROUNDS, || {
            me.unpark();
            tasks::park(None, ParkMode::Uninterruptible);
        })
    }))
}

/// A timeout that does not come, as most: it never reaches the wheel.
fn timer_pair() -> u64 {
    let mut timers = Timers::new();
    per_round(ROUNDS, || {
        let id = timers.arm(black_box(S), 0_u64);
        black_box(timers.cancel(black_box(id)));
    })
}

/// A thousand timers at once, of a wheel of its own: without the lock and the hardware's timer.
fn timer_arm_and_cancel() -> (u64, u64) {
    let mut timers = Timers::new();
    let mut ids = Vec::with_capacity(ROUNDS as usize);
    let fill: Vec<TimerId> = (0..ROUNDS).map(|round| timers.arm(round, round)).collect();
    for id in fill {
        timers.cancel(id);
    }
    let mut round = 0;
    let arm = per_round(ROUNDS, || {
        round += 1;
        ids.push(timers.arm(S + (round % 16) * (S / 16), round));
    });
    let mut left = ids.into_iter();
    let cancel = per_round(ROUNDS, || {
        black_box(left.next().and_then(|id| timers.cancel(id)));
    });
    (arm, cancel)
}

fn map_and_unmap(touch: bool) -> Result<u64, String> {
    const LEN: u64 = 64 << 10;
    let mut result = Ok(());
    let ticks = per_round(ROUNDS / 10, || {
        result = (|| {
            let at = SPACE.map(OWNER, request(LEN, Prot::READ | Prot::WRITE, Placement::Anywhere))?;
            if touch {
                for page in 0..LEN / PAGE {
                    let _ = rt().user().write(at + page * PAGE, b"x");
                }
            }
            SPACE.unmap(OWNER, at, LEN)
        })();
    });
    result.map(|()| ticks).map_err(|error| format!("{error:?}"))
}

fn heap_pair<const BYTES: usize>() -> Result<u64, String> {
    Ok(per_round(ROUNDS, || drop(black_box(Box::<[u8; BYTES]>::new_uninit()))))
}

fn spawn_and_end() -> Result<u64, String> {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    fn nothing(_: usize) {
        ENDED.fetch_add(1, SeqCst);
    }
    ENDED.store(0, SeqCst);
    Ok(per_round(ROUNDS / 10, || {
        let before = ENDED.load(SeqCst);
        spawn(nothing, 0, 1, 0);
        while ENDED.load(SeqCst) == before {
            tasks::yield_now();
        }
    }))
}
