//! The local APIC: which mode it runs in, how its registers are reached, interrupts to other CPUs, and
//! its timer, one-shot or by TSC deadline (SDM volume 3, chapter 11).
//!
//! xAPIC registers lie in a window of memory; in x2APIC mode each is an MSR, identifiers have 32 bits,
//! and the ICR is one register. The machine gives the [`Registers`].
use crate::cpuid::Cpuid;

/// A CPU's registers.
pub trait Registers {
    fn read_msr(&self, msr: u32) -> u64;
    fn write_msr(&self, msr: u32, value: u64);
    /// `offset` into the xAPIC's window, which is uncached.
    fn read_window(&self, offset: u32) -> u32;
    fn write_window(&self, offset: u32, value: u32);
    /// Earlier stores are visible, to devices too, before later MSR writes take effect.
    fn fence(&self);
}

pub const APIC_BASE: u32 = 0x1b;
pub const BASE_ENABLED: u64 = 1 << 11;
pub const BASE_X2APIC: u64 = 1 << 10;
const X2APIC_MSRS: u32 = 0x800;
const TSC_DEADLINE: u32 = 0x6e0;

const ID: u32 = 0x20;
const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const TIMER_COUNT: u32 = 0x380;
const TIMER_NOW: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

const SOFTWARE_ENABLED: u32 = 1 << 8;
const DIVIDE_BY_1: u32 = 0xb;
const MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 2 << 17;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_INIT: u32 = 5 << 8;
const DELIVER_STARTUP: u32 = 6 << 8;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
/// The highest identifier that an xAPIC can address alone; 255 is everybody.
const XAPIC_LAST_ID: u32 = 254;

/// What is sent to another CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Vector(u8),
    Nmi,
    Init,
    /// Start in real mode at this page.
    Startup(u8),
}

impl Message {
    fn command(self) -> u32 {
        ICR_ASSERT
            | match self {
                Self::Vector(vector) => u32::from(vector),
                Self::Nmi => DELIVER_NMI,
                Self::Init => DELIVER_INIT,
                Self::Startup(page) => DELIVER_STARTUP | u32::from(page),
            }
    }
}

/// The modes, which are the same on all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalApic {
    pub x2apic: bool,
    pub tsc_deadline: bool,
}

impl LocalApic {
    /// Switches the calling CPU's APIC on, into x2APIC mode where there is one. The result is whether
    /// it is in that mode; if not, its registers are reached by the window from then on.
    pub fn enable(registers: &impl Registers, cpu: &impl Cpuid) -> bool {
        let mut base = registers.read_msr(APIC_BASE);
        // From off there is no way into x2APIC mode but by xAPIC mode: #GP (SDM 11.12.5).
        if base & BASE_ENABLED == 0 {
            base = base & !BASE_X2APIC | BASE_ENABLED;
            registers.write_msr(APIC_BASE, base);
        }
        if cpu.has_x2apic() && base & BASE_X2APIC == 0 {
            base |= BASE_X2APIC;
            registers.write_msr(APIC_BASE, base);
        }
        base & BASE_X2APIC != 0
    }

    /// Accepts interrupts, legacy ones aside; the timer unarmed.
    pub fn init(self, registers: &impl Registers, spurious: u8, timer: u8) {
        self.write(registers, TPR, 0);
        self.write(registers, SPURIOUS, SOFTWARE_ENABLED | u32::from(spurious));
        self.write(registers, LVT_LINT0, MASKED);
        // By this line a machine's button, or QEMU's `inject-nmi`, asks each CPU what it does.
        self.write(registers, LVT_LINT1, DELIVER_NMI);
        self.write(registers, TIMER_DIVIDE, DIVIDE_BY_1);
        self.set_timer_vector(registers, timer);
    }

    #[inline]
    fn read(self, registers: &impl Registers, register: u32) -> u32 {
        if self.x2apic {
            registers.read_msr(X2APIC_MSRS + (register >> 4)) as u32
        } else {
            registers.read_window(register)
        }
    }

    #[inline]
    fn write(self, registers: &impl Registers, register: u32, value: u32) {
        if self.x2apic {
            registers.write_msr(X2APIC_MSRS + (register >> 4), u64::from(value));
        } else {
            registers.write_window(register, value);
        }
    }

    pub fn id(self, registers: &impl Registers) -> u32 {
        let id = self.read(registers, ID);
        if self.x2apic { id } else { id >> 24 }
    }

    #[inline]
    pub fn end_of_interrupt(self, registers: &impl Registers) {
        self.write(registers, EOI, 0);
    }

    /// Whether [`Self::send`] can reach that CPU.
    pub fn reaches(self, apic_id: u32) -> bool {
        // The last one is everybody.
        if self.x2apic { apic_id != u32::MAX } else { apic_id <= XAPIC_LAST_ID }
    }

