//! Boot configuration: what the machine shall run, as a Linux-style kernel command line.
//!
//! Keys are separated by white space; `init`, `arg`, `env` and `cwd` are percent-encoded. Anything
//! unknown is kept aside in [`BootConfig::unknown`], as machine monitors append keys of their own
//! (`reboot=k pci=off`). After a lone `--` the rest is plain arguments for `init`, as on Linux; a
//! monitor that appends keys there would add arguments, so [`BootConfig::to_cmdline`] never uses it.
//!
//! Deviation: Linux hands unknown keys to init as arguments and environment. A monitor's keys are
//! no business of the application, so they are not handed on.
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt, str::FromStr};

use crate::percent;

/// Everything that the kernel is told from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootConfig {
    /// Absolute path of the first program.
    pub init: Option<String>,
    /// Arguments after argv\[0\].
    pub args: Vec<String>,
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// Working directory of the first program.
    pub cwd: Option<String>,
    /// Where the root image is. None: a boot module if there is one, else the first virtio disk.
    pub root: Option<Root>,
    pub log_level: LogLevel,
    pub stdin: ConsoleInput,
    /// None: the serial port if there is one, else the virtio terminal.
    pub console: Option<ConsoleDevice>,
    /// Everything that the machine does is decided by `seed`.
    pub exact: bool,
    pub seed: Option<u64>,
    /// Print each system call.
    pub strace: bool,
    /// Report boot phases by control frames.
    pub timing: bool,
    /// Report at the end how often the machine left the guest ([`crate::exits`]).
    pub exits: bool,
    /// Wall clock at boot, nanoseconds since 1970 UTC, for machines without a real-time clock.
    pub epoch_ns: Option<u64>,
    /// Run this built-in kernel test (`all`: each of them) instead of `init`.
    pub test: Option<String>,
    /// Devices announced as on Linux by `virtio_mmio.device=`.
    pub mmio_devices: Vec<MmioDevice>,
    /// Words that mean nothing to this kernel.
    pub unknown: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// The PVH boot module.
    Module,
    /// The first virtio disk.
    Vda,
}

/// What carries the console; Linux' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleDevice {
    /// `ttyS0`: the 16550.
    Serial,
    /// `hvc0`: port 0 of a virtio console device.
    Virtio,
}

/// What feeds the console, and so what the line discipline does at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleInput {
    /// Somebody types: echo, line editing, ^C.
    #[default]
    Terminal,
    /// Somebody types on a terminal that edits and echoes lines itself: no echo, and no bytes that signal.
    /// ^D at the start of a line ends the input.
    Cooked,
    /// A program or a file: standard input is a pipe, and the line carries what [`crate::input`] says.
    Pipe,
}

/// What the kernel prints: this level and those above it. A panic, and why the machine does not start,
/// are printed at any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Off,
    Error,
    #[default]
    Warn,
    Info,
    Debug,
    Trace,
}

/// `<size>@<base>:<irq>[:<id>]`, see Linux' kernel-parameters, `virtio_mmio.device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    pub size_bytes: u64,
    pub base: u64,
    pub irq: u32,
}

/// A key that is known, with a value that is not. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub key: String,
    pub value: String,
    pub wanted: &'static str,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot configuration: {}={:?}: wanted {}", self.key, self.value, self.wanted)
    }
}

impl core::error::Error for ConfigError {}

impl BootConfig {
    pub fn parse(command_line: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut words = command_line.split_ascii_whitespace();
        for word in words.by_ref() {
            if word == "--" {
                break;
            }
            config.take_word(word)?;
        }
        config.args.extend(words.map(str::to_string));
        Ok(config)
    }

