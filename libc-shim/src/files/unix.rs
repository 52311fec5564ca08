//! AF_UNIX before there is a network: stream pairs, and sockets that find nobody to connect to.
//!
//! A pair is two pipes crosswise: read, write, poll, and the end of file when the other side is
//! closed. A single socket can only try to connect, as libc does to look for a name-service daemon;
//! since nothing can listen, the answer is what Linux gives then.
use alloc::{sync::Arc, vec, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use fs::{
    FileKind, FileOps, Metadata, OpenFile, OpenFlags as FsFlags, Readiness, Sink, Source,
    error::FsResult,
    eventfd::anonymous_metadata,
    file::{ReadyQueues, Wait},
    pipe::Pipe,
    vfs::Follow,
};
use rt::rt;

use super::{Start, get, install, special::close_again};
use crate::{
    args::{Addr, DirFd, Fd, names::SocketFamily},
    call::Ctx,
    errno::{EAFNOSUPPORT, ECONNREFUSED, EINVAL, EISCONN, ENOTSOCK, EOPNOTSUPP, EPROTONOSUPPORT, SysResult},
};

const SOCK_STREAM: i32 = 1;
const SOCK_NONBLOCK: i32 = 0o4000;
const SOCK_CLOEXEC: i32 = 0o2000000;

/// One end.
struct SocketEnd {
    /// Where the other end writes to.
    incoming: Arc<OpenFile>,
    outgoing: Arc<OpenFile>,
}

impl FileOps for SocketEnd {
    fn read(&self, _at: u64, out: &mut dyn Sink, wait: Wait) -> FsResult<usize> {
        self.incoming.ops().read(0, out, wait)
    }

    fn write(&self, _at: u64, from: &mut dyn Source, wait: Wait) -> FsResult<usize> {
        self.outgoing.ops().write(0, from, wait)
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn metadata(&self) -> FsResult<Metadata> {
        Ok(Metadata { kind: FileKind::Socket, permissions: 0o777, ..self.incoming.metadata()? })
    }

    fn readiness(&self) -> Readiness {
        let (input, output) = (self.incoming.readiness(), self.outgoing.readiness());
        let mut ready = (input & Readiness::IN) | (output & Readiness::OUT);
        if input.contains(Readiness::HANG_UP) {
            // The peer is gone: reading gives the end of file at once (unix(7), poll(2)).
            ready |= Readiness::IN | Readiness::HANG_UP | Readiness::READ_HANG_UP;
        }
        ready
    }

    fn ready_queues(&self) -> ReadyQueues<'_> {
        ReadyQueues {
            input: self.incoming.ops().ready_queues().input,
            output: self.outgoing.ops().ready_queues().output,
        }
    }

    fn description(&self) -> Vec<u8> {
        let number = self.incoming.metadata().map_or(0, |m| m.inode);
        alloc::format!("socket:[{number}]").into_bytes()
    }
}

/// A socket that is not connected.
struct Unconnected;

impl FileOps for Unconnected {
    fn is_stream(&self) -> bool {
        true
    }

    fn metadata(&self) -> FsResult<Metadata> {
        Ok(Metadata { kind: FileKind::Socket, permissions: 0o777, ..anonymous_metadata() })
    }

    fn readiness(&self) -> Readiness {
        Readiness::OUT | Readiness::HANG_UP
    }

    fn description(&self) -> Vec<u8> {
        b"socket:[0]".to_vec()
    }
}

fn is_socket(file: &OpenFile) -> bool {
    file.ops_as::<Unconnected>().is_some() || file.ops_as::<SocketEnd>().is_some()
}

/// socket(2).
pub fn socket(cx: &mut Ctx<'_>, family: SocketFamily, kind: i32, _protocol: i32) -> SysResult {
    if family.0 != SocketFamily::UNIX {
        static SAID: AtomicBool = AtomicBool::new(false);
        if !SAID.swap(true, Ordering::Relaxed) {
            log::warn!("sockets of family {} are not supported: there is no network yet", family.0);
        }
        return Err(EAFNOSUPPORT);
    }
    // SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET.
    if !matches!(kind & !(SOCK_NONBLOCK | SOCK_CLOEXEC), 1 | 2 | 5) {
        return Err(EPROTONOSUPPORT);
    }
    let status = if kind & SOCK_NONBLOCK != 0 { FsFlags::NONBLOCK } else { FsFlags::empty() };
    let file = OpenFile::new(Arc::new(Unconnected), status | FsFlags::READ_WRITE);
    install(cx, file, kind & SOCK_CLOEXEC != 0)
}

/// connect(2): nobody listens, neither by a path nor by an abstract name.
pub fn connect(cx: &mut Ctx<'_>, fd: Fd, address: Addr, len: u32) -> SysResult {
    /// `sun_family`, then up to 108 bytes of path.
    const PATH_AT: usize = 2;
    let file = get(cx, fd)?;
    if !is_socket(&file) {
        return Err(ENOTSOCK);
    }
    if file.ops_as::<SocketEnd>().is_some() {
        return Err(EISCONN);
    }
    if !(PATH_AT + 1..=110).contains(&(len as usize)) {
        return Err(EINVAL);
    }
    let mut bytes = vec![0; len as usize];
    rt().user().read(&mut bytes, address.0)?;
    if i32::from(u16::from_le_bytes([bytes[0], bytes[1]])) != SocketFamily::UNIX {
        return Err(EAFNOSUPPORT);
    }
    let path = &bytes[PATH_AT..];
    let path = &path[..path.iter().position(|b| *b == 0).unwrap_or(path.len())];
    if !path.is_empty() {
        Start::of(cx, DirFd::CWD, path)?.base().resolve(path, Follow::Yes)?;
    }
    Err(ECONNREFUSED)
}

/// The other calls on sockets: EOPNOTSUPP on those that are here.
pub fn unsupported(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    Err(if is_socket(&*get(cx, fd)?) { EOPNOTSUPP } else { ENOTSOCK })
}

/// socketpair(2).
pub fn socketpair(cx: &mut Ctx<'_>, family: SocketFamily, kind: i32, protocol: i32, out: Addr) -> SysResult {
    if family.0 != SocketFamily::UNIX {
        return Err(if family.name().is_some() { EOPNOTSUPP } else { EAFNOSUPPORT });
    }
    if kind & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != SOCK_STREAM || protocol != 0 {
        return Err(EPROTONOSUPPORT);
    }
    let status = if kind & SOCK_NONBLOCK != 0 { FsFlags::NONBLOCK } else { FsFlags::empty() };
    let (a_reads, b_writes) = Pipe::pair(FsFlags::empty())?;
    let (b_reads, a_writes) = Pipe::pair(FsFlags::empty())?;
    let end =
        |incoming, outgoing| OpenFile::new(Arc::new(SocketEnd { incoming, outgoing }), status | FsFlags::READ_WRITE);
    let close_on_exec = kind & SOCK_CLOEXEC != 0;
    let first = install(cx, end(a_reads, a_writes), close_on_exec)?;
    let second = install(cx, end(b_reads, b_writes), close_on_exec).inspect_err(|_| close_again(cx, first))?;
    let numbers = (second as u32 as u64) << 32 | first;
    if let Err(error) = out.write(&numbers.to_le_bytes()) {
        close_again(cx, first);
        close_again(cx, second);
        return Err(error);
    }
    Ok(0)
}
