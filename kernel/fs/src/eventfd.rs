//! Event counters (eventfd(2)).
use alloc::{sync::Arc, vec::Vec};

use rt::{
    sync::{SpinLock, WaitQueue},
    task::ParkMode,
};

use crate::{
    error::{FsError, FsResult},
    file::{FileOps, OpenFile, OpenFlags, Readiness, ReadyQueues, Wait},
    inode::{FileKind, Metadata, Timestamp},
    io::{Sink, Source},
};

/// The counter's largest value.
const MAX: u64 = u64::MAX - 1;

/// A counter that writes add to and reads take from.
///
/// # Locking
/// `count` is a leaf spin lock.
pub struct EventFd {
    count: SpinLock<u64>,
    /// EFD_SEMAPHORE: a read takes 1, not all.
    semaphore: bool,
    /// One queue for both directions: rare enough.
    changed: WaitQueue,
}

impl EventFd {
    /// `flags`: O_NONBLOCK.
    pub fn open(initial: u64, semaphore: bool, flags: OpenFlags) -> Arc<OpenFile> {
        let event = Self { count: SpinLock::new(initial), semaphore, changed: WaitQueue::new() };
        OpenFile::new(Arc::new(event), (flags & OpenFlags::NONBLOCK) | OpenFlags::READ_WRITE)
    }

    fn wait<T>(&self, wait: Wait, mut ready: impl FnMut() -> Option<T>) -> FsResult<T> {
        match wait {
            Wait::Never => ready().ok_or(FsError::WouldBlock),
            Wait::Allowed => Ok(self.changed.wait_until(None, ParkMode::Interruptible, ready)?),
        }
    }
}

impl FileOps for EventFd {
    fn read(&self, _at: u64, out: &mut dyn Sink, wait: Wait) -> FsResult<usize> {
        if out.remaining() < 8 {
            return Err(FsError::Invalid);
        }
        let taken = self.wait(wait, || {
            let mut count = self.count.lock();
            let taken = if self.semaphore { 1.min(*count) } else { *count };
            *count -= taken;
            (taken > 0).then_some(taken)
        })?;
        self.changed.wake_all();
        out.put(&taken.to_le_bytes())?;
        Ok(8)
    }

    fn write(&self, _at: u64, from: &mut dyn Source, wait: Wait) -> FsResult<usize> {
        let mut bytes = [0; 8];
        if from.remaining() < 8 {
            return Err(FsError::Invalid);
        }
        from.take(&mut bytes)?;
        let added = u64::from_le_bytes(bytes);
        if added > MAX {
            return Err(FsError::Invalid);
        }
        self.wait(wait, || {
            let mut count = self.count.lock();
            let fits = added <= MAX - *count;
            if fits {
                *count += added;
            }
            fits.then_some(())
        })?;
        self.changed.wake_all();
        Ok(8)
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn metadata(&self) -> FsResult<Metadata> {
        Ok(anonymous_metadata())
    }

    fn readiness(&self) -> Readiness {
        let count = *self.count.lock();
        let mut ready = Readiness::empty();
        ready.set(Readiness::IN, count > 0);
        ready.set(Readiness::OUT, count < MAX);
        ready
    }

    fn ready_queues(&self) -> ReadyQueues<'_> {
        ReadyQueues { input: Some(&self.changed), output: None }
    }

    fn description(&self) -> Vec<u8> {
        b"anon_inode:[eventfd]".to_vec()
    }
}

/// What fstat shows of objects like this one on Linux: a nameless file of the anonymous inode.
pub fn anonymous_metadata() -> Metadata {
    let time = Timestamp::default();
    Metadata {
        device: 0,
        inode: 1,
        // Linux shows no type at all; a regular file is the nearest that exists here.
        kind: FileKind::Regular,
        permissions: 0o600,
        links: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        block_size: 4096,
        blocks: 0,
        accessed: time,
        modified: time,
        changed: time,
        created: time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{SliceSink, SliceSource};

    fn read(file: &OpenFile) -> FsResult<u64> {
        let mut bytes = [0; 8];
        file.read(&mut SliceSink::new(&mut bytes)).map(|_| u64::from_le_bytes(bytes))
    }

    fn write(file: &OpenFile, value: u64) -> FsResult<usize> {
        file.write(&mut SliceSource::new(&value.to_le_bytes()))
    }

    #[test]
    fn counter_and_semaphore() {
        rt::host::install();
        let file = EventFd::open(2, false, OpenFlags::NONBLOCK);
        write(&file, 3).unwrap();
        assert_eq!(read(&file), Ok(5));
        assert_eq!(read(&file), Err(FsError::WouldBlock));
        assert_eq!(file.readiness(), Readiness::OUT);
        assert_eq!(write(&file, u64::MAX), Err(FsError::Invalid));
        write(&file, MAX).unwrap();
        assert_eq!(write(&file, 1), Err(FsError::WouldBlock));
        let semaphore = EventFd::open(2, true, OpenFlags::NONBLOCK);
        assert_eq!((read(&semaphore), read(&semaphore)), (Ok(1), Ok(1)));
        assert_eq!(read(&semaphore), Err(FsError::WouldBlock));
    }

    #[test]
    fn a_reader_waits_for_a_writer() {
        rt::host::install();
        let file = EventFd::open(0, false, OpenFlags::empty());
        let reader = {
            let file = file.clone();
            std::thread::spawn(move || read(&file))
        };
        std::thread::sleep(std::time::Duration::from_millis(5));
        write(&file, 9).unwrap();
        assert_eq!(reader.join().unwrap(), Ok(9));
    }
}
