//! What the CMOS clock's registers mean (MC146818).

const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
const PM: u8 = 0x80;

/// Second, minute, hour, day, month and year: the registers to read.
pub const REGISTERS: [u8; 6] = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09];

/// Seconds since 1970 of raw register values, UTC. None if they are no time.
pub fn decode(raw: [u8; 6], status_b: u8) -> Option<u64> {
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
