//! The kernel's symbol table for backtraces: a section of the kernel image that a host tool fills
//! after linking, and that the kernel reads without allocating.
//!
//! Little-endian: magic `KSYM`, `count: u32`, then `count` entries `(offset: u32, name: u32)` in
//! ascending order of `offset` from [`KERNEL_BASE`], then the names. An entry's `name` is the byte
//! position of its name behind the entries, where a length byte precedes the text. A symbol reaches
//! up to the next one; an entry with an empty name ends the last (a gap, or the end of the text).
use alloc::{collections::BTreeMap, string::String, vec::Vec};

/// Link address of the kernel, which offsets count from. Fixed: there is no KASLR.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// Name of the section in the kernel's ELF.
pub const SECTION: &str = ".ksyms";

const MAGIC: &[u8; 4] = b"KSYM";
const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 8;

/// Builds the table. Symbols may come in any order; of several at one offset the first in name
/// order stays. Names are cut to 255 bytes.
pub fn encode(mut symbols: Vec<(u32, String)>) -> Vec<u8> {
    // A gap's empty name must not win over a symbol that starts where another ends.
    symbols.sort_by(|a, b| (a.0, a.1.is_empty(), &a.1).cmp(&(b.0, b.1.is_empty(), &b.1)));
    symbols.dedup_by_key(|symbol| symbol.0);
    let mut table = Vec::from(*MAGIC);
    table.extend_from_slice(&(symbols.len() as u32).to_le_bytes());
    let mut names = Vec::new();
    let mut placed = BTreeMap::new();
    for (offset, name) in &symbols {
        let name = cut(name);
        let at = *placed.entry(name).or_insert_with(|| {
            let at = names.len() as u32;
            names.push(name.len() as u8);
            names.extend_from_slice(name.as_bytes());
            at
        });
        table.extend_from_slice(&offset.to_le_bytes());
        table.extend_from_slice(&at.to_le_bytes());
    }
    table.extend_from_slice(&names);
    table
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(255)]
}

/// The symbol that `address` lies in, and how far into it. `None` when the table is empty (not
/// filled), malformed, or knows nothing there. Safe on any bytes: a panic handler calls it.
pub fn lookup(table: &[u8], address: u64) -> Option<(&str, u64)> {
    let offset = u32::try_from(address.checked_sub(KERNEL_BASE)?).ok()?;
    if table.get(..4)? != MAGIC {
        return None;
    }
    let count = word(table, 4)? as usize;
    let names = HEADER_BYTES.checked_add(count.checked_mul(ENTRY_BYTES)?)?;
    // Binary search for the last entry that does not start above `offset`.
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if word(table, HEADER_BYTES + middle * ENTRY_BYTES)? <= offset {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let entry = HEADER_BYTES + low.checked_sub(1)? * ENTRY_BYTES;
    let start = word(table, entry)?;
    let at = names.checked_add(word(table, entry + 4)? as usize)?;
    let len = usize::from(*table.get(at)?);
    let name = core::str::from_utf8(table.get(at + 1..at + 1 + len)?).ok()?;
    (len > 0).then_some((name, u64::from(offset - start)))
}

fn word(table: &[u8], at: usize) -> Option<u32> {
    let bytes = table.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn table() -> Vec<u8> {
        let symbols = [(0x300, "task::park"), (0x100, "main"), (0x200, ""), (0x300, ""), (0x400, "main"), (0x480, "")];
        encode(symbols.iter().map(|(offset, name)| (*offset, name.to_string())).collect())
    }

    #[test]
    fn addresses_are_found_within_their_symbol_only() {
        let table = table();
        let find = |offset: u64| lookup(&table, KERNEL_BASE + offset);
        assert_eq!(find(0xff), None);
        assert_eq!(find(0x100), Some(("main", 0)));
        assert_eq!(find(0x1ff), Some(("main", 0xff)));
        assert_eq!(find(0x200), None);
        assert_eq!(find(0x310), Some(("task::park", 0x10)));
        assert_eq!(find(0x47f), Some(("main", 0x7f)));
        assert_eq!(find(0x480), None);
        assert_eq!(lookup(&table, 0x100), None);
    }

    #[test]
    fn broken_tables_find_nothing_and_do_not_panic() {
        let whole = table();
        for len in 0..whole.len() {
            let _ = lookup(&whole[..len], KERNEL_BASE + 0x310);
        }
        assert_eq!(lookup(&[0; 64], KERNEL_BASE), None);
        let mut wild = whole.clone();
        wild[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let _ = lookup(&wild, KERNEL_BASE + 0x310);
        assert_eq!(lookup(&encode(Vec::new()), KERNEL_BASE), None);
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let table = encode(alloc::vec![(0, "ä".repeat(200))]);
        assert_eq!(lookup(&table, KERNEL_BASE), Some(("ä".repeat(127).as_str(), 0)));
    }
}
