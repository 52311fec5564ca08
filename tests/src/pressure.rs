//! Little memory and none: the program that takes all of it is ended, and Java runs in what small
//! machines have.

use std::path::{Path, PathBuf};

use image::Tree;
use vmm::{ImageAs, Machine, MachineType};

use crate::{
    guest::{self, IMAGES},
    java,
    suite::{Slice, Suite, Verdict},
};

const LIMIT_S: u64 = 60;
const MIB: u64 = 1 << 20;
/// As after SIGKILL, which is how Linux ends it, too.
const KILLED: u8 = 128 + 9;

pub fn add(suite: &mut Suite) {
    for (how, cpus) in [("touch", 1), ("touch", 2), ("threads", 2), ("read", 1), ("read", 2)] {
        let name = format!("pressure/memory-exhausted/by-{how}/{cpus}-cpu");
        suite.add(Slice::Default, name, move || exhausted(how, cpus));
    }
    for kind in OBJECTS {
        suite.add(Slice::Default, format!("pressure/objects-exhausted/{kind}"), move || objects_exhausted(kind));
    }
    suite.add(Slice::Default, "pressure/java-hello-in-48-mib", || java::hello(17, 1, &["--memory", "48M"]));
    for cpus in [1, 2] {
        let title = format!("java/17/microvm/{cpus}-cpu/hello");
        suite.add(Slice::Default, title, move || java::hello(17, cpus, &["--machine", "microvm"]));
    }
}

/// What `tests/guest/exhaust-objects.c` makes.
const OBJECTS: [&str; 10] = [
    "holes",
    "protections",
    "event-counters",
    "pipes",
    "timer-files",
    "watches",
    "directories",
    "timers",
    "signals",
    "threads",
];

/// A program makes kernel objects until it is refused, and goes on: or it is ended for want of memory.
fn objects_exhausted(kind: &str) -> Verdict {
    let run = guest::compiled("exhaust-objects").and_then(|program| {
        let mut machine = guest::machine("/program", LIMIT_S);
        machine.boot.args = vec![kind.into()];
        let image = guest::image(image_of(&program)?, ImageAs::Disk);
        guest::run(&Machine { cpus: 2, memory_bytes: 48 * MIB, machine_type: MachineType::Q35, image, ..machine })
    });
    match run {
        Ok(run) if matches!(run.exit_code(), Some(0 | KILLED)) => Verdict::Passed,
        Ok(run) => run.fail(format!("ended as {:?}", run.report.outcome)),
        Err(why) => Verdict::Failed(why),
    }
}

/// The program is ended with one line that names it, and the machine in order.
fn exhausted(how: &str, cpus: u32) -> Verdict {
    let run = guest::compiled("exhaust-memory").and_then(|program| {
        let mut machine = guest::machine("/program", LIMIT_S);
        machine.boot.args = vec![how.into()];
        let image = guest::image(image_of(&program)?, ImageAs::Disk);
        guest::run(&Machine { cpus, memory_bytes: 64 * MIB, machine_type: MachineType::Q35, image, ..machine })
    });
    let run = match run {
        Ok(run) => run,
        Err(why) => return Verdict::Failed(why),
    };
    let output = String::from_utf8_lossy(&run.output).into_owned();
    let lines: Vec<_> = output.lines().collect();
    match lines[..] {
        ["touching", line] if line.contains("out of memory: ended program[1], ") && run.exit_code() == Some(KILLED) => {
            Verdict::Passed
        }
        _ => run.fail(format!("ended as {:?}, expected one line and exit code {KILLED}", run.report.outcome)),
    }
}

/// An image with a program and nothing else.
pub fn image_of(program: &Path) -> Result<PathBuf, String> {
    let name = program.file_name().unwrap_or_default();
    let path = Path::new(IMAGES).join(name).with_extension("erofs");
    let mut tree = Tree::new();
    tree.add_file("/program", program, 0o755).map_err(|error| error.to_string())?;
    image::erofs::write_file(&tree, &path, &|_| {}).map_err(|error| error.to_string())?;
    Ok(path)
}
