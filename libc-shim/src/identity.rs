//! Who is who: pids, tids, users and groups, sessions.
//!
//! Every program runs as root, in one session and process group of its own.
use crate::{
    args::Addr,
    call::Ctx,
    errno::{EINVAL, EPERM, ESRCH, SysResult},
    program,
};

pub fn getpid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(u64::from(cx.program().pid))
}

pub fn gettid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(u64::from(cx.thread.tid()))
}

pub fn getppid(cx: &mut Ctx<'_>) -> SysResult {
    Ok(u64::from(cx.program().parent))
}

/// getuid, geteuid, getgid, getegid.
pub fn root_id(_cx: &mut Ctx<'_>) -> SysResult {
    Ok(0)
}

/// setuid, setgid, setfsuid and their like to one id: only root's is there.
pub fn set_id(_cx: &mut Ctx<'_>, id: u32) -> SysResult {
    if id == 0 { Ok(0) } else { Err(EPERM) }
}

/// setreuid, setregid.
pub fn set_ids(_cx: &mut Ctx<'_>, real: i32, effective: i32) -> SysResult {
    if [real, effective].iter().all(|id| matches!(id, 0 | -1)) { Ok(0) } else { Err(EPERM) }
}

/// setresuid, setresgid.
pub fn set_three_ids(_cx: &mut Ctx<'_>, real: i32, effective: i32, saved: i32) -> SysResult {
    if [real, effective, saved].iter().all(|id| matches!(id, 0 | -1)) { Ok(0) } else { Err(EPERM) }
}

/// getresuid, getresgid.
pub fn get_three_ids(_cx: &mut Ctx<'_>, real: Addr, effective: Addr, saved: Addr) -> SysResult {
    for out in [real, effective, saved] {
        out.write(&0u32.to_le_bytes())?;
    }
    Ok(0)
}

/// getgroups(2): no supplementary groups.
pub fn getgroups(_cx: &mut Ctx<'_>, size: i32, _list: Addr) -> SysResult {
    if size < 0 { Err(EINVAL) } else { Ok(0) }
}

/// setgroups(2): an empty list is what there is.
pub fn setgroups(_cx: &mut Ctx<'_>, size: i32, _list: Addr) -> SysResult {
    match size {
        0 => Ok(0),
        1..=65536 => Err(EPERM),
        _ => Err(EINVAL),
    }
}

/// getpgid(2), getsid(2): each program is the leader of its own.
pub fn own_group(cx: &mut Ctx<'_>, pid: i32) -> SysResult {
    match pid {
        0 => Ok(u64::from(cx.program().pid)),
        _ => u32::try_from(pid).ok().and_then(program::by_pid).map(|p| u64::from(p.pid)).ok_or(ESRCH),
    }
}

/// getpgrp(2).
pub fn getpgrp(cx: &mut Ctx<'_>) -> SysResult {
    getpid(cx)
}

/// setsid(2): EPERM for a group leader, which every program is.
pub fn setsid(_cx: &mut Ctx<'_>) -> SysResult {
    Err(EPERM)
}

/// setpgid(2): to its own group only, where it is.
pub fn setpgid(cx: &mut Ctx<'_>, pid: i32, group: i32) -> SysResult {
    let own = cx.program().pid as i32;
    match (pid, group) {
        (0, 0) => Ok(0),
        (pid, group) if (pid == 0 || pid == own) && (group == 0 || group == own) => Ok(0),
        (_, group) if group < 0 => Err(EINVAL),
        _ => Err(EPERM),
    }
}

/// capget(2): every capability is there.
pub fn capget(_cx: &mut Ctx<'_>, header: Addr, data: Addr) -> SysResult {
    const VERSION_3: u32 = 0x2008_0522;
    let version = u32::from_le_bytes(header.read()?);
    if version != VERSION_3 {
        header.write(&VERSION_3.to_le_bytes())?;
        return if data.is_null() { Ok(0) } else { Err(EINVAL) };
    }
    if !data.is_null() {
        let all = crate::args::Fields::<24>::default().u32(u32::MAX).u32(u32::MAX).u32(0).u32(0x1ff).u32(0x1ff).u32(0);
        data.write(&all.finish())?;
    }
    Ok(0)
}
