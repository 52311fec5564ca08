//! Which accelerator works on this machine, found out by booting on it.
//!
//! `/dev/kvm` can exist and not work (nested virtualisation, permissions, seccomp), so its presence
//! proves nothing. The answer is kept until the host is booted again.
use std::{fs, path::Path, time::Duration};

use abi::BootConfig;

use crate::{Machine, Outcome, VmmError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    /// QEMU's translator: works everywhere, many times slower.
    Tcg,
}

/// Boots take milliseconds on KVM; where it hangs, this is how long that costs, once.
const PROBE_LIMIT: Duration = Duration::from_secs(4);

/// What to use, and in one line why it is not KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub accel: Accel,
    pub reason: Option<String>,
}

/// Finds the accelerator. `kept_in` is a folder of a cache in which the answer is remembered.
pub fn choose(kernel: &Path, qemu: Option<&Path>, kept_in: &Path) -> Choice {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return no_kvm(format!("/dev/kvm cannot be opened: {error}"));
    }
    // Without an id there is nothing to remember the answer by: it is found out each time.
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let kept = boot_id.map(|id| kept_in.join(format!("kvm-{}", id.trim())));
    if let Some(answer) = kept.as_ref().and_then(|path| fs::read_to_string(path).ok()) {
        return if answer.is_empty() { Choice { accel: Accel::Kvm, reason: None } } else { no_kvm(answer) };
    }
    let choice = match probe(kernel, qemu) {
        Ok(choice) => choice,
        // That says nothing about KVM, and is not kept.
        Err(error) => return no_kvm(error.to_string()),
    };
    if let Some(path) = kept {
        // Whole or not at all: an empty answer is one. An unwritable cache only means that the next run
        // probes again.
        let new = path.with_extension(std::process::id().to_string());
        let _ = fs::write(&new, choice.reason.as_deref().unwrap_or("")).and_then(|()| fs::rename(&new, path));
    }
    choice
}

/// The kernel is booted with nothing to run: if it gets as far as saying so, KVM works.
fn probe(kernel: &Path, qemu: Option<&Path>) -> Result<Choice, VmmError> {
    let mut machine = Machine::new(kernel, BootConfig::default());
    machine.accel = Accel::Kvm;
    machine.qemu = qemu.map(Path::to_path_buf);
    machine.time_limit = Some(PROBE_LIMIT);
    Ok(match machine.run(&mut |_| {})?.outcome {
        Outcome::BadBoot { .. } | Outcome::Exited { .. } => Choice { accel: Accel::Kvm, reason: None },
        Outcome::QemuFailed { message, .. } => no_kvm(message.lines().next().unwrap_or("QEMU failed").to_string()),
        Outcome::TimedOut => no_kvm("a boot on it did not end".to_string()),
        other => no_kvm(format!("a boot on it failed: {other:?}")),
    })
}

fn no_kvm(reason: String) -> Choice {
    Choice { accel: Accel::Tcg, reason: Some(reason) }
}
