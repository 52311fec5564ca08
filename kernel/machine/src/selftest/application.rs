#![allow(unsafe_code, reason = "the addresses of assembly snippets")]
//! Tests of the way into the kernel and out of it, by snippets of application code.
use alloc::{boxed::Box, format, string::String, sync::Arc};
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};

use rt::{
    Extension, Personality,
    regs::TrapFrame,
    rt,
    space::{AddressSpace as _, Placement, ProgramId, Prot},
    task::{AppFault, ParkMode, Parked, Start, Task as _, TaskRef, TaskSpec},
};

use super::{check, memory::request, tasks::wait_for};
use crate::{
    cpu::{apic, irq, lock::InterruptsOff, percpu::this_cpu},
    memory::space::SPACE,
    tasks::{self, Task},
    time,
};

core::arch::global_asm!(include_str!("snippets.S"), options(att_syntax));

unsafe extern "C" {
    static snippet_null: u8;
    static snippet_registers: u8;
    static snippet_fault: u8;
    static snippet_windows: u8;
    static snippet_windows_fault: u8;
    static snippet_wait: u8;
    static snippet_swapgs: u8;
    static snippet_change_gs_base: u8;
    static snippet_time_syscall: u8;
    static snippet_time_fault: u8;
    static snippets_end: u8;
}

pub(super) const OWNER: ProgramId = ProgramId(79);
const RUNNING: u64 = u64::MAX;
const KILLED: u64 = 1000;
/// Exit code of a task that faulted for good.
pub(super) const FAULTED: u64 = 99;
const MS: u64 = 1_000_000;
const TEXT_BYTES: u64 = 16384;
const STACK_BYTES: u64 = 16384;

/// How an application task ended: its exit code, or RUNNING.
struct Outcome(AtomicU64);

static ARMED_VECTOR: AtomicU8 = AtomicU8::new(0);
static HITS: AtomicU64 = AtomicU64::new(0);
static WORK_DONE: AtomicU64 = AtomicU64::new(0);
/// Exit work ends the task.
static KILL: AtomicU64 = AtomicU64::new(0);
/// Applications that have come to their calls that wait. Before that an interruption is one of application
/// code, and ends no wait.
pub(super) static WAITING: AtomicUsize = AtomicUsize::new(0);

struct TestPersonality;

fn finish(task: &TaskRef, code: u64) -> ! {
    if let Some(outcome) = task.extension().and_then(|extension| extension.get::<Outcome>()) {
        outcome.0.store(code, SeqCst);
    }
    tasks::exit()
}

/// The call that does nothing, which is measured.
const VALUE: u64 = 39;

/// All other calls: out of line, so that what is measured is the way in and out.
#[inline(never)]
fn other_call(task: &TaskRef, frame: &TrapFrame) -> u64 {
    match frame.rax {
        60 => finish(task, frame.rdi),
        201 => {
            apic::arm_ticks(frame.rdi as u32 + 1);
            0
        }
        202 => {
            let _off = InterruptsOff::enter();
            apic::disarm();
            HITS.load(SeqCst) - WORK_DONE.load(SeqCst) - u64::from(task.is_interrupted())
        }
        203 => {
            WAITING.fetch_add(1, SeqCst);
            // A token may be left of an earlier wait, in a fault.
            while tasks::park(None, ParkMode::Interruptible) != Parked::Interrupted {}
            7
        }
        _ => u64::MAX,
    }
}

impl Personality for TestPersonality {
    fn syscall(&self, task: &TaskRef, _extension: Option<&Extension>, frame: &mut TrapFrame) {
        frame.rax = if frame.rax == VALUE { 4242 } else { other_call(task, frame) };
    }

    fn fault(&self, task: &TaskRef, frame: &mut TrapFrame, fault: AppFault) {
        log::info!("test application: {fault:?} at {:#x}", frame.rip);
        finish(task, FAULTED)
    }

    fn exit_work(&self, task: &TaskRef, _frame: &mut TrapFrame) {
        WORK_DONE.fetch_add(1, SeqCst);
        if KILL.load(SeqCst) != 0 {
            finish(task, KILLED);
        }
    }
}

