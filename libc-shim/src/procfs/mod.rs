//! /proc and /sys: which names there are. What they hold is in [`process`] and [`machine`]; how
//! generated files work is in [`node`].
use alloc::{borrow::Cow, boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::Ordering;

use fs::{FileKind, FileSystem, FsError, Location, error::FsResult, inode::LinkTarget};
use rt::{rt, task::TaskRef};

use crate::{
    program::{self, Program},
    thread::Thread,
};

pub mod machine;
mod node;
pub mod process;

use node::{GeneratedFs, Kind, Listing};

/// statfs(2): PROC_SUPER_MAGIC, SYSFS_MAGIC.
const PROC_MAGIC: u64 = 0x9fa0;
const SYS_MAGIC: u64 = 0x6265_6572;

/// The file system for /proc.
pub fn proc_file_system() -> Arc<dyn FileSystem> {
    GeneratedFs::new("proc", PROC_MAGIC, Box::new(ProcRoot))
}

/// The file system for /sys.
pub fn sys_file_system() -> Arc<dyn FileSystem> {
    GeneratedFs::new("sysfs", SYS_MAGIC, Box::new(Fixed(SYS)))
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

    fn kind(self) -> Kind {
        match self {
            Self::Text(text) => Kind::file(move || Ok(text.as_bytes().to_vec())),
            Self::Made(make) => Kind::file(move || Ok(make().into_bytes())),
            Self::Directory(items) => Kind::Directory(Box::new(Fixed(items))),
            Self::Cpus => Kind::Directory(Box::new(Cpus)),
            Self::SelfLink => path_link(|| Ok(format!("{}", current()?.pid))),
            Self::ThreadSelfLink => path_link(|| {
                let tid = with_current_thread(Thread::tid)?;
                Ok(format!("{}/task/{tid}", current()?.pid))
            }),
            Self::PathLink(path) => path_link(move || Ok(String::from(path))),
        }
    }
}

fn path_link(path: impl Fn() -> FsResult<String> + Send + Sync + 'static) -> Kind {
    Kind::Link(Box::new(move || {
        let path = path()?.into_bytes();
        Ok((path.clone(), LinkTarget::Path(path)))
    }))
}

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

fn names_of(items: &'static [(&'static str, Item)]) -> Vec<(Cow<'static, [u8]>, FileKind)> {
    items.iter().map(|(name, item)| (Cow::Borrowed(name.as_bytes()), item.file_kind())).collect()
}

impl Listing for Fixed {
    fn find(&self, name: &[u8]) -> FsResult<Kind> {
        find_item(self.0, name).map(Item::kind).ok_or(FsError::NotFound)
    }

