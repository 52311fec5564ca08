#![allow(unsafe_code, reason = "port I/O")]
//! The CMOS clock: the wall-clock time at boot, in UTC, to the second.
use logic::cmos_clock::{REGISTERS, decode};
use x86_64::instructions::port::Port;

use crate::cpu::exits;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// An update lasts 2 ms at most, and a port read about a microsecond.
const PATIENCE: u32 = 20_000;

/// Nanoseconds since 1970. None: there is no such clock (microvm without `rtc=on`, Firecracker).
pub fn read_epoch_ns() -> Option<u64> {
    // Twice the same, so that no update came between.
    let mut before = snapshot()?;
    for _ in 0..4 {
        let now = snapshot()?;
        if now == before {
            return decode(now, cmos(STATUS_B)).map(|seconds| seconds * 1_000_000_000);
        }
        before = now;
    }
    None
}

fn snapshot() -> Option<[u8; 6]> {
    let mut left = PATIENCE;
    while cmos(STATUS_A) & UPDATE_IN_PROGRESS != 0 {
        left = left.checked_sub(1)?;
        // 0xff in every register: nobody there.
        if left == PATIENCE - 4 && cmos(STATUS_B) == 0xff {
            return None;
        }
    }
    Some(REGISTERS.map(cmos))
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
