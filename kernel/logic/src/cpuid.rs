//! What CPUID says, over a trait, so that leaves of machines that are not at hand can be tested.

/// Leaf and subleaf to (eax, ebx, ecx, edx).
pub trait Cpuid {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];

    /// A leaf that the CPU may not have: zeros then (a CPU answers with another leaf's values).
    fn leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let base = leaf & 0xc000_0000;
        if base == HYPERVISOR && !self.is_virtual() || self.cpuid(base, 0)[0] < leaf {
            return [0; 4];
        }
        self.cpuid(leaf, subleaf)
    }

    /// Leaf 1, ECX bit 31: hypervisors set it, no CPU does.
    fn is_virtual(&self) -> bool {
        self.cpuid(1, 0)[2] & 1 << 31 != 0
    }

    fn hypervisor(&self) -> Option<Hypervisor> {
        if !self.is_virtual() {
            return None;
        }
        let [_, b, c, d] = self.cpuid(HYPERVISOR, 0);
        let mut signature = [0; 12];
        for (at, word) in [b, c, d].into_iter().enumerate() {
            signature[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
        }
        Some(match &signature {
            b"KVMKVMKVM\0\0\0" => Hypervisor::Kvm,
            b"TCGTCGTCGTCG" => Hypervisor::Tcg,
            b"VMwareVMware" => Hypervisor::VMware,
            _ => Hypervisor::Other,
        })
    }

    fn has_x2apic(&self) -> bool {
        self.cpuid(1, 0)[2] & 1 << 21 != 0
    }

    fn has_tsc_deadline(&self) -> bool {
        self.cpuid(1, 0)[2] & 1 << 24 != 0
    }

    /// The time stamp counter runs at one rate in all power states.
    fn has_invariant_tsc(&self) -> bool {
        self.leaf(0x8000_0007, 0)[3] & 1 << 8 != 0
    }
}

const HYPERVISOR: u32 = 0x4000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypervisor {
    Kvm,
    /// QEMU's translator.
    Tcg,
    VMware,
    Other,
}

#[cfg(test)]
pub mod fake {
    //! A CPU of chosen leaves.
    use std::collections::BTreeMap;

    use super::Cpuid;

    #[derive(Clone, Default)]
    pub struct FakeCpuid(pub BTreeMap<(u32, u32), [u32; 4]>);

    impl FakeCpuid {
        /// With a hypervisor's signature and its highest leaf.
        pub fn under(signature: &[u8; 12], max_leaf: u32) -> Self {
            let word = |at: usize| u32::from_le_bytes(signature[at..at + 4].try_into().unwrap());
            Self::default().with(1, 0, [0, 0, 1 << 31, 0]).with(0x4000_0000, 0, [max_leaf, word(0), word(4), word(8)])
        }

        pub fn with(mut self, leaf: u32, subleaf: u32, value: [u32; 4]) -> Self {
            self.0.insert((leaf, subleaf), value);
            let base = leaf & 0xc000_0000;
            let first = self.0.entry((base, 0)).or_insert([0; 4]);
            first[0] = first[0].max(leaf);
            self
        }
    }

    impl Cpuid for FakeCpuid {
        fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
            let max = self.0.get(&(leaf & 0xc000_0000, 0)).map_or(0, |value| value[0]);
            // As Intel's CPUs do: a leaf that is too high gives the highest one's values.
            self.0.get(&(leaf.min(max.max(leaf & 0xc000_0000)), subleaf)).copied().unwrap_or([0; 4])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fake::FakeCpuid, *};

    #[test]
    fn a_leaf_that_is_not_there_reads_as_zeros() {
        let cpu = FakeCpuid::default().with(0xd, 0, [7, 7, 7, 7]);
        assert_eq!(cpu.cpuid(0x15, 0), [7; 4]);
        assert_eq!(cpu.leaf(0x15, 0), [0; 4]);
        assert_eq!(cpu.leaf(0x8000_0007, 0), [0; 4]);
        // Without a hypervisor its range belongs to nobody.
        assert_eq!(cpu.leaf(0x4000_0010, 0), [0; 4]);
        assert_eq!(cpu.hypervisor(), None);
    }

    #[test]
    fn hypervisors_are_known_by_their_signature() {
        assert_eq!(FakeCpuid::under(b"KVMKVMKVM\0\0\0", 0x4000_0001).hypervisor(), Some(Hypervisor::Kvm));
        assert_eq!(FakeCpuid::under(b"TCGTCGTCGTCG", 0x4000_0001).hypervisor(), Some(Hypervisor::Tcg));
        assert_eq!(FakeCpuid::under(b"Microsoft Hv", 0x4000_0006).hypervisor(), Some(Hypervisor::Other));
    }
}
