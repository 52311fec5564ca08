//! Tests of mappings: more than one list in the heap could name, and moves.
use alloc::{format, string::String};

use rt::{
    rt,
    space::{AddressSpace as _, Placement, ProgramId, Prot, SpaceError},
};

use super::{check, memory::request};
use crate::memory::space::SPACE;

const OWNER: ProgramId = ProgramId(78);
const PAGE: u64 = 4096;

fn count() -> usize {
    let mut count = 0;
    SPACE.regions(OWNER, &mut |_| count += 1);
    count
}

/// A program may have more mappings than fit into the largest piece of the heap: they are listed, and go
/// at once.
pub fn many() -> Result<(), String> {
    const MAPPINGS: u64 = 33_000;
    let failed = |what: &str| format!("{what} failed");
    let whole = request(MAPPINGS * PAGE, Prot::empty(), Placement::Anywhere);
    let start = SPACE.map(OWNER, whole).map_err(|_| failed("map"))?;
    for page in (0..MAPPINGS).step_by(2) {
        // Each second page: no two neighbours are alike.
        SPACE.protect(OWNER, start + page * PAGE, PAGE, Prot::READ).map_err(|_| failed("protect"))?;
    }
    check(count() == MAPPINGS as usize, "not every mapping is listed")?;
    SPACE.unmap(OWNER, start, MAPPINGS * PAGE).map_err(|_| failed("unmap"))?;
    check(count() == 0, "something is still mapped")
}

/// Moved mappings take their pages along; a move to where nothing may lie changes nothing.
pub fn moved() -> Result<(), String> {
    let failed = |what: &str| format!("{what} failed");
    let user = rt().user();
    let far = 600 << 21;
    let of_len = |len, start| request(len, Prot::READ | Prot::WRITE, Placement::FixedNoReplace(start));
    // Across a table's end, to another place in its table.
    let at = |start| of_len(2 * PAGE, start);
    let hole = SPACE.map(OWNER, request(far, Prot::empty(), Placement::Anywhere)).map_err(|_| failed("map"))?;
    SPACE.unmap(OWNER, hole, far).map_err(|_| failed("unmap"))?;
    let start = hole.next_multiple_of(2 << 20) + (2 << 20) - PAGE;
    SPACE.map(OWNER, at(start)).map_err(|_| failed("map"))?;
    user.write(start, b"first").map_err(|_| failed("write"))?;
    user.write(start + PAGE, b"second").map_err(|_| failed("write"))?;
    for (target, error) in [(0, SpaceError::NoMemory), (0x1000, SpaceError::NoMemory), (start + 1, SpaceError::Invalid)]
    {
        let moved = SPACE.remap(OWNER, start, 2 * PAGE, 2 * PAGE, true, Some(target));
        check(moved == Err(error), "a mapping was moved to where none may lie")?;
    }
    let target = hole.next_multiple_of(2 << 20) + (300 << 21) + 7 * PAGE;
    SPACE.map(OWNER, at(target)).map_err(|_| failed("map"))?;
    user.write(target, b"gone").map_err(|_| failed("write"))?;
    let moved = SPACE.remap(OWNER, start, 2 * PAGE, 2 * PAGE, true, Some(target));
    check(moved == Ok(target), "a mapping was not moved over another")?;
    let mut bytes = [0; 6];
    check(user.read(&mut bytes, start).is_err(), "the old place is still mapped")?;
    user.read(&mut bytes, target).map_err(|_| failed("read"))?;
    check(bytes == *b"first\0", "the first page was left behind")?;
    user.read(&mut bytes, target + PAGE).map_err(|_| failed("read"))?;
    check(bytes == *b"second", "the second page was left behind")?;
    // Something in the way: it grows elsewhere.
    SPACE.map(OWNER, of_len(PAGE, target + 2 * PAGE)).map_err(|_| failed("map"))?;
    let kept = SPACE.remap(OWNER, target, 2 * PAGE, 4 * PAGE, false, None);
    check(kept == Err(SpaceError::NoMemory), "a mapping grew over another")?;
    let grown = SPACE.remap(OWNER, target, 2 * PAGE, 4 * PAGE, true, None).map_err(|_| failed("remap"))?;
    user.read(&mut bytes, grown + PAGE).map_err(|_| failed("read"))?;
    check(bytes == *b"second", "a page was left behind")?;
    SPACE.release(OWNER);
    check(count() == 0, "something is still mapped")
}

/// A huge page in the way of a move makes room, and its table takes the pages that come.
pub fn moved_over_huge_page() -> Result<(), String> {
    const LARGE: u64 = 2 << 20;
    let failed = |what: &str| format!("{what} failed");
    let user = rt().user();
    let of_len = |len| request(len, Prot::READ | Prot::WRITE, Placement::Anywhere);
    let area = SPACE.map(OWNER, of_len(2 * LARGE)).map_err(|_| failed("map"))?;
    SPACE.advise_huge(OWNER, area, 2 * LARGE, true).map_err(|_| failed("advice"))?;
    let huge = area.next_multiple_of(LARGE);
    let before = SPACE.huge_bytes();
    user.write(huge, b"huge").map_err(|_| failed("write"))?;
    check(SPACE.huge_bytes() == before + LARGE, "there is no huge page")?;
    let start = SPACE.map(OWNER, of_len(LARGE)).map_err(|_| failed("map"))?;
    for page in [0, 511] {
        user.write(start + page * PAGE, b"moved").map_err(|_| failed("write"))?;
    }
    let moved = SPACE.remap(OWNER, start, LARGE, LARGE, true, Some(huge));
    check(moved == Ok(huge) && SPACE.huge_bytes() == before, "a mapping was not moved over a huge page")?;
    let mut bytes = [0; 5];
    for page in [0, 511] {
        user.read(&mut bytes, huge + page * PAGE).map_err(|_| failed("read"))?;
        check(bytes == *b"moved", "a page was left behind")?;
    }
    SPACE.release(OWNER);
    check(count() == 0, "something is still mapped")
}
