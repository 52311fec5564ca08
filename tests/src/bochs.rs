//! The kernel on Bochs, an emulator with CPUs that QEMU's translator does not have: x2APIC, TSC deadlines
//! and AVX-512 really run there, and a TLB that keeps what it was not told to forget.
//!
//! Bochs has neither PVH nor virtio. It boots from a CD by GRUB and `tests/bochs/loader.c`, with the image as
//! a boot module and the serial port as console. Time is virtual: the host's load shows nowhere.
//! Debian's Bochs has a debugger built in, which is told to go on, and shows its display on a terminal.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use abi::{
    BootConfig, LogLevel, Root,
    control::{Decoder, Frame, Piece},
};
use image::app;

use crate::{
    guest::{self, IMAGES, KERNEL},
    suite::{Slice, Suite, Verdict},
};

/// Ten times what a machine that does nothing else needs.
const LIMIT: &str = "900s";
const HASWELL: &str = "corei7_haswell_4770";
/// Says a rate of its counter that is not true here; the ACPI timer tells.
const SKYLAKE: &str = "corei7_skylake_x";
/// Says its counter's rate exactly.
const ICE_LAKE: &str = "corei7_icelake_u";
const RYZEN: &str = "ryzen";
/// Keeps the modules behind it above where the kernel goes.
const PADDING_BYTES: usize = 8 << 20;
const MEMORY_MIB: u32 = 1024;

pub fn add(suite: &mut Suite) {
    const NEWEST: &str = "x2APIC, timers by TSC deadline, vector state 0xe7";
    for (slice, name, model, cpus, features) in [
        (Slice::Default, "haswell", HASWELL, 1, "x2APIC, timers by TSC deadline, vector state 0x7"),
        (Slice::Default, "skylake", SKYLAKE, 2, NEWEST),
        (Slice::Full, "icelake", ICE_LAKE, 4, NEWEST),
        (Slice::Full, "ryzen", RYZEN, 2, "vector state 0x7"),
    ] {
        suite.add(slice, format!("bochs/{name}/{cpus}-cpu"), move || kernel_tests(model, cpus, features));
    }
    suite.add(Slice::Default, "bochs/icelake/java", || hello(&["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"], 2));
    suite.add(Slice::Full, "bochs/icelake/java-default-flags", || hello(&[], 4));
}

fn kernel_tests(model: &str, cpus: u32, features: &str) -> Verdict {
    let boot = BootConfig { test: Some("all".into()), log_level: LogLevel::Info, ..BootConfig::default() };
    judged(&Bochs { model, cpus, boot, image: None }, |end| {
        if !end.console.contains(features) {
            return Err(format!("the console does not say {features}"));
        }
        match end.tests.iter().find(|(_, ok)| !ok) {
            Some((failed, _)) => Err(format!("{failed} failed")),
            None if end.tests.is_empty() => Err("no test was reported".into()),
            None => Ok(()),
        }
    })
}

/// The JVM, with all the vectors that it finds.
fn hello(jvm_arguments: &[&str], cpus: u32) -> Verdict {
    let image = match guest::java_image("hello", jvm_arguments) {
        Ok(image) => image,
        Err(why) => return Verdict::Failed(why),
    };
    let boot = BootConfig {
        init: Some(app::JVM_HOST.into()),
        cwd: Some(app::APP_FOLDER.into()),
        root: Some(Root::Module),
        ..BootConfig::default()
    };
    judged(&Bochs { model: ICE_LAKE, cpus, boot, image: Some(image) }, |end| {
        if end.console == "Hello\n" { Ok(()) } else { Err(format!("the console says {:?}", end.console)) }
    })
}

fn judged(machine: &Bochs<'_>, check: impl Fn(&End) -> Result<(), String>) -> Verdict {
    let end = match machine.run() {
        Ok(end) => end,
        Err(why) => return Verdict::Failed(why),
    };
    let orderly = if end.exit_code == Some(0) { Ok(()) } else { Err(format!("ended with {:?}", end.exit_code)) };
    match orderly.and_then(|()| check(&end)) {
        Ok(()) => Verdict::Passed,
        Err(why) => Verdict::Failed(format!("{why}\nthe console's end:\n{}", guest::tail(end.console.as_bytes()))),
    }
}

struct Bochs<'a> {
    /// As Bochs names it.
    model: &'a str,
    cpus: u32,
    boot: BootConfig,
    image: Option<PathBuf>,
}

/// What came over the serial port.
#[derive(Default)]
struct End {
    console: String,
    /// Name, and whether it passed.
    tests: Vec<(String, bool)>,
    exit_code: Option<u8>,
}

