//! A fake address space: mappings in a list, pages in a map, faulted in at the first copy.
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Mutex, MutexGuard},
};

use super::tasks::assert_may_sleep;
use crate::{
    page::{PAGE_SIZE, Page},
    space::{
        AddressSpace, FileMapping, Footprint, MapRequest, ObjectId, PagerError, Placement, ProgramId, Prot, Region,
        SpaceError,
    },
    user::{BadAddress, UserMemory},
};

const PAGE: u64 = PAGE_SIZE as u64;
/// Where `Placement::Anywhere` begins to look.
const MAP_AREA: u64 = 0x7000_0000_0000;
const LOWEST: u64 = 64 * 1024;
const END: u64 = 1 << 47;

/// Application memory that only test code touches.
#[derive(Default)]
pub struct HostSpace {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Ascending, without overlap.
    mappings: Vec<Mapping>,
    /// By page address; the flag allows writing without another fault.
    pages: HashMap<u64, (Page, bool)>,
}

#[derive(Clone)]
struct Mapping {
    owner: ProgramId,
    start: u64,
    end: u64,
    prot: Prot,
    shared: bool,
    file: Option<FileMapping>,
    label: Option<&'static str>,
    no_reserve: bool,
}

impl Mapping {
    /// The part of the mapping in [start, end).
    fn part(&self, start: u64, end: u64) -> Self {
        let (start, end) = (start.max(self.start), end.min(self.end));
        let file = self
            .file
            .clone()
            .map(|file| FileMapping { first_page: file.first_page + (start - self.start) / PAGE, ..file });
        Self { start, end, file, ..self.clone() }
    }
}

impl Inner {
    fn is_free(&self, start: u64, end: u64) -> bool {
        start >= LOWEST && end <= END && !self.mappings.iter().any(|m| m.start < end && start < m.end)
    }

    fn find_free(&self, from: u64, len: u64) -> Option<u64> {
        let ends = self.mappings.iter().map(|m| m.end).filter(|&end| end >= from);
        std::iter::once(from).chain(ends).find(|&start| self.is_free(start, start + len))
    }

    /// Takes the range out of the list; the parts that were in it are the result. Pages stay.
    fn cut(&mut self, start: u64, end: u64) -> Vec<Mapping> {
        let mut taken = Vec::new();
        let old = std::mem::take(&mut self.mappings);
        for mapping in old {
            if mapping.end <= start || end <= mapping.start {
                self.mappings.push(mapping);
                continue;
            }
            if mapping.start < start {
                self.mappings.push(mapping.part(mapping.start, start));
            }
            taken.push(mapping.part(start, end));
            if end < mapping.end {
                self.mappings.push(mapping.part(end, mapping.end));
            }
        }
        taken
    }

    fn put(&mut self, mapping: Mapping) {
        let at = self.mappings.partition_point(|m| m.start < mapping.start);
        self.mappings.insert(at, mapping);
    }

    fn drop_pages(&mut self, start: u64, end: u64) -> Vec<(Page, bool)> {
        self.pages.extract_if(|&at, _| start <= at && at < end).map(|(_, page)| page).collect()
    }

    /// (page of the file, address) of what mappings show of these pages of an object and is in memory.
    /// Private copies only if `copies`.
    fn showing(&self, object: ObjectId, pages: Range<u64>, copies: bool) -> Vec<(u64, u64)> {
        let is_there =
            |shared: bool, at: &u64| self.pages.get(at).is_some_and(|(_, writable)| copies || shared || !writable);
        let mut found = Vec::new();
        for mapping in &self.mappings {
            let Some(file) = mapping.file.as_ref().filter(|file| file.pager.object() == object) else { continue };
            let addresses = (mapping.start..mapping.end).step_by(PAGE_SIZE);
            let shown = (file.first_page..).zip(addresses);
            found.extend(shown.filter(|(index, at)| pages.contains(index) && is_there(mapping.shared, at)));
        }
        found
    }

    fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for mapping in &self.mappings {
            if mapping.start <= at && at < mapping.end {
                at = mapping.end;
            }
        }
        at >= end
    }

    fn others(&self, owner: ProgramId, start: u64, end: u64) -> bool {
        self.mappings.iter().any(|m| m.owner != owner && m.start < end && start < m.end)
    }
}

