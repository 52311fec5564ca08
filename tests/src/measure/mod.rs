//! Measurements: what docs/benchmarks.md reports, as Markdown tables on standard output.
//!
//! `vm-tests --measure [counts] [kernel] [memory] [times] [first-byte=KERNEL]`, the first four if none is
//! named. Counts come
//! from exact runs and repeat to the instruction on a busy machine; times need a quiet one, so the
//! machine's load stands beside them. On an emulator neither says that anything is faster: a count is
//! the length of a path.

mod counts;
mod first_byte;
mod kernel;
mod memory;
mod times;

use std::{
    fs,
    path::{Path, PathBuf},
};

use image::{Tree, app};
use vmm::{ImageAs, Machine, MachineType};

use crate::guest::{self, IMAGES, KERNEL};

/// A copy of the kernel: a build meanwhile must not mix two of them into one table.
const MEASURED_KERNEL: &str = "build/test-images/measured-kernel.elf";
const MIB: u64 = 1 << 20;
/// The options that the comparison systems were measured with.
const SERIAL_C1: [&str; 2] = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
/// The image is a boot module in exact runs and takes this much of it.
const EXACT_BYTES: u64 = 1024 * MIB;

/// Takes the measurements named, or all.
pub fn run(names: &[String]) -> Result<(), String> {
    type Measurement = (&'static str, fn() -> Result<(), String>);
    const ALL: [Measurement; 4] =
        [("counts", counts::take), ("kernel", kernel::take), ("memory", memory::take), ("times", times::take)];
    let other = names.iter().find_map(|name| name.strip_prefix("first-byte="));
    if let Some(unknown) = names
        .iter()
        .filter(|name| !name.starts_with("first-byte="))
        .find(|name| ALL.iter().all(|(known, _)| known != name))
    {
        return Err(format!(
            "no measurement {unknown:?}: there are counts, kernel, memory, times and first-byte=KERNEL"
        ));
    }
    guest::image_folder()?;
    fs::copy(KERNEL, MEASURED_KERNEL).map_err(|error| format!("{KERNEL}: {error}"))?;
    println!("Load average at the start: {}", load());
    for (_, take) in ALL.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|wanted| wanted == name)) {
        take()?;
    }
    other.map_or(Ok(()), first_byte::take)
}

/// The machine's load averages over 1, 5 and 15 minutes.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// A machine type together with its firmware.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Platform {
    Q35,
    Q35Qboot,
    Microvm,
}

impl Platform {
    const ALL: [Self; 3] = [Self::Q35, Self::Q35Qboot, Self::Microvm];

    fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35, SeaBIOS",
            Self::Q35Qboot => "q35, qboot",
            Self::Microvm => "microvm",
        }
    }

    fn apply(self, mut machine: Machine) -> Machine {
        machine.machine_type = if self == Self::Microvm { MachineType::Microvm } else { MachineType::Q35 };
        machine.bios = (self == Self::Q35Qboot).then(|| "qboot.rom".into());
        machine
    }
}

/// What a machine runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// A static musl program that prints one line.
    Hello,
    /// The Hello jar on JDK 17 with the serial collector and the C1 compiler alone.
    JavaSerialC1,
    /// The same with the JVM's own choices.
    JavaDefault,
}

impl Subject {
    const ALL: [Self; 3] = [Self::Hello, Self::JavaSerialC1, Self::JavaDefault];

    fn name(self) -> &'static str {
        match self {
            Self::Hello => "static hello",
            Self::JavaSerialC1 => "Java Hello, serial, C1",
            Self::JavaDefault => "Java Hello, default flags",
        }
    }

    fn output(self) -> &'static [u8] {
        if self == Self::Hello { b"hello\n" } else { b"Hello\n" }
    }

    /// A machine with one CPU that runs it, its image given as said.
    fn machine(self, given_as: ImageAs) -> Result<Machine, String> {
        let (init, image) = match self {
            Self::Hello => ("/hello", hello_image()?),
            Self::JavaSerialC1 => (app::JVM_HOST, guest::java_image("hello", &SERIAL_C1)?),
            Self::JavaDefault => (app::JVM_HOST, guest::java_image("hello", &[])?),
        };
        let mut machine = guest::machine(init, 300);
        machine.kernel = MEASURED_KERNEL.into();
        machine.image = guest::image(image, given_as);
        if self != Self::Hello {
            machine.boot.cwd = Some(app::APP_FOLDER.into());
            machine.memory_bytes = EXACT_BYTES;
        }
        Ok(machine)
    }
}

fn hello_image() -> Result<PathBuf, String> {
    let path = Path::new(IMAGES).join("measure-hello.erofs");
    let mut tree = Tree::new();
    tree.add_file("/hello", "build/conformance/hello-musl", 0o755).map_err(|error| error.to_string())?;
    image::erofs::write_file(&tree, &path, &|_| {}).map_err(|error| error.to_string())?;
    Ok(path)
}

/// Middle, least and greatest of some values; `None` without any.
fn spread<T: Copy + Ord>(values: &[T]) -> Option<(T, T, T)> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    Some((*sorted.get(sorted.len() / 2)?, *sorted.first()?, *sorted.last()?))
}

/// Millions with two decimals.
fn millions(count: u64) -> String {
    format!("{:.2} M", count as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_middle_and_both_ends() {
        assert_eq!(spread(&[5, 1, 9]), Some((5, 1, 9)));
        assert_eq!(spread::<u64>(&[]), None);
    }
}
