#![allow(unsafe_code, reason = "free objects' own memory holds their links")]
//! The slabs of one size class: frames cut into objects, of which some are free.
//!
//! A slab needs no memory of its own. Its free objects are a list through their first bytes, by place
//! within the frame; the slabs that have free objects are a list through the *first* free object of
//! each. How many are free and which is the first stands in the frame's record
//! ([`frames::slab_word`]). A slab whose objects are all free goes back to the frame allocator at once:
//! the magazines above keep that from happening over and over.
//!
//! # Locking
//! The owner's depot lock, also for the words of the slabs.
use core::{
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    frames,
    paging::{self, PAGE},
};

/// Sizes, and so places, are multiples of this.
pub const GRAIN: usize = 16;

/// A free object, as its magazine or the early list sees it.
pub struct Free {
    pub next: *mut Free,
}

/// A free object, as its slab sees it.
#[repr(C)]
struct Slot {
    /// Place of the slab's next free object.
    next: u16,
    /// Of the first free object only: the slabs before and after this one, by frame number; 0: none.
    previous_slab: u32,
    next_slab: u32,
}

const _: () = assert!(size_of::<Slot>() <= GRAIN);

/// What a slab's word says.
#[derive(Clone, Copy)]
struct Word {
    free: u16,
    /// Place of the first free object: its offset in grains, and one; 0: none.
    first: u16,
}

impl Word {
    fn of(slab: u32) -> (Self, &'static AtomicU32) {
        let word = frames::slab_word(u64::from(slab) * PAGE);
        let value = word.load(Ordering::Relaxed);
        (Self { free: value as u16, first: (value >> 16) as u16 }, word)
    }

    fn store(self, word: &AtomicU32) {
        word.store(u32::from(self.first) << 16 | u32::from(self.free), Ordering::Relaxed);
    }
}

/// The slabs of a class that have free objects. `None` of them is completely free.
pub struct Slabs {
    size: usize,
    /// Frame number of the first; 0: none.
    first: u32,
}

impl Slabs {
    /// `size` is a multiple of [`GRAIN`], a page at most.
    pub const fn new(size: usize) -> Self {
        Self { size, first: 0 }
    }

    fn capacity(&self) -> u16 {
        (PAGE as usize / self.size) as u16
    }

    /// A free object; null: there is none.
    pub fn take(&mut self) -> *mut Free {
        let slab = self.first;
        if slab == 0 {
            return ptr::null_mut();
        }
        let (word, place) = Word::of(slab);
        let object = slot(slab, word.first);
        // SAFETY: the first free object of a listed slab, which nobody else reaches under the lock.
        let taken = unsafe { object.read() };
        if word.free == 1 {
            self.unlink(&taken);
        } else {
            // SAFETY: the next free object of the same slab, which becomes the first.
            unsafe {
                let first = slot(slab, taken.next);
                (*first).previous_slab = taken.previous_slab;
                (*first).next_slab = taken.next_slab;
            }
        }
        Word { free: word.free - 1, first: taken.next }.store(place);
        object.cast()
    }

    /// Takes an object back. The result is the frame that it leaves without any in use: the caller's.
    ///
    /// # Safety
    /// `object` is free memory that [`Slabs::take`] gave out, and on no list.
    pub unsafe fn give(&mut self, object: *mut Free) -> Option<u64> {
        let address = object as u64;
        let frame = paging::physical_of(address) & !(PAGE - 1);
        let slab = (frame / PAGE) as u32;
        let here = ((address & (PAGE - 1)) as usize / GRAIN) as u16 + 1;
        let (word, place) = Word::of(slab);
        let mut new = Slot { next: word.first, previous_slab: 0, next_slab: 0 };
        if word.free == 0 {
            new.next_slab = self.first;
            self.link(slab, &new);
        } else {
            // SAFETY: the first free object of a slab that is listed.
            let first = unsafe { slot(slab, word.first).read() };
            (new.previous_slab, new.next_slab) = (first.previous_slab, first.next_slab);
        }
        let word = Word { free: word.free + 1, first: here };
        if word.free == self.capacity() {
            self.unlink(&new);
            return Some(frame);
        }
        word.store(place);
        // SAFETY: the object is the caller's to give, and large enough.
        unsafe { object.cast::<Slot>().write(new) };
        None
    }

    /// Cuts up a frame that is the caller's.
    pub fn add(&mut self, frame: u64) {
        let slab = (frame / PAGE) as u32;
        let step = (self.size / GRAIN) as u16;
        let last = (self.capacity() - 1) * step + 1;
        let mut next = 0;
        for place in (1..=last).rev().step_by(usize::from(step)) {
            // SAFETY: disjoint objects within the frame, which nobody else has.
            unsafe { slot(slab, place).write(Slot { next, previous_slab: 0, next_slab: self.first }) };
            next = place;
        }
        Word { free: self.capacity(), first: 1 }.store(Word::of(slab).1);
        self.link(slab, &Slot { next, previous_slab: 0, next_slab: self.first });
    }

    /// Puts `slab` before the first, which its own first object says already.
    fn link(&mut self, slab: u32, first: &Slot) {
        self.first = slab;
        Self::set_previous(first.next_slab, slab);
    }

    /// Takes the slab out whose first free object is, or was, `first`.
    fn unlink(&mut self, first: &Slot) {
        match first.previous_slab {
            0 => self.first = first.next_slab,
            // SAFETY: the first free object of a slab that is listed.
            previous => unsafe { (*slot(previous, Word::of(previous).0.first)).next_slab = first.next_slab },
        }
        Self::set_previous(first.next_slab, first.previous_slab);
    }

    fn set_previous(slab: u32, previous: u32) {
        if slab != 0 {
            // SAFETY: as in `unlink`.
            unsafe { (*slot(slab, Word::of(slab).0.first)).previous_slab = previous };
        }
    }
}

fn slot(slab: u32, place: u16) -> *mut Slot {
    let offset = (u64::from(place) - 1) * GRAIN as u64;
    (paging::direct(u64::from(slab) * PAGE) + offset) as *mut Slot
}
