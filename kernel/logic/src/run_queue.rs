//! A CPU's run queue: fair by weighted virtual runtime.
//!
//! Each entity's virtual runtime grows by the time it ran, divided by its weight; the one that is
//! furthest behind runs next. Weights are Linux' nice levels (a step is about 25 %).
//!
//! # Invariants
//! Entities wait in order of virtual runtime, then of arrival, so equal ones take turns. `floor`
//! never goes back: a sleeper cannot save up more than [`SLEEPER_CREDIT_NS`].
use alloc::collections::BinaryHeap;
use core::cmp::Ordering;

/// `sched_prio_to_weight` for nice -20 to 19.
const WEIGHTS: [u32; 40] = [
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906, 3121, 2501,
    1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
];
const NICE_0: u64 = 1024;

/// How long the running task goes on while an equal one waits.
pub const SLICE_NS: u64 = 3_000_000;
/// How far below the floor a woken task may start.
const SLEEPER_CREDIT_NS: u64 = 3_000_000;
/// What a run is charged as at most. None lasts longer while somebody waits, but for long ways through the
/// kernel: who has had the CPU alone owes nobody that time, and would not get it again until whoever comes
/// next has had as much.
const MOST_CHARGED_NS: u64 = 4 * SLICE_NS;
/// A woken task takes the CPU at once only if it is this far behind the running one.
const WAKE_GRANULARITY_NS: u64 = 1_000_000;

/// Weight of a nice level; out of range counts as the nearest.
pub fn weight(nice: i8) -> u32 {
    WEIGHTS[(nice.clamp(-20, 19) + 20) as usize]
}

/// Virtual nanoseconds for `ran_ns` at `weight`.
fn virtual_ns(ran_ns: u64, weight: u32) -> u64 {
    if u64::from(weight) == NICE_0 {
        ran_ns
    } else {
        (u128::from(ran_ns) * u128::from(NICE_0) / u128::from(weight.max(1))) as u64
    }
}

/// By how much a run of `ran_ns` without a break adds to the virtual runtime.
pub fn charge_ns(ran_ns: u64, weight: u32) -> u64 {
    virtual_ns(ran_ns.min(MOST_CHARGED_NS), weight)
}

/// The waiting entities of one CPU. The running one is not among them; its owner keeps its virtual
/// runtime and gives it back at [`RunQueue::push`].
pub struct RunQueue<T> {
    /// A heap, since it neither allocates nor frees as tasks come and go.
    waiting: BinaryHeap<Waiting<T>>,
    arrivals: u64,
    floor: u64,
}

struct Waiting<T> {
    vruntime: u64,
    arrival: u64,
    item: T,
}

impl<T> Waiting<T> {
    fn key(&self) -> (u64, u64) {
        (self.vruntime, self.arrival)
    }
}

impl<T> Ord for Waiting<T> {
    /// The greatest is the one furthest behind.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Waiting<T> {}

impl<T> Default for RunQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> RunQueue<T> {
    pub const fn new() -> Self {
        // Not 0, so that no sleeper's credit leads below it.
        Self { waiting: BinaryHeap::new(), arrivals: 0, floor: SLEEPER_CREDIT_NS }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A task's virtual runtime relative to this queue, to carry it to another: see
    /// [`RunQueue::adopt`].
    pub fn lag(&self, vruntime: u64) -> i64 {
        vruntime.wrapping_sub(self.floor) as i64
    }

    /// The virtual runtime here of a task that had `lag` elsewhere, or slept: not far below the floor.
    pub fn adopt(&self, lag: i64) -> u64 {
        self.floor.wrapping_add_signed(lag.max(-(SLEEPER_CREDIT_NS as i64)))
    }

    pub fn push(&mut self, vruntime: u64, item: T) {
        self.arrivals += 1;
        self.waiting.push(Waiting { vruntime, arrival: self.arrivals, item });
    }

    /// Virtual runtime of the entity that is furthest behind.
    pub fn first(&self) -> Option<u64> {
        self.waiting.peek().map(|first| first.vruntime)
    }

    /// Takes the entity that is furthest behind.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        let Waiting { vruntime, item, .. } = self.waiting.pop()?;
        self.floor = self.floor.max(vruntime);
        Some((vruntime, item))
    }

    /// True if a waiting entity should replace the running one now: it is behind, and the slice is
    /// over.
    pub fn slice_over(&self, running_vruntime: u64, ran_ns: u64) -> bool {
        ran_ns >= SLICE_NS && self.first().is_some_and(|first| first <= running_vruntime)
    }

