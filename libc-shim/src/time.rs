//! Clocks and sleeping.
//!
//! CLOCK_MONOTONIC, RAW, COARSE and BOOTTIME are one clock here: the machine never sleeps, and its
//! time is not steered. CPU clocks come from the tasks.
use rt::{
    rt,
    task::{ParkMode, Parked},
};

use crate::{
    args::{Addr, TimespecIn, flags::TimerFlags, names::ClockId, pair_bytes, split_pair},
    call::Ctx,
    errno::{EINVAL, EOPNOTSUPP, EPERM, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, SysResult},
    program, thread,
};

pub const NS_PER_S: u64 = 1_000_000_000;

/// A `struct timespec` as nanoseconds; EINVAL if it is negative or not normalised. Durations beyond
/// 584 years are cut to that.
pub fn read_timespec(at: Addr) -> SysResult<u64> {
    let (seconds, ns) = split_pair(&at.read()?);
    if seconds < 0 || !(0..NS_PER_S as i64).contains(&ns) {
        return Err(EINVAL);
    }
    Ok((seconds as u64).saturating_mul(NS_PER_S).saturating_add(ns as u64))
}

/// A `struct timeval` as nanoseconds; EINVAL if it is negative. Of select's, the microseconds may be a
/// second and more.
pub fn read_timeval(at: Addr) -> SysResult<u64> {
    let (seconds, us) = split_pair(&at.read()?);
    if seconds < 0 || us < 0 {
        return Err(EINVAL);
    }
    Ok((seconds as u64).saturating_mul(NS_PER_S).saturating_add((us as u64).saturating_mul(1000)))
}

/// As [`read_timeval`], normalised (setitimer(2)).
pub fn read_strict_timeval(at: Addr) -> SysResult<u64> {
    if split_pair(&at.read()?).1 >= 1_000_000 { Err(EINVAL) } else { read_timeval(at) }
}

pub fn timespec_bytes(ns: u64) -> [u8; 16] {
    pair_bytes(ns / NS_PER_S, ns % NS_PER_S)
}

pub fn timeval_bytes(ns: u64) -> [u8; 16] {
    pair_bytes(ns / NS_PER_S, ns % NS_PER_S / 1000)
}

/// A clock's time in nanoseconds.
fn read_clock(cx: &Ctx<'_>, clock: ClockId) -> SysResult<u64> {
    match clock.0 {
        ClockId::REALTIME | ClockId::REALTIME_COARSE | ClockId::REALTIME_ALARM | ClockId::TAI => Ok(rt().realtime_ns()),
        ClockId::MONOTONIC
        | ClockId::MONOTONIC_RAW
        | ClockId::MONOTONIC_COARSE
        | ClockId::BOOTTIME
        | ClockId::BOOTTIME_ALARM => Ok(rt().now_ns()),
        ClockId::PROCESS_CPUTIME_ID => Ok(cx.program().cpu_time_ns()),
        ClockId::THREAD_CPUTIME_ID => Ok(cx.task.cpu_time_ns()),
        id if id < 0 => read_dynamic_clock(cx, id),
        _ => Err(EINVAL),
    }
}

/// CPU clocks of a given process or thread: `~id << 3 | per-thread << 2 | kind`, as
/// clock_getcpuclockid(3) and pthread_getcpuclockid(3) make them. Kinds PROF and VIRT count the same
/// here as SCHED.
fn read_dynamic_clock(cx: &Ctx<'_>, id: i32) -> SysResult<u64> {
    if id & 3 == 3 {
        // A clock device's descriptor.
        return Err(EINVAL);
    }
    let number = !(id >> 3) as u32;
    if id & 4 != 0 {
        if number == 0 {
            return Ok(cx.task.cpu_time_ns());
        }
        return thread::by_tid(cx, number, None).map(|task| task.cpu_time_ns()).ok_or(EINVAL);
    }
    match number {
        0 => Ok(cx.program().cpu_time_ns()),
        pid => program::by_pid(pid).map(|program| program.cpu_time_ns()).ok_or(EINVAL),
    }
}

