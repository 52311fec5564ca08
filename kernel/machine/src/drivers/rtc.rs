#![allow(unsafe_code, reason = "port I/O")]
//! The CMOS clock: the wall-clock time at boot, in UTC, to the second.
use x86_64::instructions::port::Port;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const UPDATE_IN_PROGRESS: u8 = 0x80;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
const PM: u8 = 0x80;
/// An update lasts 2 ms at most, and a port read about a microsecond.
const PATIENCE: u32 = 20_000;

/// Second, minute, hour, day, month, year, as the registers hold them.
const REGISTERS: [u8; 6] = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09];

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

/// Seconds since 1970 of raw register values. None if they are no time.
fn decode(raw: [u8; 6], status_b: u8) -> Option<u64> {
    let number = |value: u8| {
        if status_b & BINARY != 0 {
            return Some(u64::from(value));
        }
        (value & 0xf < 10 && value >> 4 < 10).then(|| u64::from(value >> 4) * 10 + u64::from(value & 0xf))
    };
    let [second, minute, hour_raw, day, month, year] = raw;
    let mut hour = number(if status_b & HOURS_24 != 0 { hour_raw } else { hour_raw & !PM })?;
    if status_b & HOURS_24 == 0 {
        hour = hour % 12 + if hour_raw & PM != 0 { 12 } else { 0 };
    }
    let (second, minute, day, month) = (number(second)?, number(minute)?, number(day)?, number(month)?);
    // No century register is standard; this kernel runs in this one.
    let year = 2000 + number(year)?;
    let valid = second < 60 && minute < 60 && hour < 24 && (1..=31).contains(&day) && (1..=12).contains(&month);
    valid.then(|| ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Gregorian days; `year` is at least 2000.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let leap_days = (1970..year).filter(|&y| leap(y)).count() as u64 + u64::from(month > 2 && leap(year));
    (year - 1970) * 365 + leap_days + BEFORE[(month - 1) as usize] + day - 1
}

fn cmos(register: u8) -> u8 {
    // SAFETY: the index and data ports of the CMOS memory; reads change nothing but the index.
    // Bit 7 of the index stays clear, so NMIs stay enabled.
    unsafe {
        Port::new(0x70).write(register & 0x7f);
        Port::new(0x71).read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_become_seconds() {
        assert_eq!(decode([0x56, 0x34, 0x12, 0x01, 0x01, 0x26], HOURS_24), Some(1_767_270_896));
        assert_eq!(decode([56, 34, 12, 1, 1, 26], HOURS_24 | BINARY), Some(1_767_270_896));
        assert_eq!(decode([0, 0, 0x92, 0x29, 0x02, 0x24], 0), Some(1_709_208_000), "12 PM on a leap day");
        assert_eq!(decode([0, 0, 0x12, 0x29, 0x02, 0x24], 0), Some(1_709_164_800), "12 AM");
        assert_eq!(decode([0xff; 6], 0xff), None);
        assert_eq!(decode([0, 0, 0, 0, 1, 26], HOURS_24), None);
    }
}