    /// True if an entity that just woke with `vruntime` should replace the running one at once.
    pub fn preempts(vruntime: u64, running_vruntime: u64) -> bool {
        vruntime + WAKE_GRANULARITY_NS < running_vruntime
    }

    /// Whether one of those waiting is `wanted`.
    pub fn any(&self, mut wanted: impl FnMut(&T) -> bool) -> bool {
        self.waiting.iter().any(|waiting| wanted(&waiting.item))
    }

    /// Takes the entity furthest behind that `allowed` accepts, for another CPU.
    pub fn steal(&mut self, mut allowed: impl FnMut(&T) -> bool) -> Option<(u64, T)> {
        // `max`: the order is that of the heap, in which the one furthest behind is the greatest.
        let key = self.waiting.iter().filter(|waiting| allowed(&waiting.item)).max()?.key();
        let mut all = core::mem::take(&mut self.waiting).into_vec();
        let at = all.iter().position(|waiting| waiting.key() == key);
        let stolen = at.map(|at| all.swap_remove(at));
        self.waiting = all.into();
        stolen.map(|stolen| (stolen.vruntime, stolen.item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `rounds` slices and returns the time each of the tasks got.
    fn simulate(nices: &[i8], rounds: usize) -> Vec<u64> {
        let mut queue = RunQueue::new();
        let mut ran = vec![0; nices.len()];
        for task in 0..nices.len() {
            queue.push(0, task);
        }
        for _ in 0..rounds {
            let (vruntime, task) = queue.pop().unwrap();
            ran[task] += SLICE_NS;
            queue.push(vruntime + virtual_ns(SLICE_NS, weight(nices[task])), task);
        }
        ran
    }

    #[test]
    fn equal_tasks_share_within_a_slice() {
        let ran = simulate(&[0, 0, 0], 300);
        assert!(ran.iter().all(|&t| t == 100 * SLICE_NS));
    }

    #[test]
    fn time_follows_weight() {
        let ran = simulate(&[0, 5], 4000);
        let ratio = ran[0] as f64 / ran[1] as f64;
        let expected = f64::from(weight(0)) / f64::from(weight(5));
        assert!((ratio / expected - 1.0).abs() < 0.02, "{ratio} instead of {expected}");
    }

    #[test]
    fn who_had_the_cpu_alone_soon_gets_it_again() {
        let mut queue = RunQueue::new();
        queue.push(50_000_000_000, "first");
        let (mut first, _) = queue.pop().unwrap();
        first += charge_ns(60_000_000_000, weight(0));
        let mut late = queue.adopt(0);
        let mut waited_ns = 0;
        queue.push(first, "first");
        queue.push(late, "late");
        while queue.pop().unwrap().1 == "late" {
            waited_ns += SLICE_NS;
            late += charge_ns(SLICE_NS, weight(0));
            queue.push(late, "late");
        }
        assert!(waited_ns <= 5 * SLICE_NS, "{waited_ns}");
    }

    #[test]
    fn a_sleeper_gets_no_more_than_its_credit() {
        let mut queue = RunQueue::new();
        queue.push(50_000_000_000, 'a');
        queue.pop();
        assert_eq!(queue.adopt(-60_000_000_000), 50_000_000_000 - SLEEPER_CREDIT_NS);
        assert_eq!(queue.adopt(10_000_000_000), 60_000_000_000);
    }

    #[test]
    fn a_thief_takes_what_it_may() {
        let mut queue = RunQueue::new();
        queue.push(1, 'a');
        queue.push(2, 'b');
        assert!(queue.any(|&item| item == 'b') && !queue.any(|&item| item == 'c'));
        assert_eq!(queue.steal(|&item| item == 'b'), Some((2, 'b')));
        assert_eq!(queue.steal(|&item| item == 'b'), None);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn lag_survives_the_move_to_another_queue() {
        let mut from = RunQueue::new();
        from.push(11_000_000, 'x');
        from.pop();
        let mut to = RunQueue::new();
        to.push(9_000_000, 'y');
        to.pop();
        assert_eq!(to.adopt(from.lag(11_500_000)), 9_500_000);
        assert_eq!(to.adopt(i64::MIN), 9_000_000 - SLEEPER_CREDIT_NS);
    }

    #[test]
    fn the_slice_ends_only_for_somebody_behind() {
        let mut queue = RunQueue::new();
        assert!(!queue.slice_over(5, SLICE_NS));
        queue.push(10, 'a');
        assert!(!queue.slice_over(5, SLICE_NS));
        assert!(queue.slice_over(10, SLICE_NS));
        assert!(!queue.slice_over(10, SLICE_NS - 1));
    }
}
