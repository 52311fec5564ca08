//! Files without a path: pipes, eventfds, memory files.
use fs::{OpenFlags as FsFlags, eventfd::EventFd, pipe::Pipe};

use super::{install, memory};
use crate::{
    args::{
        Addr, Path,
        flags::{EventFlags, MemfdFlags, OpenFlags},
        read_string,
    },
    call::Ctx,
    errno::{EINVAL, SysResult},
};

/// pipe(2).
pub fn pipe(cx: &mut Ctx<'_>, out: Addr) -> SysResult {
    pipe2(cx, out, OpenFlags(0))
}

/// pipe2(2).
pub fn pipe2(cx: &mut Ctx<'_>, out: Addr, flags: OpenFlags) -> SysResult {
    if flags.0 & !(OpenFlags::CLOEXEC | OpenFlags::NONBLOCK | OpenFlags::DIRECT) != 0 || flags.has(OpenFlags::DIRECT) {
        // O_DIRECT (packet mode) is not there.
        return Err(EINVAL);
    }
    let close_on_exec = flags.has(OpenFlags::CLOEXEC);
    let (reader, writer) = Pipe::pair(FsFlags::from_bits_truncate(flags.0 as u32))?;
    let read_fd = install(cx, reader, close_on_exec)?;
    let write_fd = install(cx, writer, close_on_exec).inspect_err(|_| close_again(cx, read_fd))?;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(read_fd as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&(write_fd as u32).to_le_bytes());
    if let Err(error) = out.write(&bytes) {
        close_again(cx, read_fd);
        close_again(cx, write_fd);
        return Err(error);
    }
    Ok(0)
}

/// Takes a descriptor back that the program has not been told of.
pub fn close_again(cx: &Ctx<'_>, fd: u64) {
    let removed = cx.program().files.lock().remove(fd as u32);
    drop(removed);
}

/// eventfd(2).
pub fn eventfd(cx: &mut Ctx<'_>, initial: u32) -> SysResult {
    eventfd2(cx, initial, EventFlags(0))
}

/// eventfd2(2).
pub fn eventfd2(cx: &mut Ctx<'_>, initial: u32, flags: EventFlags) -> SysResult {
    if flags.0 & !EventFlags::KNOWN != 0 {
        return Err(EINVAL);
    }
    let status = if flags.has(EventFlags::NONBLOCK) { FsFlags::NONBLOCK } else { FsFlags::empty() };
    let file = EventFd::open(u64::from(initial), flags.has(EventFlags::SEMAPHORE), status | FsFlags::READ_WRITE);
    install(cx, file, flags.has(EventFlags::CLOEXEC))
}

/// memfd_create(2). Seals can be asked for, but not added yet.
pub fn memfd_create(cx: &mut Ctx<'_>, name: Path, flags: MemfdFlags) -> SysResult {
    const NAME_MAX: usize = 250;
    if flags.0 & !MemfdFlags::KNOWN != 0 || flags.has(MemfdFlags::HUGETLB) {
        return Err(EINVAL);
    }
    let name = read_string(name.0, NAME_MAX)?.ok_or(EINVAL)?;
    let file = memory::unnamed(&name, 0)?;
    install(cx, file, flags.has(MemfdFlags::CLOEXEC))
}
