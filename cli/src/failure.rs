//! How a command fails: one `error:` line, one `help:` line, and an exit code that no application's
//! own is likely to be taken for.
use std::{
    fmt::Display,
    io::{self, Write},
};

use image::{CacheError, JdkError, TreeError, app::JarError, erofs::WriteError};
use vmm::VmmError;

/// The kernel panicked, or had no memory left.
pub const KERNEL_PANIC: u8 = 120;
pub const TIMED_OUT: u8 = 124;
/// This tool failed.
pub const TOOL_FAILED: u8 = 125;
/// The virtual machine could not be started.
pub const NOT_STARTED: u8 = 126;
/// Nothing to run: no main class, no such program.
pub const NOTHING_TO_RUN: u8 = 127;

#[derive(Debug)]
pub struct Failure {
    error: String,
    help: String,
    pub exit_code: u8,
}

impl Failure {
    pub fn new(exit_code: u8, error: impl Into<String>, help: impl Into<String>) -> Self {
        Self { error: error.into(), help: help.into(), exit_code }
    }

    pub fn report(&self) {
        say(format_args!("error: {}", self.error.trim_end().replace('\n', " ")));
        say(format_args!("help: {}", self.help));
    }
}

/// A line on standard error; who reads that may have gone, which changes nothing.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

const MORE_SPACE: &str = "free some space, or set DEMITASSE_CACHE to a folder on another disk";

/// clap's own exit code would be taken for the application's.
impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let message = lines.join(" ");
        Self::new(TOOL_FAILED, message.strip_prefix("error: ").unwrap_or(&message), "see demitasse run --help")
    }
}

impl From<JarError> for Failure {
    fn from(error: JarError) -> Self {
        let code = if matches!(error, JarError::NoMainClass(_)) { NOTHING_TO_RUN } else { TOOL_FAILED };
        Self::new(code, error.to_string(), error.help())
    }
}

impl From<JdkError> for Failure {
    fn from(error: JdkError) -> Self {
        Self::new(TOOL_FAILED, format!("no JDK: {error}"), error.help())
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::new(TOOL_FAILED, format!("no cache: {error}"), "set DEMITASSE_CACHE to a folder that can be written")
    }
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        Self::new(TOOL_FAILED, error.to_string(), "the folder must be readable, with nothing writing to it")
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        let help = match &error {
            WriteError::Output(cause) if cause.kind() == io::ErrorKind::StorageFull => MORE_SPACE,
            WriteError::Output(_) => "set DEMITASSE_CACHE to a folder that can be written",
            WriteError::Changed(_) => "try again when nothing writes to it",
            _ => "check the file's permissions",
        };
        Self::new(TOOL_FAILED, error.to_string(), help)
    }
}

impl From<VmmError> for Failure {
    fn from(error: VmmError) -> Self {
        let help = match &error {
            VmmError::QemuMissing { .. } => "install QEMU (Debian: qemu-system-x86), or run scripts/setup",
            VmmError::NoFile(_) => "run scripts/build",
            VmmError::NotExact => "leave out -c and --accel with --exact",
            VmmError::Console(_) => "try again",
        };
        Self::new(NOT_STARTED, error.to_string(), help)
    }
}
