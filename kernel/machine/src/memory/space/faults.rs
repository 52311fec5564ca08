//! Page faults: what a mapping has at an address comes to be there.
//!
//! The first touch of an anonymous page is done in one hold of the space's lock. A file's page comes from
//! its pager, which may sleep: then the lock is taken again, and the mapping's sequence number and the
//! pager ([`Pager::confirm`]) say whether what was looked up still holds.
use alloc::sync::Arc;

use logic::vma::{Vma, VmaFlags};
use rt::{
    page::{Page, PageId},
    space::{Pager, PagerError, Prot},
};

use super::{
    SPACE, Source, Space, copies,
    entries::{self, PRIVATE, Use},
    huge,
};
use crate::memory::{
    frames,
    paging::{self, LARGE_PAGE, Leaf, PAGE},
    reclaim,
};

/// Pages around a file fault that are mapped along if they are cached; a power of two.
const FAULT_AROUND: u64 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Execute,
}

/// Why a fault cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NotMapped,
    Protected,
    BeyondEnd,
    OutOfMemory,
}

/// Serves a page fault at `address`. May sleep.
pub fn fault(address: u64, access: Access) -> Result<(), Refused> {
    SPACE.fault(address & !(PAGE - 1), access)
}

fn allows(prot: u8, access: Access) -> bool {
    let prot = Prot::from_bits_truncate(prot);
    match access {
        // On x86 what can be written or executed can be read.
        Access::Read => !prot.is_empty(),
        Access::Write => prot.contains(Prot::WRITE),
        Access::Execute => prot.contains(Prot::EXEC),
    }
}

/// What the part of a fault that holds the lock cannot do.
enum Step {
    Done,
    File(FileFault),
    /// The mapping, of this sequence number, takes a huge page.
    Huge(u64),
}

/// A fault that needs a page from a file.
struct FileFault {
    pager: Arc<dyn Pager>,
    index: u64,
    sequence: u64,
    shared: bool,
}

impl Space {
    pub(super) fn fault(&self, address: u64, access: Access) -> Result<(), Refused> {
        if self.fault_plain(address, access) {
            return Ok(());
        }
        let mut may_be_huge = true;
        loop {
            match self.fault_locked(address, access, may_be_huge) {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::File(needs)) => {
                    let write = needs.shared && access == Access::Write;
                    let page = needs.pager.page(needs.index, write).map_err(|error| match error {
                        PagerError::BeyondEnd | PagerError::Io => Refused::BeyondEnd,
                        PagerError::OutOfFrames => Refused::OutOfMemory,
                    })?;
                    if self.install_file_page(address, access, &needs, page)? {
                        return Ok(());
                    }
                }
                Ok(Step::Huge(sequence)) => {
                    may_be_huge = frames::take_huge().is_some_and(|page| self.install_huge(address, sequence, page));
                }
                Err(Refused::OutOfMemory) if reclaim::reclaim() => {}
                Err(refused) => return Err(refused),
            }
        }
    }

    /// The first touch of an anonymous page, which is most of all faults. False: it is something else.
    #[inline]
    fn fault_plain(&self, address: u64, access: Access) -> bool {
        let mut tree = self.vmas.lock();
        if let Some(vma) = tree.find_again(address)
            && matches!(vma.backing, Source::Anonymous)
            && allows(vma.prot, access)
            && !vma.flags.contains(VmaFlags::HUGE)
            && let Some(Leaf::Small(entry)) = paging::leaf(address)
            && entries::read(entry) == 0
            && let Ok(page) = Page::alloc_now(true)
        {
            entries::fill(entry, page, vma.prot, PRIVATE, Use::Now);
            return true;
        }
        false
    }

    /// The part of a fault that does not sleep.
    fn fault_locked(&self, address: u64, access: Access, may_be_huge: bool) -> Result<Step, Refused> {
        let mut tree = self.vmas.lock();
        let vma = tree.find_again(address).ok_or(Refused::NotMapped)?;
        if !allows(vma.prot, access) {
            return Err(Refused::Protected);
        }
        match &vma.backing {
            Source::Anonymous => {
                if may_be_huge && huge::suits(vma, address) {
                    return Ok(Step::Huge(vma.sequence));
                }
                let leaf = paging::leaf_or_new(address).ok_or(Refused::OutOfMemory)?;
                if let Leaf::Small(entry) = leaf
                    && entries::read(entry) == 0
                {
                    entries::fill(entry, Page::alloc_now(true)?, vma.prot, PRIVATE, Use::Now);
                } else {
                    entries::resolve_present(vma, address, leaf, access)?;
                }
                Ok(Step::Done)
            }
            Source::File(file) => {
                if let Some(leaf) = paging::leaf(address)
                    && entries::resolve_present(vma, address, leaf, access)?
                {
                    return Ok(Step::Done);
                }
                Ok(Step::File(FileFault {
                    pager: file.pager.clone(),
                    index: file.first_page + (address - vma.start) / PAGE,
                    sequence: vma.sequence,
                    shared: vma.flags.contains(VmaFlags::SHARED),
                }))
            }
        }
    }

    /// False: it did not come to that, and a small page will do.
    fn install_huge(&self, address: u64, sequence: u64, page: frames::HugePage) -> bool {
        let tree = self.vmas.lock();
        match tree.find(address).filter(|vma| vma.sequence == sequence && huge::suits(vma, address)) {
            Some(vma) => huge::install(address & !(LARGE_PAGE - 1), page, vma.prot).is_ok(),
            None => true,
        }
    }

    /// Installs what the pager gave. False: the mapping changed meanwhile, start again.
    fn install_file_page(&self, address: u64, access: Access, needs: &FileFault, page: Page) -> Result<bool, Refused> {
        let copy = if !needs.shared && access == Access::Write { Some(copy_of(&page)?) } else { None };
        let mut tree = self.vmas.lock();
        let Some(vma) = tree.find_again(address).filter(|vma| vma.sequence == needs.sequence) else {
            return Ok(false);
        };
        let Some(leaf) = paging::leaf_or_new(address) else {
            drop(tree);
            return if reclaim::reclaim() { Ok(false) } else { Err(Refused::OutOfMemory) };
        };
        let entry = match leaf {
            Leaf::Small(entry) if entries::read(entry) == 0 => entry,
            // Memory for a copy is had at the next try, which asks for some back.
            _ => return entries::resolve_present(vma, address, leaf, access).or_else(retry),
        };
        let writes = needs.shared && access == Access::Write;
        // Truncation and writeback, which change what may be mapped, come through this lock after that.
        if !needs.pager.confirm(needs.index, &page, writes) {
            return Ok(false);
        }
        match copy {
            Some(copy) => {
                entries::fill(entry, copy, vma.prot, PRIVATE, Use::Now);
                let ahead = copies::ahead(vma, address, entry);
                if ahead > 0 {
                    map_around(vma, address, entry, needs);
                    copies::copy(vma, address + PAGE, entry.wrapping_add(1), ahead, Use::Ahead);
                }
            }
            None => {
                let prot = if writes { vma.prot } else { vma.prot & !Prot::WRITE.bits() };
                entries::fill(entry, page, prot, 0, Use::Now);
                map_around(vma, address, entry, needs);
            }
        }
        Ok(true)
    }
}

