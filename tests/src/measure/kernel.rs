//! The kernel's micro-benchmarks (`test=bench`), as it reports them itself.

use abi::BootConfig;
use vmm::{ImageAs, Machine, Outcome};

use super::{MEASURED_KERNEL, Platform};
use crate::{guest, pressure};

const LIMIT_S: u64 = 60;

pub fn take() -> Result<(), String> {
    println!("\n| machine | measured | result |");
    println!("|---|---|---|");
    for platform in [Platform::Q35, Platform::Microvm] {
        report(platform, 1, true)?;
    }
    report(Platform::Q35, 2, false)?;
    by_application()
}

/// What an application sees: `tests/guest/switches.c`, through the Linux personality.
fn by_application() -> Result<(), String> {
    let image = guest::image(pressure::image_of(&guest::compiled("switches")?)?, ImageAs::Module);
    let machine = Machine { exact: true, image, ..guest::machine("/program", LIMIT_S) };
    let run = guest::run(&Machine { kernel: MEASURED_KERNEL.into(), ..machine })?;
    println!("\n| a Linux program, exact, q35 | instructions |");
    println!("|---|---|");
    for (name, count) in String::from_utf8_lossy(&run.output).lines().filter_map(|line| line.split_once(' ')) {
        println!("| {name} | {count} |");
    }
    match run.exit_code() {
        Some(0) => Ok(()),
        _ => Err(format!("it ended as {:?}\n{}", run.report.outcome, guest::tail(&run.output))),
    }
}

fn report(platform: Platform, cpus: u32, exact: bool) -> Result<(), String> {
    let boot = BootConfig { test: Some("bench".into()), exact, timing: true, ..BootConfig::default() };
    let mut machine = Machine { cpus, exact, ..platform.apply(Machine::new(MEASURED_KERNEL, boot)) };
    machine.memory_bytes = 512 << 20;
    machine.time_limit = Some(std::time::Duration::from_secs(LIMIT_S));
    let run = guest::run(&machine)?;
    let at = |name: &str| run.report.phases.iter().find(|phase| phase.name == name).map(|phase| phase.tsc);
    if let (true, Some(entry), Some(first_task)) = (exact, at("entry"), at("first-task")) {
        let boot = first_task.saturating_sub(entry);
        println!("| {}, {cpus} CPU, exact | firmware | {entry} instructions |", platform.name());
        println!("| {}, {cpus} CPU, exact | entry-to-first-task | {boot} instructions |", platform.name());
    }
    for result in &run.report.tests {
        let mode = if exact { "exact" } else { "by time" };
        println!("| {}, {cpus} CPU, {mode} | {} | {} |", platform.name(), result.name, result.detail);
    }
    match run.report.outcome {
        Outcome::Exited { code: 0, .. } => Ok(()),
        outcome => Err(format!("the kernel's benchmarks ended as {outcome:?}\n{}", guest::tail(&run.output))),
    }
}
