//! Descriptors' own business: fcntl, flock, ioctl.
//!
//! # Locks between programs
//! Record locks belong to a program, so within the only program that can open the file they never
//! conflict: they are granted, and F_GETLK finds none. flock's are the open files' own.
use fs::{
    OpenFile, OpenFlags as FsFlags, console::Console, file::Wait, flock::FlockMode, pipe::PipeEnd, stdin::PipedInput,
};
use rt::rt;

use super::{get, get_descriptor, insert};
use crate::{
    args::{
        Addr, Fd, Fields, Hex,
        flags::FlockOp,
        names::{FcntlOp, IoctlOp},
    },
    call::Ctx,
    errno::{EBADF, EINVAL, ENOLCK, ENOTTY, SysResult},
    program,
};

const FD_CLOEXEC: u64 = 1;

/// fcntl(2).
pub fn fcntl(cx: &mut Ctx<'_>, fd: Fd, op: FcntlOp, argument: Hex) -> SysResult {
    let file = get(cx, fd)?;
    let number = fd.0 as u32;
    match op.0 {
        FcntlOp::DUPFD => duplicate(cx, fd, argument.0, false),
        FcntlOp::DUPFD_CLOEXEC => duplicate(cx, fd, argument.0, true),
        FcntlOp::GETFD => {
            let marked = cx.program().files.lock().close_on_exec(number).ok_or(EBADF)?;
            Ok(if marked { FD_CLOEXEC } else { 0 })
        }
        FcntlOp::SETFD => {
            let marked = argument.0 & FD_CLOEXEC != 0;
            let open = cx.program().files.lock().set_close_on_exec(number, marked);
            if open { Ok(0) } else { Err(EBADF) }
        }
        // O_LARGEFILE is always on for 64-bit programs, and shown.
        FcntlOp::GETFL => Ok(u64::from((file.flags() | FsFlags::LARGE_FILE).bits())),
        FcntlOp::SETFL => {
            file.set_flags(FsFlags::from_bits_truncate(argument.0 as u32));
            Ok(0)
        }
        FcntlOp::GETLK | FcntlOp::OFD_GETLK => get_lock(Addr(argument.0)),
        FcntlOp::SETLK | FcntlOp::SETLKW => set_lock(&file, Addr(argument.0)),
        // Signals for I/O readiness (F_SETSIG) do not exist; an owner may be noted nowhere.
        _ => file_specific(&file, op, argument),
    }
}

fn duplicate(cx: &Ctx<'_>, fd: Fd, from: u64, close_on_exec: bool) -> SysResult {
    let limit = cx.program().files.lock().limit();
    let from = u32::try_from(from).ok().filter(|from| *from < limit).ok_or(EINVAL)?;
    rt().draw_budget()?;
    insert(cx, get_descriptor(cx, fd)?, close_on_exec, from)
}

/// Pipe sizes and seals are the object's.
fn file_specific(_file: &OpenFile, _op: FcntlOp, _argument: Hex) -> SysResult {
    Err(EINVAL)
}

const F_RDLCK: u16 = 0;
const F_WRLCK: u16 = 1;
const F_UNLCK: u16 = 2;

/// F_GETLK: nobody else can hold a lock.
fn get_lock(at: Addr) -> SysResult {
    let kind = u16::from_le_bytes(at.read()?);
    if !matches!(kind, F_RDLCK | F_WRLCK) {
        return Err(EINVAL);
    }
    at.write(&F_UNLCK.to_le_bytes())?;
    Ok(0)
}

/// F_SETLK, F_SETLKW: granted while there is one program, by the rule in the module's head.
fn set_lock(file: &OpenFile, at: Addr) -> SysResult {
    let kind = u16::from_le_bytes(at.read()?);
    let allowed = match kind {
        F_RDLCK => file.flags().reads(),
        F_WRLCK => file.flags().writes(),
        F_UNLCK => true,
        _ => return Err(EINVAL),
    };
    if !allowed {
        return Err(EBADF);
    }
    if program::all().len() > 1 {
        return Err(ENOLCK);
    }
    Ok(0)
}

