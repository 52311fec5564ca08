//! /proc and /sys: which names there are. What they hold is in [`process`] and [`machine`]; how
//! generated files work is [`fs::pseudo`]'s.
use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use fs::{
    FileKind, FileSystem, FsError, Location,
    error::FsResult,
    inode::LinkTarget,
    pseudo::{self, Content, Entries, Entry, PseudoFs},
};
use rt::{rt, task::TaskRef};

use crate::{
    program::{self, Program},
    thread::Thread,
};

pub mod machine;
pub mod process;

/// The file system for /proc.
pub fn proc_file_system() -> Arc<dyn FileSystem> {
    let proc = PseudoFs::new("proc", pseudo::PROC_MAGIC);
    proc.set_dynamic(Arc::new(ProcRoot));
    proc
}

/// The file system for /sys.
pub fn sys_file_system() -> Arc<dyn FileSystem> {
    let sys = PseudoFs::new("sysfs", pseudo::SYSFS_MAGIC);
    sys.set_dynamic(Arc::new(Fixed(SYS)));
    sys
}

// --- directories with fixed names ---

/// An entry of a fixed directory.
#[derive(Clone, Copy)]
enum Item {
    Text(&'static str),
    Made(fn() -> String),
    Directory(&'static [(&'static str, Item)]),
    Cpus,
    SelfLink,
    ThreadSelfLink,
    PathLink(&'static str),
}

struct Fixed(&'static [(&'static str, Item)]);

impl Item {
    fn file_kind(self) -> FileKind {
        match self {
            Self::Text(_) | Self::Made(_) => FileKind::Regular,
            Self::Directory(_) | Self::Cpus => FileKind::Directory,
            Self::SelfLink | Self::ThreadSelfLink | Self::PathLink(_) => FileKind::Symlink,
        }
    }

    fn entry(self) -> Entry {
        match self {
            Self::Text(text) => pseudo::fixed(text),
            Self::Made(make) => file(move || Ok(make().into_bytes())),
            Self::Directory(items) => pseudo::directory(Arc::new(Fixed(items))),
            Self::Cpus => pseudo::directory(Arc::new(Cpus)),
            Self::SelfLink => path_link(|| Ok(format!("{}", current()?.pid))),
            Self::ThreadSelfLink => path_link(|| {
                let tid = with_current_thread(Thread::tid)?;
                Ok(format!("{}/task/{tid}", current()?.pid))
            }),
            Self::PathLink(path) => pseudo::link_to(path),
        }
    }
}

fn path_link(path: impl Fn() -> FsResult<String> + Send + Sync + 'static) -> Entry {
    pseudo::link(move || Ok(LinkTarget::Path(path()?.into_bytes())))
}

/// A file of what `make` gives.
fn file(make: impl Fn() -> FsResult<Vec<u8>> + Send + Sync + 'static) -> Entry {
    pseudo::bytes(move |out| {
        *out = make()?;
        Ok(())
    })
}

/// A file of a program's own that can be written.
struct Writable {
    program: Arc<Program>,
    read: fn(&Program) -> FsResult<String>,
    write: fn(&Program, &[u8]) -> FsResult<()>,
}

impl Content for Writable {
    fn generate(&self, out: &mut Vec<u8>) -> FsResult<()> {
        *out = (self.read)(&self.program)?.into_bytes();
        Ok(())
    }

    fn write(&self, data: &[u8]) -> FsResult<()> {
        (self.write)(&self.program, data)
    }
}

type Each<'a> = &'a mut dyn FnMut(&[u8], FileKind);

fn with_current_thread<T>(each: impl FnOnce(&Thread) -> T) -> FsResult<T> {
    let task = rt().current();
    Thread::of(&task).map(each).ok_or(FsError::NotFound)
}

fn current() -> FsResult<Arc<Program>> {
    with_current_thread(|thread| thread.program.clone())
}

fn find_item(items: &[(&str, Item)], name: &[u8]) -> Option<Item> {
    items.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, item)| *item)
}