/// Makes the test personality the machine's.
pub fn register() {
    rt::set_personality(&TestPersonality);
}

pub(super) struct App {
    pub(super) task: Arc<Task>,
    outcome: Arc<Outcome>,
}

impl App {
    /// Starts a snippet in fresh application memory, with two arguments.
    pub(super) fn start(snippet: *const u8, arguments: [u64; 2], affinity: u64) -> Result<Self, String> {
        // SAFETY: only addresses are used, and the bytes between the symbols are read-only data.
        let (first, text) = unsafe {
            let first = &raw const snippet_null;
            (first as u64, core::slice::from_raw_parts(first, &raw const snippets_end as usize - first as usize))
        };
        let all = Prot::READ | Prot::WRITE | Prot::EXEC;
        let code = SPACE.map(OWNER, request(TEXT_BYTES, all, Placement::Anywhere)).map_err(|e| format!("{e:?}"))?;
        let stack = SPACE
            .map(OWNER, request(STACK_BYTES, Prot::READ | Prot::WRITE, Placement::Anywhere))
            .map_err(|e| format!("{e:?}"))?;
        check(text.len() as u64 <= TEXT_BYTES, "the snippets outgrew their pages")?;
        rt().user().write(code, text).map_err(|_| "no memory for the snippets")?;
        let frame = Box::new(TrapFrame {
            rip: code + (snippet as u64 - first),
            rsp: stack + STACK_BYTES - 64,
            rflags: 0x202,
            rdi: arguments[0],
            rsi: arguments[1],
            ..TrapFrame::default()
        });
        let outcome = Arc::new(Outcome(AtomicU64::new(RUNNING)));
        let start = Start::Application { frame, fs_base: 0, inherit_vectors: false };
        let spec = TaskSpec {
            name: String::from("app"),
            start,
            extension: Some(Extension::new(outcome.clone())),
            affinity,
            nice: 0,
        };
        let task = tasks::spawn(spec, &mut |_| ()).map_err(|_| "no memory for a task")?;
        Ok(Self { task, outcome })
    }

    pub(super) fn ended(&self) -> bool {
        self.outcome.0.load(SeqCst) != RUNNING
    }

    pub(super) fn expect(&self, code: u64) -> Result<(), String> {
        wait_for(|| self.ended())?;
        let got = self.outcome.0.load(SeqCst);
        check(got == code, &format!("exit code {got} instead of {code}"))
    }

    /// Ends an application that does not end by itself.
    pub(super) fn kill(&self) -> Result<(), String> {
        KILL.store(1, SeqCst);
        self.task.interrupt();
        let result = self.expect(KILLED);
        KILL.store(0, SeqCst);
        result
    }
}

fn run(snippet: *const u8, arguments: [u64; 2]) -> Result<(), String> {
    let result = App::start(snippet, arguments, u64::MAX)?.expect(0);
    SPACE.release(OWNER);
    result
}

pub fn null_syscall() -> Result<(), String> {
    run(&raw const snippet_null, [0; 2])
}

pub fn syscall_registers() -> Result<(), String> {
    run(&raw const snippet_registers, [0; 2])
}

pub fn fault_registers() -> Result<(), String> {
    let page =
        SPACE.map(OWNER, request(4096, Prot::READ | Prot::WRITE, Placement::Anywhere)).map_err(|e| format!("{e:?}"))?;
    run(&raw const snippet_fault, [page, 0])
}

pub fn swapgs() -> Result<(), String> {
    let page =
        SPACE.map(OWNER, request(4096, Prot::READ | Prot::WRITE, Placement::Anywhere)).map_err(|e| format!("{e:?}"))?;
    run(&raw const snippet_swapgs, [page, 0])
}

/// An application that changes the GS base to `base`, or to memory of its own (0), and then calls or is
/// interrupted. The machine is to end by that.
pub fn change_gs_base(base: u64, calls: bool) -> Result<(), String> {
    // On the CPU of this test, whose timer interrupts it.
    tasks::current().set_affinity(1);
    App::start(&raw const snippet_change_gs_base, [base, u64::from(calls)], 1)?.expect(0)
}

