#![allow(unsafe_code, reason = "reads boot structures through the boot page tables")]
//! What PVH left in memory, read through the boot map of the first GiB.
use alloc::{string::String, vec, vec::Vec};

use logic::{
    physical::PhysReader,
    pvh::{PvhError, Region, StartInfo, check_places, usable_ram},
};

use crate::{cpu::features, memory::paging::KERNEL_BASE};

pub struct Pvh {
    pub command_line: String,
    pub module: Option<(u64, u64)>,
    pub rsdp: u64,
    /// Usable RAM from 1 MiB on, page-aligned.
    pub ram: Vec<(u64, u64)>,
}

const COMMAND_LINE_LIMIT: usize = 16384;
const BOOT_REACH: u64 = 1 << 30;
const LOW_END: u64 = 1 << 20;

/// Physical memory by the boot tables.
struct BootMap;

impl PhysReader for BootMap {
    fn read(&self, address: u64, out: &mut [u8]) -> bool {
        if address.checked_add(out.len() as u64).is_none_or(|end| end > BOOT_REACH) {
            return false;
        }
        // SAFETY: the boot tables map the first GiB at KERNEL_BASE; nobody writes there meanwhile but
        // this code's own stack and heap, which `out` does not overlap with its source.
        unsafe { core::ptr::copy((KERNEL_BASE + address) as *const u8, out.as_mut_ptr(), out.len()) };
        true
    }
}

/// Reads the structure at physical `start_info`. `image` is where the kernel lies.
pub fn read(start_info: u64, image: (u64, u64)) -> Result<Pvh, PvhError> {
    let info = StartInfo::read(&BootMap, start_info)?;
    let mut text = vec![0; COMMAND_LINE_LIMIT];
    let command_line = String::from_utf8_lossy(info.command_line(&BootMap, &mut text)?).into_owned();
    let module = info.modules(&BootMap).next().map(|module| (module.start, module.start + module.len));
    let regions: Vec<Region> = info.regions(&BootMap).collect();
    let ram = usable_ram(&regions, LOW_END, features::physical_address_bits());
    check_places(&ram, image, module)?;
    Ok(Pvh { command_line, module, rsdp: info.rsdp, ram })
}
