//! Memory calls: translation between Linux' flags and [`rt::space::AddressSpace`], and the heap end.
//!
//! The address space decides; here flags are checked and errors mapped as mmap(2), mprotect(2),
//! madvise(2) and mremap(2) list them.
use alloc::vec::Vec;

use rt::{
    rt,
    space::{FileMapping, MapRequest, Placement, ProgramId, Prot, SpaceError},
};

use crate::{
    args::{
        Addr, Fd,
        flags::{self, MapFlags, MlockallFlags, MsyncFlags, RemapFlags},
        names::{Advice, MembarrierCmd},
    },
    call::Ctx,
    errno::{EACCES, EBADF, EFAULT, EINVAL, EIO, ENODEV, ENOMEM, EOPNOTSUPP, EOVERFLOW, EPERM, Errno, SysResult},
    files,
};

const PAGE: u64 = 4096;
/// First address beyond the application half.
pub const SPACE_END: u64 = 0x7fff_ffff_f000;
/// Lowest address of a mapping (vm.mmap_min_addr).
pub const MMAP_MIN_ADDR: u64 = 65536;

/// The heap end. Guarded by `Program::brk`.
#[derive(Default)]
pub struct Brk {
    /// Page-aligned start, as the loader chose it.
    pub start: u64,
    pub current: u64,
}

/// Rounds up to whole pages; None if that is beyond any address.
fn page_len(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE).filter(|len| *len <= SPACE_END)
}

pub fn protection(prot: flags::Prot) -> Prot {
    let mut out = Prot::empty();
    if prot.has(flags::Prot::READ) {
        out |= Prot::READ;
    }
    // x86 has no write-only pages.
    if prot.has(flags::Prot::WRITE) {
        out |= Prot::READ | Prot::WRITE;
    }
    if prot.has(flags::Prot::EXEC) {
        out |= Prot::READ | Prot::EXEC;
    }
    out
}

/// mmap(2).
pub fn mmap(
    cx: &mut Ctx<'_>,
    at: Addr,
    len: u64,
    prot: flags::Prot,
    flags: MapFlags,
    fd: Fd,
    offset: u64,
) -> SysResult {
    if len == 0 || !offset.is_multiple_of(PAGE) {
        return Err(EINVAL);
    }
    let len = page_len(len).ok_or(ENOMEM)?;
    let shared = match flags.0 & MapFlags::SHARED_VALIDATE {
        MapFlags::PRIVATE => false,
        MapFlags::SHARED => true,
        MapFlags::SHARED_VALIDATE if flags.has(MapFlags::SYNC) => return Err(EOPNOTSUPP),
        MapFlags::SHARED_VALIDATE => true,
        _ => return Err(EINVAL),
    };
    if flags.has(MapFlags::HUGETLB) {
        // No page of the hugetlb pool: what Linux says when none is configured.
        return Err(ENOMEM);
    }
    let placement = placement(at, flags)?;
    let (file, read_only) = if flags.has(MapFlags::ANONYMOUS) {
        (shared.then(|| shared_anonymous(len)).transpose()?, false)
    } else {
        offset.checked_add(len).ok_or(EOVERFLOW)?;
        let (file, writable) = file_mapping(cx, fd, prot, shared, offset)?;
        (Some(file), shared && !writable)
    };
    let code = file.as_ref().filter(|_| prot.has(flags::Prot::EXEC) && log::log_enabled!(log::Level::Debug));
    let code = code.map(|file| file.pager.path());
    let request = MapRequest {
        placement,
        len,
        prot: protection(prot),
        file,
        shared,
        read_only,
        no_reserve: flags.has(MapFlags::NORESERVE) || prot.0 & 7 == 0,
        stack: flags.has(MapFlags::STACK) || flags.has(MapFlags::GROWSDOWN),
        label: None,
    };
    let owner = cx.program().owner;
    let space = rt().address_space();
    let start = space.map(owner, request)?;
    if let Some(path) = code {
        // Right where a segment's address is its place in the file, as linkers lay out code.
        log::debug!("{path}: loaded at offset {:#x}", start.wrapping_sub(offset));
    }
    if (flags.has(MapFlags::POPULATE) && !flags.has(MapFlags::NONBLOCK)) || flags.has(MapFlags::LOCKED) {
        // Populating is a hint: its failure is no failure of mmap (mmap(2)).
        let _ = space.populate(owner, start, len, prot.has(flags::Prot::WRITE) && !shared);
    }
    Ok(start)
}

