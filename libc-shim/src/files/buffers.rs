//! Application buffers as [`Sink`] and [`Source`]: one range, or the ranges of an iovec.
use alloc::vec::Vec;

use fs::{FsError, Sink, Source, error::FsResult};
use rt::{page::Page, rt};

use crate::{
    args::Addr,
    errno::{EFAULT, EINVAL, ENOMEM, SysResult},
    mm::SPACE_END,
};

/// Most bytes that one call moves (read(2), NOTES).
pub const MAX_BYTES: u64 = 0x7fff_f000;
/// Most entries of an iovec (IOV_MAX).
const IOV_MAX: u64 = 1024;

/// An empty vector for `len` items. ENOMEM where a size that the application chose does not fit.
pub fn with_room<T>(len: usize) -> SysResult<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(len).map_err(|_| ENOMEM)?;
    Ok(room)
}

fn check_range(at: u64, len: u64) -> SysResult<()> {
    if at.checked_add(len).is_some_and(|end| end <= SPACE_END) { Ok(()) } else { Err(EFAULT) }
}

/// Ranges of application memory, used up from the front.
pub struct UserBuffer {
    first: (u64, usize),
    /// The ranges after the first, last one first.
    rest: Vec<(u64, usize)>,
    remaining: usize,
}

impl UserBuffer {
    /// EFAULT if the range is not the application's as a whole, mapped or not: before anything moves.
    #[inline]
    pub fn new(at: Addr, len: u64) -> SysResult<Self> {
        check_range(at.0, len)?;
        let len = len.min(MAX_BYTES) as usize;
        Ok(Self { first: (at.0, len), rest: Vec::new(), remaining: len })
    }

    /// From `count` entries of `struct iovec` (readv(2)).
    pub fn from_iovec(at: Addr, count: u64) -> SysResult<Self> {
        if count > IOV_MAX {
            return Err(EINVAL);
        }
        let mut rest = Vec::new();
        let mut total: u64 = 0;
        for index in 0..count {
            let (base, len) = crate::args::split_pair(&Addr(at.0.wrapping_add(index * 16)).read()?);
            if len < 0 {
                return Err(EINVAL);
            }
            check_range(base as u64, len as u64)?;
            let len = (len as u64).min(MAX_BYTES - total);
            total += len;
            if len > 0 {
                rest.push((base as u64, len as usize));
            }
        }
        rest.reverse();
        let first = rest.pop().unwrap_or((0, 0));
        Ok(Self { first, rest, remaining: total as usize })
    }

    /// The next piece of at most `len` bytes, and of at most a megabyte: copies are not preempted.
    fn next(&mut self, len: usize) -> FsResult<(u64, usize)> {
        const UNINTERRUPTED: usize = 1 << 20;
        let len = len.min(UNINTERRUPTED);
        while self.first.1 == 0 {
            self.first = self.rest.pop().ok_or(FsError::Invalid)?;
        }
        let now = len.min(self.first.1);
        let at = self.first.0;
        self.first = (at + now as u64, self.first.1 - now);
        self.remaining -= now;
        Ok((at, now))
    }

    /// Calls `each` with (address, offset within the run, bytes) until `len` bytes are done.
    fn each_piece(&mut self, len: usize, mut each: impl FnMut(u64, usize, usize) -> FsResult<()>) -> FsResult<()> {
        let mut done = 0;
        while done < len {
            let (at, now) = self.next(len - done)?;
            each(at, done, now)?;
            done += now;
            if done < len {
                rt().preemption_point();
            }
        }
        Ok(())
    }
}

impl Sink for UserBuffer {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn put(&mut self, bytes: &[u8]) -> FsResult<()> {
        self.each_piece(bytes.len(), |at, from, len| Ok(rt().user().write(at, &bytes[from..from + len])?))
    }

    fn put_page(&mut self, page: &Page, offset: usize, len: usize) -> FsResult<()> {
        if self.remaining > len {
            rt().preemption_point();
        }
        self.each_piece(len, |at, from, len| Ok(rt().user().write_from_page(at, page, offset + from, len)?))
    }

    fn put_zeros(&mut self, len: usize) -> FsResult<()> {
        self.each_piece(len, |at, _, len| Ok(rt().user().zero(at, len)?))
    }
}

impl Source for UserBuffer {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn take(&mut self, out: &mut [u8]) -> FsResult<()> {
        self.each_piece(out.len(), |at, from, len| Ok(rt().user().read(&mut out[from..from + len], at)?))
    }

    fn take_into_page(&mut self, page: &Page, offset: usize, len: usize) -> FsResult<()> {
        if self.remaining > len {
            rt().preemption_point();
        }
        self.each_piece(len, |at, from, len| Ok(rt().user().read_into_page(page, offset + from, len, at)?))
    }
}
