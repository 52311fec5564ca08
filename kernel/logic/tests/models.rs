//! The kernel's lock-free protocols in every interleaving that matters, by the model checker `loom`.
//!
//! `loom` gives sequentially consistent loads and stores no more than acquire and release; it orders
//! read-modify-writes in full, so [`Cell`] puts these in their place.
use std::{collections::VecDeque, sync::Arc};

use logic::{
    atomic::AtomicCell,
    idle_poll::Polling,
    mail_stack::MailStack,
    park_word::{Ended, Ends, ParkWord},
};
use loom::{
    model::Builder,
    sync::{
        Mutex, Notify,
        atomic::{AtomicUsize, Ordering, fence},
    },
    thread,
};

struct Cell(AtomicUsize);

impl Cell {
    fn new(value: usize) -> Self {
        Self(AtomicUsize::new(value))
    }

    fn get(&self) -> usize {
        self.0.fetch_add(0, Ordering::AcqRel)
    }

    fn set(&self, value: usize) {
        self.0.swap(value, Ordering::AcqRel);
    }
}

/// At least what each of the kernel's orders promises.
fn at_most_acq_rel(order: Ordering) -> Ordering {
    if order == Ordering::SeqCst { Ordering::AcqRel } else { order }
}

macro_rules! as_atomic_cell {
    ($value:ty) => {
        impl AtomicCell<$value> for Cell {
            fn load(&self, order: Ordering) -> $value {
                let value = if order == Ordering::SeqCst { self.get() } else { self.0.load(order) };
                value as $value
            }

            fn store(&self, value: $value, order: Ordering) {
                if order == Ordering::SeqCst { self.set(value as usize) } else { self.0.store(value as usize, order) }
            }

            fn swap(&self, value: $value, order: Ordering) -> $value {
                self.0.swap(value as usize, at_most_acq_rel(order)) as $value
            }

            fn compare_exchange(
                &self,
                from: $value,
                to: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let result = self.0.compare_exchange(from as usize, to as usize, at_most_acq_rel(success), failure);
                result.map(|value| value as $value).map_err(|value| value as $value)
            }
        }
    };
}

as_atomic_cell!(u8);
as_atomic_cell!(usize);

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// A task as `machine::tasks::scheduler` has it; running it again is a notification.
struct Task {
    word: ParkWord<Cell>,
    interrupted: Cell,
    run: Notify,
    made_runnable: Cell,
}

impl Task {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            word: ParkWord::new(Cell::new(0), Cell::new(0)),
            interrupted: Cell::new(0),
            run: Notify::new(),
            made_runnable: Cell::new(0),
        })
    }

    fn make_runnable(&self) {
        let before = self.made_runnable.0.fetch_add(1, Ordering::AcqRel);
        assert_eq!(before, 0, "a task is in two queues");
        self.run.notify();
    }

    fn unpark(&self) {
        if self.word.unpark() {
            self.make_runnable();
        }
    }

    fn interrupt(&self) {
        self.interrupted.set(1);
        if self.word.end(Ends::Interruptible, Ended::Interrupted) {
            self.make_runnable();
        }
    }

    fn time_out(&self) {
        if self.word.end(Ends::All, Ended::TimedOut) {
            self.make_runnable();
        }
    }

    /// `sleep::sleep_until`, without its timer.
    fn park(&self, ends: Ends) -> Ended {
        if self.word.take_token() {
            return Ended::Woken;
        }
        if ends == Ends::Interruptible && self.interrupted.get() != 0 {
            return Ended::Interrupted;
        }
        self.sleep(ends)
    }

    /// `sleep::sleep`.
    fn sleep(&self, ends: Ends) -> Ended {
        let interrupted = || ends == Ends::Interruptible && self.interrupted.get() != 0;
        if !self.word.publish(ends) {
            return Ended::Woken;
        }
        if interrupted() && self.word.withdraw(ends) {
            return Ended::Interrupted;
        }
        // A notification may come for nothing; a CPU runs a task only out of a queue.
        while self.made_runnable.get() == 0 {
            self.run.wait();
        }
        self.made_runnable.set(0);
        self.word.ended()
    }
}

fn with<T: Send + Sync + 'static>(shared: &Arc<T>, run: fn(&T)) -> thread::JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || run(&shared))
}

