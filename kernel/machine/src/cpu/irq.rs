//! Device interrupts: vectors, their handlers, and how devices are told to raise them.
//!
//! A handler runs with interrupts off on whichever CPU took the vector, and only sets flags and wakes
//! tasks.
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Once;

/// First vector for devices; those below are exceptions, those above [`LAST`] the APIC's own.
const FIRST: u8 = 0x30;
const LAST: u8 = 0xee;

#[derive(Clone, Copy)]
struct Handler {
    run: fn(usize),
    data: usize,
}

static HANDLERS: [Once<Handler>; (LAST - FIRST) as usize + 1] = [const { Once::new() }; (LAST - FIRST) as usize + 1];
static USED: AtomicUsize = AtomicUsize::new(0);

/// A new vector that calls `run(data)`. None when all are taken.
pub fn allocate(run: fn(usize), data: usize) -> Option<u8> {
    let slot = USED.fetch_add(1, Ordering::Relaxed);
    let handler = HANDLERS.get(slot)?;
    handler.call_once(|| Handler { run, data });
    Some(FIRST + slot as u8)
}

pub(crate) fn dispatch(vector: u8) {
    let handler = vector.checked_sub(FIRST).and_then(|slot| HANDLERS.get(usize::from(slot)));
    match handler.and_then(Once::get) {
        Some(handler) => (handler.run)(handler.data),
        None => log::warn!("interrupt on unused vector {vector:#x}"),
    }
}

/// (address, data) of a message-signalled interrupt that raises `vector` on the CPU with this APIC id
/// (SDM 11.11). None: an address has eight bits for that, and this is a higher one, or everybody.
pub fn message(apic_id: u32, vector: u8) -> Option<(u64, u32)> {
    let id = u8::try_from(apic_id).ok().filter(|id| *id != u8::MAX)?;
    Some((0xfee0_0000 | u64::from(id) << 12, u32::from(vector)))
}
