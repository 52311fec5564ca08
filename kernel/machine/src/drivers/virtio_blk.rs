//! Virtio disks as block devices: many requests in flight, waiters woken by interrupt.
//!
//! The protocol is [`logic::virtio::block`]'s; here is who waits. Until an interrupt is connected, a
//! waiter polls.
//!
//! # Locking
//! [`VirtioDisk::inner`], shared with the interrupt handler. Tasks are woken after it is released.
//!
//! A task that has requests in flight finishes its oldest one before it waits for a free slot, so
//! tasks never wait for each other in a circle.
use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicBool, Ordering};

use logic::virtio::{
    VirtioError,
    block::{Block, BlockError as Failure, Data, MAX_SEGMENTS, Operation, SLOTS},
    transport::Transport,
};
use rt::{
    block::{BlockDevice, BlockError, SECTOR_SIZE},
    page::{PAGE_SIZE, Page},
    rt,
    sync::WaitQueue,
    task::{ParkMode, TaskRef},
};
use spin::Once;

use super::{Quiesce, memory::DmaArea};
use crate::{cpu::lock::IrqSpin, time};

/// Requests that one call has in flight at most.
const OWN_LIMIT: usize = 8;

struct Inner<T> {
    block: Block<T, DmaArea>,
    /// Who waits for each slot.
    waiters: [Option<TaskRef>; SLOTS],
}

pub struct VirtioDisk<T> {
    inner: IrqSpin<Inner<T>>,
    /// Tasks that wait for a free slot.
    full: WaitQueue,
    interrupts: AtomicBool,
    sectors: u64,
    read_only: bool,
    has_flush: bool,
    max_segments: usize,
    max_segment_bytes: u32,
}

/// What an interrupt vector is given before the disk exists: the disk follows.
pub struct Handle<T: 'static>(Once<Arc<VirtioDisk<T>>>);

impl<T: Transport + Send + 'static> Handle<T> {
    /// Lives as long as the machine, as the interrupt's data must.
    pub fn new() -> &'static Self {
        Box::leak(Box::new(Self(Once::new())))
    }

    /// For [`Handle::interrupt`].
    pub fn data(&'static self) -> usize {
        INTERRUPT_TARGETS.add(self)
    }

    /// Starts the device behind `transport`. `interrupts`: a vector was connected, with the MSI-X
    /// table entry `vector` where the device has a table.
    pub fn start(
        &'static self,
        transport: T,
        vector: Option<u16>,
        interrupts: bool,
    ) -> Result<Arc<VirtioDisk<T>>, VirtioError> {
        let disk = Arc::new(VirtioDisk::new(Block::new(transport, DmaArea::allocate, vector)?, interrupts));
        Ok(self.0.call_once(|| disk).clone())
    }
}

/// A disk as an interrupt sees it.
trait Target: Sync {
    fn interrupted(&self);
}

impl<T: Transport + Send> Target for Handle<T> {
    fn interrupted(&self) {
        // None: before the disk has started; a shared line.
        if let Some(disk) = self.0.get() {
            disk.inner.lock().block.acknowledge_interrupt();
            disk.take_completions();
        }
    }
}

/// Targets by number, so that an interrupt's data is an index and not a pointer.
struct Targets {
    list: [Once<&'static dyn Target>; Targets::LIMIT],
    count: core::sync::atomic::AtomicUsize,
}

static INTERRUPT_TARGETS: Targets =
    Targets { list: [const { Once::new() }; Targets::LIMIT], count: core::sync::atomic::AtomicUsize::new(0) };

impl Targets {
    const LIMIT: usize = 64;

    /// Beyond the limit the number leads nowhere, and the disk's waiters would wait forever:
    /// [`super::start_devices`] starts no more.
    fn add(&self, target: &'static dyn Target) -> usize {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = self.list.get(number) {
            slot.call_once(|| target);
        }
        number
    }
}

/// More disks than this are left alone.
pub const DISK_LIMIT: usize = Targets::LIMIT;

