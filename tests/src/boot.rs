//! The smallest program on every machine type, CPU count and kind of image; and exact repetition.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use abi::{BootConfig, exit};
use image::Tree;
use vmm::{ImageAs, Machine, MachineType, Outcome};

use crate::{
    guest::{self, IMAGES, Run},
    kernel,
    suite::{Slice, Suite, Verdict},
};

const LIMIT_S: u64 = 60;
const MIB: u64 = 1 << 20;
/// As after SIGKILL.
const KILLED: u8 = 128 + 9;

pub fn add(suite: &mut Suite) {
    for machine_type in [MachineType::Q35, MachineType::Microvm] {
        for cpus in [1, 2] {
            for given_as in [ImageAs::Disk, ImageAs::Module] {
                let slice = if cpus == 1 || given_as == ImageAs::Disk { Slice::Quick } else { Slice::Default };
                let name = format!("boot/{machine_type:?}/{cpus}-cpu/{given_as:?}").to_lowercase();
                suite.add(slice, name, move || {
                    hello(|machine| Machine { machine_type, cpus, ..with_image(machine, given_as) })
                });
            }
        }
    }
    for (machine_type, cpus) in [
        (MachineType::Pc, 1),
        (MachineType::Pc, 2),
        (MachineType::MicrovmPcie, 2),
        (MachineType::Q35, 8),
        (MachineType::Microvm, 8),
    ] {
        let name = format!("boot/{machine_type:?}/{cpus}-cpu/disk").to_lowercase();
        suite.add(Slice::Default, name, move || {
            hello(|machine| Machine { machine_type, cpus, ..with_image(machine, ImageAs::Disk) })
        });
    }
    // Above 3 GiB, memory has a hole for devices.
    for (machine_type, gib) in
        [(MachineType::Q35, 4), (MachineType::Pc, 4), (MachineType::Q35, 16), (MachineType::Microvm, 16)]
    {
        let name = format!("boot/{machine_type:?}/with-{gib}-gib").to_lowercase();
        suite.add(Slice::Default, name, move || {
            hello(|machine| Machine { machine_type, memory_bytes: gib << 30, ..with_image(machine, ImageAs::Disk) })
        });
    }
    suite.add(Slice::Default, "boot/microvm/in-32-mib", || {
        hello(|machine| Machine {
            machine_type: MachineType::Microvm,
            memory_bytes: 32 * MIB,
            ..with_image(machine, ImageAs::Disk)
        })
    });
    suite.add(Slice::Default, "boot/in-32-mib", || {
        hello(|machine| Machine { memory_bytes: 32 * MIB, ..with_image(machine, ImageAs::Disk) })
    });
    suite.add(Slice::Default, "boot/with-2-gib", || {
        hello(|machine| Machine { memory_bytes: 2048 * MIB, ..with_image(machine, ImageAs::Disk) })
    });
    // This firmware assigns no PCI resources: the kernel does.
    suite.add(Slice::Default, "boot/q35/qboot", || {
        hello(|machine| Machine { bios: Some("qboot.rom".into()), ..with_image(machine, ImageAs::Disk) })
    });
    for machine_type in [MachineType::Q35, MachineType::Microvm, MachineType::MicrovmPcie] {
        let name = format!("boot/{machine_type:?}/network").to_lowercase();
        suite.add(Slice::Default, name, move || network(machine_type));
    }
    suite.add(Slice::Default, "boot/init-is-missing", || missing_init("/no/such/program"));
    suite.add(Slice::Default, "boot/too-little-memory", too_little_memory);
    suite.add(Slice::Default, "boot/exact-repeats", exact);
}

pub fn hello_image() -> Result<PathBuf, String> {
    guest::image_folder()?;
    let path = Path::new(IMAGES).join("hello.erofs");
    let mut tree = Tree::new();
    let built = tree
        .add_file("/hello", "build/conformance/hello-musl", 0o755)
        .map_err(|error| error.to_string())
        .and_then(|()| image::erofs::write_file(&tree, &path, &|_| {}).map_err(|error| error.to_string()));
    built.map(|_| path)
}

fn with_image(machine: Machine, given_as: ImageAs) -> Machine {
    Machine { image: guest::image(Path::new(IMAGES).join("hello.erofs"), given_as), ..machine }
}