/// Without the unpark, the second park would not end: `loom` reports that as a deadlock.
#[test]
fn each_unpark_ends_a_park() {
    check(3, || {
        let task = Task::new();
        let waker = with(&task, Task::unpark);
        assert_eq!(task.park(Ends::All), Ended::Woken);
        waker.join().unwrap();
        let waker = with(&task, Task::unpark);
        assert_eq!(task.park(Ends::Interruptible), Ended::Woken);
        waker.join().unwrap();
    });
}

/// A futex's waiter: between its park and what it waits for there is no lock. With a token of an earlier
/// wait it looks just when the waker comes, and sees what the waker has done, or parks and is woken.
#[test]
fn what_came_before_an_unpark_is_seen_when_an_older_token_is_taken() {
    for sleep in [Task::sleep, Task::park] {
        check(3, move || {
            let shared = Arc::new((Task::new(), Cell::new(0)));
            let (task, done) = &*shared;
            task.unpark();
            let waker = with(&shared, |(task, done)| {
                done.0.store(1, Ordering::Release);
                task.unpark();
            });
            while done.0.load(Ordering::Acquire) == 0 {
                sleep(task, Ends::All);
            }
            waker.join().unwrap();
        });
    }
}

/// `clear_interrupt` and a program that ends: whoever clears the flag and then finds no reason for it is
/// interrupted again.
#[test]
fn the_reason_of_an_interrupt_is_seen_or_the_flag_stays() {
    check(4, || {
        let shared = Arc::new((Task::new(), Cell::new(0)));
        let (task, ending) = &*shared;
        let ender = with(&shared, |(task, ending)| {
            ending.0.store(1, Ordering::Release);
            task.interrupt();
        });
        // `Task::clear_interrupt`.
        task.interrupted.0.swap(0, Ordering::AcqRel);
        let seen = ending.0.load(Ordering::Acquire) != 0;
        ender.join().unwrap();
        assert!(seen || task.interrupted.get() != 0);
    });
}

#[test]
fn an_interrupt_ends_a_park_it_meets_at_any_point() {
    check(4, || {
        let task = Task::new();
        let interrupter = with(&task, Task::interrupt);
        assert_eq!(task.park(Ends::Interruptible), Ended::Interrupted);
        interrupter.join().unwrap();
    });
}

#[test]
fn one_of_several_ends_a_park_and_no_unpark_is_lost() {
    check(2, || {
        let task = Task::new();
        let others = [with(&task, Task::unpark), with(&task, Task::interrupt), with(&task, Task::time_out)];
        let first = task.park(Ends::Interruptible);
        others.into_iter().for_each(|other| other.join().unwrap());
        // An unpark that did not end the park has left its token.
        if first != Ended::Woken {
            assert_eq!(task.park(Ends::All), Ended::Woken);
        }
    });
}