fn check_range(start: u64, len: u64) -> Result<u64, SpaceError> {
    let end = start.checked_add(len).ok_or(SpaceError::Invalid)?;
    if len == 0 || !(start | len).is_multiple_of(PAGE) || end > END { Err(SpaceError::Invalid) } else { Ok(end) }
}

impl HostSpace {
    /// Maps anonymous writable memory for a test and returns its address.
    pub fn map_anonymous(&self, len: u64) -> u64 {
        let request = MapRequest {
            placement: Placement::Anywhere,
            len: len.next_multiple_of(PAGE),
            prot: Prot::READ | Prot::WRITE,
            file: None,
            shared: false,
            read_only: false,
            no_reserve: false,
            stack: false,
            label: None,
        };
        self.map(ProgramId(1), request).expect("the fake address space is large")
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The page at an address, faulted in.
    fn fault(&self, address: u64, write: bool) -> Result<Page, SpaceError> {
        assert_may_sleep();
        let base = address & !(PAGE - 1);
        let mapping = {
            let inner = self.inner();
            let mapping = inner.mappings.iter().find(|m| m.start <= address && address < m.end);
            let mapping = mapping.ok_or(SpaceError::NotMapped)?.clone();
            if !mapping.prot.contains(if write { Prot::WRITE } else { Prot::READ }) {
                return Err(SpaceError::NotMapped);
            }
            if let Some((page, writable)) = inner.pages.get(&base)
                && (*writable || !write)
            {
                return Ok(page.clone());
            }
            mapping
        };
        // The pager may read a device: not under the lock.
        let index = mapping.file.as_ref().map_or(0, |file| file.first_page + (base - mapping.start) / PAGE);
        let original = match &mapping.file {
            None => Page::alloc_zeroed()?,
            Some(file) => file.pager.page(index, write && mapping.shared).map_err(|error| match error {
                PagerError::OutOfFrames => SpaceError::NoMemory,
                PagerError::BeyondEnd | PagerError::Io => SpaceError::NotMapped,
            })?,
        };
        let is_copied = mapping.file.is_some() && write && !mapping.shared;
        let page = if is_copied { copy_of(&original)? } else { original.clone() };
        let mut inner = self.inner();
        if let Some(file) = &mapping.file
            && !file.pager.confirm(index, &original, write && mapping.shared)
        {
            drop(inner);
            return self.fault(address, write);
        }
        // Another thread may have been faster, which matters for anonymous pages.
        if let Some((other, writable)) = inner.pages.get(&base)
            && (*writable || !write)
        {
            return Ok(other.clone());
        }
        let replaced = inner.pages.insert(base, (page.clone(), write || mapping.file.is_none()));
        drop((inner, replaced));
        Ok(page)
    }

    fn each_page(
        &self,
        address: u64,
        len: usize,
        write: bool,
        mut each: impl FnMut(&Page, usize, std::ops::Range<usize>),
    ) -> Result<(), BadAddress> {
        let mut done = 0;
        while done < len {
            let at = address.checked_add(done as u64).ok_or(BadAddress)?;
            let offset = (at % PAGE) as usize;
            let now = (len - done).min(PAGE_SIZE - offset);
            loop {
                let page = self.fault(at, write).map_err(|_| BadAddress)?;
                // Under the lock, as a CPU's access is either before its right was taken away or faults.
                let inner = self.inner();
                if inner.pages.get(&(at - at % PAGE)).is_some_and(|entry| entry.0 == page && (entry.1 || !write)) {
                    each(&page, offset, done..done + now);
                    break;
                }
            }
            done += now;
        }
        Ok(())
    }
}

fn copy_of(page: &Page) -> Result<Page, SpaceError> {
    let mut bytes = [0; PAGE_SIZE];
    page.read(0, &mut bytes);
    let copy = Page::alloc()?;
    copy.write(0, &bytes);
    Ok(copy)
}

impl AddressSpace for HostSpace {
    fn map(&self, owner: ProgramId, request: MapRequest) -> Result<u64, SpaceError> {
        let len = request.len;
        let wanted = match request.placement {
            Placement::Fixed(at) | Placement::FixedNoReplace(at) => at,
            _ => LOWEST,
        };
        check_range(wanted, len)?;
        let mut inner = self.inner();
        let start = match request.placement {
            Placement::Fixed(at) if inner.others(owner, at, at + len) || at < LOWEST => None,
            Placement::Fixed(at) => Some(at),
            Placement::FixedNoReplace(at) if !inner.is_free(at, at + len) => return Err(SpaceError::Exists),
            Placement::FixedNoReplace(at) => Some(at),
            Placement::Hint(at) if at.is_multiple_of(PAGE) && inner.is_free(at, at.saturating_add(len)) => Some(at),
            Placement::Low => inner.find_free(LOWEST, len).filter(|at| at + len <= 1 << 31),
            Placement::Hint(_) | Placement::Anywhere => inner.find_free(MAP_AREA, len),
        };
        let start = start.ok_or(SpaceError::NoMemory)?;
        inner.cut(start, start + len);
        let gone = inner.drop_pages(start, start + len);
        let MapRequest { prot, file, shared, no_reserve, label, .. } = request;
        inner.put(Mapping { owner, start, end: start + len, prot, shared, file, label, no_reserve });
        drop((inner, gone));
        Ok(start)
    }

