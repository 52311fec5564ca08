//! Pages as counted blocks of the host's heap.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, RwLock,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use crate::page::{OutOfFrames, PAGE_SIZE, PageId};

/// All pages. Numbers are never used again, so that a stale one is noticed.
pub struct Pages {
    map: RwLock<HashMap<PageId, Arc<HostPage>>>,
    next: AtomicUsize,
    limit: AtomicUsize,
    reclaim: OnceLock<fn(usize) -> usize>,
}

struct HostPage {
    references: AtomicU32,
    bytes: Mutex<Box<[u8; PAGE_SIZE]>>,
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            map: RwLock::default(),
            next: AtomicUsize::new(1),
            limit: AtomicUsize::new(usize::MAX),
            reclaim: OnceLock::new(),
        }
    }
}

impl Pages {
    pub fn set_limit(&self, pages: usize) {
        self.limit.store(pages, Ordering::Relaxed);
    }

    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    pub fn set_reclaim(&self, reclaim: fn(usize) -> usize) {
        // The first registration holds, as for the runtime itself.
        let _ = self.reclaim.set(reclaim);
    }

    pub fn in_use(&self) -> usize {
        self.map.read().unwrap().len()
    }

    pub fn alloc(&self, zeroed: bool) -> Result<PageId, OutOfFrames> {
        if self.in_use() >= self.limit() {
            let freed = self.reclaim.get().map_or(0, |reclaim| reclaim(16));
            if freed == 0 || self.in_use() >= self.limit() {
                return Err(OutOfFrames);
            }
        }
        // Undefined content shows up in tests if it is not zero.
        let fill = if zeroed { 0 } else { 0xa5 };
        let page = HostPage { references: AtomicU32::new(1), bytes: Mutex::new(Box::new([fill; PAGE_SIZE])) };
        let id = PageId((self.next.fetch_add(1, Ordering::Relaxed) * PAGE_SIZE) as u64);
        self.map.write().unwrap().insert(id, Arc::new(page));
        Ok(id)
    }

    pub fn add_reference(&self, id: PageId) {
        self.page(id).references.fetch_add(1, Ordering::Relaxed);
    }

    pub fn drop_reference(&self, id: PageId) {
        if self.page(id).references.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.map.write().unwrap().remove(&id);
        }
    }

    pub fn references(&self, id: PageId) -> u32 {
        self.page(id).references.load(Ordering::Acquire)
    }

    pub fn read(&self, id: PageId, offset: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.page(id).bytes.lock().unwrap()[offset..offset + out.len()]);
    }

    pub fn write(&self, id: PageId, offset: usize, data: &[u8]) {
        self.page(id).bytes.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }

    fn page(&self, id: PageId) -> Arc<HostPage> {
        match self.map.read().unwrap().get(&id) {
            Some(page) => page.clone(),
            None => panic!("{id:?} is used after its last reference was dropped"),
        }
    }
}
