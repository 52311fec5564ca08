#![allow(unsafe_code, reason = "page tables are reached by physical address")]
//! The one page table: its layout, its kernel half, and walking it.
//!
//! # Invariants
//! Kernel mappings are never writable and executable at once: text is executable, everything else,
//! the direct map included, is not; text and read-only data are read-only through the direct map
//! too. The application's half may be what the application asked for.
//!
//! # Locking
//! The kernel half is built by the boot CPU alone and then changed only under [`KERNEL_TABLES`]; the
//! application's half only under the address space's lock.
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::{
    PhysAddr,
    registers::control::{Cr3, Cr3Flags},
    structures::paging::PhysFrame,
};

use super::frames;
use crate::cpu::lock::IrqSpin;

pub const PAGE: u64 = 4096;
pub const LARGE_PAGE: u64 = 2 << 20;
pub const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

pub const PRESENT: u64 = 1;
pub const WRITABLE: u64 = 1 << 1;
pub const WRITE_THROUGH: u64 = 1 << 3;
pub const UNCACHED: u64 = 1 << 4;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
pub const LARGE: u64 = 1 << 7;
pub const GLOBAL: u64 = 1 << 8;
pub const NO_EXECUTE: u64 = 1 << 63;

pub const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// End of what applications may map: the last page below the hole stays free, as on Linux.
pub const APPLICATION_END: u64 = 0x7fff_ffff_f000;
/// [0, 64 KiB) is never mapped.
pub const APPLICATION_START: u64 = 0x1_0000;

static ROOT: AtomicU64 = AtomicU64::new(0);

/// Serialises changes of kernel mappings.
pub static KERNEL_TABLES: IrqSpin<()> = IrqSpin::new(());

/// Where the direct map shows a physical address.
#[inline]
pub const fn direct(physical: u64) -> u64 {
    DIRECT_MAP + physical
}

/// Physical address of something in the direct map or in the kernel image.
pub fn physical_of(address: u64) -> u64 {
    if address >= KERNEL_BASE { address - KERNEL_BASE } else { address - DIRECT_MAP }
}

/// Where tables are while the boot tables are still in force: the high alias of the first GiB.
fn early_alias(physical: u64) -> u64 {
    KERNEL_BASE + physical
}

/// How a walk gets at tables, and where new ones come from.
struct Builder {
    root: u64,
    alias: fn(u64) -> u64,
    new_table: fn() -> Option<u64>,
}

fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level) & 511) as usize
}

impl Builder {
    fn entry(&self, table: u64, index: usize) -> *mut u64 {
        ((self.alias)(table) as *mut u64).wrapping_add(index)
    }

    /// The entry at `level` (0: 4 KiB, 1: 2 MiB) that maps `address`; tables above it are made as
    /// needed. None when no table can be had, or a larger page is in the way.
    fn entry_for(&self, address: u64, level: u32) -> Option<*mut u64> {
        let mut table = self.root;
        for at in (level + 1..=3).rev() {
            let entry = self.entry(table, index(address, at));
            // SAFETY: `table` is a page-table page, present through `alias`; the caller serialises.
            let value = unsafe { entry.read_volatile() };
            if value & PRESENT == 0 {
                let new = (self.new_table)()?;
                // Upper levels allow everything; the last level decides.
                // SAFETY: as above; the new table is zeroed.
                unsafe { entry.write_volatile(new | PRESENT | WRITABLE) };
                table = new;
            } else if value & LARGE != 0 {
                return None;
            } else {
                table = value & ADDRESS_MASK;
            }
        }
        Some(self.entry(table, index(address, level)))
    }

    fn map_early(&self, virtual_address: u64, physical: u64, level: u32, flags: u64) {
        let entry = self.entry_for(virtual_address, level).expect("page tables for the kernel's own mappings");
        // SAFETY: the boot CPU builds these tables before they are in force.
        unsafe { entry.write_volatile(physical | flags) };
    }
}

/// A page-aligned range of the kernel image and its rights.
pub struct Segment {
    pub start: u64,
    pub end: u64,
    pub flags: u64,
}

