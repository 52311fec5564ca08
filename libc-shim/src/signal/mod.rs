//! Signals: sets, information, actions and pending queues; delivery and the calls are beside.
//!
//! Three tables meet at a delivery: a program's actions and pending signals ([`ProgramSignals`]), a
//! thread's mask and pending signals ([`ThreadSignals`]), and the frame of the thread ([`frame`]).
//! [`send`] queues and wakes, [`deliver`] runs on the receiving thread, before it returns to
//! application code. Sources: signal(7), sigaction(2), sigreturn(2), sigaltstack(2).
//!
//! # Locking
//! A program's lock before a thread's; both are spin locks, held for queue work only.
//!
//! # Invariants
//! A sender sets the pending bit before it looks at masks, and a thread changes its mask before it
//! looks at the pending bits; so one of the two sees that the thread must be interrupted.
//!
//! A thread that was chosen for a program's signal, and then blocks it or ends, hands it over to another
//! ([`send::hand_over`]).
use alloc::collections::VecDeque;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::{
    args::Fields,
    errno::{EINVAL, ENOMEM, SysResult},
};

pub mod calls;
pub mod deliver;
pub mod fault;
pub mod frame;
pub mod send;
pub mod wait;

/// Signals are 1 to 64; a set has bit `signal - 1`.
pub const SIGNALS: usize = 64;

pub const SIGILL: u32 = 4;
pub const SIGTRAP: u32 = 5;
pub const SIGBUS: u32 = 7;
pub const SIGFPE: u32 = 8;
pub const SIGKILL: u32 = 9;
pub const SIGSEGV: u32 = 11;
pub const SIGPIPE: u32 = 13;
pub const SIGCHLD: u32 = 17;
pub const SIGCONT: u32 = 18;
pub const SIGSTOP: u32 = 19;
pub const SIGURG: u32 = 23;
pub const SIGWINCH: u32 = 28;

/// The first real-time signal, for the kernel (libc keeps some for itself).
const SIGRTMIN: u32 = 32;

/// `si_code` values (sigaction(2)).
pub const SI_USER: i32 = 0;
pub const SI_KERNEL: i32 = 0x80;
pub const SI_TIMER: i32 = -2;
pub const SI_TKILL: i32 = -6;

/// A set of signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SigSet(pub u64);

impl SigSet {
    pub const EMPTY: Self = Self(0);
    /// SIGKILL and SIGSTOP, which cannot be blocked.
    pub const UNBLOCKABLE: Self = Self(1 << (SIGKILL - 1) | 1 << (SIGSTOP - 1));
    /// Signals that code raises by what it does: delivered before all others.
    const SYNCHRONOUS: Self =
        Self(1 << (SIGSEGV - 1) | 1 << (SIGBUS - 1) | 1 << (SIGILL - 1) | 1 << (SIGTRAP - 1) | 1 << (SIGFPE - 1));

    pub fn of(signal: u32) -> Self {
        Self(1 << (signal - 1))
    }
    pub fn has(self, signal: u32) -> bool {
        self.0 & Self::of(signal).0 != 0
    }
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// A mask as an application may set it.
    pub fn blockable(self) -> Self {
        self.without(Self::UNBLOCKABLE)
    }
    /// The signal to deliver first.
    fn first(self) -> Option<u32> {
        let urgent = self.0 & Self::SYNCHRONOUS.0;
        let from = if urgent != 0 { urgent } else { self.0 };
        (from != 0).then(|| from.trailing_zeros() + 1)
    }
}

/// What a handler with SA_SIGINFO is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigInfo {
    pub signal: u32,
    pub errno: i32,
    pub code: i32,
    /// The union after the three ints: bytes 16 to 48 of `siginfo_t`, enough for every member.
    pub fields: [u64; 4],
}

impl SigInfo {
    pub const BYTES: usize = 128;

