//! The story of `demitasse run`: build the image if it is not there, boot it, pass on what it says.
use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use abi::{BootConfig, ConsoleInput};
use image::{
    Cache, Fingerprint, Progress, Tree,
    app::{self, Jar},
    erofs,
    jdk::{self, Jdk},
};
use vmm::{Accel, Event, Image, ImageAs, Machine, MachineType, Outcome, Report, Stdin, accel};

use crate::{
    arguments::{AccelName, MachineName, MachineOptions, RunOptions},
    bar::Bar,
    failure::{self, Failure},
    places, timing,
};

/// Built images that are kept; beyond it the least recently used go.
const KEPT_IMAGES_BYTES: u64 = 6 << 30;
const DEFAULT_CPUS: u32 = 2;
/// What each application finds in its environment, before the user's own.
const ENVIRONMENT: [&str; 3] =
    ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"];

pub fn run(options: &RunOptions) -> Result<u8, Failure> {
    let kernel = places::kernel(options.machine.kernel.as_deref())?;
    let cache = Cache::open()?;
    let (image, boot) = match &options.rootfs {
        Some(folder) => program_in(folder, options, &cache)?,
        None => jar(options, &cache)?,
    };
    let mut machine = machine(&options.machine, kernel, boot, options.exact, &cache)?;
    machine.stdin = Stdin::Inherited;
    // A jar means HotSpot, which patches code that other CPUs run.
    machine.one_thread = options.rootfs.is_none();
    machine.boot.seed = options.seed;
    machine.boot.strace = options.strace;
    machine.boot.timing = options.timing;
    machine.boot.exits = options.timing;
    let given_as = if options.exact { ImageAs::Module } else { ImageAs::Disk };
    check_module_fits(&image.path, given_as, machine.memory_bytes)?;
    machine.image = Some(Image { path: image.path.clone(), given_as });
    let report = boot_and_pass_on(&machine)?;
    if options.timing {
        timing::print(&report);
    }
    exit_code(report.outcome)
}

/// The image of a jar on its JDK, and how it is started.
fn jar(options: &RunOptions, cache: &Cache) -> Result<(KeptImage, BootConfig), Failure> {
    let jar = Jar::open(Path::new(&options.target[0]))?;
    let jvm_host = places::jvm_host()?;
    let bar = Bar::default();
    let jdk = Jdk::obtain(&options.jdk, cache, &bar)?;
    let unreadable = |error: io::Error| Failure::new(failure::TOOL_FAILED, error.to_string(), "check its permissions");
    let name = jar.path().file_name().unwrap_or_default().as_encoded_bytes();
    let print = || {
        let print = jdk::fingerprint(&jdk).part(name);
        print.file(jar.path()).and_then(|print| print.file(&jvm_host)).map_err(unreadable)
    };
    let image = obtain_image(&print, cache, &bar, || Ok(app::tree(&jar, &jdk, &jvm_host, &[])?))?;
    let boot = BootConfig {
        init: Some(app::JVM_HOST.to_string()),
        args: options.target[1..].to_vec(),
        env: environment(options),
        cwd: Some(app::APP_FOLDER.to_string()),
        ..BootConfig::default()
    };
    Ok((image, boot))
}

/// The image of a folder, and how the program in it is started.
fn program_in(folder: &Path, options: &RunOptions, cache: &Cache) -> Result<(KeptImage, BootConfig), Failure> {
    let program = &options.target[0];
    let mut tree = Tree::new();
    if !folder.is_dir() {
        let error = format!("{}: no such folder", folder.display());
        return Err(Failure::new(failure::TOOL_FAILED, error, "give the folder that is to be the machine's root"));
    }
    tree.add_host_tree("/", folder, &|_| true)?;
    if !program.starts_with('/') || !tree.contains(program) {
        let error = format!("{program}: no such program in {}", folder.display());
        return Err(Failure::new(failure::NOTHING_TO_RUN, error, "give its absolute path within the folder"));
    }
    let print = || Ok(tree.fingerprint()?);
    let image = obtain_image(&print, cache, &Bar::default(), || Ok(tree.clone()))?;
    let boot = BootConfig {
        init: Some(program.clone()),
        args: options.target[1..].to_vec(),
        env: environment(options),
        cwd: Some("/".to_string()),
        ..BootConfig::default()
    };
    Ok((image, boot))
}