/// Builds the final tables and switches to them: the kernel image by `segments` (virtual addresses)
/// and the direct map of `ram` (physical ranges). `low_end`: physical memory below it also appears at
/// its own address until [`drop_identity`], for the application processors' start.
pub fn build(segments: &[Segment], ram: &[(u64, u64)], low_end: u64) {
    let new_table = || Some(super::early::take_zeroed_frame());
    let root = super::early::take_zeroed_frame();
    let builder = Builder { root, alias: early_alias, new_table };
    for segment in segments {
        for address in (segment.start..segment.end).step_by(PAGE as usize) {
            builder.map_early(address, address - KERNEL_BASE, 0, segment.flags | PRESENT | GLOBAL);
        }
    }
    let read_only = |physical: u64| {
        let address = physical + KERNEL_BASE;
        segments.iter().any(|s| s.flags & WRITABLE == 0 && (s.start..s.end).contains(&address))
    };
    let image_end = segments.iter().map(|s| s.end - KERNEL_BASE).max().unwrap_or(0);
    for &(start, end) in ram {
        let mut at = start;
        while at < end {
            let rights = PRESENT | NO_EXECUTE | GLOBAL;
            if at.is_multiple_of(LARGE_PAGE) && at + LARGE_PAGE <= end && at >= image_end {
                builder.map_early(direct(at), at, 1, rights | WRITABLE | LARGE);
                at += LARGE_PAGE;
            } else {
                let writable = if read_only(at) { 0 } else { WRITABLE };
                builder.map_early(direct(at), at, 0, rights | writable);
                at += PAGE;
            }
        }
    }
    for at in (0..low_end).step_by(PAGE as usize) {
        builder.map_early(at, at, 0, PRESENT | WRITABLE);
    }
    // The window for stacks and devices: its top table now, so that all roots-to-come share it.
    let _ = builder.entry_for(super::stacks::WINDOW, 2);
    ROOT.store(root, Ordering::Release);
    load();
}

/// Loads the final tables on the calling CPU.
pub fn load() {
    let root = PhysFrame::containing_address(PhysAddr::new(ROOT.load(Ordering::Acquire)));
    // SAFETY: `build` mapped the kernel image with the code, stack and data in use.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
}

/// Physical address of the top table.
pub fn root() -> u64 {
    ROOT.load(Ordering::Acquire)
}

/// Takes the boot identity map away, before the first task.
pub fn drop_identity(low_end: u64) {
    for address in (0..low_end).step_by(PAGE as usize) {
        if let Some(entry) = lookup(address) {
            // SAFETY: nothing uses the identity map any more; the caller is the only running CPU code
            // that could.
            unsafe { entry.write_volatile(0) };
        }
    }
    // These entries are not global: an ordinary shootdown reaches them.
    super::tlb::shoot_down(0, low_end);
}

/// What the table has for an address of the application's half.
#[derive(Clone, Copy)]
pub enum Leaf {
    /// The entry of a 4 KiB page.
    Small(*mut u64),
    /// The entry of a 2 MiB page, which is present.
    Large(*mut u64),
}

/// Walks down to the last level. `missing` gives the table for an entry that has none.
#[inline]
fn descend(address: u64, mut missing: impl FnMut(u32, *mut u64) -> Option<u64>) -> Option<Leaf> {
    let mut table = root();
    for level in [3, 2, 1] {
        let entry = (direct(table) as *mut u64).wrapping_add(index(address, level));
        // SAFETY: present tables are mapped by the direct map.
        let value = unsafe { entry.read_volatile() };
        table = match value & (PRESENT | LARGE) {
            PRESENT => value & ADDRESS_MASK,
            0 | LARGE => missing(level, entry)?,
            _ if level == 1 => return Some(Leaf::Large(entry)),
            _ => return None,
        };
    }
    Some(Leaf::Small((direct(table) as *mut u64).wrapping_add(index(address, 0))))
}

/// A new table behind `entry`.
fn new_table(entry: *mut u64) -> Option<u64> {
    let table = frames::take_table()?;
    // Upper levels allow everything; the last level decides.
    // SAFETY: the entry lies in a table page, and the caller serialises.
    unsafe { entry.write_volatile(table | PRESENT | WRITABLE) };
    Some(table)
}

/// The leaf for `address` if its table exists.
#[inline]
pub fn leaf(address: u64) -> Option<Leaf> {
    descend(address, |_, _| None)
}

/// The leaf for `address`, making tables as needed. None: out of memory.
#[inline]
pub fn leaf_or_new(address: u64) -> Option<Leaf> {
    descend(address, |_, entry| new_table(entry))
}

/// The 4 KiB entry for `address`, making tables as needed. None: out of memory, or a larger page is
/// there.
pub fn entry(address: u64) -> Option<*mut u64> {
    match leaf_or_new(address)? {
        Leaf::Small(entry) => Some(entry),
        Leaf::Large(_) => None,
    }
}

