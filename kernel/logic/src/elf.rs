//! ELF parsing: header and program headers of an x86-64 executable, checked before anything is mapped.
//!
//! Pure, and safe on any input: every sum is checked, and what the loader gets back can be mapped
//! without a further look. Sources: System V ABI (gABI 4.1, chapter 5), AMD64 supplement, elf(5).
//!
//! # Invariants
//! In a [`Layout`], segments are in address order, do not overlap, lie in the lower half, and each
//! has `file_len <= mem_len` and a file offset that is congruent to its address modulo the page.
use alloc::vec::Vec;

const PAGE: u64 = 4096;
/// End of the application half of the address space (47 bits), without its last page.
const USER_END: u64 = 0x7fff_ffff_f000;

pub const HEADER_BYTES: usize = 64;
pub const PROGRAM_HEADER_BYTES: usize = 56;
/// As many as Linux reads: 64 KiB of program headers.
const MAX_PROGRAM_HEADERS: u16 = (65536 / PROGRAM_HEADER_BYTES) as u16;

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not ELF at all: another loader (a script) may know it.
    NotElf,
    /// ELF of another class, byte order, machine or kind.
    Foreign,
    /// Cut short, or its numbers contradict each other.
    Corrupt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ET_EXEC: mapped where it says.
    Fixed,
    /// ET_DYN: a position-independent program or an interpreter.
    Relocatable,
}

/// What the first 64 bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub entry: u64,
    pub program_headers_offset: u64,
    pub program_header_count: u16,
}

impl Header {
    /// Bytes of the program-header table.
    pub fn table_bytes(&self) -> usize {
        self.program_header_count as usize * PROGRAM_HEADER_BYTES
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub mem_len: u64,
    pub file_offset: u64,
    pub file_len: u64,
    pub read: bool,
    pub write: bool,
    pub exec: bool,
}

impl Segment {
    /// First page of the segment.
    pub fn page_start(&self) -> u64 {
        self.address & !(PAGE - 1)
    }

    /// End of the last page.
    pub fn page_end(&self) -> u64 {
        (self.address + self.mem_len).next_multiple_of(PAGE)
    }

    /// End of the last page that has bytes of the file.
    pub fn file_page_end(&self) -> u64 {
        if self.file_len == 0 { self.page_start() } else { (self.address + self.file_len).next_multiple_of(PAGE) }
    }
}

/// What has to be mapped, and what the auxiliary vector needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub segments: Vec<Segment>,
    /// File offset and length of the interpreter's path, its NUL included.
    pub interpreter: Option<(u64, usize)>,
    /// Link-time address of the program headers, if a segment holds them (AT_PHDR).
    pub program_headers_address: Option<u64>,
    /// PT_GNU_STACK asks for an executable stack.
    pub exec_stack: bool,
    /// Largest p_align of the segments, at least a page.
    pub align: u64,
}

impl Layout {
    /// First mapped page, at link-time addresses.
    pub fn start(&self) -> u64 {
        self.segments[0].page_start()
    }