    /// Sends to another CPU. Interrupts must be off: the xAPIC's two ICR halves belong together.
    pub fn send(self, registers: &impl Registers, apic_id: u32, message: Message) {
        let command = message.command();
        if self.x2apic {
            // An MSR write does not wait for earlier stores, which the receiver is to see (SDM 11.12.3).
            registers.fence();
            registers.write_msr(X2APIC_MSRS + (ICR_LOW >> 4), u64::from(apic_id) << 32 | u64::from(command));
            return;
        }
        while registers.read_window(ICR_LOW) & ICR_PENDING != 0 {
            core::hint::spin_loop();
        }
        registers.write_window(ICR_HIGH, apic_id << 24);
        registers.write_window(ICR_LOW, command);
    }

    // --- the timer ---

    /// Which vector the timer raises. This sets the timer's mode, too, and disarms a TSC deadline.
    pub fn set_timer_vector(self, registers: &impl Registers, vector: u8) {
        let mode = if self.tsc_deadline { LVT_TSC_DEADLINE } else { 0 };
        self.write(registers, LVT_TIMER, mode | u32::from(vector));
        if self.tsc_deadline {
            // A deadline written before the mode has changed is lost (SDM 11.5.4.1).
            registers.fence();
        }
    }

    /// Arms the one-shot timer, in timer ticks from now; 0 disarms it.
    #[inline]
    pub fn arm_after(self, registers: &impl Registers, ticks: u32) {
        self.write(registers, TIMER_COUNT, ticks);
    }

    /// Arms the timer for a value of the time stamp counter. One that has passed fires at once.
    #[inline]
    pub fn arm_at(self, registers: &impl Registers, counter: u64) {
        // 0 would disarm it.
        registers.write_msr(TSC_DEADLINE, counter.max(1));
    }

    pub fn disarm(self, registers: &impl Registers) {
        if self.tsc_deadline {
            registers.write_msr(TSC_DEADLINE, 0);
        } else {
            self.arm_after(registers, 0);
        }
    }

