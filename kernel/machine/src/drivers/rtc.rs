#![allow(unsafe_code, reason = "port I/O")]
//! The CMOS clock: the wall-clock time at boot, in UTC, to the second.
use logic::cmos_clock::{REGISTERS, decode};
use x86_64::instructions::port::Port;

use crate::{cpu::exits, time};

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// An update lasts 2 ms at most; but QEMU ends it when it gets round to its timers, on a busy host much later.
const PATIENCE_NS: u64 = 2_000_000_000;

/// Nanoseconds since 1970. None: there is no such clock (microvm without `rtc=on`, Firecracker).
pub fn read_epoch_ns() -> Option<u64> {
    // 0xff in every register: nobody there.
    if cmos(STATUS_A) == 0xff && cmos(STATUS_B) == 0xff {
        return None;
    }
    let deadline = time::now_ns() + PATIENCE_NS;
    // Twice the same, so that no update came between.
    let mut before = snapshot(deadline)?;
    loop {
        let now = snapshot(deadline)?;
        if now == before {
            return decode(now, cmos(STATUS_B)).map(|seconds| seconds * 1_000_000_000);
        }
        before = now;
    }
}

/// None: it takes too long.
fn snapshot(deadline: u64) -> Option<[u8; 6]> {
    while cmos(STATUS_A) & UPDATE_IN_PROGRESS != 0 {
        if time::now_ns() >= deadline {
            return None;
        }
    }
    (time::now_ns() < deadline).then(|| REGISTERS.map(cmos))
}

fn cmos(register: u8) -> u8 {
    exits::port();
    exits::port();
    // SAFETY: the index and data ports of the CMOS memory; reads change nothing but the index.
    // Bit 7 of the index stays clear, so NMIs stay enabled.
    unsafe {
        Port::new(0x70).write(register & 0x7f);
        Port::new(0x71).read()
    }
}
