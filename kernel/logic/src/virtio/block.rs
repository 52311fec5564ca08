//! The virtio block device (virtio 1.2, section 5.2): requests in flight and their results.
//!
//! Who waits for a request, and how, is the machine's: it submits under its lock, and calls
//! [`Block::complete`] from the interrupt.
//!
//! # Invariants
//! The data segments of a request belong to the device until the request has completed, or the
//! device has been reset. A device that lied is reset *before* its requests are failed; if even
//! that does not work, they never complete, and their pages stay lost.
use alloc::{vec, vec::Vec};

use super::{
    Dma, VirtioError, device_type, feature,
    queue::{DESCRIPTOR_LEN, FLAG_DEVICE_WRITES, FLAG_NEXT, Queue, Segment, bytes_needed, write_descriptor},
    transport::{self, Transport},
};

#[cfg(test)]
mod tests;

const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_SIZE_MAX: u64 = 1 << 1;
const FEATURE_SEGMENT_MAX: u64 = 1 << 2;
const CONFIG_CAPACITY: u32 = 0;
const CONFIG_SIZE_MAX: u32 = 8;
const CONFIG_SEGMENT_MAX: u32 = 12;
const QUEUE: u16 = 0;
const MAX_QUEUE_SIZE: u16 = 128;

/// Requests in flight at most.
pub const SLOTS: usize = 32;
/// Data segments of one request at most: what fits a slot's indirect table.
pub const MAX_SEGMENTS: usize = 60;
/// Bytes of one data segment, where the device sets no lower limit.
const SEGMENT_BYTES: u32 = 1 << 20;
/// A device whose segments are smaller than a page is not driven.
const LEAST_SEGMENT_BYTES: u32 = 4096;
/// A slot: request header, status byte, padding to 32 bytes, indirect table.
const SLOT_LEN: usize = 1024;
const STATUS_AT: usize = 16;
const TABLE_AT: usize = 32;
const HEADER_LEN: u32 = 16;
const _: () = assert!(TABLE_AT + (MAX_SEGMENTS + 2) * DESCRIPTOR_LEN <= SLOT_LEN);

/// Not a status that a device writes: the request has not been answered.
const STATUS_UNANSWERED: u8 = 0xff;

pub const QUEUE_BYTES: usize = bytes_needed(MAX_QUEUE_SIZE);
pub const SLOTS_BYTES: usize = SLOTS * SLOT_LEN;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    OutOfRange,
    ReadOnly,
    /// The device reported failure, lied, or is switched off.
    Io,
}

/// Data of a request: physical address and length, a multiple of 512 in all.
pub type Data = (u64, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Free,
    Flying,
    Done(Result<(), BlockError>),
}

pub struct Block<T, D> {
    transport: T,
    queue: Queue<D>,
    requests: D,
    slots: [Slot; SLOTS],
    /// Slot of the chain that begins at a descriptor.
    slot_of: Vec<u8>,
    sectors: u64,
    features: u64,
    max_segments: usize,
    max_segment_bytes: u32,
    vector: Option<u16>,
    /// Requests are not started for a while.
    paused: bool,
    switched_off: bool,
}