    /// Ticks left of the one-shot timer.
    pub fn timer_left(self, registers: &impl Registers) -> u32 {
        self.read(registers, TIMER_NOW)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::cpuid::fake::FakeCpuid;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Access {
        Msr(u32, u64),
        Window(u32, u32),
        Fence,
    }
    use Access::{Fence, Msr, Window};

    /// Registers that refuse what the SDM says gives #GP, and log what is written.
    #[derive(Default)]
    struct Fake {
        base: Cell<u64>,
        /// Reads of the ICR that find it busy yet.
        busy: Cell<u32>,
        id: u32,
        log: RefCell<Vec<Access>>,
    }

    impl Fake {
        fn with_base(base: u64) -> Self {
            Self { base: Cell::new(base), ..Self::default() }
        }

        fn take(&self) -> Vec<Access> {
            self.log.take()
        }
    }

    impl Registers for Fake {
        fn read_msr(&self, msr: u32) -> u64 {
            match msr {
                APIC_BASE => self.base.get(),
                0x802 => u64::from(self.id),
                _ => panic!("read of MSR {msr:#x}"),
            }
        }

        fn write_msr(&self, msr: u32, value: u64) {
            let mode = self.base.get() & (BASE_ENABLED | BASE_X2APIC);
            match msr {
                APIC_BASE => {
                    let to = value & (BASE_ENABLED | BASE_X2APIC);
                    assert!(mode != 0 || to != BASE_ENABLED | BASE_X2APIC, "#GP: from off to x2APIC");
                    assert!(mode & BASE_X2APIC == 0 || to != BASE_ENABLED, "#GP: from x2APIC to xAPIC");
                    assert!(to != BASE_X2APIC, "#GP: x2APIC without enable");
                    self.base.set(value);
                }
                TSC_DEADLINE => {}
                0x800..0x900 => {
                    assert!(mode & BASE_X2APIC != 0, "#GP: x2APIC register {msr:#x}");
                    assert_ne!(msr, 0x831, "#GP: there is no second half of the ICR");
                    assert!(msr == 0x830 || value >> 32 == 0, "#GP: reserved bits");
                    assert!(msr != 0x80b || value == 0, "#GP: EOI takes 0");
                }
                _ => panic!("write of MSR {msr:#x}"),
            }
            self.log.borrow_mut().push(Msr(msr, value));
        }

        fn read_window(&self, offset: u32) -> u32 {
            assert!(self.base.get() & BASE_X2APIC == 0, "the window is gone in x2APIC mode");
            let busy = self.busy.get();
            self.busy.set(busy.saturating_sub(1));
            match offset {
                ID => self.id << 24,
                ICR_LOW if busy > 0 => ICR_PENDING,
                ICR_LOW => 0,
                _ => panic!("read of {offset:#x}"),
            }
        }

        fn write_window(&self, offset: u32, value: u32) {
            assert!(self.base.get() & BASE_X2APIC == 0, "the window is gone in x2APIC mode");
            assert!(offset != ICR_LOW || self.busy.get() == 0, "the ICR is busy");
            self.log.borrow_mut().push(Window(offset, value));
        }

        fn fence(&self) {
            self.log.borrow_mut().push(Fence);
        }
    }

    const ADDRESS: u64 = 0xfee0_0100;
    const X1: LocalApic = LocalApic { x2apic: false, tsc_deadline: false };
    const X2: LocalApic = LocalApic { x2apic: true, tsc_deadline: false };

    fn cpu(ecx: u32) -> FakeCpuid {
        FakeCpuid::default().with(1, 0, [0, 0, ecx, 0])
    }

    #[test]
    fn each_mode_is_reached_from_each_state_that_firmware_leaves() {
        let (on, both) = (ADDRESS | BASE_ENABLED, ADDRESS | BASE_ENABLED | BASE_X2APIC);
        for (before, has_x2apic, writes) in [
            (on, true, vec![both]),
            (ADDRESS, true, vec![on, both]),
            (both, true, vec![]),
            (on, false, vec![]),
            (ADDRESS, false, vec![on]),
        ] {
            let fake = Fake::with_base(before);
            let x2apic = LocalApic::enable(&fake, &cpu(u32::from(has_x2apic) << 21));
            assert_eq!(x2apic, has_x2apic);
            let writes: Vec<Access> = writes.into_iter().map(|base| Msr(APIC_BASE, base)).collect();
            assert_eq!(fake.take(), writes, "from {before:#x}");
        }
    }

    #[test]
    fn registers_are_reached_by_the_window_or_by_msrs() {
        let fake = Fake { id: 7, ..Fake::with_base(BASE_ENABLED) };
        X1.init(&fake, 0xff, 0xef);
        X1.end_of_interrupt(&fake);
        let lines = [(LVT_LINT0, MASKED), (LVT_LINT1, 0x400)];
        let expected = [(TPR, 0), (SPURIOUS, 0x1ff), lines[0], lines[1], (TIMER_DIVIDE, 0xb), (LVT_TIMER, 0xef)];
        let mut log = fake.take();
        assert_eq!(log.pop(), Some(Window(EOI, 0)));
        assert_eq!(log, expected.map(|(register, value)| Window(register, value)));
        assert_eq!(X1.id(&fake), 7);

        let fake = Fake { id: 0x1_2345, ..Fake::with_base(BASE_ENABLED | BASE_X2APIC) };
        X2.init(&fake, 0xff, 0xef);
        X2.end_of_interrupt(&fake);
        let lines = [(0x835, 0x1_0000), (0x836, 0x400)];
        let msrs = [(0x808, 0), (0x80f, 0x1ff), lines[0], lines[1], (0x83e, 0xb), (0x832, 0xef), (0x80b, 0)];
        assert_eq!(fake.take(), msrs.map(|(msr, value)| Msr(msr, value)));
        assert_eq!(X2.id(&fake), 0x1_2345);
    }

    #[test]
    fn an_xapic_sends_by_two_halves_once_the_last_one_has_left() {
        let fake = Fake { busy: Cell::new(3), ..Fake::with_base(BASE_ENABLED) };
        X1.send(&fake, 5, Message::Vector(0xf0));
        assert_eq!(fake.take(), [Window(ICR_HIGH, 5 << 24), Window(ICR_LOW, 0x40f0)]);
        assert!(X1.reaches(254) && !X1.reaches(255) && !X1.reaches(256));
    }

    #[test]
    fn an_x2apic_sends_by_one_write_behind_a_fence() {
        let fake = Fake::with_base(BASE_ENABLED | BASE_X2APIC);
        for (message, command) in [
            (Message::Vector(0xf1), 0x40f1),
            (Message::Nmi, 0x4400),
            (Message::Init, 0x4500),
            (Message::Startup(8), 0x4608),
        ] {
            X2.send(&fake, 0x0001_0203, message);
            assert_eq!(fake.take(), [Fence, Msr(0x830, 0x0001_0203_0000_0000 | command)]);
        }
        assert!(X2.reaches(0x0001_0203) && X2.reaches(255) && !X2.reaches(u32::MAX));
    }

    #[test]
    fn a_one_shot_timer_counts_and_a_deadline_is_a_time() {
        let fake = Fake::with_base(BASE_ENABLED);
        X1.arm_after(&fake, 1000);
        X1.disarm(&fake);
        assert_eq!(fake.take(), [Window(TIMER_COUNT, 1000), Window(TIMER_COUNT, 0)]);

        let fake = Fake::with_base(BASE_ENABLED);
        let deadline = LocalApic { tsc_deadline: true, ..X1 };
        deadline.set_timer_vector(&fake, 0xef);
        deadline.arm_at(&fake, 1 << 40);
        // Time zero has passed long ago; written as it is, it would never fire.
        deadline.arm_at(&fake, 0);
        deadline.disarm(&fake);
        let msr = |value| Msr(TSC_DEADLINE, value);
        assert_eq!(fake.take(), [Window(LVT_TIMER, 0x4_00ef), Fence, msr(1 << 40), msr(1), msr(0)]);

        let fake = Fake::with_base(BASE_ENABLED | BASE_X2APIC);
        LocalApic { x2apic: true, tsc_deadline: true }.set_timer_vector(&fake, 0xef);
        assert_eq!(fake.take(), [Msr(0x832, 0x4_00ef), Fence]);
    }
}
