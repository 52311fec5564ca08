//! Tests of memory: heap, frames, demand paging, protection, user copies, W^X.
use alloc::{boxed::Box, format, string::String, vec, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use rt::{
    rt,
    space::{AddressSpace as _, MapRequest, Placement, ProgramId, Prot, SpaceError},
    task::ParkMode,
    user::BadAddress,
};

use super::{
    check,
    tasks::{spawn, wait_for},
};
use crate::{
    cpu::percpu,
    memory::{
        frames, heap,
        paging::{self, NO_EXECUTE, PRESENT, WRITABLE},
        space::SPACE,
    },
};

const OWNER: ProgramId = ProgramId(77);
const PAGE: u64 = 4096;

pub fn request(len: u64, prot: Prot, placement: Placement) -> MapRequest {
    MapRequest {
        placement,
        len,
        prot,
        file: None,
        shared: false,
        read_only: false,
        no_reserve: false,
        stack: false,
        label: None,
    }
}

/// Tasks on all CPUs make objects of all sizes and swap them through shared places, so that most are freed
/// by another CPU than the one that made them.
pub fn heap_stress() -> Result<(), String> {
    static PLACES: [spin::Mutex<Vec<u8>>; 64] = [const { spin::Mutex::new(Vec::new()) }; 64];
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static WRONG: AtomicUsize = AtomicUsize::new(0);
    static FOREIGN: AtomicUsize = AtomicUsize::new(0);
    fn churn(seed: usize) {
        let mut state = seed as u64 * 2 + 1;
        for step in 0..6000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut object = vec![seed as u8; 1 + (state >> 33) as usize % 5000];
            core::mem::swap(&mut *PLACES[(state >> 20) as usize % PLACES.len()].lock(), &mut object);
            let maker = object.first().copied().unwrap_or(seed as u8);
            WRONG.fetch_add(usize::from(object.iter().any(|&byte| byte != maker)), SeqCst);
            FOREIGN.fetch_add(usize::from(maker != seed as u8), SeqCst);
            if step % 64 == 0 {
                rt().yield_now();
            }
        }
        DONE.fetch_add(1, SeqCst);
    }
    [&DONE, &WRONG, &FOREIGN].iter().for_each(|count| count.store(0, SeqCst));
    let cpus = percpu::online_count();
    for seed in 0..2 * cpus {
        spawn(churn, seed, 1 << (seed % cpus), 0);
    }
    wait_for(|| DONE.load(SeqCst) == 2 * cpus)?;
    PLACES.iter().for_each(|place| drop(core::mem::take(&mut *place.lock())));
    check(WRONG.load(SeqCst) == 0, "a heap object was overwritten")?;
    check(FOREIGN.load(SeqCst) > 1000, "hardly an object was freed by another task")
}

/// Small objects of all sizes, made on every CPU and freed in another order by this one, leave no frame
/// behind in the heap.
pub fn slabs_return() -> Result<(), String> {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    static BYTES: AtomicUsize = AtomicUsize::new(0);
    static MADE: spin::Mutex<Vec<Vec<Box<[u8]>>>> = spin::Mutex::new(Vec::new());
    fn make(seed: usize) {
        let mut objects = Vec::new();
        let mut bytes = 0;
        for round in 0.. {
            // Up to 2,048 bytes, small ones most.
            let size = 1 + (round * 7919 + seed) % (16 << (round % 8));
            bytes += size + size_of::<Box<[u8]>>();
            if bytes > BYTES.load(SeqCst) {
                break;
            }
            objects.push(vec![round as u8; size].into_boxed_slice());
            if round % 1024 == 0 {
                rt().yield_now();
            }
        }
        MADE.lock().push(objects);
        DONE.fetch_add(1, SeqCst);
    }
    let round = |count: usize| {
        DONE.store(0, SeqCst);
        for seed in 0..count {
            spawn(make, seed, 1 << (seed % percpu::online_count()), 0);
        }
        wait_for(|| DONE.load(SeqCst) == count)?;
        let (_, least) = frames::totals();
        let mut made = core::mem::take(&mut *MADE.lock());
        let wrong = made.iter().any(|objects| {
            objects.iter().enumerate().any(|(round, object)| object.iter().any(|byte| *byte != round as u8))
        });
        // Each slab loses its objects in turns.
        for remainder in [1, 0, 2] {
            for objects in &mut made {
                for object in objects.iter_mut().skip(remainder).step_by(3) {
                    *object = Box::default();
                }
            }
        }
        drop(made);
        heap::shrink();
        // The other CPUs give theirs when they are idle or next allocate.
        rt().park(Some(rt().now_ns() + 5_000_000), ParkMode::Uninterruptible);
        check(!wrong, "an object was overwritten")?;
        Ok::<u64, String>(least)
    };
    let count = 2 * percpu::online_count();
    let most = (64 << 20).min(frames::totals().1 as usize / 2);
    BYTES.store(most / count / 8, SeqCst);
    round(count)?;
    let (_, before) = frames::totals();
    BYTES.store(most / count, SeqCst);
    comes_back(512 * 1024, || check(before - round(count)? > most as u64 / 2, "the objects took no memory"))
}

