//! Devices from outside: drivers that stop and go on, disks behind bridges, and a machine whose console
//! is a virtio terminal.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use abi::{BootConfig, ConsoleDevice, ConsoleInput, LogLevel};
use vmm::{ImageAs, Machine, MachineType, Outcome, Stdin};

use crate::{
    guest::{self, IMAGES, KERNEL},
    kernel, pressure,
    suite::{Slice, Suite, Verdict},
};

const LIMIT: Duration = Duration::from_secs(60);
/// A serial port carries a byte at a time: a megabyte takes seconds, on a busy host many.
const BINARY_LIMIT_S: u64 = 240;
/// Of the disk that the kernel's tests know: each is full of its own number.
const SECTORS: u64 = 8192;

pub fn add(suite: &mut Suite) {
    for (slice, machine_type, device) in [
        (Slice::Quick, MachineType::Q35, "virtio-blk-pci,disable-legacy=on,drive=pattern"),
        (Slice::Default, MachineType::Pc, "virtio-blk-pci,drive=pattern"),
        (Slice::Default, MachineType::Microvm, "virtio-blk-device,drive=pattern"),
        (Slice::Default, MachineType::MicrovmPcie, "virtio-blk-pci,disable-legacy=on,drive=pattern"),
    ] {
        for test in ["disk-reads", "disk-writes", "disk-quiesce"] {
            let name = format!("devices/{machine_type:?}/{test}").to_lowercase();
            suite.add(slice, name, move || verdict(disk_test(machine_type, test, &["-device", device], None)));
        }
    }
    add_bridges(suite);
    suite.add(Slice::Default, "devices/q35/terminal-and-network-quiesce", || verdict(all_quiesce()));
    suite.add(Slice::Default, "devices/q35/serial-input", || verdict(echo(MachineType::Q35, false)));
    suite.add(Slice::Default, "devices/q35/binary-input", || verdict(binary(MachineType::Q35, false)));
    suite.add(Slice::Default, "devices/microvm/terminal/binary-input", || verdict(binary(MachineType::Microvm, true)));
    for machine_type in [MachineType::Q35, MachineType::Microvm, MachineType::MicrovmPcie] {
        let name = format!("devices/{machine_type:?}/terminal").to_lowercase();
        suite.add(Slice::Default, name, move || verdict(echo(machine_type, true)));
        let name = format!("devices/{machine_type:?}/panic-on-the-terminal").to_lowercase();
        suite.add(Slice::Default, name, move || verdict(panics_on_the_terminal(machine_type)));
    }
}

/// A disk behind two bridges.
const BEHIND_PCIE: [&str; 6] = [
    "-device",
    "pcie-root-port,id=outer,chassis=1",
    "-device",
    "pcie-pci-bridge,id=inner,bus=outer",
    "-device",
    "virtio-blk-pci,disable-legacy=on,bus=inner,addr=3,drive=pattern",
];
const BEHIND_PCI: [&str; 6] = [
    "-device",
    "pci-bridge,id=outer,chassis_nr=1",
    "-device",
    "pci-bridge,id=inner,chassis_nr=2,bus=outer,addr=2",
    "-device",
    "virtio-blk-pci,disable-legacy=on,bus=inner,addr=3,drive=pattern",
];

fn add_bridges(suite: &mut Suite) {
    for (slice, machine_type, firmware, bios, devices) in [
        (Slice::Default, MachineType::Q35, "seabios", None, BEHIND_PCIE),
        (Slice::Default, MachineType::Pc, "seabios", None, BEHIND_PCI),
        // These leave bridges without a window, or even without a number.
        (Slice::Default, MachineType::Q35, "qboot", Some("qboot.rom"), BEHIND_PCIE),
        (Slice::Default, MachineType::Pc, "qboot", Some("qboot.rom"), BEHIND_PCI),
        (Slice::Default, MachineType::MicrovmPcie, "no-firmware", None, BEHIND_PCIE),
    ] {
        let name = format!("devices/{machine_type:?}/{firmware}/behind-bridges").to_lowercase();
        suite.add(slice, name, move || verdict(disk_test(machine_type, "disk-reads", &devices, bios)));
    }
}

fn verdict(result: Result<Verdict, String>) -> Verdict {
    result.unwrap_or_else(Verdict::Failed)
}

/// A kernel test of the disk, with the arguments that connect the drive called `pattern`.
fn disk_test(machine_type: MachineType, test: &str, devices: &[&str], bios: Option<&str>) -> Result<Verdict, String> {
    Ok(kernel::check(&disk_machine(machine_type, test, devices, bios)?))
}