    fn unmap(&self, owner: ProgramId, start: u64, len: u64) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        let mut inner = self.inner();
        if inner.others(owner, start, end) {
            return Err(SpaceError::Invalid);
        }
        let cut = inner.cut(start, end);
        let gone = inner.drop_pages(start, end);
        drop((inner, gone, cut));
        Ok(())
    }

    fn protect(&self, owner: ProgramId, start: u64, len: u64, prot: Prot) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        let mut inner = self.inner();
        if inner.others(owner, start, end) || !inner.covers(start, end) {
            return Err(SpaceError::NotMapped);
        }
        for part in inner.cut(start, end) {
            inner.put(Mapping { prot, ..part });
        }
        Ok(())
    }

    fn discard(&self, _owner: ProgramId, start: u64, len: u64) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        let gone = self.inner().drop_pages(start, end);
        drop(gone);
        Ok(())
    }

    fn populate(&self, _owner: ProgramId, start: u64, len: u64, write: bool) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        (start..end).step_by(PAGE_SIZE).try_for_each(|at| self.fault(at, write).map(|_| ()))
    }

    /// In place only.
    fn remap(
        &self,
        owner: ProgramId,
        start: u64,
        old_len: u64,
        new_len: u64,
        _may_move: bool,
        _new_address: Option<u64>,
    ) -> Result<u64, SpaceError> {
        let old_end = check_range(start, old_len)?;
        let end = check_range(start, new_len)?;
        if end < old_end {
            self.unmap(owner, end, old_end - end)?;
        } else if end > old_end {
            let mut inner = self.inner();
            if !inner.is_free(old_end, end) {
                return Err(SpaceError::NoMemory);
            }
            let grown = inner.mappings.iter_mut().find(|m| m.owner == owner && m.end == old_end);
            grown.ok_or(SpaceError::NotMapped)?.end = end;
        }
        Ok(start)
    }

    fn resident(&self, _owner: ProgramId, start: u64, len: u64, out: &mut [bool]) -> Result<(), SpaceError> {
        let end = check_range(start, len)?;
        let inner = self.inner();
        if !inner.covers(start, end) {
            return Err(SpaceError::NotMapped);
        }
        for (at, out) in (start..end).step_by(PAGE_SIZE).zip(out) {
            *out = inner.pages.contains_key(&at);
        }
        Ok(())
    }

    fn regions(&self, owner: ProgramId, each: &mut dyn FnMut(&Region)) {
        for mapping in self.inner().mappings.iter().filter(|m| m.owner == owner) {
            let Mapping { start, end, prot, shared, file, label, no_reserve, .. } = mapping.clone();
            each(&Region { start, end, prot, shared, file, label, no_reserve, huge: None });
        }
    }

    fn footprint(&self, owner: ProgramId) -> Footprint {
        self.footprint_within(owner, 0, u64::MAX)
    }

    fn footprint_within(&self, owner: ProgramId, start: u64, end: u64) -> Footprint {
        let inner = self.inner();
        let own = || {
            let overlapping = inner.mappings.iter().filter(move |m| m.owner == owner && m.start < end && start < m.end);
            overlapping.map(move |m| (m.start.max(start), m.end.min(end)))
        };
        let resident = |at: &&u64| own().any(|(start, end)| start <= **at && **at < end);
        Footprint {
            mapped_bytes: own().map(|(start, end)| end - start).sum(),
            resident_bytes: inner.pages.keys().filter(resident).count() as u64 * PAGE,
            huge_bytes: 0,
        }
    }

    fn file_lost(&self, object: ObjectId, pages: Range<u64>, copies: bool) {
        let mut inner = self.inner();
        let gone = inner.showing(object, pages, copies);
        let pages: Vec<_> = gone.iter().filter_map(|(_, at)| inner.pages.remove(at)).collect();
        drop((inner, pages));
    }

    fn write_protect(&self, object: ObjectId, pages: Range<u64>) {
        let mut inner = self.inner();
        for (_, at) in inner.showing(object, pages, false) {
            if let Some((_, writable)) = inner.pages.get_mut(&at) {
                *writable = false;
            }
        }
    }

    /// There is no accessed bit: every page counts as unused.
    fn unmap_unused(&self, object: ObjectId, first: u64, pages: u64, _force: bool) -> u64 {
        let mut inner = self.inner();
        let mut taken = 0;
        let mut gone = Vec::new();
        for (index, at) in inner.showing(object, first..first + 64, false) {
            let bit = 1 << (index - first);
            if pages & bit != 0
                && let Some(page) = inner.pages.remove(&at)
            {
                taken |= bit;
                gone.push(page);
            }
        }
        drop((inner, gone));
        taken
    }

    fn release(&self, owner: ProgramId) {
        let mut inner = self.inner();
        let mappings: Vec<_> = inner.mappings.extract_if(.., |m| m.owner == owner).collect();
        let pages: Vec<_> = mappings.iter().flat_map(|m| inner.drop_pages(m.start, m.end)).collect();
        drop((inner, pages, mappings));
    }
}