    fn names(&self) -> FsResult<Vec<(Cow<'static, [u8]>, FileKind)>> {
        Ok(names_of(self.0))
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

impl Listing for ProcRoot {
    fn find(&self, name: &[u8]) -> FsResult<Kind> {
        if let Some(item) = find_item(PROC, name) {
            return Ok(item.kind());
        }
        let pid = number(name).ok_or(FsError::NotFound)?;
        // A thread's id leads to its program as well, though it is not listed.
        let program = program::by_pid(pid)
            .or_else(|| program::all().into_iter().find(|program| program.thread(pid).is_some()))
            .ok_or(FsError::NotFound)?;
        Ok(Kind::Directory(Box::new(ProgramDirectory { program, tid: None })))
    }

    fn names(&self) -> FsResult<Vec<(Cow<'static, [u8]>, FileKind)>> {
        let mut names = names_of(PROC);
        names.extend(program::all().iter().map(|program| directory_name(program.pid)));
        Ok(names)
    }
}

fn number(name: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(name).ok()?;
    text.parse().ok().filter(|_| !text.starts_with(['0', '+']) || text == "0")
}

fn directory_name(number: u32) -> (Cow<'static, [u8]>, FileKind) {
    (Cow::Owned(format!("{number}").into_bytes()), FileKind::Directory)
}

/// /proc/PID, or with `tid` /proc/PID/task/TID.
struct ProgramDirectory {
    program: Arc<Program>,
    tid: Option<u32>,
}

type Text = fn(&Program) -> String;
type Raw = fn(&Program) -> Vec<u8>;

/// The entries that are plain text of the program.
const TEXTS: &[(&str, Text)] = &[
    ("maps", process::maps),
    ("smaps", process::smaps),
    ("smaps_rollup", process::smaps_rollup),
    ("statm", process::statm),
    ("limits", process::limits),
    ("cgroup", process::cgroup),
    ("oom_score", |_| String::from("0\n")),
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

    fn stat(&self) -> Kind {
        let (program, tid) = (self.program.clone(), self.tid);
        Kind::file(move || {
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

    fn status(&self) -> Kind {
        let (program, tid) = (self.program.clone(), self.tid);
        Kind::file(move || {
            let task = program.thread(tid.unwrap_or(program.pid));
            Ok(process::status(&program, task.as_ref().and_then(Thread::of)).into_bytes())
        })
    }

    /// Readable, and writable by any thread of the program (prctl(2), PR_SET_NAME).
    fn comm(&self) -> Kind {
        let (program, tid) = (self.program.clone(), self.tid.unwrap_or(self.program.pid));
        let reader = program.clone();
        Kind::File {
            render: Box::new(move || {
                let task = reader.thread(tid).ok_or(FsError::NoProgram)?;
                let thread = Thread::of(&task).ok_or(FsError::NoProgram)?;
                Ok((thread.name_string() + "\n").into_bytes())
            }),
            store: Some(Box::new(move |bytes| {
                let task = program.thread(tid).ok_or(FsError::NoProgram)?;
                let thread = Thread::of(&task).ok_or(FsError::NoProgram)?;
                thread.set_name(bytes.strip_suffix(b"\n").unwrap_or(bytes));
                Ok(())
            })),
        }
    }

    /// Kept and shown; there are no core dumps to filter.
    fn coredump_filter(&self) -> Kind {
        let (reader, writer) = (self.program.clone(), self.program.clone());
        Kind::File {
            render: Box::new(move || {
                Ok(format!("{:08x}\n", reader.coredump_filter.load(Ordering::Relaxed)).into_bytes())
            }),
            store: Some(Box::new(move |bytes| {
                let text = core::str::from_utf8(bytes).map_err(|_| FsError::Invalid)?.trim();
                let value = match text.strip_prefix("0x") {
                    Some(digits) => u32::from_str_radix(digits, 16),
                    None => text.parse(),
                };
                writer.coredump_filter.store(value.map_err(|_| FsError::Invalid)?, Ordering::Relaxed);
                Ok(())
            })),
        }
    }

    /// Kept and shown; memory shortage ends the largest program, whatever it says.
    fn oom_score_adj(&self) -> Kind {
        let (reader, writer) = (self.program.clone(), self.program.clone());
        Kind::File {
            render: Box::new(move || {
                Ok(format!("{}\n", reader.oom_score_adj.load(Ordering::Relaxed)).into_bytes())
            }),
            store: Some(Box::new(move |bytes| {
                let text = core::str::from_utf8(bytes).map_err(|_| FsError::Invalid)?.trim();
                let value: i32 = text.parse().map_err(|_| FsError::Invalid)?;
                if !(-1000..=1000).contains(&value) {
                    return Err(FsError::Invalid);
                }
                writer.oom_score_adj.store(value, Ordering::Relaxed);
                Ok(())
            })),
        }
    }

    fn location_link(&self, get: fn(&Program) -> Option<Location>) -> Kind {
        let program = self.program.clone();
        Kind::Link(Box::new(move || {
            let location = get(&program).ok_or(FsError::NotFound)?;
            let root = program.directory.lock().root.clone();
            Ok((location.path(&root), LinkTarget::Object(location)))
        }))
    }
}

impl Listing for ProgramDirectory {
    fn find(&self, name: &[u8]) -> FsResult<Kind> {
        let program = self.program.clone();
        if let Some((_, text)) = TEXTS.iter().find(|(known, _)| known.as_bytes() == name) {
            return Ok(Kind::file(move || Ok(text(&program).into_bytes())));
        }
        if let Some((_, raw)) = RAWS.iter().find(|(known, _)| known.as_bytes() == name) {
            return Ok(Kind::file(move || Ok(raw(&program))));
        }
        Ok(match name {
            b"stat" => self.stat(),
            b"status" => self.status(),
            b"comm" => self.comm(),
            b"coredump_filter" => self.coredump_filter(),
            b"oom_score_adj" => self.oom_score_adj(),
            b"exe" => self.location_link(process::exe),
            b"cwd" => self.location_link(|program| Some(program.directory.lock().cwd.clone())),
            b"root" => self.location_link(|program| Some(program.directory.lock().root.clone())),
            b"fd" => Kind::Directory(Box::new(Descriptors(program))),
            b"task" if self.tid.is_none() => Kind::Directory(Box::new(Tasks(program))),
            _ => return Err(FsError::NotFound),
        })
    }

    fn names(&self) -> FsResult<Vec<(Cow<'static, [u8]>, FileKind)>> {
        let mut names: Vec<(Cow<'static, [u8]>, FileKind)> = Vec::new();
        names.extend(TEXTS.iter().map(|(name, _)| (Cow::Borrowed(name.as_bytes()), FileKind::Regular)));
        names.extend(RAWS.iter().map(|(name, _)| (Cow::Borrowed(name.as_bytes()), FileKind::Regular)));
        let others = OTHERS.iter().filter(|(name, _)| self.tid.is_none() || *name != "task");
        names.extend(others.map(|(name, kind)| (Cow::Borrowed(name.as_bytes()), *kind)));
        Ok(names)
    }
}

struct Tasks(Arc<Program>);

impl Listing for Tasks {
    fn find(&self, name: &[u8]) -> FsResult<Kind> {
        let tid = number(name).filter(|tid| self.0.thread(*tid).is_some()).ok_or(FsError::NotFound)?;
        Ok(Kind::Directory(Box::new(ProgramDirectory { program: self.0.clone(), tid: Some(tid) })))
    }

    fn names(&self) -> FsResult<Vec<(Cow<'static, [u8]>, FileKind)>> {
        Ok(self.0.thread_ids().into_iter().map(directory_name).collect())
    }
}

/// /proc/PID/fd: links straight to the open files.
struct Descriptors(Arc<Program>);

impl Listing for Descriptors {
    fn find(&self, name: &[u8]) -> FsResult<Kind> {
        let fd = number(name).ok_or(FsError::NotFound)?;
        let program = self.0.clone();
        if program.files.lock().get(fd).is_none() {
            return Err(FsError::NotFound);
        }
        Ok(Kind::Link(Box::new(move || {
            let file = program.files.lock().get(fd).cloned().ok_or(FsError::NotFound)?;
            let root = program.directory.lock().root.clone();
            Ok((file.path(&root), LinkTarget::Object(Location::of_file(&file))))
        })))
    }

    fn names(&self) -> FsResult<Vec<(Cow<'static, [u8]>, FileKind)>> {
        let open: Vec<u32> = self.0.files.lock().open().map(|(fd, _)| fd).collect();
        Ok(open.into_iter().map(|fd| (Cow::Owned(format!("{fd}").into_bytes()), FileKind::Symlink)).collect())
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
                ("hugepages", Item::Directory(&[])),
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

const CPU_LISTS: [&str; 3] = ["online", "possible", "present"];

/// /sys/devices/system/cpu.
struct Cpus;

impl Listing for Cpus {
    fn find(&self, name: &[u8]) -> FsResult<Kind> {
        if CPU_LISTS.iter().any(|list| list.as_bytes() == name) {
            return Ok(Kind::file(|| Ok((machine::cpu_list() + "\n").into_bytes())));
        }
        if name == b"offline" {
            return Ok(Kind::file(|| Ok(b"\n".to_vec())));
        }
        let cpu = name.strip_prefix(b"cpu").and_then(number);
        cpu.filter(|cpu| (*cpu as usize) < rt().cpu_count()).ok_or(FsError::NotFound)?;
        Ok(Item::Directory(&[]).kind())
    }

    fn names(&self) -> FsResult<Vec<(Cow<'static, [u8]>, FileKind)>> {
        let mut names: Vec<(Cow<'static, [u8]>, FileKind)> =
            CPU_LISTS.iter().map(|list| (Cow::Borrowed(list.as_bytes()), FileKind::Regular)).collect();
        names.push((Cow::Borrowed(b"offline"), FileKind::Regular));
        names.extend((0..rt().cpu_count()).map(|cpu| (Cow::Owned(format!("cpu{cpu}").into_bytes()), FileKind::Directory)));
        Ok(names)
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
        let Kind::Directory(vm) = find_item(PROC_SYS, b"vm").unwrap().kind() else { panic!() };
        for (name, kind) in vm.names().unwrap() {
            assert_eq!(kind, FileKind::Regular);
            assert!(matches!(vm.find(&name), Ok(Kind::File { .. })));
        }
        assert!(matches!(vm.find(b"nothing"), Err(FsError::NotFound)));
    }
}