fn list_items(items: &[(&str, Item)], each: Each<'_>) {
    items.iter().for_each(|(name, item)| each(name.as_bytes(), item.file_kind()));
}

impl Entries for Fixed {
    fn find(&self, name: &[u8]) -> FsResult<Entry> {
        find_item(self.0, name).map(Item::entry).ok_or(FsError::NotFound)
    }

    fn list(&self, each: Each<'_>) -> FsResult<()> {
        list_items(self.0, each);
        Ok(())
    }
}

// --- /proc ---

const PROC: &[(&str, Item)] = &[
    ("self", Item::SelfLink),
    ("thread-self", Item::ThreadSelfLink),
    ("mounts", Item::PathLink("self/mounts")),
    ("stat", Item::Made(machine::stat)),
    ("meminfo", Item::Made(machine::meminfo)),
    ("cpuinfo", Item::Made(machine::cpuinfo)),
    ("uptime", Item::Made(machine::uptime)),
    ("loadavg", Item::Made(machine::loadavg)),
    ("version", Item::Made(machine::version)),
    ("filesystems", Item::Made(machine::filesystems)),
    ("cgroups", Item::Made(machine::cgroups)),
    ("net", Item::Directory(&[("if_inet6", Item::Text(""))])),
    ("sys", Item::Directory(PROC_SYS)),
];

const PROC_SYS: &[(&str, Item)] = &[
    (
        "vm",
        Item::Directory(&[
            ("max_map_count", Item::Text("65530\n")),
            ("mmap_min_addr", Item::Text("65536\n")),
            ("overcommit_memory", Item::Text("0\n")),
            ("overcommit_ratio", Item::Text("50\n")),
            ("nr_hugepages", Item::Text("0\n")),
            ("swappiness", Item::Text("60\n")),
        ]),
    ),
    (
        "kernel",
        Item::Directory(&[
            ("ostype", Item::Text("Linux\n")),
            ("osrelease", Item::Made(|| format!("{}\n", crate::system::RELEASE))),
            ("version", Item::Made(|| format!("{}\n", crate::system::VERSION))),
            ("hostname", Item::Text("demitasse\n")),
            ("pid_max", Item::Text("4194304\n")),
            ("threads-max", Item::Text("32768\n")),
            ("cap_last_cap", Item::Text("40\n")),
            ("core_pattern", Item::Text("core\n")),
            ("ngroups_max", Item::Text("65536\n")),
            ("randomize_va_space", Item::Text("2\n")),
            ("perf_event_paranoid", Item::Text("4\n")),
            (
                "random",
                Item::Directory(&[
                    ("boot_id", Item::Made(machine::boot_id)),
                    ("uuid", Item::Made(machine::random_uuid)),
                    ("entropy_avail", Item::Text("256\n")),
                ]),
            ),
        ]),
    ),
    (
        "fs",
        Item::Directory(&[
            ("file-max", Item::Text("9223372036854775807\n")),
            ("nr_open", Item::Text("1048576\n")),
            ("pipe-max-size", Item::Text("1048576\n")),
        ]),
    ),
];

struct ProcRoot;

impl Entries for ProcRoot {
    fn find(&self, name: &[u8]) -> FsResult<Entry> {
        if let Some(item) = find_item(PROC, name) {
            return Ok(item.entry());
        }
        let pid = number(name).ok_or(FsError::NotFound)?;
        // A thread's id leads to its program as well, though it is not listed.
        let program = program::by_pid(pid)
            .or_else(|| program::all().into_iter().find(|program| program.thread(pid).is_some()))
            .ok_or(FsError::NotFound)?;
        Ok(pseudo::directory(Arc::new(ProgramDirectory { program, tid: None })))
    }

    fn list(&self, each: Each<'_>) -> FsResult<()> {
        list_items(PROC, each);
        list_numbers(program::all().iter().map(|program| program.pid), FileKind::Directory, each);
        Ok(())
    }
}

fn number(name: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(name).ok()?;
    text.parse().ok().filter(|_| !text.starts_with(['0', '+']) || text == "0")
}