/// flock(2). The lock belongs to the open file and goes with it.
pub fn flock(cx: &mut Ctx<'_>, fd: Fd, op: FlockOp) -> SysResult {
    let file = get(cx, fd)?;
    let wait = if op.has(FlockOp::NB) { Wait::Never } else { Wait::Allowed };
    match op.0 & !FlockOp::NB {
        FlockOp::UN => file.unlock()?,
        FlockOp::SH => file.lock(FlockMode::Shared, wait)?,
        FlockOp::EX => file.lock(FlockMode::Exclusive, wait)?,
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// ioctl(2): what every file knows, what terminals know, and then the object's own.
pub fn ioctl(cx: &mut Ctx<'_>, fd: Fd, request: IoctlOp, argument: Addr) -> SysResult {
    let file = get(cx, fd)?;
    match request.0 {
        IoctlOp::FIOCLEX | IoctlOp::FIONCLEX => {
            let marked = request.0 == IoctlOp::FIOCLEX;
            cx.program().files.lock().set_close_on_exec(fd.0 as u32, marked);
            Ok(0)
        }
        IoctlOp::FIONBIO => {
            let on = i32::from_le_bytes(argument.read()?) != 0;
            let flags = file.flags();
            file.set_flags(if on { flags | FsFlags::NONBLOCK } else { flags - FsFlags::NONBLOCK });
            Ok(0)
        }
        _ => object_ioctl(&file, request, argument),
    }
}

fn object_ioctl(file: &OpenFile, request: IoctlOp, argument: Addr) -> SysResult {
    let Some(console) = file.ops_as::<Console>() else {
        return match request.0 {
            IoctlOp::TCGETS | IoctlOp::TIOCGWINSZ | IoctlOp::TIOCGPGRP => Err(ENOTTY),
            IoctlOp::FIONREAD => {
                argument.write(&readable_bytes(file)?.to_le_bytes())?;
                Ok(0)
            }
            _ => Ok(file.ioctl(request.0 as u32, argument.0)?),
        };
    };
    match request.0 {
        IoctlOp::TCGETS => argument.write(&termios::encode(&console.settings()))?,
        // Immediate, after output has drained, and with input flushed: output never waits here.
        IoctlOp::TCSETS | IoctlOp::TCSETSW => console.set_settings(termios::decode(&argument.read()?)),
        IoctlOp::TCSETSF => {
            console.flush_input();
            console.set_settings(termios::decode(&argument.read()?));
        }
        // 80 columns, 24 rows: a serial line does not say.
        IoctlOp::TIOCGWINSZ => argument.write(&Fields::<8>::default().u16(24).u16(80).finish())?,
        IoctlOp::TIOCGPGRP => argument.write(&program::INIT_PID.to_le_bytes())?,
        IoctlOp::FIONREAD => argument.write(&(console.input_len() as u32).to_le_bytes())?,
        _ => return Err(ENOTTY),
    }
    Ok(0)
}

/// FIONREAD: what a pipe holds, or a regular file has from the position on.
fn readable_bytes(file: &OpenFile) -> SysResult<u32> {
    if let Some(pipe) = file.ops_as::<PipeEnd>() {
        return Ok(pipe.input_len() as u32);
    }
    if let Some(pipe) = file.ops_as::<PipedInput>() {
        return Ok(pipe.input_len() as u32);
    }
    match file.location() {
        Some(location) if location.kind() == fs::FileKind::Regular => {
            Ok(file.metadata()?.size.saturating_sub(file.position()).min(u64::from(u32::MAX)) as u32)
        }
        _ => Err(ENOTTY),
    }
}

/// The kernel's `struct termios` (termios(3)).
mod termios {
    use fs::console::Settings;

    use crate::args::Fields;

    pub const BYTES: usize = 36;
    const ICRNL: u32 = 0x100;
    const IXON: u32 = 0x400;
    const OPOST_ONLCR: u32 = 0x5;
    const B38400_CS8_CREAD: u32 = 0xbf;
    const ISIG: u32 = 0x1;
    const ICANON: u32 = 0x2;
    const ECHO: u32 = 0x8;
    const ECHOE_ECHOK_IEXTEN: u32 = 0x8030;
    /// VINTR to VEOL2, as a fresh terminal has them.
    const CONTROL: [u8; 19] = [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0];

    pub fn encode(settings: &Settings) -> [u8; BYTES] {
        let when = |on: bool, bits: u32| if on { bits } else { 0 };
        Fields::default()
            .u32(IXON | when(settings.return_is_newline, ICRNL))
            .u32(when(settings.newline_to_return, OPOST_ONLCR))
            .u32(B38400_CS8_CREAD)
            .u32(
                ECHOE_ECHOK_IEXTEN
                    | when(settings.signals, ISIG)
                    | when(settings.canonical, ICANON)
                    | when(settings.echo, ECHO),
            )
            .put(&[0])
            .put(&CONTROL)
            .finish()
    }

    pub fn decode(bytes: &[u8; BYTES]) -> Settings {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let local = word(12);
        Settings {
            canonical: local & ICANON != 0,
            echo: local & ECHO != 0,
            return_is_newline: word(0) & ICRNL != 0,
            newline_to_return: word(4) & OPOST_ONLCR == OPOST_ONLCR,
            signals: local & ISIG != 0,
        }
    }
}
