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
