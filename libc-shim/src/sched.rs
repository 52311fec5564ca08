//! Scheduling calls: affinity, priorities, policies, CPU accounting.
use rt::{rt, task::TaskRef};

use crate::{
    args::{
        Addr, Fields,
        names::{PriorityWhich, RusageWho, SchedPolicy},
    },
    call::Ctx,
    errno::{EINVAL, EPERM, ESRCH, SysResult},
    thread,
    time::{timespec_bytes, timeval_bytes},
};

fn task_of(cx: &Ctx<'_>, tid: i32) -> SysResult<TaskRef> {
    match tid {
        0 => Ok(cx.task.clone()),
        tid if tid < 0 => Err(ESRCH),
        tid => thread::by_tid(cx, tid as u32, None).ok_or(ESRCH),
    }
}

/// What the calls about policies say of a negative id; the others say ESRCH.
fn check_tid(tid: i32) -> SysResult<()> {
    if tid < 0 { Err(EINVAL) } else { Ok(()) }
}

fn check_param(param: Addr) -> SysResult<()> {
    if param.is_null() { Err(EINVAL) } else { Ok(()) }
}

/// sched_yield(2).
pub fn sched_yield(_cx: &mut Ctx<'_>) -> SysResult {
    rt().yield_now();
    Ok(0)
}

/// getcpu(2).
pub fn getcpu(_cx: &mut Ctx<'_>, cpu: Addr, node: Addr) -> SysResult {
    if !cpu.is_null() {
        cpu.write(&(rt().cpu_index() as u32).to_le_bytes())?;
    }
    if !node.is_null() {
        node.write(&0u32.to_le_bytes())?;
    }
    Ok(0)
}

/// sched_getaffinity(2): the raw call gives the bytes it has written.
pub fn sched_getaffinity(cx: &mut Ctx<'_>, tid: i32, size: u32, out: Addr) -> SysResult {
    if !size.is_multiple_of(8) || u64::from(size) * 8 < rt().cpu_count() as u64 {
        return Err(EINVAL);
    }
    let task = task_of(cx, tid)?;
    let existing = u64::MAX >> (64 - rt().cpu_count().clamp(1, 64));
    out.write(&(task.affinity() & existing).to_le_bytes())?;
    Ok(8)
}

/// sched_setaffinity(2).
pub fn sched_setaffinity(cx: &mut Ctx<'_>, tid: i32, size: u32, mask: Addr) -> SysResult {
    let mut bytes = [0u8; 8];
    let known = size.min(8) as usize;
    rt().user().read(&mut bytes[..known], mask.0)?;
    let task = task_of(cx, tid)?;
    let existing = u64::MAX >> (64 - rt().cpu_count().clamp(1, 64));
    if task.set_affinity(u64::from_le_bytes(bytes) & existing) { Ok(0) } else { Err(EINVAL) }
}

/// sched_getscheduler(2): everything is SCHED_OTHER.
pub fn sched_getscheduler(cx: &mut Ctx<'_>, tid: i32) -> SysResult {
    check_tid(tid)?;
    task_of(cx, tid)?;
    Ok(SchedPolicy::OTHER as u64)
}

/// sched_setscheduler(2): real-time policies are refused as without CAP_SYS_NICE.
pub fn sched_setscheduler(cx: &mut Ctx<'_>, tid: i32, policy: SchedPolicy, param: Addr) -> SysResult {
    check_tid(tid)?;
    check_param(param)?;
    let priority = i32::from_le_bytes(param.read()?);
    task_of(cx, tid)?;
    match policy.0 {
        SchedPolicy::OTHER | SchedPolicy::BATCH | SchedPolicy::IDLE if priority == 0 => Ok(0),
        SchedPolicy::FIFO | SchedPolicy::RR if (1..100).contains(&priority) => Err(EPERM),
        _ => Err(EINVAL),
    }
}

