//! Moving bytes: read, write and their positional and vector forms, seeking, copying between files.
use alloc::vec;

use rt::rt;

use fs::{FsError, OpenFile, SliceSink, SliceSource, file::SeekFrom};

use super::{
    buffers::{MAX_BYTES, UserBuffer},
    get,
};
use crate::{
    args::{Addr, Bytes, Fd, flags::RwFlags, names::Whence},
    call::Ctx,
    errno::{EBADF, EINVAL, ENXIO, EOPNOTSUPP, EPIPE, ESPIPE, Errno, SysResult},
    signal::{SI_USER, SIGPIPE, SigInfo, send},
};

/// A write to a pipe without reader raises SIGPIPE on the writing thread as well (pipe(7)).
fn written(cx: &Ctx<'_>, result: Result<usize, FsError>) -> SysResult {
    let result = result.map(|n| n as u64).map_err(Errno::from);
    if result == Err(EPIPE) {
        let info = SigInfo::from_sender(SIGPIPE, SI_USER, cx.program().pid);
        send::to_thread(cx.task, cx.thread, info)?;
    }
    result
}

/// read(2).
pub fn read(cx: &mut Ctx<'_>, fd: Fd, buffer: Addr, count: u64) -> SysResult {
    let file = get(cx, fd)?;
    Ok(file.read(&mut UserBuffer::new(buffer, count)?)? as u64)
}

/// write(2).
pub fn write(cx: &mut Ctx<'_>, fd: Fd, buffer: Bytes, count: u64) -> SysResult {
    let file = get(cx, fd)?;
    written(cx, file.write(&mut UserBuffer::new(Addr(buffer.0), count)?))
}

fn position(offset: i64) -> SysResult<u64> {
    u64::try_from(offset).map_err(|_| EINVAL)
}

/// pread64(2).
pub fn pread64(cx: &mut Ctx<'_>, fd: Fd, buffer: Addr, count: u64, offset: i64) -> SysResult {
    let at = position(offset)?;
    let file = get(cx, fd)?;
    Ok(file.read_at(at, &mut UserBuffer::new(buffer, count)?)? as u64)
}

/// pwrite64(2).
pub fn pwrite64(cx: &mut Ctx<'_>, fd: Fd, buffer: Bytes, count: u64, offset: i64) -> SysResult {
    let at = position(offset)?;
    let file = get(cx, fd)?;
    written(cx, file.write_at(at, &mut UserBuffer::new(Addr(buffer.0), count)?))
}

/// readv(2).
pub fn readv(cx: &mut Ctx<'_>, fd: Fd, iovec: Addr, count: u64) -> SysResult {
    let file = get(cx, fd)?;
    Ok(file.read(&mut UserBuffer::from_iovec(iovec, count)?)? as u64)
}

/// writev(2).
pub fn writev(cx: &mut Ctx<'_>, fd: Fd, iovec: Addr, count: u64) -> SysResult {
    let file = get(cx, fd)?;
    written(cx, file.write(&mut UserBuffer::from_iovec(iovec, count)?))
}

/// preadv(2); the offset's upper half is unused on 64-bit machines.
pub fn preadv(cx: &mut Ctx<'_>, fd: Fd, iovec: Addr, count: u64, offset: i64) -> SysResult {
    let at = position(offset)?;
    let file = get(cx, fd)?;
    Ok(file.read_at(at, &mut UserBuffer::from_iovec(iovec, count)?)? as u64)
}

/// pwritev(2).
pub fn pwritev(cx: &mut Ctx<'_>, fd: Fd, iovec: Addr, count: u64, offset: i64) -> SysResult {
    let at = position(offset)?;
    let file = get(cx, fd)?;
    written(cx, file.write_at(at, &mut UserBuffer::from_iovec(iovec, count)?))
}

fn refuse_beyond(flags: RwFlags, known: u64) -> SysResult<()> {
    if flags.0 & !known == 0 { Ok(()) } else { Err(EOPNOTSUPP) }
}

/// preadv2(2): of the flags, those that ask for more than the call does anyway are refused.
pub fn preadv2(cx: &mut Ctx<'_>, fd: Fd, iovec: Addr, count: u64, offset: i64, _: u64, flags: RwFlags) -> SysResult {
    refuse_beyond(flags, RwFlags::HIPRI)?;
    if offset == -1 { readv(cx, fd, iovec, count) } else { preadv(cx, fd, iovec, count, offset) }
}

/// pwritev2(2).
pub fn pwritev2(cx: &mut Ctx<'_>, fd: Fd, iovec: Addr, count: u64, offset: i64, _: u64, flags: RwFlags) -> SysResult {
    refuse_beyond(flags, RwFlags::HIPRI | RwFlags::DSYNC | RwFlags::SYNC)?;
    let done = if offset == -1 { writev(cx, fd, iovec, count)? } else { pwritev(cx, fd, iovec, count, offset)? };
    if flags.0 & (RwFlags::DSYNC | RwFlags::SYNC) != 0 {
        get(cx, fd)?.sync()?;
    }
    Ok(done)
}

/// lseek(2).
pub fn lseek(cx: &mut Ctx<'_>, fd: Fd, offset: i64, whence: Whence) -> SysResult {
    let file = get(cx, fd)?;
    let to = match whence.0 {
        Whence::SET => SeekFrom::Start(position(offset)?),
        Whence::CUR => SeekFrom::Current(offset),
        Whence::END => SeekFrom::End(offset),
        Whence::DATA => SeekFrom::Data(u64::try_from(offset).map_err(|_| ENXIO)?),
        Whence::HOLE => SeekFrom::Hole(u64::try_from(offset).map_err(|_| ENXIO)?),
        _ => return Err(EINVAL),
    };
    file.seek(to).map_err(|error| if error == FsError::NoData { ENXIO } else { error.into() })
}

