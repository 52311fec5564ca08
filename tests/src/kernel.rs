//! The kernel's own tests (`test=all` on its command line), on each machine type and CPU count; and
//! the ways in which a broken kernel must end.

use std::time::Duration;

use abi::BootConfig;
use vmm::{Machine, MachineType, Outcome};

use crate::{
    guest::{self, KERNEL},
    suite::{Slice, Suite, Verdict},
};

const LIMIT: Duration = Duration::from_secs(120);

pub fn add(suite: &mut Suite) {
    add_windows(suite);
    add_fatal(suite);
    for (slice, machine_type, cpus, cpu_model) in [
        (Slice::Quick, MachineType::Q35, 2, None),
        (Slice::Default, MachineType::Q35, 1, None),
        (Slice::Default, MachineType::Microvm, 1, None),
        (Slice::Default, MachineType::Microvm, 2, None),
        // XSAVE and wide vectors, as far as QEMU emulates them.
        (Slice::Default, MachineType::Q35, 2, Some("max,-cx16")),
        (Slice::Full, MachineType::Q35, 4, None),
    ] {
        let mut name = format!("kernel/{machine_type:?}/{cpus}-cpu").to_lowercase();
        if cpu_model.is_some() {
            name += "/max";
        }
        suite.add(slice, name, move || {
            let boot = BootConfig { test: Some("all".into()), ..BootConfig::default() };
            check(&Machine {
                machine_type,
                cpus,
                cpu_model: cpu_model.map(str::to_owned),
                time_limit: Some(LIMIT),
                ..Machine::new(KERNEL, boot)
            })
        });
    }
}

/// In exact mode a timer tick is an instruction: an interrupt falls on each one of the entry and exit
/// paths.
fn add_windows(suite: &mut Suite) {
    for machine_type in [MachineType::Q35, MachineType::Microvm] {
        let name = format!("kernel/{machine_type:?}/entry-exit-windows").to_lowercase();
        suite.add(Slice::Quick, name, move || {
            let boot = BootConfig { test: Some("entry-exit-windows".into()), exact: true, ..BootConfig::default() };
            check(&Machine { machine_type, exact: true, time_limit: Some(LIMIT), ..Machine::new(KERNEL, boot) })
        });
    }
}

/// A broken kernel ends the machine as panicked, with its cause and a symbolised backtrace.
fn add_fatal(suite: &mut Suite) {
    for (test, cause, symbol) in [
        ("fatal-panic", "asked for", "machine::selftest::fatal::run"),
        ("fatal-fault", "page fault", "machine::selftest::fatal::wild_write"),
        ("fatal-stack-overflow", "kernel stack overflow", "machine::selftest::fatal::recurse"),
        ("fatal-sleep-under-lock", "sleep under a spin lock", "machine::tasks::scheduler::switch_away"),
    ] {
        suite.add(Slice::Default, format!("kernel/{test}"), move || {
            let boot = BootConfig { test: Some(test.into()), ..BootConfig::default() };
            match guest::run(&Machine { cpus: 2, time_limit: Some(LIMIT), ..Machine::new(KERNEL, boot) }) {
                Ok(run) => {
                    let text = String::from_utf8_lossy(&run.output).into_owned();
                    let reported = text.contains(cause) && text.contains(symbol);
                    match run.report.outcome {
                        Outcome::Panicked { .. } if reported => Verdict::Passed,
                        ref outcome => run.fail(format!("ended as {outcome:?}, expected a panic: {cause}, {symbol}")),
                    }
                }
                Err(why) => Verdict::Failed(why),
            }
        });
    }
}

fn check(machine: &Machine) -> Verdict {
    let run = match guest::run(machine) {
        Ok(run) => run,
        Err(why) => return Verdict::Failed(why),
    };
    let tests = &run.report.tests;
    let failed: String =
        tests.iter().filter(|test| !test.ok).map(|test| format!("{}: {}\n", test.name, test.detail)).collect();
    let orderly = matches!(run.report.outcome, Outcome::Exited { code: 0, .. });
    if orderly && failed.is_empty() && !tests.is_empty() {
        return Verdict::Passed;
    }
    run.fail(format!("{} tests reported, ended as {:?}\n{failed}", tests.len(), run.report.outcome))
}