/// sched_getparam(2).
pub fn sched_getparam(cx: &mut Ctx<'_>, tid: i32, param: Addr) -> SysResult {
    check_tid(tid)?;
    check_param(param)?;
    task_of(cx, tid)?;
    param.write(&0u32.to_le_bytes())?;
    Ok(0)
}

/// sched_setparam(2): SCHED_OTHER has priority 0 only.
pub fn sched_setparam(cx: &mut Ctx<'_>, tid: i32, param: Addr) -> SysResult {
    task_of(cx, tid)?;
    if i32::from_le_bytes(param.read()?) == 0 { Ok(0) } else { Err(EINVAL) }
}

/// sched_get_priority_max(2).
pub fn sched_get_priority_max(_cx: &mut Ctx<'_>, policy: SchedPolicy) -> SysResult {
    priority_bound(policy, 99)
}

/// sched_get_priority_min(2).
pub fn sched_get_priority_min(_cx: &mut Ctx<'_>, policy: SchedPolicy) -> SysResult {
    priority_bound(policy, 1)
}

fn priority_bound(policy: SchedPolicy, real_time: u64) -> SysResult {
    match policy.0 {
        SchedPolicy::FIFO | SchedPolicy::RR => Ok(real_time),
        SchedPolicy::OTHER | SchedPolicy::BATCH | SchedPolicy::IDLE | SchedPolicy::DEADLINE => Ok(0),
        _ => Err(EINVAL),
    }
}

/// sched_rr_get_interval(2): the fair scheduler's slice.
pub fn sched_rr_get_interval(cx: &mut Ctx<'_>, tid: i32, out: Addr) -> SysResult {
    task_of(cx, tid)?;
    out.write(&timespec_bytes(4_000_000))?;
    Ok(0)
}

/// getpriority(2): the raw call gives 20 - nice.
pub fn getpriority(cx: &mut Ctx<'_>, which: PriorityWhich, who: i32) -> SysResult {
    let task = priority_target(cx, which, who)?;
    Ok((20 - i64::from(task.nice())) as u64)
}

/// setpriority(2).
pub fn setpriority(cx: &mut Ctx<'_>, which: PriorityWhich, who: i32, nice: i32) -> SysResult {
    let task = priority_target(cx, which, who)?;
    task.set_nice(nice.clamp(-20, 19) as i8);
    Ok(0)
}

fn priority_target(cx: &Ctx<'_>, which: PriorityWhich, who: i32) -> SysResult<TaskRef> {
    match which.0 {
        PriorityWhich::PROCESS => task_of(cx, who).map_err(|_| ESRCH),
        PriorityWhich::PGRP | PriorityWhich::USER if who == 0 => Ok(cx.task.clone()),
        PriorityWhich::PGRP | PriorityWhich::USER => Err(ESRCH),
        _ => Err(EINVAL),
    }
}

/// getrusage(2): CPU time is all user time, since the mode of each nanosecond is not recorded;
/// faults and switches are not counted and show as 0.
pub fn getrusage(cx: &mut Ctx<'_>, who: RusageWho, out: Addr) -> SysResult {
    let cpu_ns = match who.0 {
        RusageWho::SELF => cx.program().cpu_time_ns(),
        RusageWho::THREAD => cx.task.cpu_time_ns(),
        RusageWho::CHILDREN => 0,
        _ => return Err(EINVAL),
    };
    let resident = match who.0 {
        RusageWho::CHILDREN => 0,
        _ => rt().address_space().footprint(cx.program().owner).resident_bytes,
    };
    let bytes: [u8; 144] = Fields::default().put(&timeval_bytes(cpu_ns)).skip(16).u64(resident >> 10).finish();
    out.write(&bytes)?;
    Ok(0)
}

/// times(2), in ticks of 10 ms.
pub fn times(cx: &mut Ctx<'_>, out: Addr) -> SysResult {
    const TICK_NS: u64 = 10_000_000;
    if !out.is_null() {
        let bytes: [u8; 32] = Fields::default().u64(cx.program().cpu_time_ns() / TICK_NS).finish();
        out.write(&bytes)?;
    }
    Ok(rt().now_ns() / TICK_NS)
}