/// The interrupt handler of all disks; `data` is from [`Handle::data`].
pub fn interrupt(data: usize) {
    if let Some(target) = INTERRUPT_TARGETS.list.get(data).and_then(Once::get) {
        target.interrupted();
    }
}

impl<T: Transport + Send> VirtioDisk<T> {
    fn new(block: Block<T, DmaArea>, interrupts: bool) -> Self {
        Self {
            sectors: block.sectors(),
            read_only: block.read_only(),
            has_flush: block.has_flush(),
            max_segments: block.max_segments().min(MAX_SEGMENTS),
            max_segment_bytes: block.max_segment_bytes(),
            inner: IrqSpin::new(Inner { block, waiters: [const { None }; SLOTS] }),
            full: WaitQueue::new(),
            interrupts: AtomicBool::new(interrupts),
        }
    }

    /// Takes in what the device has finished, and wakes who waits for it. From tasks and interrupts.
    fn take_completions(&self) {
        let mut woken: [Option<TaskRef>; SLOTS] = [const { None }; SLOTS];
        let mut lost = false;
        {
            let mut inner = self.inner.lock();
            let Inner { block, waiters } = &mut *inner;
            let before = block.is_switched_off();
            block.complete(|slot| woken[slot] = waiters[slot].take());
            lost |= !before && block.is_switched_off();
        }
        if lost {
            log::error!("a virtio disk broke the protocol and was switched off");
        }
        woken.into_iter().flatten().for_each(|task| task.unpark());
    }

    /// One request over any number of pages, in as many parts as the device needs.
    fn transfer(&self, operation: Operation, first_sector: u64, pages: &[Page]) -> Result<(), BlockError> {
        let bytes = (pages.len() * PAGE_SIZE) as u64;
        let end = first_sector.checked_add(bytes / SECTOR_SIZE as u64);
        if end.is_none_or(|end| end > self.sectors) {
            return Err(BlockError::OutOfRange);
        }
        let mut own = Own { disk: self, slots: [0; OWN_LIMIT], count: 0, result: Ok(()) };
        let (mut sector, mut rest) = (first_sector, pages);
        while !rest.is_empty() && own.result.is_ok() {
            let (data, count, taken) = self.gather(rest);
            own.start(operation, sector, &data[..count]);
            sector += (taken * PAGE_SIZE / SECTOR_SIZE) as u64;
            rest = &rest[taken..];
        }
        own.finish_all()
    }

    /// Segments of as many pages as fit one request, neighbours in memory joined: (segments, how
    /// many, pages).
    fn gather(&self, pages: &[Page]) -> ([Data; MAX_SEGMENTS], usize, usize) {
        let mut data = [(0, 0); MAX_SEGMENTS];
        let (mut count, mut taken) = (0, 0);
        for page in pages {
            let address = page.id().0;
            match data[..count].last_mut() {
                Some(last)
                    if last.0 + u64::from(last.1) == address && last.1 + PAGE_SIZE as u32 <= self.max_segment_bytes =>
                {
                    last.1 += PAGE_SIZE as u32;
                }
                _ if count == self.max_segments => break,
                _ => {
                    data[count] = (address, PAGE_SIZE as u32);
                    count += 1;
                }
            }
            taken += 1;
        }
        (data, count, taken)
    }

    /// Starts a request if there is room.
    fn try_start(&self, operation: Operation, sector: u64, data: &[Data]) -> Option<Result<usize, BlockError>> {
        self.inner.lock().block.submit(operation, sector, data).map_err(reported).transpose()
    }

    /// The result of a request of the caller's; sleeps until it is there.
    fn finish(&self, slot: usize) -> Result<(), BlockError> {
        let interrupts = self.interrupts.load(Ordering::Relaxed);
        loop {
            self.take_completions();
            {
                let mut inner = self.inner.lock();
                if let Some(result) = inner.block.take(slot) {
                    drop(inner);
                    self.full.wake_one();
                    return result.map_err(reported);
                }
                if interrupts {
                    inner.waiters[slot] = Some(rt().current());
                }
            }
            if interrupts {
                rt().park(None, ParkMode::Uninterruptible);
            } else {
                rt().yield_now();
            }
        }
    }
}