fn retry(refused: Refused) -> Result<bool, Refused> {
    if refused == Refused::OutOfMemory { Ok(false) } else { Err(refused) }
}

fn copy_of(page: &Page) -> Result<Page, Refused> {
    loop {
        match Page::alloc_now(false) {
            Ok(copy) => {
                frames::copy(page.id().0, copy.id().0);
                return Ok(copy);
            }
            Err(_) if reclaim::reclaim() => {}
            Err(refused) => return Err(refused),
        }
    }
}

/// Maps cached neighbours of a file page read-only, so that a sequence of faults becomes one. `entry` is
/// the page's own: the window lies in one table.
fn map_around(vma: &Vma<Source>, address: u64, entry: *mut u64, needs: &FileFault) {
    let window = FAULT_AROUND * PAGE;
    let start = (address & !(window - 1)).max(vma.start);
    let end = ((address & !(window - 1)) + window).min(vma.end);
    // No further back than the file's begin: `index` counts from there.
    let before = ((address - start) / PAGE).min(needs.index);
    let first_entry = entry.wrapping_sub(before as usize);
    let count = (before + (end - address) / PAGE) as usize;
    let mut pages = [const { None }; FAULT_AROUND as usize];
    needs.pager.pages_if_cached(needs.index - before, &mut pages[..count]);
    let prot = vma.prot & !Prot::WRITE.bits();
    for (at, page) in pages.into_iter().enumerate().take(count) {
        let entry = first_entry.wrapping_add(at);
        if let Some(page) = page
            && entries::read(entry) == 0
        {
            entries::fill(entry, page, prot, 0, Use::Ahead);
        }
    }
}

/// Allocation under the space's lock: never sleeps, never reclaims.
trait AllocNow: Sized {
    fn alloc_now(zeroed: bool) -> Result<Self, Refused>;
}

impl AllocNow for Page {
    fn alloc_now(zeroed: bool) -> Result<Self, Refused> {
        frames::take_page(zeroed).map(|frame| Page::from_id(PageId(frame))).map_err(|_| Refused::OutOfMemory)
    }
}
