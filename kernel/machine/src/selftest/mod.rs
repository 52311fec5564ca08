//! Kernel tests: what only the machine itself can show. `test=NAME` or `test=all` on the command line
//! runs them instead of a program (those of [`fatal`], and the measurements of [`bench`], by name only); each reports by a control frame ([`abi::control::Frame::Test`]).
//!
//! They run in a kernel task of their own, over the real scheduler, page tables and interrupts, and
//! with a small personality that serves the application snippets of [`application`].
use alloc::string::String;

use crate::drivers::{control, first_disk};

mod application;
mod bench;
mod clock;
mod disks;
mod fatal;
mod mappings;
mod memory;
mod net;
mod placement;
mod preemption;
mod pressure;
mod reverse;
mod shootdown;
mod tasks;

type Test = (&'static str, fn() -> Result<(), String>);

/// Those that bound a time. The bounds hold where time is virtual (`exact`); elsewhere they look at order
/// and lower bounds only. `test=timing` runs them alone.
const TIMING_TESTS: &[Test] = &[
    ("sleep-accuracy", tasks::sleep_accuracy),
    ("sleepers", tasks::sleepers),
    ("timer-interrupts", tasks::timer_interrupts),
    ("preemption", preemption::preemption),
    ("fairness", preemption::fairness),
    ("late-comer", preemption::late_comer),
    ("nicest", preemption::nicest),
    ("mask-changes", placement::mask_changes),
    ("wake-on-another-cpu", placement::wake_on_another_cpu),
    ("woken-together", placement::woken_together),
];

const TESTS: &[Test] = &[
    // First: the clock's rate is refined about now.
    ("clock-remembers", clock::remembers),
    ("clock-is-monotonic", clock::is_monotonic),
    ("park-unpark", tasks::park_unpark),
    ("thousand-tasks", tasks::thousand_tasks),
    ("affinity", placement::affinity),
    ("stealing", placement::stealing),
    ("bound-to-a-busy-cpu", placement::bound_to_a_busy_cpu),
    ("mask-storm", placement::mask_storm),
    ("heap-stress", memory::heap_stress),
    ("slabs-return", memory::slabs_return),
    ("frames-return", memory::frames_return),
    ("demand-paging", memory::demand_paging),
    ("protection", memory::protection),
    ("many-mappings", mappings::many),
    ("moved-mappings", mappings::moved),
    ("moved-over-huge-page", mappings::moved_over_huge_page),
    ("bad-user-copy", memory::bad_user_copy),
    ("write-xor-execute", memory::write_xor_execute),
    ("shoot-down", shootdown::running),
    ("shoot-down-idle", shootdown::idle),
    ("shoot-down-late-answer", shootdown::late_answer),
    ("file-larger-than-memory", pressure::file_larger_than_memory),
    ("exhaustion", pressure::exhaustion),
    ("budget", memory::budget),
    ("dirty-tracking", reverse::dirty_tracking),
    ("truncation-below-mappings", reverse::truncation),
    ("huge-pages", pressure::huge_pages),
    ("huge-pages-unused", pressure::huge_pages_unused),
    ("huge-pages-shared", pressure::huge_pages_shared),
    ("zeroed-ahead", pressure::zeroed_ahead),
    ("null-syscall", application::null_syscall),
    ("syscall-registers", application::syscall_registers),
    ("fault-registers", application::fault_registers),
    ("swapgs", application::swapgs),
    ("entry-exit-windows", application::entry_exit_windows),
    ("entry-exit-windows-fault", application::fault_windows),
    ("interrupt-flag", application::interrupt_flag),
    ("vector-state", preemption::vector_state),
    ("stack-high-water", tasks::stack_high_water),
];

/// These need the pattern disk of [`disks`]; `all` runs them when there is one.
const DISK_TESTS: &[Test] = &[
    ("disk-reads", disks::reads),
    ("disk-writes", disks::writes),
    ("disk-mixed", disks::mixed),
    ("disk-quiesce", disks::quiesce),
];

/// Needs QEMU's user network; by name only.
const NETWORK_TEST: Test = ("net-arp", net::arp);

/// Runs the tests that `name` selects. True: all passed, and there were some.
pub fn run(name: &str) -> bool {
    application::register();
    fatal::run(name);
    if name == "bench" {
        return bench::run();
    }
    let mut failed = 0;
    let mut ran = 0;
    let with_disk = if first_disk().is_some() { DISK_TESTS } else { &[] };
    let timing = TIMING_TESTS.iter().filter(|_| name == "all" || name == "timing");
    let of_all = timing.chain(TESTS.iter().chain(with_disk).filter(|_| name == "all"));
    let named =
        TIMING_TESTS.iter().chain(TESTS).chain(DISK_TESTS).chain([&NETWORK_TEST]).filter(|(test, _)| name == *test);
    for (test, body) in of_all.chain(named) {
        let result = body();
        ran += 1;
        failed += u32::from(result.is_err());
        report(test, result.is_ok(), result.as_ref().err().map_or("", String::as_str));
    }
    ran > 0 && failed == 0
}

fn report(name: &str, ok: bool, detail: &str) {
    control::send(abi::control::Frame::Test { name, ok, detail });
}

/// An error text unless `condition` holds.
fn check(condition: bool, what: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(String::from(what)) }
}
