//! Machines whose virtual CPUs are stopped at random, each by itself, for up to a few hundred milliseconds,
//! as a busy host does it: what is lost between two CPUs, or assumed of their speed, shows up soon.
//!
//! A thread of this process is the tracer (ptrace(2)) of QEMU's threads for the virtual CPUs; stopped, such a
//! thread takes no host time while the rest of QEMU goes on. The seed decides which are stopped and for how
//! long, not where in the guest; a failure prints it, and `VM_TESTS_SEED` sets it.

use std::{
    collections::BTreeSet,
    env, fs, process,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use abi::BootConfig;
use logic::random::Stream;
use nix::{
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use vmm::{Machine, MachineType};

use crate::{
    diagnosis,
    guest::{self, KERNEL, Run},
    kernel,
    suite::{Slice, Suite, Verdict},
};

const LIMIT: Duration = Duration::from_secs(600);
const LONGEST_MS: u64 = 300;
const PANICS: usize = 10;

pub fn add(suite: &mut Suite) {
    for (machine_type, cpus) in [(MachineType::Q35, 2), (MachineType::Microvm, 4), (MachineType::Q35, 8)] {
        let name = format!("stopped/{machine_type:?}/{cpus}-cpu").to_lowercase();
        suite.add(Slice::Full, name, move || {
            let extra_arguments = kernel::pattern_disk(machine_type);
            let Ok(extra_arguments) = extra_arguments else { return Verdict::Failed("no pattern disk".into()) };
            let boot = BootConfig { test: Some("all".into()), ..BootConfig::default() };
            let machine = Machine { machine_type, cpus, extra_arguments, ..Machine::new(KERNEL, boot) };
            with_stops(machine, |run| kernel::verdict(&run))
        });
    }
    suite.add(Slice::Full, "stopped/panics", || {
        for _ in 0..PANICS {
            let boot = BootConfig { test: Some("fatal-panic-beside-others".into()), ..BootConfig::default() };
            let machine = Machine { cpus: 4, ..Machine::new(KERNEL, boot) };
            let verdict = with_stops(machine, |run| diagnosis::panicked(Ok(run), &diagnosis::FOUR_CPUS));
            if !matches!(verdict, Verdict::Passed) {
                return verdict;
            }
        }
        Verdict::Passed
    });
}

fn seed() -> u64 {
    let given = env::var("VM_TESTS_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_micros() as u64))
}

/// Runs the machine while its CPUs are stopped now and then.
fn with_stops(mut machine: Machine, judge: impl FnOnce(Run) -> Verdict) -> Verdict {
    let seed = seed();
    machine.time_limit = Some(LIMIT);
    // By their names the threads of the CPUs are known.
    machine.extra_arguments.extend(["-name", "guest,debug-threads=on"].map(str::to_owned));
    let (over, stops) = (AtomicBool::new(false), AtomicUsize::new(0));
    let run = thread::scope(|scope| {
        scope.spawn(|| stop_at_random(seed, &over, &stops));
        let run = guest::run(&machine);
        over.store(true, Relaxed);
        run
    });
    let verdict = match run {
        Ok(_) if stops.load(Relaxed) == 0 => Verdict::Failed("no CPU was ever stopped".into()),
        Ok(run) => judge(run),
        Err(why) => Verdict::Failed(why),
    };
    match verdict {
        Verdict::Failed(why) => Verdict::Failed(format!("with VM_TESTS_SEED={seed}: {why}")),
        other => other,
    }
}

/// The tracer's life.
fn stop_at_random(seed: u64, over: &AtomicBool, stops: &AtomicUsize) {
    let mut random = Stream::new(seed);
    let mut traced = BTreeSet::new();
    while !over.load(Relaxed) {
        let fresh = cpu_threads().into_iter().filter(|thread| !traced.contains(thread)).collect::<Vec<_>>();
        traced.extend(fresh.into_iter().filter(|&thread| ptrace::seize(thread, ptrace::Options::empty()).is_ok()));
        let all: Vec<Pid> = traced.iter().copied().collect();
        let chosen: BTreeSet<Pid> = (0..1 + random.below(3))
            .filter_map(|_| all.get(random.below(all.len() as u64) as usize).copied())
            .collect();
        let stopped: Vec<Pid> = chosen.into_iter().filter(|&thread| stop(thread, &mut traced)).collect();
        stops.fetch_add(stopped.len(), Relaxed);
        // Most stops are short: the worst moments are short, too.
        let longest_us = [1000, 10_000, LONGEST_MS * 1000][random.below(3) as usize];
        thread::sleep(Duration::from_micros(random.below(longest_us)));
        stopped.into_iter().for_each(|thread| go_on(thread, None));
        let until = Instant::now() + Duration::from_micros([200, 2000, 20_000][random.below(3) as usize]);
        while Instant::now() < until {
            attend(&mut traced);
            thread::sleep(Duration::from_micros(200));
        }
    }
    // Nobody is left stopped; those that have ended are waited for.
    for thread in traced.clone() {
        if stop(thread, &mut traced) {
            let _ = ptrace::detach(thread, None);
        }
    }
}

/// The threads of the virtual CPUs of the QEMU that this process runs.
fn cpu_threads() -> Vec<Pid> {
    let threads = |process: u32| fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children = threads(process::id()).filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: String = children.collect();
    let of_children = children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(threads);
    let is_cpu = |comm: &String| comm.starts_with("CPU ");
    of_children
        .filter(|thread| fs::read_to_string(thread.path().join("comm")).as_ref().is_ok_and(is_cpu))
        .filter_map(|thread| thread.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .collect()
}

/// False: it has ended, or does not stop within a second.
fn stop(thread: Pid, traced: &mut BTreeSet<Pid>) -> bool {
    if ptrace::interrupt(thread).is_err() {
        traced.remove(&thread);
        return false;
    }
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until && traced.contains(&thread) {
        if look_at(thread, traced) {
            return true;
        }
        thread::sleep(Duration::from_micros(100));
    }
    false
}

/// Lets threads go on that stopped for a signal, and forgets those that have ended.
fn attend(traced: &mut BTreeSet<Pid>) {
    for thread in traced.clone() {
        if look_at(thread, traced) {
            go_on(thread, None);
        }
    }
}

/// An error says that the thread has ended.
fn go_on(thread: Pid, signal: Option<Signal>) {
    let _ = ptrace::cont(thread, signal);
}

/// Whether the thread stands still because it was asked to. One that stopped for a signal goes on with it.
fn look_at(thread: Pid, traced: &mut BTreeSet<Pid>) -> bool {
    match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::PtraceEvent(..)) => return true,
        Ok(WaitStatus::Stopped(_, signal)) => go_on(thread, Some(signal)),
        Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => drop(traced.remove(&thread)),
        Ok(_) => {}
    }
    false
}