/// Checks that `round` leaves at most so many bytes fewer free than there were before. The frames in the
/// CPUs' caches do not count as free, and differ from time to time: only what stays away when it is done
/// again is lost.
pub(super) fn comes_back(most: u64, mut round: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let (_, before) = frames::totals();
    let mut lost = most;
    for _ in 0..4 {
        round()?;
        lost = before.saturating_sub(frames::totals().1);
        if lost < most {
            return Ok(());
        }
    }
    Err(format!("{lost} bytes of frames lost"))
}

pub fn frames_return() -> Result<(), String> {
    let map_and_touch = || -> Result<(), SpaceError> {
        let start = SPACE.map(OWNER, request(256 * PAGE, Prot::READ | Prot::WRITE, Placement::Anywhere))?;
        SPACE.populate(OWNER, start, 256 * PAGE, true)?;
        SPACE.unmap(OWNER, start, 256 * PAGE)
    };
    // The first round makes the page tables, which stay.
    map_and_touch().map_err(|error| format!("{error:?}"))?;
    comes_back(512 * 1024, || (0..50).try_for_each(|_| map_and_touch()).map_err(|error| format!("{error:?}")))
}

pub fn demand_paging() -> Result<(), String> {
    let len = 64 * PAGE;
    let start =
        SPACE.map(OWNER, request(len, Prot::READ | Prot::WRITE, Placement::Anywhere)).map_err(|e| format!("{e:?}"))?;
    check(SPACE.footprint(OWNER).resident_bytes == 0, "pages before they were touched")?;
    rt().user().write(start + 5 * PAGE - 2, b"across").map_err(|_| "write refused")?;
    let mut back = [0; 6];
    rt().user().read(&mut back, start + 5 * PAGE - 2).map_err(|_| "read refused")?;
    check(&back == b"across", "read other bytes than written")?;
    check(SPACE.footprint(OWNER).resident_bytes == 2 * PAGE, "more than the two touched pages")?;
    SPACE.discard(OWNER, start, len).map_err(|e| format!("{e:?}"))?;
    rt().user().read(&mut back, start + 5 * PAGE - 2).map_err(|_| "read refused")?;
    check(back == [0; 6], "discarded memory kept its bytes")?;
    let moved = SPACE.remap(OWNER, start, len, 4 * len, true, None).map_err(|e| format!("{e:?}"))?;
    rt().user().write(moved + 4 * len - 1, b"!").map_err(|_| "write to the grown part refused")?;
    SPACE.release(OWNER);
    check(SPACE.footprint(OWNER).mapped_bytes == 0, "mappings left after release")
}

