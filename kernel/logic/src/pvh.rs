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
    UnreadableMemoryMap,
    UnreadableModules,
    /// The kernel does not lie in RAM, if one believes the memory map.
    KernelOutsideRam,
    /// The boot module does not lie in RAM, or lies where the kernel does.
    ModuleMisplaced {
        start: u64,
        len: u64,
    },
    /// No NUL among the first so many bytes.
    EndlessCommandLine(usize),
    UnreadableCommandLine(u64),
}

impl fmt::Display for PvhError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => write!(f, "the PVH start information points outside memory"),
            Self::BadMagic(magic) => write!(f, "no PVH start information: magic is {magic:#x}, not {MAGIC:#x}"),
            Self::NoMemoryMap => write!(f, "the PVH start information has no memory map (version 0?)"),
            Self::UnreadableMemoryMap => write!(f, "the PVH start information's memory map lies outside memory"),
            Self::UnreadableModules => write!(f, "the PVH start information's modules lie outside memory"),
            Self::KernelOutsideRam => write!(f, "the memory map has no RAM where the kernel is"),
            Self::ModuleMisplaced { start, len } => {
                write!(f, "the boot module, {len:#x} bytes at {start:#x}, does not lie in free RAM")
            }
            Self::EndlessCommandLine(limit) => write!(f, "the command line has no end within {limit} bytes"),
            Self::UnreadableCommandLine(at) => write!(f, "the command line at {at:#x} lies outside memory"),
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
        // Each entry, not the whole at once: the early heap is small.
        let readable = |(first, count): (u64, u32), len: usize| {
            (0..u64::from(count)).all(|n| {
                let at = n.checked_mul(len as u64).and_then(|offset| first.checked_add(offset));
                at.is_some_and(|at| memory.read(at, &mut [0; MODULE_LEN][..len]))
            })
        };
        if !readable(info.regions, REGION_LEN) {
            return Err(PvhError::UnreadableMemoryMap);
        }
        if !readable(info.modules, MODULE_LEN) {
            return Err(PvhError::UnreadableModules);
        }
        Ok(info)
    }

    /// Entries that are empty or wrap round are left out.
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

    /// Empty ones are left out; one that wraps round ends at the last address.
    pub fn modules<'m, R: PhysReader>(&self, memory: &'m R) -> impl Iterator<Item = Module> + use<'m, R> {
        entries::<MODULE_LEN, R>(memory, self.modules).filter_map(|bytes| {
            let (start, len) = (u64_at(&bytes, 0)?, u64_at(&bytes, 8)?);
            (len > 0).then_some(Module { start, len: len.min(u64::MAX - start) })
        })
    }

    /// The command line without its NUL, copied to `out`, which has to hold the NUL as well. Empty: none.
    pub fn command_line<'o>(&self, memory: &impl PhysReader, out: &'o mut [u8]) -> Result<&'o [u8], PvhError> {
        if self.command_line == 0 {
            return Ok(&[]);
        }
        // Byte by byte: the text may end right before unreadable memory.
        for len in 0..out.len() {
            let mut byte = [0];
            let at = self.command_line.checked_add(len as u64);
            if !at.is_some_and(|at| memory.read(at, &mut byte)) {
                return Err(PvhError::UnreadableCommandLine(self.command_line));
            }
            if byte[0] == 0 {
                return Ok(&out[..len]);
            }
            out[len] = byte[0];
        }
        Err(PvhError::EndlessCommandLine(out.len()))
    }
}