/// The 4 KiB entry for `address` if its table exists.
pub fn lookup(address: u64) -> Option<*mut u64> {
    match leaf(address)? {
        Leaf::Small(entry) => Some(entry),
        Leaf::Large(_) => None,
    }
}

/// The entry for the 2 MiB around `address`, making the tables above it as needed.
pub fn directory_entry(address: u64) -> Option<*mut u64> {
    let mut table = root();
    for level in [3, 2] {
        let entry = (direct(table) as *mut u64).wrapping_add(index(address, level));
        // SAFETY: present tables are mapped by the direct map.
        let value = unsafe { entry.read_volatile() };
        table = if value & PRESENT == 0 { new_table(entry)? } else { value & ADDRESS_MASK };
    }
    Some((direct(table) as *mut u64).wrapping_add(index(address, 1)))
}

/// The first entry of a last-level table.
pub fn entries_of(table: u64) -> *mut u64 {
    direct(table) as *mut u64
}

/// Calls `each(address, stop, leaf)` for [start, end) in pieces of at most 2 MiB, each below one
/// directory entry; a small leaf is the entry of `address`, those up to `stop` follow it. What has no
/// table is left out.
pub fn for_each_piece(start: u64, end: u64, mut each: impl FnMut(u64, u64, Leaf)) {
    let mut address = start;
    while address < end {
        let mut missing_at = 0;
        let found = descend(address, |level, _| {
            missing_at = level;
            None
        });
        match found {
            Some(leaf) => {
                let stop = end.min((address & !(LARGE_PAGE - 1)) + LARGE_PAGE);
                each(address, stop, leaf);
                address = stop;
            }
            // On to where the missing level ends, so that a sparse terabyte costs little.
            None => {
                let span = 1u64 << (12 + 9 * missing_at.max(1));
                address = (address & !(span - 1)) + span;
            }
        }
    }
}

/// Maps one kernel page. The entry must be free. Holding [`KERNEL_TABLES`] is the caller's part.
pub fn map_kernel_page(address: u64, physical: u64, flags: u64) -> Option<()> {
    let entry = entry(address)?;
    // SAFETY: the window's addresses belong to the caller, who serialises.
    unsafe { entry.write_volatile(physical | flags | PRESENT | NO_EXECUTE | GLOBAL) };
    Some(())
}

/// Takes a page out that no CPU has used; the result is its frame. [`KERNEL_TABLES`] as above.
pub fn unmap_kernel_page(address: u64) -> Option<u64> {
    let entry = lookup(address)?;
    // SAFETY: as above.
    let value = unsafe { entry.read_volatile() };
    // SAFETY: as above; nobody reads or writes there.
    unsafe { entry.write_volatile(0) };
    (value & PRESENT != 0).then_some(value & ADDRESS_MASK)
}

/// True if a kernel address is mapped, by a page of any size. Takes no lock: for panics.
pub fn is_mapped(address: u64) -> bool {
    if root() == 0 { address >= KERNEL_BASE } else { last_level(address) != 0 }
}

/// The last-level entry for an address, of any page size; 0: none.
pub fn last_level(address: u64) -> u64 {
    let mut table = root();
    for level in (0..=3).rev() {
        // SAFETY: present tables are mapped by the direct map.
        let value = unsafe { (direct(table) as *const u64).add(index(address, level)).read_volatile() };
        if value & PRESENT == 0 || level == 0 || value & LARGE != 0 {
            return if value & PRESENT == 0 { 0 } else { value };
        }
        table = value & ADDRESS_MASK;
    }
    0
}

/// Calls `each(address, entry)` for every last-level entry of the kernel's half.
pub fn each_kernel_mapping(mut each: impl FnMut(u64, u64)) {
    fn visit(table: u64, level: u32, base: u64, each: &mut dyn FnMut(u64, u64)) {
        for at in 0..512u64 {
            // SAFETY: present tables are mapped by the direct map.
            let value = unsafe { (direct(table) as *const u64).add(at as usize).read_volatile() };
            let address = base | at << (12 + 9 * level);
            if value & PRESENT == 0 {
                continue;
            }
            if level == 0 || value & LARGE != 0 {
                each(address, value);
            } else {
                visit(value & ADDRESS_MASK, level - 1, address, each);
            }
        }
    }
    for at in 256..512u64 {
        // SAFETY: as above.
        let value = unsafe { (direct(root()) as *const u64).add(at as usize).read_volatile() };
        if value & PRESENT != 0 {
            visit(value & ADDRESS_MASK, 2, 0xffff_0000_0000_0000 | at << 39, &mut each);
        }
    }
}