pub fn protection() -> Result<(), String> {
    let start = SPACE
        .map(OWNER, request(4 * PAGE, Prot::READ | Prot::WRITE, Placement::Anywhere))
        .map_err(|e| format!("{e:?}"))?;
    rt().user().write(start, b"kept").map_err(|_| "write refused")?;
    SPACE.protect(OWNER, start, PAGE, Prot::READ).map_err(|e| format!("{e:?}"))?;
    check(rt().user().write(start, b"x") == Err(BadAddress), "wrote to a read-only page")?;
    SPACE.protect(OWNER, start, PAGE, Prot::empty()).map_err(|e| format!("{e:?}"))?;
    let mut back = [0; 4];
    check(rt().user().read(&mut back, start) == Err(BadAddress), "read a PROT_NONE page")?;
    SPACE.protect(OWNER, start, PAGE, Prot::READ | Prot::WRITE).map_err(|e| format!("{e:?}"))?;
    rt().user().read(&mut back, start).map_err(|_| "read refused after PROT_NONE")?;
    check(&back == b"kept", "PROT_NONE lost the page")?;
    check(SPACE.protect(OWNER, start, 8 * PAGE, Prot::READ) == Err(SpaceError::NotMapped), "protected a hole")?;
    let foreign = SPACE.map(ProgramId(78), request(PAGE, Prot::READ, Placement::Fixed(start)));
    check(foreign == Err(SpaceError::NoMemory), "mapped over another program")?;
    SPACE.release(OWNER);
    Ok(())
}

pub fn bad_user_copy() -> Result<(), String> {
    let user = rt().user();
    let mut byte = [0];
    check(user.read(&mut byte, 0x10_0000) == Err(BadAddress), "read unmapped memory")?;
    check(user.read(&mut byte, paging::DIRECT_MAP) == Err(BadAddress), "read kernel memory")?;
    check(user.write(u64::MAX - 1, b"abcd") == Err(BadAddress), "an address that wraps")?;
    check(user.load_u32_nofault(0x10_0000) == Err(BadAddress), "loaded unmapped memory")?;
    let start =
        SPACE.map(OWNER, request(PAGE, Prot::READ | Prot::WRITE, Placement::Anywhere)).map_err(|e| format!("{e:?}"))?;
    check(user.load_u32_nofault(start) == Err(BadAddress), "a page that nobody touched yet")?;
    user.write(start + PAGE - 4, b"tail").map_err(|_| "write refused")?;
    check(user.write(start + PAGE - 4, b"tailtail") == Err(BadAddress), "wrote beyond the mapping")?;
    let mut text = [0; 16];
    check(user.read_c_str(&mut text, start + PAGE - 4) == Err(BadAddress), "a string without an end")?;
    user.write(start + PAGE - 4, b"abc\0").map_err(|_| "write refused")?;
    check(user.read_c_str(&mut text, start + PAGE - 4) == Ok(Some(3)), "string length")?;
    check(user.compare_exchange_u32(start, 0, 5) == Ok(0) && user.load_u32(start) == Ok(5), "exchange")?;
    SPACE.release(OWNER);
    Ok(())
}

/// A call is refused while the kernel's own reserve is low, and no longer.
pub fn budget() -> Result<(), String> {
    let mut taken: Vec<u64> = Vec::with_capacity((frames::totals().1 / PAGE) as usize);
    // Meanwhile another CPU may give frames back that it had for its heap.
    let refused = (0..100).any(|_| {
        while let Ok(frame) = frames::take(false) {
            taken.push(frame);
            if frames::reserve_is_low() {
                break;
            }
        }
        rt().draw_budget().is_err()
    });
    let still_works = frames::take(false).map(frames::unreference).is_ok();
    taken.into_iter().for_each(frames::unreference);
    check(refused, "a call was let in on half a reserve")?;
    check(still_works, "the kernel itself got nothing")?;
    check(rt().draw_budget().is_ok(), "refused although all memory is back")
}

pub fn write_xor_execute() -> Result<(), String> {
    let mut bad = 0;
    let mut seen = 0;
    paging::each_kernel_mapping(|_, entry| {
        seen += 1;
        if entry & PRESENT != 0 && entry & WRITABLE != 0 && entry & NO_EXECUTE == 0 {
            bad += 1;
        }
    });
    check(seen > 100, "no kernel mappings found")?;
    check(bad == 0, &format!("{bad} kernel mappings are writable and executable"))?;
    let text = crate::panic::text_start();
    let alias = paging::last_level(paging::direct(text - paging::KERNEL_BASE));
    check(alias & WRITABLE == 0 && alias & NO_EXECUTE != 0, "kernel text is writable by the direct map")?;
    check(paging::last_level(0x8000) & PRESENT == 0, "the boot identity map is still there")
}
