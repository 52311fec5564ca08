#![allow(unsafe_code, reason = "functions by the names that `rt` links to")]
//! [`rt::Runtime`] over this machine: each method names what serves it.
use rt::{
    Runtime,
    page::{OutOfFrames, PageId},
    space::AddressSpace,
    task::{ParkMode, Parked, TaskRef, TaskSpec},
    user::UserMemory,
};
use x86_64::instructions::interrupts;

use crate::{
    console,
    cpu::percpu::{self, this_cpu},
    drivers::power,
    memory::{frames, reclaim, space, user},
    random, tasks, time,
};

/// The machine as the services see it.
pub struct Machine;

/// Registers the machine as the runtime.
pub fn register() {
    rt::init(&Machine);
}

impl Runtime for Machine {
    fn current(&self) -> TaskRef {
        tasks::current()
    }

    fn park(&self, deadline_ns: Option<u64>, mode: ParkMode) -> Parked {
        tasks::park(deadline_ns, mode)
    }

    fn preemption_point(&self) {
        tasks::preemption_point();
    }

    fn yield_now(&self) {
        tasks::yield_now();
    }

    fn spawn(&self, spec: TaskSpec) -> Result<TaskRef, OutOfFrames> {
        Ok(tasks::spawn(spec, &mut |_| ())?)
    }

    fn spawn_prepared(&self, spec: TaskSpec, prepare: &mut dyn FnMut(&TaskRef)) -> Result<TaskRef, OutOfFrames> {
        Ok(tasks::spawn(spec, prepare)?)
    }

    fn exit_task(&self) -> ! {
        tasks::exit()
    }

    fn now_ns(&self) -> u64 {
        time::now_ns_in_order()
    }

    fn realtime_ns(&self) -> u64 {
        time::realtime_ns()
    }

    fn random(&self, out: &mut [u8]) {
        random::fill(out);
    }

    fn cpu_count(&self) -> usize {
        percpu::online_count()
    }

    fn cpu_index(&self) -> usize {
        this_cpu().index.get() as usize
    }

    fn page_alloc(&self, zeroed: bool) -> Result<PageId, OutOfFrames> {
        loop {
            match frames::take_file_page(zeroed) {
                Ok(frame) => return Ok(PageId(frame)),
                Err(out) if this_cpu().lock_depth.get() != 0 || !reclaim::reclaim() => return Err(out),
                Err(_) => {}
            }
        }
    }

    fn page_ref(&self, page: PageId) {
        frames::reference(page.0);
    }

    fn page_unref(&self, page: PageId) {
        frames::unreference(page.0);
    }

    fn page_refcount(&self, page: PageId) -> u32 {
        frames::references(page.0)
    }

    fn page_read(&self, page: PageId, offset: usize, out: &mut [u8]) {
        frames::read(page.0, offset, out);
    }

    fn page_write(&self, page: PageId, offset: usize, data: &[u8]) {
        frames::write(page.0, offset, data);
    }

    fn draw_budget(&self) -> Result<(), OutOfFrames> {
        while frames::reserve_is_low() {
            if !reclaim::reclaim() {
                return Err(OutOfFrames);
            }
        }
        Ok(())
    }

    fn memory_bytes(&self) -> (u64, u64) {
        frames::totals()
    }

    fn address_space(&self) -> &dyn AddressSpace {
        &space::SPACE
    }

    fn user(&self) -> &dyn UserMemory {
        &user::User
    }

    fn console_write(&self, bytes: &[u8]) {
        console::write(bytes);
    }

    fn console_read(&self, out: &mut [u8]) -> usize {
        console::read(out)
    }

    fn console_wait_input(&self, deadline_ns: Option<u64>) -> Parked {
        console::wait_input(deadline_ns)
    }

    fn power_off(&self, exit_code: u8) -> ! {
        power::exit(exit_code)
    }
}

// --- what `rt` links to: see `rt::link` --------------------------------------------------------------

#[unsafe(no_mangle)]
fn rt_irq_lock_enter() -> bool {
    let were_on = interrupts::are_enabled();
    interrupts::disable();
    percpu::add_lock_depth(1);
    were_on
}

#[unsafe(no_mangle)]
fn rt_irq_lock_leave(were_on: bool) {
    percpu::add_lock_depth(-1);
    if were_on {
        interrupts::enable();
    }
}

#[unsafe(no_mangle)]
fn rt_lock_depth_add(by: i32) {
    percpu::add_lock_depth(by);
}

#[unsafe(no_mangle)]
fn rt_current() -> TaskRef {
    tasks::current()
}

#[unsafe(no_mangle)]
fn rt_park(deadline_ns: Option<u64>, mode: ParkMode) -> Parked {
    tasks::park(deadline_ns, mode)
}
