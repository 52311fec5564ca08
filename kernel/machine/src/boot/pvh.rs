#![allow(unsafe_code, reason = "reads boot structures through the boot page tables")]
//! Reads what PVH left in memory, through the boot map of the first GiB.
use alloc::{string::String, vec::Vec};

use crate::memory::paging::{KERNEL_BASE, PAGE};

pub struct Pvh {
    pub command_line: String,
    pub module: Option<(u64, u64)>,
    pub rsdp: u64,
    /// Usable RAM from 1 MiB on, page-aligned.
    pub ram: Vec<(u64, u64)>,
}

const MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
const COMMAND_LINE_LIMIT: usize = 65536;
const BOOT_REACH: u64 = 1 << 30;
const LOW_END: u64 = 1 << 20;

fn u32_at(physical: u64) -> u32 {
    assert!(physical < BOOT_REACH - 8, "boot structure above 1 GiB");
    // SAFETY: the boot tables map the first GiB at KERNEL_BASE.
    unsafe { ((KERNEL_BASE + physical) as *const u32).read_unaligned() }
}

fn u64_at(physical: u64) -> u64 {
    u64::from(u32_at(physical)) | u64::from(u32_at(physical + 4)) << 32
}

fn c_string(physical: u64) -> String {
    if physical == 0 {
        return String::new();
    }
    let bytes: Vec<u8> = (0..COMMAND_LINE_LIMIT as u64)
        .map(|at| u32_at(physical + at) as u8)
        .take_while(|&byte| byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// See the Xen public header `arch-x86/hvm/start_info.h`.
pub fn read(start_info: u64) -> Pvh {
    assert!(u32_at(start_info) == MAGIC, "no PVH start info at {start_info:#x}");
    let version = u32_at(start_info + 4);
    assert!(version >= 1, "PVH start info version {version} has no memory map");
    let modules = u32_at(start_info + 12);
    let module_list = u64_at(start_info + 16);
    let module = (modules > 0).then(|| {
        let start = u64_at(module_list);
        (start, start + u64_at(module_list + 8))
    });
    let map = u64_at(start_info + 40);
    let entries = u32_at(start_info + 48);
    let mut ram = Vec::new();
    for entry in (0..u64::from(entries)).map(|index| map + 24 * index) {
        let (start, size, kind) = (u64_at(entry), u64_at(entry + 8), u32_at(entry + 16));
        let (from, to) = (start.max(LOW_END).next_multiple_of(PAGE), (start + size) & !(PAGE - 1));
        if kind == TYPE_RAM && from < to {
            ram.push((from, to));
        }
    }
    Pvh { command_line: c_string(u64_at(start_info + 24)), module, rsdp: u64_at(start_info + 32), ram }
}
