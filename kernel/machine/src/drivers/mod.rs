//! Drivers: the serial port, the wall clock, ways to end the machine, PCI, and virtio devices.
//!
//! Protocols and tables are in `logic` (`pci`, `virtio`, `acpi`), tested there against fake devices;
//! here is what touches hardware, and who waits. Devices are not trusted: nothing that one wrote is
//! used as an index, a length or an address without a check.
use alloc::{sync::Arc, vec::Vec};

use logic::virtio::{VirtioError, device_type};
use rt::{block::BlockDevice, net::NetDevice};
use spin::Once;

use crate::console;

pub mod control;
pub mod discovery;
pub mod disks;
pub mod memory;
pub mod pci;
pub mod power;
pub mod ram_disk;
pub mod rtc;
pub mod serial;
mod virtio_balloon;
pub mod virtio_blk;
pub mod virtio_console;
mod virtio_net;
mod virtio_rng;

static DISKS: Once<Vec<Arc<dyn BlockDevice>>> = Once::new();
static DRIVERS: Once<Vec<Arc<dyn Quiesce>>> = Once::new();
static NETWORKS: Once<Vec<Arc<dyn NetDevice>>> = Once::new();

/// A device whose driver can stop and go on, for snapshots of the machine.
pub trait Quiesce: Send + Sync {
    /// Waits for the requests in flight and resets the device; new requests wait. In task context. False:
    /// it does not finish them, and the driver goes on as before; or it does not stop, and is given up.
    fn quiesce(&self) -> bool;
    /// Starts the device again, with the features it had, and lets requests go on. An error: it is not
    /// the same device any more, and is given up.
    fn resume(&self) -> Result<(), VirtioError>;
}

/// Which devices a run may use. In `exact` mode, what a device gives or when would differ from run
/// to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub disks: bool,
    /// The entropy device, the control channel, the network and the balloon.
    pub outside_world: bool,
    /// The console is a virtio terminal.
    pub terminal: bool,
}

/// Finds and starts the devices. Once, at boot, when interrupt controllers are set up. One that
/// cannot be used is left out with one line in the log.
pub fn start_devices(acpi: &logic::acpi::Acpi, announced: &[abi::boot::MmioDevice], wanted: Wanted) {
    if !wanted.disks && !wanted.outside_world && !wanted.terminal {
        return;
    }
    let mut drivers: Vec<Arc<dyn Quiesce>> = Vec::new();
    let mut found_disks = Vec::new();
    let mut found_networks = Vec::new();
    for found in discovery::find(acpi, announced) {
        let (device_type, bus) = (found.device_type, found.bus());
        let started = match device_type {
            device_type::BLOCK if wanted.disks && found_disks.len() < virtio_blk::DISK_LIMIT => disks::start(found)
                .map(|disk| {
                    found_disks.push(disk.clone() as Arc<dyn BlockDevice>);
                    drivers.push(disk);
                }),
            device_type::CONSOLE if wanted.outside_world || wanted.terminal => {
                virtio_console::start(found, wanted.terminal).map(|driver| drivers.push(driver))
            }
            device_type::ENTROPY if wanted.outside_world => virtio_rng::seed(found),
            device_type::NETWORK if wanted.outside_world => virtio_net::start(found).map(|network| {
                found_networks.push(network.clone() as Arc<dyn NetDevice>);
                drivers.push(network);
            }),
            device_type::BALLOON if wanted.outside_world => {
                virtio_balloon::start(found).map(|driver| drivers.push(driver))
            }
            _ => continue,
        };
        match started {
            Ok(()) => {}
            // Not what its type says: a console without ports.
            Err(VirtioError::NotThere) => log::debug!("nobody drives a {} on {bus}", name(device_type)),
            Err(error) => log::warn!("a {} on {bus} is not used: {error}", name(device_type)),
        }
    }
    DISKS.call_once(|| found_disks);
    NETWORKS.call_once(|| found_networks);
    DRIVERS.call_once(|| drivers);
    if wanted.terminal {
        console::give_up_terminal();
    }
}

/// Stops all devices, each when it has finished what it was asked: for a snapshot of the machine. What is
/// asked of them meanwhile waits for [`resume_devices`]. False: one does not stop, and all go on. (The
/// entropy device was read at boot, and stopped then.)
pub fn quiesce_devices() -> bool {
    let drivers = DRIVERS.get().map_or(&[][..], Vec::as_slice);
    let stopped = drivers.iter().take_while(|driver| driver.quiesce()).count();
    if stopped < drivers.len() {
        drivers[..stopped].iter().for_each(resume);
    }
    stopped == drivers.len()
}

/// Lets all devices go on. One that is not the same any more is given up, with one line in the log.
pub fn resume_devices() {
    DRIVERS.get().into_iter().flatten().for_each(resume);
}

fn resume(driver: &Arc<dyn Quiesce>) {
    if let Err(error) = driver.resume() {
        log::error!("a device did not come back: {error}");
    }
}

fn name(device_type: u32) -> &'static str {
    match device_type {
        device_type::BLOCK => "disk",
        device_type::NETWORK => "network device",
        device_type::CONSOLE => "console",
        device_type::BALLOON => "balloon",
        device_type::ENTROPY => "source of random bytes",
        _ => "device",
    }
}

/// The first disk that was found, if any.
pub fn first_disk() -> Option<Arc<dyn BlockDevice>> {
    DISKS.get()?.first().cloned()
}

/// All disks, in the order in which they were found.
pub fn all_disks() -> &'static [Arc<dyn BlockDevice>] {
    DISKS.get().map_or(&[], Vec::as_slice)
}

/// The first network device that was found, if any.
pub fn first_network() -> Option<Arc<dyn NetDevice>> {
    NETWORKS.get()?.first().cloned()
}