#[test]
fn an_interrupt_leaves_an_uninterruptible_park_alone() {
    check(3, || {
        let task = Task::new();
        let others = [with(&task, Task::interrupt), with(&task, Task::unpark)];
        assert_eq!(task.park(Ends::All), Ended::Woken);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// `rt::sync::WaitQueue`, whose wakers and leavers look at numbers before they take its lock. Mirrors that
/// file; change both together.
struct WaitQueue {
    waiters: Mutex<Waiters>,
    count: AtomicUsize,
    unwoken: AtomicUsize,
}

#[derive(Default)]
struct Waiters {
    tasks: VecDeque<(usize, Arc<Task>)>,
    next_ticket: usize,
}

impl WaitQueue {
    fn new() -> Self {
        Self { waiters: Mutex::new(Waiters::default()), count: AtomicUsize::new(0), unwoken: AtomicUsize::new(0) }
    }

    fn add(&self, task: &Arc<Task>) -> usize {
        let mut waiters = self.waiters.lock().unwrap();
        let ticket = waiters.next_ticket;
        waiters.next_ticket += 1;
        waiters.tasks.push_back((ticket, task.clone()));
        self.count.store(waiters.tasks.len(), Ordering::Relaxed);
        drop(waiters);
        fence(Ordering::SeqCst);
        ticket
    }

    fn leave(&self, ticket: usize) {
        if self.unwoken.load(Ordering::Acquire) <= ticket {
            let mut waiters = self.waiters.lock().unwrap();
            waiters.tasks.retain(|waiter| waiter.0 != ticket);
            self.count.store(waiters.tasks.len(), Ordering::Relaxed);
        }
    }

    fn wait_until(&self, task: &Arc<Task>, ready: impl Fn() -> bool) {
        if ready() {
            return;
        }
        loop {
            let ticket = self.add(task);
            if ready() {
                return self.leave(ticket);
            }
            task.sleep(Ends::All);
            self.leave(ticket);
            if ready() {
                return;
            }
        }
    }

    fn wake_one(&self) {
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut waiters = self.waiters.lock().unwrap();
        let Some((ticket, task)) = waiters.tasks.pop_front() else { return };
        self.count.store(waiters.tasks.len(), Ordering::Relaxed);
        self.unwoken.store(ticket + 1, Ordering::Release);
        drop(waiters);
        task.unpark();
    }
}

/// The second wait begins while a wake-up of the first may be on its way.
#[test]
fn a_waiter_sees_what_it_waits_for_or_is_woken() {
    check(2, || {
        let shared = Arc::new((WaitQueue::new(), [AtomicUsize::new(0), AtomicUsize::new(0)]));
        let wakers = [0, 1].map(|which| {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.1[which].store(1, Ordering::Relaxed);
                shared.0.wake_one();
            })
        });
        let task = Task::new();
        for done in &shared.1 {
            shared.0.wait_until(&task, || done.load(Ordering::Relaxed) != 0);
        }
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
    });
}

/// `rt::sync::Mutex`, but for the turn of those that starve: a lock given back wakes one, and whoever was
/// woken for nothing is woken again by who was faster.
#[test]
fn each_of_several_gets_the_lock() {
    check(2, || {
        let shared = Arc::new((WaitQueue::new(), AtomicUsize::new(0)));
        let own_it = |shared: &(WaitQueue, AtomicUsize)| {
            let (queue, held) = shared;
            let take = || held.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
            queue.wait_until(&Task::new(), take);
            held.store(0, Ordering::Release);
            queue.wake_one();
        };
        let others = [with(&shared, own_it), with(&shared, own_it)];
        own_it(&shared);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// A CPU's mailbox: items are 1, 2, …, each with its link; an interrupt is sent to an empty mailbox.
struct Mail {
    stack: MailStack<usize, Cell>,
    next: [Cell; 4],
    content: [Cell; 4],
    interrupts: Cell,
}

impl Mail {
    fn post(&self, item: usize) {
        // What the sender wrote must be there when the receiver gets it, by the stack's own ordering.
        self.content[item].0.store(item, Ordering::Relaxed);
        let top = self.stack.push(item, |item, next| self.next[item].0.store(next, Ordering::Relaxed));
        if top == 0 {
            self.interrupts.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn receive(&self) -> usize {
        let (mut item, mut count) = (self.stack.take_all(0), 0);
        while item != 0 {
            assert_eq!(self.content[item].0.load(Ordering::Relaxed), item);
            item = self.next[item].0.load(Ordering::Relaxed);
            count += 1;
        }
        count
    }
}

#[test]
fn all_mail_arrives_and_what_is_left_has_an_interrupt() {
    check(3, || {
        let mail = Arc::new(Mail {
            stack: MailStack::new(Cell::new(0)),
            next: std::array::from_fn(|_| Cell::new(0)),
            content: std::array::from_fn(|_| Cell::new(0)),
            interrupts: Cell::new(0),
        });
        let posts = [with(&mail, |mail| (1..3).for_each(|item| mail.post(item))), with(&mail, |mail| mail.post(3))];
        let mut got = mail.receive();
        posts.into_iter().for_each(|post| post.join().unwrap());
        // The receiver looks again only because of an interrupt.
        while got < 3 {
            assert!(mail.interrupts.get() > 0, "mail without an interrupt");
            got += mail.receive();
        }
        assert_eq!((got, mail.stack.top()), (3, 0));
    });
}

/// A CPU that polls and then halts, as `machine::tasks::idle` has it, and those who send it mail.
struct IdleCpu {
    stack: MailStack<usize, Cell>,
    next: [Cell; 3],
    polling: Polling<Cell>,
    interrupt: Notify,
    interrupts: Cell,
}

impl IdleCpu {
    fn post(&self, item: usize) {
        let top = self.stack.push(item, |item, next| self.next[item].0.store(next, Ordering::Relaxed));
        if top == 0 && self.polling.must_interrupt() {
            self.interrupts.0.fetch_add(1, Ordering::AcqRel);
            self.interrupt.notify();
        }
    }

    fn receive(&self) -> usize {
        let (mut item, mut count) = (self.stack.take_all(0), 0);
        while item != 0 {
            item = self.next[item].0.load(Ordering::Relaxed);
            count += 1;
        }
        count
    }

    /// Idle until there is mail: polls once, halts after that. An interrupt that comes before the halt
    /// ends it, since both happen with interrupts off.
    fn wait(&self) {
        self.polling.begin();
        let found = self.stack.top() != 0;
        self.polling.end();
        if found || self.stack.top() != 0 {
            return;
        }
        while self.interrupts.get() == 0 {
            self.interrupt.wait();
        }
        self.interrupts.set(0);
    }
}

/// With a lost wake-up the CPU would halt for ever: `loom` reports that as a deadlock.
#[test]
fn mail_reaches_a_cpu_that_polls_and_one_that_halts() {
    check(3, || {
        let cpu = Arc::new(IdleCpu {
            stack: MailStack::new(Cell::new(0)),
            next: std::array::from_fn(|_| Cell::new(0)),
            polling: Polling::new(Cell::new(0)),
            interrupt: Notify::new(),
            interrupts: Cell::new(0),
        });
        let posts = [with(&cpu, |cpu| cpu.post(1)), with(&cpu, |cpu| cpu.post(2))];
        let mut got = 0;
        while got < 2 {
            cpu.wait();
            got += cpu.receive();
        }
        posts.into_iter().for_each(|post| post.join().unwrap());
    });
}

/// `machine::memory::tlb` with two CPUs: one unmaps a page and frees its frame, the other comes out of
/// idle with the page's translation still in its TLB. Mirrors that file; change both together.
struct Shootdown {
    idle: Cell,
    requested: Cell,
    acknowledged: Cell,
    freed: Cell,
}

impl Shootdown {
    /// On the CPU that unmaps.
    fn shoot_down(&self) {
        let generation = self.requested.0.fetch_add(1, Ordering::AcqRel) + 1;
        if self.idle.get() == 0 {
            while self.acknowledged.0.load(Ordering::Acquire) < generation {
                thread::yield_now();
            }
        }
        self.freed.set(1);
    }

    /// On the other: whether its translation is still there afterwards.
    fn leave_idle(&self) -> bool {
        self.idle.set(0);
        self.catch_up()
    }

    fn catch_up(&self) -> bool {
        let generation = self.requested.get();
        let behind = self.acknowledged.0.load(Ordering::Relaxed) < generation;
        if behind {
            self.acknowledged.0.fetch_max(generation, Ordering::Release);
        }
        !behind
    }
}

#[test]
fn no_cpu_leaves_idle_with_a_translation_of_a_freed_frame() {
    check(4, || {
        let state = Arc::new(Shootdown {
            idle: Cell::new(1),
            requested: Cell::new(0),
            acknowledged: Cell::new(0),
            freed: Cell::new(0),
        });
        let unmapper = with(&state, Shootdown::shoot_down);
        if state.leave_idle() {
            assert_eq!(state.freed.get(), 0, "a freed frame is used through a stale translation");
        }
        // The interrupt that the request sends, if it saw this CPU awake.
        while state.freed.get() == 0 {
            state.catch_up();
            thread::yield_now();
        }
        unmapper.join().unwrap();
    });
}

/// A requester that halts until it is told of the answer: `tlb::halt_unless` and `tlb::acknowledge`.
struct Answer {
    acknowledged: Cell,
    halted: Cell,
    interrupts: Cell,
    interrupt: Notify,
}

#[test]
fn who_halts_for_an_answer_is_told_of_it() {
    check(4, || {
        let answer = Arc::new(Answer {
            acknowledged: Cell::new(0),
            halted: Cell::new(0),
            interrupts: Cell::new(0),
            interrupt: Notify::new(),
        });
        let other = with(&answer, |answer| {
            answer.acknowledged.set(1);
            if answer.halted.get() != 0 {
                answer.interrupts.set(1);
                answer.interrupt.notify();
            }
        });
        answer.halted.set(1);
        if answer.acknowledged.get() == 0 {
            while answer.interrupts.get() == 0 {
                answer.interrupt.wait();
            }
        }
        other.join().unwrap();
    });
}
