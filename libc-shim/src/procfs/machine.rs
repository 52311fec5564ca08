//! Content of /proc and /sys about the machine as a whole (proc(5), sysfs(5)).
use alloc::{format, string::String};
use core::{
    arch::x86_64::{__cpuid, __cpuid_count},
    fmt::Write,
};

use rt::{page::PAGE_SIZE, rt};

use super::process::TICK_NS;
use crate::{program, system};

/// `0-3`, or `0`.
pub fn cpu_list() -> String {
    match rt().cpu_count() {
        0 | 1 => String::from("0"),
        count => format!("0-{}", count - 1),
    }
}

/// CPU time of all programs; the rest of the elapsed time counts as idle.
pub fn stat() -> String {
    let uptime = rt().now_ns();
    let busy: u64 = program::all().iter().map(|p| p.cpu_time_ns()).sum();
    let cpus = rt().cpu_count() as u64;
    let idle = (uptime * cpus).saturating_sub(busy);
    let mut out = format!("cpu  {} 0 0 {} 0 0 0 0 0 0\n", busy / TICK_NS, idle / TICK_NS);
    for cpu in 0..cpus {
        let _ = writeln!(out, "cpu{cpu} {} 0 0 {} 0 0 0 0 0 0", busy / cpus / TICK_NS, idle / cpus / TICK_NS);
    }
    let boot = (rt().realtime_ns().saturating_sub(uptime)) / 1_000_000_000;
    let processes = program::all().len();
    let _ = write!(out, "intr 0\nctxt 0\nbtime {boot}\nprocesses {processes}\nprocs_running 1\nprocs_blocked 0\n");
    out
}

pub fn meminfo() -> String {
    let (total, free) = rt().memory_bytes();
    let (total, free) = (total >> 10, free >> 10);
    let cache = fs::cache::usage();
    let kib = |pages: u64| pages * (PAGE_SIZE as u64 >> 10);
    let available = free + kib(cache.with_medium.saturating_sub(cache.unwritten));
    let mut out = String::new();
    for (name, value) in [
        ("MemTotal:", total),
        ("MemFree:", free),
        ("MemAvailable:", available),
        ("Buffers:", 0),
        ("Cached:", kib(cache.with_medium + cache.memory_only)),
        ("SwapCached:", 0),
        ("SwapTotal:", 0),
        ("SwapFree:", 0),
        ("Dirty:", kib(cache.unwritten)),
        ("Writeback:", 0),
        ("AnonPages:", (total - free).saturating_sub(kib(cache.with_medium + cache.memory_only))),
        ("Mapped:", 0),
        ("Shmem:", kib(cache.memory_only)),
        ("CommitLimit:", total),
        ("Committed_AS:", total - free),
        ("VmallocTotal:", 34_359_738_367),
    ] {
        let _ = writeln!(out, "{name:<15} {value:>8} kB");
    }
    let huge = rt().address_space().huge_bytes() >> 10;
    let _ = write!(out, "AnonHugePages:  {huge:>8} kB\nShmemHugePages:        0 kB\nFileHugePages:         0 kB\n");
    out.push_str("HugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:       2048 kB\n");
    out
}

/// Names of CPUID leaf 1's bits, edx then ecx, as Linux lists them; `_` where it lists none.
const FLAGS_1_EDX: &str = "fpu vme de pse tsc msr pae mce cx8 apic _ sep mtrr pge mca cmov pat pse36 pn clflush _ dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe";
const FLAGS_1_ECX: &str = "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm _ pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave _ avx f16c rdrand hypervisor";
const FLAGS_7_EBX: &str = "fsgsbase tsc_adjust sgx bmi1 hle avx2 _ smep bmi2 erms invpcid rtm cqm _ mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma _ clflushopt clwb _ avx512pf avx512er avx512cd sha_ni avx512bw avx512vl";
const FLAGS_EXT_EDX: &str =
    "_ _ _ _ _ _ _ _ _ _ _ syscall _ _ _ _ _ _ _ _ nx _ mmxext _ _ fxsr_opt pdpe1gb rdtscp _ lm 3dnowext 3dnow";
const FLAGS_EXT_ECX: &str =
    "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt _ lwp fma4";

fn push_flags(out: &mut String, bits: u32, names: &str) {
    for (bit, name) in names.split(' ').enumerate() {
        if bits & 1 << bit != 0 && name != "_" {
            out.push(' ');
            out.push_str(name);
        }
    }
}

