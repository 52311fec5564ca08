//! Content of /proc/PID: one function a file, each giving the bytes as of now (proc(5)).
use alloc::{format, string::String, vec::Vec};
use core::fmt::Write;

use fs::{FsError, Location, error::FsResult};
use rt::{
    rt,
    space::{FileMapping, Footprint, Prot},
    task::TaskRef,
};

use crate::{
    limits::INFINITY,
    program::Program,
    signal::{Action, SigSet},
    thread::Thread,
};

const PAGE: u64 = 4096;
/// USER_HZ: what /proc counts time in.
pub const TICK_NS: u64 = 10_000_000;

/// One mapping, copied out so that it can be written without the address space's locks.
struct Mapping {
    start: u64,
    end: u64,
    prot: Prot,
    shared: bool,
    file: Option<FileMapping>,
    label: Option<&'static str>,
    no_reserve: bool,
    huge: Option<bool>,
}

/// Text of a length that the program decides, by how many mappings it makes: what the heap does not give
/// in one piece is ENOMEM for the reader.
#[derive(Default)]
struct Text(String);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.try_reserve(text.len()).map_err(|_| core::fmt::Error)?;
        self.0.push_str(text);
        Ok(())
    }
}

fn mappings(program: &Program) -> FsResult<Vec<Mapping>> {
    let mut out = Vec::new();
    let mut complete = true;
    rt().address_space().regions(program.owner, &mut |r| {
        complete &= out.try_reserve(1).is_ok();
        if !complete {
            return;
        }
        out.push(Mapping {
            start: r.start,
            end: r.end,
            prot: r.prot,
            shared: r.shared,
            file: r.file.clone(),
            label: r.label,
            no_reserve: r.no_reserve,
            huge: r.huge,
        });
    });
    if complete { Ok(out) } else { Err(FsError::OutOfMemory) }
}

fn print_mapping(out: &mut Text, m: &Mapping) -> core::fmt::Result {
    let flag = |bit, letter| if m.prot.contains(bit) { letter } else { '-' };
    let (offset, (major, minor, inode)) = match &m.file {
        Some(file) => (file.first_page * PAGE, file.pager.identity()),
        None => (0, (0, 0, 0)),
    };
    let from = out.0.len();
    write!(
        out,
        "{:08x}-{:08x} {}{}{}{} {offset:08x} {major:02x}:{minor:02x} {inode} ",
        m.start,
        m.end,
        flag(Prot::READ, 'r'),
        flag(Prot::WRITE, 'w'),
        flag(Prot::EXEC, 'x'),
        if m.shared { 's' } else { 'p' },
    )?;
    let path = match (&m.file, m.label) {
        (Some(file), _) => file.pager.path(),
        (None, Some(label)) => String::from(label),
        (None, None) => String::new(),
    };
    if !path.is_empty() {
        // Linux pads the path to column 73.
        let padding = 73usize.saturating_sub(out.0.len() - from);
        write!(out, "{:padding$}{path}", "")?;
    }
    out.write_char('\n')
}

pub fn maps(program: &Program) -> FsResult<String> {
    let mut out = Text::default();
    for mapping in mappings(program)? {
        print_mapping(&mut out, &mapping).map_err(|_| FsError::OutOfMemory)?;
    }
    Ok(out.0)
}

/// Which pages are shared is not known here: Pss is Rss, and all is private.
fn print_sizes(out: &mut Text, resident: Footprint, anonymous_bytes: u64) -> core::fmt::Result {
    for (name, bytes) in [
        ("Rss:", resident.resident_bytes),
        ("Pss:", resident.resident_bytes),
        ("Shared_Clean:", 0),
        ("Shared_Dirty:", 0),
        ("Private_Clean:", resident.resident_bytes - anonymous_bytes),
        ("Private_Dirty:", anonymous_bytes),
        ("Referenced:", resident.resident_bytes),
        ("Anonymous:", anonymous_bytes),
        ("LazyFree:", 0),
        ("AnonHugePages:", resident.huge_bytes),
        ("ShmemPmdMapped:", 0),
        ("FilePmdMapped:", 0),
        ("Shared_Hugetlb:", 0),
        ("Private_Hugetlb:", 0),
        ("Swap:", 0),
        ("SwapPss:", 0),
        ("Locked:", 0),
    ] {
        print_size(out, name, bytes)?;
    }
    Ok(())
}

