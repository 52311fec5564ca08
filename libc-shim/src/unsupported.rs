//! Calls that are not there: each answers with the errno that Linux documents for a kernel without it.
use crate::{
    args::names::SocketFamily,
    call::Ctx,
    errno::{EAFNOSUPPORT, ECHILD, ENOSYS, ENOTSOCK, EOPNOTSUPP, EPERM, SysResult},
};

pub fn enosys(_cx: &mut Ctx<'_>) -> SysResult {
    Err(ENOSYS)
}

pub fn eperm(_cx: &mut Ctx<'_>) -> SysResult {
    Err(EPERM)
}

/// Extended attributes: a file system without them.
pub fn eopnotsupp(_cx: &mut Ctx<'_>) -> SysResult {
    Err(EOPNOTSUPP)
}

/// socket(2): no family is there.
pub fn no_family(_cx: &mut Ctx<'_>, _family: SocketFamily, _kind: i32, _protocol: i32) -> SysResult {
    Err(EAFNOSUPPORT)
}

/// The calls on a socket: no descriptor is one.
pub fn not_a_socket(cx: &mut Ctx<'_>, fd: crate::args::Fd) -> SysResult {
    crate::files::get(cx, fd)?;
    Err(ENOTSOCK)
}

/// wait4(2), waitid(2): no program has children.
pub fn no_child(_cx: &mut Ctx<'_>) -> SysResult {
    Err(ECHILD)
}