fn placement(at: Addr, flags: MapFlags) -> SysResult<Placement> {
    if flags.has(MapFlags::FIXED) || flags.has(MapFlags::FIXED_NOREPLACE) {
        if !at.0.is_multiple_of(PAGE) {
            return Err(EINVAL);
        }
        if at.0 >= SPACE_END {
            return Err(ENOMEM);
        }
        if at.0 < MMAP_MIN_ADDR {
            return Err(EPERM);
        }
        return Ok(match flags.has(MapFlags::FIXED_NOREPLACE) {
            true => Placement::FixedNoReplace(at.0),
            false => Placement::Fixed(at.0),
        });
    }
    let hint = at.0 & !(PAGE - 1);
    Ok(match (flags.has(MapFlags::BIT32), hint) {
        (true, _) => Placement::Low,
        (false, 0) => Placement::Anywhere,
        (false, hint) => Placement::Hint(hint.max(MMAP_MIN_ADDR)),
    })
}

/// What to map, and whether the file is open for writing.
fn file_mapping(cx: &Ctx<'_>, fd: Fd, prot: flags::Prot, shared: bool, offset: u64) -> SysResult<(FileMapping, bool)> {
    let file = files::get(cx, fd)?;
    let flags = file.flags();
    if flags.contains(fs::OpenFlags::PATH) {
        return Err(EBADF);
    }
    if !flags.reads() || (shared && prot.has(flags::Prot::WRITE) && !flags.writes()) {
        return Err(EACCES);
    }
    let pager = file.pager().ok_or(ENODEV)?;
    if shared && flags.writes() && !file.ops().allows_shared_writes() {
        return Err(EINVAL);
    }
    Ok((FileMapping { pager, first_page: offset / PAGE }, flags.writes()))
}

/// Shared anonymous memory is an unnamed file of memory that nobody else can open.
fn shared_anonymous(len: u64) -> SysResult<FileMapping> {
    let file = files::memory::unnamed(b"anonymous", len)?;
    Ok(FileMapping { pager: file.pager().ok_or(ENODEV)?, first_page: 0 })
}

/// munmap(2).
pub fn munmap(cx: &mut Ctx<'_>, at: Addr, len: u64) -> SysResult {
    if !at.0.is_multiple_of(PAGE) || len == 0 {
        return Err(EINVAL);
    }
    let len = page_len(len).filter(|len| at.0.checked_add(*len).is_some_and(|end| end <= SPACE_END)).ok_or(EINVAL)?;
    let owner = cx.program().owner;
    // A hole makes two mappings of one, without which memory can always be given back (munmap(2)).
    if rt().draw_budget().is_err() && makes_hole(owner, at.0, at.0 + len) {
        return Err(ENOMEM);
    }
    rt().address_space().unmap(owner, at.0, len)?;
    Ok(0)
}

fn makes_hole(owner: ProgramId, start: u64, end: u64) -> bool {
    let mut inside = false;
    rt().address_space().regions(owner, &mut |region| inside |= region.start < start && end < region.end);
    inside
}

/// A range of mprotect, madvise and their like: aligned start, length rounded up, inside the half.
fn range(at: Addr, len: u64, beyond: Errno) -> SysResult<(u64, u64)> {
    if !at.0.is_multiple_of(PAGE) {
        return Err(EINVAL);
    }
    let len = page_len(len).ok_or(beyond)?;
    at.0.checked_add(len).filter(|end| *end <= SPACE_END).ok_or(beyond)?;
    Ok((at.0, len))
}

/// mprotect(2).
pub fn mprotect(cx: &mut Ctx<'_>, at: Addr, len: u64, prot: flags::Prot) -> SysResult {
    if prot.0 & !flags::Prot::KNOWN & !8 != 0 || prot.has(flags::Prot::GROWSDOWN | flags::Prot::GROWSUP) {
        return Err(EINVAL);
    }
    let (start, len) = range(at, len, ENOMEM)?;
    if len == 0 {
        return Ok(0);
    }
    rt().address_space().protect(cx.program().owner, start, len, protection(prot))?;
    Ok(0)
}

/// mremap(2).
pub fn mremap(cx: &mut Ctx<'_>, old: Addr, old_len: u64, new_len: u64, flags: RemapFlags, new: Addr) -> SysResult {
    let unknown = flags.0 & !RemapFlags::KNOWN != 0;
    let fixed = flags.has(RemapFlags::FIXED);
    let moves = flags.has(RemapFlags::MAYMOVE);
    if unknown
        || !old.0.is_multiple_of(PAGE)
        || new_len == 0
        || (fixed && !moves)
        || (fixed && !new.0.is_multiple_of(PAGE))
    {
        return Err(EINVAL);
    }
    if flags.has(RemapFlags::DONTUNMAP) {
        return Err(EINVAL);
    }
    if fixed && new.0 < MMAP_MIN_ADDR {
        return Err(EPERM);
    }
    let old_len = page_len(old_len).ok_or(EINVAL)?;
    let new_len = page_len(new_len).ok_or(ENOMEM)?;
    if old_len == 0 {
        // Duplicating a shared mapping; Linux refuses it for private ones.
        return Err(EINVAL);
    }
    let result = rt().address_space().remap(cx.program().owner, old.0, old_len, new_len, moves, fixed.then_some(new.0));
    result.map_err(|error| if error == SpaceError::NotMapped { EFAULT } else { error.into() })
}

