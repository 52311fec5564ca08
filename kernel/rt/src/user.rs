//! Application memory, touched only by copy.

use crate::page::Page;

/// The address is not mapped, or not with the needed protection: EFAULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

/// Copies to and from application memory. Every call may fault pages in and sleep: no spin lock may
/// be held. A partial copy may have happened when [`BadAddress`] is returned.
pub trait UserMemory: Sync {
    fn read(&self, out: &mut [u8], address: u64) -> Result<(), BadAddress>;
    fn write(&self, address: u64, data: &[u8]) -> Result<(), BadAddress>;
    fn zero(&self, address: u64, len: usize) -> Result<(), BadAddress>;
    /// Copies page bytes to the application without a bounce buffer.
    fn write_from_page(&self, address: u64, page: &Page, offset: usize, len: usize) -> Result<(), BadAddress>;
    fn read_into_page(&self, page: &Page, offset: usize, len: usize, address: u64) -> Result<(), BadAddress>;
    /// Bytes up to, without, the first NUL. `Ok(None)`: no NUL within `out`.
    fn read_c_str(&self, out: &mut [u8], address: u64) -> Result<Option<usize>, BadAddress>;
    /// Atomic 32-bit load, for futexes. `address` must be aligned to 4.
    fn load_u32(&self, address: u64) -> Result<u32, BadAddress>;
    /// As [`UserMemory::load_u32`], but never faults a page in and never sleeps: allowed under a
    /// spin lock. On failure, load normally without the lock and try again.
    fn load_u32_nofault(&self, address: u64) -> Result<u32, BadAddress>;
    /// Atomic compare-and-exchange; the result is the old value.
    fn compare_exchange_u32(&self, address: u64, current: u32, new: u32) -> Result<u32, BadAddress>;
}
