//! Showing attributes: stat in all its forms, access, readlink, statfs, and directory listings.
use alloc::vec::Vec;

use fs::{
    FileKind, Metadata,
    inode::{FileSystemStatus, Timestamp, device_parts},
    vfs::Follow,
};

use super::{follow_unless, get, resolve};
use crate::{
    args::{
        Addr, DirFd, Fd, Fields, Path,
        flags::{AccessFlags, AccessMode, AtFlags, StatxMask},
    },
    call::Ctx,
    errno::{EACCES, EINVAL, ENOTDIR, EROFS, SysResult},
};

/// `struct stat` of x86-64.
fn stat_bytes(m: &Metadata) -> [u8; 144] {
    let time = |fields: Fields<144>, t: Timestamp| fields.u64(t.seconds as u64).u64(u64::from(t.nanoseconds));
    let fields = Fields::default()
        .u64(m.device)
        .u64(m.inode)
        .u64(u64::from(m.links))
        .u32(m.mode())
        .u32(m.uid)
        .u32(m.gid)
        .skip(4)
        .u64(m.rdev)
        .u64(m.size)
        .u64(u64::from(m.block_size))
        .u64(m.blocks);
    time(time(time(fields, m.accessed), m.modified), m.changed).finish()
}

/// `struct statx`.
fn statx_bytes(m: &Metadata, mount_id: Option<u32>) -> [u8; 256] {
    let time = |fields: Fields<256>, t: Timestamp| fields.u64(t.seconds as u64).u32(t.nanoseconds).skip(4);
    let (rdev_major, rdev_minor) = device_parts(m.rdev);
    let (major, minor) = device_parts(m.device);
    let mask = StatxMask::BASIC_STATS
        | if m.created == Timestamp::default() { 0 } else { StatxMask::BTIME }
        | if mount_id.is_some() { StatxMask::MNT_ID } else { 0 };
    let fields = Fields::default()
        .u32(mask as u32)
        .u32(m.block_size)
        .skip(8)
        .u32(m.links)
        .u32(m.uid)
        .u32(m.gid)
        .u16(m.mode() as u16)
        .skip(2)
        .u64(m.inode)
        .u64(m.size)
        .u64(m.blocks)
        .skip(8);
    time(time(time(time(fields, m.accessed), m.created), m.changed), m.modified)
        .u32(rdev_major)
        .u32(rdev_minor)
        .u32(major)
        .u32(minor)
        .u64(u64::from(mount_id.unwrap_or(0)))
        .finish()
}

/// fstat(2).
pub fn fstat(cx: &mut Ctx<'_>, fd: Fd, out: Addr) -> SysResult {
    let metadata = get(cx, fd)?.metadata()?;
    out.write(&stat_bytes(&metadata))?;
    Ok(0)
}

/// stat(2).
pub fn stat(cx: &mut Ctx<'_>, path: Path, out: Addr) -> SysResult {
    newfstatat(cx, DirFd::CWD, path, out, AtFlags(0))
}

/// lstat(2).
pub fn lstat(cx: &mut Ctx<'_>, path: Path, out: Addr) -> SysResult {
    newfstatat(cx, DirFd::CWD, path, out, AtFlags(AtFlags::SYMLINK_NOFOLLOW))
}

/// newfstatat(2).
pub fn newfstatat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, out: Addr, flags: AtFlags) -> SysResult {
    let known = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    if flags.0 & !known != 0 {
        return Err(EINVAL);
    }
    if flags.has(AtFlags::EMPTY_PATH) && directory != DirFd::CWD && Addr(path.0).read::<1>()? == [0] {
        return fstat(cx, Fd(directory.0), out);
    }
    let follow = follow_unless(flags.has(AtFlags::SYMLINK_NOFOLLOW));
    let location = resolve(cx, directory, path, follow, flags.has(AtFlags::EMPTY_PATH))?;
    out.write(&stat_bytes(&location.metadata()?))?;
    Ok(0)
}

/// statx(2).
pub fn statx(cx: &mut Ctx<'_>, directory: DirFd, path: Path, flags: AtFlags, mask: StatxMask, out: Addr) -> SysResult {
    let sync = AtFlags::STATX_DONT_SYNC | AtFlags::STATX_FORCE_SYNC;
    let known = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | sync;
    if flags.0 & !known != 0 || flags.has(sync) || mask.has(StatxMask::RESERVED) {
        return Err(EINVAL);
    }
    let follow = follow_unless(flags.has(AtFlags::SYMLINK_NOFOLLOW));
    let by_descriptor = flags.has(AtFlags::EMPTY_PATH) && directory != DirFd::CWD && Addr(path.0).read::<1>()? == [0];
    let bytes = if by_descriptor {
        let file = get(cx, Fd(directory.0))?;
        statx_bytes(&file.metadata()?, file.location().map(|l| l.mount().id()))
    } else {
        let location = resolve(cx, directory, path, follow, flags.has(AtFlags::EMPTY_PATH))?;
        statx_bytes(&location.metadata()?, Some(location.mount().id()))
    };
    out.write(&bytes)?;
    Ok(0)
}

/// access(2).
pub fn access(cx: &mut Ctx<'_>, path: Path, mode: AccessMode) -> SysResult {
    faccessat2(cx, DirFd::CWD, path, mode, AccessFlags(0))
}

/// faccessat(2), the raw call without flags.
pub fn faccessat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, mode: AccessMode) -> SysResult {
    faccessat2(cx, directory, path, mode, AccessFlags(0))
}

