//! What a PVH boot loader hands over: `hvm_start_info` (Xen's `arch-x86/hvm/start_info.h`).
//!
//! QEMU, Cloud Hypervisor and Firecracker put its physical address into EBX. Only the early heap is
//! there when it is read.
use alloc::vec::Vec;
use core::fmt;

use crate::physical::{PhysReader, u32_at, u64_at};

const MAGIC: u32 = 0x336e_c578;
const HEADER_LEN: usize = 56;
const MODULE_LEN: usize = 32;
const REGION_LEN: usize = 24;
const PAGE: u64 = 4096;
/// What four levels of page tables leave for a direct map.
const PHYSICAL_END: u64 = 1 << 46;
/// More than any loader gives; a larger count is a broken structure.
const MAX_REGIONS: u32 = 1024;
const MAX_MODULES: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PvhError {
    Unreadable,
    BadMagic(u32),
    /// Version 0 has no memory map.
    NoMemoryMap,
    TooManyEntries(u32),
    /// What has to lie in RAM does not, or lies where the kernel does.
    Misplaced(&'static str),
}

impl fmt::Display for PvhError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => write!(f, "the PVH start information points outside memory"),
            Self::BadMagic(magic) => write!(f, "no PVH start information: magic is {magic:#x}, not {MAGIC:#x}"),
            Self::NoMemoryMap => write!(f, "the PVH start information has no memory map (version 0?)"),
            Self::Misplaced(what) => write!(f, "the memory map has no RAM where {what} should be"),
            Self::TooManyEntries(count) => write!(f, "the PVH start information claims {count} entries in a list"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    Ram,
    Reserved,
    /// ACPI tables; RAM once they have been read.
    AcpiTables,
    AcpiNvs,
    Unusable,
    Other(u32),
}

/// An entry of the memory map, as the loader wrote it: not aligned, not sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub start: u64,
    /// Exclusive; never below `start`.
    pub end: u64,
    pub kind: RegionKind,
}

/// A file that the loader placed in memory (`-initrd`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    pub start: u64,
    pub len: u64,
}

/// The checked header. Lists are read on demand through the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartInfo {
    command_line: u64,
    /// Physical address of the ACPI root pointer; 0: none.
    pub rsdp: u64,
    modules: (u64, u32),
    regions: (u64, u32),
}

impl StartInfo {
    /// Reads the structure at physical `address`.
    pub fn read(memory: &impl PhysReader, address: u64) -> Result<Self, PvhError> {
        let mut bytes = [0; HEADER_LEN];
        if !memory.read(address, &mut bytes) {
            return Err(PvhError::Unreadable);
        }
        let word = |at| u32_at(&bytes, at).unwrap_or(0);
        let long = |at| u64_at(&bytes, at).unwrap_or(0);
        if word(0) != MAGIC {
            return Err(PvhError::BadMagic(word(0)));
        }
        let info = Self {
            modules: (long(16), word(12)),
            command_line: long(24),
            rsdp: long(32),
            regions: (long(40), word(48)),
        };
        if word(4) == 0 || info.regions.1 == 0 || info.regions.0 == 0 {
            return Err(PvhError::NoMemoryMap);
        }
        for (count, limit) in [(info.modules.1, MAX_MODULES), (info.regions.1, MAX_REGIONS)] {
            if count > limit {
                return Err(PvhError::TooManyEntries(count));
            }
        }
        Ok(info)
    }

