//! The kernel's own tests (`test=all` on its command line), on each machine type and CPU count.

use std::time::Duration;

use abi::BootConfig;
use vmm::{Machine, MachineType, Outcome};

use crate::{
    guest::{self, KERNEL},
    suite::{Slice, Suite, Verdict},
};

const LIMIT: Duration = Duration::from_secs(120);

pub fn add(suite: &mut Suite) {
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
