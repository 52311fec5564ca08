//! How a machine ended, put together from QEMU's exit status and what the kernel reported.
use std::time::Duration;

use abi::{Exits, exit};

/// How the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The application ended by itself; `tsc` is the time stamp counter just before power-off.
    Exited {
        code: u8,
        tsc: u64,
    },
    /// The kernel panicked, or the machine reset without a word (a triple fault).
    Panicked {
        cause: String,
    },
    /// The kernel could not make sense of how it was booted: one of `abi::exit`'s `BAD_…`.
    BadBoot {
        code: u32,
    },
    OutOfMemory,
    /// A built-in kernel test failed.
    TestFailed,
    /// The time limit passed, and the machine was stopped.
    TimedOut,
    /// QEMU itself failed; its last words.
    QemuFailed {
        status: Option<i32>,
        message: String,
    },
}

/// A boot phase, as the kernel or the first program reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    pub name: String,
    /// Since boot, on the machine's clock.
    pub ns: u64,
    pub tsc: u64,
    /// Since QEMU was started, on the host's clock.
    pub seen_after: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestResult {
    pub name: String,
    pub ok: bool,
    pub detail: String,
}

/// What was seen of one run. Times count from QEMU's start.
#[derive(Clone, Debug)]
pub struct Report {
    pub outcome: Outcome,
    pub phases: Vec<Phase>,
    pub tests: Vec<TestResult>,
    /// How often the machine left the guest, if it was asked.
    pub exits: Option<Exits>,
    /// The first byte that is no control frame.
    pub first_output_after: Option<Duration>,
    pub ended_after: Duration,
}

/// Raw evidence of the end.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// QEMU's exit status; `None` if a signal ended it.
    pub status: Option<i32>,
    pub timed_out: bool,
    /// Code and time stamp counter of the exit frame.
    pub exit: Option<(u8, u64)>,
    pub panic: Option<String>,
    pub qemu_stderr: String,
}

impl Ending {
    pub fn outcome(self) -> Outcome {
        if self.timed_out {
            return Outcome::TimedOut;
        }
        let failed = |message: &str| Outcome::QemuFailed { status: self.status, message: message.to_string() };
        match self.status.and_then(exit::from_qemu_status) {
            Some(exit::ORDERLY) => match self.exit {
                Some((code, tsc)) => Outcome::Exited { code, tsc },
                None => failed("the machine ended in order, but reported no exit code"),
            },
            Some(exit::PANIC) => {
                Outcome::Panicked { cause: self.panic.unwrap_or_else(|| "no cause was reported".to_string()) }
            }
            Some(code) if exit::is_bad_boot(code) => Outcome::BadBoot { code },
            Some(exit::OUT_OF_MEMORY) => Outcome::OutOfMemory,
            Some(exit::TEST_FAILED) => Outcome::TestFailed,
            _ => match (self.status, self.panic) {
                (_, Some(cause)) => Outcome::Panicked { cause },
                // QEMU is told not to reboot, so a reset ends it with success.
                (Some(0), None) if self.qemu_stderr.trim().is_empty() => {
                    Outcome::Panicked { cause: "the machine reset itself (a triple fault?)".to_string() }
                }
                _ => failed(self.qemu_stderr.trim()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(code: u32) -> Ending {
        Ending { status: Some(exit::qemu_status(code)), ..Ending::default() }
    }

    #[test]
    fn an_exit_code_counts_only_with_an_orderly_end() {
        let exit = Some((7, 99));
        assert_eq!(Ending { exit, ..ending(exit::ORDERLY) }.outcome(), Outcome::Exited { code: 7, tsc: 99 });
        assert!(matches!(Ending { exit, ..ending(exit::PANIC) }.outcome(), Outcome::Panicked { .. }));
        assert!(matches!(ending(exit::ORDERLY).outcome(), Outcome::QemuFailed { .. }));
        assert_eq!(Ending { exit, timed_out: true, ..ending(exit::ORDERLY) }.outcome(), Outcome::TimedOut);
    }

    #[test]
    fn each_end_has_its_name() {
        for code in [exit::BAD_BOOT, exit::BAD_START_INFO, exit::BAD_COMMAND_LINE] {
            assert_eq!(ending(code).outcome(), Outcome::BadBoot { code });
        }
        assert_eq!(ending(exit::OUT_OF_MEMORY).outcome(), Outcome::OutOfMemory);
        assert_eq!(ending(exit::TEST_FAILED).outcome(), Outcome::TestFailed);
        let panic = Some("why".to_string());
        assert_eq!(Ending { panic, ..ending(exit::PANIC) }.outcome(), Outcome::Panicked { cause: "why".to_string() });
        let reset = Ending { status: Some(0), ..Ending::default() };
        assert!(matches!(reset.outcome(), Outcome::Panicked { .. }));
        let stderr = "qemu: bad option\n".to_string();
        let failed = Ending { status: Some(1), qemu_stderr: stderr, ..Ending::default() };
        assert_eq!(failed.outcome(), Outcome::QemuFailed { status: Some(1), message: "qemu: bad option".to_string() });
    }
}
