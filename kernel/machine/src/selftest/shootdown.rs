#![allow(unsafe_code, reason = "the addresses of assembly snippets")]
//! TLB shoot-down as application code sees it: once a page is taken away or write-protected, no CPU that
//! used it a moment ago can use it any more, neither one that runs nor one that was idle meanwhile.
use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use rt::{
    rt,
    space::{AddressSpace as _, Placement, Prot},
    task::Task as _,
};

use super::{
    application::{App, FAULTED, OWNER, WAITING},
    check,
    memory::request,
    tasks::{spawn, wait_for},
};
use crate::{
    cpu::{exits, lock::InterruptsOff, percpu},
    memory::space::SPACE,
    tasks, time,
};

unsafe extern "C" {
    static snippet_read_page: u8;
    static snippet_write_page: u8;
    static snippet_wait_and_read_page: u8;
}

const PAGE: u64 = 4096;
const ROUNDS: usize = 10;

fn map(bytes: u64) -> Result<u64, String> {
    SPACE.map(OWNER, request(bytes, Prot::READ | Prot::WRITE, Placement::Anywhere)).map_err(|e| format!("{e:?}"))
}

fn unmap(page: u64) -> Result<(), String> {
    SPACE.unmap(OWNER, page, PAGE).map_err(|e| format!("{e:?}"))
}

fn write_protect(page: u64) -> Result<(), String> {
    SPACE.protect(OWNER, page, PAGE, Prot::READ).map_err(|e| format!("{e:?}"))
}

fn word(address: u64) -> u64 {
    let mut bytes = [0; 8];
    rt().user().read(&mut bytes, address).map_or(0, |()| u64::from_le_bytes(bytes))
}

fn set_word(address: u64, value: u64) -> Result<(), String> {
    rt().user().write(address, &value.to_le_bytes()).map_err(|_| String::from("write refused"))
}

/// Applications on these CPUs that use one page, each with its own control words.
struct Watchers {
    page: u64,
    controls: u64,
    apps: Vec<App>,
}

impl Watchers {
    fn start(snippet: *const u8, cpus: &[usize], least_progress: u64) -> Result<Self, String> {
        let page = map(PAGE)?;
        set_word(page, 1)?;
        let controls = map(PAGE * cpus.len() as u64)?;
        let control = |at: usize| controls + at as u64 * PAGE;
        let start = |(at, &cpu): (usize, &usize)| App::start(snippet, [page, control(at)], 1 << cpu);
        let apps = cpus.iter().enumerate().map(start).collect::<Result<_, _>>()?;
        wait_for(|| (0..cpus.len()).all(|at| word(control(at)) >= least_progress))?;
        Ok(Self { page, controls, apps })
    }

    fn say_gone(&self) -> Result<(), String> {
        (0..self.apps.len()).try_for_each(|at| set_word(self.controls + at as u64 * PAGE + 8, 1))
    }

    fn all_fault(self) -> Result<(), String> {
        let result = self.apps.iter().try_for_each(|app| app.expect(FAULTED));
        SPACE.release(OWNER);
        result
    }
}

/// One page is used on all CPUs at once.
pub fn running() -> Result<(), String> {
    let cpus: Vec<usize> = (0..percpu::online_count()).collect();
    for _ in 0..ROUNDS {
        let readers = Watchers::start(&raw const snippet_read_page, &cpus, 100)?;
        unmap(readers.page)?;
        readers.say_gone()?;
        readers.all_fault()?;
        let writers = Watchers::start(&raw const snippet_write_page, &cpus, 100)?;
        write_protect(writers.page)?;
        writers.say_gone()?;
        writers.all_fault()?;
    }
    Ok(())
}

/// The page is used, then its users wait and their CPUs are idle, then the page goes.
pub fn idle() -> Result<(), String> {
    // This test runs on CPU 0, so that one is not idle, unless there is no other.
    let all = percpu::online_count();
    let cpus: Vec<usize> = if all == 1 { alloc::vec![0] } else { (1..all).collect() };
    tasks::current().set_affinity(1);
    let round = || {
        WAITING.store(0, SeqCst);
        let waiters = Watchers::start(&raw const snippet_wait_and_read_page, &cpus, 1)?;
        wait_for(|| WAITING.load(SeqCst) == cpus.len())?;
        let is_idle = |&cpu: &usize| percpu::cpu(cpu).is_some_and(|cpu| cpu.idle.load(SeqCst));
        if all > 1 {
            wait_for(|| cpus.iter().all(is_idle))?;
        }
        unmap(waiters.page)?;
        waiters.apps.iter().for_each(|app| app.task.interrupt());
        waiters.all_fault()
    };
    let result = (0..ROUNDS).try_for_each(|_| round());
    tasks::current().set_affinity(u64::MAX);
    result
}

/// A CPU that answers late, as one does that the host does not run: who waits for it halts meanwhile.
pub fn late_answer() -> Result<(), String> {
    static DEAF: AtomicBool = AtomicBool::new(false);
    static STOP: AtomicBool = AtomicBool::new(false);
    static ENDED: AtomicBool = AtomicBool::new(false);
    fn often_deaf(_: usize) {
        while !STOP.load(SeqCst) {
            let until = time::now_ns() + 2_000_000;
            let off = InterruptsOff::enter();
            DEAF.store(true, SeqCst);
            while time::now_ns() < until {
                core::hint::spin_loop();
            }
            DEAF.store(false, SeqCst);
            drop(off);
            tasks::yield_now();
        }
        ENDED.store(true, SeqCst);
    }
    if percpu::online_count() < 2 {
        return Ok(());
    }
    [&STOP, &ENDED].iter().for_each(|flag| flag.store(false, SeqCst));
    tasks::current().set_affinity(1);
    spawn(often_deaf, 0, 1 << 1, 0);
    let round = || {
        let page = map(PAGE)?;
        set_word(page, 1)?;
        wait_for(|| DEAF.load(SeqCst))?;
        let before = exits::halts_here();
        unmap(page)?;
        Ok::<bool, String>(exits::halts_here() > before)
    };
    // The host may let the other CPU run, and hear again, before this one asks.
    let halts = || -> Result<u32, String> {
        let mut halted = 0;
        for _ in 0..200 {
            halted += u32::from(round()?);
            if halted == 5 {
                break;
            }
        }
        Ok(halted)
    };
    let halted = halts();
    STOP.store(true, SeqCst);
    tasks::current().set_affinity(u64::MAX);
    wait_for(|| ENDED.load(SeqCst))?;
    check(halted? == 5, "hardly ever halted")
}
