//! Opening and closing.
use fs::OpenFlags as FsFlags;
use logic::fd_table::{Refused, TableError};

use super::{Start, get, get_descriptor, insert, install, masked, need_room};
use crate::{
    args::{Addr, DirFd, Fd, Mode, Path, flags::OpenFlags},
    call::Ctx,
    errno::{E2BIG, EBADF, EINVAL, SysResult},
    program::Program,
    threads::rest_is_zero,
};

/// open(2).
pub fn open(cx: &mut Ctx<'_>, path: Path, flags: OpenFlags, mode: Mode) -> SysResult {
    openat(cx, DirFd::CWD, path, flags, mode)
}

/// creat(2).
pub fn creat(cx: &mut Ctx<'_>, path: Path, mode: Mode) -> SysResult {
    open(cx, path, OpenFlags(OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC), mode)
}

/// openat(2).
pub fn openat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, flags: OpenFlags, mode: Mode) -> SysResult {
    let path = path.read()?;
    // Before anything is created or cut short.
    need_room(cx)?;
    let start = Start::of(cx, directory, &path)?;
    // Unknown bits are ignored, as open has always done.
    let wanted = FsFlags::from_bits_truncate(flags.0 as u32);
    let file = start.base().open(&path, wanted, masked(cx, mode))?;
    install(cx, file, wanted.contains(FsFlags::CLOSE_ON_EXEC))
}

/// openat2(2): without the resolve restrictions, which walks do not have yet.
pub fn openat2(cx: &mut Ctx<'_>, directory: DirFd, path: Path, how: Addr, size: u64) -> SysResult {
    if size < 24 {
        return Err(EINVAL);
    }
    if size > 4096 || !rest_is_zero(how.0.wrapping_add(24), size - 24)? {
        return Err(E2BIG);
    }
    let flags = how.read_u64()?;
    let mode = Addr(how.0 + 8).read_u64()?;
    let resolve = Addr(how.0 + 16).read_u64()?;
    // Here unknown flags are errors (openat2(2)).
    if FsFlags::from_bits(flags as u32).is_none() || flags >> 32 != 0 || mode & !0o7777 != 0 || resolve != 0 {
        return Err(EINVAL);
    }
    if mode != 0 && flags & (OpenFlags::CREAT | OpenFlags::TMPFILE & !OpenFlags::DIRECTORY) == 0 {
        return Err(EINVAL);
    }
    openat(cx, directory, path, OpenFlags(flags), Mode(mode as u32))
}

/// close(2). The file is dropped without the table's lock: closing may do I/O.
pub fn close(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    let removed = cx.program().files.lock().remove(u32::try_from(fd.0).map_err(|_| EBADF)?);
    match removed {
        Some(file) => {
            drop(file);
            Ok(0)
        }
        None => Err(EBADF),
    }
}

/// close_range(2).
pub fn close_range(cx: &mut Ctx<'_>, first: u32, last: u32, flags: u32) -> SysResult {
    const CLOEXEC: u32 = 4;
    const UNSHARE: u32 = 2;
    if first > last || flags & !(CLOEXEC | UNSHARE) != 0 {
        return Err(EINVAL);
    }
    if flags & CLOEXEC != 0 {
        cx.program().files.lock().set_close_on_exec_range(first..=last);
    } else {
        close_each(cx.program(), first, last);
    }
    Ok(0)
}

/// Closes what is open in the range, one by one: each file is dropped without the table's lock.
pub fn close_each(program: &Program, first: u32, last: u32) {
    let mut next = Some(first);
    while let Some(from) = next {
        let mut files = program.files.lock();
        let fd = files.first_open(from..=last);
        let removed = fd.and_then(|fd| files.remove(fd));
        drop(files);
        drop(removed);
        next = fd.and_then(|fd| fd.checked_add(1));
    }
}

/// dup(2).
pub fn dup(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    insert(cx, get_descriptor(cx, fd)?, false, 0)
}

/// dup2(2).
pub fn dup2(cx: &mut Ctx<'_>, old: Fd, new: Fd) -> SysResult {
    if old == new {
        get(cx, old)?;
        return Ok(new.0 as u64);
    }
    replace(cx, old, new, false)
}

/// dup3(2).
pub fn dup3(cx: &mut Ctx<'_>, old: Fd, new: Fd, flags: OpenFlags) -> SysResult {
    if old == new || flags.0 & !OpenFlags::CLOEXEC != 0 {
        return Err(EINVAL);
    }
    replace(cx, old, new, flags.has(OpenFlags::CLOEXEC))
}

fn replace(cx: &Ctx<'_>, old: Fd, new: Fd, close_on_exec: bool) -> SysResult {
    let target = u32::try_from(new.0).map_err(|_| EBADF)?;
    let descriptor = get_descriptor(cx, old)?;
    let replaced = cx.program().files.lock().replace(target, descriptor, close_on_exec);
    match replaced {
        Ok(replaced) => drop(replaced),
        Err(Refused { why: TableError::LimitReached, .. }) => return Err(EBADF),
        Err(Refused { why, .. }) => return Err(why.into()),
    }
    Ok(u64::from(target))
}
