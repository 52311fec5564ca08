//! Mapping one ELF file: its segments by file mappings, the rest of the last file page zeroed, bss
//! anonymous.
use alloc::{sync::Arc, vec::Vec};

use fs::OpenFile;
use logic::elf::{self as format, HEADER_BYTES, Header, Kind, Layout, Segment};
use rt::{
    rt,
    space::{FileMapping, MapRequest, Placement, ProgramId, Prot, SpaceError},
};

use super::{read_exactly, read_fully};
use crate::errno::{ENOEXEC, ENOMEM, SysResult};

const PAGE: u64 = 4096;

/// One mapped ELF file. Addresses are final.
pub struct Loaded {
    /// What was added to the link-time addresses (AT_BASE of an interpreter).
    pub bias: u64,
    pub entry: u64,
    pub program_headers: u64,
    pub program_header_count: u16,
    /// End of the last segment, page-aligned.
    pub end: u64,
    pub interpreter: Option<Vec<u8>>,
    pub exec_stack: bool,
    pub code: (u64, u64),
    pub data: (u64, u64),
}

pub fn read_layout(file: &OpenFile) -> SysResult<(Header, Layout)> {
    let mut head = [0u8; HEADER_BYTES];
    let len = read_fully(file, 0, &mut head)?;
    let header = format::parse_header(&head[..len])?;
    let table = read_exactly(file, header.program_headers_offset, header.table_bytes()).map_err(|_| ENOEXEC)?;
    let layout = format::parse_layout(&header, &table)?;
    Ok((header, layout))
}

/// Maps the file: a relocatable one at `placement` (aligned as it asks), a fixed one where it says.
pub fn map_elf(owner: ProgramId, file: &Arc<OpenFile>, placement: Placement) -> SysResult<Loaded> {
    let (header, layout) = read_layout(file)?;
    let pager = file.pager().ok_or(ENOEXEC)?;
    let (bias, place): (u64, fn(u64) -> Placement) = match header.kind {
        Kind::Relocatable => (reserve(owner, &layout, placement)?, Placement::Fixed),
        Kind::Fixed => (0, Placement::FixedNoReplace),
    };
    for segment in &layout.segments {
        let file = |first_page| FileMapping { pager: pager.clone(), first_page };
        map_segment(owner, segment, bias, place, file)?;
    }
    let interpreter = match layout.interpreter {
        None => None,
        Some((offset, len)) => {
            let mut path = read_exactly(file, offset, len).map_err(|_| ENOEXEC)?;
            if path.pop() != Some(0) {
                return Err(ENOEXEC);
            }
            Some(path)
        }
    };
    let span = |wanted: fn(&Segment) -> bool| {
        let of_kind = || layout.segments.iter().filter(|s| wanted(s));
        let start = of_kind().map(|s| s.address).min().unwrap_or(0);
        let end = of_kind().map(|s| s.address + s.mem_len).max().unwrap_or(0);
        (start.wrapping_add(bias), end.wrapping_add(bias))
    };
    Ok(Loaded {
        bias,
        entry: header.entry.wrapping_add(bias),
        program_headers: layout.program_headers_address.map_or(0, |at| at.wrapping_add(bias)),
        program_header_count: header.program_header_count,
        end: layout.end().wrapping_add(bias),
        interpreter,
        exec_stack: layout.exec_stack,
        code: span(|s| s.exec),
        data: span(|s| s.write),
    })
}

/// Takes the addresses of all segments at once, so that no other program's mapping comes in between; the
/// segments then replace parts of it. The result is what they are moved by.
fn reserve(owner: ProgramId, layout: &Layout, placement: Placement) -> SysResult<u64> {
    let space = rt().address_space();
    let lowest = layout.start() & !(layout.align - 1);
    let len = layout.end() - lowest;
    // Larger alignments than a page's need room to move in.
    let slack = layout.align - PAGE;
    let request = MapRequest {
        placement,
        len: len.checked_add(slack).ok_or(ENOMEM)?,
        prot: Prot::empty(),
        file: None,
        shared: false,
        read_only: false,
        no_reserve: true,
        stack: false,
        label: None,
    };
    let start = space.map(owner, request)?;
    let base = start.next_multiple_of(layout.align);
    for (from, to) in [(start, base + (layout.start() - lowest)), (base + len, start + len + slack)] {
        if from < to {
            space.unmap(owner, from, to - from)?;
        }
    }
    Ok(base.wrapping_sub(lowest))
}

fn map_segment(
    owner: ProgramId,
    segment: &Segment,
    bias: u64,
    place: fn(u64) -> Placement,
    mapping: impl Fn(u64) -> FileMapping,
) -> SysResult<()> {
    let start = segment.page_start().wrapping_add(bias);
    let file_end = segment.file_page_end().wrapping_add(bias);
    let end = segment.page_end().wrapping_add(bias);
    let mut prot = Prot::empty();
    prot.set(Prot::READ, segment.read || segment.write || segment.exec);
    prot.set(Prot::WRITE, segment.write);
    prot.set(Prot::EXEC, segment.exec);
    if prot.contains(Prot::WRITE | Prot::EXEC) {
        // No segment is writable and executable at once (docs/ring0.md).
        log::warn!("ELF segment at {start:#x} asks to be writable and executable: refused");
        return Err(ENOEXEC);
    }
    if file_end > start {
        let file = mapping((segment.file_offset & !(PAGE - 1)) / PAGE);
        map_at(owner, place(start), file_end - start, prot, Some(file))?;
    }
    // Where the file's bytes end within a page, the rest of that page is bss.
    let bytes_end = segment.address.wrapping_add(bias) + segment.file_len;
    if segment.write && segment.file_len < segment.mem_len && bytes_end < file_end {
        rt().user().zero(bytes_end, (file_end - bytes_end) as usize)?;
    }
    if end > file_end {
        map_at(owner, place(file_end), end - file_end, prot, None)?;
    }
    Ok(())
}

fn map_at(owner: ProgramId, placement: Placement, len: u64, prot: Prot, file: Option<FileMapping>) -> SysResult<()> {
    let request = MapRequest {
        placement,
        len,
        prot,
        file,
        shared: false,
        read_only: false,
        no_reserve: false,
        stack: false,
        label: None,
    };
    match rt().address_space().map(owner, request) {
        Ok(_) => Ok(()),
        Err(SpaceError::Exists) => {
            log::error!("cannot load the program: {placement:x?}, {len:#x} bytes, is in use by another");
            Err(ENOMEM)
        }
        Err(error) => Err(error.into()),
    }
}
