//! Opening and closing.
use fs::OpenFlags as FsFlags;

use super::{Start, get, install, masked};
use crate::{
    args::{Addr, DirFd, Fd, Mode, Path, flags::OpenFlags},
    call::Ctx,
    errno::{E2BIG, EBADF, EINVAL, SysResult},
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
    if size > 24 {
        return Err(E2BIG);
    }
    let flags = how.read_u64()?;
    let mode = Addr(how.0 + 8).read_u64()?;
    let resolve = Addr(how.0 + 16).read_u64()?;
    // Here unknown flags are errors (openat2(2)).
    if FsFlags::from_bits(flags as u32).is_none() || flags >> 32 != 0 || mode & !0o7777 != 0 || resolve != 0 {
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
    let mut files = cx.program().files.lock();
    if flags & CLOEXEC != 0 {
        files.set_close_on_exec_range(first..=last);
        return Ok(0);
    }
    let removed = files.remove_range(first..=last);
    drop(files);
    drop(removed);
    Ok(0)
}

/// dup(2).
pub fn dup(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    install(cx, get(cx, fd)?, false)
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
    let file = get(cx, old)?;
    let target = u32::try_from(new.0).map_err(|_| EBADF)?;
    let replaced = cx.program().files.lock().replace(target, file, close_on_exec);
    drop(replaced.map_err(|_| EBADF)?);
    Ok(u64::from(target))
}
