//! The kernel's own tests (`test=all` on its command line), on each machine type and CPU count; and
//! the ways in which a broken kernel must end.

use std::{fs, io, path::Path, time::Duration};

use abi::{BootConfig, LogLevel};
use vmm::{Machine, MachineType, Outcome};

use crate::{
    guest::{self, IMAGES, KERNEL, Run},
    suite::{Slice, Suite, Verdict},
};

const LIMIT: Duration = Duration::from_secs(180);

pub fn add(suite: &mut Suite) {
    add_windows(suite);
    add_fatal(suite);
    add_all(suite);
    add_timing(suite);
    add_clock(suite);
    // What eight CPUs keep in their caches of frames is all that this test leaves.
    suite.add(Slice::Default, "kernel/microvm/8-cpu/file-larger-than-memory", || {
        let machine_type = MachineType::Microvm;
        check(&Machine { machine_type, cpus: 8, ..named("file-larger-than-memory") })
    });
}

/// Every test on every machine, with a disk.
fn add_all(suite: &mut Suite) {
    for (slice, machine_type, cpus, cpu_model) in [
        (Slice::Quick, MachineType::Q35, 2, None),
        (Slice::Default, MachineType::Q35, 1, None),
        (Slice::Default, MachineType::Q35, 4, None),
        (Slice::Default, MachineType::Microvm, 1, None),
        (Slice::Default, MachineType::Microvm, 2, None),
        (Slice::Default, MachineType::Microvm, 4, None),
        // XSAVE and wide vectors, as far as QEMU emulates them.
        (Slice::Default, MachineType::Q35, 2, Some("max,-cx16")),
        (Slice::Full, MachineType::Q35, 8, None),
    ] {
        let mut name = format!("kernel/{machine_type:?}/{cpus}-cpu").to_lowercase();
        if cpu_model.is_some() {
            name += "/max";
        }
        suite.add(slice, name, move || {
            let extra_arguments = match pattern_disk(machine_type) {
                Ok(arguments) => arguments,
                Err(error) => return Verdict::Failed(format!("no pattern disk: {error}")),
            };
            check(&Machine {
                machine_type,
                cpus,
                cpu_model: cpu_model.map(str::to_owned),
                extra_arguments,
                ..named("all")
            })
        });
    }
}

/// Tests that bound times, where time is virtual: every instruction is a nanosecond, and the CPUs take turns
/// on one thread, so that the host's load shows nowhere.
fn add_timing(suite: &mut Suite) {
    for (machine_type, cpus) in [MachineType::Q35, MachineType::Microvm].iter().flat_map(|m| [1, 2, 4].map(|c| (*m, c)))
    {
        let slice = if (machine_type, cpus) == (MachineType::Q35, 2) { Slice::Quick } else { Slice::Default };
        suite.add(slice, format!("kernel/{machine_type:?}/{cpus}-cpu/timing").to_lowercase(), move || {
            let boot = BootConfig { test: Some("timing".into()), exact: true, ..BootConfig::default() };
            // Not `exact` of the machine, which promises to repeat to the instruction and so has one CPU.
            let virtual_time = ["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm"];
            let extra_arguments = virtual_time.map(str::to_owned).to_vec();
            check(&Machine { machine_type, cpus, one_thread: true, boot, extra_arguments, ..named("timing") })
        });
    }
}

/// A CPU that does not say that it is virtual, so that nobody knows the APIC timer's rate: both clocks are
/// measured against the ACPI timer, and the counter again later.
fn add_clock(suite: &mut Suite) {
    suite.add(Slice::Default, "kernel/clock-by-acpi-timer", || {
        let cpu_model = Some("qemu64,-cx16,-hypervisor".to_owned());
        let mut machine = Machine { machine_type: MachineType::Q35, cpus: 2, cpu_model, ..named("clock-remembers") };
        machine.boot.log_level = LogLevel::Info;
        check_saying(&machine, &["(by the ACPI timer)", "APIC timer at", "(refined)"])
    });
}

/// A machine that runs the kernel tests of this name.
fn named(test: &str) -> Machine {
    let boot = BootConfig { test: Some(test.into()), ..BootConfig::default() };
    Machine { time_limit: Some(LIMIT), ..Machine::new(KERNEL, boot) }
}

/// QEMU's arguments for the disk that the kernel's disk tests expect: each sector full of its own number as
/// 64-bit words. What is written to it is dropped at the end.
pub fn pattern_disk(machine_type: MachineType) -> io::Result<Vec<String>> {
    const SECTORS: u64 = 32_768;
    let path = Path::new(IMAGES).join("pattern.disk");
    if fs::metadata(&path).map_or(0, |file| file.len()) != SECTORS * 512 {
        fs::create_dir_all(IMAGES)?;
        let words = (0..SECTORS).flat_map(|sector| [sector.to_le_bytes(); 64]);
        fs::write(&path, words.flatten().collect::<Vec<u8>>())?;
    }
    let mut arguments =
        vec!["-drive".to_owned(), format!("if=none,id=pattern,format=raw,snapshot=on,file={}", path.display())];
    arguments.push("-device".into());
    if machine_type == MachineType::Microvm {
        arguments.push("virtio-blk-device,drive=pattern".into());
        arguments.extend(["-global", "virtio-mmio.force-legacy=false"].map(str::to_owned));
    } else {
        arguments.push("virtio-blk-pci,disable-legacy=on,drive=pattern".into());
    }
    Ok(arguments)
}

/// In exact mode a timer tick is an instruction: an interrupt falls on each one of the entry and exit
/// paths.
fn add_windows(suite: &mut Suite) {
    for machine_type in [MachineType::Q35, MachineType::Microvm] {
        for test in ["entry-exit-windows", "entry-exit-windows-fault"] {
            suite.add(Slice::Quick, format!("kernel/{machine_type:?}/{test}").to_lowercase(), move || {
                let boot = BootConfig { test: Some(test.into()), exact: true, ..BootConfig::default() };
                check(&Machine { machine_type, exact: true, boot, ..named(test) })
            });
        }
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

pub fn check(machine: &Machine) -> Verdict {
    check_saying(machine, &[])
}

/// The tests pass, and the console has all of `words`.
pub fn check_saying(machine: &Machine, words: &[&str]) -> Verdict {
    match guest::run(machine) {
        Ok(run) => verdict_saying(&run, words),
        Err(why) => Verdict::Failed(why),
    }
}

/// What the machine's tests have reported.
pub fn verdict(run: &Run) -> Verdict {
    verdict_saying(run, &[])
}

fn verdict_saying(run: &Run, words: &[&str]) -> Verdict {
    let tests = &run.report.tests;
    let failed: String =
        tests.iter().filter(|test| !test.ok).map(|test| format!("{}: {}\n", test.name, test.detail)).collect();
    let orderly = matches!(run.report.outcome, Outcome::Exited { code: 0, .. });
    let console = String::from_utf8_lossy(&run.output);
    if let Some(word) = words.iter().find(|word| !console.contains(**word)) {
        return run.fail(format!("the console does not say {word}"));
    }
    if orderly && failed.is_empty() && !tests.is_empty() {
        return Verdict::Passed;
    }
    run.fail(format!("{} tests reported, ended as {:?}\n{failed}", tests.len(), run.report.outcome))
}
