//! Virtio network devices, at the level of frames; received ones wake their reader by interrupt.
//!
//! The protocol is [`logic::virtio::net`]'s; here is who waits.
//!
//! # Locking
//! [`Nic::device`], shared with the interrupt handler. Tasks are woken after it is released.
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use logic::virtio::{
    VirtioError,
    net::{Network, SendError},
};
use rt::{
    net::{NetDevice, NetError},
    rt,
    sync::WaitQueue,
    task::{ParkMode, Parked},
};
use spin::Once;

use super::{
    Quiesce,
    discovery::{DeviceTransport, Found},
    memory::DmaArea,
};
use crate::{cpu::lock::IrqSpin, time};

/// More devices than this are left alone.
const LIMIT: usize = 8;
/// A reader looks this often where there is no interrupt.
const POLL_NS: u64 = 1_000_000;

/// By the number that interrupts carry.
static NICS: [Once<Arc<Nic>>; LIMIT] = [const { Once::new() }; LIMIT];
static NUMBERS: AtomicUsize = AtomicUsize::new(0);

pub struct Nic {
    device: IrqSpin<Network<DeviceTransport, DmaArea>>,
    received: WaitQueue,
    interrupts: bool,
    mac: [u8; 6],
}

/// Starts the device. Without an interrupt it is polled, with one line in the log.
pub fn start(found: Found) -> Result<Arc<Nic>, VirtioError> {
    let bus = found.bus();
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let place = NICS.get(number).ok_or(VirtioError::NoRoom)?;
    let (transport, wire) = found.open()?;
    let connected = wire.connect(interrupt, number);
    if connected.is_none() {
        log::warn!("a network device on {bus} has no interrupt: it is polled");
    }
    let device = Network::new(transport, DmaArea::allocate, connected.and_then(|connected| connected.entry))?;
    let mac = device.mac();
    log::info!("virtio network device on {bus}: {}", Mac(mac));
    let nic = Nic { device: IrqSpin::new(device), received: WaitQueue::new(), interrupts: connected.is_some(), mac };
    let nic = place.call_once(|| Arc::new(nic)).clone();
    wire.listen(connected);
    Ok(nic)
}

fn interrupt(number: usize) {
    // None: before the device has started; a shared line.
    if let Some(nic) = NICS.get(number).and_then(Once::get) {
        nic.device.lock().acknowledge_interrupt();
        nic.received.wake_all();
    }
}

impl Nic {
    /// Calls `work` on the device, and reports if that found out that it lies.
    fn with<R>(&self, work: impl FnOnce(&mut Network<DeviceTransport, DmaArea>) -> R) -> R {
        let mut device = self.device.lock();
        let before = device.is_switched_off();
        let result = work(&mut device);
        let lost = !before && device.is_switched_off();
        drop(device);
        if lost {
            log::error!("a network device broke the protocol and was switched off");
        }
        result
    }
}

/// For frames on their way out.
const QUIESCE_PATIENCE_NS: u64 = 1_000_000_000;

impl Quiesce for Nic {
    fn quiesce(&self) -> bool {
        let deadline = time::now_ns() + QUIESCE_PATIENCE_NS;
        while !self.with(Network::quiesce) {
            if time::now_ns() > deadline || self.device.lock().is_switched_off() {
                return false;
            }
            rt().yield_now();
        }
        true
    }

    fn resume(&self) -> Result<(), VirtioError> {
        let resumed = self.device.lock().resume();
        self.received.wake_all();
        resumed
    }
}

impl NetDevice for Nic {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn link_is_up(&self) -> bool {
        self.device.lock().link_is_up()
    }

    fn send(&self, frame: &[u8]) -> Result<(), NetError> {
        self.with(|device| device.send(frame)).map_err(|error| match error {
            SendError::Full => NetError::Full,
            SendError::BadLength => NetError::BadLength,
            SendError::Gone => NetError::Gone,
        })
    }

    fn receive(&self, out: &mut [u8]) -> Option<usize> {
        self.with(|device| device.receive(out))
    }

    fn wait_received(&self, deadline_ns: Option<u64>) -> Parked {
        let ready = || self.device.lock().has_received().then_some(());
        let until = if self.interrupts {
            deadline_ns
        } else {
            // Wakes for nothing, as it may.
            let next = time::now_ns() + POLL_NS;
            Some(deadline_ns.map_or(next, |deadline| deadline.min(next)))
        };
        match self.received.wait_until(until, ParkMode::Interruptible, ready) {
            Ok(()) => Parked::Woken,
            Err(Parked::TimedOut) if until != deadline_ns => Parked::Woken,
            Err(parked) => parked,
        }
    }
}

/// Displays as 52:54:00:12:34:56.
struct Mac([u8; 6]);

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if n > 0 { ":" } else { "" })?;
        }
        Ok(())
    }
}
