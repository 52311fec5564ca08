//! Pipes and FIFOs (pipe(7)): 64 KiB of bytes between readers and writers.
//!
//! The bytes lie in a ring of pages, so they go from and to application memory without a bounce.
//! Writes of up to [`PIPE_BUF`] bytes are atomic.
//!
//! # Locking
//! `ring` is a sleeping mutex held over the copies to and from application memory. What waiters and
//! poll look at are the atomics beside it, which change under it.
use alloc::{format, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rt::{
    page::{PAGE_SIZE, Page},
    sync::{Mutex, WaitQueue},
    task::ParkMode,
};

use crate::{
    error::{FsError, FsResult},
    file::{FileOps, OpenFile, OpenFlags, Readiness, ReadyQueues, Wait},
    inode::{FileKind, Metadata, Timestamp},
    io::{Sink, Source},
};

/// Bytes that fit into a pipe.
pub const CAPACITY: usize = PAGES * PAGE_SIZE;
/// Writes up to this are atomic; a pipe with less room is not ready for writing.
pub const PIPE_BUF: usize = 4096;
const PAGES: usize = 16;

/// The pipe itself; [`PipeEnd`]s are what is opened.
pub struct Pipe {
    ring: Mutex<Ring>,
    /// Bytes in the ring.
    len: AtomicUsize,
    readers: AtomicUsize,
    writers: AtomicUsize,
    /// Opens of either side ever, so that a FIFO's opener sees a peer that has left already.
    reader_opens: AtomicU64,
    writer_opens: AtomicU64,
    /// Woken when bytes arrive or the last writer leaves.
    readable: WaitQueue,
    /// Woken when room appears or the last reader leaves.
    writable: WaitQueue,
    /// Woken when a side is opened.
    opened: WaitQueue,
    number: u64,
    created: Timestamp,
}

struct Ring {
    /// Allocated when first written; all but the first are freed when the pipe runs empty.
    pages: [Option<Page>; PAGES],
    /// Position of the first byte, below [`CAPACITY`].
    head: usize,
}

impl Pipe {
    pub fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            ring: Mutex::new(Ring { pages: [const { None }; PAGES], head: 0 }),
            len: AtomicUsize::new(0),
            readers: AtomicUsize::new(0),
            writers: AtomicUsize::new(0),
            reader_opens: AtomicU64::new(0),
            writer_opens: AtomicU64::new(0),
            readable: WaitQueue::new(),
            writable: WaitQueue::new(),
            opened: WaitQueue::new(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            created: Timestamp::now(),
        })
    }

    /// pipe2(2): the read end and the write end. `flags`: O_NONBLOCK (O_DIRECT's packets are not
    /// supported, and refused).
    pub fn pair(flags: OpenFlags) -> FsResult<(Arc<OpenFile>, Arc<OpenFile>)> {
        if flags.contains(OpenFlags::DIRECT) {
            return Err(FsError::Invalid);
        }
        let pipe = Self::new();
        let nonblock = flags & OpenFlags::NONBLOCK;
        let read = OpenFile::new(pipe.clone().end(true, false), nonblock);
        let write = OpenFile::new(pipe.end(false, true), nonblock | OpenFlags::WRITE_ONLY);
        Ok((read, write))
    }

    /// The read end and the write end, for who puts something around them.
    pub(crate) fn ends(self: Arc<Self>) -> (Arc<PipeEnd>, Arc<PipeEnd>) {
        (self.clone().end(true, false), self.end(false, true))
    }

    /// Opens a FIFO (fifo(7)): waits for the other side, unless O_NONBLOCK or both sides at once.
    pub fn open_fifo(self: Arc<Self>, flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        let (reads, writes) = (flags.reads(), flags.writes());
        let nonblock = flags.contains(OpenFlags::NONBLOCK);
        if writes && !reads && nonblock && self.readers.load(Ordering::Acquire) == 0 {
            return Err(FsError::NoPeer);
        }
        // The peer may open, be satisfied by us, and leave before we look: so what counts is an open
        // since now, or a peer there before we were.
        let (peers, opens) =
            if reads { (&self.writers, &self.writer_opens) } else { (&self.readers, &self.reader_opens) };
        let seen = opens.load(Ordering::Acquire);
        let has_peer = peers.load(Ordering::Acquire) > 0;
        let end = self.clone().end(reads, writes);
        if reads != writes && !nonblock && !has_peer {
            let there = || (opens.load(Ordering::Acquire) != seen).then_some(());
            self.opened.wait_until(None, ParkMode::Interruptible, there)?;
        }
        Ok(end)
    }

    fn end(self: Arc<Self>, reads: bool, writes: bool) -> Arc<PipeEnd> {
        if reads {
            self.readers.fetch_add(1, Ordering::AcqRel);
            self.reader_opens.fetch_add(1, Ordering::AcqRel);
        }
        if writes {
            self.writers.fetch_add(1, Ordering::AcqRel);
            self.writer_opens.fetch_add(1, Ordering::AcqRel);
        }
        self.opened.wake_all();
        Arc::new(PipeEnd { pipe: self, reads, writes })
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    fn room(&self) -> usize {
        CAPACITY - self.len()
    }

    fn has_readers(&self) -> bool {
        self.readers.load(Ordering::Acquire) > 0
    }

    fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }

    /// Copies what is there; the result is 0 if another reader took it meanwhile.
    fn take(&self, out: &mut dyn Sink) -> FsResult<usize> {
        let mut ring = self.ring.lock();
        let len = self.len().min(out.remaining());
        let mut done = 0;
        let mut failed = Ok(());
        while done < len && failed.is_ok() {
            let (index, offset, now) = piece(ring.head, len - done);
            let Some(page) = &ring.pages[index] else { break };
            failed = out.put_page(page, offset, now);
            if failed.is_ok() {
                ring.head = (ring.head + now) % CAPACITY;
                done += now;
            }
        }
        let left = self.len.fetch_sub(done, Ordering::AcqRel) - done;
        if left == 0 && done > 0 {
            ring.reset();
        }
        drop(ring);
        if done == 0 {
            failed?;
        }
        self.writable.wake_all();
        Ok(done)
    }

    /// Copies as much as there is room for, all or nothing if that is up to PIPE_BUF; the result is 0
    /// if the room went to another writer meanwhile.
    fn put(&self, from: &mut dyn Source) -> FsResult<usize> {
        let mut ring = self.ring.lock();
        let wanted = from.remaining();
        let room = self.room();
        if wanted <= PIPE_BUF && room < wanted {
            return Ok(0);
        }
        let len = wanted.min(room);
        let tail = ring.head + self.len();
        let mut done = 0;
        let mut failed = Ok(());
        while done < len && failed.is_ok() {
            let (index, offset, now) = piece((tail + done) % CAPACITY, len - done);
            failed = ring.page(index).and_then(|page| from.take_into_page(page, offset, now));
            if failed.is_ok() {
                done += now;
            }
        }
        self.len.fetch_add(done, Ordering::AcqRel);
        drop(ring);
        if done == 0 {
            failed?;
        }
        self.readable.wake_all();
        Ok(done)
    }
}

