//! Unnamed files of memory: what memfd_create and shared anonymous mappings are made of.
use alloc::sync::Arc;

use fs::{OpenFile, tmpfs};

use crate::errno::SysResult;

/// A new file that only its descriptors and mappings keep alive, `size` bytes of zeros.
pub fn unnamed(name: &[u8], size: u64) -> SysResult<Arc<OpenFile>> {
    let file = tmpfs::memfd(name)?;
    if size > 0 {
        file.truncate(size)?;
    }
    Ok(file)
}
