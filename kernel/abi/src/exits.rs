//! How often a machine did what its hypervisor has to step in for.
//!
//! A count of instructions prices such an access at one; on hardware each costs a thousand or more.
//! Counted by the kernel for itself; what application code does at ring 0 (`cpuid`, port access) is
//! not seen. An upper bound: hypervisors with a virtual APIC spare some of the APIC's.
use core::{fmt, ops::Sub};

/// One number for each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Accesses to I/O ports: serial port, PCI configuration by ports, CMOS, power-off.
    pub ports: u64,
    /// Accesses to device registers in memory: APIC, I/O APIC, virtio, PCI configuration by ECAM.
    pub mmio: u64,
    /// Accesses to the APIC's model-specific registers. Others (FS and GS base, STAR, EFER) are the
    /// guest's own under KVM.
    pub msr: u64,
    /// Halts of an idle CPU.
    pub hlt: u64,
    /// Interrupts sent to other CPUs; the accesses that send them count as MMIO or MSR too.
    pub ipi: u64,
    pub cpuid: u64,
}

impl Exits {
    pub const NAMES: [&'static str; 6] = ["ports", "mmio", "msr", "hlt", "ipi", "cpuid"];

    /// In the order of [`Exits::NAMES`].
    pub const fn values(self) -> [u64; 6] {
        [self.ports, self.mmio, self.msr, self.hlt, self.ipi, self.cpuid]
    }

    pub const fn from_values([ports, mmio, msr, hlt, ipi, cpuid]: [u64; 6]) -> Self {
        Self { ports, mmio, msr, hlt, ipi, cpuid }
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut values = [0; 6];
        for (value, name) in values.iter_mut().zip(Self::NAMES) {
            *value = words.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok()?;
        }
        words.next().is_none().then_some(Self::from_values(values))
    }
}

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, value)) in Self::NAMES.iter().zip(self.values()).enumerate() {
            write!(f, "{}{name}={value}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl Sub for Exits {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        let (now, before) = (self.values(), before.values());
        Self::from_values(core::array::from_fn(|at| now[at].wrapping_sub(before[at])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn what_is_written_is_read_back() {
        let exits = Exits { ports: 1, mmio: 2, msr: 3, hlt: 4, ipi: 5, cpuid: u64::MAX };
        assert_eq!(Exits::parse(&exits.to_string()), Some(exits));
        assert_eq!((exits - exits).values(), [0; 6]);
        for bad in ["", "ports=1", "ports=1 mmio=2 msr=3 hlt=4 ipi=5 cpuid=6 more=7", "mmio=1 ports=2"] {
            assert_eq!(Exits::parse(bad), None);
        }
    }
}