fn print_size(out: &mut Text, name: &str, bytes: u64) -> core::fmt::Result {
    writeln!(out, "{name:<15} {:>8} kB", bytes >> 10)
}

fn footprint_of(program: &Program, m: &Mapping) -> (Footprint, u64) {
    let footprint = rt().address_space().footprint_within(program.owner, m.start, m.end);
    (footprint, if m.file.is_some() { 0 } else { footprint.resident_bytes })
}

pub fn smaps(program: &Program) -> FsResult<String> {
    let mut out = Text::default();
    for mapping in mappings(program)? {
        print_details(&mut out, program, &mapping).map_err(|_| FsError::OutOfMemory)?;
    }
    Ok(out.0)
}

fn print_details(out: &mut Text, program: &Program, mapping: &Mapping) -> core::fmt::Result {
    print_mapping(out, mapping)?;
    let (footprint, anonymous) = footprint_of(program, mapping);
    print_size(out, "Size:", mapping.end - mapping.start)?;
    print_size(out, "KernelPageSize:", PAGE)?;
    print_size(out, "MMUPageSize:", PAGE)?;
    print_sizes(out, footprint, anonymous)?;
    writeln!(out, "THPeligible:    {:>8}\nVmFlags:{}", u8::from(takes_huge(mapping)), vm_flags(mapping))
}

/// True if a huge page may come into the mapping.
fn takes_huge(m: &Mapping) -> bool {
    const HUGE: u64 = 2 << 20;
    let fits = m.start.next_multiple_of(HUGE).checked_add(HUGE).is_some_and(|end| end <= m.end);
    fits && m.huge == Some(true) && m.file.is_none() && !m.shared
}

/// As proc(5) names them; what is not kept per mapping is left out.
fn vm_flags(m: &Mapping) -> String {
    let mut out = String::new();
    for (name, is_set) in [
        ("rd", m.prot.contains(Prot::READ)),
        ("wr", m.prot.contains(Prot::WRITE)),
        ("ex", m.prot.contains(Prot::EXEC)),
        ("sh", m.shared),
        ("nr", m.no_reserve),
        ("hg", m.huge == Some(true)),
        ("nh", m.huge == Some(false)),
    ] {
        if is_set {
            out.push(' ');
            out.push_str(name);
        }
    }
    out
}

pub fn smaps_rollup(program: &Program) -> FsResult<String> {
    let all = mappings(program)?;
    let (mut sum, mut anonymous) = (Footprint::default(), 0);
    for mapping in &all {
        let (footprint, anonymous_here) = footprint_of(program, mapping);
        sum.resident_bytes += footprint.resident_bytes;
        sum.huge_bytes += footprint.huge_bytes;
        anonymous += anonymous_here;
    }
    let start = all.first().map_or(0, |m| m.start);
    let end = all.last().map_or(0, |m| m.end);
    let mut out = Text(format!("{start:08x}-{end:08x} ---p 00000000 00:00 0                          [rollup]\n"));
    print_sizes(&mut out, sum, anonymous).map_err(|_| FsError::OutOfMemory)?;
    Ok(out.0)
}

/// CPU time, start and state of one thread, or of a whole program.
struct Times {
    cpu_ns: u64,
    threads: usize,
    nice: i8,
}