impl Ring {
    fn page(&mut self, index: usize) -> FsResult<&Page> {
        let slot = &mut self.pages[index];
        if slot.is_none() {
            *slot = Some(Page::alloc()?);
        }
        slot.as_ref().ok_or(FsError::OutOfMemory)
    }

    /// Empty: start at the first page again, and give the others back.
    fn reset(&mut self) {
        self.head = 0;
        self.pages[1..].fill(None);
    }
}

/// The part of `len` bytes at a ring position that lies in one page: page, offset, length.
fn piece(position: usize, len: usize) -> (usize, usize, usize) {
    let offset = position % PAGE_SIZE;
    (position / PAGE_SIZE, offset, len.min(PAGE_SIZE - offset))
}

/// One open side of a pipe, or both (a FIFO opened O_RDWR).
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    reads: bool,
    writes: bool,
}

impl PipeEnd {
    /// Bytes that can be read now (FIONREAD).
    pub fn input_len(&self) -> usize {
        self.pipe.len()
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        if self.reads && self.pipe.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.pipe.writable.wake_all();
        }
        if self.writes && self.pipe.writers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.pipe.readable.wake_all();
        }
    }
}

impl FileOps for PipeEnd {
    fn read(&self, _at: u64, out: &mut dyn Sink, wait: Wait) -> FsResult<usize> {
        let pipe = &*self.pipe;
        if out.remaining() == 0 {
            return Ok(0);
        }
        loop {
            if pipe.len() > 0 {
                match pipe.take(out)? {
                    0 => continue,
                    taken => return Ok(taken),
                }
            }
            if !pipe.has_writers() {
                // Bytes may have come between the two looks.
                if pipe.len() == 0 {
                    return Ok(0);
                }
                continue;
            }
            if wait == Wait::Never {
                return Err(FsError::WouldBlock);
            }
            let there = || (pipe.len() > 0 || !pipe.has_writers()).then_some(());
            pipe.readable.wait_until(None, ParkMode::Interruptible, there)?;
        }
    }