/// madvise(2).
pub fn madvise(cx: &mut Ctx<'_>, at: Addr, len: u64, advice: Advice) -> SysResult {
    let (start, len) = range(at, len, EINVAL)?;
    let owner = cx.program().owner;
    let space = rt().address_space();
    if advice.name().is_none() {
        return Err(EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    // What is kept of a part of a mapping makes several of one.
    if matches!(advice.0, Advice::HUGEPAGE | Advice::NOHUGEPAGE) {
        rt().draw_budget()?;
    }
    match advice.0 {
        // Deviation: MADV_FREE gives the pages back at once, which it may at any time.
        Advice::DONTNEED | Advice::FREE => space.discard(owner, start, len)?,
        Advice::POPULATE_READ => space.populate(owner, start, len, false).map_err(populate_error)?,
        Advice::POPULATE_WRITE => space.populate(owner, start, len, true).map_err(populate_error)?,
        Advice::HUGEPAGE => space.advise_huge(owner, start, len, true)?,
        Advice::NOHUGEPAGE => space.advise_huge(owner, start, len, false)?,
        // Needs hole punching through the mapping.
        Advice::REMOVE => return Err(EINVAL),
        // Pages become huge when they are first touched, never later.
        Advice::COLLAPSE => return Err(EINVAL),
        // Hints without an effect on what programs can see; fork does not exist.
        _ => require_mapped(owner, start, len)?,
    }
    Ok(0)
}

fn populate_error(error: SpaceError) -> Errno {
    match error {
        SpaceError::NotMapped => ENOMEM,
        SpaceError::NoMemory => ENOMEM,
        _ => EFAULT,
    }
}

/// brk(2), the raw call: gives the heap end, moved if that was possible.
pub fn brk(cx: &mut Ctx<'_>, wanted: Addr) -> SysResult {
    let program = cx.program();
    let mut brk = program.brk.lock();
    if wanted.0 < brk.start || wanted.0 >= SPACE_END {
        return Ok(brk.current);
    }
    let (old_end, new_end) = (brk.current.next_multiple_of(PAGE), wanted.0.next_multiple_of(PAGE));
    let space = rt().address_space();
    let done = if new_end > old_end {
        space.map(program.owner, heap_request(old_end, new_end - old_end)).map(|_| ())
    } else if new_end < old_end {
        space.unmap(program.owner, new_end, old_end - new_end)
    } else {
        Ok(())
    };
    if done.is_ok() {
        brk.current = wanted.0;
    }
    Ok(brk.current)
}

fn heap_request(start: u64, len: u64) -> MapRequest {
    MapRequest {
        placement: Placement::FixedNoReplace(start),
        len,
        prot: Prot::READ | Prot::WRITE,
        file: None,
        shared: false,
        read_only: false,
        no_reserve: false,
        stack: false,
        label: Some("[heap]"),
    }
}

/// mincore(2).
pub fn mincore(cx: &mut Ctx<'_>, at: Addr, len: u64, out: Addr) -> SysResult {
    const PIECE: usize = 256;
    let (start, len) = range(at, len, ENOMEM)?;
    let pages = (len / PAGE) as usize;
    let mut done = 0;
    while done < pages {
        let now = (pages - done).min(PIECE);
        let mut resident = [false; PIECE];
        let from = start + done as u64 * PAGE;
        rt().address_space().resident(cx.program().owner, from, now as u64 * PAGE, &mut resident[..now])?;
        let bytes = resident.map(u8::from);
        Addr(out.0 + done as u64).write(&bytes[..now])?;
        done += now;
    }
    Ok(0)
}

/// msync(2). Mapped pages *are* the file's cache pages, so there is nothing to copy; MS_SYNC puts those
/// of shared mappings on their medium, MS_ASYNC leaves that to writeback, as on Linux.
pub fn msync(cx: &mut Ctx<'_>, at: Addr, len: u64, flags: MsyncFlags) -> SysResult {
    let both = MsyncFlags::ASYNC | MsyncFlags::SYNC;
    if flags.0 & !MsyncFlags::KNOWN != 0 || flags.has(both) {
        return Err(EINVAL);
    }
    let (start, len) = range(at, len, ENOMEM)?;
    let owner = cx.program().owner;
    require_mapped(owner, start, len)?;
    if flags.has(MsyncFlags::SYNC) {
        for (file, pages) in shared_files(owner, start, start + len) {
            file.pager.sync(file.first_page..file.first_page + pages).map_err(|_| EIO)?;
        }
    }
    Ok(0)
}

/// What shared mappings show in the range: from which page of the file on, and how many.
fn shared_files(owner: ProgramId, start: u64, end: u64) -> Vec<(FileMapping, u64)> {
    let mut files = Vec::new();
    rt().address_space().regions(owner, &mut |region| {
        let (from, to) = (region.start.max(start), region.end.min(end));
        if let Some(file) = region.file.as_ref().filter(|_| region.shared && from < to) {
            let first_page = file.first_page + (from - region.start) / PAGE;
            files.push((FileMapping { first_page, ..file.clone() }, (to - from) / PAGE));
        }
    });
    files
}

fn require_mapped(owner: ProgramId, start: u64, len: u64) -> SysResult<()> {
    let mut covered = start;
    rt().address_space().regions(owner, &mut |region| {
        if region.start <= covered && covered < region.end {
            covered = region.end;
        }
    });
    if start.checked_add(len).is_some_and(|end| covered >= end) { Ok(()) } else { Err(ENOMEM) }
}

/// The pages of mlock and munlock. Like Linux' own rounding, this wraps: a length that comes to nothing is
/// no error.
fn lock_range(at: Addr, len: u64) -> SysResult<(u64, u64)> {
    let start = at.0 & !(PAGE - 1);
    let len = len.wrapping_add(at.0 - start).wrapping_add(PAGE - 1) & !(PAGE - 1);
    start.checked_add(len).ok_or(EINVAL)?;
    Ok((start, len))
}

/// mlock(2): memory is never paged out here, so locking is faulting in.
pub fn mlock(cx: &mut Ctx<'_>, at: Addr, len: u64) -> SysResult {
    let (start, len) = lock_range(at, len)?;
    if start + len > SPACE_END {
        return Err(ENOMEM);
    }
    if len > 0 {
        rt().address_space().populate(cx.program().owner, start, len, false).map_err(|_| ENOMEM)?;
    }
    Ok(0)
}

/// mlock2(2).
pub fn mlock2(cx: &mut Ctx<'_>, at: Addr, len: u64, flags: u32) -> SysResult {
    match flags {
        0 => mlock(cx, at, len),
        // MLOCK_ONFAULT
        1 => munlock(cx, at, len),
        _ => Err(EINVAL),
    }
}

/// munlock(2).
pub fn munlock(cx: &mut Ctx<'_>, at: Addr, len: u64) -> SysResult {
    let (start, len) = lock_range(at, len)?;
    require_mapped(cx.program().owner, start, len)?;
    Ok(0)
}

/// mlockall(2): as nothing is paged out, what is there stays; MCL_FUTURE changes nothing.
pub fn mlockall(_cx: &mut Ctx<'_>, flags: MlockallFlags) -> SysResult {
    if flags.0 == 0 || flags.0 & !MlockallFlags::KNOWN != 0 || flags.0 == MlockallFlags::ONFAULT {
        return Err(EINVAL);
    }
    Ok(0)
}

/// munlockall(2).
pub fn munlockall(_cx: &mut Ctx<'_>) -> SysResult {
    Ok(0)
}

/// membarrier(2). Nothing is registered: no command is offered, and QUERY says so.
pub fn membarrier(_cx: &mut Ctx<'_>, command: MembarrierCmd, flags: u32, _cpu: i32) -> SysResult {
    match (command.0, flags) {
        (MembarrierCmd::QUERY, 0) => Ok(0),
        _ => Err(EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_addresses_are_checked() {
        let fixed = MapFlags(MapFlags::FIXED);
        assert_eq!(placement(Addr(0x1001), fixed).unwrap_err(), EINVAL);
        assert_eq!(placement(Addr(0x1000), fixed).unwrap_err(), EPERM);
        assert_eq!(placement(Addr(SPACE_END), fixed).unwrap_err(), ENOMEM);
        assert_eq!(placement(Addr(0x10000), fixed), Ok(Placement::Fixed(0x10000)));
    }

    #[test]
    fn hints_are_rounded_and_kept_off_page_zero() {
        assert_eq!(placement(Addr(0), MapFlags(0)), Ok(Placement::Anywhere));
        assert_eq!(placement(Addr(0x1234), MapFlags(0)), Ok(Placement::Hint(MMAP_MIN_ADDR)));
        assert_eq!(placement(Addr(0x5678_9abc), MapFlags(0)), Ok(Placement::Hint(0x5678_9000)));
        assert_eq!(placement(Addr(0), MapFlags(MapFlags::BIT32)), Ok(Placement::Low));
    }

    #[test]
    fn lengths_round_up_and_do_not_wrap() {
        assert_eq!(page_len(1), Some(PAGE));
        assert_eq!(page_len(u64::MAX), None);
    }
}