    /// End of the last mapped page.
    pub fn end(&self) -> u64 {
        self.segments[self.segments.len() - 1].page_end()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Reads the ELF header from a file's first bytes.
pub fn parse_header(bytes: &[u8]) -> Result<Header, ElfError> {
    if bytes.len() < 4 || bytes[..4] != *b"\x7fELF" {
        return Err(ElfError::NotElf);
    }
    if bytes.len() < HEADER_BYTES {
        return Err(ElfError::Corrupt);
    }
    // ELFCLASS64, ELFDATA2LSB, EM_X86_64.
    if bytes[4] != 2 || bytes[5] != 1 || u16_at(bytes, 18) != 62 {
        return Err(ElfError::Foreign);
    }
    let kind = match u16_at(bytes, 16) {
        2 => Kind::Fixed,
        3 => Kind::Relocatable,
        _ => return Err(ElfError::Foreign),
    };
    let count = u16_at(bytes, 56);
    if u16_at(bytes, 54) as usize != PROGRAM_HEADER_BYTES || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(ElfError::Corrupt);
    }
    Ok(Header {
        kind,
        entry: u64_at(bytes, 24),
        program_headers_offset: u64_at(bytes, 32),
        program_header_count: count,
    })
}

/// Reads the program headers; `table` holds [`Header::table_bytes`] bytes from
/// [`Header::program_headers_offset`] on.
pub fn parse_layout(header: &Header, table: &[u8]) -> Result<Layout, ElfError> {
    if table.len() < header.table_bytes() {
        return Err(ElfError::Corrupt);
    }
    let mut layout = Layout {
        segments: Vec::new(),
        interpreter: None,
        program_headers_address: None,
        exec_stack: false,
        align: PAGE,
    };
    for entry in table[..header.table_bytes()].chunks_exact(PROGRAM_HEADER_BYTES) {
        match u32_at(entry, 0) {
            PT_LOAD => add_segment(&mut layout, entry)?,
            PT_INTERP => {
                let len = u64_at(entry, 32);
                // elf(5) gives no bound; Linux takes 2 to PATH_MAX.
                if !(2..=4096).contains(&len) {
                    return Err(ElfError::Corrupt);
                }
                layout.interpreter = Some((u64_at(entry, 8), len as usize));
            }
            PT_PHDR => layout.program_headers_address = Some(u64_at(entry, 16)),
            PT_GNU_STACK => layout.exec_stack = u32_at(entry, 4) & 1 != 0,
            _ => {}
        }
    }
    if layout.segments.is_empty() {
        return Err(ElfError::Corrupt);
    }
    if layout.program_headers_address.is_none() {
        layout.program_headers_address = headers_within(&layout, header);
    }
    Ok(layout)
}

fn add_segment(layout: &mut Layout, entry: &[u8]) -> Result<(), ElfError> {
    let flags = u32_at(entry, 4);
    let segment = Segment {
        file_offset: u64_at(entry, 8),
        address: u64_at(entry, 16),
        file_len: u64_at(entry, 32),
        mem_len: u64_at(entry, 40),
        read: flags & 4 != 0,
        write: flags & 2 != 0,
        exec: flags & 1 != 0,
    };
    if segment.mem_len == 0 {
        return Ok(());
    }
    let end = segment.address.checked_add(segment.mem_len).ok_or(ElfError::Corrupt)?;
    let file_end = segment.file_offset.checked_add(segment.file_len).ok_or(ElfError::Corrupt)?;
    let well_formed = end <= USER_END
        && file_end <= i64::MAX as u64
        && segment.file_len <= segment.mem_len
        && segment.file_offset % PAGE == segment.address % PAGE;
    // Ascending order is the gABI's demand; sharing a page would map one segment over the other.
    let in_order = layout.segments.last().is_none_or(|last| last.page_end() <= segment.page_start());
    if !well_formed || !in_order {
        return Err(ElfError::Corrupt);
    }
    let align = u64_at(entry, 48);
    if align.is_power_of_two() && align > layout.align && align <= 1 << 30 {
        layout.align = align;
    }
    layout.segments.push(segment);
    Ok(())
}

/// The address at which a segment holds the program headers, for programs without PT_PHDR.
fn headers_within(layout: &Layout, header: &Header) -> Option<u64> {
    let start = header.program_headers_offset;
    let end = start.checked_add(header.table_bytes() as u64)?;
    layout
        .segments
        .iter()
        .find(|s| s.file_offset <= start && end <= s.file_offset + s.file_len)
        .map(|s| s.address + (start - s.file_offset))
}

/// Interpreter and optional argument of a `#!` script, from its first bytes (execve(2)). None if it
/// is no script, or the line has no interpreter.
pub fn parse_script(bytes: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let line = bytes.strip_prefix(b"#!")?;
    let line = &line[..line.iter().position(|b| *b == b'\n').unwrap_or(line.len())];
    let line = line.trim_ascii();
    if line.is_empty() {
        return None;
    }
    match line.iter().position(|b| *b == b' ' || *b == b'\t') {
        None => Some((line, None)),
        Some(at) => Some((&line[..at], Some(line[at..].trim_ascii()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn read(path: &str) -> Option<Vec<u8>> {
        std::fs::read(path).ok()
    }

    fn parse(bytes: &[u8]) -> Result<(Header, Layout), ElfError> {
        let header = parse_header(bytes)?;
        let start = header.program_headers_offset as usize;
        let table = bytes.get(start..).unwrap_or(&[]);
        Ok((header, parse_layout(&header, table)?))
    }

    fn minimal() -> Vec<u8> {
        let mut bytes = vec![0u8; HEADER_BYTES + PROGRAM_HEADER_BYTES];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 2;
        bytes[18] = 62;
        bytes[24..32].copy_from_slice(&0x40_0078u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54] = 56;
        bytes[56] = 1;
        let entry = &mut bytes[64..];
        entry[0] = 1;
        entry[4] = 5;
        entry[16..24].copy_from_slice(&0x40_0000u64.to_le_bytes());
        entry[32..40].copy_from_slice(&0x80u64.to_le_bytes());
        entry[40..48].copy_from_slice(&0x80u64.to_le_bytes());
        entry[48..56].copy_from_slice(&0x1000u64.to_le_bytes());
        bytes
    }

    #[test]
    fn a_minimal_program_parses() {
        let (header, layout) = parse(&minimal()).unwrap();
        assert_eq!(header.kind, Kind::Fixed);
        assert_eq!(layout.start(), 0x40_0000);
        assert_eq!(layout.end(), 0x40_1000);
        assert_eq!(layout.program_headers_address, Some(0x40_0040));
    }

    #[test]
    fn the_hosts_programs_parse() {
        for path in ["/bin/true", "/bin/busybox", "/lib64/ld-linux-x86-64.so.2", "/bin/sh"] {
            let Some(bytes) = read(path) else { continue };
            let (header, layout) = parse(&bytes).unwrap_or_else(|e| panic!("{path}: {e:?}"));
            let entry = header.entry;
            assert!(layout.segments.iter().any(|s| s.exec && (s.address..s.address + s.mem_len).contains(&entry)));
            assert!(layout.segments.iter().all(|s| !(s.write && s.exec)));
        }
    }

    #[test]
    fn every_truncation_and_byte_flip_is_survived() {
        let good = read("/bin/true").unwrap_or_else(minimal);
        let good = &good[..good.len().min(1200)];
        for len in 0..good.len() {
            let _ = parse(&good[..len]);
        }
        let mut bytes = good.to_vec();
        for at in 0..bytes.len() {
            for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let old = core::mem::replace(&mut bytes[at], value);
                if let Ok((_, layout)) = parse(&bytes) {
                    assert!(layout.start() < layout.end() && layout.end() <= USER_END + PAGE);
                }
                bytes[at] = old;
            }
        }
    }

    #[test]
    fn wrong_kinds_have_their_error() {
        assert_eq!(parse(b"#!/bin/sh\n").unwrap_err(), ElfError::NotElf);
        assert_eq!(parse(b"\x7fELF").unwrap_err(), ElfError::Corrupt);
        let mut foreign = minimal();
        foreign[18] = 40;
        assert_eq!(parse(&foreign).unwrap_err(), ElfError::Foreign);
        let mut overlong = minimal();
        overlong[64 + 32..64 + 40].copy_from_slice(&0x90u64.to_le_bytes());
        assert_eq!(parse(&overlong).unwrap_err(), ElfError::Corrupt);
    }

    #[test]
    fn scripts_name_interpreter_and_argument() {
        assert_eq!(parse_script(b"#!/bin/sh\necho"), Some((&b"/bin/sh"[..], None)));
        assert_eq!(parse_script(b"#! /usr/bin/env  perl -w \n"), Some((&b"/usr/bin/env"[..], Some(&b"perl -w"[..]))));
        assert_eq!(parse_script(b"#!\n"), None);
        assert_eq!(parse_script(b"\x7fELF"), None);
    }
}
