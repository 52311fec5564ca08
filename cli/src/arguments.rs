//! The command line.
use std::{path::PathBuf, time::Duration};

use abi::LogLevel;
use clap::{Args, Parser, Subcommand, ValueEnum};
use image::jdk::Wanted;

/// Runs a jar as a virtual machine of its own.
#[derive(Parser, Debug)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a jar, or a program in a folder.
    ///
    /// The exit code is the application's own; else 120: the guest kernel panicked or ran out
    /// of memory, 124: the time limit passed, 125: this tool failed, 126: the machine could not be
    /// started, 127: there is no main class or program.
    Run(RunOptions),
    /// Run the kernel's built-in tests.
    #[command(hide = true)]
    DevTest(TestOptions),
    /// Fill the symbol table of a linked kernel.
    #[command(hide = true)]
    DevSymbols(SymbolsOptions),
}

#[derive(Args, Debug)]
pub struct RunOptions {
    /// JDK for the jar: 17, 21, 25 (fetched once) or the folder of a JDK.
    #[arg(long, value_name = "17|21|25|DIR", default_value = "25")]
    pub jdk: Wanted,
    /// Run a program in this folder instead of a jar.
    #[arg(long, value_name = "DIR", conflicts_with = "jdk")]
    pub rootfs: Option<PathBuf>,
    #[command(flatten)]
    pub machine: MachineOptions,
    /// Repeat exactly: one CPU, instructions instead of time, everything decided by --seed.
    #[arg(long)]
    pub exact: bool,
    /// Seed of an exact run's scheduling, addresses and random numbers.
    #[arg(long, requires = "exact")]
    pub seed: Option<u64>,
    /// Print each system call.
    #[arg(long)]
    pub strace: bool,
    /// Print when each boot phase was reached, and the exits from the guest by cause.
    #[arg(long)]
    pub timing: bool,
    /// Environment variable for the application. May be repeated.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = environment_pair)]
    pub env: Vec<String>,
    /// The jar and its arguments; with --rootfs the program's absolute path in the folder.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "JAR [ARGS]")]
    pub target: Vec<String>,
}

#[derive(Args, Debug)]
pub struct MachineOptions {
    /// Memory, such as 512M or 2G.
    #[arg(short, long, value_name = "SIZE", default_value = "1G", value_parser = memory_size)]
    pub memory: u64,
    /// CPUs; 2 if not given, 1 with --exact.
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: Option<u32>,
    /// QEMU's machine type.
    #[arg(long, value_enum, default_value_t = MachineName::Q35)]
    pub machine: MachineName,
    /// KVM where it works unless said otherwise.
    #[arg(long, value_enum, default_value_t = AccelName::Auto)]
    pub accel: AccelName,
    /// Firmware in place of QEMU's own, such as qboot.rom.
    #[arg(long, value_name = "FILE")]
    pub bios: Option<PathBuf>,
    /// What the guest kernel prints: off, error, warn, info, debug, trace, or Linux's number.
    #[arg(long, default_value = "warn", value_parser = log_level)]
    pub loglevel: LogLevel,
    /// Wait for gdb on this port before the first instruction.
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "1234")]
    pub gdb: Option<u16>,
    /// Let QEMU take commands (QMP) on this socket, such as inject-nmi.
    #[arg(long, value_name = "FILE")]
    pub qmp: Option<PathBuf>,
    /// Stop the machine after this time, such as 30s or 5m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub time_limit: Option<Duration>,
    /// The guest kernel.
    #[arg(long, value_name = "FILE", hide = true)]
    pub kernel: Option<PathBuf>,
    /// QEMU's program.
    #[arg(long, value_name = "FILE", hide = true)]
    pub qemu: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum MachineName {
    Q35,
    /// The older PC, without PCI Express.
    Pc,
    Microvm,
    /// With PCI Express in place of virtio-mmio.
    MicrovmPcie,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelName {
    Auto,
    Kvm,
    Tcg,
}

#[derive(Args, Debug)]
pub struct TestOptions {
    #[command(flatten)]
    pub machine: MachineOptions,
    /// A test's name, or all.
    #[arg(default_value = "all")]
    pub name: String,
    /// Seed of an exact run.
    #[arg(long)]
    pub seed: Option<u64>,
    #[arg(long)]
    pub exact: bool,
}

#[derive(Args, Debug)]
pub struct SymbolsOptions {
    /// The kernel with its symbols; the table in it is filled in place.
    pub kernel: PathBuf,
}

/// With less, QEMU cannot even place the kernel.
const LEAST_MEMORY: u64 = 4 << 20;

/// Bytes from a number with K, M or G (powers of 1024).
fn memory_size(text: &str) -> Result<u64, String> {
    let wanted = || format!("{text:?} is no memory size: wanted one like 512M or 2G");
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{text:?} has no unit: write {text}M or {text}G"));
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        _ => return Err(wanted()),
    };
    let count: u64 = digits.parse().map_err(|_| wanted())?;
    let bytes = count.checked_mul(1 << shift).ok_or_else(wanted)?;
    match bytes {
        ..LEAST_MEMORY => Err(format!("{text} is too little: the kernel alone needs {}M", LEAST_MEMORY >> 20)),
        0x400_0000_0000.. => Err(format!("{text} is more than a machine can have (4 TiB)")),
        _ => Ok(bytes),
    }
}

fn log_level(text: &str) -> Result<LogLevel, String> {
    text.parse().map_err(|wanted| format!("wanted {wanted}"))
}

fn environment_pair(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_string()),
        _ => Err("wanted NAME=VALUE".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn memory_sizes_need_a_unit() {
        assert_eq!(memory_size("512M"), Ok(512 << 20));
        assert_eq!(memory_size("2gib"), Ok(2 << 30));
        assert_eq!(memory_size("17"), Err("\"17\" has no unit: write 17M or 17G".to_string()));
        assert!(memory_size("3M").is_err() && memory_size("4M").is_ok());
        for bad in ["", "M", "512", "1.5G", "-1G", "1T", "1K", "99999999999999999999G", "5000G", "ä"] {
            assert!(memory_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_follows_the_jar_is_the_applications() {
        let cli = Cli::try_parse_from(["demitasse", "run", "-c", "1", "a.jar", "-c", "--exact", "--", "x"]).unwrap();
        let Command::Run(options) = cli.command else { panic!() };
        assert_eq!((options.machine.cpus, options.exact), (Some(1), false));
        assert_eq!(options.target, ["a.jar", "-c", "--exact", "--", "x"]);
        let cli = Cli::try_parse_from(["demitasse", "run", "--rootfs", "/r", "--", "/bin/x", "-a"]).unwrap();
        let Command::Run(options) = cli.command else { panic!() };
        assert_eq!(options.target, ["/bin/x", "-a"]);
        assert!(Cli::try_parse_from(["demitasse", "run", "--jdk", "8", "a.jar"]).is_err());
        let cli = Cli::try_parse_from(["demitasse", "run", "--gdb", "a.jar", "--gdb=1"]).unwrap();
        let Command::Run(options) = cli.command else { panic!() };
        assert_eq!((options.machine.gdb, options.target.len()), (Some(1234), 2));
    }
}
