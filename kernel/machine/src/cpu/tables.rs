#![allow(unsafe_code, reason = "loads descriptor tables")]
//! GDT, TSS and IDT: one set of tables per CPU, one IDT for all.
//!
//! Every vector runs on an IST stack, since application code uses the red zone. The slots:
//!
//! | slot | vectors |
//! |---|---|
//! | 1 | interrupts |
//! | 2 | #PF |
//! | 3 | other faults |
//! | 4 | #DF |
//! | 5 | NMI |
//! | 6 | #MC |
//! | 7 | #DB |
//!
//! Above its first frame each has the address of the CPU's [`PerCpu`]: `trap/entry.S` holds the GS base, which a
//! program can change, against it.
use alloc::boxed::Box;
use core::mem::size_of;

use spin::Once;
use x86_64::{
    PrivilegeLevel, VirtAddr,
    instructions::tables::{lgdt, lidt, load_tss},
    registers::{
        model_specific::{Efer, EferFlags, LStar, Msr, SFMask},
        rflags::RFlags,
        segmentation::{CS, DS, ES, SS, Segment},
    },
    structures::{DescriptorTablePointer, gdt::SegmentSelector, tss::TaskStateSegment},
};

use super::percpu::{PerCpu, this_cpu};
use crate::memory::stacks;

/// Bytes of one IST stack; frames leave it at once. The fatal ones (#DF, NMI, #MC) run handlers.
const IST_BYTES: usize = 4096;
const FATAL_IST_BYTES: usize = 16384;
const STAR: u32 = 0xC000_0081;

unsafe extern "C" {
    static trap_stubs: u8;
    fn syscall_entry();
}

#[repr(C, align(16))]
struct Gdt {
    entries: [u64; 5],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    low: u64,
    high: u64,
}

static IDT: Once<Box<[Gate; 256]>> = Once::new();

/// IST slot of a vector.
fn ist_slot(vector: usize) -> u64 {
    match vector {
        1 => 7,
        2 => 5,
        8 => 4,
        14 => 2,
        18 => 6,
        0..32 => 3,
        _ => 1,
    }
}

fn build_idt() -> Box<[Gate; 256]> {
    let mut idt = Box::new([Gate { low: 0, high: 0 }; 256]);
    for (vector, gate) in idt.iter_mut().enumerate() {
        // Stubs are 16 bytes apart: `.balign 16` in entry.S, each at most 16 bytes long.
        let handler = (&raw const trap_stubs) as u64 + 16 * vector as u64;
        // 64-bit interrupt gate, present. DPL 3 changes nothing at ring 0.
        gate.low = (handler & 0xffff)
            | (0x08 << 16)
            | (ist_slot(vector) << 32)
            | (0x8e << 40)
            | ((handler >> 16 & 0xffff) << 48);
        gate.high = handler >> 32;
    }
    idt
}

/// A stack of the calling CPU that begins below the address of the CPU's data.
fn ist_stack(bytes: usize) -> u64 {
    // The CPU aligns the stack pointer to 16 before it pushes.
    let start = stacks::leak(bytes) - 16;
    // SAFETY: within the fresh stack.
    unsafe { (start as *mut *const PerCpu).write(this_cpu()) };
    start
}

/// Builds and loads the calling CPU's tables and its `syscall` registers.
pub fn load() {
    let mut tss = Box::new(TaskStateSegment::new());
    for slot in 1..=7usize {
        let bytes = if (4..=6).contains(&slot) { FATAL_IST_BYTES } else { IST_BYTES };
        tss.interrupt_stack_table[slot - 1] = VirtAddr::new(ist_stack(bytes));
    }
    let tss: &'static TaskStateSegment = Box::leak(tss);
    let base = tss as *const _ as u64;
    let limit = size_of::<TaskStateSegment>() as u64 - 1;
    let gdt = Box::leak(Box::new(Gdt {
        entries: [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            // 64-bit TSS, available.
            limit & 0xffff | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56,
            base >> 32,
        ],
    }));
    let idt = IDT.call_once(build_idt);
    // SAFETY: the tables are leaked or static, hold the selectors that are loaded, and describe
    // flat segments as the boot tables did.
    unsafe {
        lgdt(&DescriptorTablePointer { limit: size_of::<Gdt>() as u16 - 1, base: VirtAddr::from_ptr(gdt) });
        CS::set_reg(SegmentSelector::new(1, PrivilegeLevel::Ring0));
        let data = SegmentSelector::new(2, PrivilegeLevel::Ring0);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(SegmentSelector::new(3, PrivilegeLevel::Ring0));
        lidt(&DescriptorTablePointer { limit: 256 * 16 - 1, base: VirtAddr::from_ptr(idt.as_ptr()) });
        // `syscall` loads CS 0x08 and SS 0x10.
        Msr::new(STAR).write(0x08 << 32);
        LStar::write(VirtAddr::from_ptr(syscall_entry as *const ()));
        SFMask::write(
            RFlags::INTERRUPT_FLAG
                | RFlags::DIRECTION_FLAG
                | RFlags::TRAP_FLAG
                | RFlags::ALIGNMENT_CHECK
                | RFlags::NESTED_TASK,
        );
        Efer::update(|flags| flags.insert(EferFlags::SYSTEM_CALL_EXTENSIONS));
    }
}