impl<T: Transport, D: Dma> Block<T, D> {
    /// Starts the device. `allocate` gives zeroed memory of at least so many bytes. `vector` is the
    /// MSI-X table entry of the queue.
    pub fn new(
        mut transport: T,
        mut allocate: impl FnMut(usize) -> Option<D>,
        vector: Option<u16>,
    ) -> Result<Self, VirtioError> {
        if transport.device_type() != device_type::BLOCK {
            return Err(VirtioError::NotThere);
        }
        let wanted =
            FEATURE_READ_ONLY | FEATURE_FLUSH | FEATURE_SIZE_MAX | FEATURE_SEGMENT_MAX | feature::INDIRECT_DESCRIPTORS;
        let features = transport::negotiate(&mut transport, wanted)?;
        let size = match transport.max_queue_size(QUEUE) {
            0..4 => return Err(VirtioError::Unusable),
            // Not always a power of two, which ours must be.
            max => (1 << max.ilog2()).min(MAX_QUEUE_SIZE),
        };
        let queue = Queue::new(allocate(QUEUE_BYTES).ok_or(VirtioError::NoRoom)?, size)?;
        let requests =
            allocate(SLOTS_BYTES).filter(|area| area.len_bytes() >= SLOTS_BYTES).ok_or(VirtioError::NoRoom)?;
        let sectors = transport.config64(CONFIG_CAPACITY);
        let fits = if features & feature::INDIRECT_DESCRIPTORS != 0 {
            MAX_SEGMENTS
        } else {
            // Leave room for several requests in the descriptor table.
            MAX_SEGMENTS.min((usize::from(size) / 4).max(3) - 2)
        };
        // A device that does not say how many it takes may take one, and Firecracker's does: of several it
        // would use the second for the status.
        let told = if features & FEATURE_SEGMENT_MAX != 0 { transport.config32(CONFIG_SEGMENT_MAX) } else { 1 };
        let max_segments = fits.min(told as usize).max(1);
        let max_segment_bytes = match features & FEATURE_SIZE_MAX {
            0 => SEGMENT_BYTES,
            _ => transport.config32(CONFIG_SIZE_MAX).min(SEGMENT_BYTES),
        };
        if max_segment_bytes < LEAST_SEGMENT_BYTES {
            return Err(VirtioError::Unusable);
        }
        let mut block = Self {
            transport,
            queue,
            requests,
            slots: [Slot::Free; SLOTS],
            slot_of: vec![0; usize::from(size)],
            sectors,
            features,
            max_segments,
            max_segment_bytes,
            vector,
            paused: false,
            switched_off: false,
        };
        block.start()?;
        Ok(block)
    }

    /// Hands the empty queue to a device with which the features were agreed on.
    fn start(&mut self) -> Result<(), VirtioError> {
        self.transport.set_queue(QUEUE, self.queue.size(), self.queue.addresses(), self.vector)?;
        transport::start(&mut self.transport);
        Ok(())
    }

    /// From now on [`Block::submit`] finds no room, until [`Block::resume`] or, if nothing came of it,
    /// [`Block::go_on`].
    pub fn pause(&mut self) {
        self.paused = true;
    }

    pub fn go_on(&mut self) {
        self.paused = false;
    }

    /// Requests that the device has not finished.
    pub fn in_flight(&self) -> usize {
        self.slots.iter().filter(|slot| **slot == Slot::Flying).count()
    }

    /// Resets the paused device, which has finished its requests. False: it has not, or does not stop, and
    /// is given up.
    pub fn quiesce(&mut self) -> bool {
        if !self.paused || self.switched_off || self.in_flight() > 0 {
            return false;
        }
        self.switched_off = !self.transport.reset();
        !self.switched_off
    }

    /// Starts the device again, with the features and the size it had, and lets requests go on. If it is
    /// not the same device any more, they fail from now on.
    pub fn resume(&mut self) -> Result<(), VirtioError> {
        self.paused = false;
        let started = transport::renegotiate(&mut self.transport, self.features).and_then(|()| {
            if self.transport.config64(CONFIG_CAPACITY) != self.sectors {
                return Err(VirtioError::Unusable);
            }
            self.queue.clear();
            self.start()
        });
        if started.is_err() {
            self.switch_off(|_| ());
        }
        started
    }

    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    pub fn read_only(&self) -> bool {
        self.features & FEATURE_READ_ONLY != 0
    }

    /// Without this, writes are as safe as they get when they complete.
    pub fn has_flush(&self) -> bool {
        self.features & FEATURE_FLUSH != 0
    }

    /// Data segments that one request may have.
    pub fn max_segments(&self) -> usize {
        self.max_segments
    }

    /// Bytes that one of them may have: at least a page.
    pub fn max_segment_bytes(&self) -> u32 {
        self.max_segment_bytes
    }

    /// Starts a request. `Ok(None)`: too many are in flight; wait for one. The result is the slot to
    /// ask with [`Block::take`].
    pub fn submit(&mut self, operation: Operation, sector: u64, data: &[Data]) -> Result<Option<usize>, BlockError> {
        self.check(operation, sector, data)?;
        if self.paused {
            return Ok(None);
        }
        let Some(slot) = self.slots.iter().position(|slot| *slot == Slot::Free) else { return Ok(None) };
        let (kind, device_writes) = match operation {
            Operation::Read => (0, true),
            Operation::Write => (1, false),
            Operation::Flush => (4, false),
        };
        let base = slot * SLOT_LEN;
        self.requests.store32(base, kind);
        self.requests.store32(base + 4, 0);
        self.requests.store64(base + 8, sector);
        self.requests.store8(base + STATUS_AT, STATUS_UNANSWERED);
        let Some(head) = self.add_chain(base, data, device_writes) else { return Ok(None) };
        self.slot_of[usize::from(head)] = slot as u8;
        self.slots[slot] = Slot::Flying;
        if self.queue.must_notify() {
            self.transport.notify(QUEUE);
        }
        Ok(Some(slot))
    }

