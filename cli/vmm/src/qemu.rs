//! QEMU's command line for a machine.
use std::{
    ffi::{OsStr, OsString},
    os::fd::RawFd,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use abi::{BootConfig, Root, control::PORT_NAME, exit};

use crate::{Accel, Image, ImageAs, Machine, MachineType, VmmError};

/// Start of the clock in an exact run, 2026-01-01 UTC: for QEMU, and in nanoseconds.
const EXACT_START: &str = "2026-01-01";
const EXACT_START_NS: u64 = 1_767_225_600_000_000_000;

/// QEMU's arguments, after its own name. `control`: a connected socket that QEMU inherits, for the
/// control channel.
pub(crate) fn arguments(machine: &Machine, control: Option<RawFd>) -> Result<Vec<OsString>, VmmError> {
    if machine.exact && (machine.cpus != 1 || machine.accel != Accel::Tcg) {
        return Err(VmmError::NotExact);
    }
    let mut list = Arguments::default();
    list.flag("-no-user-config").flag("-nodefaults").flag("-no-reboot");
    list.pair("-display", "none").pair("-monitor", "none");
    let isa_serial = if machine.terminal { ",isa-serial=off" } else { "" };
    match machine.machine_type {
        // The others have no serial port unless they are given one.
        MachineType::Microvm | MachineType::MicrovmPcie => {
            list.pair("-machine", &format!("{}{isa_serial}", machine_type(machine.machine_type)))
        }
        other => list.pair("-machine", machine_type(other)),
    };
    list.pair("-cpu", machine.cpu_model.as_deref().unwrap_or(cpu_model(machine.accel)));
    list.pair("-smp", &machine.cpus.to_string());
    // QEMU's unit is MiB without a suffix; K lets any page count through.
    list.pair("-m", &format!("{}K", machine.memory_bytes.div_ceil(1024)));
    accelerator(&mut list, machine);
    if let Some(bios) = &machine.bios {
        list.pair("-bios", bios);
    }
    list.pair("-kernel", existing(&machine.kernel)?);
    list.pair("-chardev", "stdio,id=console,signal=off");
    if !machine.terminal {
        list.pair("-serial", "chardev:console");
    }
    list.pair("-device", &format!("isa-debug-exit,iobase={:#x},iosize=4", exit::PORT));
    list.pair("-device", &format!("virtio-rng{}", bus_suffix(machine.machine_type)));
    // In an exact run its timing would differ each time; the kernel leaves it alone there, too.
    if !machine.exact {
        let balloon = bus_suffix(machine.machine_type);
        list.pair("-device", &format!("virtio-balloon{balloon},free-page-reporting=on,deflate-on-oom=on"));
    }
    if control.is_some() || machine.terminal {
        list.pair("-device", &format!("virtio-serial{},max_ports=2", bus_suffix(machine.machine_type)));
    }
    if machine.terminal {
        list.pair("-device", "virtconsole,chardev=console,nr=0");
    }
    if let Some(socket) = control {
        list.pair("-chardev", &format!("socket,id=control,fd={socket}"));
        list.pair("-device", &format!("virtserialport,chardev=control,nr=1,name={PORT_NAME}"));
    }
    if let Some(image) = &machine.image {
        add_image(&mut list, image, machine.machine_type)?;
    }
    list.pair("-append", &boot_config(machine).to_cmdline());
    list.0.extend(machine.extra_arguments.iter().map(OsString::from));
    Ok(list.0)
}

/// The machine's boot configuration with what only the runner knows.
fn boot_config(machine: &Machine) -> BootConfig {
    let mut boot = machine.boot.clone();
    boot.exact |= machine.exact;
    if let Some(image) = &machine.image {
        boot.root = Some(match image.given_as {
            ImageAs::Disk => Root::Vda,
            ImageAs::Module => Root::Module,
        });
    }
    if boot.epoch_ns.is_none() && machine.exact {
        boot.epoch_ns = Some(EXACT_START_NS);
    } else if boot.epoch_ns.is_none() && matches!(machine.machine_type, MachineType::Microvm | MachineType::MicrovmPcie)
    {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        boot.epoch_ns = Some(now.as_nanos() as u64);
    }
    boot
}

fn machine_type(machine_type: MachineType) -> &'static str {
    match machine_type {
        MachineType::Q35 => "q35",
        MachineType::Pc => "pc",
        MachineType::Microvm => "microvm",
        MachineType::MicrovmPcie => "microvm,pcie=on",
    }
}

