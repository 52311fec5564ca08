//! The Java apps: by `jvm-host` on Linux, compared with `java -jar`; and as machines, by
//! `demitasse run`, compared with the output that was written down.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{
    guest,
    suite::{Slice, Suite, Verdict},
};

const LIMIT_S: u64 = 180;
const JDKS: [u32; 3] = [17, 21, 25];
/// Boots in a row that must not fail, in the full slice.
const SOAK: usize = 100;

pub fn add(suite: &mut Suite) {
    if linux_jdks().is_empty() {
        suite.add(Slice::Quick, "linux/jvm-host", || Verdict::Skipped("no JDK under /usr/lib/jvm".into()));
    }
    for name in names() {
        for jdk in linux_jdks() {
            let title = format!("linux/jvm-host/{}/{name}", jdk.file_name().unwrap_or_default().to_string_lossy());
            let name = name.clone();
            suite.add(Slice::Quick, title, move || on_linux(&name, &jdk));
        }
        for jdk in JDKS {
            for cpus in [1, 2] {
                let slice = match (name.as_str(), jdk, cpus) {
                    ("hello", 17, _) => Slice::Quick,
                    ("hello", ..) | (_, _, 2) | (_, 17, _) => Slice::Default,
                    _ => Slice::Full,
                };
                let name = name.clone();
                suite.add(slice, format!("java/{jdk}/{cpus}-cpu/{name}"), move || in_machine(&name, jdk, cpus));
            }
        }
    }
    for jdk in JDKS {
        let slice = if jdk == 17 { Slice::Default } else { Slice::Full };
        suite.add(slice, format!("java/{jdk}/exact-repeats"), move || exact(jdk));
        suite.add(Slice::Full, format!("java/{jdk}/{SOAK}-boots"), move || soak(jdk));
        for collector in ["Serial", "Parallel", "G1"] {
            let slice = if (jdk, collector) == (17, "Serial") { Slice::Default } else { Slice::Full };
            suite.add(slice, format!("java/{jdk}/huge-pages/{collector}"), move || huge_pages(jdk, collector));
        }
    }
}

/// One app: what it is given, and what it must do.
struct App {
    jar: PathBuf,
    arguments: Vec<String>,
    /// NAME=VALUE.
    environment: Vec<String>,
    jvm_arguments: Vec<String>,
    output: Vec<u8>,
    /// What a machine's console shows: standard output and standard error in one.
    console: Vec<u8>,
    exit_code: i32,
}