    fn take_word(&mut self, word: &str) -> Result<(), ConfigError> {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word, None),
        };
        let bad = |wanted| ConfigError { key: key.to_string(), value: value.unwrap_or("").to_string(), wanted };
        let value_or = |wanted| value.ok_or_else(|| bad(wanted));
        let text = || value.and_then(percent::decode).ok_or_else(|| bad("percent-encoded text"));
        let path = || match text()? {
            path if path.starts_with('/') && !path.contains('\0') => Ok(path),
            _ => Err(bad("an absolute path")),
        };
        let flag = || match value {
            None => Ok(true),
            Some(_) => Err(bad("no value")),
        };
        match key {
            "init" => self.init = Some(path()?),
            "arg" => self.args.push(without_nul(text()?).ok_or_else(|| bad("text without NUL"))?),
            "env" => self
                .env
                .push(without_nul(text()?).filter(|pair| pair.find('=') > Some(0)).ok_or_else(|| bad("NAME=VALUE"))?),
            "cwd" => self.cwd = Some(path()?),
            "root" => self.root = Some(value_or(Root::WANTED)?.parse().map_err(bad)?),
            "stdin" => self.stdin = value_or(ConsoleInput::WANTED)?.parse().map_err(bad)?,
            // Monitors add consoles that this kernel does not have.
            "console" => match value.and_then(|value| value.split(',').next()) {
                Some("ttyS0") => self.console = Some(ConsoleDevice::Serial),
                Some("hvc0") => self.console = Some(ConsoleDevice::Virtio),
                _ => self.unknown.push(word.to_string()),
            },
            "loglevel" => self.log_level = value_or(LogLevel::WANTED)?.parse().map_err(bad)?,
            // CONSOLE_LOGLEVEL_QUIET of Linux.
            "quiet" if value.is_none() => self.log_level = LogLevel::from_linux(4),
            "debug" if value.is_none() => self.log_level = LogLevel::Debug,
            "exact" => self.exact = flag()?,
            "strace" => self.strace = flag()?,
            "timing" => self.timing = flag()?,
            "exits" => self.exits = flag()?,
            "seed" => self.seed = Some(number(value).ok_or_else(|| bad("a number below 2^64"))?),
            "epoch_ns" => self.epoch_ns = Some(number(value).ok_or_else(|| bad("nanoseconds since 1970"))?),
            "test" => {
                self.test =
                    Some(value.filter(|name| !name.is_empty()).ok_or_else(|| bad("a test's name"))?.to_string());
            }
            "virtio_mmio.device" => {
                self.mmio_devices.push(value_or(MmioDevice::WANTED)?.parse().map_err(bad)?);
            }
            _ => self.unknown.push(word.to_string()),
        }
        Ok(())
    }

    /// The command line that [`BootConfig::parse`] reads back as `self`, with one exception:
    /// `unknown` words containing white space are split.
    pub fn to_cmdline(&self) -> String {
        let mut line = CommandLine(String::new());
        if let Some(init) = &self.init {
            line.encoded("init", init);
        }
        if let Some(cwd) = &self.cwd {
            line.encoded("cwd", cwd);
        }
        if let Some(root) = self.root {
            line.word(&format!("root={}", root.name()));
        }
        if self.stdin != ConsoleInput::default() {
            line.word(&format!("stdin={}", self.stdin.name()));
        }
        match self.console {
            Some(ConsoleDevice::Serial) => line.word("console=ttyS0"),
            Some(ConsoleDevice::Virtio) => line.word("console=hvc0"),
            None => {}
        }
        if self.log_level != LogLevel::default() {
            line.word(&format!("loglevel={}", self.log_level.name()));
        }
        for (set, name) in
            [(self.exact, "exact"), (self.strace, "strace"), (self.timing, "timing"), (self.exits, "exits")]
        {
            if set {
                line.word(name);
            }
        }
        for (value, name) in [(self.seed, "seed"), (self.epoch_ns, "epoch_ns")] {
            if let Some(value) = value {
                line.word(&format!("{name}={value}"));
            }
        }
        if let Some(test) = &self.test {
            line.word(&format!("test={test}"));
        }
        for device in &self.mmio_devices {
            line.word(&format!("virtio_mmio.device={}@{:#x}:{}", device.size_bytes, device.base, device.irq));
        }
        for word in &self.unknown {
            line.word(word);
        }
        for pair in &self.env {
            line.encoded("env", pair);
        }
        for arg in &self.args {
            line.encoded("arg", arg);
        }
        line.0
    }
}

