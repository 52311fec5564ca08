//! Runs virtual machines under QEMU: what a [`Machine`] is, how it ends ([`Outcome`]), and which
//! accelerator works here ([`accel`]).
//!
//! The console is one byte stream: what the application prints, with control frames of the kernel
//! in between (`abi::control`) until the kernel has found the control channel, a virtio-serial port,
//! which takes them from then on. [`Machine::run`] reads both.

pub mod accel;
mod outcome;
mod process;
mod qemu;

use std::{path::PathBuf, time::Duration};

use abi::BootConfig;

pub use accel::Accel;
pub use outcome::{Ending, Outcome, Phase, Report, TestResult};
pub use process::{Event, Stdin};

/// QEMU's machine types that the kernel boots on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MachineType {
    #[default]
    Q35,
    /// The older PC (i440FX): no PCI Express.
    Pc,
    /// Boots faster; devices are virtio-mmio.
    Microvm,
    /// The same with virtio on PCI Express, which no firmware has set up.
    MicrovmPcie,
}

/// How the machine gets its root image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageAs {
    /// A read-only virtio disk, read on demand.
    Disk,
    /// A boot module: in memory before the first instruction.
    Module,
}

#[derive(Clone, Debug)]
pub struct Image {
    pub path: PathBuf,
    pub given_as: ImageAs,
}

/// A virtual machine to be run once.
#[derive(Clone, Debug)]
pub struct Machine {
    /// `qemu-system-x86_64` on the PATH if `None`.
    pub qemu: Option<PathBuf>,
    pub kernel: PathBuf,
    pub machine_type: MachineType,
    pub memory_bytes: u64,
    pub cpus: u32,
    pub accel: Accel,
    /// QEMU's CPU model; a suitable one if `None`.
    pub cpu_model: Option<String>,
    pub image: Option<Image>,
    /// Where the image is (`root`) and the wall clock are filled in by [`Machine::run`].
    pub boot: BootConfig,
    /// Counts instructions instead of time, so that a run repeats exactly: TCG with one CPU.
    pub exact: bool,
    /// Under TCG: all CPUs take turns on one host thread, so that an instruction is never translated while
    /// another CPU writes it. Needed for programs that patch running code, as HotSpot does: QEMU's
    /// translator reads an instruction byte by byte, where a processor fetches aligned words whole.
    pub one_thread: bool,
    /// Firmware in place of SeaBIOS, such as `qboot.rom`.
    pub bios: Option<PathBuf>,
    /// The console is a virtio terminal, and there is no serial port.
    pub terminal: bool,
    pub time_limit: Option<Duration>,
    pub stdin: Stdin,
    /// More arguments for QEMU, last.
    pub extra_arguments: Vec<String>,
}

impl Machine {
    /// A q35 machine with 1 CPU and 256 MiB, on TCG, that starts what `boot` says.
    pub fn new(kernel: impl Into<PathBuf>, boot: BootConfig) -> Self {
        Self {
            qemu: None,
            kernel: kernel.into(),
            machine_type: MachineType::Q35,
            memory_bytes: 256 << 20,
            cpus: 1,
            accel: Accel::Tcg,
            cpu_model: None,
            image: None,
            boot,
            exact: false,
            one_thread: false,
            bios: None,
            terminal: false,
            time_limit: None,
            stdin: Stdin::Nothing,
            extra_arguments: Vec::new(),
        }
    }

    /// Runs the machine to its end. `each` sees its output and what it reports, as it comes.
    pub fn run(&self, each: &mut dyn FnMut(Event<'_>)) -> Result<Report, VmmError> {
        process::run(self, each)
    }
}

/// The machine could not be started at all.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error("{path:?} cannot be run: {source}")]
    QemuMissing { path: PathBuf, source: std::io::Error },
    #[error("{0:?}: no such file")]
    NoFile(PathBuf),
    #[error("an exact run needs 1 CPU and TCG")]
    NotExact,
    #[error("console of the machine: {0}")]
    Console(std::io::Error),
}