impl Bochs<'_> {
    fn run(&self) -> Result<End, String> {
        let folder = Path::new(IMAGES).join("bochs");
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let (cd, serial, log) = (folder.join("cd.iso"), folder.join("serial"), folder.join("log"));
        self.make_cd(&folder.join("cd"), &cd)?;
        // Bochs appends to nothing, but does not create what it never writes to.
        write(&serial, b"")?;
        let configuration = format!(
            "megs: {MEMORY_MIB}\n\
             romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
             vgaromimage: file=/usr/share/vgabios/vgabios.bin\n\
             cpu: model={}, count={}, ips=50000000, reset_on_triple_fault=0, quantum=5\n\
             clock: sync=none, time0=1700000000\n\
             ata0-master: type=cdrom, path={}, status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=file, dev={}\n\
             display_library: term\n\
             panic: action=fatal\n\
             log: {}\n",
            self.model,
            self.cpus,
            cd.display(),
            serial.display(),
            log.display()
        );
        let (settings, commands) = (folder.join("settings"), folder.join("commands"));
        write(&settings, configuration.as_bytes())?;
        write(&commands, b"continue\n")?;
        let bochs = format!("bochs -q -f {} -rc {}", settings.display(), commands.display());
        // A powered-off machine ends Bochs with an error: what counts came over the serial port.
        // In the foreground: its process group is this process', and so it ends with it.
        let mut limited = Command::new("timeout");
        limited.args(["--foreground", LIMIT, "script", "-qec", &bochs, "/dev/null"]).env("TERM", "vt100");
        let ended = output(&mut limited)?;
        if ended.status.code() == Some(124) {
            return Err(format!("not done within {LIMIT}; {} has what came until then", serial.display()));
        }
        let said = fs::read(&serial).map_err(|error| format!("{}: {error}", serial.display()))?;
        if said.is_empty() {
            return Err(format!("nothing came; {} says why", log.display()));
        }
        let _ = fs::remove_file(&cd);
        Ok(End::of(&said))
    }

    /// A CD with GRUB, which loads the loader, the kernel and the image.
    fn make_cd(&self, folder: &Path, cd: &Path) -> Result<(), String> {
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        let boot = folder.join("boot");
        fs::create_dir_all(boot.join("grub")).map_err(|error| format!("{}: {error}", boot.display()))?;
        let mut loader = Command::new("gcc");
        loader.args(["-m32", "-O1", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-pic"]);
        loader.args(["-fno-stack-protector", "-fcf-protection=none", "-nostdlib", "-static"]);
        // Far above everything else; one segment, as it has no page tables to protect anything with.
        loader.args(["-Wl,--build-id=none,-N,--no-warn-rwx-segments,-Ttext=0x30000000"]);
        loader.args(["-Wl,--section-start=.multiboot=0x2ffff000", "-o"]).arg(boot.join("loader.elf"));
        succeed(loader.args(["tests/bochs/start.S", "tests/bochs/loader.c"]))?;
        write(&boot.join("padding"), &vec![0; PADDING_BYTES])?;
        let copy = |from: &Path, name: &str| {
            fs::copy(from, boot.join(name)).map(|_| ()).map_err(|error| format!("{}: {error}", from.display()))
        };
        copy(Path::new(KERNEL), "kernel.elf")?;
        let mut menu = format!(
            "set timeout=0\nmenuentry demitasse {{\nmultiboot /boot/loader.elf\nmodule /boot/padding\n\
             module /boot/kernel.elf {}\n",
            self.boot.to_cmdline()
        );
        if let Some(image) = &self.image {
            copy(image, "image")?;
            menu += "module /boot/image\n";
        }
        write(&boot.join("grub/grub.cfg"), (menu + "}\n").as_bytes())?;
        let mut pack = Command::new("grub-mkrescue");
        pack.arg("--modules=multiboot normal iso9660 biosdisk").arg("-o").args([cd, folder]);
        succeed(&mut pack)
    }
}

impl End {
    fn of(serial: &[u8]) -> Self {
        let mut end = Self::default();
        let mut take = |piece: Piece<'_>| match piece {
            Piece::Plain(bytes) => end.console += &String::from_utf8_lossy(bytes),
            Piece::Frame(Frame::Test { name, ok, .. }) => end.tests.push((name.into(), ok)),
            Piece::Frame(Frame::Exit { code, .. }) => end.exit_code = Some(code),
            Piece::Frame(_) => {}
        };
        let mut decoder = Decoder::new();
        decoder.push(serial, &mut take);
        decoder.finish(&mut take);
        end
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
}

fn output(command: &mut Command) -> Result<Output, String> {
    command.stdin(std::process::Stdio::null());
    command.output().map_err(|error| format!("{}: {error}", command.get_program().display()))
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let ended = output(command)?;
    if ended.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", command.get_program().display(), String::from_utf8_lossy(&ended.stderr)))
}