    fn check(&self, operation: Operation, sector: u64, data: &[Data]) -> Result<(), BlockError> {
        if self.switched_off {
            return Err(BlockError::Io);
        }
        if operation == Operation::Write && self.read_only() {
            return Err(BlockError::ReadOnly);
        }
        let bytes: u64 = data.iter().map(|(_, len)| u64::from(*len)).sum();
        let shape = match operation {
            Operation::Flush => data.is_empty(),
            _ => {
                let fits = |(_, len): &Data| (1..=self.max_segment_bytes).contains(len);
                (1..=self.max_segments).contains(&data.len()) && data.iter().all(fits)
            }
        };
        let end = sector.checked_add(bytes / 512);
        if !shape || !bytes.is_multiple_of(512) || bytes > 1 << 30 || end.is_none_or(|end| end > self.sectors) {
            return Err(BlockError::OutOfRange);
        }
        Ok(())
    }

    fn add_chain(&mut self, base: usize, data: &[Data], device_writes: bool) -> Option<u16> {
        let slot_address = self.requests.physical() + base as u64;
        let header = Segment { address: slot_address, len: HEADER_LEN, device_writes: false };
        let status = Segment { address: slot_address + STATUS_AT as u64, len: 1, device_writes: true };
        let data = data.iter().map(|(address, len)| Segment { address: *address, len: *len, device_writes });
        let mut chain = [header; MAX_SEGMENTS + 2];
        let mut count = 0;
        for segment in core::iter::once(header).chain(data).chain([status]) {
            chain[count] = segment;
            count += 1;
        }
        if self.features & feature::INDIRECT_DESCRIPTORS == 0 {
            return self.queue.add(&chain[..count]);
        }
        let table = base + TABLE_AT;
        for (n, segment) in chain[..count].iter().enumerate() {
            let writes = if segment.device_writes { FLAG_DEVICE_WRITES } else { 0 };
            let next = if n + 1 < count { FLAG_NEXT } else { 0 };
            let at = table + n * DESCRIPTOR_LEN;
            write_descriptor(&self.requests, at, segment.address, segment.len, writes | next, n as u16 + 1);
        }
        self.queue.add_indirect(self.requests.physical() + table as u64, count)
    }

    /// First thing in an interrupt handler: what the device finishes from now on interrupts again.
    pub fn acknowledge_interrupt(&mut self) {
        self.transport.acknowledge_interrupt();
    }

    /// Takes in what the device has finished; `done` is called with each slot that has a result now.
    pub fn complete(&mut self, mut done: impl FnMut(usize)) {
        if self.switched_off {
            return;
        }
        loop {
            match self.queue.pop() {
                Ok(None) => return,
                Ok(Some((head, _))) => {
                    let slot = usize::from(self.slot_of[usize::from(head)]);
                    if self.slots[slot] != Slot::Flying {
                        continue;
                    }
                    // The status alone decides. The length says nothing: Cloud Hypervisor leaves out the status
                    // byte, and for a write gives what it wrote to the disk; old QEMUs give 0.
                    let status = self.requests.load8(slot * SLOT_LEN + STATUS_AT);
                    self.slots[slot] = Slot::Done(if status == 0 { Ok(()) } else { Err(BlockError::Io) });
                    done(slot);
                }
                Err(_) => return self.switch_off(done),
            }
        }
    }

    /// The result of a request, once: the slot is free again. None: still in flight.
    pub fn take(&mut self, slot: usize) -> Option<Result<(), BlockError>> {
        match self.slots[slot] {
            Slot::Done(result) => {
                self.slots[slot] = Slot::Free;
                Some(result)
            }
            _ => None,
        }
    }

    /// True once the device has lied.
    pub fn is_switched_off(&self) -> bool {
        self.switched_off
    }

    fn switch_off(&mut self, mut done: impl FnMut(usize)) {
        self.switched_off = true;
        if !self.transport.reset() {
            return;
        }
        for slot in 0..SLOTS {
            if self.slots[slot] == Slot::Flying {
                self.slots[slot] = Slot::Done(Err(BlockError::Io));
                done(slot);
            }
        }
    }
}