/// The user's own last: of two with one name, programs take either the first or the last, so the
/// default is left out.
fn environment(options: &RunOptions) -> Vec<String> {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_string();
    let given: Vec<String> = options.env.iter().map(|pair| name(pair)).collect();
    let defaults = ENVIRONMENT.iter().filter(|pair| !given.contains(&name(pair))).map(|pair| pair.to_string());
    defaults.chain(options.env.iter().cloned()).collect()
}

/// An image in the cache. Nobody deletes it while this is there.
struct KeptImage {
    path: PathBuf,
    _held: File,
}

/// The image of what `print` is the fingerprint of, built if it is not in the cache.
fn obtain_image(
    print: &dyn Fn() -> Result<Fingerprint, Failure>,
    cache: &Cache,
    bar: &Bar,
    tree: impl FnOnce() -> Result<Tree, Failure>,
) -> Result<KeptImage, Failure> {
    let images = cache.folder("images")?;
    let name = print()?.name();
    let path = images.join(format!("{name}.erofs"));
    let held = match hold_whole(cache, &path)? {
        Some(held) => held,
        None => {
            let _lock = cache.lock("images", bar)?;
            match hold_whole(cache, &path)? {
                Some(held) => held,
                None => build_image(&path, &name, print, cache, bar, &tree()?)?,
            }
        }
    };
    // Neither matters to this run: the order of deletion, and the size of the cache.
    let _ = held.set_modified(SystemTime::now());
    let _ = cache.trim(&images, KEPT_IMAGES_BYTES);
    Ok(KeptImage { path, _held: held })
}

/// `None`: the image is not there, or a host that crashed has kept only a part of it.
fn hold_whole(cache: &Cache, path: &Path) -> Result<Option<File>, Failure> {
    let unreadable = |error: io::Error| {
        let text = format!("{}: {error}", path.display());
        Failure::new(failure::TOOL_FAILED, text, "delete it, or set DEMITASSE_CACHE to a folder of yours")
    };
    let Some(mut held) = cache.hold(path).map_err(unreadable)? else { return Ok(None) };
    let len = held.metadata().map_err(unreadable)?.len();
    Ok((erofs::image_bytes(&mut held).map_err(unreadable)? == Some(len)).then_some(held))
}

/// Under the lock. What changes while it is written must not stand under the name of what it was.
fn build_image(
    path: &Path,
    name: &str,
    print: &dyn Fn() -> Result<Fingerprint, Failure>,
    cache: &Cache,
    bar: &Bar,
    tree: &Tree,
) -> Result<File, Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let unusable = |error: io::Error| Failure::from(erofs::WriteError::Output(error));
    cache.remove_leftovers(folder, erofs::UNFINISHED).map_err(unusable)?;
    let new = folder.join(format!("{}image", erofs::UNFINISHED));
    let done = std::cell::Cell::new(0);
    bar.begin("building the image", tree.file_bytes());
    erofs::write_file(tree, &new, &|bytes| {
        done.set(done.get() + bytes);
        bar.reached(done.get());
    })?;
    bar.end();
    if print()?.name() != name {
        // Nothing more can be done about it; the next build tries again.
        let _ = std::fs::remove_file(new);
        let error = "what belongs into the image changed while it was written";
        return Err(Failure::new(failure::TOOL_FAILED, error, "try again when nothing writes to it"));
    }
    // Held before it has a name under which it could be deleted to save space.
    let held = hold_whole(cache, &new)?.ok_or_else(|| {
        let error = format!("{}: it is gone as soon as it was written", new.display());
        Failure::new(failure::TOOL_FAILED, error, "let nothing else delete files in the cache meanwhile")
    })?;
    std::fs::rename(new, path).map_err(unusable)?;
    Ok(held)
}

