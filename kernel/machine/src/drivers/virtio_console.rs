//! The virtio console device: the control channel's port, and a terminal in place of a serial port.
//!
//! The protocol is [`logic::virtio::console`]'s; [`super::control`] writes frames to the named port,
//! [`crate::console`] uses the terminal. Output is polled: it may come from a CPU that takes no
//! interrupts any more. One device is driven, the first that has something wanted.
//!
//! # Locking
//! [`DEVICE`], under which nothing else is taken. A panic or an NMI that finds it taken does not know
//! what state the device is in, and leaves it alone.
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use abi::control::PORT_NAME;
use logic::virtio::{
    VirtioError,
    console::{Console, Wanted},
};

use super::{
    Quiesce,
    discovery::{DeviceTransport, Found},
    memory::DmaArea,
};
use crate::{
    console,
    cpu::lock::{IrqSpin, IrqSpinGuard},
    time,
};

/// How long the device may take to tell its ports' names, once it has got round to being asked; and how
/// long all of it may take, on a host that has much else to do.
const START_PATIENCE_NS: u64 = 250_000_000;
const BUSY_HOST_PATIENCE_NS: u64 = 3_000_000_000;
/// How long the host may take to read what it was given, before the device is stopped for a while.
const QUIESCE_PATIENCE_NS: u64 = 1_000_000_000;
/// How long a panic or an NMI waits for a host that does not read, or for who has the device.
const PANIC_PATIENCE_NS: u64 = 200_000_000;

pub type Device = Console<DeviceTransport, DmaArea>;

static DEVICE: IrqSpin<Option<Device>> = IrqSpin::new(None);

/// The device, if there is one, for as long as the guard lives.
pub fn device() -> IrqSpinGuard<'static, Option<Device>> {
    DEVICE.lock()
}

/// As [`device`], but not if it is in use: for a panic.
pub fn try_device() -> Option<IrqSpinGuard<'static, Option<Device>>> {
    DEVICE.try_lock()
}

/// Starts the device and finds its ports. `terminal`: port 0 is wanted as the console, too.
pub fn start(found: Found, terminal: bool) -> Result<Arc<dyn Quiesce>, VirtioError> {
    if DEVICE.lock().is_some() {
        return Err(VirtioError::NotThere);
    }
    let (transport, wire) = found.open()?;
    let connected = if terminal { wire.connect(|_| interrupted(), 0) } else { None };
    let vector = connected.and_then(|connected| connected.entry);
    let mut device = Console::new(transport, DmaArea::allocate, Wanted { name: PORT_NAME, terminal, vector })?;
    let found = find_ports(&mut device, terminal);
    if found.is_err() || !device.is_open() && !device.has_terminal() {
        device.stop();
        return Err(found.err().unwrap_or(VirtioError::Silent));
    }
    if device.is_open() {
        log::info!("control frames go to the port {PORT_NAME}");
    }
    let has_terminal = device.has_terminal();
    *DEVICE.lock() = Some(device);
    wire.listen(connected);
    if has_terminal {
        console::use_terminal();
        // What came before there was anybody to tell.
        console::take_terminal_input();
        if connected.is_none() {
            log::info!("no interrupt for the virtio console: no console input");
        }
    }
    Ok(Arc::new(Driver))
}

/// Listens until the ports are there that may come, or it takes too long.
fn find_ports(device: &mut Device, terminal: bool) -> Result<(), VirtioError> {
    let start = time::now_ns();
    let mut asked = start;
    loop {
        device.work()?;
        let complete = device.is_open() == device.may_have_port() && device.has_terminal() == terminal;
        let now = time::now_ns();
        if device.host_is_behind() {
            asked = now;
        }
        if complete || now >= asked + START_PATIENCE_NS || now >= start + BUSY_HOST_PATIENCE_NS {
            return Ok(());
        }
        core::hint::spin_loop();
    }
}

/// Nothing was taken for so long that panics and NMIs do not wait any more, until something is.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Writes to the terminal; waits while the host takes nothing, `past_locks` not for ever. That is for a
/// caller that may have interrupted, or stopped, who has the device. The result is how many bytes went:
/// not all if there is no terminal, or not now.
pub fn write(bytes: &[u8], past_locks: bool) -> usize {
    let mut deadline = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        let guard = if past_locks { DEVICE.try_lock() } else { Some(DEVICE.lock()) };
        let written = match guard {
            Some(mut guard) => {
                let Some(device) = guard.as_mut().filter(|device| device.has_terminal()) else { break };
                // A device that lies is found out by the write.
                let _ = device.work();
                device.write_terminal(rest)
            }
            None => 0,
        };
        rest = &rest[written..];
        if written > 0 {
            deadline = None;
            GIVEN_UP.store(false, Ordering::Relaxed);
            continue;
        }
        if past_locks {
            let patience = *deadline.get_or_insert_with(|| time::now_ns() + PANIC_PATIENCE_NS);
            // A report is many writes: the patience is for all of them together.
            if GIVEN_UP.load(Ordering::Relaxed) || time::now_ns() > patience {
                GIVEN_UP.store(true, Ordering::Relaxed);
                break;
            }
        }
        core::hint::spin_loop();
    }
    bytes.len() - rest.len()
}

/// Waits until the host has what was written: before the machine ends.
pub fn flush() {
    let deadline = time::now_ns() + PANIC_PATIENCE_NS;
    while time::now_ns() < deadline {
        if let Some(mut guard) = DEVICE.try_lock() {
            let busy = guard.as_mut().is_some_and(|device| device.work().is_ok() && !device.terminal_is_idle());
            if !busy {
                return;
            }
        }
        core::hint::spin_loop();
    }
}

/// Something has arrived at the terminal.
fn interrupted() {
    if let Some(device) = DEVICE.lock().as_mut() {
        device.acknowledge_interrupt();
    }
    console::take_terminal_input();
}

struct Driver;

impl Quiesce for Driver {
    fn quiesce(&self) -> bool {
        let deadline = time::now_ns() + QUIESCE_PATIENCE_NS;
        // Frames go between the console's bytes, or wait with those, as long as nobody resumes.
        loop {
            let mut guard = DEVICE.lock();
            let Some(device) = guard.as_mut() else { return false };
            if device.work().is_err() {
                return false;
            }
            if device.quiesce() {
                return true;
            }
            if time::now_ns() > deadline {
                return false;
            }
            drop(guard);
            core::hint::spin_loop();
        }
    }

    fn resume(&self) -> Result<(), VirtioError> {
        let mut guard = DEVICE.lock();
        let Some(device) = guard.as_mut() else { return Ok(()) };
        let terminal = device.wants_terminal();
        let resumed = device.resume().and_then(|()| find_ports(device, terminal));
        drop(guard);
        if terminal {
            console::use_terminal();
            console::take_terminal_input();
        }
        resumed
    }
}
