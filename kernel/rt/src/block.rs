//! Block devices.
use crate::page::Page;

pub const SECTOR_SIZE: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// Beyond the device's end.
    OutOfRange,
    /// The device reported failure or lied.
    Io,
    ReadOnly,
}

/// A device of 512-byte sectors. Calls sleep until the data is there; several tasks may be inside
/// at once, and the device may complete them in any order.
pub trait BlockDevice: Send + Sync {
    fn sectors(&self) -> u64;
    /// Reads whole pages from `first_sector` on: one request, scattered over `pages`.
    fn read_pages(&self, first_sector: u64, pages: &[Page]) -> Result<(), BlockError>;
    fn write_pages(&self, first_sector: u64, pages: &[Page]) -> Result<(), BlockError>;
    /// Everything written before is there after a loss of power.
    fn flush(&self) -> Result<(), BlockError>;
    /// Writes are refused.
    fn read_only(&self) -> bool {
        false
    }
    /// The page that holds the device's bytes from `first_sector` on, when the device *is* memory
    /// (an image given as a boot module): then the cache maps it without a copy.
    fn page_in_memory(&self, _first_sector: u64) -> Option<Page> {
        None
    }
}
