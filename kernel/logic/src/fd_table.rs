//! The descriptor table: small integers to open files.
//!
//! Pure: no locking, no knowledge of what a descriptor refers to. The owner guards it with a lock;
//! [`FdTable::get`] is the only call that a hot path makes, and needs just a slot's content, so that
//! lookups can later go without the lock (slots published one by one, reclaimed by quiescent states)
//! behind the same interface.
use alloc::vec::Vec;
use core::ops::RangeInclusive;

/// No free descriptor below the limit (EMFILE), or beyond it (EBADF for dup2's target).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitReached;

#[derive(Clone, Debug)]
struct Slot<T> {
    value: T,
    close_on_exec: bool,
}

/// Descriptors of one program. `T` is a counted reference to an open file.
///
/// # Invariants
/// `used` has bit n set exactly if `slots[n]` is taken; its length covers `slots`. Every descriptor
/// below `first_free_hint` is taken.
#[derive(Clone, Debug)]
pub struct FdTable<T> {
    slots: Vec<Option<Slot<T>>>,
    used: Vec<u64>,
    first_free_hint: usize,
    /// RLIMIT_NOFILE: descriptors are below it.
    limit: u32,
}

impl<T> FdTable<T> {
    pub const fn new(limit: u32) -> Self {
        Self { slots: Vec::new(), used: Vec::new(), first_free_hint: 0, limit }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Descriptors that are open beyond a lowered limit stay open, as on Linux.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    #[inline]
    pub fn get(&self, fd: u32) -> Option<&T> {
        self.slots.get(fd as usize)?.as_ref().map(|slot| &slot.value)
    }

    /// Puts `value` at the lowest free descriptor that is at least `from` (open: 0; F_DUPFD: its
    /// argument).
    pub fn insert(&mut self, value: T, close_on_exec: bool, from: u32) -> Result<u32, LimitReached> {
        let fd = self.lowest_free(from as usize);
        if fd >= self.limit as usize {
            return Err(LimitReached);
        }
        self.put(fd, Slot { value, close_on_exec });
        Ok(fd as u32)
    }

    /// Puts `value` at exactly `fd` (dup2, dup3); the result is what was there before.
    pub fn replace(&mut self, fd: u32, value: T, close_on_exec: bool) -> Result<Option<T>, LimitReached> {
        if fd >= self.limit {
            return Err(LimitReached);
        }
        Ok(self.put(fd as usize, Slot { value, close_on_exec }))
    }

    /// Closes `fd`. The caller drops the value after it has left its lock.
    pub fn remove(&mut self, fd: u32) -> Option<T> {
        let slot = self.slots.get_mut(fd as usize)?.take()?;
        self.mark_free(fd as usize);
        Some(slot.value)
    }

    pub fn close_on_exec(&self, fd: u32) -> Option<bool> {
        self.slots.get(fd as usize)?.as_ref().map(|slot| slot.close_on_exec)
    }

    /// False if `fd` is not open.
    pub fn set_close_on_exec(&mut self, fd: u32, close_on_exec: bool) -> bool {
        match self.slots.get_mut(fd as usize) {
            Some(Some(slot)) => {
                slot.close_on_exec = close_on_exec;
                true
            }
            _ => false,
        }
    }

    /// close_range(2): closes the open ones of the range; the caller drops the result later.
    pub fn remove_range(&mut self, range: RangeInclusive<u32>) -> Vec<T> {
        self.open_in(range).into_iter().filter_map(|fd| self.remove(fd)).collect()
    }

    /// close_range(2) with CLOSE_RANGE_CLOEXEC.
    pub fn set_close_on_exec_range(&mut self, range: RangeInclusive<u32>) {
        for fd in self.open_in(range) {
            self.set_close_on_exec(fd, true);
        }
    }

    /// What execve closes.
    pub fn remove_close_on_exec(&mut self) -> Vec<T> {
        let marked: Vec<u32> =
            self.open().filter(|&(fd, _)| self.close_on_exec(fd) == Some(true)).map(|(fd, _)| fd).collect();
        marked.into_iter().filter_map(|fd| self.remove(fd)).collect()
    }

    /// Open descriptors in ascending order (/proc/self/fd).
    pub fn open(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots.iter().enumerate().filter_map(|(fd, slot)| Some((fd as u32, &slot.as_ref()?.value)))
    }

    fn open_in(&self, range: RangeInclusive<u32>) -> Vec<u32> {
        self.open().map(|(fd, _)| fd).filter(|fd| range.contains(fd)).collect()
    }

    fn lowest_free(&self, from: usize) -> usize {
        let from = from.max(self.first_free_hint);
        let mut word = from / 64;
        // Bits below `from` count as taken in its word.
        let mut taken_below = (1u64 << (from % 64)) - 1;
        while let Some(bits) = self.used.get(word) {
            let taken = bits | taken_below;
            if taken != u64::MAX {
                return word * 64 + taken.trailing_ones() as usize;
            }
            taken_below = 0;
            word += 1;
        }
        from.max(word * 64)
    }

    fn put(&mut self, fd: usize, slot: Slot<T>) -> Option<T> {
        if fd >= self.slots.len() {
            self.slots.resize_with(fd + 1, || None);
            self.used.resize(fd / 64 + 1, 0);
        }
        self.used[fd / 64] |= 1 << (fd % 64);
        if fd == self.first_free_hint {
            self.first_free_hint = fd + 1;
        }
        self.slots[fd].replace(slot).map(|old| old.value)
    }

    fn mark_free(&mut self, fd: usize) {
        self.used[fd / 64] &= !(1 << (fd % 64));
        self.first_free_hint = self.first_free_hint.min(fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(count: u32) -> FdTable<u32> {
        let mut table = FdTable::new(1024);
        for n in 0..count {
            assert_eq!(table.insert(n, false, 0), Ok(n));
        }
        table
    }

    #[test]
    fn lowest_free_is_taken() {
        let mut table = filled(200);
        assert_eq!(table.remove(130), Some(130));
        assert_eq!(table.remove(64), Some(64));
        assert_eq!(table.remove(64), None);
        assert_eq!(table.insert(1, false, 0), Ok(64));
        assert_eq!(table.insert(1, false, 0), Ok(130));
        assert_eq!(table.insert(1, false, 0), Ok(200));
        assert_eq!(table.insert(1, false, 700), Ok(700));
        assert_eq!(table.insert(1, false, 700), Ok(701));
        assert_eq!(table.insert(1, false, 0), Ok(201));
    }

    #[test]
    fn limit() {
        let mut table = filled(3);
        table.set_limit(4);
        assert_eq!(table.insert(9, false, 0), Ok(3));
        assert_eq!(table.insert(9, false, 0), Err(LimitReached));
        assert_eq!(table.insert(9, false, 100), Err(LimitReached));
        assert_eq!(table.replace(4, 9, false), Err(LimitReached));
        assert_eq!(table.replace(1, 9, true), Ok(Some(1)));
        assert_eq!(table.get(1), Some(&9));
    }

    #[test]
    fn close_on_exec_and_ranges() {
        let mut table = filled(10);
        assert!(table.set_close_on_exec(4, true));
        assert!(!table.set_close_on_exec(40, true));
        assert_eq!(table.remove_close_on_exec(), [4]);
        assert_eq!(table.remove_range(3..=6), [3, 5, 6]);
        table.set_close_on_exec_range(8..=u32::MAX);
        assert_eq!(table.close_on_exec(7), Some(false));
        assert_eq!(table.close_on_exec(9), Some(true));
        assert_eq!(table.open().map(|(fd, _)| fd).collect::<Vec<_>>(), [0, 1, 2, 7, 8, 9]);
        assert_eq!(table.insert(3, false, 0), Ok(3));
    }

    /// Against a plain model: random inserts and removals always take the lowest free number.
    #[test]
    fn agrees_with_a_model() {
        let mut table = FdTable::new(300);
        let mut model = std::collections::BTreeSet::new();
        let mut seed = 12345u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let pick = (seed >> 33) as u32;
            if !pick.is_multiple_of(3) {
                let from = if pick.is_multiple_of(5) { pick % 290 } else { 0 };
                let expected = (from..300).find(|fd| !model.contains(fd)).ok_or(LimitReached);
                assert_eq!(table.insert((), false, from), expected);
                model.extend(expected);
            } else {
                let fd = pick / 3 % 300;
                assert_eq!(table.remove(fd).is_some(), model.remove(&fd));
            }
        }
    }
}
