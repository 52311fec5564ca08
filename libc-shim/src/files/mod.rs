//! File calls: descriptors, and the translation of paths, flags and buffers for the services of `fs`.
//!
//! Families: [`io`] moves bytes, [`open`] opens and closes, [`stat`] shows attributes, [`names`]
//! makes and removes names, [`attributes`] changes attributes, [`descriptor`] is fcntl and its kin,
//! [`poll`], [`epoll`] and [`special`] are the rest.
use alloc::{sync::Arc, vec::Vec};

use fs::{
    Location, OpenFile,
    descriptor::Descriptor,
    vfs::{Base, Follow},
};

use crate::{
    args::{DirFd, Fd, Path},
    call::Ctx,
    errno::{EBADF, EMFILE, ENOENT, ENOTDIR, SysResult},
    program::Directory,
};

pub mod attributes;
pub mod buffers;
pub mod descriptor;
pub mod epoll;
pub mod io;
pub mod memory;
pub mod names;
pub mod open;
pub mod poll;
pub mod special;
pub mod stat;
pub mod unix;

/// The open file of a descriptor.
pub fn get(cx: &Ctx<'_>, fd: Fd) -> SysResult<Arc<OpenFile>> {
    let fd = u32::try_from(fd.0).map_err(|_| EBADF)?;
    cx.program().files.lock().get(fd).map(|descriptor| descriptor.file().clone()).ok_or(EBADF)
}

/// The descriptor itself, to make another one of the same file.
pub fn get_descriptor(cx: &Ctx<'_>, fd: Fd) -> SysResult<Descriptor> {
    let fd = u32::try_from(fd.0).map_err(|_| EBADF)?;
    cx.program().files.lock().get(fd).cloned().ok_or(EBADF)
}

/// Puts a file at the lowest free descriptor.
pub fn install(cx: &Ctx<'_>, file: Arc<OpenFile>, close_on_exec: bool) -> SysResult {
    insert(cx, Descriptor::new(file), close_on_exec, 0)
}

/// Puts a descriptor at the lowest free number from `from` on.
pub fn insert(cx: &Ctx<'_>, descriptor: Descriptor, close_on_exec: bool, from: u32) -> SysResult {
    let placed = cx.program().files.lock().insert(descriptor, close_on_exec, from);
    // What was refused is dropped here, without the table's lock.
    placed.map(u64::from).map_err(|refused| refused.why.into())
}

/// EMFILE if there is no free descriptor: asked before a call has effects.
pub fn need_room(cx: &Ctx<'_>) -> SysResult<()> {
    if cx.program().files.lock().has_room() { Ok(()) } else { Err(EMFILE) }
}

/// The two locations that a walk starts from, held while it runs.
pub struct Start {
    directory: Directory,
    start: Location,
}

impl Start {
    /// For the path of an *at call. The descriptor counts only if the path is relative.
    pub fn of(cx: &Ctx<'_>, directory: DirFd, path: &[u8]) -> SysResult<Self> {
        let held = cx.program().directory.lock().clone();
        let start = if directory == DirFd::CWD || path.first() == Some(&b'/') {
            held.cwd.clone()
        } else {
            let file = get(cx, Fd(directory.0))?;
            file.location().cloned().ok_or(ENOTDIR)?
        };
        Ok(Self { directory: held, start })
    }

    pub fn base(&self) -> Base<'_> {
        Base::new(&self.directory.root, &self.start)
    }
}

/// The object that a path names. With `empty_ok` (AT_EMPTY_PATH) an empty path is the descriptor's
/// own object.
pub fn resolve(cx: &Ctx<'_>, directory: DirFd, path: Path, follow: Follow, empty_ok: bool) -> SysResult<Location> {
    let path = path.read()?;
    if path.is_empty() {
        return if empty_ok { location_of(cx, directory) } else { Err(ENOENT) };
    }
    let start = Start::of(cx, directory, &path)?;
    Ok(start.base().resolve(&path, follow)?)
}

fn location_of(cx: &Ctx<'_>, directory: DirFd) -> SysResult<Location> {
    if directory == DirFd::CWD {
        return Ok(cx.program().directory.lock().cwd.clone());
    }
    Ok(Location::of_file(&get(cx, Fd(directory.0))?))
}

pub fn follow_unless(no_follow: bool) -> Follow {
    if no_follow { Follow::No } else { Follow::Yes }
}

/// Permission bits of a new file: without what the umask takes.
pub fn masked(cx: &Ctx<'_>, mode: crate::args::Mode) -> u16 {
    let umask = cx.program().umask.load(core::sync::atomic::Ordering::Relaxed);
    (mode.0 & 0o7777 & !umask) as u16
}

/// getcwd(2): the raw call gives the length with the NUL.
pub fn getcwd(cx: &mut Ctx<'_>, out: crate::args::Addr, size: u64) -> SysResult {
    let directory = cx.program().directory.lock().clone();
    if directory.cwd.is_unlinked() {
        return Err(ENOENT);
    }
    let mut path: Vec<u8> = directory.cwd.path(&directory.root);
    path.push(0);
    if path.len() as u64 > size {
        return Err(crate::errno::ERANGE);
    }
    out.write(&path)?;
    Ok(path.len() as u64)
}

/// chdir(2).
pub fn chdir(cx: &mut Ctx<'_>, path: Path) -> SysResult {
    let to = resolve(cx, DirFd::CWD, path, Follow::Yes, false)?;
    set_cwd(cx, to)
}

/// fchdir(2).
pub fn fchdir(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    let to = get(cx, fd)?.location().cloned().ok_or(ENOTDIR)?;
    set_cwd(cx, to)
}

fn set_cwd(cx: &Ctx<'_>, to: Location) -> SysResult {
    if to.kind() != fs::FileKind::Directory {
        return Err(ENOTDIR);
    }
    let old = core::mem::replace(&mut cx.program().directory.lock().cwd, to);
    drop(old);
    Ok(0)
}

/// chroot(2).
pub fn chroot(cx: &mut Ctx<'_>, path: Path) -> SysResult {
    let to = resolve(cx, DirFd::CWD, path, Follow::Yes, false)?;
    if to.kind() != fs::FileKind::Directory {
        return Err(ENOTDIR);
    }
    let old = core::mem::replace(&mut cx.program().directory.lock().root, to);
    drop(old);
    Ok(0)
}
