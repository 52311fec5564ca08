//! The machine as programs see it: uname, sysinfo, randomness, and the per-thread odds and ends of
//! prctl and arch_prctl.
use core::sync::atomic::Ordering;

use alloc::vec;

use rt::rt;

use crate::{
    args::{
        Addr, Fields, Hex,
        flags::RandomFlags,
        names::{ArchPrctlOp, PrctlOp},
        read_string,
    },
    call::Ctx,
    errno::{EINVAL, EPERM, SysResult},
    mm::SPACE_END,
    program,
    thread::NAME_BYTES,
    time::NS_PER_S,
};

pub const RELEASE: &str = "6.12.0-demitasse";
pub const VERSION: &str = "#1 SMP Demitasse";

/// uname(2).
pub fn uname(_cx: &mut Ctx<'_>, out: Addr) -> SysResult {
    const FIELD: usize = 65;
    let mut bytes = [0u8; 6 * FIELD];
    for (field, text) in ["Linux", "demitasse", RELEASE, VERSION, "x86_64", "(none)"].iter().enumerate() {
        bytes[field * FIELD..field * FIELD + text.len()].copy_from_slice(text.as_bytes());
    }
    out.write(&bytes)?;
    Ok(0)
}

/// sysinfo(2).
pub fn sysinfo(_cx: &mut Ctx<'_>, out: Addr) -> SysResult {
    let (total, free) = rt().memory_bytes();
    let processes = program::all().iter().map(|p| p.threads.lock().len()).sum::<usize>();
    let bytes: [u8; 112] = Fields::default()
        .u64(rt().now_ns() / NS_PER_S)
        .skip(24) // load averages are not kept
        .u64(total)
        .u64(free)
        .skip(32) // shared, buffers, swap
        .u16(processes as u16)
        .skip(22) // padding, high memory
        .u32(1)
        .finish();
    out.write(&bytes)?;
    Ok(0)
}

/// getrandom(2): the generator is seeded before the first program starts, so no flag changes a thing.
pub fn getrandom(cx: &mut Ctx<'_>, out: Addr, len: u64, flags: RandomFlags) -> SysResult {
    let exclusive = RandomFlags::RANDOM | RandomFlags::INSECURE;
    if flags.0 & !RandomFlags::KNOWN != 0 || flags.has(exclusive) {
        return Err(EINVAL);
    }
    // read(2)'s limit for one call.
    let len = len.min(0x7fff_f000) as usize;
    let mut piece = vec![0u8; len.min(4096)];
    let mut done = 0;
    while done < len {
        let now = (len - done).min(piece.len());
        rt().random(&mut piece[..now]);
        match Addr(out.0.wrapping_add(done as u64)).write(&piece[..now]) {
            Err(_) if done > 0 => return Ok(done as u64),
            written => written?,
        }
        done += now;
        // As on Linux: up to a page, the call is not cut short.
        rt().preemption_point();
        if cx.task.is_interrupted() {
            break;
        }
    }
    Ok(done as u64)
}

/// arch_prctl(2). GS belongs to the kernel, so ARCH_SET_GS is refused; nothing of glibc, musl or the
/// JVM uses it.
pub fn arch_prctl(cx: &mut Ctx<'_>, op: ArchPrctlOp, value: Addr) -> SysResult {
    match op.0 {
        ArchPrctlOp::SET_FS if value.0 >= SPACE_END => Err(EPERM),
        ArchPrctlOp::SET_FS => {
            cx.task.set_fs_base(value.0);
            Ok(0)
        }
        ArchPrctlOp::GET_FS => {
            value.write(&cx.task.fs_base().to_le_bytes())?;
            Ok(0)
        }
        ArchPrctlOp::GET_GS => {
            value.write(&0u64.to_le_bytes())?;
            Ok(0)
        }
        _ => Err(EINVAL),
    }
}

/// prctl(2).
pub fn prctl(cx: &mut Ctx<'_>, op: PrctlOp, arg2: Hex, arg3: Hex, arg4: Hex, arg5: Hex) -> SysResult {
    let settings = &cx.thread.settings;
    let rest_zero = arg3.0 == 0 && arg4.0 == 0 && arg5.0 == 0;
    match op.0 {
        PrctlOp::SET_NAME => {
            let name = read_string(arg2.0, NAME_BYTES)?;
            match name {
                Some(name) => cx.thread.set_name(&name),
                None => cx.thread.set_name(&Addr(arg2.0).read::<NAME_BYTES>()?),
            }
            Ok(0)
        }
        PrctlOp::GET_NAME => {
            Addr(arg2.0).write(&cx.thread.name())?;
            Ok(0)
        }
        PrctlOp::GET_DUMPABLE => Ok(u64::from(cx.program().dumpable.load(Ordering::Relaxed))),
        PrctlOp::SET_DUMPABLE if arg2.0 <= 1 => {
            cx.program().dumpable.store(arg2.0 == 1, Ordering::Relaxed);
            Ok(0)
        }
        PrctlOp::SET_PDEATHSIG if arg2.0 <= 64 => {
            settings.parent_death_signal.store(arg2.0 as u32, Ordering::Relaxed);
            Ok(0)
        }
        PrctlOp::GET_PDEATHSIG => {
            Addr(arg2.0).write(&settings.parent_death_signal.load(Ordering::Relaxed).to_le_bytes())?;
            Ok(0)
        }
        PrctlOp::GET_TIMERSLACK => Ok(settings.timer_slack_ns.load(Ordering::Relaxed)),
        PrctlOp::SET_TIMERSLACK => {
            settings.set_timer_slack(arg2.0);
            Ok(0)
        }
        PrctlOp::CAPBSET_READ if arg2.0 <= 40 => Ok(1),
        PrctlOp::SET_NO_NEW_PRIVS if arg2.0 == 1 && rest_zero => {
            settings.no_new_privileges.store(true, Ordering::Relaxed);
            Ok(0)
        }
        PrctlOp::GET_NO_NEW_PRIVS if arg2.0 == 0 && rest_zero => {
            Ok(u64::from(settings.no_new_privileges.load(Ordering::Relaxed)))
        }
        PrctlOp::GET_THP_DISABLE if arg2.0 == 0 && rest_zero => Ok(0),
        PrctlOp::GET_SECCOMP => Ok(0),
        // PR_SET_VMA and the rest: EINVAL, as from a kernel without them (prctl(2)).
        _ => Err(EINVAL),
    }
}

/// sethostname(2), reboot(2), mount(2) and others that only an administrator may call.
pub fn refuse_administration(_cx: &mut Ctx<'_>) -> SysResult {
    Err(EPERM)
}
