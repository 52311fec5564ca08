//! Calls that are not there: each answers with the errno that Linux documents for a kernel without it.
use crate::{
    call::Ctx,
    errno::{ECHILD, ENOSYS, EOPNOTSUPP, EPERM, SysResult},
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

/// wait4(2), waitid(2): no program has children.
pub fn no_child(_cx: &mut Ctx<'_>) -> SysResult {
    Err(ECHILD)
}