/// The machine that the options describe, without an image.
pub fn machine(
    options: &MachineOptions,
    kernel: PathBuf,
    boot: BootConfig,
    exact: bool,
    cache: &Cache,
) -> Result<Machine, Failure> {
    let accel = match options.accel {
        AccelName::Kvm => Accel::Kvm,
        AccelName::Tcg => Accel::Tcg,
        AccelName::Auto if exact => Accel::Tcg,
        AccelName::Auto => {
            let choice = accel::choose(&kernel, options.qemu.as_deref(), &cache.folder("accel")?);
            if let Some(reason) = choice.reason {
                failure::say(format_args!("demitasse: slow, by emulation: KVM does not work here ({reason})"));
            }
            choice.accel
        }
    };
    let mut machine = Machine::new(kernel, boot);
    machine.qemu = options.qemu.clone();
    machine.machine_type = match options.machine {
        MachineName::Q35 => MachineType::Q35,
        MachineName::Pc => MachineType::Pc,
        MachineName::Microvm => MachineType::Microvm,
        MachineName::MicrovmPcie => MachineType::MicrovmPcie,
    };
    machine.memory_bytes = options.memory;
    machine.cpus = options.cpus.unwrap_or(if exact { 1 } else { DEFAULT_CPUS });
    machine.accel = accel;
    machine.bios = options.bios.clone();
    machine.time_limit = options.time_limit;
    machine.exact = exact;
    machine.boot.log_level = options.loglevel;
    debugging(options, &mut machine);
    // The user's terminal edits and echoes lines itself.
    machine.boot.stdin = if io::stdin().is_terminal() { ConsoleInput::Cooked } else { ConsoleInput::Pipe };
    Ok(machine)
}

/// Lets gdb and QEMU's own commands in, and says how.
fn debugging(options: &MachineOptions, machine: &mut Machine) {
    if let Some(port) = options.gdb {
        machine.extra_arguments.extend(["-gdb".into(), format!("tcp:127.0.0.1:{port}"), "-S".into()]);
        let symbols = machine.kernel.with_extension("debug");
        let symbols = if symbols.exists() { &symbols } else { &machine.kernel };
        failure::say(format_args!("demitasse: waits for gdb: gdb {} -ex 'target remote :{port}'", symbols.display()));
    }
    if let Some(socket) = &options.qmp {
        // A comma in an option's value is written twice.
        let socket = socket.display().to_string().replace(',', ",,");
        machine.extra_arguments.extend(["-qmp".into(), format!("unix:{socket},server=on,wait=off")]);
    }
}

/// A module lies in the machine's memory, whole.
fn check_module_fits(image: &Path, given_as: ImageAs, memory_bytes: u64) -> Result<(), Failure> {
    let len = image.metadata().map_or(0, |meta| meta.len());
    if given_as == ImageAs::Module && len >= memory_bytes {
        let error = format!("the image has {} MiB and lies in the machine's memory", len >> 20);
        return Err(Failure::new(failure::TOOL_FAILED, error, format!("give it more: -m {}M", (len >> 20) + 512)));
    }
    Ok(())
}

fn boot_and_pass_on(machine: &Machine) -> Result<Report, Failure> {
    let mut out = io::stdout().lock();
    let report = machine.run(&mut |event| {
        if let Event::Output { bytes, .. } = event {
            // Who reads the output may have gone; the application goes on, as behind a closed pipe
            // that it ignores, and its exit code still counts.
            let _ = out.write_all(bytes).and_then(|()| out.flush());
        }
    })?;
    Ok(report)
}

fn exit_code(outcome: Outcome) -> Result<u8, Failure> {
    let (code, error, help) = match outcome {
        Outcome::Exited { code, .. } => return Ok(code),
        Outcome::Panicked { cause } => (
            failure::KERNEL_PANIC,
            format!("the guest kernel panicked: {cause}"),
            "this is a bug in Demitasse: please report it with the lines above",
        ),
        Outcome::OutOfMemory => {
            (failure::KERNEL_PANIC, "the machine ran out of memory".to_string(), "give it more, such as -m 2G")
        }
        Outcome::BadBoot { .. } => (
            failure::NOT_STARTED,
            "the guest kernel could not start".to_string(),
            "its reason is above; --loglevel info tells more",
        ),
        Outcome::TestFailed => (failure::TOOL_FAILED, "a kernel test failed".to_string(), "its reason is above"),
        Outcome::TimedOut => (failure::TIMED_OUT, "the time limit passed".to_string(), "see --time-limit"),
        Outcome::QemuFailed { status, message } => (
            failure::NOT_STARTED,
            match status {
                Some(status) => format!("QEMU failed ({status}): {message}"),
                None => format!("QEMU was killed: {message}"),
            },
            "check that QEMU 7.2 or later runs here, and that the host has the memory that -m asks for",
        ),
    };
    Err(Failure::new(code, error, help))
}
