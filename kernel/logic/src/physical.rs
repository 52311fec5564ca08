//! Reading what firmware and hypervisor left in physical memory.
//!
//! Parsers take a [`PhysReader`] and never trust an address, a length or a count in what they read.

/// Copies physical memory. The machine reads through its direct map, tests from a byte array.
pub trait PhysReader {
    /// Fills `out` from `address` on. False: part of it is no readable memory.
    fn read(&self, address: u64, out: &mut [u8]) -> bool;
}

impl<R: PhysReader + ?Sized> PhysReader for &R {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        (**self).read(address, out)
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod fake {
    use super::PhysReader;

    /// Memory that begins at `base`.
    pub struct Memory {
        pub base: u64,
        pub bytes: Vec<u8>,
    }

    impl Memory {
        pub fn put(&mut self, address: u64, data: &[u8]) {
            let at = (address - self.base) as usize;
            self.bytes[at..at + data.len()].copy_from_slice(data);
        }
    }

    impl PhysReader for Memory {
        fn read(&self, address: u64, out: &mut [u8]) -> bool {
            let from = address.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
            match from.and_then(|at| self.bytes.get(at..at.checked_add(out.len())?)) {
                Some(data) => {
                    out.copy_from_slice(data);
                    true
                }
                None => false,
            }
        }
    }
}
