//! Character devices, by number: what a device file of any file system opens.
//!
//! Numbers are those of Linux' Documentation/admin-guide/devices.txt.
use alloc::sync::Arc;

use crate::{
    console::Console,
    error::{FsError, FsResult},
    file::{FileOps, OpenFlags, Wait},
    inode::{device_number, device_parts},
    io::{Sink, Source},
};

pub const NULL: u64 = device_number(1, 3);
pub const ZERO: u64 = device_number(1, 5);
pub const FULL: u64 = device_number(1, 7);
pub const RANDOM: u64 = device_number(1, 8);
pub const URANDOM: u64 = device_number(1, 9);
pub const TTY: u64 = device_number(5, 0);
pub const CONSOLE: u64 = device_number(5, 1);

/// Opens the device of that number; [`FsError::NoPeer`] (ENXIO) if there is none.
pub fn open(number: u64, _flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
    Ok(match device_parts(number) {
        (1, 3) => Arc::new(Memory::Null),
        (1, 5) => Arc::new(Memory::Zero),
        (1, 7) => Arc::new(Memory::Full),
        (1, 8 | 9) => Arc::new(Random),
        // There is one terminal, so the controlling one is the console.
        (5, 0 | 1) => Console::get(),
        _ => return Err(FsError::NoPeer),
    })
}

/// null(4) and full(4).
enum Memory {
    Null,
    Zero,
    Full,
}

impl FileOps for Memory {
    fn read(&self, _at: u64, out: &mut dyn Sink, _wait: Wait) -> FsResult<usize> {
        if matches!(self, Self::Null) {
            return Ok(0);
        }
        let len = out.remaining();
        out.put_zeros(len)?;
        Ok(len)
    }

    fn write(&self, _at: u64, from: &mut dyn Source, _wait: Wait) -> FsResult<usize> {
        if matches!(self, Self::Full) { Err(FsError::NoSpace) } else { Ok(from.remaining()) }
    }

    fn size(&self) -> FsResult<u64> {
        Ok(0)
    }
}

/// random(4): both devices are the runtime's generator, which never blocks.
struct Random;

impl FileOps for Random {
    fn read(&self, _at: u64, out: &mut dyn Sink, _wait: Wait) -> FsResult<usize> {
        let len = out.remaining();
        let mut bytes = [0; 256];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(bytes.len());
            rt::rt().random(&mut bytes[..now]);
            match out.put(&bytes[..now]) {
                Ok(()) => done += now,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            // A long read lets others run, and ends early for a signal, as on Linux.
            if done % 4096 == 0 {
                rt::rt().preemption_point();
                if rt::rt().current().is_interrupted() {
                    break;
                }
            }
        }
        Ok(done)
    }

    /// Deviation: what is written is not mixed into the pool; the generator needs no more entropy.
    fn write(&self, _at: u64, from: &mut dyn Source, _wait: Wait) -> FsResult<usize> {
        Ok(from.remaining())
    }

    fn size(&self) -> FsResult<u64> {
        Ok(0)
    }
}
