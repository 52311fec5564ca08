//! The memory balloon device (virtio 1.2, section 5.5): pages lent to the host, free pages reported to
//! it, and statistics.
//!
//! Which frames, and when, is the machine's matter; here is the exchange. Page poisoning is not taken:
//! nothing here relies on what a free page holds, so a reported page may come back as anything.
//!
//! # Invariants
//! One transfer and one report are in flight at most. The memory of a report belongs to the device
//! until [`Balloon::is_reporting`] says no more; that of pages lent, until a transfer back has ended.
use super::{
    Dma, VirtioError, device_type,
    queue::{Queue, Segment, bytes_needed},
    transport::{self, Transport},
};

const FEATURE_STATISTICS: u64 = 1 << 1;
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
const FEATURE_HINT: u64 = 1 << 3;
const FEATURE_REPORTING: u64 = 1 << 5;

const CONFIG_TARGET: u32 = 0;
const CONFIG_ACTUAL: u32 = 4;

/// Pages of one transfer at most.
pub const TRANSFER_PAGES: usize = 256;
/// Blocks of one report at most.
pub const REPORT_BLOCKS: usize = 32;
const STATISTICS_LEN: usize = 10;
/// Numbers that the device may be told.
pub const STATISTICS: usize = 3;
/// Within the shared area: page numbers, then statistics.
const STATISTICS_AT: usize = TRANSFER_PAGES * 4;
const AREA_LEN: usize = STATISTICS_AT + STATISTICS * STATISTICS_LEN + 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the host.
    Inflate,
    /// Back.
    Deflate,
}

/// Tags of statistics (5.5.6.4).
pub mod statistic {
    pub const FREE: u16 = 4;
    pub const TOTAL: u16 = 5;
    pub const AVAILABLE: u16 = 6;
}

pub struct Balloon<T, D> {
    transport: T,
    features: u64,
    vector: Option<u16>,
    /// Inflate, deflate, statistics, hints, reports; those that the features have, in this order.
    queues: [Option<Queue<D>>; 5],
    area: D,
    transferring: Option<Direction>,
    reporting: bool,
    /// The device has given the statistics buffer back: it wants new ones.
    statistics_wanted: bool,
    switched_off: bool,
    /// Not even a reset stopped the device.
    silent: bool,
}

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const REPORTS: usize = 4;
const SIZES: [u16; 5] = [2, 2, 2, 2, REPORT_BLOCKS as u16];
/// The feature that each queue needs.
const NEEDS: [u64; 5] = [0, 0, FEATURE_STATISTICS, FEATURE_HINT, FEATURE_REPORTING];

impl<T: Transport, D: Dma> Balloon<T, D> {
    /// Starts the device. `allocate` gives zeroed memory of at least so many bytes. `vector` is the
    /// MSI-X table entry for everything it has to say.
    pub fn new(
        mut transport: T,
        mut allocate: impl FnMut(usize) -> Option<D>,
        vector: Option<u16>,
    ) -> Result<Self, VirtioError> {
        if transport.device_type() != device_type::BALLOON {
            return Err(VirtioError::NotThere);
        }
        // Hints are never given, but the queue's place among the others depends on the feature.
        let wanted = FEATURE_STATISTICS | FEATURE_DEFLATE_ON_OOM | FEATURE_HINT | FEATURE_REPORTING;
        let features = transport::negotiate(&mut transport, wanted)?;
        let mut queues = [const { None }; 5];
        let mut index = 0;
        for (which, queue) in queues.iter_mut().enumerate() {
            if NEEDS[which] & !features != 0 {
                continue;
            }
            let size = match transport.max_queue_size(index) {
                0 | 1 => return Err(VirtioError::Unusable),
                // Not always a power of two, which ours must be.
                max => (1 << max.ilog2()).min(SIZES[which]),
            };
            *queue = Some(Queue::new(allocate(bytes_needed(size)).ok_or(VirtioError::NoRoom)?, size)?);
            index += 1;
        }
        let area = allocate(AREA_LEN).filter(|area| area.len_bytes() >= AREA_LEN).ok_or(VirtioError::NoRoom)?;
        let mut balloon = Self {
            transport,
            features,
            vector,
            queues,
            area,
            transferring: None,
            reporting: false,
            statistics_wanted: false,
            switched_off: false,
            silent: false,
        };
        balloon.start()?;
        Ok(balloon)
    }

    /// Hands the queues to a device with which the features were agreed on.
    fn start(&mut self) -> Result<(), VirtioError> {
        self.transport.set_config_vector(self.vector)?;
        for (index, queue) in self.queues.iter().flatten().enumerate() {
            self.transport.set_queue(index as u16, queue.size(), queue.addresses(), self.vector)?;
        }
        transport::start(&mut self.transport);
        // The first buffer is ours to send; the device gives it back when it wants numbers.
        self.statistics_wanted = self.queues[STATS].is_some();
        Ok(())
    }

    /// Resets the device, with which nothing may be in flight: [`Balloon::resume`] goes on. False: it
    /// is busy, or does not stop, and is given up.
    pub fn quiesce(&mut self) -> bool {
        let idle = self.transferring.is_none() && !self.reporting && !self.switched_off;
        if !idle {
            return false;
        }
        self.silent = !self.transport.reset();
        self.switched_off = self.silent;
        !self.switched_off
    }

    /// Starts the device again, with the features it had. It knows the pages that it was lent by
    /// `actual` alone. If it is not the same device any more, it is switched off; the error as
    /// [`Balloon::work`]'s.
    pub fn resume(&mut self, actual: u32) -> Result<(), VirtioError> {
        self.start_again(actual).or_else(|error| self.switch_off().and(Err(error)))
    }

