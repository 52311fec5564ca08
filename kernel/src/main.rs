#![allow(unsafe_code, reason = "`kernel_main` is exported: the machine calls it by name")]
//! The kernel: the boot story, from a machine that can run tasks to the first program.
#![no_std]
#![no_main]

extern crate alloc;

mod root;

use alloc::vec::Vec;

use abi::{BootConfig, LogLevel};
use logic::acpi::Acpi;
use machine::{
    boot::{self, BootInfo},
    console, cpu,
    drivers::{Wanted, control, power},
    tasks,
};
use rt::task::TaskSpec;
use spin::Once;

#[global_allocator]
static HEAP: machine::memory::heap::KernelHeap = machine::memory::heap::KernelHeap;

struct Boot {
    config: BootConfig,
    module: Option<(u64, u64)>,
    firmware: Acpi,
}

static BOOT: Once<Boot> = Once::new();

/// The machine's boot code ends here, on the boot CPU: brings the other CPUs up, starts the first
/// kernel task, and idles.
#[unsafe(no_mangle)]
fn kernel_main(info: BootInfo) -> ! {
    let config = BootConfig::parse(&info.command_line)
        .unwrap_or_else(|error| boot::malformed(abi::exit::BAD_COMMAND_LINE, format_args!("{error}")));
    console::set_level(level(config.log_level));
    if config.console == Some(abi::ConsoleDevice::Virtio) {
        console::wait_for_terminal();
    }
    if config.exits {
        cpu::exits::report_at_end();
    }
    let counter_at_entry = machine::time::counter();
    boot::init_time(config.exact, config.seed);
    log::info!("{}", cpu::Features);
    phase_at(&config, "entry", boot::entered_at());
    phase_at(&config, "kernel", counter_at_entry);
    let firmware = boot::firmware::read(&info);
    boot::firmware::apply(&firmware);
    machine::time::set_reference(firmware.pm_timer);
    console::enable_input(&firmware);
    set_wall_clock(config.epoch_ns, firmware.no_cmos_clock);
    let processors: Vec<u32> = firmware.cpus.iter().filter(|cpu| cpu.enabled).map(|cpu| cpu.apic_id).collect();
    cpu::smp::start(&processors);
    machine::memory::paging::drop_identity(cpu::smp::IDENTITY_END);
    phase(&config, "processors");
    tasks::start_reaper();
    BOOT.call_once(|| Boot { config, module: info.module, firmware });
    let spec = TaskSpec::kernel("main", first_task);
    if tasks::spawn(spec, &mut |_| ()).is_err() {
        boot::out_of_memory(format_args!("none for the first task"));
    }
    tasks::idle_loop()
}

/// From the command line, else the hypervisor's, else the machine's clock, else 1970, which is said once.
fn set_wall_clock(epoch_ns: Option<u64>, no_cmos_clock: bool) {
    let cmos = || if no_cmos_clock { None } else { machine::drivers::rtc::read_epoch_ns() };
    match epoch_ns.or_else(machine::time::host_epoch_ns).or_else(cmos) {
        Some(epoch_ns) => machine::time::set_realtime(epoch_ns),
        None => log::warn!("no real-time clock and no epoch_ns: the wall clock starts at 1970"),
    }
}

fn level(level: LogLevel) -> log::LevelFilter {
    match level {
        LogLevel::Off => log::LevelFilter::Off,
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warn => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
        LogLevel::Trace => log::LevelFilter::Trace,
    }
}

/// The part of boot that may sleep: tests, or the root file system and the first program.
fn first_task(_: usize) {
    let Some(boot) = BOOT.get() else { return };
    phase(&boot.config, "first-task");
    let wanted = Wanted {
        disks: boot.config.root != Some(abi::Root::Module),
        outside_world: !boot.config.exact,
        terminal: console::waits_for_terminal(),
    };
    machine::drivers::start_devices(&boot.firmware, &boot.config.mmio_devices, wanted);
    if let Some(name) = &boot.config.test {
        if !machine::selftest::run(name) {
            power::off(abi::exit::TEST_FAILED);
        }
        power::exit(0);
    }
    machine::memory::reclaim::add_reclaimer(fs::cache::reclaim);
    for disk in machine::drivers::all_disks() {
        if fs::block::register(disk.clone()).is_none() {
            log::warn!("more disks than letters: one has no device file");
        }
    }
    let vfs = match root::device(boot.config.root, boot.module).and_then(root::mount) {
        Ok(vfs) => vfs,
        Err(error) => boot::malformed(error.exit_code, format_args!("{}", error.text)),
    };
    phase(&boot.config, "root");
    if boot.config.stdin == abi::ConsoleInput::Cooked {
        let console = fs::console::Console::get();
        console.set_settings(fs::console::Settings { echo: false, signals: false, ..console.settings() });
    }
    if boot.config.stdin != abi::ConsoleInput::Terminal {
        machine::console::ask_for_input();
    }
    if let Err(error) = libc_shim::start_init(&boot.config, vfs) {
        boot::malformed(abi::exit::BAD_BOOT, format_args!("{error}"));
    }
    phase(&boot.config, "init");
}

/// Reports that a boot phase is reached, if the host asked for it.
fn phase(config: &BootConfig, name: &str) {
    phase_at(config, name, machine::time::counter());
}

fn phase_at(config: &BootConfig, name: &str, tsc: u64) {
    if config.timing {
        let frame = abi::control::Frame::Phase { name, ns: machine::time::ticks_to_ns(tsc), tsc };
        control::send(frame);
    }
}
