#![allow(unsafe_code, reason = "reads the ACPI timer's port")]
//! Clocks of known rate, against which others are measured.
use logic::{
    acpi::{PmTimer, Register},
    clock::{PM_TIMER_HZ, Reference},
};
use x86_64::instructions::port::Port;

use super::counter;
use crate::cpu::{apic, exits};

/// Lets so many ticks of the time stamp counter pass.
fn pass(ticks: u64) {
    let from = counter();
    while counter().wrapping_sub(from) < ticks {
        core::hint::spin_loop();
    }
}

/// The time stamp counter against the APIC's one-shot timer, which counts downwards.
pub struct ByApicTimer {
    pub hz: u64,
}

impl Reference for ByApicTimer {
    fn hz(&self) -> u64 {
        self.hz
    }

    fn bits(&self) -> u32 {
        u32::BITS
    }

    fn counter(&self) -> u64 {
        counter()
    }

    fn clock(&self) -> u64 {
        u64::from(u32::MAX - apic::timer_left())
    }

    fn wait(&self, ticks: u64) {
        pass(ticks);
    }
}

/// The time stamp counter against the ACPI timer.
#[derive(Clone, Copy)]
pub struct ByPmTimer {
    port: u16,
    wide: bool,
}

impl ByPmTimer {
    /// None: it is in memory, which no machine that this kernel runs on does.
    pub fn new(timer: PmTimer) -> Option<Self> {
        match timer.register {
            Register::Port(port) => Some(Self { port, wide: timer.wide }),
            Register::Memory(_) => None,
        }
    }
}

impl Reference for ByPmTimer {
    fn hz(&self) -> u64 {
        PM_TIMER_HZ
    }

    fn bits(&self) -> u32 {
        if self.wide { 32 } else { 24 }
    }

    fn counter(&self) -> u64 {
        counter()
    }

    fn clock(&self) -> u64 {
        exits::port();
        // SAFETY: the port that the FADT names; reading it changes nothing.
        let value = unsafe { Port::<u32>::new(self.port).read() };
        u64::from(value) & (u64::MAX >> (64 - self.bits()))
    }

    fn wait(&self, ticks: u64) {
        pass(ticks);
    }
}

/// The APIC's timer against the ACPI timer.
pub struct ApicByPmTimer(pub ByPmTimer);

impl Reference for ApicByPmTimer {
    fn hz(&self) -> u64 {
        self.0.hz()
    }

    fn bits(&self) -> u32 {
        self.0.bits()
    }

    fn counter(&self) -> u64 {
        u64::from(u32::MAX - apic::timer_left())
    }

    fn clock(&self) -> u64 {
        self.0.clock()
    }

    fn wait(&self, ticks: u64) {
        pass(ticks);
    }
}
