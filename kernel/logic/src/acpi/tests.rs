//! Tables as QEMU lays them out, whole and damaged.
use super::*;
use crate::{physical::fake::Memory, random::Stream};

const BASE: u64 = 0xe_0000;
const RSDP: u64 = 0xf_5000;

fn seal(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[..4].copy_from_slice(signature);
    bytes.extend(body);
    let len = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    seal(&mut bytes, 9);
    bytes
}

fn madt() -> Vec<u8> {
    let mut body = [0xfee0_0000u32, 1].map(u32::to_le_bytes).concat();
    body.extend([0, 8, 0, 0, 1, 0, 0, 0]);
    body.extend([0, 8, 1, 1, 1, 0, 0, 0]);
    body.extend([0, 8, 2, 2, 0, 0, 0, 0]);
    body.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    body.extend([2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0]);
    body.extend([4, 6, 0xff, 0, 0, 1]);
    body.extend([9, 16, 0, 0, 3, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    table(b"APIC", &body)
}

fn gas(fadt: &mut [u8], at: usize, space: u8, address: u64) {
    fadt[at] = space;
    fadt[at + 4..at + 12].copy_from_slice(&address.to_le_bytes());
}

fn fadt(hw_reduced: bool, dsdt: u32) -> Vec<u8> {
    let mut bytes = table(b"FACP", &[0; 268 - HEADER_LEN]);
    bytes[40..44].copy_from_slice(&dsdt.to_le_bytes());
    bytes[64..68].copy_from_slice(&0x604u32.to_le_bytes());
    bytes[76..80].copy_from_slice(&0x608u32.to_le_bytes());
    let flags: u32 = 1 << 8 | 1 << 10 | u32::from(hw_reduced) << 20;
    bytes[112..116].copy_from_slice(&flags.to_le_bytes());
    gas(&mut bytes, 116, 1, 0xcf9);
    bytes[128] = 0x0f;
    gas(&mut bytes, 244, 0, 0xfea0_0200);
    seal(&mut bytes, 9);
    bytes
}

/// `Name (_S5, Package () {5, 5, 0, 0})` and two devices as QEMU's microvm writes them.
fn dsdt() -> Vec<u8> {
    let mut aml = b"junk_S5_junk".to_vec();
    aml.extend(b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00");
    for n in 0..2u8 {
        aml.extend(b"\x5b\x82\x3f\x0fVR0");
        aml.push(b'0' + n);
        aml.extend(b"\x08_HID\x0dLNRO0005\0\x08_UID\x0a\x01\x08_CRS\x11\x1a\x0a\x17\x86\x09\x00\x01");
        aml.extend((0xfeb0_0000 + 512 * u32::from(n)).to_le_bytes());
        aml.extend(512u32.to_le_bytes());
        aml.extend([0x89, 6, 0, 1, 1, 16 + n, 0, 0, 0, 0x79, 0]);
    }
    table(b"DSDT", &aml)
}

/// What QEMU's microvm with PCIe says of its host bridge.
fn host_bridge() -> Vec<u8> {
    let mut aml =
        b"\x5b\x82\x40\x10PC00\x08_HID\x0c\x41\xd0\x0a\x08\x14\x0d_CBA\x00\xa4\x0c\x00\x00\x00\xe0\x08_CRS\x11\x00"
            .to_vec();
    aml.extend(b"\x88\x0d\x00\x02\x0c\x00\x00\x00\x00\x00\xff\x00\x00\x00\x00\x01");
    aml.extend(b"\x87\x17\x00\x00\x0c\x01");
    aml.extend([0u32, 0xc000_0000, 0xdfff_ffff, 0, 0x2000_0000].map(u32::to_le_bytes).concat());
    for (start, len) in [(0xc0_0000_0000u64, 0x40_0000_0000u64), (0xe000_0000, 0x1000_0000)] {
        aml.extend(b"\x8a\x2b\x00\x00\x0c\x01");
        aml.extend([0, start, start + len - 1, 0, len].map(u64::to_le_bytes).concat());
    }
    aml
}

#[test]
fn without_mcfg_the_host_bridge_says_where_it_is() {
    let mut acpi = Acpi::default();
    acpi.take_host_bridge(&host_bridge());
    assert_eq!(acpi.bridge, Some(Ecam { base: 0xe000_0000, segment: 0, first_bus: 0, last_bus: 255 }));
    assert_eq!(acpi.pci_windows, [(0xc000_0000, 0xe000_0000), (0xc0_0000_0000, 0x100_0000_0000)]);
    let aml = host_bridge();
    for end in 0..aml.len() {
        let _ = (aml::ecam_base(&aml[..end]), aml::memory_windows(&aml[..end]));
    }
}

fn machine(hw_reduced: bool, extended: bool) -> Memory {
    let mut memory = Memory { base: BASE, bytes: vec![0; 0x2_0000] };
    let mcfg_body = [&[0; 8][..], &0xb000_0000u64.to_le_bytes(), &[0, 0, 0, 255, 0, 0, 0, 0]].concat();
    let tables = [madt(), fadt(hw_reduced, 0xe_8000), table(b"MCFG", &mcfg_body), table(b"WAET", &[1, 2, 3])];
    let mut list = Vec::new();
    for (n, bytes) in tables.iter().enumerate() {
        let address = 0xe_1000 + 0x1000 * n as u32;
        memory.put(u64::from(address), bytes);
        list.extend_from_slice(&u64::from(address).to_le_bytes()[..if extended { 8 } else { 4 }]);
    }
    memory.put(0xe_8000, &dsdt());
    memory.put(0xe_9000, &table(if extended { b"XSDT" } else { b"RSDT" }, &list));
    let mut root = vec![0; 36];
    root[..8].copy_from_slice(b"RSD PTR ");
    root[16..20].copy_from_slice(&0xe_9000u32.to_le_bytes());
    if extended {
        root[15] = 2;
        root[20] = 36;
        root[24..32].copy_from_slice(&0xe_9000u64.to_le_bytes());
    }
    seal(&mut root[..20], 8);
    seal(&mut root, 32);
    memory.put(RSDP, &root);
    memory
}

#[test]
fn reads_a_q35() {
    for extended in [false, true] {
        let memory = machine(false, extended);
        let acpi = Acpi::read(&memory, 0).unwrap();
        assert_eq!(acpi, Acpi::read(&memory, RSDP).unwrap());
        let ids: Vec<u32> = acpi.cpus.iter().map(|cpu| cpu.apic_id).collect();
        assert_eq!((ids, acpi.local_apic), (vec![0, 1, 0x103], Some(0xfee0_0000)));
        assert_eq!(acpi.ioapics, [IoApic { address: 0xfec0_0000, first_gsi: 0 }]);
        assert_eq!(acpi.isa_route(0), (2, false, false));
        assert_eq!(acpi.isa_route(9), (9, true, false));
        assert_eq!(acpi.isa_route(4), (4, false, false));
        assert_eq!(acpi.ecam, [Ecam { base: 0xb000_0000, segment: 0, first_bus: 0, last_bus: 255 }]);
        assert_eq!(acpi.power.pm1a_control, Some(0x604));
        assert_eq!(acpi.power.s5_type, Some((5, 5)));
        assert_eq!(acpi.power.reset, Some((Register::Port(0xcf9), 0x0f)));
        assert_eq!(acpi.pm_timer, Some(PmTimer { register: Register::Port(0x608), wide: true }));
    }
}

#[test]
fn leaves_out_what_the_cpu_does_not_reach() {
    let whole = Acpi::read(&machine(true, true), RSDP).unwrap();
    let mut acpi = whole.clone();
    acpi.keep_below(1 << 40);
    assert_eq!(acpi, whole);
    acpi.keep_below(0xfeb0_0200);
    assert_eq!(acpi.virtio_mmio, [], "their page ends beyond");
    assert_eq!(acpi.power.sleep_control, Some(Register::Memory(0xfea0_0200)));
    acpi.keep_below(0xfea0_0200);
    assert_eq!(acpi.power.sleep_control, None);
    let mut acpi = Acpi::read(&machine(false, true), RSDP).unwrap();
    acpi.power.reset = Some((Register::Memory(u64::MAX), 1));
    acpi.ecam.push(Ecam { base: (1 << 40) - (255 << 20), segment: 1, first_bus: 0, last_bus: 255 });
    acpi.keep_below(1 << 40);
    assert_eq!((acpi.power.reset, acpi.ecam.len()), (None, 1), "the last bus would lie beyond");
    assert_eq!(acpi.power.pm1a_control, Some(0x604), "a port is no address");
}

#[test]
fn reads_a_microvm() {
    let acpi = Acpi::read(&machine(true, true), RSDP).unwrap();
    assert_eq!(acpi.power.sleep_control, Some(Register::Memory(0xfea0_0200)));
    assert_eq!((acpi.power.pm1a_control, acpi.pm_timer), (None, None));
    let device = VirtioMmio { address: 0xfeb0_0200, len: 512, gsi: 17, level: true, active_low: false };
    assert_eq!((acpi.virtio_mmio.len(), acpi.virtio_mmio[1]), (2, device));
}

#[test]
fn damage_is_refused() {
    let mut memory = machine(false, true);
    memory.put(0xe_1020, &[0x55]);
    let error = Acpi::read(&memory, RSDP).unwrap_err();
    assert_eq!(error, AcpiError::BadChecksum(*b"APIC"));
    assert_eq!(error.to_string(), "ACPI table APIC has a wrong checksum");
    memory.put(0xe_1004, &u32::MAX.to_le_bytes());
    assert_eq!(Acpi::read(&memory, RSDP), Err(AcpiError::BadLength(*b"APIC", u32::MAX)));
    assert_eq!(Acpi::read(&memory, 0x10), Err(AcpiError::Unreadable(0x10)));
    assert_eq!(Acpi::read(&memory, BASE), Err(AcpiError::NoRootPointer));
}

/// Damage with right checksums reaches the parsers.
#[test]
fn mutations_do_no_harm() {
    for seed in 0..3000 {
        let mut random = Stream::new(seed);
        let mut memory = machine(seed % 2 == 0, seed % 3 == 0);
        for (address, body) in [(0xe_1000, 120), (0xe_2000, 232), (0xe_3000, 24), (0xe_8000, 170), (0xe_9000, 32)] {
            for _ in 0..random.below(3) {
                memory.put(address + 36 + random.below(body), &[random.next_u64() as u8]);
            }
            let at = (address - BASE) as usize;
            let len = u32_at(&memory.bytes, at + 4).unwrap() as usize;
            seal(&mut memory.bytes[at..at + len], 9);
        }
        if let Ok(acpi) = Acpi::read(&memory, RSDP) {
            assert!(acpi.virtio_mmio.iter().all(|d| d.len >= 0x100));
        }
    }
}

#[test]
fn aml_that_ends_early_gives_nothing() {
    let aml = dsdt();
    for end in 0..aml.len() {
        let _ = (aml::sleep_type_s5(&aml[..end]), aml::virtio_mmio(&aml[..end]));
    }
    assert_eq!(aml::sleep_type_s5(b"\x08_S5_\x12\x40"), None);
}
