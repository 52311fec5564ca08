//! Instructions from power-on to power-off, by the time stamp counter of exact runs; and beside them
//! how often the guest was left.

use vmm::{ImageAs, Machine, Outcome};

use super::{Platform, Subject, millions, spread};
use crate::guest;

/// The first seed runs twice: both must end at the same instruction.
const SEEDS: [u64; 4] = [1, 1, 2, 3];

/// What was measured elsewhere on q35 with SeaBIOS (the project's design notes), small Linux and OSv.
fn given(subject: Subject, platform: Platform) -> &'static str {
    match (subject, platform) {
        (Subject::Hello, Platform::Q35) => "42 M, 31 M",
        (Subject::Hello, Platform::Microvm) => "22 M, –",
        (Subject::JavaSerialC1, Platform::Q35) => "165 M, 211 M",
        (Subject::JavaSerialC1, Platform::Microvm) => "144 M, –",
        _ => "–",
    }
}

pub fn take() -> Result<(), String> {
    println!(
        "\n| program | machine | instructions, median of seeds 1–3 | least to most | seed 1 repeats | given: small Linux, OSv |"
    );
    println!("|---|---|---|---|---|---|");
    for subject in Subject::ALL {
        for platform in Platform::ALL {
            let counts = SEEDS.iter().map(|&seed| count(subject, platform, seed)).collect::<Result<Vec<_>, _>>()?;
            let (middle, least, most) = spread(&counts[1..]).ok_or("no seeds")?;
            println!(
                "| {} | {} | {} | {} to {} | {} | {} |",
                subject.name(),
                platform.name(),
                millions(middle),
                millions(least),
                millions(most),
                if counts[0] == counts[1] { "yes".into() } else { format!("NO: {} and {}", counts[0], counts[1]) },
                given(subject, platform)
            );
        }
    }
    exits()
}

/// What a count prices at one instruction, and a hypervisor at a thousand or more.
fn exits() -> Result<(), String> {
    println!("\n| program | machine | mode | ports | MMIO | MSR | HLT | IPI | CPUID |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for subject in Subject::ALL {
        for platform in [Platform::Q35, Platform::Microvm] {
            for (mode, exact, cpus, given_as) in [
                ("exact, image as module", true, 1, ImageAs::Module),
                ("1 CPU, image as disk", false, 1, ImageAs::Disk),
                ("2 CPUs, image as disk", false, 2, ImageAs::Disk),
            ] {
                let mut machine = Machine { exact, cpus, ..platform.apply(subject.machine(given_as)?) };
                machine.one_thread = true;
                machine.boot.exits = true;
                let run = guest::run(&machine)?;
                let (Some(exits), Some(0)) = (run.report.exits, run.exit_code()) else {
                    return Err(format!("{} ended as {:?}", subject.name(), run.report.outcome));
                };
                let values: String = exits.values().iter().map(|value| format!(" {value} |")).collect();
                println!("| {} | {} | {mode} |{values}", subject.name(), platform.name());
            }
        }
    }
    Ok(())
}

fn count(subject: Subject, platform: Platform, seed: u64) -> Result<u64, String> {
    let mut machine = Machine { exact: true, ..platform.apply(subject.machine(ImageAs::Module)?) };
    machine.boot.seed = Some(seed);
    let run = guest::run(&machine)?;
    match run.report.outcome {
        Outcome::Exited { code: 0, tsc } if run.output == subject.output() => Ok(tsc),
        outcome => {
            Err(format!("{} on {} ended as {outcome:?}\n{}", subject.name(), platform.name(), guest::tail(&run.output)))
        }
    }
}
