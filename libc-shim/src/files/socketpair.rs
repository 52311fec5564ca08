//! AF_UNIX stream pairs: two pipes crosswise.
//!
//! What the JDK and others need of socketpair(2) before there is a network: read, write, poll, and the
//! end of file when the other side is closed.
use alloc::{sync::Arc, vec::Vec};

use fs::{
    FileKind, FileOps, Metadata, OpenFile, OpenFlags as FsFlags, Readiness, Sink, Source,
    error::FsResult,
    file::{ReadyQueues, Wait},
    pipe::Pipe,
};

use super::{install, special::close_again};
use crate::{
    args::{Addr, names::SocketFamily},
    call::Ctx,
    errno::{EAFNOSUPPORT, EOPNOTSUPP, EPROTONOSUPPORT, SysResult},
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
    let end = |incoming, outgoing| OpenFile::new(Arc::new(SocketEnd { incoming, outgoing }), status | FsFlags::READ_WRITE);
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
