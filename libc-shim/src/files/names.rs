//! Making, removing and renaming names.
use fs::{
    inode::{NewNode, RenameMode, device_number},
    vfs::Follow,
};

use super::{Start, follow_unless, masked, resolve};
use crate::{
    args::{
        DirFd, Hex, Mode, Path,
        flags::{AtFlags, RenameFlags},
    },
    call::Ctx,
    errno::{EINVAL, EPERM, SysResult},
};

/// mkdir(2).
pub fn mkdir(cx: &mut Ctx<'_>, path: Path, mode: Mode) -> SysResult {
    mkdirat(cx, DirFd::CWD, path, mode)
}

/// mkdirat(2).
pub fn mkdirat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, mode: Mode) -> SysResult {
    let path = path.read()?;
    Start::of(cx, directory, &path)?.base().create_directory(&path, masked(cx, Mode(mode.0 & 0o1777)))?;
    Ok(0)
}

/// mknod(2).
pub fn mknod(cx: &mut Ctx<'_>, path: Path, mode: Mode, device: Hex) -> SysResult {
    mknodat(cx, DirFd::CWD, path, mode, device)
}

/// mknodat(2).
pub fn mknodat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, mode: Mode, device: Hex) -> SysResult {
    let device = u64::from(device.0 as u32);
    let device = device_number((device >> 8 & 0xfff) as u32, (device & 0xff | device >> 12 & 0xf_ff00) as u32);
    let node = match mode.0 & 0o170000 {
        0 | 0o100000 => NewNode::File,
        0o010000 => NewNode::Fifo,
        0o020000 => NewNode::CharDevice(device),
        0o060000 => NewNode::BlockDevice(device),
        0o140000 => NewNode::Socket,
        0o040000 => return Err(EPERM),
        _ => return Err(EINVAL),
    };
    let path = path.read()?;
    Start::of(cx, directory, &path)?.base().create_node(&path, node, masked(cx, mode))?;
    Ok(0)
}

/// rmdir(2).
pub fn rmdir(cx: &mut Ctx<'_>, path: Path) -> SysResult {
    unlinkat(cx, DirFd::CWD, path, AtFlags(AtFlags::REMOVEDIR))
}

/// unlink(2).
pub fn unlink(cx: &mut Ctx<'_>, path: Path) -> SysResult {
    unlinkat(cx, DirFd::CWD, path, AtFlags(0))
}

/// unlinkat(2).
pub fn unlinkat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, flags: AtFlags) -> SysResult {
    if flags.0 & !AtFlags::REMOVEDIR != 0 {
        return Err(EINVAL);
    }
    let path = path.read()?;
    let start = Start::of(cx, directory, &path)?;
    if flags.has(AtFlags::REMOVEDIR) {
        start.base().remove_directory(&path)?;
    } else {
        start.base().unlink(&path)?;
    }
    Ok(0)
}

/// rename(2).
pub fn rename(cx: &mut Ctx<'_>, from: Path, to: Path) -> SysResult {
    renameat2(cx, DirFd::CWD, from, DirFd::CWD, to, RenameFlags(0))
}

/// renameat(2).
pub fn renameat(cx: &mut Ctx<'_>, from_dir: DirFd, from: Path, to_dir: DirFd, to: Path) -> SysResult {
    renameat2(cx, from_dir, from, to_dir, to, RenameFlags(0))
}

/// renameat2(2).
pub fn renameat2(
    cx: &mut Ctx<'_>,
    from_dir: DirFd,
    from: Path,
    to_dir: DirFd,
    to: Path,
    flags: RenameFlags,
) -> SysResult {
    let mode = match flags.0 {
        0 => RenameMode::Replace,
        RenameFlags::NOREPLACE => RenameMode::NoReplace,
        RenameFlags::EXCHANGE => RenameMode::Exchange,
        // RENAME_WHITEOUT is for overlay file systems.
        _ => return Err(EINVAL),
    };
    let (from, to) = (from.read()?, to.read()?);
    let (from_start, to_start) = (Start::of(cx, from_dir, &from)?, Start::of(cx, to_dir, &to)?);
    from_start.base().rename(&from, &to_start.base(), &to, mode)?;
    Ok(0)
}

/// link(2).
pub fn link(cx: &mut Ctx<'_>, from: Path, to: Path) -> SysResult {
    linkat(cx, DirFd::CWD, from, DirFd::CWD, to, AtFlags(0))
}

/// linkat(2).
pub fn linkat(cx: &mut Ctx<'_>, from_dir: DirFd, from: Path, to_dir: DirFd, to: Path, flags: AtFlags) -> SysResult {
    if flags.0 & !(AtFlags::SYMLINK_FOLLOW | AtFlags::EMPTY_PATH) != 0 {
        return Err(EINVAL);
    }
    let follow = follow_unless(!flags.has(AtFlags::SYMLINK_FOLLOW));
    let target = resolve(cx, from_dir, from, follow, flags.has(AtFlags::EMPTY_PATH))?;
    let to = to.read()?;
    Start::of(cx, to_dir, &to)?.base().link(&target, &to)?;
    Ok(0)
}

/// symlink(2).
pub fn symlink(cx: &mut Ctx<'_>, target: Path, path: Path) -> SysResult {
    symlinkat(cx, target, DirFd::CWD, path)
}

/// symlinkat(2).
pub fn symlinkat(cx: &mut Ctx<'_>, target: Path, directory: DirFd, path: Path) -> SysResult {
    let (target, path) = (target.read()?, path.read()?);
    Start::of(cx, directory, &path)?.base().symlink(&target, &path)?;
    Ok(0)
}

/// truncate(2).
pub fn truncate(cx: &mut Ctx<'_>, path: Path, size: i64) -> SysResult {
    let size = u64::try_from(size).map_err(|_| EINVAL)?;
    resolve(cx, DirFd::CWD, path, Follow::Yes, false)?.truncate(size)?;
    Ok(0)
}