/// TCG of QEMU 7.2 corrupts the flags after `cmpxchg16b` on one CPU, so it is not offered there.
fn cpu_model(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "qemu64,-cx16",
    }
}

fn accelerator(list: &mut Arguments, machine: &Machine) {
    match machine.accel {
        Accel::Kvm => drop(list.pair("-accel", "kvm")),
        Accel::Tcg if machine.exact => {
            list.pair("-accel", "tcg,thread=single").pair("-icount", "shift=0,sleep=off");
            list.pair("-rtc", &format!("base={EXACT_START},clock=vm"));
        }
        Accel::Tcg if machine.one_thread => drop(list.pair("-accel", "tcg,thread=single")),
        Accel::Tcg => drop(list.pair("-accel", "tcg")),
    }
}

fn add_image(list: &mut Arguments, image: &Image, machine_type: MachineType) -> Result<(), VmmError> {
    let path = existing(&image.path)?;
    match image.given_as {
        ImageAs::Module => drop(list.pair("-initrd", path)),
        ImageAs::Disk => {
            let mut drive = OsString::from("if=none,id=root,format=raw,readonly=on,file=");
            // A comma in an option's value is written twice.
            drive.push(path.to_string_lossy().replace(',', ",,"));
            list.pair("-drive", &drive);
            list.pair("-device", &format!("virtio-blk{},drive=root", bus_suffix(machine_type)));
        }
    }
    if machine_type == MachineType::Microvm {
        list.pair("-global", "virtio-mmio.force-legacy=false");
    }
    Ok(())
}

/// Modern virtio only, over the machine's bus.
fn bus_suffix(machine_type: MachineType) -> &'static str {
    match machine_type {
        MachineType::Q35 | MachineType::Pc | MachineType::MicrovmPcie => "-pci,disable-legacy=on",
        MachineType::Microvm => "-device",
    }
}

fn existing(path: &Path) -> Result<&Path, VmmError> {
    if path.is_file() { Ok(path) } else { Err(VmmError::NoFile(path.into())) }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair<V: AsRef<OsStr> + ?Sized>(&mut self, option: &str, value: &V) -> &mut Self {
        self.0.push(option.into());
        self.0.push(value.as_ref().into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine::new("/dev/null", BootConfig { init: Some("/bin/x".into()), ..BootConfig::default() })
    }

    #[test]
    fn an_exact_machine_has_one_cpu_and_tcg() {
        let mut machine = Machine { exact: true, cpus: 2, ..machine() };
        assert!(matches!(arguments(&machine, None), Err(VmmError::NotExact)));
        machine.cpus = 1;
        machine.accel = Accel::Kvm;
        assert!(matches!(arguments(&machine, None), Err(VmmError::NotExact)));
    }

    #[test]
    fn the_runner_adds_where_the_image_is_and_the_time() {
        let image = |given_as| Some(Image { path: "/x".into(), given_as });
        let disk = Machine { image: image(ImageAs::Disk), ..machine() };
        assert_eq!(boot_config(&disk).root, Some(Root::Vda));
        assert_eq!(boot_config(&disk).epoch_ns, None);
        let exact = Machine { image: image(ImageAs::Module), exact: true, ..machine() };
        let boot = boot_config(&exact);
        assert_eq!((boot.root, boot.epoch_ns, boot.exact), (Some(Root::Module), Some(EXACT_START_NS), true));
        let microvm = Machine { machine_type: MachineType::Microvm, ..machine() };
        assert!(boot_config(&microvm).epoch_ns.is_some());
    }
}