fn names() -> BTreeSet<String> {
    let folders = fs::read_dir("java-apps").into_iter().flatten().flatten();
    folders
        .filter(|entry| entry.path().join("Main.java").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

impl App {
    fn read(name: &str) -> Result<Self, String> {
        Self::read_with(name, &[])
    }

    /// As it is, but with more options of the JVM.
    fn read_with(name: &str, jvm_arguments: &[&str]) -> Result<Self, String> {
        let folder = Path::new("java-apps").join(name);
        let lines = |file: &str| -> Vec<String> {
            let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        };
        let jar = PathBuf::from(format!("build/java-apps/{name}.jar"));
        let jar = jar.canonicalize().map_err(|error| format!("{}: {error}; run java-apps/build", jar.display()))?;
        let output =
            fs::read(folder.join("expected")).map_err(|error| format!("java-apps/{name}/expected: {error}"))?;
        let mut console = fs::read(folder.join("expected-console")).unwrap_or_else(|_| output.clone());
        let jvm_arguments: Vec<String> =
            lines("jvm-args").into_iter().chain(jvm_arguments.iter().map(|&argument| argument.into())).collect();
        if !jvm_arguments.is_empty() {
            console.splice(..0, format!("NOTE: Picked up JDK_JAVA_OPTIONS: {}\n", jvm_arguments.join(" ")).bytes());
        }
        let exit_code = match lines("expected-exit").first() {
            Some(code) => code.parse().map_err(|_| format!("java-apps/{name}/expected-exit: {code:?} is no number"))?,
            None => 0,
        };
        Ok(Self { jar, arguments: lines("args"), environment: lines("env"), jvm_arguments, output, console, exit_code })
    }

    fn judge(&self, run: &Output, expected_output: &[u8]) -> Verdict {
        if run.status.code() == Some(self.exit_code) && run.stdout == expected_output {
            return Verdict::Passed;
        }
        let differences =
            guest::differences(&String::from_utf8_lossy(expected_output), &String::from_utf8_lossy(&run.stdout));
        Verdict::Failed(format!(
            "exit code {:?}, expected {}\n{differences}\noutput's end:\n{}standard error's end:\n{}",
            run.status.code(),
            self.exit_code,
            guest::tail(&run.stdout),
            guest::tail(&run.stderr)
        ))
    }
}

/// JDKs of this system; none is needed here, as machines bring their own.
fn linux_jdks() -> Vec<PathBuf> {
    let installed = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut jdks: Vec<_> = installed
        .filter(|path| {
            !path.is_symlink() && path.join("lib/server/libjvm.so").exists() && path.join("bin/java").exists()
        })
        .collect();
    jdks.sort();
    jdks
}

/// `jvm-host` does what was written down, and says on standard error what `java` says.
fn on_linux(name: &str, java_home: &Path) -> Verdict {
    let runs = (|| {
        let app = App::read(name)?;
        let mut java = limited(java_home.join("bin/java"));
        java.args(&app.jvm_arguments).arg("-jar").arg(&app.jar).args(&app.arguments);
        let by_java = output(with_environment(&app, &mut java))?;

        let configuration = std::env::temp_dir().join(format!("jvm-host-test-{}.conf", std::process::id()));
        fs::write(&configuration, configuration_text(&app, java_home)).map_err(|error| error.to_string())?;
        let mut host = limited("build/jvm-host".into());
        host.env("DEMITASSE_JVM_HOST_CONF", &configuration).args(&app.arguments);
        let by_host = output(with_environment(&app, &mut host));
        fs::remove_file(configuration).map_err(|error| error.to_string())?;
        Ok::<_, String>((app, by_java, by_host?))
    })();
    match runs {
        Ok((app, by_java, by_host)) => match (app.judge(&by_java, &app.output), app.judge(&by_host, &app.output)) {
            (Verdict::Failed(why), _) => Verdict::Failed(format!("java -jar itself: {why}")),
            (_, Verdict::Passed) if by_java.stderr != by_host.stderr => Verdict::Failed(guest::differences(
                &String::from_utf8_lossy(&by_java.stderr),
                &String::from_utf8_lossy(&by_host.stderr),
            )),
            (_, verdict) => verdict,
        },
        Err(why) => Verdict::Failed(why),
    }
}

/// JSON. The strings are paths and options of this repository's apps; Rust's quoting is JSON's for
/// printable text.
fn configuration_text(app: &App, java_home: &Path) -> String {
    format!(r#"{{"jar": {:?}, "java_home": {:?}, "jvm_args": {:?}}}"#, app.jar, java_home, app.jvm_arguments)
}

fn in_machine(name: &str, jdk: u32, cpus: u32) -> Verdict {
    run_as(name, jdk, cpus, &[])
}

/// Hello, on a machine with more options of `demitasse run`.
pub fn hello(jdk: u32, cpus: u32, options: &[&str]) -> Verdict {
    run_as("hello", jdk, cpus, options)
}

fn run_as(name: &str, jdk: u32, cpus: u32, options: &[&str]) -> Verdict {
    App::read(name).map_or_else(Verdict::Failed, |app| run(&app, jdk, cpus, options))
}

fn run(app: &App, jdk: u32, cpus: u32, options: &[&str]) -> Verdict {
    let mut command = limited("build/demitasse".into());
    command.args(["run", "--loglevel", "error", "--jdk", &jdk.to_string(), "--cpus", &cpus.to_string()]);
    // The command ends the machine before it is ended itself.
    command.args(["--time-limit", &format!("{}s", LIMIT_S - 10)]);
    command.args(options);
    for pair in &app.environment {
        command.args(["--env", pair]);
    }
    if !app.jvm_arguments.is_empty() {
        command.args(["--env", &format!("JDK_JAVA_OPTIONS={}", app.jvm_arguments.join(" "))]);
    }
    command.arg(&app.jar).args(&app.arguments);
    match output(&mut command) {
        Ok(run) => app.judge(&run, &app.console),
        Err(why) => Verdict::Failed(why),
    }
}

/// One seed gives one run, to the instruction; another seed the same output.
fn exact(jdk: u32) -> Verdict {
    let mut stamps = Vec::new();
    for seed in ["1", "1", "2"] {
        let run = App::read("hello").and_then(|app| {
            let mut command = limited("build/demitasse".into());
            command.args(["run", "--exact", "--timing", "--loglevel", "error", "--jdk", &jdk.to_string()]);
            command.args(["--seed", seed]).arg(&app.jar);
            output(&mut command).map(|run| (app, run))
        });
        let (app, run) = match run {
            Ok(run) => run,
            Err(why) => return Verdict::Failed(why),
        };
        match app.judge(&run, &app.console) {
            Verdict::Passed => {}
            failed => return failed,
        }
        let reported = String::from_utf8_lossy(&run.stderr).into_owned();
        let stamp = reported.lines().find_map(|line| line.strip_prefix("time stamp counter at power-off: "));
        match stamp {
            Some(stamp) => stamps.push(stamp.to_owned()),
            None => return Verdict::Failed(format!("no time stamp was reported\n{}", guest::tail(&run.stderr))),
        }
    }
    if stamps[0] == stamps[1] {
        Verdict::Passed
    } else {
        Verdict::Failed(format!("two runs with one seed ended at time stamps {} and {}", stamps[0], stamps[1]))
    }
}

/// A collector's heap in transparent huge pages.
fn huge_pages(jdk: u32, collector: &str) -> Verdict {
    let options = ["-XX:+UseTransparentHugePages", &format!("-XX:+Use{collector}GC")];
    App::read_with("gc-pressure", &options).map_or_else(Verdict::Failed, |app| run(&app, jdk, 2, &[]))
}

fn soak(jdk: u32) -> Verdict {
    for boot in 1..=SOAK {
        match in_machine("hello", jdk, 2) {
            Verdict::Passed => {}
            Verdict::Failed(why) => return Verdict::Failed(format!("boot {boot} of {SOAK}: {why}")),
            skipped => return skipped,
        }
    }
    Verdict::Passed
}

/// A command that is ended after the time limit.
fn limited(program: PathBuf) -> Command {
    let mut command = Command::new("timeout");
    command.arg("--kill-after=10").arg(LIMIT_S.to_string()).arg(program);
    command
}

fn with_environment<'a>(app: &App, command: &'a mut Command) -> &'a mut Command {
    command.envs(app.environment.iter().filter_map(|pair| pair.split_once('=')))
}

fn output(command: &mut Command) -> Result<Output, String> {
    command.output().map_err(|error| format!("{command:?}: {error}"))
}
