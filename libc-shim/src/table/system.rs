//! Rows: memory, signals, threads, time, scheduling, identity, the machine.
use super::{
    Row,
    Support::{Full, No, Partial},
    rows,
};
use crate::{
    args::{
        Addr, Fd, Hex, TimespecIn,
        flags::{
            CloneFlags, EventFlags, MapFlags, MlockallFlags, MsyncFlags, Prot, RandomFlags, RemapFlags, RseqFlags,
            TimerFlags, TimerfdFlags,
        },
        names::{
            Advice, ArchPrctlOp, ClockId, FutexOp, MaskHow, MembarrierCmd, PrctlOp, PriorityWhich, Resource, RusageWho,
            SchedPolicy, Signal,
        },
    },
    futex, identity, limits, mm, sched,
    signal::{calls, wait},
    system, threads, time,
    timers::{interval, posix, timerfd},
    unsupported,
};

const PROCESSES: &str = "programs cannot start others yet";
const NO_CPU_TIMERS: &str = "not on CPU clocks";
const CLOCK: &str = "the guest does not set its clock";

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    9 mmap(at: Addr, len: u64, prot: Prot, flags: MapFlags, fd: Fd, offset: u64) => mm::mmap, Partial("no MAP_HUGETLB pool, no MAP_SYNC; MAP_GROWSDOWN does not grow");
    10 mprotect(at: Addr, len: u64, prot: Prot) => mm::mprotect, Partial("no PROT_GROWSDOWN, PROT_GROWSUP");
    11 munmap(at: Addr, len: u64) => mm::munmap, Full;
    12 brk(end: Addr) => mm::brk, Full;
    13 rt_sigaction(signal: Signal, new: Addr, old: Addr, set_bytes: u64) => calls::rt_sigaction, Full;
    14 rt_sigprocmask(how: MaskHow, new: Addr, old: Addr, set_bytes: u64) => calls::rt_sigprocmask, Full;
    15 rt_sigreturn() => calls::rt_sigreturn, Full;
    24 sched_yield() => sched::sched_yield, Full;
    25 mremap(old: Addr, old_len: u64, new_len: u64, flags: RemapFlags, new: Addr) => mm::mremap, Partial("no MREMAP_DONTUNMAP, no duplication by old_len 0");
    26 msync(at: Addr, len: u64, flags: MsyncFlags) => mm::msync, Full;
    27 mincore(at: Addr, len: u64, out: Addr) => mm::mincore, Full;
    28 madvise(at: Addr, len: u64, advice: Advice) => mm::madvise, Partial("MADV_FREE acts as MADV_DONTNEED; no MADV_REMOVE, MADV_COLLAPSE");
    34 pause() => wait::pause, Full;
    35 nanosleep(wanted: TimespecIn, remaining: Addr) => time::nanosleep, Full;
    36 getitimer(which: i32, out: Addr) => interval::getitimer, Partial("ITIMER_REAL");
    37 alarm(seconds: u32) => interval::alarm, Full;
    38 setitimer(which: i32, new: Addr, old: Addr) => interval::setitimer, Partial("ITIMER_REAL");
    39 getpid() => identity::getpid, Full;
    56 clone(flags: CloneFlags, stack: Addr, parent_tid: Addr, child_tid: Addr, tls: Hex) => threads::clone, Partial("threads only; CLONE_VM|CLONE_VFORK and fork's flags give ENOSYS");
    57 fork() => threads::refuse_fork, No("one address space: fork is not possible");
    58 vfork() => threads::refuse_fork, No(PROCESSES);
    59 execve() => unsupported::enosys, No(PROCESSES);
    60 exit(code: i32) => threads::exit, Full;
    61 wait4() => unsupported::no_child, Partial("there are no children: ECHILD");
    62 kill(pid: i32, signal: Signal) => calls::kill, Partial("no process groups: each program is its own");
    63 uname(out: Addr) => system::uname, Full;
    96 gettimeofday(out: Addr, zone: Addr) => time::gettimeofday, Full;
    97 getrlimit(resource: Resource, out: Addr) => limits::getrlimit, Full;
    98 getrusage(who: RusageWho, out: Addr) => sched::getrusage, Partial("user time and resident size; system time, faults and switches show 0");
    99 sysinfo(out: Addr) => system::sysinfo, Partial("no load averages");
    100 times(out: Addr) => sched::times, Partial("user time only");
    101 ptrace() => unsupported::eperm, No("no program can trace another");
    102 getuid() => identity::root_id, Full;
    104 getgid() => identity::root_id, Full;
    105 setuid(uid: u32) => identity::set_id, Partial("root only");
    106 setgid(gid: u32) => identity::set_id, Partial("root only");
    107 geteuid() => identity::root_id, Full;
    108 getegid() => identity::root_id, Full;
    109 setpgid(pid: i32, group: i32) => identity::setpgid, Partial("each program is its own group");
    110 getppid() => identity::getppid, Full;
    111 getpgrp() => identity::getpgrp, Full;
    112 setsid() => identity::setsid, Partial("each program leads its group: EPERM");
    113 setreuid(real: i32, effective: i32) => identity::set_ids, Partial("root only");
    114 setregid(real: i32, effective: i32) => identity::set_ids, Partial("root only");
    115 getgroups(size: i32, list: Addr) => identity::getgroups, Full;
    116 setgroups(size: i32, list: Addr) => identity::setgroups, Partial("the empty list only");
    117 setresuid(real: i32, effective: i32, saved: i32) => identity::set_three_ids, Partial("root only");
    118 getresuid(real: Addr, effective: Addr, saved: Addr) => identity::get_three_ids, Full;
    119 setresgid(real: i32, effective: i32, saved: i32) => identity::set_three_ids, Partial("root only");
    120 getresgid(real: Addr, effective: Addr, saved: Addr) => identity::get_three_ids, Full;
    121 getpgid(pid: i32) => identity::own_group, Full;
    124 getsid(pid: i32) => identity::own_group, Full;
    125 capget(header: Addr, data: Addr) => identity::capget, Full;
    127 rt_sigpending(set: Addr, set_bytes: u64) => calls::rt_sigpending, Full;
    128 rt_sigtimedwait(set: Addr, info: Addr, timeout: TimespecIn, set_bytes: u64) => wait::rt_sigtimedwait, Full;
    129 rt_sigqueueinfo(pid: i32, signal: Signal, info: Addr) => calls::rt_sigqueueinfo, Full;
    130 rt_sigsuspend(mask: Addr, set_bytes: u64) => wait::rt_sigsuspend, Full;
    131 sigaltstack(new: Addr, old: Addr) => calls::sigaltstack, Full;
    140 getpriority(which: PriorityWhich, who: i32) => sched::getpriority, Partial("of one thread");
    141 setpriority(which: PriorityWhich, who: i32, nice: i32) => sched::setpriority, Partial("of one thread");
    142 sched_setparam(tid: i32, param: Addr) => sched::sched_setparam, Partial("SCHED_OTHER only");
    143 sched_getparam(tid: i32, param: Addr) => sched::sched_getparam, Full;
    144 sched_setscheduler(tid: i32, policy: SchedPolicy, param: Addr) => sched::sched_setscheduler, Partial("real-time policies give EPERM");
    145 sched_getscheduler(tid: i32) => sched::sched_getscheduler, Full;
    146 sched_get_priority_max(policy: SchedPolicy) => sched::sched_get_priority_max, Full;
    147 sched_get_priority_min(policy: SchedPolicy) => sched::sched_get_priority_min, Full;
    148 sched_rr_get_interval(tid: i32, out: Addr) => sched::sched_rr_get_interval, Full;
    149 mlock(at: Addr, len: u64) => mm::mlock, Full;
    150 munlock(at: Addr, len: u64) => mm::munlock, Full;
    151 mlockall(flags: MlockallFlags) => mm::mlockall, Full;
    152 munlockall() => mm::munlockall, Full;
    157 prctl(op: PrctlOp, arg2: Hex, arg3: Hex, arg4: Hex, arg5: Hex) => system::prctl, Partial("names, dumpable, timer slack, capabilities; others EINVAL");
    158 arch_prctl(op: ArchPrctlOp, value: Addr) => system::arch_prctl, Partial("ARCH_SET_GS is refused: GS is the kernel's");
    159 adjtimex() => time::refuse_setting, No(CLOCK);
    160 setrlimit(resource: Resource, new: Addr) => limits::setrlimit, Partial("RLIMIT_NOFILE has effect");
    164 settimeofday() => time::refuse_setting, No(CLOCK);
    169 reboot() => system::refuse_administration, No("the machine ends with its first program");
    186 gettid() => identity::gettid, Full;
    200 tkill(tid: i32, signal: Signal) => calls::tkill, Full;
    201 time(out: Addr) => time::time, Full;
    202 futex(word: Addr, op: FutexOp, value: u32, arg4: u64, word2: Addr, value3: u32) => futex::futex, Partial("no priority inheritance");
    203 sched_setaffinity(tid: i32, size: u32, mask: Addr) => sched::sched_setaffinity, Full;
    204 sched_getaffinity(tid: i32, size: u32, out: Addr) => sched::sched_getaffinity, Full;
    218 set_tid_address(at: Addr) => threads::set_tid_address, Full;
    222 timer_create(clock: ClockId, event: Addr, out: Addr) => posix::timer_create, Partial(NO_CPU_TIMERS);
    223 timer_settime(id: i32, flags: TimerFlags, new: Addr, old: Addr) => posix::timer_settime, Full;
    224 timer_gettime(id: i32, out: Addr) => posix::timer_gettime, Full;
    225 timer_getoverrun(id: i32) => posix::timer_getoverrun, Partial("expirations while the signal waits are not counted");
    226 timer_delete(id: i32) => posix::timer_delete, Full;
    227 clock_settime() => time::refuse_setting, No(CLOCK);
    228 clock_gettime(clock: ClockId, out: Addr) => time::clock_gettime, Full;
    229 clock_getres(clock: ClockId, out: Addr) => time::clock_getres, Full;
    230 clock_nanosleep(clock: ClockId, flags: TimerFlags, wanted: TimespecIn, remaining: Addr) => time::clock_nanosleep, Partial("not on CPU clocks");
    231 exit_group(code: i32) => threads::exit_group, Full;
    234 tgkill(pid: i32, tid: i32, signal: Signal) => calls::tgkill, Full;
    239 get_mempolicy() => unsupported::enosys, No("one memory node: as a kernel without NUMA");
    247 waitid() => unsupported::no_child, Partial("there are no children: ECHILD");
    273 set_robust_list(head: Addr, len: u64) => threads::set_robust_list, Full;
    274 get_robust_list(tid: i32, head: Addr, len: Addr) => threads::get_robust_list, Full;
    283 timerfd_create(clock: ClockId, flags: EventFlags) => timerfd::timerfd_create, Full;
    286 timerfd_settime(fd: Fd, flags: TimerfdFlags, new: Addr, old: Addr) => timerfd::timerfd_settime, Full;
    287 timerfd_gettime(fd: Fd, out: Addr) => timerfd::timerfd_gettime, Full;
    289 signalfd4() => unsupported::enosys, No("no signalfd yet");
    297 rt_tgsigqueueinfo(pid: i32, tid: i32, signal: Signal, info: Addr) => calls::rt_tgsigqueueinfo, Full;
    298 perf_event_open() => unsupported::enosys, No("no performance counters");
    302 prlimit64(pid: i32, resource: Resource, new: Addr, old: Addr) => limits::prlimit64, Partial("RLIMIT_NOFILE has effect");
    309 getcpu(cpu: Addr, node: Addr) => sched::getcpu, Full;
    318 getrandom(out: Addr, len: u64, flags: RandomFlags) => system::getrandom, Full;
    324 membarrier(command: MembarrierCmd, flags: u32, cpu: i32) => mm::membarrier, Partial("only MEMBARRIER_CMD_QUERY, which offers nothing");
    325 mlock2(at: Addr, len: u64, flags: u32) => mm::mlock2, Full;
    334 rseq(area: Addr, len: u32, flags: RseqFlags, signature: Hex) => threads::rseq, Partial("ENOSYS, silently: glibc does without");
    435 clone3(args: Addr, size: u64) => threads::clone3, Partial("threads only");
};
