//! A split virtqueue (virtio 1.2, section 2.7).
//!
//! Descriptors, available and used ring lie in one [`Dma`] area, the used ring on a page of its own,
//! which is also what the legacy interface wants. The free list and the lengths of chains are the
//! driver's own: nothing is ever read back from the descriptor table.
use alloc::{vec, vec::Vec};
use core::sync::atomic::{Ordering, fence};

use super::{Dma, VirtioError, transport::QueueAddresses};

pub const DESCRIPTOR_LEN: usize = 16;
pub const USED_ALIGN: usize = 4096;
pub const FLAG_NEXT: u16 = 1;
pub const FLAG_DEVICE_WRITES: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
const USED_NO_NOTIFY: u16 = 1;
const NONE: u16 = u16::MAX;

/// A piece of physical memory in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub len: u32,
    pub device_writes: bool,
}

pub struct Queue<D> {
    memory: D,
    size: u16,
    /// First free descriptor; the list goes through `next`.
    free: u16,
    free_count: u16,
    next: Vec<u16>,
    /// Descriptors of the chain that begins here and is in flight; 0: none does.
    chain_len: Vec<u16>,
    available_index: u16,
    used_index: u16,
}

/// Bytes of memory that a queue of `size` needs.
pub const fn bytes_needed(size: u16) -> usize {
    used_offset(size) + 6 + 8 * size as usize
}

const fn available_offset(size: u16) -> usize {
    DESCRIPTOR_LEN * size as usize
}

const fn used_offset(size: u16) -> usize {
    (available_offset(size) + 6 + 2 * size as usize).next_multiple_of(USED_ALIGN)
}

/// Writes a descriptor, of the queue's table or of an indirect one.
pub fn write_descriptor(memory: &impl Dma, at: usize, address: u64, len: u32, flags: u16, next: u16) {
    memory.store64(at, address);
    memory.store32(at + 8, len);
    memory.store16(at + 12, flags);
    memory.store16(at + 14, next);
}

impl<D: Dma> Queue<D> {
    /// `memory` must be zeroed. `size` is a power of two.
    pub fn new(memory: D, size: u16) -> Result<Self, VirtioError> {
        if !size.is_power_of_two() || size > 1 << 14 || memory.len_bytes() < bytes_needed(size) {
            return Err(VirtioError::NoRoom);
        }
        let next = (1..size).chain([NONE]).collect();
        let chain_len = vec![0; usize::from(size)];
        Ok(Self { memory, size, free: 0, free_count: size, next, chain_len, available_index: 0, used_index: 0 })
    }

    /// Empty again, as new: for a device that was reset and has forgotten the queue.
    pub fn clear(&mut self) {
        for at in (0..bytes_needed(self.size).min(self.memory.len_bytes() - 7)).step_by(8) {
            self.memory.store64(at, 0);
        }
        self.next.clear();
        self.next.extend((1..self.size).chain([NONE]));
        self.chain_len.fill(0);
        (self.free, self.free_count) = (0, self.size);
        (self.available_index, self.used_index) = (0, 0);
    }

    /// Nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.free_count == self.size
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    pub fn addresses(&self) -> QueueAddresses {
        let base = self.memory.physical();
        QueueAddresses {
            descriptors: base,
            available: base + available_offset(self.size) as u64,
            used: base + used_offset(self.size) as u64,
        }
    }

    /// Makes a chain of the segments available. The result names it; None: too few descriptors are
    /// free. Call [`Queue::must_notify`] after the last of a batch.
    pub fn add(&mut self, segments: &[Segment]) -> Option<u16> {
        let count = u16::try_from(segments.len()).ok().filter(|n| (1..=self.free_count).contains(n))?;
        let head = self.free;
        for (n, segment) in segments.iter().enumerate() {
            let at = self.free;
            self.free = self.next[usize::from(at)];
            let mut flags = if segment.device_writes { FLAG_DEVICE_WRITES } else { 0 };
            if n + 1 < segments.len() {
                flags |= FLAG_NEXT;
            }
            let offset = DESCRIPTOR_LEN * usize::from(at);
            write_descriptor(&self.memory, offset, segment.address, segment.len, flags, self.free);
        }
        self.publish(head, count);
        Some(head)
    }

    /// As [`Queue::add`], for a table of `entries` descriptors that the caller has written.
    pub fn add_indirect(&mut self, table: u64, entries: usize) -> Option<u16> {
        if self.free_count == 0 {
            return None;
        }
        let head = self.free;
        self.free = self.next[usize::from(head)];
        let (at, len) = (DESCRIPTOR_LEN * usize::from(head), (entries * DESCRIPTOR_LEN) as u32);
        write_descriptor(&self.memory, at, table, len, FLAG_INDIRECT, 0);
        self.publish(head, 1);
        Some(head)
    }

    fn publish(&mut self, head: u16, count: u16) {
        self.free_count -= count;
        self.chain_len[usize::from(head)] = count;
        let ring = available_offset(self.size);
        self.memory.store16(ring + 4 + 2 * usize::from(self.available_index % self.size), head);
        self.available_index = self.available_index.wrapping_add(1);
        // A release store: descriptors and ring entry are visible before the index.
        self.memory.store16(ring + 2, self.available_index);
    }

    /// False: the device is looking at the ring anyway.
    pub fn must_notify(&self) -> bool {
        // The device writes the flag, then looks at the index; we write the index, then look at the
        // flag. Both need a full fence between.
        fence(Ordering::SeqCst);
        self.memory.load16(used_offset(self.size)) & USED_NO_NOTIFY == 0
    }

    /// There is something to [`Queue::pop`].
    pub fn has_used(&self) -> bool {
        self.memory.load16(used_offset(self.size) + 2) != self.used_index
    }

    /// The next chain that the device has finished with, and the bytes it says it wrote.
    pub fn pop(&mut self) -> Result<Option<(u16, u32)>, VirtioError> {
        let ring = used_offset(self.size);
        if self.memory.load16(ring + 2) == self.used_index {
            return Ok(None);
        }
        let entry = ring + 4 + 8 * usize::from(self.used_index % self.size);
        let (id, written) = (self.memory.load32(entry), self.memory.load32(entry + 4));
        let head = u16::try_from(id).ok().filter(|head| *head < self.size).ok_or(VirtioError::Lied)?;
        let count = core::mem::take(&mut self.chain_len[usize::from(head)]);
        if count == 0 {
            return Err(VirtioError::Lied);
        }
        self.used_index = self.used_index.wrapping_add(1);
        self.release(head, count);
        Ok(Some((head, written)))
    }

    fn release(&mut self, head: u16, count: u16) {
        let mut last = head;
        for _ in 1..count {
            last = self.next[usize::from(last)];
        }
        self.next[usize::from(last)] = self.free;
        self.free = head;
        self.free_count += count;
    }
}
