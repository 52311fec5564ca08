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
mod memory;
mod net;
mod pressure;
mod reverse;
mod tasks;

type Test = (&'static str, fn() -> Result<(), String>);

const TESTS: &[Test] = &[
    // First: the clock's rate is refined about now.
    ("clock-remembers", clock::remembers),
    ("clock-is-monotonic", clock::is_monotonic),
    ("park-unpark", tasks::park_unpark),
    ("park-timeout", tasks::park_timeout),
    ("thousand-tasks", tasks::thousand_tasks),
    ("fair-shares", tasks::fair_shares),
    ("affinity", tasks::affinity),
    ("stealing", tasks::stealing),
    ("heap-stress", memory::heap_stress),
    ("slabs-return", memory::slabs_return),
    ("frames-return", memory::frames_return),
    ("demand-paging", memory::demand_paging),
    ("protection", memory::protection),
    ("bad-user-copy", memory::bad_user_copy),
    ("write-xor-execute", memory::write_xor_execute),
    ("file-larger-than-memory", pressure::file_larger_than_memory),
    ("exhaustion", pressure::exhaustion),
    ("budget", memory::budget),
    ("dirty-tracking", reverse::dirty_tracking),
    ("truncation-below-mappings", reverse::truncation),
    ("huge-pages", pressure::huge_pages),
    ("huge-pages-shared", pressure::huge_pages_shared),
    ("zeroed-ahead", pressure::zeroed_ahead),
    ("null-syscall", application::null_syscall),
    ("syscall-registers", application::syscall_registers),
    ("fault-registers", application::fault_registers),
    ("entry-exit-windows", application::entry_exit_windows),
    ("preemption", application::preemption),
    ("interrupt-flag", application::interrupt_flag),
    ("vector-state", application::vector_state),
    ("stack-high-water", tasks::stack_high_water),
];

/// These need the pattern disk of [`disks`]; `all` runs them when there is one.
const DISK_TESTS: &[Test] = &[("disk-reads", disks::reads), ("disk-writes", disks::writes)];

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
    let of_all = TESTS.iter().chain(with_disk).filter(|_| name == "all");
    let named = TESTS.iter().chain(DISK_TESTS).chain([&NETWORK_TEST]).filter(|(test, _)| name == *test);
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
