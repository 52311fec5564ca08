//! What page faults cost beside the plain one: on a frame zeroed ahead, of 2 MiB, on a cached page of a
//! file.
use alloc::string::String;

use rt::{
    rt,
    space::{AddressSpace as _, Placement, Prot},
};

use super::{OWNER, PAGE};
use crate::{
    memory::{frames, space::SPACE},
    selftest::{application, memory::request, pressure},
    time,
};

const HUGE: u64 = 2 << 20;

/// Per page, on frames that the idle loop would have zeroed; in exact mode it does not.
pub fn zeroed_ahead() -> Result<u64, String> {
    while frames::zero_ahead() {}
    // Fewer than the pool has, since page tables take from it, too.
    application::fault_ticks(128).inspect(|_| frames::release_zeroed())
}

/// Of 2 MiB, which includes zeroing them: nothing as large is kept zeroed. The kernel touches them, by a
/// copy of one byte.
pub fn huge() -> Result<u64, String> {
    const COUNT: u64 = 8;
    let at = SPACE.map(OWNER, request((COUNT + 1) * HUGE, Prot::READ | Prot::WRITE, Placement::Anywhere));
    let start = pressure::shown(at)?.next_multiple_of(HUGE);
    pressure::shown(SPACE.advise_huge(OWNER, start, COUNT * HUGE, true))?;
    let ticks = touch(start, HUGE, COUNT);
    let resident = SPACE.footprint(OWNER).resident_bytes;
    SPACE.release(OWNER);
    if resident == COUNT * HUGE { ticks } else { Err(String::from("memory is too short for huge pages")) }
}

/// Of the pages of a file in memory, the first of each sixteen: such a fault maps the others along. By a
/// copy of one byte, as above; the file is the kernel tests', so the file system's part is not in it.
pub fn cached_file() -> Result<u64, String> {
    const COUNT: u64 = 32;
    let start = pressure::map_numbered_file(COUNT * 16)?;
    let ticks = touch(start, 16 * PAGE, COUNT);
    pressure::drop_numbered_file();
    ticks
}

/// Ticks per touch of `count` places.
fn touch(start: u64, step: u64, count: u64) -> Result<u64, String> {
    let mut refused = false;
    let from = time::counter();
    for at in 0..count {
        refused |= rt().user().read(&mut [0], start + at * step).is_err();
    }
    let ticks = (time::counter() - from) / count;
    if refused { Err(String::from("a page was refused")) } else { Ok(ticks) }
}
