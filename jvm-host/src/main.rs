//! The guest's first program: runs a jar in the JDK's own virtual machine, as `java -jar` does.
//!
//! It reads what to run ([`config`]), turns that into options ([`options`]), creates the virtual
//! machine through the JNI invocation interface ([`jni`]) and lets the JDK's launcher classes find
//! and check `main` ([`launch`]). Output and exit code are those of `java -jar`; `java` itself is
//! not used, because its relocations, `libjli`, `jvm.cfg` and the second reading of the jar cost a
//! start about eighty system calls. An ordinary Linux program: its tests run on the host.
//!
//! The manifest is not read here: since JDK 9 `LauncherHelper` does that (`Main-Class`,
//! `Launcher-Agent-Class`, `Add-Exports`, `Add-Opens`, `Enable-Native-Access`), and the class
//! loader does the rest (`Class-Path`, `Multi-Release`). `java` reads it only for a splash screen.
#![cfg_attr(not(test), no_main)]

mod config;
#[cfg(not(test))]
mod entry;
mod jni;
mod launch;
mod options;

use std::{fmt, io::Write, thread};

use config::Config;
use options::VmOptions;

/// `java`'s own exit code when the virtual machine or `main` cannot be had.
const FAILED: i32 = 1;

/// Runs the configured jar with the program's arguments; the result is the exit code.
#[cfg_attr(test, expect(dead_code))]
fn run() -> i32 {
    match prepare() {
        Ok((config, options)) => run_on_java_stack(config, options),
        Err(failure) => {
            failure.report();
            FAILED
        }
    }
}

fn prepare() -> Result<(Config, VmOptions), Failure> {
    let config = Config::load()?;
    let options = VmOptions::new(&config, std::env::var("JDK_JAVA_OPTIONS").ok().as_deref())?;
    Ok((config, options))
}

/// HotSpot must not run on the process' first stack, whose size it cannot know for sure and whose
/// guard pages it cannot place; `java` starts a thread for it as well.
fn run_on_java_stack(config: Config, options: VmOptions) -> i32 {
    let outcome = jni::Libjvm::load(&config.java_home).and_then(|libjvm| {
        let stack_bytes = options.main_stack_bytes.unwrap_or_else(|| libjvm.default_stack_bytes());
        let thread = thread::Builder::new().stack_size(stack_bytes);
        let joined = thread.spawn(move || launch::launch(&libjvm, &config, &options)).map_err(|error| {
            Failure::new(
                format!("cannot start a thread with {stack_bytes} bytes of stack: {error}"),
                "give the machine more memory, or set a smaller -Xss",
            )
        })?;
        // A panic aborts the process, so join cannot fail.
        joined.join().expect("the Java thread neither panics nor is cancelled")
    });
    outcome.unwrap_or_else(|failure| {
        failure.report();
        FAILED
    })
}

/// Why nothing could be run: what is wrong, and what to do about it.
#[derive(Debug)]
struct Failure {
    error: String,
    help: String,
}

impl Failure {
    fn new(error: impl Into<String>, help: impl Into<String>) -> Self {
        Self { error: error.into(), help: help.into() }
    }

    fn report(&self) {
        // If standard error is closed, the exit code still tells.
        let _ = writeln!(std::io::stderr(), "{self}");
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\nhelp: {}", self.error, self.help)
    }
}