    /// Sent by kill, tkill or tgkill.
    pub fn from_sender(signal: u32, code: i32, pid: u32) -> Self {
        // si_pid, then si_uid: all programs run as root.
        Self { signal, errno: 0, code, fields: [u64::from(pid), 0, 0, 0] }
    }

    pub fn fault(signal: u32, code: i32, address: u64) -> Self {
        Self { signal, errno: 0, code, fields: [address, 0, 0, 0] }
    }

    pub fn from_kernel(signal: u32) -> Self {
        Self { signal, errno: 0, code: SI_KERNEL, fields: [0; 4] }
    }

    /// As `siginfo_t` lies in memory.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut out = Fields::default().u32(self.signal).u32(self.errno as u32).u32(self.code as u32).skip(4);
        for field in self.fields {
            out = out.u64(field);
        }
        out.finish()
    }

    /// What rt_sigqueueinfo is given.
    pub fn from_bytes(signal: u32, bytes: &[u8; Self::BYTES]) -> Self {
        let int = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut fields = [0; 4];
        for (field, chunk) in fields.iter_mut().zip(bytes[16..48].chunks_exact(8)) {
            *field = chunk.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        Self { signal, errno: int(4), code: int(8), fields }
    }
}

/// `sa_flags` (sigaction(2)).
pub mod sa {
    pub const RESTORER: u64 = 0x0400_0000;
    pub const ONSTACK: u64 = 0x0800_0000;
    pub const RESTART: u64 = 0x1000_0000;
    pub const NODEFER: u64 = 0x4000_0000;
    pub const RESETHAND: u64 = 0x8000_0000;
    /// SA_NOCLDSTOP, SA_NOCLDWAIT, SA_SIGINFO and SA_EXPOSE_TAGBITS beside those above. Others are
    /// cleared, so that programs can ask what is known (sigaction(2)).
    pub const KNOWN: u64 = 1 | 2 | 4 | 0x800 | RESTORER | ONSTACK | RESTART | NODEFER | RESETHAND;
}

/// One entry of the action table: the kernel's `struct sigaction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// 0 is SIG_DFL, 1 is SIG_IGN.
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: SigSet,
}

impl Action {
    pub const BYTES: usize = 32;
    pub const DEFAULT: u64 = 0;
    pub const IGNORE: u64 = 1;

    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        Fields::default().u64(self.handler).u64(self.flags).u64(self.restorer).u64(self.mask.0).finish()
    }

    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        Self { handler: word(0), flags: word(8) & sa::KNOWN, restorer: word(16), mask: SigSet(word(24)).blockable() }
    }
}

/// What SIG_DFL does (signal(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    Terminate,
    /// Terminate; the shell adds "core dumped", which never is here.
    Core,
    Ignore,
    Stop,
}

pub fn default_action(signal: u32) -> Default {
    match signal {
        3..=8 | 11 | 24 | 25 | 31 => Default::Core,
        SIGCHLD | SIGCONT | SIGURG | SIGWINCH => Default::Ignore,
        19..=22 => Default::Stop,
        _ => Default::Terminate,
    }
}

/// Signals that wait: real-time ones queue, of the others one waits at most.
pub struct Pending {
    set: SigSet,
    queue: VecDeque<SigInfo>,
    /// Real-time signals in this queue and all that are limited with it.
    queued: &'static AtomicUsize,
}

impl core::default::Default for Pending {
    fn default() -> Self {
        /// As on Linux, the limit is the user's, and there is one user.
        static QUEUED: AtomicUsize = AtomicUsize::new(0);
        Self::limited_with(&QUEUED)
    }
}

impl Pending {
    /// RLIMIT_SIGPENDING: more queued signals are refused (EAGAIN).
    pub const LIMIT: usize = 4096;

    fn limited_with(queued: &'static AtomicUsize) -> Self {
        Self { set: SigSet::EMPTY, queue: VecDeque::new(), queued }
    }

