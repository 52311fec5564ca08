//! The virtio balloon: memory for the host when it asks, and free memory reported to it.
//!
//! The protocol is [`logic::virtio::balloon`]'s, the frames are [`memory::balloon`]'s; here is a task of
//! the kernel's own that follows the host's target, answers for statistics, and reports free blocks: a
//! while after some got free, not at each, and all at once. What the host has dropped reads as anything
//! afterwards, as free memory does, so a later allocation of it needs nothing.
//!
//! # Locking
//! [`Driver::state`] (sleeping) is held through an exchange with the device: there is one at a time.
//! Nothing is reclaimed under it, since reclaim may come for it. [`Driver::device`] is shared with the
//! interrupt handler.
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use logic::virtio::{
    VirtioError,
    balloon::{Balloon, Direction, REPORT_BLOCKS, TRANSFER_PAGES, statistic},
};
use rt::{
    sync::{Mutex, WaitQueue},
    task::{ParkMode, TaskSpec},
};
use spin::Once;

use super::{
    Quiesce,
    discovery::{DeviceTransport, Found},
    memory::DmaArea,
};
use crate::{
    cpu::lock::IrqSpin,
    memory::{
        balloon::{self, Lent},
        frames,
        paging::PAGE,
    },
    tasks, time,
};

const MS: u64 = 1_000_000;
/// From the first block that could be reported to the report, as Linux has it: what is used again soon
/// need not go and come back.
const REPORT_DELAY_NS: u64 = 2000 * MS;
/// A CPU that is never idle tells nobody of free memory.
const LOOK_ANYWAY_NS: u64 = 30_000 * MS;
/// When memory was too short for the host's wish, it is tried again.
const RETRY_NS: u64 = 1000 * MS;
/// For a device that does not answer: then it is given up.
const PATIENCE_NS: u64 = 5000 * MS;
/// How often to look where there is no interrupt, or one gets lost.
const POLL_NS: u64 = 10 * MS;

static DRIVER: Once<Arc<Driver>> = Once::new();

pub struct Driver {
    device: IrqSpin<Balloon<DeviceTransport, DmaArea>>,
    state: Mutex<State>,
    /// The device or the memory has news.
    events: WaitQueue,
    news: AtomicBool,
    interrupts: bool,
    report_order: u32,
}

struct State {
    lent: Lent,
    quiesced: bool,
    report_at: Option<u64>,
    /// The guest ran out of memory under this target: no more is lent until it changes.
    too_much: Option<u32>,
}

/// Starts the device and its task. The first one: a second is left alone.
pub fn start(found: Found) -> Result<Arc<dyn Quiesce>, VirtioError> {
    if DRIVER.is_completed() {
        return Err(VirtioError::NotThere);
    }
    let bus = found.bus();
    let (transport, wire) = found.open()?;
    let connected = wire.connect(|_| interrupted(), 0);
    let device = Balloon::new(transport, DmaArea::allocate, connected.and_then(|connected| connected.entry))?;
    let reports = device.report_limit() > 0;
    let driver = Driver {
        device: IrqSpin::new(device),
        state: Mutex::new(State { lent: Lent::new(), quiesced: false, report_at: None, too_much: None }),
        events: WaitQueue::new(),
        news: AtomicBool::new(false),
        interrupts: connected.is_some(),
        report_order: balloon::report_order(),
    };
    let driver = DRIVER.call_once(|| Arc::new(driver)).clone();
    wire.listen(connected);
    balloon::when_out_of_memory(deflate_for_memory);
    if reports {
        balloon::set_watcher(driver.report_order, || DRIVER.get().into_iter().for_each(|driver| driver.tell()));
        balloon::watch();
    }
    let spec = TaskSpec::kernel("balloon", |_| DRIVER.get().into_iter().for_each(|driver| driver.run()));
    tasks::spawn(spec, &mut |_| ()).map_err(|_| VirtioError::NoRoom)?;
    log::info!("virtio balloon on {bus}{}", if reports { ", with free page reporting" } else { "" });
    Ok(driver)
}

fn interrupted() {
    // None: before the device has started; a shared line.
    if let Some(driver) = DRIVER.get() {
        driver.device.lock().acknowledge_interrupt();
        driver.tell();
    }
}

/// Memory has run out, and no cache has any: some pages come back, if the host agreed to that.
fn deflate_for_memory() -> bool {
    DRIVER.get().is_some_and(|driver| driver.deflate_for_memory())
}

impl Driver {
    fn tell(&self) {
        self.news.store(true, Ordering::Release);
        self.events.wake_all();
    }