/// The 52 numbers of /proc/PID/stat.
fn stat_line(program: &Program, tid: u32, comm: &str, times: &Times) -> String {
    let footprint = rt().address_space().footprint(program.owner);
    let image = program.image.lock().clone();
    let stack_limit = INFINITY;
    let mut out = format!("{tid} ({comm}) R {} {pid} {pid} 0 -1 4194304 0 0 0 0 ", program.parent, pid = program.pid);
    let _ = writeln!(
        out,
        "{} 0 0 0 {} {} {} 0 {} {} {} {stack_limit} {} {} {} 0 0 0 0 0 0 0 0 0 17 {} 0 0 0 0 0 {} {} {} {} {} {} {} 0",
        times.cpu_ns / TICK_NS,
        20 + i32::from(times.nice),
        times.nice,
        times.threads,
        program.started_ns / TICK_NS,
        footprint.mapped_bytes,
        footprint.resident_bytes / PAGE,
        image.code.0,
        image.code.1,
        image.stack_start,
        rt().cpu_index(),
        image.data.0,
        image.data.1,
        program.brk.lock().start,
        image.arguments.0,
        image.arguments.1,
        image.environment.0,
        image.environment.1,
    );
    out
}

pub fn stat(program: &Program) -> String {
    let threads = program.threads.lock().len();
    let times = Times { cpu_ns: program.cpu_time_ns(), threads, nice: 0 };
    stat_line(program, program.pid, &program.name(), &times)
}

pub fn thread_stat(program: &Program, task: &TaskRef, thread: &Thread) -> String {
    let threads = program.threads.lock().len();
    let times = Times { cpu_ns: task.cpu_time_ns(), threads, nice: task.nice() };
    stat_line(program, thread.tid(), &thread.name_string(), &times)
}

pub fn statm(program: &Program) -> FsResult<String> {
    let footprint = rt().address_space().footprint(program.owner);
    let image = program.image.lock().clone();
    let text = (image.code.1 - image.code.0).div_ceil(PAGE);
    let data = (image.data.1 - image.data.0).div_ceil(PAGE);
    Ok(format!("{} {} 0 {text} 0 {data} 0\n", footprint.mapped_bytes / PAGE, footprint.resident_bytes / PAGE))
}

/// Ignored and caught signals of a program.
fn signal_sets(program: &Program) -> (SigSet, SigSet) {
    let signals = program.signals.lock();
    let (mut ignored, mut caught) = (SigSet::EMPTY, SigSet::EMPTY);
    for (index, action) in signals.actions.iter().enumerate() {
        let one = SigSet::of(index as u32 + 1);
        match action.handler {
            Action::DEFAULT => {}
            Action::IGNORE => ignored = ignored.with(one),
            _ => caught = caught.with(one),
        }
    }
    (ignored, caught)
}

pub fn status(program: &Program, thread: Option<&Thread>) -> String {
    let footprint = rt().address_space().footprint(program.owner);
    let (mut stack, mut code) = (0, 0);
    rt().address_space().regions(program.owner, &mut |region| {
        let len = region.end - region.start;
        if region.label == Some("[stack]") {
            stack += len;
        }
        if region.prot.contains(Prot::EXEC) {
            code += len;
        }
    });
    let (ignored, caught) = signal_sets(program);
    let (pending, blocked) = match thread {
        Some(thread) => {
            let state = thread.signals.lock();
            (state.pending.set(), state.mask)
        }
        None => (SigSet::EMPTY, SigSet::EMPTY),
    };
    let tid = thread.map_or(program.pid, Thread::tid);
    let name = thread.map_or_else(|| program.name(), Thread::name_string);
    let threads = program.threads.lock().len();
    let descriptors = program.files.lock().open().count().next_power_of_two().max(64);
    let umask = program.umask.load(core::sync::atomic::Ordering::Relaxed);
    let (mapped, resident) = (footprint.mapped_bytes >> 10, footprint.resident_bytes >> 10);
    let cpus = cpu_mask();
    let mut out = String::new();
    let _ = write!(
        out,
        "Name:\t{name}\nUmask:\t{umask:04o}\nState:\tR (running)\nTgid:\t{pid}\nNgid:\t0\nPid:\t{tid}\n\
         PPid:\t{parent}\nTracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t{descriptors}\nGroups:\t \n\
         NStgid:\t{pid}\nNSpid:\t{tid}\nNSpgid:\t{pid}\nNSsid:\t{pid}\n\
         VmPeak:\t{mapped:8} kB\nVmSize:\t{mapped:8} kB\nVmLck:\t       0 kB\nVmPin:\t       0 kB\n\
         VmHWM:\t{resident:8} kB\nVmRSS:\t{resident:8} kB\nRssAnon:\t{resident:8} kB\nRssFile:\t       0 kB\n\
         RssShmem:\t       0 kB\nVmData:\t{mapped:8} kB\nVmStk:\t{:8} kB\nVmExe:\t{:8} kB\nVmLib:\t       0 kB\n\
         VmPTE:\t       0 kB\nVmSwap:\t       0 kB\nThreads:\t{threads}\nSigQ:\t0/4096\n\
         SigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{:016x}\nSigIgn:\t{:016x}\nSigCgt:\t{:016x}\n\
         CapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\n\
         CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t0\n\
         Cpus_allowed:\t{cpus:x}\nCpus_allowed_list:\t{}\nMems_allowed:\t1\nMems_allowed_list:\t0\n\
         voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n",
        stack >> 10,
        code >> 10,
        pending.0,
        program.pending_set().0,
        blocked.0,
        ignored.0,
        caught.0,
        super::machine::cpu_list(),
        pid = program.pid,
        parent = program.parent,
    );
    out
}