    fn write(&self, _at: u64, from: &mut dyn Source, wait: Wait) -> FsResult<usize> {
        let pipe = &*self.pipe;
        let mut written = 0;
        while from.remaining() > 0 {
            // What was written before a failure counts.
            let stopped = |error| if written > 0 { Ok(written) } else { Err(error) };
            if !pipe.has_readers() {
                return stopped(FsError::BrokenPipe);
            }
            let needed = if from.remaining() <= PIPE_BUF { from.remaining() } else { 1 };
            if pipe.room() >= needed {
                match pipe.put(from) {
                    Ok(put) => written += put,
                    Err(error) => return stopped(error),
                }
                continue;
            }
            if wait == Wait::Never {
                return stopped(FsError::WouldBlock);
            }
            let there = || (pipe.room() >= needed || !pipe.has_readers()).then_some(());
            if let Err(parked) = pipe.writable.wait_until(None, ParkMode::Interruptible, there) {
                return stopped(parked.into());
            }
        }
        Ok(written)
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn metadata(&self) -> FsResult<Metadata> {
        let time = self.pipe.created;
        Ok(Metadata {
            device: 0,
            inode: self.pipe.number,
            kind: FileKind::Fifo,
            permissions: 0o600,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            block_size: PAGE_SIZE as u32,
            blocks: 0,
            accessed: time,
            modified: time,
            changed: time,
            created: time,
        })
    }

    fn readiness(&self) -> Readiness {
        let pipe = &*self.pipe;
        let mut ready = Readiness::empty();
        if self.reads {
            ready.set(Readiness::IN, pipe.len() > 0);
            // A FIFO that nobody has opened for writing yet has not hung up.
            let had_writer = pipe.writer_opens.load(Ordering::Acquire) > 0;
            ready.set(Readiness::HANG_UP, had_writer && !pipe.has_writers());
        }
        if self.writes {
            ready.set(Readiness::OUT, pipe.room() >= PIPE_BUF);
            ready.set(Readiness::ERROR, !pipe.has_readers());
        }
        ready
    }

    fn ready_queues(&self) -> ReadyQueues<'_> {
        ReadyQueues {
            input: self.reads.then_some(&self.pipe.readable),
            output: self.writes.then_some(&self.pipe.writable),
        }
    }

    /// Unlike a FIFO's, this does not wait for the other side.
    fn reopen(&self, flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        Ok(self.pipe.clone().end(flags.reads(), flags.writes()))
    }

    fn description(&self) -> Vec<u8> {
        format!("pipe:[{}]", self.pipe.number).into_bytes()
    }
}

#[cfg(test)]
mod tests;