    pub fn set(&self) -> SigSet {
        self.set
    }

    /// False if too many wait already: real-time signals only, of the others one always fits.
    pub fn add(&mut self, info: SigInfo) -> bool {
        if info.signal < SIGRTMIN {
            if self.set.has(info.signal) {
                return true;
            }
        } else if self.queued.fetch_add(1, Ordering::Relaxed) >= Self::LIMIT {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.set = self.set.with(SigSet::of(info.signal));
        self.queue.push_back(info);
        true
    }

    /// Takes the first that is among `wanted`.
    pub fn take(&mut self, wanted: SigSet) -> Option<SigInfo> {
        let signal = SigSet(self.set.0 & wanted.0).first()?;
        let at = self.queue.iter().position(|info| info.signal == signal)?;
        let info = self.queue.remove(at)?;
        self.uncount(&info);
        if !self.queue.iter().any(|other| other.signal == signal) {
            self.set = self.set.without(SigSet::of(signal));
        }
        Some(info)
    }

    /// Drops all of one signal (it became ignored).
    pub fn forget(&mut self, signals: SigSet) {
        self.queue.iter().filter(|info| signals.has(info.signal)).for_each(|info| self.uncount(info));
        self.queue.retain(|info| !signals.has(info.signal));
        self.set = self.set.without(signals);
    }

    /// Counts `expirations` more of a timer whose signal waits still: it is not queued a second time
    /// (timer_getoverrun(2)). False if none waits; the result is the new overrun otherwise.
    pub fn merge_timer(&mut self, signal: u32, timer_id: i32, expirations: u64) -> Option<u64> {
        let own = |info: &&mut SigInfo| {
            info.signal == signal && info.code == SI_TIMER && info.fields[0] as u32 == timer_id as u32
        };
        let info = self.queue.iter_mut().find(own)?;
        let overrun = ((info.fields[0] >> 32) + expirations).min(i32::MAX as u64);
        info.fields[0] = u64::from(timer_id as u32) | overrun << 32;
        Some(overrun)
    }

    fn uncount(&self, info: &SigInfo) {
        if info.signal >= SIGRTMIN {
            self.queued.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.queue.iter().for_each(|info| self.uncount(info));
    }
}

/// A program's part. Guarded by `Program::signals`.
pub struct ProgramSignals {
    pub actions: [Action; SIGNALS],
    pub pending: Pending,
}

impl ProgramSignals {
    pub fn new() -> Self {
        Self {
            actions: [Action { handler: 0, flags: 0, restorer: 0, mask: SigSet::EMPTY }; SIGNALS],
            pending: Pending::default(),
        }
    }

    pub fn action(&mut self, signal: u32) -> &mut Action {
        &mut self.actions[signal as usize - 1]
    }

    /// The signal would do nothing: not even be queued (unless it is blocked).
    pub fn is_ignored(&self, signal: u32) -> bool {
        match self.actions[signal as usize - 1].handler {
            Action::IGNORE => true,
            Action::DEFAULT => default_action(signal) == Default::Ignore,
            _ => false,
        }
    }
}

/// `stack_t` (sigaltstack(2)); `size` 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AltStack {
    pub base: u64,
    pub size: u64,
    pub autodisarm: bool,
}

impl AltStack {
    /// SS_AUTODISARM
    pub const AUTODISARM: u32 = 1 << 31;

    /// What sigaltstack(2) sets; the caller has checked that it may.
    pub fn from_parts(base: u64, flags: u32, size: u64) -> SysResult<Self> {
        /// AT_MINSIGSTKSZ is larger, but this is what Linux checks.
        const MINSIGSTKSZ: u64 = 2048;
        let autodisarm = flags & Self::AUTODISARM != 0;
        match flags & !Self::AUTODISARM {
            // SS_ONSTACK is taken as 0, as Linux does.
            0 | 1 if size < MINSIGSTKSZ => Err(ENOMEM),
            0 | 1 => Ok(Self { base, size, autodisarm }),
            2 => Ok(Self { autodisarm, ..Self::default() }),
            _ => Err(EINVAL),
        }
    }