/// The requests of one call. All are finished before the call returns: the device writes into the
/// caller's pages until then.
struct Own<'d, T: Transport + Send> {
    disk: &'d VirtioDisk<T>,
    slots: [usize; OWN_LIMIT],
    count: usize,
    result: Result<(), BlockError>,
}

impl<T: Transport + Send> Own<'_, T> {
    fn start(&mut self, operation: Operation, sector: u64, data: &[Data]) {
        if self.count == OWN_LIMIT {
            self.finish_oldest();
        }
        loop {
            let started = match self.disk.try_start(operation, sector, data) {
                Some(started) => started,
                None if self.count > 0 => {
                    self.finish_oldest();
                    continue;
                }
                None => self.wait_for_room(operation, sector, data),
            };
            match started {
                Ok(slot) => {
                    self.slots[self.count] = slot;
                    self.count += 1;
                }
                Err(error) => self.note(Err(error)),
            }
            return;
        }
    }

    fn wait_for_room(&self, operation: Operation, sector: u64, data: &[Data]) -> Result<usize, BlockError> {
        let ready = || self.disk.try_start(operation, sector, data);
        self.disk.full.wait_until(None, ParkMode::Uninterruptible, ready).unwrap_or(Err(BlockError::Io))
    }

    fn finish_oldest(&mut self) {
        let result = self.disk.finish(self.slots[0]);
        self.slots.copy_within(1.., 0);
        self.count -= 1;
        self.note(result);
    }

    fn finish_all(mut self) -> Result<(), BlockError> {
        while self.count > 0 {
            self.finish_oldest();
        }
        self.result
    }

    /// Keeps the first error.
    fn note(&mut self, result: Result<(), BlockError>) {
        self.result = self.result.and(result);
    }
}

fn reported(failure: Failure) -> BlockError {
    match failure {
        Failure::OutOfRange => BlockError::OutOfRange,
        Failure::ReadOnly => BlockError::ReadOnly,
        Failure::Io => BlockError::Io,
    }
}

/// For requests in flight, on a slow host.
const QUIESCE_PATIENCE_NS: u64 = 30_000_000_000;
const QUIESCE_LOOK_NS: u64 = 200_000;

impl<T: Transport + Send> Quiesce for VirtioDisk<T> {
    fn quiesce(&self) -> bool {
        self.inner.lock().block.pause();
        let deadline = time::now_ns() + QUIESCE_PATIENCE_NS;
        loop {
            self.take_completions();
            let mut inner = self.inner.lock();
            if inner.block.quiesce() {
                return true;
            }
            if inner.block.is_switched_off() || inner.block.in_flight() == 0 || time::now_ns() > deadline {
                inner.block.go_on();
                let lost = inner.block.is_switched_off();
                drop(inner);
                if lost {
                    log::error!("a virtio disk cannot be stopped: it is switched off");
                }
                self.full.wake_all();
                return false;
            }
            drop(inner);
            rt().park(Some(time::now_ns() + QUIESCE_LOOK_NS), ParkMode::Uninterruptible);
        }
    }

    fn resume(&self) -> Result<(), VirtioError> {
        let resumed = self.inner.lock().block.resume();
        self.full.wake_all();
        resumed
    }
}

impl<T: Transport + Send> BlockDevice for VirtioDisk<T> {
    fn read_only(&self) -> bool {
        self.read_only
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn read_pages(&self, first_sector: u64, pages: &[Page]) -> Result<(), BlockError> {
        self.transfer(Operation::Read, first_sector, pages)
    }

    fn write_pages(&self, first_sector: u64, pages: &[Page]) -> Result<(), BlockError> {
        if self.read_only {
            return Err(BlockError::ReadOnly);
        }
        self.transfer(Operation::Write, first_sector, pages)
    }

    fn flush(&self) -> Result<(), BlockError> {
        if !self.has_flush {
            return Ok(());
        }
        let mut own = Own { disk: self, slots: [0; OWN_LIMIT], count: 0, result: Ok(()) };
        own.start(Operation::Flush, 0, &[]);
        own.finish_all()
    }
}