    /// Entries that cannot be read, are empty or wrap round are left out.
    pub fn regions<'m, R: PhysReader>(&self, memory: &'m R) -> impl Iterator<Item = Region> + use<'m, R> {
        entries::<REGION_LEN, R>(memory, self.regions).filter_map(|bytes| {
            let (start, len) = (u64_at(&bytes, 0)?, u64_at(&bytes, 8)?);
            let kind = match u32_at(&bytes, 16)? {
                1 => RegionKind::Ram,
                2 => RegionKind::Reserved,
                3 => RegionKind::AcpiTables,
                4 => RegionKind::AcpiNvs,
                5 => RegionKind::Unusable,
                other => RegionKind::Other(other),
            };
            let end = start.checked_add(len)?;
            (len > 0).then_some(Region { start, end, kind })
        })
    }

    /// As [`StartInfo::regions`].
    pub fn modules<'m, R: PhysReader>(&self, memory: &'m R) -> impl Iterator<Item = Module> + use<'m, R> {
        entries::<MODULE_LEN, R>(memory, self.modules).filter_map(|bytes| {
            let (start, len) = (u64_at(&bytes, 0)?, u64_at(&bytes, 8)?);
            start.checked_add(len)?;
            (len > 0).then_some(Module { start, len })
        })
    }

    /// The command line without its NUL, copied to `out` and cut to its length. Empty: none.
    pub fn command_line<'o>(&self, memory: &impl PhysReader, out: &'o mut [u8]) -> &'o [u8] {
        if self.command_line == 0 {
            return &[];
        }
        // Byte by byte: the text may end right before unreadable memory.
        let mut len = 0;
        while len < out.len() {
            let mut byte = [0];
            let Some(at) = self.command_line.checked_add(len as u64) else { break };
            if !memory.read(at, &mut byte) || byte[0] == 0 {
                break;
            }
            out[len] = byte[0];
            len += 1;
        }
        &out[..len]
    }

    /// Where the structure's own lists lie, so that they are not handed out as free memory before
    /// they have been read: (start, length).
    pub fn lists(&self) -> [(u64, u64); 2] {
        [
            (self.regions.0, u64::from(self.regions.1) * REGION_LEN as u64),
            (self.modules.0, u64::from(self.modules.1) * MODULE_LEN as u64),
        ]
    }
}

/// Usable RAM from `low` on: whole pages, sorted, neighbours joined, without what another entry says
/// is no RAM, and without what no page table reaches. A map that contradicts itself gives less.
pub fn usable_ram(regions: &[Region], low: u64) -> Vec<(u64, u64)> {
    let mut ram: Vec<(u64, u64)> = regions
        .iter()
        .filter(|region| region.kind == RegionKind::Ram)
        .map(|region| (region.start.max(low), region.end.min(PHYSICAL_END)))
        .collect();
    for other in regions.iter().filter(|region| region.kind != RegionKind::Ram) {
        ram = ram
            .into_iter()
            .flat_map(|(start, end)| [(start, end.min(other.start)), (start.max(other.end), end)])
            .filter(|(start, end)| start < end)
            .collect();
    }
    let mut pages: Vec<(u64, u64)> = ram
        .into_iter()
        .map(|(start, end)| (start.next_multiple_of(PAGE), end & !(PAGE - 1)))
        .filter(|(start, end)| start < end)
        .collect();
    pages.sort_unstable();
    pages.dedup_by(|next, last| {
        let joined = next.0 <= last.1;
        if joined {
            last.1 = last.1.max(next.1);
        }
        joined
    });
    pages
}

/// Checks that kernel image and boot module lie in RAM, and not in each other; both are (start, end).
pub fn check_places(ram: &[(u64, u64)], image: (u64, u64), module: Option<(u64, u64)>) -> Result<(), PvhError> {
    let inside = |(start, end): (u64, u64)| ram.iter().any(|range| range.0 <= start && end <= range.1);
    if !inside(image) {
        return Err(PvhError::Misplaced("the kernel"));
    }
    match module {
        Some(module) if !inside(module) || (module.0 < image.1 && image.0 < module.1) => {
            Err(PvhError::Misplaced("the boot module"))
        }
        _ => Ok(()),
    }
}