impl UserMemory for HostSpace {
    fn read(&self, out: &mut [u8], address: u64) -> Result<(), BadAddress> {
        let len = out.len();
        self.each_page(address, len, false, |page, offset, range| page.read(offset, &mut out[range]))
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), BadAddress> {
        self.each_page(address, data.len(), true, |page, offset, range| page.write(offset, &data[range]))
    }

    fn zero(&self, address: u64, len: usize) -> Result<(), BadAddress> {
        self.write(address, &vec![0; len])
    }

    fn write_from_page(&self, address: u64, page: &Page, offset: usize, len: usize) -> Result<(), BadAddress> {
        let mut bytes = vec![0; len];
        page.read(offset, &mut bytes);
        self.write(address, &bytes)
    }

    fn read_into_page(&self, page: &Page, offset: usize, len: usize, address: u64) -> Result<(), BadAddress> {
        let mut bytes = vec![0; len];
        UserMemory::read(self, &mut bytes, address)?;
        page.write(offset, &bytes);
        Ok(())
    }

    fn read_c_str(&self, out: &mut [u8], address: u64) -> Result<Option<usize>, BadAddress> {
        for (at, byte) in out.iter_mut().enumerate() {
            UserMemory::read(self, std::slice::from_mut(byte), address + at as u64)?;
            if *byte == 0 {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    fn load_u32(&self, address: u64) -> Result<u32, BadAddress> {
        let mut bytes = [0; 4];
        UserMemory::read(self, &mut bytes, address)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn load_u32_nofault(&self, address: u64) -> Result<u32, BadAddress> {
        let inner = self.inner();
        let (page, _) = inner.pages.get(&(address & !(PAGE - 1))).ok_or(BadAddress)?;
        let mut bytes = [0; 4];
        page.read((address % PAGE) as usize, &mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn compare_exchange_u32(&self, address: u64, current: u32, new: u32) -> Result<u32, BadAddress> {
        let page = self.fault(address, true).map_err(|_| BadAddress)?;
        // Atomic against other calls of this function, which is what the tests' tasks use.
        let _atomic = self.inner();
        let offset = (address % PAGE) as usize;
        let mut bytes = [0; 4];
        page.read(offset, &mut bytes);
        let old = u32::from_le_bytes(bytes);
        if old == current {
            page.write(offset, &new.to_le_bytes());
        }
        Ok(old)
    }
}
