#![allow(unsafe_code, reason = "flushes translations")]
//! TLB shootdown: after translations were taken away or tightened, no CPU may use the old ones.
//!
//! One request at a time: the requester bumps the generation, interrupts the other CPUs and waits
//! until each has caught up. A CPU that waits with interrupts off (for a lock) serves requests from
//! its wait loop. Frames are freed after the acknowledgement.
//!
//! The requester spins for a moment and then halts until it is told: where the host has fewer processors
//! than this machine, the CPU that is to answer may only run when this one does not.
//!
//! An idle CPU is left alone: it runs no application code, and catches up before it does
//! ([`leave_idle`]). That is sound because page-table pages are never freed while they could be walked
//! and kernel mappings never change after boot; whoever changes that must interrupt idle CPUs too.
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use x86_64::instructions::interrupts;
use x86_64::registers::control::Cr3;

use super::paging::PAGE;
use crate::{
    cpu::{apic, exits, percpu},
    time,
};

/// More pages than this: flush everything rather than page by page.
const FLUSH_ALL_ABOVE: u64 = 32;

/// An answer takes a few microseconds if both CPUs run.
const SPIN_NS: u64 = 100_000;

static REQUESTED: AtomicU64 = AtomicU64::new(0);
/// The range of the request that is being served. Written before `REQUESTED` grows, and not again
/// before every CPU that was interrupted has acknowledged.
static RANGE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static BUSY: AtomicBool = AtomicBool::new(false);
static ACKNOWLEDGED: [AtomicU64; percpu::MAX_CPUS] = [const { AtomicU64::new(0) }; percpu::MAX_CPUS];
/// 0, or the index + 1 of the requester, which halts.
static HALTED: AtomicU32 = AtomicU32::new(0);

fn flush_page(address: u64) {
    // SAFETY: dropping a translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// All of this CPU's translations but the kernel's global ones, which never change after boot.
fn flush_all() {
    let (frame, flags) = Cr3::read();
    // SAFETY: the same table again.
    unsafe { Cr3::write(frame, flags) };
}

fn flush_range(start: u64, end: u64) {
    if (end - start) / PAGE > FLUSH_ALL_ABOVE {
        flush_all();
    } else {
        for address in (start..end).step_by(PAGE as usize) {
            flush_page(address);
        }
    }
}

/// Flushes [start, end) on every CPU and returns when all have done it. Called without interrupt
/// locks held: the other CPUs must be able to answer.
pub fn shoot_down(start: u64, end: u64) {
    flush_range(start, end);
    let online = percpu::online_count();
    if online < 2 {
        return;
    }
    while BUSY.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        serve();
        core::hint::spin_loop();
    }
    let me = percpu::this_cpu().index.get() as usize;
    RANGE[0].store(start, Ordering::Relaxed);
    RANGE[1].store(end, Ordering::Relaxed);
    // Sequentially consistent with `leave_idle`: either this sees the CPU busy, or that sees the
    // request.
    let generation = REQUESTED.fetch_add(1, Ordering::SeqCst) + 1;
    // This CPU has flushed already.
    ACKNOWLEDGED[me].store(generation, Ordering::Relaxed);
    let mut waiting = 0u64;
    for index in (0..online).filter(|&index| index != me) {
        let Some(other) = percpu::cpu(index) else { continue };
        if !other.idle.load(Ordering::SeqCst) {
            waiting |= 1 << index;
            interrupts::without_interrupts(|| apic::send_ipi(other.apic_id.get(), apic::VECTOR_TLB));
        }
    }
    for index in (0..online).filter(|&index| waiting & 1 << index != 0) {
        wait_until(|| ACKNOWLEDGED[index].load(Ordering::SeqCst) >= generation);
    }
    BUSY.store(false, Ordering::Release);
}

/// For the requester: until a CPU has answered.
fn wait_until(answered: impl Fn() -> bool) {
    if answered() {
        return;
    }
    let from = time::now_ns();
    while !answered() {
        core::hint::spin_loop();
        if time::now_ns() - from > SPIN_NS && interrupts::are_enabled() {
            halt_unless(&answered);
        }
    }
}

/// Halts until some interrupt, unless there is an answer by now. Whoever answers later sees that somebody
/// halts: either side writes before it reads, sequentially consistently.
fn halt_unless(answered: impl Fn() -> bool) {
    interrupts::disable();
    HALTED.store(percpu::this_cpu().index.get() + 1, Ordering::SeqCst);
    if answered() {
        interrupts::enable();
    } else {
        exits::halt();
        interrupts::enable_and_hlt();
    }
    HALTED.store(0, Ordering::Relaxed);
}

/// The calling CPU has flushed what was asked for up to `generation`.
fn acknowledge(mine: &AtomicU64, generation: u64) {
    mine.fetch_max(generation, Ordering::SeqCst);
    if let Some(requester) = HALTED.load(Ordering::SeqCst).checked_sub(1)
        && let Some(requester) = percpu::cpu(requester as usize)
    {
        interrupts::without_interrupts(|| apic::send_ipi(requester.apic_id.get(), apic::VECTOR_TLB));
    }
}

/// The calling CPU is about to run something: it catches up with the requests it was left out of.
pub fn leave_idle() {
    let cpu = percpu::this_cpu();
    cpu.idle.store(false, Ordering::SeqCst);
    let generation = REQUESTED.load(Ordering::SeqCst);
    let mine = &ACKNOWLEDGED[cpu.index.get() as usize];
    if mine.load(Ordering::Relaxed) < generation {
        // Not by range: a next request may be writing it.
        flush_all();
        acknowledge(mine, generation);
    }
}

/// Serves a request that waits for this CPU; from its interrupt and from wait loops.
pub fn serve() {
    if !percpu::ready() {
        return;
    }
    let generation = REQUESTED.load(Ordering::SeqCst);
    let cpu = percpu::this_cpu();
    let mine = &ACKNOWLEDGED[cpu.index.get() as usize];
    // An interrupt in between may have served more than was loaded above.
    let behind = generation.saturating_sub(mine.load(Ordering::Relaxed));
    if behind == 0 {
        return;
    }
    if behind == 1 && !cpu.idle.load(Ordering::Relaxed) {
        flush_range(RANGE[0].load(Ordering::Relaxed), RANGE[1].load(Ordering::Relaxed));
    } else {
        flush_all();
    }
    acknowledge(mine, generation);
}

/// A CPU that comes up has an empty TLB: it starts level with the requests so far.
pub fn join() {
    let me = percpu::this_cpu().index.get() as usize;
    ACKNOWLEDGED[me].store(REQUESTED.load(Ordering::SeqCst), Ordering::SeqCst);
    flush_all();
}

/// Drops this CPU's translation of a page after its entry was relaxed.
pub fn forget_local(address: u64) {
    flush_page(address);
}
