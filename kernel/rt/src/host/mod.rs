//! The runtime over `std`, for tests of the services on the host.
//!
//! Tasks are threads, pages are counted 4 KiB blocks with a limit that a test can set, application
//! memory is a map of such pages, the clock can be virtual, and the console is a pair of buffers.
//! It checks what the kernel would be broken by: a sleep under a spin lock, a page used after its last
//! reference, a drop too many; each panics.
//!
//! One runtime serves the process: [`install`] it at the start of each test. A test that sets the
//! page limit or the clock needs a test binary of its own, or to be the only such test in one.
mod pages;
mod space;
pub(crate) mod tasks;

use std::{
    collections::VecDeque,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    Runtime,
    page::{OutOfFrames, PAGE_SIZE, PageId},
    space::AddressSpace,
    sync::WaitQueue,
    task::{ParkMode, Parked, Start, TaskRef, TaskSpec},
    user::UserMemory,
};

pub use space::HostSpace;

/// The host's runtime.
pub struct HostRuntime {
    clock: Clock,
    pages: pages::Pages,
    space: HostSpace,
    console: Console,
    random: AtomicU64,
}

/// Registers the host runtime, once; every call gives the same one.
pub fn install() -> &'static HostRuntime {
    static HOST: OnceLock<HostRuntime> = OnceLock::new();
    let host = HOST.get_or_init(|| HostRuntime {
        clock: Clock { start: Instant::now(), virtual_ns: Mutex::new(None) },
        pages: pages::Pages::default(),
        space: HostSpace::default(),
        console: Console::default(),
        random: AtomicU64::new(0x5eed),
    });
    crate::init(host);
    host
}

/// Real time, until a test sets a virtual one.
struct Clock {
    start: Instant,
    virtual_ns: Mutex<Option<u64>>,
}

#[derive(Default)]
struct Console {
    input: Mutex<VecDeque<u8>>,
    arrived: WaitQueue,
    output: Mutex<Vec<u8>>,
}

impl HostRuntime {
    /// From now on the clock stands at `now_ns` and moves only by this call. Parked tasks whose
    /// deadline it reaches wake up.
    pub fn set_clock(&self, now_ns: u64) {
        *self.clock.virtual_ns.lock().unwrap() = Some(now_ns);
        tasks::clock_moved();
    }

    /// Pages that may exist at once.
    pub fn set_page_limit(&self, pages: usize) {
        self.pages.set_limit(pages);
    }

    /// Asked for a number of pages when the limit is reached; its result is how many it freed.
    pub fn set_reclaim(&self, reclaim: fn(usize) -> usize) {
        self.pages.set_reclaim(reclaim);
    }

    /// Pages that exist now.
    pub fn pages_in_use(&self) -> usize {
        self.pages.in_use()
    }

    /// The fake application memory and its mappings.
    pub fn space(&self) -> &HostSpace {
        &self.space
    }

    /// What was written to the console since the last call.
    pub fn take_console_output(&self) -> Vec<u8> {
        std::mem::take(&mut self.console.output.lock().unwrap())
    }

    pub fn type_on_console(&self, bytes: &[u8]) {
        self.console.input.lock().unwrap().extend(bytes);
        self.console.arrived.wake_all();
    }
}

impl Runtime for HostRuntime {
    fn current(&self) -> TaskRef {
        tasks::current()
    }

    fn park(&self, deadline_ns: Option<u64>, mode: ParkMode) -> Parked {
        tasks::assert_may_sleep();
        tasks::park(self, deadline_ns, mode)
    }

    fn yield_now(&self) {
        std::thread::yield_now();
    }

    fn spawn(&self, spec: TaskSpec) -> Result<TaskRef, OutOfFrames> {
        match spec.start {
            Start::Kernel(..) => Ok(tasks::spawn(spec)),
            Start::Application { .. } => panic!("host tests run no application code"),
        }
    }

    fn exit_task(&self) -> ! {
        // Safe Rust has no way to end a thread from within but a panic; none of its own runs again.
        loop {
            std::thread::park();
        }
    }

    fn now_ns(&self) -> u64 {
        let set = *self.clock.virtual_ns.lock().unwrap();
        set.unwrap_or_else(|| self.clock.start.elapsed().as_nanos() as u64)
    }

    fn realtime_ns(&self) -> u64 {
        let set = *self.clock.virtual_ns.lock().unwrap();
        set.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64))
    }

    /// A seeded stream (SplitMix64), the same in each run with one thread.
    fn random(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ z >> 31).to_le_bytes()[..chunk.len()]);
        }
    }

    fn cpu_count(&self) -> usize {
        2
    }

    fn cpu_index(&self) -> usize {
        0
    }

    fn page_alloc(&self, zeroed: bool) -> Result<PageId, OutOfFrames> {
        tasks::assert_may_sleep();
        self.pages.alloc(zeroed)
    }

    fn page_ref(&self, page: PageId) {
        self.pages.add_reference(page);
    }

    fn page_unref(&self, page: PageId) {
        self.pages.drop_reference(page);
    }

    fn page_refcount(&self, page: PageId) -> u32 {
        self.pages.references(page)
    }

    fn page_read(&self, page: PageId, offset: usize, out: &mut [u8]) {
        self.pages.read(page, offset, out);
    }

    fn page_write(&self, page: PageId, offset: usize, data: &[u8]) {
        self.pages.write(page, offset, data);
    }

    fn memory_bytes(&self) -> (u64, u64) {
        let limit = self.pages.limit().min(1 << 24) as u64;
        let free = limit.saturating_sub(self.pages.in_use() as u64);
        (limit * PAGE_SIZE as u64, free * PAGE_SIZE as u64)
    }

    fn address_space(&self) -> &dyn AddressSpace {
        &self.space
    }

    fn user(&self) -> &dyn UserMemory {
        &self.space
    }

    fn console_write(&self, bytes: &[u8]) {
        self.console.output.lock().unwrap().extend_from_slice(bytes);
    }

    fn console_read(&self, out: &mut [u8]) -> usize {
        let mut input = self.console.input.lock().unwrap();
        let len = out.len().min(input.len());
        for (to, from) in out.iter_mut().zip(input.drain(..len)) {
            *to = from;
        }
        len
    }

    fn console_wait_input(&self, deadline_ns: Option<u64>) -> Parked {
        let there = || (!self.console.input.lock().unwrap().is_empty()).then_some(());
        match self.console.arrived.wait_until(deadline_ns, ParkMode::Interruptible, there) {
            Ok(()) => Parked::Woken,
            Err(parked) => parked,
        }
    }

    fn power_off(&self, exit_code: u8) -> ! {
        std::process::exit(exit_code.into())
    }
}

#[cfg(test)]
mod tests;