/// Usable RAM from `low` on: whole pages, sorted, neighbours joined, without what another entry says
/// is no RAM, and without what no page table or, by `address_bits`, the CPU reaches. A map that
/// contradicts itself gives less.
pub fn usable_ram(regions: &[Region], low: u64, address_bits: u32) -> Vec<(u64, u64)> {
    let high = 1u64.checked_shl(address_bits).map_or(PHYSICAL_END, |end| end.min(PHYSICAL_END));
    let mut ram: Vec<(u64, u64)> = regions
        .iter()
        .filter(|region| region.kind == RegionKind::Ram)
        .map(|region| (region.start.max(low), region.end.min(high)))
        .filter(|(start, end)| start < end)
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
        return Err(PvhError::KernelOutsideRam);
    }
    match module {
        Some(module) if !inside(module) || (module.0 < image.1 && image.0 < module.1) => {
            Err(PvhError::ModuleMisplaced { start: module.0, len: module.1.saturating_sub(module.0) })
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
        assert_eq!(info.command_line(&memory, &mut [0; 64]), Ok(&b"loglevel=3 quiet"[..]));
        assert_eq!(info.command_line(&memory, &mut [0; 17]), Ok(&b"loglevel=3 quiet"[..]));
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
    fn a_command_line_ends_or_is_refused() {
        let mut memory = sample();
        let info = StartInfo::read(&memory, 0x1000).unwrap();
        assert_eq!(info.command_line(&memory, &mut [0; 16]), Err(PvhError::EndlessCommandLine(16)));
        memory.put(0x1018, &0x1fffu64.to_le_bytes());
        memory.put(0x1fff, b"x");
        let info = StartInfo::read(&memory, 0x1000).unwrap();
        assert_eq!(info.command_line(&memory, &mut [0; 16]), Err(PvhError::UnreadableCommandLine(0x1fff)));
        memory.put(0x1018, &u64::MAX.to_le_bytes());
        let info = StartInfo::read(&memory, 0x1000).unwrap();
        assert_eq!(info.command_line(&memory, &mut [0; 16]), Err(PvhError::UnreadableCommandLine(u64::MAX)));
        memory.put(0x1018, &[0; 8]);
        assert_eq!(StartInfo::read(&memory, 0x1000).unwrap().command_line(&memory, &mut []), Ok(&[][..]));
    }

    #[test]
    fn lists_must_lie_in_memory() {
        let mut memory = sample();
        memory.put(0x1010, &0x1ff0u64.to_le_bytes());
        assert_eq!(StartInfo::read(&memory, 0x1000), Err(PvhError::UnreadableModules));
        memory.put(0x1028, &u64::MAX.to_le_bytes());
        assert_eq!(StartInfo::read(&memory, 0x1000), Err(PvhError::UnreadableMemoryMap));
        memory.put(0x1030, &0u32.to_le_bytes());
        assert_eq!(StartInfo::read(&memory, 0x1000), Err(PvhError::NoMemoryMap));
    }

    #[test]
    fn a_module_that_wraps_round_lies_nowhere() {
        let mut memory = sample();
        memory.put(0x1200, &[u64::MAX - 8, 100].map(u64::to_le_bytes).concat());
        let info = StartInfo::read(&memory, 0x1000).unwrap();
        let module = info.modules(&memory).next().unwrap();
        assert_eq!(module.start + module.len, u64::MAX);
        let places = check_places(&[(0, 1 << 40)], (0x10_0000, 0x20_0000), Some((module.start, u64::MAX)));
        assert!(matches!(places, Err(PvhError::ModuleMisplaced { .. })));
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
        assert_eq!(usable_ram(&map, 0x10_0000, 64), wanted);
        assert_eq!(usable_ram(&map, 0x10_0000, 40).last(), Some(&(0x1_0000_0000, 1 << 40)));
        assert_eq!(usable_ram(&map, 0x10_0000, 32), wanted[..2]);
        assert_eq!(usable_ram(&[ram(0x1001, 0x1fff)], 0, 40), []);
    }

    #[test]
    fn kernel_and_module_must_lie_in_ram() {
        let ram = [(0x10_0000, 0x800_0000)];
        let image = (0x10_0000, 0x50_0000);
        assert_eq!(check_places(&ram, image, None), Ok(()));
        assert_eq!(check_places(&ram, image, Some((0x50_0000, 0x800_0000))), Ok(()));
        for module in [(0x4f_ffff, 0x60_0000), (0x700_0000, 0x800_0001), (1 << 40, 1 << 41)] {
            let error = PvhError::ModuleMisplaced { start: module.0, len: module.1 - module.0 };
            assert_eq!(check_places(&ram, image, Some(module)), Err(error));
        }
        assert_eq!(check_places(&[], image, None), Err(PvhError::KernelOutsideRam));
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
                assert!(info.command_line(&memory, &mut [0; 4096]).unwrap_or(&[]).len() <= 0xf00);
            }
        }
    }
}