struct CommandLine(String);

impl CommandLine {
    fn word(&mut self, word: &str) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(word);
    }

    fn encoded(&mut self, key: &str, value: &str) {
        self.word(key);
        self.0.push('=');
        percent::encode(value, &mut self.0);
    }
}

fn without_nul(text: String) -> Option<String> {
    (!text.contains('\0')).then_some(text)
}

/// Decimal, or hexadecimal with `0x`.
fn number(text: Option<&str>) -> Option<u64> {
    let text = text?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl Root {
    const WANTED: &'static str = "module or vda";

    fn name(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Vda => "vda",
        }
    }
}

impl FromStr for Root {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Module, Self::Vda].into_iter().find(|root| root.name() == text).ok_or(Self::WANTED)
    }
}

impl ConsoleInput {
    const WANTED: &'static str = "terminal, cooked or pipe";
    const ALL: [Self; 3] = [Self::Terminal, Self::Cooked, Self::Pipe];

    fn name(self) -> &'static str {
        match self {
            Self::Terminal => "terminal",
            Self::Cooked => "cooked",
            Self::Pipe => "pipe",
        }
    }
}

impl FromStr for ConsoleInput {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|input| input.name() == text).ok_or(Self::WANTED)
    }
}

impl LogLevel {
    const WANTED: &'static str = "off, error, warn, info, debug, trace or a number as Linux has it";
    const ALL: [Self; 6] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Linux's `loglevel=N` prints messages below N, of which 3 are errors, 4 warnings, 5 and 6 news, 7
    /// debugging. It has no level for what we call trace.
    fn from_linux(number: u64) -> Self {
        match number {
            0..=3 => Self::Off,
            4 => Self::Error,
            5..=6 => Self::Warn,
            7 => Self::Info,
            8 => Self::Debug,
            _ => Self::Trace,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl FromStr for LogLevel {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|level| level.name() == text);
        named.or_else(|| text.parse().ok().map(Self::from_linux)).ok_or(Self::WANTED)
    }
}

impl MmioDevice {
    const WANTED: &'static str = "<size>@<base>:<irq>[:<id>]";