    /// The thread runs on it. As Linux: the stack grows down, so its top counts as on it and its base does
    /// not; one that disarms itself never counts as in use, since it is not set then.
    pub fn contains(&self, rsp: u64) -> bool {
        !self.autodisarm && rsp > self.base && rsp - self.base <= self.size
    }
}

/// A thread's part. Guarded by `Thread::signals`.
#[derive(Default)]
pub struct ThreadSignals {
    pub mask: SigSet,
    /// The mask to go back to after sigsuspend, ppoll, pselect or epoll_pwait.
    pub saved_mask: Option<SigSet>,
    pub pending: Pending,
    pub alt_stack: AltStack,
    /// Signals that sigtimedwait waits for: they wake although they are blocked.
    pub waited_for: SigSet,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synchronous_signals_come_first_and_standard_ones_once() {
        let mut pending = Pending::default();
        for signal in [1, SIGSEGV, 1, 40, 40] {
            assert!(pending.add(SigInfo::from_kernel(signal)));
        }
        let order: alloc::vec::Vec<u32> =
            core::iter::from_fn(|| pending.take(SigSet(u64::MAX))).map(|info| info.signal).collect();
        assert_eq!(order, [SIGSEGV, 1, 40, 40]);
        assert!(pending.set().is_empty());
    }

    /// A flood of real-time signals must not keep out a fault's SIGSEGV.
    #[test]
    fn queues_are_limited_together_and_standard_signals_always_fit() {
        static QUEUED: AtomicUsize = AtomicUsize::new(0);
        let mut queues = [Pending::limited_with(&QUEUED), Pending::limited_with(&QUEUED)];
        let info = SigInfo::from_kernel(40);
        for added in 0..Pending::LIMIT {
            assert!(queues[added % 2].add(info));
        }
        assert!(!queues[0].add(info) && !queues[1].add(info));
        assert!(queues[0].add(SigInfo::from_kernel(SIGSEGV)));
        assert_eq!(queues[0].take(SigSet(u64::MAX)).map(|info| info.signal), Some(SIGSEGV));
        let [one, mut other] = queues;
        drop(one);
        assert!(other.add(info));
        other.forget(SigSet::of(40));
        assert!(other.set().is_empty());
        assert_eq!(QUEUED.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_timers_signal_waits_once() {
        let mut pending = Pending::default();
        let timer = |id: u64| SigInfo { signal: 34, errno: 0, code: SI_TIMER, fields: [id, 7, 0, 0] };
        assert_eq!(pending.merge_timer(34, 3, 1), None);
        pending.add(timer(3));
        assert_eq!(pending.merge_timer(34, 4, 1), None);
        assert_eq!(pending.merge_timer(34, 3, 2), Some(2));
        assert_eq!(pending.merge_timer(34, 3, u64::from(u32::MAX)), Some(i32::MAX as u64));
        assert_eq!(pending.take(SigSet(u64::MAX)).map(|info| info.fields[0]), Some(3 | (i32::MAX as u64) << 32));
        assert!(pending.take(SigSet(u64::MAX)).is_none());
    }

    #[test]
    fn blocked_signals_stay() {
        let mut pending = Pending::default();
        pending.add(SigInfo::from_kernel(10));
        assert!(pending.take(SigSet(u64::MAX).without(SigSet::of(10))).is_none());
        pending.forget(SigSet::of(10));
        assert!(pending.set().is_empty());
    }

    #[test]
    fn siginfo_survives_its_bytes() {
        let info = SigInfo { signal: 34, errno: 3, code: -1, fields: [1, 2, 3, 4] };
        assert_eq!(SigInfo::from_bytes(34, &info.to_bytes()), info);
    }
}