/// A disk, a network card, the balloon and the virtio console, with a terminal, stop and go on; what the
/// kernel writes while they are stopped comes later.
fn all_quiesce() -> Result<Verdict, String> {
    let devices = [
        "-device",
        "virtio-blk-pci,disable-legacy=on,drive=pattern",
        "-netdev",
        "user,id=user,restrict=on",
        "-device",
        "virtio-net-pci,disable-legacy=on,netdev=user",
    ];
    let mut machine = disk_machine(MachineType::Q35, "disk-quiesce", &devices, None)?;
    machine.terminal = true;
    machine.boot.log_level = LogLevel::Info;
    Ok(kernel::check_saying(&machine, &["round 0: the devices are stopped", "round 49: the devices are stopped"]))
}

fn disk_machine(
    machine_type: MachineType,
    test: &str,
    devices: &[&str],
    bios: Option<&str>,
) -> Result<Machine, String> {
    let disk = pattern_disk(&format!("{machine_type:?}").to_lowercase())?;
    let drive = format!("if=none,id=pattern,format=raw,cache=unsafe,file={}", disk.display());
    let arguments = ["-drive", &drive].into_iter().chain(devices.iter().copied());
    let boot = BootConfig { test: Some(test.into()), ..BootConfig::default() };
    Ok(Machine {
        machine_type,
        cpus: 2,
        bios: bios.map(PathBuf::from),
        time_limit: Some(LIMIT),
        extra_arguments: arguments.map(str::to_owned).collect(),
        ..Machine::new(KERNEL, boot)
    })
}

fn pattern_disk(name: &str) -> Result<PathBuf, String> {
    guest::image_folder()?;
    let path = Path::new(IMAGES).join(format!("pattern-{name}.disk"));
    let bytes: Vec<u8> = (0..SECTORS).flat_map(|sector| sector.to_le_bytes().repeat(64)).collect();
    fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

/// A program reads and writes its console: the serial port, or a virtio terminal where there is none.
fn echo(machine_type: MachineType, terminal: bool) -> Result<Verdict, String> {
    let program = guest::compiled("echo-lines")?;
    let mut machine = guest::machine("/program", LIMIT.as_secs());
    machine.boot.stdin = ConsoleInput::Cooked;
    let image = guest::image(pressure::image_of(&program)?, ImageAs::Disk);
    // More than the device takes at once, both ways, and than the line discipline keeps.
    let input: String = (0..3000).map(|line| format!("line {line}\n")).collect();
    let stdin = Stdin::Bytes(input.clone().into());
    let run = guest::run(&Machine { machine_type, cpus: 2, terminal, image, stdin, ..machine })?;
    Ok(run.expect(input.as_bytes(), 0))
}

/// Any bytes reach a program and come back, when the host's input is no terminal.
fn binary(machine_type: MachineType, terminal: bool) -> Result<Verdict, String> {
    let program = guest::compiled("binary-input")?;
    let mut machine = guest::machine("/program", BINARY_LIMIT_S);
    machine.boot.stdin = ConsoleInput::Pipe;
    let image = guest::image(pressure::image_of(&program)?, ImageAs::Disk);
    // Each byte after each other, ^D, ^C, returns and lines without an end among them.
    let pairs = (0..=255u8).flat_map(|first| (0..=255u8).flat_map(move |second| [first, second]));
    let input: Vec<u8> = pairs.cycle().take(1 << 20).collect();
    let stdin = Stdin::Bytes(input.clone());
    if terminal {
        // QEMU drops what a virtio terminal writes faster than the host reads.
        machine.boot.args = vec!["hash".into()];
    }
    let run = guest::run(&Machine { machine_type, cpus: 2, terminal, image, stdin, ..machine })?;
    if terminal {
        let hash = input.iter().fold(2_166_136_261, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
        return Ok(run.expect(format!("{} {hash:08x}\n", input.len()).as_bytes(), 0));
    }
    if run.exit_code() == Some(0) && run.output == input {
        return Ok(Verdict::Passed);
    }
    let right = run.output.iter().zip(&input).take_while(|(got, sent)| got == sent).count();
    let why = format!("{:?}; {} bytes came back, the first {right} right", run.report.outcome, run.output.len());
    Ok(Verdict::Failed(why))
}

/// A panic reaches it, too.
fn panics_on_the_terminal(machine_type: MachineType) -> Result<Verdict, String> {
    let console = Some(ConsoleDevice::Virtio);
    let boot = BootConfig { test: Some("fatal-panic".into()), console, ..BootConfig::default() };
    let machine = Machine::new(KERNEL, boot);
    let run = guest::run(&Machine { machine_type, cpus: 2, terminal: true, time_limit: Some(LIMIT), ..machine })?;
    let text = String::from_utf8_lossy(&run.output).into_owned();
    let is_there = text.contains("asked for") && text.contains("machine::selftest::fatal::run");
    Ok(match run.report.outcome {
        Outcome::Panicked { .. } if is_there => Verdict::Passed,
        ref outcome => run.fail(format!("ended as {outcome:?}, expected a panic with its backtrace")),
    })
}