    fn parse(text: &str) -> Option<Self> {
        let (size, place) = text.split_once('@')?;
        let mut fields = place.split(':');
        let base = number(fields.next())?;
        let irq = u32::try_from(number(fields.next())?).ok()?;
        // The id only names the device; it need not be kept, but must be a number.
        if let Some(id) = fields.next() {
            number(Some(id))?;
        }
        fields.next().is_none().then_some(())?;
        let size_bytes = sized(size)?;
        Some(Self { size_bytes, base, irq })
    }
}

/// A number with an optional K, M or G, powers of 1024.
fn sized(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    number(Some(digits))?.checked_mul(1 << shift)
}

impl FromStr for MmioDevice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or(Self::WANTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| item.to_string()).collect()
    }

    #[test]
    fn a_full_configuration_survives_the_round_trip() {
        let config = BootConfig {
            init: Some("/usr/lib/a program/ä".into()),
            args: strings(&["", "two words", "50%", "--", "a=b", "line\nfeed", "\"quoted\"", "日本"]),
            env: strings(&["PATH=/usr/bin:/bin", "EMPTY=", "EQ=a=b c"]),
            cwd: Some("/app".into()),
            root: Some(Root::Module),
            stdin: ConsoleInput::Pipe,
            console: Some(ConsoleDevice::Virtio),
            log_level: LogLevel::Trace,
            exact: true,
            seed: Some(u64::MAX),
            strace: true,
            timing: true,
            exits: true,
            epoch_ns: Some(1_700_000_000_000_000_000),
            test: Some("paging".into()),
            mmio_devices: alloc::vec![MmioDevice { size_bytes: 512, base: 0xfeb0_0e00, irq: 5 }],
            unknown: strings(&["reboot=k", "foo.bar=1", "nokaslr"]),
        };
        assert_eq!(BootConfig::parse(&config.to_cmdline()), Ok(config));
    }

    #[test]
    fn an_empty_line_is_the_default() {
        assert_eq!(BootConfig::parse("  \n"), Ok(BootConfig::default()));
        assert_eq!(BootConfig::default().to_cmdline(), "");
        assert_eq!(BootConfig::default().log_level, LogLevel::Warn);
    }

    #[test]
    fn log_levels_are_names_or_linuxs_numbers() {
        let level = |line: &str| BootConfig::parse(line).unwrap().log_level;
        for (text, wanted) in [
            ("off", LogLevel::Off),
            ("0", LogLevel::Off),
            ("3", LogLevel::Off),
            ("4", LogLevel::Error),
            ("5", LogLevel::Warn),
            ("6", LogLevel::Warn),
            ("7", LogLevel::Info),
            ("8", LogLevel::Debug),
            ("15", LogLevel::Trace),
            ("trace", LogLevel::Trace),
        ] {
            assert_eq!(level(&format!("loglevel={text}")), wanted, "{text}");
        }
        assert_eq!(level("quiet"), LogLevel::Error);
        assert_eq!(level("debug"), LogLevel::Debug);
        assert_eq!(level("quiet loglevel=7"), LogLevel::Info);
        assert_eq!(level("loglevel=7 quiet"), LogLevel::Error);
        assert_eq!(BootConfig::parse("quiet=1").unwrap().unknown, strings(&["quiet=1"]));
        for level in LogLevel::ALL {
            assert_eq!(level.name().parse(), Ok(level));
        }
    }

    #[test]
    fn the_last_console_that_exists_counts() {
        let config = BootConfig::parse("console=hvc0 console=ttyS0,115200n8 console=tty0").unwrap();
        assert_eq!(config.console, Some(ConsoleDevice::Serial));
        assert_eq!(config.unknown, strings(&["console=tty0"]));
    }

    #[test]
    fn words_after_two_dashes_are_plain_arguments() {
        let config = BootConfig::parse("init=/bin/echo arg=first -- exact 50% a=b").unwrap();
        assert_eq!(config.args, strings(&["first", "exact", "50%", "a=b"]));
        assert!(!config.exact);
    }

    #[test]
    fn devices_are_read_as_linux_reads_them() {
        let config = BootConfig::parse("virtio_mmio.device=4K@0xd0000000:5:1 virtio_mmio.device=512@4096:6").unwrap();
        assert_eq!(config.mmio_devices[0], MmioDevice { size_bytes: 4096, base: 0xd000_0000, irq: 5 });
        assert_eq!(config.mmio_devices[1], MmioDevice { size_bytes: 512, base: 4096, irq: 6 });
    }

    #[test]
    fn malformed_known_keys_are_errors_of_one_line() {
        for line in [
            "init",
            "init=bin/x",
            "init=/a%0",
            "init=/a%zz",
            "init=/a%00b",
            "arg",
            "arg=%ff",
            "env=NOVALUE",
            "env==x",
            "cwd=app",
            "root=sda",
            "stdin=",
            "loglevel=loud",
            "exact=1",
            "strace=yes",
            "seed=",
            "seed=-1",
            "seed=18446744073709551616",
            "epoch_ns=now",
            "test=",
            "test",
            "virtio_mmio.device=512",
            "virtio_mmio.device=512@1:2:3:4",
            "virtio_mmio.device=@1:2",
        ] {
            let error = BootConfig::parse(line).expect_err(line).to_string();
            assert!(!error.contains('\n') && error.starts_with("boot configuration: "), "{error}");
        }
    }
}
