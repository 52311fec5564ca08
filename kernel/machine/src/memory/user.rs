#![allow(unsafe_code, reason = "copies application memory by assembly routines with fixups")]
//! Copies of application memory: the only way kernel code touches it.
//!
//! The routines are in `user_copy.S`; a fault inside them is served like the application's own, and
//! one that cannot be ends the copy through the exception table ([`super::fault`]). They may sleep.
use rt::{
    page::Page,
    user::{BadAddress, UserMemory},
};

use super::paging::{APPLICATION_END, direct};
use crate::cpu::percpu::this_cpu;

core::arch::global_asm!(include_str!("user_copy.S"), options(att_syntax));

unsafe extern "C" {
    fn user_copy(to: u64, from: u64, len: u64) -> u64;
    fn user_zero(to: u64, len: u64) -> u64;
    fn user_string(to: u64, from: u64, limit: u64) -> i64;
    fn user_load_u32(address: u64) -> u64;
    fn user_load_u32_nofault(address: u64) -> u64;
    fn user_exchange_u32(address: u64, current: u32, new: u32) -> u64;
    static user_load_u32_nofault_at: u8;
}

/// Set in a word routine's result after a bad address.
const BAD: u64 = 1 << 63;

/// Application memory of this machine.
pub struct User;

/// True if a fault at `rip` must not be served: the routine asked for that.
pub fn is_nofault(rip: u64) -> bool {
    rip == (&raw const user_load_u32_nofault_at) as u64
}

fn check(address: u64, len: usize) -> Result<(), BadAddress> {
    let end = address.checked_add(len as u64).ok_or(BadAddress)?;
    if end > APPLICATION_END { Err(BadAddress) } else { Ok(()) }
}

fn may_sleep() {
    assert!(this_cpu().lock_depth.get() == 0, "user copy under a spin lock");
}

fn done(result: u64) -> Result<(), BadAddress> {
    if result == 0 { Ok(()) } else { Err(BadAddress) }
}

fn word(result: u64) -> Result<u32, BadAddress> {
    if result & BAD == 0 { Ok(result as u32) } else { Err(BadAddress) }
}

// SAFETY of the calls below: the kernel's side is a live buffer of the given length, the other side
// was checked to lie in the application's half, and the routines recover from any fault there.
impl UserMemory for User {
    fn read(&self, out: &mut [u8], address: u64) -> Result<(), BadAddress> {
        check(address, out.len())?;
        may_sleep();
        // SAFETY: see above.
        done(unsafe { user_copy(out.as_mut_ptr() as u64, address, out.len() as u64) })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), BadAddress> {
        check(address, data.len())?;
        may_sleep();
        // SAFETY: see above.
        done(unsafe { user_copy(address, data.as_ptr() as u64, data.len() as u64) })
    }

    fn zero(&self, address: u64, len: usize) -> Result<(), BadAddress> {
        check(address, len)?;
        may_sleep();
        // SAFETY: see above.
        done(unsafe { user_zero(address, len as u64) })
    }

    fn write_from_page(&self, address: u64, page: &Page, offset: usize, len: usize) -> Result<(), BadAddress> {
        check(address, len)?;
        assert!(offset + len <= rt::page::PAGE_SIZE);
        may_sleep();
        // SAFETY: see above; the page is referenced and direct-mapped.
        done(unsafe { user_copy(address, direct(page.id().0) + offset as u64, len as u64) })
    }

    fn read_into_page(&self, page: &Page, offset: usize, len: usize, address: u64) -> Result<(), BadAddress> {
        check(address, len)?;
        assert!(offset + len <= rt::page::PAGE_SIZE);
        may_sleep();
        // SAFETY: see above; the page is referenced and direct-mapped.
        done(unsafe { user_copy(direct(page.id().0) + offset as u64, address, len as u64) })
    }

    fn read_c_str(&self, out: &mut [u8], address: u64) -> Result<Option<usize>, BadAddress> {
        check(address, 1)?;
        may_sleep();
        let limit = (out.len() as u64).min(APPLICATION_END - address);
        // SAFETY: see above.
        let len = unsafe { user_string(out.as_mut_ptr() as u64, address, limit) };
        match u64::try_from(len) {
            Err(_) => Err(BadAddress),
            Ok(len) if len < limit => Ok(Some(len as usize)),
            Ok(_) if limit < out.len() as u64 => Err(BadAddress),
            Ok(_) => Ok(None),
        }
    }

    fn load_u32(&self, address: u64) -> Result<u32, BadAddress> {
        check(address, 4)?;
        may_sleep();
        // SAFETY: see above.
        word(unsafe { user_load_u32(address) })
    }

    fn load_u32_nofault(&self, address: u64) -> Result<u32, BadAddress> {
        check(address, 4)?;
        // SAFETY: see above; this routine's fault is never served.
        word(unsafe { user_load_u32_nofault(address) })
    }

    fn compare_exchange_u32(&self, address: u64, current: u32, new: u32) -> Result<u32, BadAddress> {
        check(address, 4)?;
        may_sleep();
        // SAFETY: see above.
        word(unsafe { user_exchange_u32(address, current, new) })
    }
}
