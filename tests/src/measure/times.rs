//! Time from QEMU's start to the program's first output, machine types alternating.

use std::time::Duration;

use vmm::ImageAs;

use super::{Platform, Subject, load, spread};
use crate::guest;

const ROUNDS: usize = 7;

/// What was measured elsewhere, small Linux and OSv.
fn given(subject: Subject, platform: Platform) -> &'static str {
    match (subject, platform) {
        (Subject::Hello, Platform::Q35) => "380 ms, 220 ms",
        (Subject::Hello, Platform::Microvm) => "290 ms, –",
        (Subject::JavaSerialC1, Platform::Q35) => "1,350–1,460 ms, 1,160–1,200 ms",
        (Subject::JavaSerialC1, Platform::Q35Qboot) => "1,220 ms, –",
        (Subject::JavaDefault, Platform::Q35) => "1,360 ms, 1,520 ms",
        (Subject::JavaDefault, Platform::Microvm) => "1,300 ms, –",
        _ => "–",
    }
}

pub fn take() -> Result<(), String> {
    let pairs: Vec<_> = Subject::ALL.iter().flat_map(|&s| Platform::ALL.map(|platform| (s, platform))).collect();
    let mut times = vec![Vec::new(); pairs.len()];
    let before = load();
    for _ in 0..ROUNDS {
        for (&(subject, platform), times) in pairs.iter().zip(&mut times) {
            times.push(first_output(subject, platform)?);
        }
    }
    println!("\n{ROUNDS} rounds, alternating; load average before: {before}; after: {}", load());
    println!(
        "\n| program | machine | QEMU's start to first output, median | least to most | given: small Linux, OSv |"
    );
    println!("|---|---|---|---|---|");
    for (&(subject, platform), times) in pairs.iter().zip(&times) {
        let (middle, least, most) = spread(times).ok_or("no rounds")?;
        let [middle, least, most] = [middle, least, most].map(|time| time.as_millis());
        let (name, platform_name) = (subject.name(), platform.name());
        println!("| {name} | {platform_name} | {middle} ms | {least} to {most} ms | {} |", given(subject, platform));
    }
    Ok(())
}

fn first_output(subject: Subject, platform: Platform) -> Result<Duration, String> {
    let run = guest::run(&platform.apply(subject.machine(ImageAs::Disk)?))?;
    match run.report.first_output_after {
        Some(after) if run.exit_code() == Some(0) && run.output == subject.output() => Ok(after),
        _ => Err(format!("{} ended as {:?}\n{}", subject.name(), run.report.outcome, guest::tail(&run.output))),
    }
}
