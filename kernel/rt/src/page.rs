//! Pages of memory: reference-counted frames, readable and writable by copy.
//!
//! No Rust reference to a page's content is ever given out: applications may write a mapped page
//! at any time.
use crate::rt;

pub const PAGE_SIZE: usize = 4096;
pub const PAGE_SHIFT: u32 = 12;

/// No frame could be had, not even by reclaim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrames;

/// Physical address of a frame (in host tests: a number of the test runtime's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u64);

/// A counted reference to a page.
#[derive(Debug, PartialEq, Eq)]
pub struct Page(PageId);

impl Page {
    pub fn alloc_zeroed() -> Result<Self, OutOfFrames> {
        rt().page_alloc(true).map(Self)
    }

    /// Content is undefined.
    pub fn alloc() -> Result<Self, OutOfFrames> {
        rt().page_alloc(false).map(Self)
    }

    /// Takes over one reference that the caller holds (the other half of [`Page::into_id`]).
    pub fn from_id(id: PageId) -> Self {
        Self(id)
    }

    /// Gives the reference away, to a page-table entry say.
    pub fn into_id(self) -> PageId {
        let id = self.0;
        core::mem::forget(self);
        id
    }

    pub fn id(&self) -> PageId {
        self.0
    }

    /// References to the frame, this one included: 1 means nobody else has it.
    pub fn refcount(&self) -> u32 {
        rt().page_refcount(self.0)
    }

    /// Panics if `offset + out.len()` is beyond the page.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        rt().page_read(self.0, offset, out);
    }

    pub fn write(&self, offset: usize, data: &[u8]) {
        rt().page_write(self.0, offset, data);
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        rt().page_ref(self.0);
        Self(self.0)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        rt().page_unref(self.0);
    }
}