    /// The task.
    fn run(&self) {
        loop {
            self.news.store(false, Ordering::Relaxed);
            let next = self.step();
            let next = match (next, self.interrupts) {
                (_, false) => Some(time::now_ns() + POLL_NS),
                (next, true) => next,
            };
            let ready = || self.news.load(Ordering::Acquire).then_some(());
            let _ = self.events.wait_until(next, ParkMode::Uninterruptible, ready);
        }
    }

    /// Does what is to be done now. The result is when to look again without news.
    fn step(&self) -> Option<u64> {
        if self.state.lock().quiesced || self.device.lock().is_switched_off() {
            return None;
        }
        if let Err(error) = self.exchange(|_| true, |_| false) {
            self.lost(error);
            return None;
        }
        self.give_statistics();
        let retry = self.follow_target();
        let report = self.report_when_due();
        [retry, report].into_iter().flatten().min()
    }

    /// Starts something, unless there is no room for it, and waits until it is no longer `busy`. An
    /// error: the device is switched off; if it is [`VirtioError::Silent`], it may still use what it was
    /// given. Under the state's lock.
    fn exchange(
        &self,
        start: impl FnOnce(&mut Balloon<DeviceTransport, DmaArea>) -> bool,
        busy: impl Fn(&Balloon<DeviceTransport, DmaArea>) -> bool,
    ) -> Result<(), VirtioError> {
        {
            let mut device = self.device.lock();
            if !start(&mut device) {
                // Switched off meanwhile; or it says that the one before is finished, and it is not.
                device.work()?;
                return device.switch_off().and(Err(VirtioError::Lied));
            }
        }
        let deadline = time::now_ns() + PATIENCE_NS;
        loop {
            let finished = || {
                let mut device = self.device.lock();
                match device.work() {
                    Ok(()) => (!busy(&device)).then_some(Ok(())),
                    Err(error) => Some(Err(error)),
                }
            };
            let next = time::now_ns() + POLL_NS;
            match self.events.wait_until(Some(next), ParkMode::Uninterruptible, finished) {
                Ok(result) => return result,
                Err(_) if time::now_ns() < deadline => {}
                // Reset, it lets go of everything; if it does not even do that, `Silent`.
                Err(_) => return self.device.lock().switch_off().and(Err(VirtioError::Lied)),
            }
        }
    }

    fn lost(&self, error: VirtioError) {
        log::error!("the balloon is not used any more: {error}");
        if error == VirtioError::Silent {
            return;
        }
        // It was reset: everything is the guest's again.
        let mut numbers = [0; TRANSFER_PAGES];
        loop {
            let count = self.state.lock().lent.take(&mut numbers);
            if count == 0 {
                return;
            }
            balloon::scatter(&numbers[..count]);
        }
    }

    fn give_statistics(&self) {
        let mut device = self.device.lock();
        if device.wants_statistics() {
            let (total, free) = frames::totals();
            device.give_statistics(&[
                (statistic::FREE, free),
                (statistic::TOTAL, total),
                (statistic::AVAILABLE, free.saturating_sub(frames::reserve_bytes())),
            ]);
        }
    }

    /// Lends or takes back until the host has what it wants. Some: memory is too short, and when to try
    /// again.
    fn follow_target(&self) -> Option<u64> {
        loop {
            let total = (frames::totals().0 / PAGE) as u32;
            let wanted = self.device.lock().target();
            let target = wanted.min(total);
            let lent = {
                let mut state = self.state.lock();
                if state.quiesced || state.too_much == Some(wanted) && target > state.lent.count() {
                    return None;
                }
                state.too_much = None;
                state.lent.count()
            };
            let done = match target.abs_diff(lent).min(TRANSFER_PAGES as u32) as usize {
                0 => return None,
                count if target > lent => self.inflate(count),
                count => self.deflate(count),
            };
            match done {
                Ok(true) => {}
                Ok(false) => return Some(time::now_ns() + RETRY_NS),
                Err(error) => {
                    self.lost(error);
                    return None;
                }
            }
        }
    }

    /// Lends up to so many pages. False: memory is too short for that.
    fn inflate(&self, count: usize) -> Result<bool, VirtioError> {
        let mut numbers = [0; TRANSFER_PAGES];
        let got = balloon::gather(&mut numbers[..count]);
        let numbers = &numbers[..got];
        if got == 0 {
            return Ok(false);
        }
        let mut state = self.state.lock();
        if state.quiesced {
            balloon::scatter(numbers);
            return Ok(true);
        }
        let result =
            self.exchange(|device| device.transfer(Direction::Inflate, numbers), |device| device.is_transferring());
        match result {
            Ok(()) => {
                state.lent.add(numbers);
                self.device.lock().set_actual(state.lent.count());
                Ok(got == count)
            }
            Err(error) => {
                if error != VirtioError::Silent {
                    balloon::scatter(numbers);
                }
                Err(error)
            }
        }
    }