fn run_hello(change: &dyn Fn(Machine) -> Machine) -> Result<Run, String> {
    hello_image()?;
    guest::run(&change(guest::machine("/hello", LIMIT_S)))
}

fn hello(change: impl Fn(Machine) -> Machine) -> Verdict {
    match run_hello(&change) {
        Ok(run) => run.expect(b"hello\n", 0),
        Err(why) => Verdict::Failed(why),
    }
}

/// QEMU's user network, cut off from the host's, answers ARP requests.
fn network(machine_type: MachineType) -> Verdict {
    let device = match machine_type {
        MachineType::Microvm => "virtio-net-device,netdev=user",
        _ => "virtio-net-pci,disable-legacy=on,netdev=user",
    };
    let arguments = ["-netdev", "user,id=user,restrict=on", "-device", device];
    let boot = BootConfig { test: Some("net-arp".into()), ..BootConfig::default() };
    let machine = Machine {
        machine_type,
        cpus: 2,
        time_limit: Some(Duration::from_secs(LIMIT_S)),
        extra_arguments: arguments.map(str::to_owned).to_vec(),
        ..Machine::new(guest::KERNEL, boot)
    };
    kernel::check(&machine)
}

/// From a machine that does not even hold the kernel to one that runs the program: each ends with a line
/// that says why it cannot, or in order; none panics or hangs.
fn too_little_memory() -> Verdict {
    const KIB: u64 = 1 << 10;
    let (mut ran, mut spoke) = (0, false);
    for memory_bytes in (2304 * KIB..6 * MIB).step_by(144 << 10) {
        let change = |machine| Machine {
            machine_type: MachineType::Microvm,
            memory_bytes,
            ..with_image(machine, ImageAs::Disk)
        };
        let run = match run_hello(&change) {
            Ok(run) => run,
            Err(why) => return Verdict::Failed(why),
        };
        let output = String::from_utf8_lossy(&run.output).into_owned();
        let says_why = output.contains("demitasse: ");
        match run.report.outcome {
            Outcome::Exited { code: 0, .. } if output == "hello\n" => ran += 1,
            Outcome::Exited { code: KILLED, .. } if output.contains("out of memory") => {}
            Outcome::OutOfMemory | Outcome::BadBoot { .. } if says_why => spoke = true,
            // RAM ends inside the kernel: there is no stack to speak from.
            Outcome::Panicked { ref cause } if !spoke && cause.contains("reset itself") => {}
            ref outcome => return run.fail(format!("with {} KiB: {outcome:?}", memory_bytes / KIB)),
        }
    }
    if ran > 0 { Verdict::Passed } else { Verdict::Failed("it never ran".into()) }
}

/// It must end with a message and without a panic.
fn missing_init(init: &str) -> Verdict {
    let run = hello_image().and_then(|_| guest::run(&with_image(guest::machine(init, LIMIT_S), ImageAs::Disk)));
    match run {
        Ok(run) => match run.report.outcome {
            Outcome::BadBoot { code: exit::BAD_BOOT } if String::from_utf8_lossy(&run.output).contains(init) => {
                Verdict::Passed
            }
            ref outcome => run.fail(format!("ended as {outcome:?}, expected a message that names {init} and BadBoot")),
        },
        Err(why) => Verdict::Failed(why),
    }
}

/// One seed gives one run, to the instruction; another seed the same output.
fn exact() -> Verdict {
    let with_seed = |seed| {
        run_hello(&|mut machine: Machine| {
            machine.exact = true;
            machine.boot.seed = Some(seed);
            with_image(machine, ImageAs::Module)
        })
    };
    let runs = [1, 1, 2].map(with_seed);
    let mut stamps = Vec::new();
    for run in runs {
        let run = match run {
            Ok(run) => run,
            Err(why) => return Verdict::Failed(why),
        };
        match run.expect(b"hello\n", 0) {
            Verdict::Passed => {}
            failed => return failed,
        }
        if let Outcome::Exited { tsc, .. } = run.report.outcome {
            stamps.push(tsc);
        }
    }
    if stamps[0] == stamps[1] {
        Verdict::Passed
    } else {
        Verdict::Failed(format!("two runs with one seed ended at time stamps {} and {}", stamps[0], stamps[1]))
    }
}
