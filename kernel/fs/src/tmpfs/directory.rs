//! A directory in memory: the entries made here, and what they do to those of the lower directory.
use alloc::{boxed::Box, collections::BTreeMap, sync::Arc};

use rt::sync::SpinLock;

use super::{ENTRY_BYTES, Shared, node::Node};
use crate::{
    error::{FsError, FsResult},
    inode::{DirEntry, EachEntry, Inode},
};

/// Cursors of entries made here have this bit; those without are the lower directory's, listed first.
const OWN: u64 = 1 << 62;

pub struct Directory {
    shared: Arc<Shared>,
    lower: Option<Arc<dyn Inode>>,
    map: SpinLock<Map>,
}

#[derive(Default)]
struct Map {
    entries: BTreeMap<Box<[u8]>, Entry>,
    /// Names by the order of their making, so that a listing goes on where it stopped whatever
    /// happens in between.
    order: BTreeMap<u64, Box<[u8]>>,
    next_place: u64,
    /// Removed: nothing can be made in it any more.
    dead: bool,
}

struct Entry {
    /// None: a whiteout, which hides the lower directory's entry.
    node: Option<Arc<Node>>,
    place: u64,
}

/// What a directory knows of a name by itself.
pub enum Own {
    Present(Arc<Node>),
    Whiteout,
    Unknown,
}

impl Directory {
    pub fn new(shared: &Arc<Shared>, lower: Option<Arc<dyn Inode>>) -> Self {
        Self { shared: shared.clone(), lower, map: SpinLock::new(Map::default()) }
    }

    pub fn own(&self, name: &[u8]) -> Own {
        match self.map.lock().entries.get(name) {
            Some(Entry { node: Some(node), .. }) => Own::Present(node.clone()),
            Some(Entry { node: None, .. }) => Own::Whiteout,
            None => Own::Unknown,
        }
    }

    /// The node of that name, from here or from below.
    pub fn find(&self, name: &[u8]) -> FsResult<Arc<Node>> {
        match self.own(name) {
            Own::Present(node) => Ok(node),
            Own::Whiteout => Err(FsError::NotFound),
            Own::Unknown => match &self.lower {
                Some(lower) => self.shared.shadow(&lower.lookup(name)?),
                None => Err(FsError::NotFound),
            },
        }
    }

    /// Enters a node under a free name.
    pub fn add(&self, name: &[u8], node: Arc<Node>) -> FsResult<()> {
        // The lower directory never changes, so its answer holds.
        let hidden_below = match &self.lower {
            Some(lower) => match lower.lookup(name) {
                Ok(_) => true,
                Err(FsError::NotFound) => false,
                Err(error) => return Err(error),
            },
            None => false,
        };
        let mut map = self.map.lock();
        match map.entries.get(name) {
            _ if map.dead => return Err(FsError::NotFound),
            Some(Entry { node: Some(_), .. }) => return Err(FsError::Exists),
            None if hidden_below => return Err(FsError::Exists),
            // A whiteout has been paid for.
            Some(_) => {}
            None => self.shared.charge(cost_of(name))?,
        }
        let replaced = map.put(name, Some(node));
        drop(map);
        drop(replaced);
        Ok(())
    }

    /// Gives a name, which must be `old`'s, to another node: at no moment it is nobody's.
    pub fn replace(&self, name: &[u8], old: &Arc<Node>, new: Arc<Node>) -> FsResult<()> {
        let mut map = self.map.lock();
        match map.entries.get(name) {
            Some(Entry { node: Some(own), .. }) if Arc::ptr_eq(own, old) => {}
            None if self.lower.is_some() => self.shared.charge(cost_of(name))?,
            _ => return Err(FsError::NotFound), // another task was faster
        }
        let gone = map.put(name, Some(new));
        drop(map);
        drop(gone);
        Ok(())
    }

    /// Takes a name away, which must be `node`'s: by a whiteout, if the lower directory has it too.
    pub fn remove(&self, name: &[u8], node: &Arc<Node>) -> FsResult<()> {
        let below = self.lower.as_ref().is_some_and(|lower| lower.lookup(name).is_ok());
        let cost = cost_of(name);
        let mut map = self.map.lock();
        let was_own = match map.entries.get(name) {
            Some(Entry { node: Some(own), .. }) if Arc::ptr_eq(own, node) => true,
            None if below => false,
            _ => return Err(FsError::NotFound), // another task was faster
        };
        let gone = match (was_own, below) {
            (true, true) => map.put(name, None),
            (true, false) => {
                let gone = map.take(name);
                self.shared.give_back(cost);
                gone
            }
            (false, _) => {
                self.shared.charge(cost)?;
                map.put(name, None)
            }
        };
        drop(map);
        drop(gone);
        Ok(())
    }

    /// Makes the directory refuse new entries, if it is empty.
    pub fn kill_if_empty(&self) -> FsResult<()> {
        let mut visible_below = false;
        if let Some(lower) = &self.lower {
            lower.read_directory(0, &mut |entry| {
                visible_below = matches!(self.own(entry.name), Own::Unknown);
                !visible_below
            })?;
        }
        let mut map = self.map.lock();
        if visible_below || map.entries.values().any(|entry| entry.node.is_some()) {
            return Err(FsError::NotEmpty);
        }
        map.dead = true;
        Ok(())
    }

    /// Undoes [`Directory::kill_if_empty`].
    pub fn revive(&self) {
        self.map.lock().dead = false;
    }

    pub fn list(&self, cursor: u64, each: EachEntry<'_>) -> FsResult<u64> {
        let mut stopped = false;
        let mut cursor = cursor;
        if cursor & OWN == 0 {
            if let Some(lower) = &self.lower {
                cursor = lower.read_directory(cursor, &mut |entry| {
                    if matches!(self.own(entry.name), Own::Unknown) {
                        stopped = !each(entry);
                    }
                    !stopped
                })?;
            }
            if stopped {
                return Ok(cursor);
            }
            cursor = OWN;
        }
        let map = self.map.lock();
        for (&place, name) in map.order.range(cursor & !OWN..) {
            let Some(Entry { node: Some(node), .. }) = map.entries.get(name) else { continue };
            let next = OWN | (place + 1);
            if !each(&DirEntry { name, inode: node.number(), kind: node.kind(), next }) {
                return Ok(OWN | place);
            }
        }
        Ok(OWN | map.next_place)
    }
}

impl Map {
    /// Sets a name's entry; what it held is for the caller to drop outside the lock.
    fn put(&mut self, name: &[u8], node: Option<Arc<Node>>) -> Option<Arc<Node>> {
        let gone = self.take(name);
        let place = self.next_place;
        self.next_place += 1;
        self.order.insert(place, name.into());
        self.entries.insert(name.into(), Entry { node, place });
        gone
    }

    fn take(&mut self, name: &[u8]) -> Option<Arc<Node>> {
        let entry = self.entries.remove(name)?;
        self.order.remove(&entry.place);
        entry.node
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let map = core::mem::take(&mut *self.map.lock());
        self.shared.give_back(map.entries.keys().map(|name| cost_of(name)).sum());
    }
}

/// Bytes of the limit that an entry takes.
fn cost_of(name: &[u8]) -> u64 {
    ENTRY_BYTES + name.len() as u64
}