    /// Takes up to so many pages back. False: there are none.
    fn deflate(&self, count: usize) -> Result<bool, VirtioError> {
        let mut numbers = [0; TRANSFER_PAGES];
        let mut state = self.state.lock();
        if state.quiesced {
            return Ok(false);
        }
        let count = state.lent.take(&mut numbers[..count]);
        let numbers = &numbers[..count];
        if count == 0 {
            return Ok(false);
        }
        // Told before they are used, whether or not the host insists on it.
        let result =
            self.exchange(|device| device.transfer(Direction::Deflate, numbers), |device| device.is_transferring());
        if result.is_ok() {
            self.device.lock().set_actual(state.lent.count());
        }
        if result != Err(VirtioError::Silent) {
            balloon::scatter(numbers);
        }
        result.map(|()| true)
    }

    fn deflate_for_memory(&self) -> bool {
        let wanted = {
            let device = self.device.lock();
            if !device.may_deflate_on_oom() || device.is_switched_off() {
                return false;
            }
            device.target()
        };
        match self.deflate(TRANSFER_PAGES) {
            Ok(false) => false,
            Ok(true) => {
                self.state.lock().too_much = Some(wanted);
                true
            }
            // Given up, it brings all pages back.
            Err(error) => {
                self.lost(error);
                error != VirtioError::Silent
            }
        }
    }

    /// Reports free memory when its time has come. The result is when that will be.
    fn report_when_due(&self) -> Option<u64> {
        if self.device.lock().report_limit() == 0 {
            return None;
        }
        let now = time::now_ns();
        let mut state = self.state.lock();
        match state.report_at {
            Some(at) if at > now => Some(at),
            Some(_) => {
                state.report_at = None;
                let result = self.report_all();
                drop(state);
                if let Err(error) = result {
                    self.lost(error);
                    return None;
                }
                balloon::watch();
                Some(now + LOOK_ANYWAY_NS)
            }
            None if frames::has_unreported(self.report_order) => {
                state.report_at = Some(now + REPORT_DELAY_NS);
                state.report_at
            }
            None => {
                balloon::watch();
                Some(now + LOOK_ANYWAY_NS)
            }
        }
    }

    /// Reports all there is, a request at a time. Under the state's lock.
    fn report_all(&self) -> Result<(), VirtioError> {
        let limit = self.device.lock().report_limit();
        loop {
            let mut blocks = [(0, 0); REPORT_BLOCKS];
            let count = self.take_blocks(&mut blocks[..limit]);
            if count == 0 {
                return Ok(());
            }
            let mut segments = [(0, 0); REPORT_BLOCKS];
            for (segment, &(address, order)) in segments.iter_mut().zip(&blocks[..count]) {
                *segment = (address, (PAGE as u32) << order);
            }
            let result = self.exchange(|device| device.report(&segments[..count]), |device| device.is_reporting());
            if result == Err(VirtioError::Silent) {
                return result;
            }
            for &(address, order) in &blocks[..count] {
                frames::give_after_report(address, order, result.is_ok());
            }
            result?;
        }
    }

    /// Blocks for one report: (address, order). Nobody can have them meanwhile, so most of what is free
    /// stays.
    fn take_blocks(&self, out: &mut [(u64, u32)]) -> usize {
        if frames::is_short() {
            return 0;
        }
        let mut bytes_left = frames::totals().1 / 4;
        for (at, slot) in out.iter_mut().enumerate() {
            let Some((address, order)) = frames::take_unreported(self.report_order) else { return at };
            *slot = (address, order);
            bytes_left = bytes_left.saturating_sub(PAGE << order);
            if bytes_left == 0 {
                return at + 1;
            }
        }
        out.len()
    }
}

impl Quiesce for Driver {
    fn quiesce(&self) -> bool {
        // Nothing is in flight when nobody holds the state.
        let mut state = self.state.lock();
        let mut device = self.device.lock();
        let before = device.is_switched_off();
        state.quiesced = state.quiesced || device.quiesce();
        let (quiesced, lost) = (state.quiesced, !before && device.is_switched_off());
        drop(device);
        drop(state);
        if lost {
            self.lost(VirtioError::Silent);
        }
        quiesced
    }

    fn resume(&self) -> Result<(), VirtioError> {
        let mut state = self.state.lock();
        let resumed = match core::mem::take(&mut state.quiesced) {
            true => self.device.lock().resume(state.lent.count()),
            false => Ok(()),
        };
        drop(state);
        match resumed {
            Ok(()) => self.tell(),
            Err(error) => self.lost(error),
        }
        resumed
    }
}