/// clock_gettime(2).
pub fn clock_gettime(cx: &mut Ctx<'_>, clock: ClockId, out: Addr) -> SysResult {
    let ns = read_clock(cx, clock)?;
    out.write(&timespec_bytes(ns))?;
    Ok(0)
}

/// clock_getres(2): the clocks count nanoseconds; the coarse ones say what Linux says at 250 Hz.
pub fn clock_getres(cx: &mut Ctx<'_>, clock: ClockId, out: Addr) -> SysResult {
    read_clock(cx, clock)?;
    let resolution = match clock.0 {
        ClockId::REALTIME_COARSE | ClockId::MONOTONIC_COARSE => 4_000_000,
        _ => 1,
    };
    if !out.is_null() {
        out.write(&timespec_bytes(resolution))?;
    }
    Ok(0)
}

/// clock_settime(2), settimeofday(2), adjtimex(2): the guest does not set its clock.
pub fn refuse_setting(_cx: &mut Ctx<'_>) -> SysResult {
    Err(EPERM)
}

/// gettimeofday(2).
pub fn gettimeofday(_cx: &mut Ctx<'_>, out: Addr, zone: Addr) -> SysResult {
    if !out.is_null() {
        out.write(&timeval_bytes(rt().realtime_ns()))?;
    }
    if !zone.is_null() {
        zone.write(&[0; 8])?;
    }
    Ok(0)
}

/// time(2).
pub fn time(_cx: &mut Ctx<'_>, out: Addr) -> SysResult {
    let seconds = rt().realtime_ns() / NS_PER_S;
    if !out.is_null() {
        out.write(&seconds.to_le_bytes())?;
    }
    Ok(seconds)
}

/// nanosleep(2).
pub fn nanosleep(cx: &mut Ctx<'_>, wanted: TimespecIn, remaining: Addr) -> SysResult {
    let wait_ns = read_timespec(wanted.0)?;
    let deadline = cx.deadline_after(wait_ns);
    sleep_until(deadline, Some(remaining))
}

/// clock_nanosleep(2).
pub fn clock_nanosleep(
    cx: &mut Ctx<'_>,
    clock: ClockId,
    flags: TimerFlags,
    wanted: TimespecIn,
    remaining: Addr,
) -> SysResult {
    let realtime = match clock.0 {
        ClockId::REALTIME | ClockId::TAI => true,
        ClockId::MONOTONIC | ClockId::BOOTTIME => false,
        // Sleeping on CPU time, as clock_nanosleep(2) allows; clocks that cannot be slept on, as Linux.
        ClockId::PROCESS_CPUTIME_ID | ClockId::MONOTONIC_RAW | ClockId::REALTIME_COARSE | ClockId::MONOTONIC_COARSE => {
            return Err(EOPNOTSUPP);
        }
        _ => return Err(EINVAL),
    };
    let ns = read_timespec(wanted.0)?;
    if !flags.has(TimerFlags::ABSTIME) {
        let deadline = cx.deadline_after(ns);
        return sleep_until(deadline, Some(remaining));
    }
    let deadline = match realtime {
        true => rt().now_ns().saturating_add(ns.saturating_sub(rt().realtime_ns())),
        false => ns,
    };
    sleep_until(deadline, None)
}

/// An absolute sleep (`remaining` None) restarts as it is; a relative one says what is left.
fn sleep_until(deadline_ns: u64, remaining: Option<Addr>) -> SysResult {
    while rt().now_ns() < deadline_ns {
        match rt().park(Some(deadline_ns), ParkMode::Interruptible) {
            Parked::TimedOut => break,
            Parked::Woken => {}
            Parked::Interrupted => {
                let Some(out) = remaining else { return Err(ERESTARTNOHAND) };
                if !out.is_null() {
                    out.write(&timespec_bytes(deadline_ns.saturating_sub(rt().now_ns())))?;
                }
                return Err(ERESTART_RESTARTBLOCK);
            }
        }
    }
    Ok(0)
}