/// Sweeps an interrupt over the entry and exit paths of system calls: the timer fires after 1, 2, 3 …
/// ticks, from inside one call until after the next. In `exact` mode a tick is an instruction.
pub fn entry_exit_windows() -> Result<(), String> {
    windows(&raw const snippet_windows, [3000, 0])
}

/// The same over a page fault's, the interrupt falling from inside the call before it until after it.
pub fn fault_windows() -> Result<(), String> {
    const ROUNDS: u64 = 4000;
    let pages = request(ROUNDS * 4096, Prot::READ | Prot::WRITE, Placement::Anywhere);
    let first = SPACE.map(OWNER, pages).map_err(|e| format!("{e:?}"))?;
    windows(&raw const snippet_windows_fault, [ROUNDS, first])
}

fn windows(snippet: *const u8, arguments: [u64; 2]) -> Result<(), String> {
    fn hit(_: usize) {
        // Not another task that has the CPU for a moment.
        tasks::with_current(|task| {
            if task.extension().is_some() {
                HITS.fetch_add(1, SeqCst);
                task.interrupt();
            }
        });
    }
    if ARMED_VECTOR.load(SeqCst) == 0 {
        ARMED_VECTOR.store(irq::allocate(hit, 0).ok_or("no vector left")?, SeqCst);
    }
    HITS.store(0, SeqCst);
    WORK_DONE.store(0, SeqCst);
    // On CPU 0, as this test: its timer is the one that is redirected meanwhile.
    tasks::current().set_affinity(1);
    let app = App::start(snippet, arguments, 1)?;
    apic::set_timer_vector(ARMED_VECTOR.load(SeqCst));
    while !app.ended() {
        tasks::yield_now();
    }
    apic::set_timer_vector(apic::VECTOR_TIMER);
    time::arm(Some(time::now_ns() + MS));
    tasks::current().set_affinity(u64::MAX);
    let hits = HITS.load(SeqCst);
    let result = app.expect(0);
    SPACE.release(OWNER);
    result?;
    // By time rather than by instruction, the emulator decides where and whether an interrupt hits:
    // then this only shows that nothing breaks. Exactly, each tick hits until the way through two calls
    // is over, about 500 instructions.
    let least = if time::is_exact() { 300 } else { 0 };
    check(hits >= least, &format!("only {hits} interrupts hit"))
}

/// An interruption ends a wait, one that is just beginning, too.
pub fn interrupt_flag() -> Result<(), String> {
    WAITING.store(0, SeqCst);
    let app = App::start(&raw const snippet_wait, [0; 2], u64::MAX)?;
    wait_for(|| WAITING.load(SeqCst) == 1)?;
    tasks::park(Some(time::now_ns() + 5 * MS), ParkMode::Uninterruptible);
    check(!app.ended(), "the wait ended by itself")?;
    app.task.interrupt();
    let result = app.expect(7);
    SPACE.release(OWNER);
    result
}

/// Runs a snippet that exits with the ticks a round took, on the calling CPU.
fn timed(snippet: *const u8, arguments: [u64; 2]) -> Result<u64, String> {
    let app = App::start(snippet, arguments, 1 << this_cpu().index.get())?;
    // Not by a timer, whose interrupt would be counted: it runs until it ends.
    while !app.ended() {
        tasks::yield_now();
    }
    SPACE.release(OWNER);
    Ok(app.outcome.0.load(SeqCst))
}

/// Ticks of the system call that does nothing.
pub fn null_syscall_ticks(rounds: u64) -> Result<u64, String> {
    timed(&raw const snippet_time_syscall, [rounds, 0])
}

/// Ticks of the fault that a first write to an anonymous page is.
pub fn fault_ticks(pages: u64) -> Result<u64, String> {
    let all = request(pages * 4096, Prot::READ | Prot::WRITE, Placement::Anywhere);
    let first = SPACE.map(OWNER, all).map_err(|e| format!("{e:?}"))?;
    timed(&raw const snippet_time_fault, [first, pages])
}
