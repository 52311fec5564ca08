//! Where bytes go to and come from: [`Sink`] and [`Source`].
//!
//! A file that holds its data in pages hands the pages over, so data reaches application memory in
//! one copy. libc-shim implements both over `rt::user` (one buffer, or an iovec); slices serve the
//! kernel itself and tests.
//!
//! # Invariants
//! Callers never put or take more than [`Sink::remaining`] or [`Source::remaining`], and hold no spin
//! lock: the other side may be application memory that faults.
use rt::page::{PAGE_SIZE, Page};

use crate::error::{FsError, FsResult};

/// Takes the bytes of a read.
pub trait Sink {
    /// Bytes that it still takes.
    fn remaining(&self) -> usize;
    /// Takes all of `bytes`, or fails; part may have been copied then.
    fn put(&mut self, bytes: &[u8]) -> FsResult<()>;
    /// Takes `len` bytes of the page from `offset` on.
    fn put_page(&mut self, page: &Page, offset: usize, len: usize) -> FsResult<()>;
    /// Takes `len` zero bytes.
    fn put_zeros(&mut self, len: usize) -> FsResult<()> {
        let zeros = [0; 512];
        let mut left = len;
        while left > 0 {
            let now = left.min(zeros.len());
            self.put(&zeros[..now])?;
            left -= now;
        }
        Ok(())
    }
}

/// Gives the bytes of a write.
pub trait Source {
    /// Bytes that it still has.
    fn remaining(&self) -> usize;
    /// Fills all of `out`.
    fn take(&mut self, out: &mut [u8]) -> FsResult<()>;
    /// Writes `len` bytes into the page from `offset` on.
    fn take_into_page(&mut self, page: &Page, offset: usize, len: usize) -> FsResult<()>;
}

/// A sink over a slice.
pub struct SliceSink<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> SliceSink<'a> {
    pub fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0 }
    }

    /// Bytes taken so far.
    pub fn written(&self) -> usize {
        self.at
    }

    fn claim(&mut self, len: usize) -> FsResult<&mut [u8]> {
        let room = self.out.get_mut(self.at..self.at + len).ok_or(FsError::Invalid)?;
        self.at += len;
        Ok(room)
    }
}

impl Sink for SliceSink<'_> {
    fn remaining(&self) -> usize {
        self.out.len() - self.at
    }

    fn put(&mut self, bytes: &[u8]) -> FsResult<()> {
        self.claim(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn put_page(&mut self, page: &Page, offset: usize, len: usize) -> FsResult<()> {
        page.read(offset, self.claim(len)?);
        Ok(())
    }

    fn put_zeros(&mut self, len: usize) -> FsResult<()> {
        self.claim(len)?.fill(0);
        Ok(())
    }
}

/// A source over a slice.
pub struct SliceSource<'a> {
    data: &'a [u8],
}

impl<'a> SliceSource<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data }
    }

    fn claim(&mut self, len: usize) -> FsResult<&'a [u8]> {
        let (now, rest) = self.data.split_at_checked(len).ok_or(FsError::Invalid)?;
        self.data = rest;
        Ok(now)
    }
}

impl Source for SliceSource<'_> {
    fn remaining(&self) -> usize {
        self.data.len()
    }

    fn take(&mut self, out: &mut [u8]) -> FsResult<()> {
        out.copy_from_slice(self.claim(out.len())?);
        Ok(())
    }

    fn take_into_page(&mut self, page: &Page, offset: usize, len: usize) -> FsResult<()> {
        page.write(offset, self.claim(len)?);
        Ok(())
    }
}

/// Splits a byte range into (page index, offset in the page, length) pieces.
pub(crate) fn page_pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = offset;
    let mut left = len;
    core::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let within = (at % PAGE_SIZE as u64) as usize;
        let now = left.min(PAGE_SIZE - within);
        let piece = (at / PAGE_SIZE as u64, within, now);
        at += now as u64;
        left -= now;
        Some(piece)
    })
}