fn list_numbers(numbers: impl Iterator<Item = u32>, kind: FileKind, each: Each<'_>) {
    numbers.for_each(|number| each(format!("{number}").as_bytes(), kind));
}

/// /proc/PID, or with `tid` /proc/PID/task/TID.
struct ProgramDirectory {
    program: Arc<Program>,
    tid: Option<u32>,
}

type Text = fn(&Program) -> FsResult<String>;
type Raw = fn(&Program) -> Vec<u8>;

/// The entries that are plain text of the program.
const TEXTS: &[(&str, Text)] = &[
    ("maps", process::maps),
    ("smaps", process::smaps),
    ("smaps_rollup", process::smaps_rollup),
    ("statm", process::statm),
    ("limits", process::limits),
    ("cgroup", process::cgroup),
    ("oom_score", |_| Ok(String::from("0\n"))),
];

/// Those that are bytes.
const RAWS: &[(&str, Raw)] = &[
    ("cmdline", process::cmdline),
    ("environ", process::environ),
    ("auxv", process::auxv),
    ("mountinfo", process::mountinfo),
    ("mounts", process::mounts),
];

const OTHERS: &[(&str, FileKind)] = &[
    ("stat", FileKind::Regular),
    ("status", FileKind::Regular),
    ("comm", FileKind::Regular),
    ("coredump_filter", FileKind::Regular),
    ("oom_score_adj", FileKind::Regular),
    ("exe", FileKind::Symlink),
    ("cwd", FileKind::Symlink),
    ("root", FileKind::Symlink),
    ("fd", FileKind::Directory),
    ("task", FileKind::Directory),
];

impl ProgramDirectory {
    fn thread(&self) -> FsResult<Option<TaskRef>> {
        match self.tid {
            None => Ok(None),
            Some(tid) => self.program.thread(tid).map(Some).ok_or(FsError::NoProgram),
        }
    }

    fn stat(&self) -> Entry {
        let (program, tid) = (self.program.clone(), self.tid);
        file(move || {
            let directory = ProgramDirectory { program: program.clone(), tid };
            Ok(match directory.thread()? {
                None => process::stat(&program),
                Some(task) => Thread::of(&task)
                    .map(|thread| process::thread_stat(&program, &task, thread))
                    .ok_or(FsError::NoProgram)?,
            }
            .into_bytes())
        })
    }

    fn status(&self) -> Entry {
        let (program, tid) = (self.program.clone(), self.tid);
        file(move || {
            let task = program.thread(tid.unwrap_or(program.pid));
            Ok(process::status(&program, task.as_ref().and_then(Thread::of)).into_bytes())
        })
    }

    /// Writable as well, by any thread of the program (proc(5)).
    fn comm(&self) -> Entry {
        let tid = self.tid.unwrap_or(self.program.pid);
        pseudo::file(Arc::new(Comm { program: self.program.clone(), tid }), 0o644)
    }

    fn writable(&self, read: fn(&Program) -> FsResult<String>, write: fn(&Program, &[u8]) -> FsResult<()>) -> Entry {
        pseudo::file(Arc::new(Writable { program: self.program.clone(), read, write }), 0o644)
    }

    fn location_link(&self, get: fn(&Program) -> Option<Location>) -> Entry {
        let program = self.program.clone();
        pseudo::link(move || Ok(LinkTarget::Object(get(&program).ok_or(FsError::NotFound)?)))
    }
}

/// A thread's name.
struct Comm {
    program: Arc<Program>,
    tid: u32,
}

impl Comm {
    fn with_thread<T>(&self, each: impl FnOnce(&Thread) -> T) -> FsResult<T> {
        let task = self.program.thread(self.tid).ok_or(FsError::NoProgram)?;
        Thread::of(&task).map(each).ok_or(FsError::NoProgram)
    }
}

impl Content for Comm {
    fn generate(&self, out: &mut Vec<u8>) -> FsResult<()> {
        *out = (self.with_thread(Thread::name_string)? + "\n").into_bytes();
        Ok(())
    }

