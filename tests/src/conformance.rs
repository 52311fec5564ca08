//! The conformance programs, on Linux first and then in the guest: same output, same exit code.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use image::Tree;
use vmm::{ImageAs, Machine};

use crate::{
    gaps,
    guest::{self, IMAGES},
    pressure,
    suite::{Slice, Suite, Verdict},
};

const BUILT: &str = "build/conformance";
/// The slowest of them waits for a hundred timer signals under QEMU's translator.
const LIMIT_S: u64 = 90;

/// Seeds of [`fuzzed`], and in how many CPUs' machine.
const FUZZED: [(u64, u32, Slice); 4] =
    [(1, 2, Slice::Quick), (2, 1, Slice::Default), (3, 2, Slice::Default), (4, 4, Slice::Full)];

/// How each program was built; the first is the one that quick runs take.
const VARIANTS: [&str; 3] = ["musl", "static", "dynamic"];

pub fn add(suite: &mut Suite) {
    for (seed, cpus, slice) in FUZZED {
        suite.add(slice, format!("fuzz/calls/{cpus}-cpu/seed-{seed}"), move || fuzzed(seed, cpus));
    }
    for program in programs() {
        for (index, variant) in VARIANTS.into_iter().enumerate() {
            // Both ways of having an image are tried, and the plainest programs need no disk.
            let given_as = if variant == "musl" { ImageAs::Module } else { ImageAs::Disk };
            let file = format!("{program}-{variant}");
            let (name, program) = (format!("linux/{file}"), program.clone());
            let linux_file = file.clone();
            suite.add(Slice::Quick, name, move || on_linux_alone(&linux_file));
            for cpus in [1, 2] {
                let slice = match (index, cpus) {
                    (0, 2) => Slice::Quick,
                    (0, 1) | (_, 2) => Slice::Default,
                    _ => Slice::Full,
                };
                let (file, program) = (file.clone(), program.clone());
                suite.add(slice, format!("conformance/{file}/{cpus}-cpu"), move || {
                    compare(&program, &file, cpus, given_as)
                });
            }
        }
    }
}

/// System calls with arguments that make little sense, by several threads: whatever they answer, the
/// program goes on to its end, and so does the machine. FUZZ_SEED and FUZZ_CALLS try others, and more.
fn fuzzed(seed: u64, cpus: u32) -> Verdict {
    const CALLS: u64 = 4000;
    let number = |name: &str, usual| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (seed, calls) = (number("FUZZ_SEED", seed), number("FUZZ_CALLS", CALLS));
    let run = guest::compiled("fuzz-calls").and_then(|program| {
        let mut machine = guest::machine("/program", LIMIT_S);
        machine.boot.args = [seed, calls, 3].iter().map(u64::to_string).collect();
        let image = guest::image(pressure::image_of(&program)?, ImageAs::Module);
        guest::run(&Machine { cpus, image, ..machine })
    });
    match run {
        Ok(run) if run.exit_code() == Some(0) => Verdict::Passed,
        Ok(run) => run.fail(format!("ended as {:?}", run.report.outcome)),
        Err(why) => Verdict::Failed(why),
    }
}

/// Names of the sources, without those of which nothing was built yet.
fn programs() -> BTreeSet<String> {
    let sources = fs::read_dir("tests/conformance").into_iter().flatten().flatten();
    sources
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.strip_suffix(".c")).map(str::to_owned))
        .collect()
}

struct LinuxRun {
    output: String,
    code: Option<i32>,
}

fn on_linux(file: &str) -> Result<LinuxRun, String> {
    let path = Path::new(BUILT).join(file);
    let path =
        path.canonicalize().map_err(|error| format!("{}: {error}; run tests/conformance/build", path.display()))?;
    // `timeout` is from coreutils; a program that hangs must not hang the suite.
    let run = Command::new("timeout")
        .arg(LIMIT_S.to_string())
        .arg(path)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .map_err(|error| error.to_string())?;
    Ok(LinuxRun { output: String::from_utf8_lossy(&run.stdout).into_owned(), code: run.status.code() })
}

fn on_linux_alone(file: &str) -> Verdict {
    match on_linux(file) {
        Ok(run) if run.code == Some(0) => Verdict::Passed,
        Ok(run) => {
            Verdict::Failed(format!("exit code {:?} on Linux\n{}", run.code, guest::tail(run.output.as_bytes())))
        }
        Err(why) => Verdict::Failed(why),
    }
}

fn compare(program: &str, file: &str, cpus: u32, given_as: ImageAs) -> Verdict {
    let both = (|| {
        let gaps = gaps::of(program)?;
        let linux = on_linux(file)?;
        let machine = guest::machine(&format!("/conformance/{file}"), LIMIT_S);
        let guest = guest::run(&Machine { cpus, image: guest::image(image()?, given_as), ..machine })?;
        Ok::<_, String>((gaps, linux, guest))
    })();
    let (gaps, linux, guest) = match both {
        Ok(both) => both,
        Err(why) => return Verdict::Failed(why),
    };
    let (expected, actual) = gaps::apply(&gaps, &linux.output, &String::from_utf8_lossy(&guest.output));
    let code = if gaps.is_empty() { linux.code } else { Some(1) };
    if expected == actual && guest.exit_code().map(i32::from) == code {
        return Verdict::Passed;
    }
    guest.fail(format!("ended as {:?}\n{}", guest.report.outcome, guest::differences(&expected, &actual)))
}

/// One image with all programs and the libraries that the dynamic ones need.
fn image() -> Result<PathBuf, String> {
    let path = Path::new(IMAGES).join("conformance.erofs");
    if is_newer_than_its_files(&path) {
        return Ok(path);
    }
    guest::image_folder()?;
    let tree = tree()?;
    image::erofs::write_file(&tree, &path, &|_| {}).map_err(|error| error.to_string())?;
    Ok(path)
}

fn is_newer_than_its_files(image: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let Some(written) = modified(image) else { return false };
    let files = fs::read_dir(BUILT).into_iter().flatten().flatten();
    files.map(|entry| entry.path()).all(|file| modified(&file).is_some_and(|changed| changed <= written))
}

fn tree() -> Result<Tree, String> {
    let mut tree = Tree::new();
    let failed = |error: image::TreeError| error.to_string();
    for folder in ["/dev", "/proc", "/sys", "/tmp"] {
        tree.add_dir(folder, if folder == "/tmp" { 0o1777 } else { 0o755 }).map_err(failed)?;
    }
    let keep_all = |_: &Path| true;
    tree.add_host_tree("/conformance", BUILT, &keep_all).map_err(failed)?;
    for library in libraries(&Path::new(BUILT).join("hello-dynamic"))? {
        tree.add_file(&library, &library, 0o755).map_err(failed)?;
    }
    Ok(tree)
}

/// The dynamic linker and the libraries of a program, by what `ldd` prints.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, String> {
    let listed = Command::new("ldd").arg(program).output().map_err(|error| format!("ldd: {error}"))?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut found: Vec<_> = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    // glibc loads this one by itself, when a thread ends by pthread_exit.
    let unwinder = found.iter().map(|library| library.with_file_name("libgcc_s.so.1")).find(|path| path.exists());
    found.extend(unwinder);
    Ok(found)
}