fn cpu_flags() -> String {
    let mut out = String::new();
    let one = __cpuid(1);
    push_flags(&mut out, one.edx, FLAGS_1_EDX);
    if __cpuid(0x8000_0000).eax >= 0x8000_0001 {
        let extended = __cpuid(0x8000_0001);
        push_flags(&mut out, extended.edx, FLAGS_EXT_EDX);
        push_flags(&mut out, extended.ecx, FLAGS_EXT_ECX);
    }
    push_flags(&mut out, one.ecx, FLAGS_1_ECX);
    if __cpuid(0).eax >= 7 {
        push_flags(&mut out, __cpuid_count(7, 0).ebx, FLAGS_7_EBX);
    }
    out
}

/// Text that CPUID gives in registers.
fn text(words: &[u32]) -> String {
    let bytes: alloc::vec::Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).filter(|b| *b != 0).collect();
    String::from(String::from_utf8_lossy(&bytes).trim())
}

pub fn cpuinfo() -> String {
    let (zero, one) = (__cpuid(0), __cpuid(1));
    let vendor = text(&[zero.ebx, zero.edx, zero.ecx]);
    let base_family = one.eax >> 8 & 15;
    let family = if base_family == 15 { base_family + (one.eax >> 20 & 0xff) } else { base_family };
    let model = (one.eax >> 4 & 15) | if base_family >= 6 { one.eax >> 12 & 0xf0 } else { 0 };
    let mut brand = String::new();
    if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
        let mut words = alloc::vec::Vec::new();
        for leaf in 0x8000_0002..=0x8000_0004 {
            let r = __cpuid(leaf);
            words.extend([r.eax, r.ebx, r.ecx, r.edx]);
        }
        brand = text(&words);
    }
    let flags = cpu_flags();
    let cpus = rt().cpu_count();
    let mut out = String::new();
    for cpu in 0..cpus {
        let _ = write!(
            out,
            "processor\t: {cpu}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n\
             model name\t: {brand}\nstepping\t: {}\ncpu MHz\t\t: 0.000\nphysical id\t: 0\nsiblings\t: {cpus}\n\
             core id\t\t: {cpu}\ncpu cores\t: {cpus}\napicid\t\t: {cpu}\nfpu\t\t: yes\nfpu_exception\t: yes\n\
             cpuid level\t: {}\nwp\t\t: yes\nflags\t\t:{flags}\nclflush size\t: 64\ncache_alignment\t: 64\n\n",
            one.eax & 15,
            zero.eax,
        );
    }
    out
}

pub fn uptime() -> String {
    let uptime = rt().now_ns();
    let busy: u64 = program::all().iter().map(|p| p.cpu_time_ns()).sum();
    let idle = (uptime * rt().cpu_count() as u64).saturating_sub(busy);
    let shown = |ns: u64| format!("{}.{:02}", ns / 1_000_000_000, ns % 1_000_000_000 / 10_000_000);
    format!("{} {}\n", shown(uptime), shown(idle))
}

/// Load averages are not kept.
pub fn loadavg() -> String {
    let threads: usize = program::all().iter().map(|p| p.threads.lock().len()).sum();
    let newest = program::all().iter().flat_map(|p| p.thread_ids()).max().unwrap_or(0);
    format!("0.00 0.00 0.00 1/{threads} {newest}\n")
}

pub fn version() -> String {
    format!("Linux version {} (demitasse) {}\n", system::RELEASE, system::VERSION)
}

pub fn filesystems() -> String {
    let mut out = String::new();
    for name in ["sysfs", "tmpfs", "proc", "devtmpfs", "overlay"] {
        let _ = writeln!(out, "nodev\t{name}");
    }
    out.push_str("\terofs\n");
    out
}

/// No controller: the machine itself is the container.
pub fn cgroups() -> String {
    String::from("#subsys_name\thierarchy\tnum_cgroups\tenabled\n")
}

/// A UUID from random bytes (version 4).
pub fn random_uuid() -> String {
    let mut b = [0u8; 16];
    rt().random(&mut b);
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let word =
        |range: core::ops::Range<usize>| b[range].iter().fold(String::new(), |s, byte| s + &format!("{byte:02x}"));
    format!("{}-{}-{}-{}-{}\n", word(0..4), word(4..6), word(6..8), word(8..10), word(10..16))
}

/// The machine's own UUID, from boot to power-off.
pub fn boot_id() -> String {
    static ID: spin::Once<String> = spin::Once::new();
    ID.call_once(random_uuid).clone()
}
