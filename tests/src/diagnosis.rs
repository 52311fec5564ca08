//! What the machine says when something is wrong: a panic shows every CPU, a double fault ends with a
//! report, and an NMI shows what each CPU does and lets it go on.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use abi::BootConfig;
use vmm::{Event, ImageAs, Machine, Outcome};

use crate::{
    guest::{self, KERNEL, Run},
    pressure,
    suite::{Slice, Suite, Verdict},
};

const LIMIT: Duration = Duration::from_secs(60);

pub fn add(suite: &mut Suite) {
    suite.add(Slice::Quick, "diagnosis/panic-of-four-cpus", panic_of_four_cpus);
    suite.add(Slice::Default, "diagnosis/double-fault", double_fault);
    suite.add(Slice::Default, "diagnosis/gs-base", gs_base);
    suite.add(Slice::Default, "diagnosis/nmi", nmi);
    suite.add(Slice::Default, "diagnosis/log-levels", log_levels);
}

/// Boots the kernel into one of its fatal tests.
fn fatal(test: &str, cpus: u32) -> Result<Run, String> {
    let boot = BootConfig { test: Some(test.into()), ..BootConfig::default() };
    guest::run(&Machine { cpus, time_limit: Some(LIMIT), ..Machine::new(KERNEL, boot) })
}

/// What the panic beside three others says.
pub const FOUR_CPUS: [&str; 6] = [
    "kernel panic on CPU 0",
    "machine::selftest::fatal::run",
    "CPU 1: in the kernel, task",
    "CPU 2: in the kernel, task",
    "machine::selftest::fatal::busy_work",
    "CPU 3: idle",
];

fn panic_of_four_cpus() -> Verdict {
    panicked(fatal("fatal-panic-beside-others", 4), &FOUR_CPUS)
}

fn double_fault() -> Verdict {
    panicked(fatal("fatal-double-fault", 2), &["double fault", "machine::selftest::fatal::double_fault", ": idle"])
}

/// A program that changes the GS base, to memory or to none, ends the machine with a report, whatever comes
/// next: a call or an interrupt.
fn gs_base() -> Verdict {
    let tests = ["fatal-gs-base", "fatal-gs-base-call", "fatal-gs-base-mapped", "fatal-gs-base-mapped-call"];
    let verdicts = tests.map(|test| panicked(fatal(test, 2), &["the GS base is not the kernel's", "rip "]));
    verdicts.into_iter().find(|verdict| !matches!(verdict, Verdict::Passed)).unwrap_or(Verdict::Passed)
}

/// The machine must have panicked, and its console must say each of these, in this order.
pub fn panicked(run: Result<Run, String>, wanted: &[&str]) -> Verdict {
    match run {
        Ok(run) => match (&run.report.outcome, missing(&run.output, wanted)) {
            (Outcome::Panicked { .. }, None) => Verdict::Passed,
            (outcome, missing) => run.fail(format!("ended as {outcome:?}; not on the console: {missing:?}")),
        },
        Err(why) => Verdict::Failed(why),
    }
}

/// The first of `wanted` that does not follow those before it.
fn missing<'w>(console: &[u8], wanted: &[&'w str]) -> Option<&'w str> {
    let text = String::from_utf8_lossy(console);
    let mut from = 0;
    wanted.iter().copied().find(|line| match text[from..].find(line) {
        Some(at) => {
            from += at + line.len();
            false
        }
        None => true,
    })
}

/// A program works on one of two CPUs when the NMI comes: it must not notice.
fn nmi() -> Verdict {
    let socket = format!("{}/nmi.sock", guest::IMAGES);
    let result = guest::compiled("patient").and_then(|program| {
        let image = guest::image(pressure::image_of(&program)?, ImageAs::Disk);
        let extra_arguments = vec!["-qmp".into(), format!("unix:{socket},server=on,wait=off")];
        let machine = Machine { cpus: 2, image, extra_arguments, ..guest::machine("/program", 60) };
        let (mut output, mut sent) = (Vec::new(), None);
        let report = machine.run(&mut |event| {
            let Event::Output { bytes, .. } = event else { return };
            output.extend_from_slice(bytes);
            if sent.is_none() && output.starts_with(b"ready\n") {
                sent = Some(inject_nmi(&socket));
            }
        });
        sent.unwrap_or(Err("it never was ready".into()))?;
        Ok(Run { report: report.map_err(|error| error.to_string())?, output })
    });
    let run = match result {
        Ok(run) => run,
        Err(why) => return Verdict::Failed(why),
    };
    let text = String::from_utf8_lossy(&run.output).into_owned();
    let each = ["CPU 0: ", "CPU 1: ", "done\n"].iter().all(|line| text.contains(line));
    let working = text.contains("in application code, task") || text.contains("in the kernel, task");
    if run.exit_code() == Some(0) && each && working {
        return Verdict::Passed;
    }
    run.fail(format!("ended as {:?}, expected both CPUs' states and the program's end", run.report.outcome))
}

/// Each level prints what the one before it does, and more; `off` and `quiet` leave the console alone.
fn log_levels() -> Verdict {
    let lines = |words: &str| -> Result<usize, String> {
        let boot = BootConfig::parse(&format!("test=park-unpark {words}")).map_err(|error| error.to_string())?;
        let run = guest::run(&Machine { time_limit: Some(LIMIT), ..Machine::new(KERNEL, boot) })?;
        match run.exit_code() {
            Some(0) => Ok(String::from_utf8_lossy(&run.output).lines().filter(|line| !line.is_empty()).count()),
            _ => Err(format!("{words}: ended as {:?}", run.report.outcome)),
        }
    };
    let count = || Ok::<_, String>([lines("loglevel=0")?, lines("quiet")?, lines("")?, lines("loglevel=7")?]);
    match count() {
        Ok([0, 0, 0, info]) if info > 0 => Verdict::Passed,
        Ok(counts) => Verdict::Failed(format!("off, quiet, default and info printed {counts:?} lines")),
        Err(why) => Verdict::Failed(why),
    }
}

/// By QEMU's machine protocol.
fn inject_nmi(socket: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{socket}: {error}");
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(failed)?;
    let mut lines = BufReader::new(stream.try_clone().map_err(failed)?).lines();
    for command in ["qmp_capabilities", "inject-nmi"] {
        writeln!(stream, "{{\"execute\": \"{command}\"}}").map_err(failed)?;
        // The greeting, and events, come between the answers.
        loop {
            let line = lines.next().ok_or("QEMU closed its socket")?.map_err(failed)?;
            if line.contains("\"error\"") {
                return Err(format!("{command}: {line}"));
            }
            if line.contains("\"return\"") {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wanted_in_order() {
        assert_eq!(missing(b"a b c", &["a", "c"]), None);
        assert_eq!(missing(b"a b c", &["c", "a"]), Some("a"));
    }
}