/// faccessat2(2): root may read and write everything, and execute what anybody may.
pub fn faccessat2(cx: &mut Ctx<'_>, directory: DirFd, path: Path, mode: AccessMode, flags: AccessFlags) -> SysResult {
    if mode.0 & !7 != 0 || flags.0 & !AccessFlags::KNOWN != 0 {
        return Err(EINVAL);
    }
    let follow = follow_unless(flags.has(AccessFlags::SYMLINK_NOFOLLOW));
    let location = resolve(cx, directory, path, follow, flags.has(AccessFlags::EMPTY_PATH))?;
    if mode.has(AccessMode::W_OK) && matches!(location.kind(), FileKind::Regular | FileKind::Directory) {
        location.check_writable().map_err(|_| EROFS)?;
    }
    if mode.has(AccessMode::X_OK)
        && location.kind() == FileKind::Regular
        && location.metadata()?.permissions & 0o111 == 0
    {
        return Err(EACCES);
    }
    Ok(0)
}

/// readlink(2).
pub fn readlink(cx: &mut Ctx<'_>, path: Path, out: Addr, size: i32) -> SysResult {
    readlinkat(cx, DirFd::CWD, path, out, size)
}

/// readlinkat(2).
pub fn readlinkat(cx: &mut Ctx<'_>, directory: DirFd, path: Path, out: Addr, size: i32) -> SysResult {
    if size <= 0 {
        return Err(EINVAL);
    }
    let location = resolve(cx, directory, path, Follow::No, directory != DirFd::CWD)?;
    let root = cx.program().directory.lock().root.clone();
    let target = location.read_link(&root)?;
    let len = target.len().min(size as usize);
    out.write(&target[..len])?;
    Ok(len as u64)
}

/// `struct statfs` of x86-64.
fn statfs_bytes(status: &FileSystemStatus, read_only: bool) -> [u8; 120] {
    const ST_VALID: u64 = 0x20;
    const ST_RDONLY: u64 = 1;
    let block = u64::from(status.block_size);
    Fields::default()
        .u64(status.magic)
        .u64(block)
        .u64(status.blocks)
        .u64(status.blocks_free)
        .u64(status.blocks_free)
        .u64(status.files)
        .u64(status.files_free)
        .skip(8)
        .u64(u64::from(status.name_max))
        .u64(block)
        .u64(ST_VALID | if read_only { ST_RDONLY } else { 0 })
        .finish()
}

/// statfs(2).
pub fn statfs(cx: &mut Ctx<'_>, path: Path, out: Addr) -> SysResult {
    let location = resolve(cx, DirFd::CWD, path, Follow::Yes, false)?;
    out.write(&statfs_bytes(&location.file_system_status(), location.mount().is_read_only()))?;
    Ok(0)
}

/// fstatfs(2).
pub fn fstatfs(cx: &mut Ctx<'_>, fd: Fd, out: Addr) -> SysResult {
    let location = fs::Location::of_file(&get(cx, fd)?);
    out.write(&statfs_bytes(&location.file_system_status(), location.mount().is_read_only()))?;
    Ok(0)
}

/// getdents64(2). Entries are gathered first, since the listing may run under the directory's lock.
pub fn getdents64(cx: &mut Ctx<'_>, fd: Fd, out: Addr, size: u32) -> SysResult {
    const HEADER: usize = 19;
    let file = get(cx, fd)?;
    let limit = size.min(65536) as usize;
    let mut bytes: Vec<u8> = Vec::new();
    let mut too_small = false;
    file.read_directory(&mut |entry| {
        let len = (HEADER + entry.name.len() + 1).next_multiple_of(8);
        if bytes.len() + len > limit {
            too_small = bytes.is_empty();
            return false;
        }
        let start = bytes.len();
        bytes.extend_from_slice(&entry.inode.to_le_bytes());
        bytes.extend_from_slice(&entry.next.to_le_bytes());
        bytes.extend_from_slice(&(len as u16).to_le_bytes());
        bytes.push(entry.kind.directory_type());
        bytes.extend_from_slice(entry.name);
        bytes.resize(start + len, 0);
        true
    })
    .map_err(|error| if error == fs::FsError::NotDirectory { ENOTDIR } else { error.into() })?;
    if too_small {
        return Err(EINVAL);
    }
    out.write(&bytes)?;
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let time = |seconds| Timestamp { seconds, nanoseconds: 7 };
        Metadata {
            device: 0x11,
            inode: 0x22,
            kind: FileKind::Regular,
            permissions: 0o644,
            links: 1,
            uid: 2,
            gid: 3,
            rdev: 0,
            size: 0x1234,
            block_size: 4096,
            blocks: 16,
            accessed: time(1),
            modified: time(2),
            changed: time(3),
            created: time(4),
        }
    }

    /// Offsets from asm/stat.h and linux/stat.h.
    #[test]
    fn structures_have_linux_offsets() {
        let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let stat = stat_bytes(&metadata());
        assert_eq!((word(&stat, 0), word(&stat, 8), word(&stat, 16)), (0x11, 0x22, 1));
        assert_eq!(word(&stat, 24), 2 << 32 | 0o100644);
        assert_eq!((word(&stat, 48), word(&stat, 56), word(&stat, 64)), (0x1234, 4096, 16));
        assert_eq!((word(&stat, 72), word(&stat, 88), word(&stat, 104)), (1, 2, 3));
        let statx = statx_bytes(&metadata(), Some(9));
        assert_eq!((word(&statx, 32), word(&statx, 40), word(&statx, 48)), (0x22, 0x1234, 16));
        assert_eq!((word(&statx, 64), word(&statx, 80), word(&statx, 96), word(&statx, 112)), (1, 4, 3, 2));
        assert_eq!(word(&statx, 144), 9);
    }
}