    fn write(&self, data: &[u8]) -> FsResult<()> {
        self.with_thread(|thread| thread.set_name(data.strip_suffix(b"\n").unwrap_or(data)))
    }
}

fn written_text(data: &[u8]) -> FsResult<&str> {
    core::str::from_utf8(data).map(str::trim).map_err(|_| FsError::Invalid)
}

/// Kept and shown; there are no core dumps to filter.
fn read_coredump_filter(program: &Program) -> FsResult<String> {
    Ok(format!("{:08x}\n", program.coredump_filter.load(Ordering::Relaxed)))
}

fn write_coredump_filter(program: &Program, data: &[u8]) -> FsResult<()> {
    let text = written_text(data)?;
    let value = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    program.coredump_filter.store(value.map_err(|_| FsError::Invalid)?, Ordering::Relaxed);
    Ok(())
}

/// Kept and shown; a memory shortage ends the largest program, whatever it says.
fn read_oom_score_adj(program: &Program) -> FsResult<String> {
    Ok(format!("{}\n", program.oom_score_adj.load(Ordering::Relaxed)))
}

fn write_oom_score_adj(program: &Program, data: &[u8]) -> FsResult<()> {
    let value: i32 = written_text(data)?.parse().map_err(|_| FsError::Invalid)?;
    if !(-1000..=1000).contains(&value) {
        return Err(FsError::Invalid);
    }
    program.oom_score_adj.store(value, Ordering::Relaxed);
    Ok(())
}

impl Entries for ProgramDirectory {
    fn find(&self, name: &[u8]) -> FsResult<Entry> {
        let program = self.program.clone();
        if let Some((_, text)) = TEXTS.iter().find(|(known, _)| known.as_bytes() == name) {
            return Ok(file(move || Ok(text(&program)?.into_bytes())));
        }
        if let Some((_, raw)) = RAWS.iter().find(|(known, _)| known.as_bytes() == name) {
            return Ok(file(move || Ok(raw(&program))));
        }
        Ok(match name {
            b"stat" => self.stat(),
            b"status" => self.status(),
            b"comm" => self.comm(),
            b"coredump_filter" => self.writable(read_coredump_filter, write_coredump_filter),
            b"oom_score_adj" => self.writable(read_oom_score_adj, write_oom_score_adj),
            b"exe" => self.location_link(process::exe),
            b"cwd" => self.location_link(|program| Some(program.directory.lock().cwd.clone())),
            b"root" => self.location_link(|program| Some(program.directory.lock().root.clone())),
            b"fd" => pseudo::directory(Arc::new(Descriptors(program))),
            b"task" if self.tid.is_none() => pseudo::directory(Arc::new(Tasks(program))),
            _ => return Err(FsError::NotFound),
        })
    }

    fn list(&self, each: Each<'_>) -> FsResult<()> {
        TEXTS.iter().for_each(|(name, _)| each(name.as_bytes(), FileKind::Regular));
        RAWS.iter().for_each(|(name, _)| each(name.as_bytes(), FileKind::Regular));
        let others = OTHERS.iter().filter(|(name, _)| self.tid.is_none() || *name != "task");
        others.for_each(|(name, kind)| each(name.as_bytes(), *kind));
        Ok(())
    }
}

struct Tasks(Arc<Program>);

impl Entries for Tasks {
    fn find(&self, name: &[u8]) -> FsResult<Entry> {
        let tid = number(name).filter(|tid| self.0.thread(*tid).is_some()).ok_or(FsError::NotFound)?;
        Ok(pseudo::directory(Arc::new(ProgramDirectory { program: self.0.clone(), tid: Some(tid) })))
    }

    fn list(&self, each: Each<'_>) -> FsResult<()> {
        list_numbers(self.0.thread_ids().into_iter(), FileKind::Directory, each);
        Ok(())
    }
}

/// /proc/PID/fd: links straight to the open files.
struct Descriptors(Arc<Program>);

