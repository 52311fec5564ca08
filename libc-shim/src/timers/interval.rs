//! The interval timer ITIMER_REAL: setitimer(2), getitimer(2), alarm(2).
use alloc::sync::{Arc, Weak};

use rt::rt;

use super::{Alarm, Expire, Setting};
use crate::{
    args::Addr,
    call::Ctx,
    errno::{EINVAL, SysResult},
    program::Program,
    signal::{SigInfo, send},
    time::{NS_PER_S, read_strict_timeval, timeval_bytes},
};

const ITIMER_REAL: i32 = 0;
const SIGALRM: u32 = 14;

/// SIGALRM to the program.
struct Ring(Weak<Program>);

impl Expire for Ring {
    fn expired(&self, _count: u64) {
        if let Some(program) = self.0.upgrade() {
            // Standard signals are pending once: nothing can be refused.
            let _ = send::to_program(&program, SigInfo::from_kernel(SIGALRM));
        }
    }
}

/// Sets the timer; the result is what it was.
fn set(cx: &Ctx<'_>, wanted: Setting) -> SysResult<Setting> {
    let fresh = Alarm::new()?;
    let mut slot = cx.program().interval_timer.lock();
    let alarm = slot.get_or_insert(fresh);
    let before = alarm.setting();
    if wanted.value_ns == 0 {
        alarm.disarm();
    } else {
        let ring = Arc::new(Ring(Arc::downgrade(cx.program())));
        alarm.arm(rt().now_ns().saturating_add(wanted.value_ns), wanted.interval_ns, ring);
    }
    Ok(before)
}

fn bytes(setting: Setting) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&timeval_bytes(setting.interval_ns));
    bytes[16..].copy_from_slice(&timeval_bytes(setting.value_ns));
    bytes
}

/// setitimer(2). The timers on CPU time are not there: EINVAL.
pub fn setitimer(cx: &mut Ctx<'_>, which: i32, new: Addr, old: Addr) -> SysResult {
    if which != ITIMER_REAL {
        return Err(EINVAL);
    }
    let wanted = match new.is_null() {
        true => Setting::default(),
        false => Setting { interval_ns: read_strict_timeval(new)?, value_ns: read_strict_timeval(Addr(new.0 + 16))? },
    };
    let before = set(cx, wanted)?;
    if !old.is_null() {
        old.write(&bytes(before))?;
    }
    Ok(0)
}

/// getitimer(2).
pub fn getitimer(cx: &mut Ctx<'_>, which: i32, out: Addr) -> SysResult {
    if which != ITIMER_REAL {
        return Err(EINVAL);
    }
    let setting = cx.program().interval_timer.lock().as_ref().map_or(Setting::default(), Alarm::setting);
    out.write(&bytes(setting))?;
    Ok(0)
}

/// alarm(2): gives the seconds that were left, rounded, but 1 for what is left of the last.
pub fn alarm(cx: &mut Ctx<'_>, seconds: u32) -> SysResult {
    let before = set(cx, Setting { value_ns: u64::from(seconds) * NS_PER_S, interval_ns: 0 })?;
    let rounded = before.value_ns.saturating_add(NS_PER_S / 2) / NS_PER_S;
    Ok(rounded.max(u64::from(before.value_ns > 0)))
}
