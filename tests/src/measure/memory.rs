//! The least memory that Java Hello needs, and QEMU's memory at its end.

use std::{fs, time::Duration};

use vmm::{ImageAs, Machine, Outcome};

use super::{MIB, Platform, Subject};
use crate::guest;

/// Below and above what can be expected, in MiB.
const FAILS_MIB: u64 = 4;
const WORKS_MIB: u64 = 256;

pub fn take() -> Result<(), String> {
    println!(
        "\n| program | machine | least memory | QEMU's peak resident memory with 256 MiB | given: small Linux, OSv |"
    );
    println!("|---|---|---|---|---|");
    for subject in Subject::ALL {
        let given = if subject == Subject::Hello { "–" } else { "40 MB, 68–76 MB; QEMU 203 MB, 191 MB" };
        for platform in [Platform::Q35, Platform::Microvm] {
            let machine = platform.apply(subject.machine(ImageAs::Disk)?);
            let least = least_mib(subject, &machine)?;
            let peak = peak_kib(&Machine { memory_bytes: WORKS_MIB * MIB, ..machine })?;
            println!("| {} | {} | {least} MiB | {} MiB | {given} |", subject.name(), platform.name(), peak / 1024);
        }
    }
    Ok(())
}

/// Halves the range between a size that fails and one that works.
fn least_mib(subject: Subject, machine: &Machine) -> Result<u64, String> {
    let works = |mib: u64| {
        let time_limit = Some(Duration::from_secs(30));
        let run = guest::run(&Machine { memory_bytes: mib * MIB, time_limit, ..machine.clone() })?;
        let ended = matches!(run.report.outcome, Outcome::Exited { code: 0, .. });
        Ok::<_, String>(ended && run.output == subject.output())
    };
    let (mut fails, mut least) = (FAILS_MIB, WORKS_MIB);
    if !works(least)? {
        return Err(format!("{} fails with {least} MiB", subject.name()));
    }
    while least - fails > 1 {
        let middle = (fails + least) / 2;
        if works(middle)? {
            least = middle;
        } else {
            fails = middle;
        }
    }
    Ok(least)
}

/// The greatest resident size that QEMU's process had, seen at the last of its output.
fn peak_kib(machine: &Machine) -> Result<u64, String> {
    let mut peak = 0;
    let seen = machine.run(&mut |_| peak = peak.max(child_peak_kib().unwrap_or(0)));
    seen.map_err(|error| error.to_string())?;
    if peak == 0 { Err("QEMU's process was not found in /proc".into()) } else { Ok(peak) }
}

/// `VmHWM` of this process' child (there is only QEMU).
fn child_peak_kib() -> Option<u64> {
    let me = std::process::id().to_string();
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned))?;
        line.split_whitespace().next().map(str::to_owned)
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        if field(&status, "PPid:")? != me {
            return None;
        }
        field(&status, "VmHWM:")?.parse().ok()
    })
}