    fn start_again(&mut self, actual: u32) -> Result<(), VirtioError> {
        transport::renegotiate(&mut self.transport, self.features)?;
        self.queues.iter_mut().flatten().for_each(Queue::clear);
        self.start()?;
        self.set_actual(actual);
        Ok(())
    }

    /// Pages that the host wants; any number that it likes.
    pub fn target(&self) -> u32 {
        if self.switched_off { 0 } else { self.transport.config32(CONFIG_TARGET) }
    }

    /// Tells the host how many pages it has.
    pub fn set_actual(&mut self, pages: u32) {
        self.transport.set_config32(CONFIG_ACTUAL, pages);
    }

    /// The guest may take pages back when it has no others.
    pub fn may_deflate_on_oom(&self) -> bool {
        self.features & FEATURE_DEFLATE_ON_OOM != 0
    }

    /// How many blocks one report may have; 0: the device takes none.
    pub fn report_limit(&self) -> usize {
        self.queues[REPORTS].as_ref().filter(|_| !self.switched_off).map_or(0, |queue| usize::from(queue.size()))
    }

    pub fn is_switched_off(&self) -> bool {
        self.switched_off
    }

    pub fn is_transferring(&self) -> bool {
        self.transferring.is_some()
    }

    pub fn is_reporting(&self) -> bool {
        self.reporting
    }

    /// The device wants [`Balloon::give_statistics`].
    pub fn wants_statistics(&self) -> bool {
        self.statistics_wanted && !self.switched_off
    }

    /// First thing in an interrupt handler.
    pub fn acknowledge_interrupt(&mut self) {
        self.transport.acknowledge_interrupt();
    }

    /// Lends pages, or asks for them back: their frame numbers. False: the transfer before is not
    /// finished, or there are too many or none.
    pub fn transfer(&mut self, direction: Direction, frames: &[u32]) -> bool {
        let fits = (1..=TRANSFER_PAGES).contains(&frames.len());
        if self.switched_off || self.transferring.is_some() || !fits {
            return false;
        }
        for (n, frame) in frames.iter().enumerate() {
            self.area.store32(4 * n, *frame);
        }
        let which = if direction == Direction::Inflate { INFLATE } else { DEFLATE };
        let numbers = Segment { address: self.area.physical(), len: 4 * frames.len() as u32, device_writes: false };
        let sent = self.send(which, &[numbers]);
        self.transferring = sent.then_some(direction);
        sent
    }

    /// Tells the device that it may drop the content of these blocks: (address, length). False: the
    /// report before is not finished, or there are too many or none.
    pub fn report(&mut self, blocks: &[(u64, u32)]) -> bool {
        if self.reporting || !(1..=self.report_limit()).contains(&blocks.len()) {
            return false;
        }
        let mut segments = [Segment { address: 0, len: 0, device_writes: true }; REPORT_BLOCKS];
        for (segment, &(address, len)) in segments.iter_mut().zip(blocks) {
            (segment.address, segment.len) = (address, len);
        }
        self.reporting = self.send(REPORTS, &segments[..blocks.len()]);
        self.reporting
    }

    /// Answers a device that [wants](Balloon::wants_statistics) numbers: (tag, value), at most
    /// [`STATISTICS`] of them.
    pub fn give_statistics(&mut self, numbers: &[(u16, u64)]) {
        if !self.wants_statistics() {
            return;
        }
        let mut at = STATISTICS_AT;
        for (tag, value) in numbers.iter().take(STATISTICS) {
            // Packed: no field of an odd entry is aligned.
            self.area.store16(at, *tag);
            for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
                self.area.store8(at + 2 + n, byte);
            }
            at += STATISTICS_LEN;
        }
        let address = self.area.physical() + STATISTICS_AT as u64;
        let entries = Segment { address, len: (at - STATISTICS_AT) as u32, device_writes: false };
        self.statistics_wanted = !self.send(STATS, &[entries]);
    }

    fn send(&mut self, which: usize, segments: &[Segment]) -> bool {
        let Some(index) = self.index_of(which) else { return false };
        let Some(queue) = &mut self.queues[which] else { return false };
        let added = queue.add(segments).is_some();
        if added && queue.must_notify() {
            self.transport.notify(index);
        }
        added
    }

    /// The device's number of a queue.
    fn index_of(&self, which: usize) -> Option<u16> {
        self.queues[which].as_ref()?;
        Some(self.queues[..which].iter().flatten().count() as u16)
    }

    /// Takes in what the device has finished. One that lies is reset, and nothing is in flight any more;
    /// [`VirtioError::Silent`]: not even the reset helps, and it may still use what it was given.
    pub fn work(&mut self) -> Result<(), VirtioError> {
        if self.switched_off {
            return Err(if self.silent { VirtioError::Silent } else { VirtioError::Lied });
        }
        match self.take_finished() {
            Ok(()) => Ok(()),
            Err(error) => self.switch_off().and(Err(error)),
        }
    }

    /// Gives up on the device.
    pub fn switch_off(&mut self) -> Result<(), VirtioError> {
        self.switched_off = true;
        self.silent = !self.transport.reset();
        if self.silent {
            return Err(VirtioError::Silent);
        }
        (self.transferring, self.reporting) = (None, false);
        Ok(())
    }

    fn take_finished(&mut self) -> Result<(), VirtioError> {
        for which in 0..self.queues.len() {
            let Some(queue) = &mut self.queues[which] else { continue };
            // Read-only for the device, or of no interest: no length can be wrong. An identifier that is
            // not in flight is refused by the queue.
            while queue.pop()?.is_some() {
                match which {
                    INFLATE | DEFLATE => self.transferring = None,
                    REPORTS => self.reporting = false,
                    _ => self.statistics_wanted = true,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