fn cpu_mask() -> u64 {
    u64::MAX >> (64 - rt().cpu_count().clamp(1, 64))
}

/// A range of the program's memory, as cmdline and environ show it: what is there now.
fn memory(range: (u64, u64)) -> Vec<u8> {
    let mut bytes = alloc::vec![0u8; (range.1 - range.0).min(2 << 20) as usize];
    match rt().user().read(&mut bytes, range.0) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

pub fn cmdline(program: &Program) -> Vec<u8> {
    let range = program.image.lock().arguments;
    memory(range)
}

pub fn environ(program: &Program) -> Vec<u8> {
    let range = program.image.lock().environment;
    memory(range)
}

pub fn auxv(program: &Program) -> Vec<u8> {
    program.image.lock().auxv.clone()
}

pub fn exe(program: &Program) -> Option<Location> {
    program.image.lock().exe.clone()
}

pub fn limits(program: &Program) -> FsResult<String> {
    const ROWS: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let limits = program.limits.lock().clone();
    let shown = |value: u64| if value == INFINITY { String::from("unlimited") } else { format!("{value}") };
    let mut out = format!("{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    for (resource, (name, unit)) in ROWS.iter().enumerate() {
        if let Some((soft, hard)) = limits.get(resource as i32) {
            let _ = writeln!(out, "{name:<25} {:<20} {:<20} {unit:<10}", shown(soft), shown(hard));
        }
    }
    Ok(out)
}

pub fn mountinfo(program: &Program) -> Vec<u8> {
    let root = program.directory.lock().root.clone();
    let mut out = Vec::new();
    for mount in program.vfs.mounts(&root) {
        let (major, minor) = fs::inode::device_parts(mount.device);
        out.extend_from_slice(format!("{} {} {major}:{minor} / ", mount.id, mount.parent_id).as_bytes());
        out.extend_from_slice(&escaped(&mount.path));
        let (options, source) = (mount.spec.option_list(), &mount.spec.source);
        out.extend_from_slice(format!(" {options} - {} {source} {options}\n", mount.type_name).as_bytes());
    }
    out
}

pub fn mounts(program: &Program) -> Vec<u8> {
    let root = program.directory.lock().root.clone();
    let mut out = Vec::new();
    for mount in program.vfs.mounts(&root) {
        out.extend_from_slice(format!("{} ", mount.spec.source).as_bytes());
        out.extend_from_slice(&escaped(&mount.path));
        out.extend_from_slice(format!(" {} {} 0 0\n", mount.type_name, mount.spec.option_list()).as_bytes());
    }
    out
}

/// Blanks and backslashes in octal, as getmntent(3) reads them.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            byte => out.push(*byte),
        }
    }
    out
}

pub fn cgroup(_program: &Program) -> FsResult<String> {
    Ok(String::from("0::/\n"))
}