fn entries<'m, const LEN: usize, R: PhysReader>(
    memory: &'m R,
    (first, count): (u64, u32),
) -> impl Iterator<Item = [u8; LEN]> + use<'m, LEN, R> {
    (0..u64::from(count)).filter_map(move |n| {
        let mut bytes = [0; LEN];
        memory.read(first.checked_add(n * LEN as u64)?, &mut bytes).then_some(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{physical::fake::Memory, random::Stream};

    fn sample() -> Memory {
        let mut memory = Memory { base: 0x1000, bytes: vec![0; 0x1000] };
        let mut header = Vec::new();
        header.extend(MAGIC.to_le_bytes());
        header.extend(1u32.to_le_bytes());
        header.extend(0u32.to_le_bytes());
        header.extend(1u32.to_le_bytes());
        for value in [0x1200u64, 0x1100, 0xf_5a00, 0x1300] {
            header.extend(value.to_le_bytes());
        }
        header.extend(3u32.to_le_bytes());
        header.extend(0u32.to_le_bytes());
        memory.put(0x1000, &header);
        memory.put(0x1100, b"loglevel=3 quiet\0");
        memory.put(0x1200, &[0x40_0000u64, 0x1234, 0, 0].map(u64::to_le_bytes).concat());
        let regions = [(0u64, 0x9_fc00u64, 1u64), (0x10_0000, 0x7ff0_0000, 1), (u64::MAX - 4, 100, 2)];
        for (n, (start, len, kind)) in regions.into_iter().enumerate() {
            memory.put(0x1300 + 24 * n as u64, &[start, len, kind].map(u64::to_le_bytes).concat());
        }
        memory
    }

    #[test]
    fn reads_what_a_loader_writes() {
        let memory = sample();
        let info = StartInfo::read(&memory, 0x1000).unwrap();
        assert_eq!(info.rsdp, 0xf_5a00);
        let regions: Vec<_> = info.regions(&memory).collect();
        assert_eq!(regions.len(), 2, "the one that wraps round is left out");
        assert_eq!(regions[1], Region { start: 0x10_0000, end: 0x8000_0000, kind: RegionKind::Ram });
        assert_eq!(info.modules(&memory).collect::<Vec<_>>(), [Module { start: 0x40_0000, len: 0x1234 }]);
        assert_eq!(info.command_line(&memory, &mut [0; 64]), b"loglevel=3 quiet");
        assert_eq!(info.command_line(&memory, &mut [0; 8]), b"loglevel");
        assert_eq!(info.lists(), [(0x1300, 72), (0x1200, 32)]);
    }

    #[test]
    fn refuses_what_is_none() {
        let mut memory = sample();
        assert_eq!(StartInfo::read(&memory, 0x1fff), Err(PvhError::Unreadable));
        memory.put(0x1030, &5000u32.to_le_bytes());
        assert_eq!(StartInfo::read(&memory, 0x1000), Err(PvhError::TooManyEntries(5000)));
        memory.put(0x1000, &[0]);
        assert!(matches!(StartInfo::read(&memory, 0x1000), Err(PvhError::BadMagic(_))));
    }

    #[test]
    fn ram_is_what_no_entry_denies() {
        let region = |start, end, kind| Region { start, end, kind };
        let ram = |start, end| region(start, end, RegionKind::Ram);
        let map = [
            ram(0x10_0000, 0x800_0000),
            ram(0x1_0000_0000, u64::MAX),
            region(0x700_0123, 0x700_0456, RegionKind::AcpiTables),
            // Twice the same, and neighbours.
            ram(0x780_0000, 0x800_0000),
            ram(0x800_0000, 0x900_0800),
            ram(0, 0x9_fc00),
        ];
        let wanted = [(0x10_0000, 0x700_0000), (0x700_1000, 0x900_0000), (0x1_0000_0000, 1 << 46)];
        assert_eq!(usable_ram(&map, 0x10_0000), wanted);
        assert_eq!(usable_ram(&[ram(0x1001, 0x1fff)], 0), []);
    }

    #[test]
    fn kernel_and_module_must_lie_in_ram() {
        let ram = [(0x10_0000, 0x800_0000)];
        let image = (0x10_0000, 0x50_0000);
        assert_eq!(check_places(&ram, image, None), Ok(()));
        assert_eq!(check_places(&ram, image, Some((0x50_0000, 0x800_0000))), Ok(()));
        for module in [(0x4f_ffff, 0x60_0000), (0x700_0000, 0x800_0001), (1 << 40, 1 << 41)] {
            assert_eq!(check_places(&ram, image, Some(module)), Err(PvhError::Misplaced("the boot module")));
        }
        assert_eq!(check_places(&[], image, None), Err(PvhError::Misplaced("the kernel")));
    }

    #[test]
    fn mutations_do_no_harm() {
        for seed in 0..2000 {
            let mut random = Stream::new(seed);
            let mut memory = sample();
            for _ in 0..4 {
                let at = [0x1000 + random.below(56), 0x1300 + random.below(72), 0x1200 + random.below(32)];
                memory.put(at[random.below(3) as usize], &[random.next_u64() as u8]);
            }
            if let Ok(info) = StartInfo::read(&memory, 0x1000) {
                assert!(info.regions(&memory).all(|r| r.start < r.end));
                assert!(info.modules(&memory).count() <= MAX_MODULES as usize);
                assert!(info.command_line(&memory, &mut [0; 4096]).len() <= 0xf00);
            }
        }
    }
}
