//! The control channel: frames for the tool that runs the machine, by a virtio-serial port of their
//! own ([`abi::control::PORT_NAME`]), so that the console stays the application's.
//!
//! Where there is no such port, or the host does not take what is written, frames go between the
//! console's bytes; the tool reads both. The port is polled: frames are few, and the last ones come
//! from a machine that takes no interrupts any more.
//!
//! # Locking
//! [`TEXT`], then the device ([`virtio_console`]). A panic that finds one taken does not know what state
//! it is in, and uses the console.
use core::fmt::{self, Write};

use abi::control::Frame;
use logic::virtio::console::WRITE_BYTES;

use super::virtio_console::{self, Device};
use crate::{console, cpu::lock::IrqSpin, time};

/// How long a frame may take; a host that does not read must not hold up the machine.
const FRAME_PATIENCE_NS: u64 = 10_000_000;
/// As above, for the last frame.
const LAST_PATIENCE_NS: u64 = 200_000_000;

static TEXT: IrqSpin<Text> = IrqSpin::new(Text { bytes: [0; WRITE_BYTES], len: 0 });

struct Channel<'c> {
    device: &'c mut Device,
    text: &'c mut Text,
}

/// Sends a frame.
pub fn send(frame: Frame<'_>) {
    let sent = {
        let mut text = TEXT.lock();
        let mut device = virtio_console::device();
        device.as_mut().is_some_and(|device| Channel { device, text: &mut text }.start(frame, FRAME_PATIENCE_NS))
    };
    if !sent {
        let _output = console::hold();
        // Writing to the serial port cannot fail.
        let _ = write!(console::Raw, "{frame}");
    }
}

/// Sends the frame after which the machine ends, and waits until the host has it. The caller keeps
/// other writers from the console, or has stopped them.
pub fn send_last(frame: Frame<'_>) {
    let deadline = time::now_ns() + LAST_PATIENCE_NS;
    let sent = loop {
        // In a panic the holder may have been stopped, or be this CPU.
        match TEXT.try_lock().zip(virtio_console::try_device()) {
            Some((mut text, mut device)) => {
                break device.as_mut().is_some_and(|device| Channel { device, text: &mut text }.finish(frame));
            }
            None if crate::panic::in_progress() || time::now_ns() >= deadline => break false,
            None => core::hint::spin_loop(),
        }
    };
    if !sent {
        let _ = write!(console::Raw, "{frame}");
    }
}

impl Channel<'_> {
    /// True: the device has the frame, or will have it.
    fn start(&mut self, frame: Frame<'_>, patience_ns: u64) -> bool {
        if !self.device.is_open() {
            return false;
        }
        // Not waited for: the frame before had its time.
        if self.device.work().is_err() || self.device.is_writing() {
            return false;
        }
        self.text.len = 0;
        let started = write!(self.text, "{frame}").is_ok() && self.device.write(&self.text.bytes[..self.text.len]);
        if started {
            self.wait(patience_ns);
        }
        started
    }

    fn finish(&mut self, frame: Frame<'_>) -> bool {
        self.wait(LAST_PATIENCE_NS) && self.start(frame, 0) && self.wait(LAST_PATIENCE_NS)
    }

    /// Waits for the write in flight; false: it takes too long, or never comes to an end.
    fn wait(&mut self, patience_ns: u64) -> bool {
        let deadline = time::now_ns() + patience_ns;
        while self.device.is_writing() {
            if self.device.work().is_err() || time::now_ns() > deadline {
                return false;
            }
            core::hint::spin_loop();
        }
        true
    }
}

/// A frame's bytes. Not on the stack: a panic may have little of that.
struct Text {
    bytes: [u8; WRITE_BYTES],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
