//! The descriptor table: small integers to open files.
//!
//! Pure: no locking, no knowledge of what a descriptor refers to. The owner guards it with a lock;
//! [`FdTable::get`] is the only call that a hot path makes, and needs just a slot's content, so that
//! lookups can later go without the lock (slots published one by one, reclaimed by quiescent states)
//! behind the same interface.
use alloc::{boxed::Box, vec::Vec};
use core::ops::RangeInclusive;

/// Descriptors that are stored together: as many as a word of `used` has bits.
const GROUP: usize = 64;

/// Why a file could not be put into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// No free descriptor below the limit (EMFILE), or beyond it (EBADF for dup2's target).
    LimitReached,
    OutOfMemory,
}

/// What could not be put into the table, given back so that the owner drops it without its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<T> {
    pub why: TableError,
    pub value: T,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    value: T,
    close_on_exec: bool,
}

/// A run of [`GROUP`] descriptors. One high descriptor costs a group, and 16 bytes for each below: no
/// allocation grows to what the heap cannot give in one piece.
#[derive(Clone, Debug)]
struct Group<T> {
    /// Bit n is set exactly if `slots[n]` is taken.
    used: u64,
    /// None until the first of them is taken.
    slots: Option<Box<[Option<Slot<T>>; GROUP]>>,
}

/// Descriptors of one program. `T` is a counted reference to an open file.
///
/// # Invariants
/// Every descriptor below `first_free_hint` is taken.
#[derive(Clone, Debug)]
pub struct FdTable<T> {
    groups: Vec<Group<T>>,
    first_free_hint: usize,
    /// RLIMIT_NOFILE: descriptors are below it.
    limit: u32,
}