impl Entries for Descriptors {
    fn find(&self, name: &[u8]) -> FsResult<Entry> {
        let fd = number(name).ok_or(FsError::NotFound)?;
        let program = self.0.clone();
        if program.files.lock().get(fd).is_none() {
            return Err(FsError::NotFound);
        }
        Ok(pseudo::link(move || {
            let file = program.files.lock().get(fd).map(|d| d.file().clone()).ok_or(FsError::NotFound)?;
            Ok(LinkTarget::Object(Location::of_file(&file)))
        }))
    }

    fn list(&self, each: Each<'_>) -> FsResult<()> {
        let open: Vec<u32> = self.0.files.lock().open().map(|(fd, _)| fd).collect();
        list_numbers(open.into_iter(), FileKind::Symlink, each);
        Ok(())
    }
}

// --- /sys ---

const SYS: &[(&str, Item)] = &[
    ("devices", Item::Directory(&[("system", Item::Directory(&[("cpu", Item::Cpus)]))])),
    (
        "kernel",
        Item::Directory(&[(
            "mm",
            Item::Directory(&[
                ("hugepages", Item::Directory(&[("hugepages-2048kB", Item::Directory(HUGETLB_POOL))])),
                (
                    "transparent_hugepage",
                    Item::Directory(&[
                        ("enabled", Item::Text("always [madvise] never\n")),
                        ("defrag", Item::Text("always defer defer+madvise [madvise] never\n")),
                        ("shmem_enabled", Item::Text("always within_size advise [never] deny force\n")),
                        ("hpage_pmd_size", Item::Text("2097152\n")),
                        ("use_zero_page", Item::Text("0\n")),
                    ]),
                ),
            ]),
        )]),
    ),
    // No controllers: nothing is mounted here, and nothing pretends to be.
    ("fs", Item::Directory(&[("cgroup", Item::Directory(&[]))])),
];

/// The pool for MAP_HUGETLB: there is none, as on a Linux that was not told to keep one.
const HUGETLB_POOL: &[(&str, Item)] = &[
    ("nr_hugepages", Item::Text("0\n")),
    ("nr_overcommit_hugepages", Item::Text("0\n")),
    ("free_hugepages", Item::Text("0\n")),
    ("resv_hugepages", Item::Text("0\n")),
    ("surplus_hugepages", Item::Text("0\n")),
];

const CPU_LISTS: [&str; 3] = ["online", "possible", "present"];

/// /sys/devices/system/cpu.
struct Cpus;

impl Entries for Cpus {
    fn find(&self, name: &[u8]) -> FsResult<Entry> {
        if CPU_LISTS.iter().any(|list| list.as_bytes() == name) {
            return Ok(file(|| Ok((machine::cpu_list() + "\n").into_bytes())));
        }
        if name == b"offline" {
            return Ok(pseudo::fixed("\n"));
        }
        let cpu = name.strip_prefix(b"cpu").and_then(number);
        cpu.filter(|cpu| (*cpu as usize) < rt().cpu_count()).ok_or(FsError::NotFound)?;
        Ok(Item::Directory(&[]).entry())
    }

    fn list(&self, each: Each<'_>) -> FsResult<()> {
        CPU_LISTS.iter().for_each(|list| each(list.as_bytes(), FileKind::Regular));
        each(b"offline", FileKind::Regular);
        (0..rt().cpu_count()).for_each(|cpu| each(format!("cpu{cpu}").as_bytes(), FileKind::Directory));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_numbers_are_pids() {
        assert_eq!(number(b"12"), Some(12));
        for name in [&b"012"[..], b"+1", b"-1", b"1a", b""] {
            assert_eq!(number(name), None);
        }
    }

    #[test]
    fn fixed_directories_find_what_they_list() {
        let Entry::Directory { entries: vm, .. } = find_item(PROC_SYS, b"vm").unwrap().entry() else { panic!() };
        vm.list(&mut |name, kind| {
            assert_eq!(kind, FileKind::Regular);
            assert!(matches!(vm.find(name), Ok(Entry::File { .. })));
        })
        .unwrap();
        assert!(matches!(vm.find(b"nothing"), Err(FsError::NotFound)));
    }
}