/// sendfile(2).
pub fn sendfile(cx: &mut Ctx<'_>, out: Fd, input: Fd, offset: Addr, count: u64) -> SysResult {
    let (source, target) = (get(cx, input)?, get(cx, out)?);
    if source.ops().is_stream() {
        return Err(EINVAL);
    }
    let start = if offset.is_null() { None } else { Some(position(offset.read_u64()? as i64)?) };
    let (moved, result) = copy(&source, start, &target, None, count);
    if let Some(start) = start {
        offset.write(&(start + moved).to_le_bytes())?;
    }
    finish_copy(cx, moved, result)
}

/// copy_file_range(2).
pub fn copy_file_range(
    cx: &mut Ctx<'_>,
    input: Fd,
    input_at: Addr,
    out: Fd,
    out_at: Addr,
    count: u64,
    flags: u32,
) -> SysResult {
    let (source, target) = (get(cx, input)?, get(cx, out)?);
    if flags != 0 || source.ops().is_stream() || target.ops().is_stream() {
        return Err(EINVAL);
    }
    if target.flags().contains(fs::OpenFlags::APPEND) {
        return Err(EBADF);
    }
    let from = if input_at.is_null() { None } else { Some(position(input_at.read_u64()? as i64)?) };
    let to = if out_at.is_null() { None } else { Some(position(out_at.read_u64()? as i64)?) };
    if overlaps(&source, from, &target, to, count)? {
        return Err(EINVAL);
    }
    let (moved, result) = copy(&source, from, &target, to, count);
    for (at, start) in [(input_at, from), (out_at, to)] {
        if let Some(start) = start {
            at.write(&(start + moved).to_le_bytes())?;
        }
    }
    finish_copy(cx, moved, result)
}

/// A copy within one file must not read what it has written (copy_file_range(2)).
fn overlaps(source: &OpenFile, from: Option<u64>, target: &OpenFile, to: Option<u64>, count: u64) -> SysResult<bool> {
    let (one, other) = (source.metadata()?, target.metadata()?);
    if (one.device, one.inode) != (other.device, other.inode) {
        return Ok(false);
    }
    let from = from.unwrap_or_else(|| source.position());
    let to = to.unwrap_or_else(|| target.position());
    // As far as the copy goes: to the end of the file.
    let count = count.min(one.size.saturating_sub(from));
    Ok(from < to.saturating_add(count) && to < from.saturating_add(count))
}

/// Copies up to `count` bytes; None for a position means the file's own, which moves. The bytes
/// moved, and what stopped it.
fn copy(
    source: &OpenFile,
    mut from: Option<u64>,
    target: &OpenFile,
    mut to: Option<u64>,
    count: u64,
) -> (u64, Result<(), FsError>) {
    let count = count.min(MAX_BYTES) as usize;
    let mut piece = vec![0u8; count.min(16384)];
    let mut moved = 0;
    while moved < count {
        let wanted = (count - moved).min(piece.len());
        let mut sink = SliceSink::new(&mut piece[..wanted]);
        let read = match from {
            Some(at) => source.read_at(at, &mut sink),
            None => source.read(&mut sink),
        };
        let read = match read {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => return (moved as u64, Err(error)),
        };
        let mut bytes = SliceSource::new(&piece[..read]);
        let wrote = match to {
            Some(at) => target.write_at(at, &mut bytes),
            None => target.write(&mut bytes),
        };
        let (wrote, stop) = match wrote {
            Ok(wrote) => (wrote, None),
            Err(error) => (0, Some(error)),
        };
        from = from.map(|at| at + wrote as u64);
        to = to.map(|at| at + wrote as u64);
        moved += wrote;
        rt().preemption_point();
        if rt().current().is_interrupted() && wrote == read {
            // What has moved counts; the signal comes first.
            break;
        }
        if wrote < read {
            // What was read too much goes back, if the file has its own position.
            if from.is_none() {
                let _ = source.seek(SeekFrom::Current(wrote as i64 - read as i64));
            }
            return (moved as u64, stop.map_or(Ok(()), Err));
        }
    }
    (moved as u64, Ok(()))
}

fn finish_copy(cx: &Ctx<'_>, moved: u64, result: Result<(), FsError>) -> SysResult {
    match result {
        Err(error) if moved == 0 => written(cx, Err(error)),
        _ => Ok(moved),
    }
}

/// fsync(2), fdatasync(2).
pub fn fsync(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    get(cx, fd)?.sync()?;
    Ok(0)
}

/// sync(2), which has no way to fail.
pub fn sync(cx: &mut Ctx<'_>) -> SysResult {
    let _ = cx.program().vfs.sync();
    Ok(0)
}

/// fadvise64(2): advice on readahead, which decides for itself.
pub fn fadvise64(
    cx: &mut Ctx<'_>,
    fd: Fd,
    _offset: i64,
    len: i64,
    advice: crate::args::names::FadviseAdvice,
) -> SysResult {
    let file = get(cx, fd)?;
    if file.ops().is_stream() {
        return Err(ESPIPE);
    }
    if len < 0 || advice.name().is_none() { Err(EINVAL) } else { Ok(0) }
}

/// readahead(2): as with fadvise.
pub fn readahead(cx: &mut Ctx<'_>, fd: Fd, _offset: i64, _count: u64) -> SysResult {
    let file = get(cx, fd)?;
    if !file.flags().reads() {
        return Err(EBADF);
    }
    if file.pager().is_none() { Err(EINVAL) } else { Ok(0) }
}
