//! Changing attributes: mode, owner, times, size, reserved space.
use fs::{
    inode::{AllocateMode, AttributeChanges, Timestamp},
    vfs::Follow,
};

use super::{follow_unless, get, resolve};
use crate::{
    args::{
        Addr, DirFd, Fd, Mode, Path,
        flags::{AllocateFlags, AtFlags},
        split_pair,
    },
    call::Ctx,
    errno::{EINVAL, EOPNOTSUPP, SysResult},
};

fn permissions(mode: Mode) -> AttributeChanges {
    AttributeChanges { permissions: Some((mode.0 & 0o7777) as u16), ..AttributeChanges::default() }
}

/// chmod(2).
pub fn chmod(cx: &mut Ctx<'_>, path: Path, mode: Mode) -> SysResult {
    fchmodat(cx, DirFd::CWD, path, mode)
}

/// fchmodat(2), the raw call without flags.
pub fn fchmodat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, mode: Mode) -> SysResult {
    resolve(cx, directory, path, Follow::Yes, false)?.set_attributes(&permissions(mode))?;
    Ok(0)
}

/// fchmod(2).
pub fn fchmod(cx: &mut Ctx<'_>, fd: Fd, mode: Mode) -> SysResult {
    get(cx, fd)?.set_attributes(&permissions(mode))?;
    Ok(0)
}

fn owners(uid: i32, gid: i32) -> AttributeChanges {
    let id = |id: i32| (id != -1).then_some(id as u32);
    AttributeChanges { uid: id(uid), gid: id(gid), ..AttributeChanges::default() }
}

/// chown(2).
pub fn chown(cx: &mut Ctx<'_>, path: Path, uid: i32, gid: i32) -> SysResult {
    fchownat(cx, DirFd::CWD, path, uid, gid, AtFlags(0))
}

/// lchown(2).
pub fn lchown(cx: &mut Ctx<'_>, path: Path, uid: i32, gid: i32) -> SysResult {
    fchownat(cx, DirFd::CWD, path, uid, gid, AtFlags(AtFlags::SYMLINK_NOFOLLOW))
}

/// fchown(2).
pub fn fchown(cx: &mut Ctx<'_>, fd: Fd, uid: i32, gid: i32) -> SysResult {
    get(cx, fd)?.set_attributes(&owners(uid, gid))?;
    Ok(0)
}

/// fchownat(2).
pub fn fchownat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, uid: i32, gid: i32, flags: AtFlags) -> SysResult {
    if flags.0 & !(AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let follow = follow_unless(flags.has(AtFlags::SYMLINK_NOFOLLOW));
    resolve(cx, directory, path, follow, flags.has(AtFlags::EMPTY_PATH))?.set_attributes(&owners(uid, gid))?;
    Ok(0)
}

/// utimensat(2). A null path means the descriptor's own file (futimens).
pub fn utimensat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, times: Addr, flags: AtFlags) -> SysResult {
    if flags.0 & !(AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let changes = if times.is_null() {
        both_times(Some(Timestamp::now()), Some(Timestamp::now()))
    } else {
        both_times(read_change(times)?, read_change(Addr(times.0 + 16))?)
    };
    if path.0 == 0 && directory != DirFd::CWD {
        if flags.0 != 0 {
            return Err(EINVAL);
        }
        get(cx, Fd(directory.0))?.set_attributes(&changes)?;
        return Ok(0);
    }
    let follow = follow_unless(flags.has(AtFlags::SYMLINK_NOFOLLOW));
    resolve(cx, directory, path, follow, flags.has(AtFlags::EMPTY_PATH))?.set_attributes(&changes)?;
    Ok(0)
}

fn both_times(accessed: Option<Timestamp>, modified: Option<Timestamp>) -> AttributeChanges {
    AttributeChanges { accessed, modified, ..AttributeChanges::default() }
}

/// One timespec of utimensat, with its two special values.
fn read_change(at: Addr) -> SysResult<Option<Timestamp>> {
    const UTIME_NOW: i64 = 0x3fff_ffff;
    const UTIME_OMIT: i64 = 0x3fff_fffe;
    let (seconds, ns) = split_pair(&at.read()?);
    match ns {
        UTIME_OMIT => Ok(None),
        UTIME_NOW => Ok(Some(Timestamp::now())),
        0..1_000_000_000 => Ok(Some(Timestamp { seconds, nanoseconds: ns as u32 })),
        _ => Err(EINVAL),
    }
}

/// utimes(2).
pub fn utimes(cx: &mut Ctx<'_>, path: Path, times: Addr) -> SysResult {
    let changes = if times.is_null() {
        both_times(Some(Timestamp::now()), Some(Timestamp::now()))
    } else {
        let read = |at: u64| -> SysResult<Option<Timestamp>> {
            // Before 1970, too.
            let (seconds, us) = split_pair(&Addr(at).read()?);
            let valid = u32::try_from(us).ok().filter(|us| *us < 1_000_000);
            Ok(Some(Timestamp { seconds, nanoseconds: valid.ok_or(EINVAL)? * 1000 }))
        };
        both_times(read(times.0)?, read(times.0 + 16)?)
    };
    resolve(cx, DirFd::CWD, path, Follow::Yes, false)?.set_attributes(&changes)?;
    Ok(0)
}

/// ftruncate(2).
pub fn ftruncate(cx: &mut Ctx<'_>, fd: Fd, size: i64) -> SysResult {
    let size = u64::try_from(size).map_err(|_| EINVAL)?;
    get(cx, fd)?.truncate(size)?;
    Ok(0)
}

/// fallocate(2).
pub fn fallocate(cx: &mut Ctx<'_>, fd: Fd, flags: AllocateFlags, offset: i64, len: i64) -> SysResult {
    let file = get(cx, fd)?;
    if offset < 0 || len <= 0 {
        return Err(EINVAL);
    }
    let keep_size = flags.has(AllocateFlags::KEEP_SIZE);
    let mode = match flags.0 & !AllocateFlags::KEEP_SIZE {
        0 => AllocateMode::Reserve { keep_size },
        AllocateFlags::PUNCH_HOLE if keep_size => AllocateMode::PunchHole,
        AllocateFlags::ZERO_RANGE => AllocateMode::ZeroRange { keep_size },
        _ => return Err(EOPNOTSUPP),
    };
    file.allocate(mode, offset as u64, len as u64)?;
    Ok(0)
}
