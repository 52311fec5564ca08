//! QEMU's start to the first byte on the console, of this kernel and of another one, alternating.
//!
//! `first-byte=KERNEL` names the other, an ELF file with a PVH note that prints something. Ours prints
//! its first line early in `kernel_main`, once the clock is known. Neither gets an image.

use std::{path::Path, time::Duration};

use abi::{BootConfig, LogLevel};
use vmm::Machine;

use super::{MEASURED_KERNEL, Platform, load, spread};

const ROUNDS: usize = 15;

pub fn take(other: &str) -> Result<(), String> {
    let other = Path::new(other);
    if !other.is_file() {
        return Err(format!("{}: no such file; give a kernel: first-byte=KERNEL", other.display()));
    }
    let kernels = [Path::new(MEASURED_KERNEL), other];
    let mut times = Platform::ALL.map(|_| [Vec::new(), Vec::new()]);
    let before = load();
    for _ in 0..ROUNDS {
        for (&platform, times) in Platform::ALL.iter().zip(&mut times) {
            for (kernel, times) in kernels.iter().zip(times) {
                times.push(first_byte(kernel, platform)?);
            }
        }
    }
    println!("\n{ROUNDS} rounds, alternating; load average before: {before}; after: {}", load());
    println!(
        "\n| machine | this kernel's first line, median | least to most | the other's first byte, median | least to most | difference of medians | of the least |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (platform, [ours, theirs]) in Platform::ALL.iter().zip(&times) {
        let (our_middle, our_least, our_most) = spread(ours).ok_or("no rounds")?;
        let (middle, least, most) = spread(theirs).ok_or("no rounds")?;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "| {} | {:.0} ms | {:.0} to {:.0} ms | {:.0} ms | {:.0} to {:.0} ms | {:+.0} ms | {:+.0} ms |",
            platform.name(),
            ms(our_middle),
            ms(our_least),
            ms(our_most),
            ms(middle),
            ms(least),
            ms(most),
            ms(our_middle) - ms(middle),
            ms(our_least) - ms(least),
        );
    }
    Ok(())
}

fn first_byte(kernel: &Path, platform: Platform) -> Result<Duration, String> {
    let boot = BootConfig { log_level: LogLevel::Info, ..BootConfig::default() };
    let mut machine = platform.apply(Machine::new(kernel, boot));
    machine.time_limit = Some(Duration::from_secs(20));
    // How it ends is no matter: there is nothing to run.
    let report = machine.run(&mut |_| ()).map_err(|error| error.to_string())?;
    report.first_output_after.ok_or_else(|| format!("{} printed nothing: {:?}", kernel.display(), report.outcome))
}