impl<T> FdTable<T> {
    pub const fn new(limit: u32) -> Self {
        Self { groups: Vec::new(), first_free_hint: 0, limit }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Descriptors that are open beyond a lowered limit stay open, as on Linux.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// Every open descriptor is below it: what select(2) looks at, at most.
    pub fn capacity(&self) -> usize {
        self.groups.len().max(1) * GROUP
    }

    #[inline]
    pub fn get(&self, fd: u32) -> Option<&T> {
        self.slot(fd).map(|slot| &slot.value)
    }

    #[inline]
    fn slot(&self, fd: u32) -> Option<&Slot<T>> {
        self.groups.get(fd as usize / GROUP)?.slots.as_ref()?[fd as usize % GROUP].as_ref()
    }

    fn slot_mut(&mut self, fd: u32) -> Option<&mut Slot<T>> {
        self.groups.get_mut(fd as usize / GROUP)?.slots.as_mut()?[fd as usize % GROUP].as_mut()
    }

    /// Whether [`FdTable::insert`] at the lowest descriptor would find one.
    pub fn has_room(&self) -> bool {
        self.lowest_free(0) < self.limit as usize
    }

    /// Puts `value` at the lowest free descriptor that is at least `from` (open: 0; F_DUPFD: its
    /// argument).
    pub fn insert(&mut self, value: T, close_on_exec: bool, from: u32) -> Result<u32, Refused<T>> {
        let fd = self.lowest_free(from as usize);
        if fd >= self.limit as usize {
            return Err(Refused { why: TableError::LimitReached, value });
        }
        self.put(fd, Slot { value, close_on_exec })?;
        Ok(fd as u32)
    }

    /// Puts `value` at exactly `fd` (dup2, dup3); the result is what was there before.
    pub fn replace(&mut self, fd: u32, value: T, close_on_exec: bool) -> Result<Option<T>, Refused<T>> {
        if fd >= self.limit {
            return Err(Refused { why: TableError::LimitReached, value });
        }
        self.put(fd as usize, Slot { value, close_on_exec })
    }

    /// Closes `fd`. The caller drops the value after it has left its lock.
    pub fn remove(&mut self, fd: u32) -> Option<T> {
        let group = self.groups.get_mut(fd as usize / GROUP)?;
        let slot = group.slots.as_mut()?[fd as usize % GROUP].take()?;
        group.used &= !(1 << (fd as usize % GROUP));
        self.first_free_hint = self.first_free_hint.min(fd as usize);
        Some(slot.value)
    }

    pub fn close_on_exec(&self, fd: u32) -> Option<bool> {
        self.slot(fd).map(|slot| slot.close_on_exec)
    }

    /// False if `fd` is not open.
    pub fn set_close_on_exec(&mut self, fd: u32, close_on_exec: bool) -> bool {
        match self.slot_mut(fd) {
            Some(slot) => {
                slot.close_on_exec = close_on_exec;
                true
            }
            None => false,
        }
    }

    /// The first open descriptor of the range. Closing many goes one by one through this, so that the
    /// owner's lock is not held for all, and nothing needs to be gathered.
    pub fn first_open(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let (first, last) = (*range.start() as usize, *range.end() as usize);
        let mut below = (1u64 << (first % GROUP)) - 1;
        for (index, group) in self.groups.iter().enumerate().skip(first / GROUP) {
            let used = group.used & !below;
            if used != 0 {
                let fd = index * GROUP + used.trailing_zeros() as usize;
                return (fd <= last).then_some(fd as u32);
            }
            below = 0;
        }
        None
    }

    /// close_range(2) with CLOSE_RANGE_CLOEXEC.
    pub fn set_close_on_exec_range(&mut self, range: RangeInclusive<u32>) {
        let last = *range.end();
        let mut next = Some(*range.start());
        while let Some(fd) = next.and_then(|from| self.first_open(from..=last)) {
            self.set_close_on_exec(fd, true);
            next = fd.checked_add(1);
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
        let groups = self.groups.iter().enumerate();
        let slots = groups.filter_map(|(index, group)| Some((index * GROUP, group.slots.as_ref()?)));
        slots.flat_map(|(first, slots)| {
            let open = slots.iter().enumerate();
            open.filter_map(move |(at, slot)| Some(((first + at) as u32, &slot.as_ref()?.value)))
        })
    }

    fn lowest_free(&self, from: usize) -> usize {
        let from = from.max(self.first_free_hint);
        let mut index = from / GROUP;
        // Bits below `from` count as taken in its group.
        let mut taken_below = (1u64 << (from % GROUP)) - 1;
        while let Some(group) = self.groups.get(index) {
            let taken = group.used | taken_below;
            if taken != u64::MAX {
                return index * GROUP + taken.trailing_ones() as usize;
            }
            taken_below = 0;
            index += 1;
        }
        from.max(index * GROUP)
    }

    fn put(&mut self, fd: usize, slot: Slot<T>) -> Result<Option<T>, Refused<T>> {
        let (index, at) = (fd / GROUP, fd % GROUP);
        if let Some(missing) = (index + 1).checked_sub(self.groups.len()) {
            if self.groups.try_reserve(missing).is_err() {
                return Err(Refused { why: TableError::OutOfMemory, value: slot.value });
            }
            self.groups.resize_with(self.groups.len().max(index + 1), || Group { used: 0, slots: None });
        }
        let group = &mut self.groups[index];
        let slots = group.slots.get_or_insert_with(|| Box::new([const { None }; GROUP]));
        let old = slots[at].replace(slot);
        group.used |= 1 << at;
        if fd == self.first_free_hint {
            self.first_free_hint = fd + 1;
        }
        Ok(old.map(|old| old.value))
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
        let refused = Refused { why: TableError::LimitReached, value: 9 };
        assert_eq!(table.insert(9, false, 0), Err(refused));
        assert_eq!(table.insert(9, false, 100), Err(refused));
        assert_eq!(table.replace(4, 9, false), Err(refused));
        assert_eq!(table.replace(1, 9, true), Ok(Some(1)));
        assert_eq!(table.get(1), Some(&9));
    }

    #[test]
    fn close_on_exec_and_ranges() {
        let mut table = filled(10);
        assert!(table.set_close_on_exec(4, true));
        assert!(!table.set_close_on_exec(40, true));
        assert_eq!(table.remove_close_on_exec(), [4]);
        let mut removed = Vec::new();
        while let Some(fd) = table.first_open(3..=6) {
            removed.extend(table.remove(fd));
        }
        assert_eq!(removed, [3, 5, 6]);
        assert_eq!(table.first_open(10..=u32::MAX), None);
        table.set_close_on_exec_range(8..=u32::MAX);
        assert_eq!(table.close_on_exec(7), Some(false));
        assert_eq!(table.close_on_exec(9), Some(true));
        assert_eq!(table.open().map(|(fd, _)| fd).collect::<Vec<_>>(), [0, 1, 2, 7, 8, 9]);
        assert_eq!(table.insert(3, false, 0), Ok(3));
    }

    /// The highest descriptor of all does not make the table large.
    #[test]
    fn high_descriptors_are_cheap() {
        let mut table = FdTable::new(1 << 20);
        assert_eq!(table.replace((1 << 20) - 1, 7, false), Ok(None));
        assert!(table.groups.iter().filter(|group| group.slots.is_some()).count() == 1);
        assert_eq!(table.get((1 << 20) - 1), Some(&7));
        assert_eq!(table.insert(1, false, 0), Ok(0));
        assert_eq!(table.first_open(1..=u32::MAX), Some((1 << 20) - 1));
        assert_eq!(table.remove((1 << 20) - 1), Some(7));
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
                let expected = (from..300)
                    .find(|fd| !model.contains(fd))
                    .ok_or(Refused { why: TableError::LimitReached, value: () });
                assert_eq!(table.insert((), false, from), expected);
                model.extend(expected);
            } else {
                let fd = pick / 3 % 300;
                assert_eq!(table.remove(fd).is_some(), model.remove(&fd));
            }
        }
    }
}
