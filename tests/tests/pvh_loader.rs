//! The kernel as Firecracker and Cloud Hypervisor load it, which cannot run here: by the crate that
//! both use, with the kernel at or above 1 MiB, entered as its PVH note says.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use linux_loader::{
    elf,
    loader::{
        KernelLoader,
        elf::{Elf, PvhBootCapability},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where both of them let a kernel begin (Firecracker's `HIMEM_START`, Cloud Hypervisor's
/// `HIGH_RAM_START`).
const HIGH_RAM_START: GuestAddress = GuestAddress(0x10_0000);
const MEMORY_BYTES: usize = 32 << 20;
/// ELF64: sizes of the header and of a program header.
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// What has to fit: the stripped ELF (issue of the kernel's size).
const MOST_FILE_BYTES: u64 = 2 << 20;

fn kernel() -> PathBuf {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../build/kernel.elf"));
    assert!(path.exists(), "{} is missing: run scripts/build", path.display());
    path
}

struct Segment {
    offset: usize,
    physical: u64,
    file_bytes: usize,
    memory_bytes: u64,
    executable: bool,
}

/// The loadable segments, read by hand: the crate under test is not to be its own witness.
fn segments(file: &[u8]) -> Vec<Segment> {
    let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let half = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let table = word(32) as usize;
    let count = usize::from(u16::from_le_bytes([file[56], file[57]]));
    assert!(table >= HEADER_BYTES);
    (0..count)
        .map(|index| table + index * PROGRAM_HEADER_BYTES)
        .filter(|&at| half(at) == elf::PT_LOAD)
        .map(|at| Segment {
            offset: word(at + 8) as usize,
            physical: word(at + 24),
            file_bytes: word(at + 32) as usize,
            memory_bytes: word(at + 40),
            executable: half(at + 4) & elf::PF_X != 0,
        })
        .collect()
}

#[test]
fn it_is_loaded_and_entered_by_its_pvh_note() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    let loaded =
        Elf::load(&memory, None, &mut File::open(kernel()).unwrap(), Some(HIGH_RAM_START)).expect("the ELF is refused");
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        panic!("no PVH note was found: {:?}", loaded.pvh_boot_cap);
    };
    // Neither reads a bzImage header, and PVH enters 32-bit code.
    assert!(loaded.setup_header.is_none());
    assert!(entry.0 < 1 << 32);

    let file = fs::read(kernel()).unwrap();
    let segments = segments(&file);
    let holds =
        |segment: &&Segment| (segment.physical..segment.physical + segment.file_bytes as u64).contains(&entry.0);
    assert!(segments.iter().find(holds).is_some_and(|segment| segment.executable), "the entry is no code");
    for segment in &segments {
        assert!(segment.physical >= HIGH_RAM_START.0, "a segment at {:#x} is refused", segment.physical);
        assert!(segment.physical + segment.memory_bytes <= MEMORY_BYTES as u64);
        let mut there = vec![0; segment.file_bytes];
        memory.read_slice(&mut there, GuestAddress(segment.physical)).unwrap();
        assert!(there == file[segment.offset..][..segment.file_bytes], "a segment is not where it should be");
    }
    let end = segments.iter().map(|segment| segment.physical + segment.file_bytes as u64).max();
    assert!(Some(loaded.kernel_end) >= end, "its end is not known: the monitor would put its data there");
}

/// Loaders clear no memory: what follows a segment's bytes is zero only since the guest's memory is.
/// So segments do not overlap, or one would fill another's zeroes.
#[test]
fn segments_do_not_overlap() {
    let mut segments = segments(&fs::read(kernel()).unwrap());
    segments.sort_by_key(|segment| segment.physical);
    for pair in segments.windows(2) {
        assert!(pair[0].physical + pair[0].memory_bytes <= pair[1].physical);
    }
}

#[test]
fn it_is_small() {
    let bytes = fs::metadata(kernel()).unwrap().len();
    assert!(bytes < MOST_FILE_BYTES, "{bytes} bytes");
}
