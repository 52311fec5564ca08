//! A machine that runs one program to its end, and what was seen of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use abi::{BootConfig, LogLevel};
use image::{
    Cache,
    app::{self, Jar},
    jdk::{Jdk, Wanted},
    progress::Silent,
};
use vmm::{Event, Image, ImageAs, Machine, Outcome, Report};

use crate::suite::Verdict;

pub const KERNEL: &str = "build/kernel.elf";
/// Images that tests build.
pub const IMAGES: &str = "build/test-images";

/// Lines of the console that a failure shows.
const TAIL_LINES: usize = 40;

/// A 256 MiB machine with one CPU that runs `init` with a fixed environment and says little itself.
pub fn machine(init: &str, limit_s: u64) -> Machine {
    let boot = BootConfig {
        init: Some(init.into()),
        env: vec!["PATH=/usr/bin:/bin".into()],
        log_level: LogLevel::Error,
        ..BootConfig::default()
    };
    Machine { time_limit: Some(Duration::from_secs(limit_s)), ..Machine::new(KERNEL, boot) }
}

pub fn image(path: impl AsRef<Path>, given_as: ImageAs) -> Option<Image> {
    Some(Image { path: path.as_ref().into(), given_as })
}

/// A finished run.
pub struct Run {
    pub report: Report,
    /// The console without control frames.
    pub output: Vec<u8>,
}

/// Runs the machine; an error is a reason why it could not be started.
pub fn run(machine: &Machine) -> Result<Run, String> {
    let mut output = Vec::new();
    let report = machine
        .run(&mut |event| {
            if let Event::Output { bytes, .. } = event {
                output.extend_from_slice(bytes);
            }
        })
        .map_err(|error| error.to_string())?;
    Ok(Run { report, output })
}

impl Run {
    pub fn exit_code(&self) -> Option<u8> {
        match self.report.outcome {
            Outcome::Exited { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Passes if the program printed exactly `output` and ended with `code`.
    pub fn expect(&self, output: &[u8], code: u8) -> Verdict {
        if self.exit_code() == Some(code) && self.output == output {
            return Verdict::Passed;
        }
        let mut why = format!("ended as {:?}, expected exit code {code}\n", self.report.outcome);
        why += &differences(&String::from_utf8_lossy(output), &String::from_utf8_lossy(&self.output));
        self.fail(why)
    }

    /// A failure that shows the end of the console as well.
    pub fn fail(&self, why: impl Into<String>) -> Verdict {
        Verdict::Failed(why.into() + "\nthe console's end:\n" + &tail(&self.output))
    }
}

pub fn tail(console: &[u8]) -> String {
    let text = String::from_utf8_lossy(console);
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].iter().map(|line| format!("  | {line}\n")).collect()
}

/// The first lines in which two texts differ; empty if they are equal.
pub fn differences(expected: &str, actual: &str) -> String {
    const SHOWN: usize = 20;
    let (mut expected, mut actual) = (expected.lines(), actual.lines());
    let mut shown = Vec::new();
    loop {
        match (expected.next(), actual.next()) {
            (None, None) => break,
            (left, right) if left == right => {}
            (left, right) => {
                shown.extend(left.map(|line| format!("- {line}\n")));
                shown.extend(right.map(|line| format!("+ {line}\n")));
            }
        }
        if shown.len() >= SHOWN {
            shown.push("...\n".into());
            break;
        }
    }
    if shown.is_empty() { String::new() } else { format!("expected (-) and actual (+):\n{}", shown.concat()) }
}

/// Compiles `tests/guest/NAME.c`, a program for machines that is no test by itself.
pub fn compiled(name: &str) -> Result<PathBuf, String> {
    image_folder()?;
    let program = Path::new(IMAGES).join(name);
    let mut compiler = Command::new("musl-gcc");
    compiler.args([
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
        "-static",
        "-idirafter",
        "/usr/include",
    ]);
    compiler.args(["-idirafter", "/usr/include/x86_64-linux-gnu", "-o"]).arg(&program);
    let ended = compiler.arg(format!("tests/guest/{name}.c")).output().map_err(|error| format!("musl-gcc: {error}"))?;
    if !ended.status.success() {
        return Err(format!("musl-gcc: {}", String::from_utf8_lossy(&ended.stderr)));
    }
    Ok(program)
}

/// The image of a Java app on JDK 17, as `demitasse run` makes it, with these options of the JVM.
pub fn java_image(app: &str, jvm_arguments: &[&str]) -> Result<PathBuf, String> {
    const JVM_HOST: &str = "build/jvm-host";
    image_folder()?;
    let jar = format!("build/java-apps/{app}.jar");
    let options: String = jvm_arguments.concat().chars().filter(|letter| letter.is_alphanumeric()).collect();
    let path = Path::new(IMAGES).join(format!("java-{app}-{options}.erofs"));
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let parts = [JVM_HOST, &jar].map(|part| modified(Path::new(part)));
    if modified(&path).is_some_and(|built| parts.iter().all(|part| part.is_some_and(|part| part <= built))) {
        return Ok(path);
    }
    let jar = Jar::open(Path::new(&jar)).map_err(|error| error.to_string())?;
    let cache = Cache::open().map_err(|error| error.to_string())?;
    let jdk = Jdk::obtain(&Wanted::Version(17), &cache, &Silent).map_err(|error| error.to_string())?;
    let jvm_arguments: Vec<String> = jvm_arguments.iter().map(|&argument| argument.to_owned()).collect();
    let tree = app::tree(&jar, &jdk, Path::new(JVM_HOST), &jvm_arguments).map_err(|error| error.to_string())?;
    image::erofs::write_file(&tree, &path, &|_| {}).map_err(|error| error.to_string())?;
    Ok(path)
}

/// Makes the folder for test images.
pub fn image_folder() -> Result<(), String> {
    fs::create_dir_all(IMAGES).map_err(|error| format!("cannot create {IMAGES}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_show_both_sides_in_order() {
        assert_eq!(differences("a\nb\n", "a\nb\n"), "");
        assert_eq!(differences("a\nb\n", "a\nc\nd\n"), "expected (-) and actual (+):\n- b\n+ c\n+ d\n");
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let console: String = (0..100).map(|line| format!("{line}\n")).collect();
        let tail = tail(console.as_bytes());
        assert!(tail.starts_with("  | 60\n") && tail.ends_with("  | 99\n"));
    }
}
