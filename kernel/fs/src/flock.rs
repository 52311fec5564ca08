//! Advisory locks on open files (flock(2)).
//!
//! A lock belongs to the open file description and goes with it: [`OpenFile`] releases it when its last
//! descriptor is closed.
//!
//! # Locking
//! `LOCKS` is a leaf spin lock.
use alloc::{collections::BTreeMap, vec::Vec};

use rt::{
    sync::{SpinLock, WaitQueue},
    task::ParkMode,
};

use crate::{
    error::{FsError, FsResult},
    file::{OpenFile, Wait},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlockMode {
    Shared,
    Exclusive,
}

/// (device, inode) of a locked file.
type Key = (u64, u64);

/// Who has a file locked: open files, by address. Never empty; one if exclusive.
struct Held {
    mode: FlockMode,
    holders: Vec<usize>,
}

static LOCKS: SpinLock<BTreeMap<Key, Held>> = SpinLock::new(BTreeMap::new());
static RELEASED: WaitQueue = WaitQueue::new();

impl OpenFile {
    /// Takes the lock, or changes the mode of the one held; like Linux', a change releases first.
    pub fn lock(&self, mode: FlockMode, wait: Wait) -> FsResult<()> {
        let metadata = self.metadata()?;
        let key = (metadata.device, metadata.inode);
        let me = self.address();
        release(key, me);
        self.set_locked(true);
        let take = || take(key, me, mode).then_some(());
        match wait {
            Wait::Never => take().ok_or(FsError::WouldBlock),
            Wait::Allowed => Ok(RELEASED.wait_until(None, ParkMode::Interruptible, take)?),
        }
    }

    pub fn unlock(&self) -> FsResult<()> {
        let metadata = self.metadata()?;
        release((metadata.device, metadata.inode), self.address());
        self.set_locked(false);
        Ok(())
    }

    fn address(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.was_locked() {
            let me = self.address();
            let held: Vec<Key> =
                LOCKS.lock().iter().filter(|(_, held)| held.holders.contains(&me)).map(|(key, _)| *key).collect();
            held.into_iter().for_each(|key| release(key, me));
        }
    }
}

fn take(key: Key, me: usize, mode: FlockMode) -> bool {
    let mut locks = LOCKS.lock();
    let held = locks.entry(key).or_insert(Held { mode, holders: Vec::new() });
    if held.holders.is_empty() || (held.mode == FlockMode::Shared && mode == FlockMode::Shared) {
        held.mode = mode;
        held.holders.push(me);
        return true;
    }
    false
}

fn release(key: Key, me: usize) {
    let mut locks = LOCKS.lock();
    let Some(held) = locks.get_mut(&key) else { return };
    held.holders.retain(|&holder| holder != me);
    if held.holders.is_empty() {
        locks.remove(&key);
    }
    drop(locks);
    RELEASED.wake_all();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        file::OpenFlags,
        testing::{Calls, vfs},
        tmpfs::TmpFs,
    };

    #[test]
    fn shared_exclusive_and_close() {
        let root = vfs({
            rt::host::install();
            TmpFs::new(1 << 20)
        });
        let open = || root.open_path("f", OpenFlags::CREATE | OpenFlags::READ_WRITE).unwrap();
        let (a, b, c) = (open(), open(), open());
        a.lock(FlockMode::Shared, Wait::Never).unwrap();
        b.lock(FlockMode::Shared, Wait::Never).unwrap();
        assert_eq!(c.lock(FlockMode::Exclusive, Wait::Never), Err(FsError::WouldBlock));
        a.unlock().unwrap();
        b.lock(FlockMode::Exclusive, Wait::Never).unwrap();
        assert_eq!(a.lock(FlockMode::Shared, Wait::Never), Err(FsError::WouldBlock));
        let waiter = std::thread::spawn(move || c.lock(FlockMode::Exclusive, Wait::Allowed).map(|()| c));
        std::thread::sleep(std::time::Duration::from_millis(5));
        drop(b);
        let c = waiter.join().unwrap().unwrap();
        assert_eq!(a.lock(FlockMode::Shared, Wait::Never), Err(FsError::WouldBlock));
        drop(c);
        a.lock(FlockMode::Shared, Wait::Never).unwrap();
    }
}
