//! Processors: per-CPU data, descriptor tables, features, local APICs and bring-up.
pub mod apic;
pub mod exits;
pub mod features;
pub mod ioapic;
pub mod irq;
pub mod lock;
pub mod percpu;
pub mod smp;
pub mod tables;

/// How this machine's CPUs are used, as one line of the log.
pub struct Features;

impl core::fmt::Display for Features {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mode = if apic::is_x2apic() { "x2APIC" } else { "xAPIC" };
        let timers = if apic::has_tsc_deadline() { "TSC deadline" } else { "count" };
        write!(f, "{mode}, timers by {timers}, vector state {:#x}", features::xcr0())
    }
}
