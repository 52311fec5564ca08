//! Boot structures that make no sense: each ends the machine with one line and its own exit code, or is
//! survived. A few bytes of machine code stand in for the boot loader: QEMU starts them as a PVH kernel,
//! with the real one beside them in memory, and they enter that with a structure of the test's choice.

use std::{fs, path::Path, time::Duration};

use abi::{BootConfig, exit};
use vmm::{ImageAs, Machine, Outcome};

use crate::{
    boot,
    guest::{self, IMAGES, KERNEL, Run},
    suite::{Slice, Suite, Verdict},
};

/// Where the loader and its structures lie: in RAM, well above the kernel.
const BASE: u64 = 0x600_0000;
const START_INFO: u64 = BASE + 0x100;
const MEMORY_MAP: u64 = BASE + 0x200;
const MODULES: u64 = BASE + 0x400;
const COMMAND_LINE: u64 = BASE + 0x500;
const MEMORY_BYTES: u64 = 256 << 20;
const MAGIC: u32 = 0x336e_c578;
/// More than the kernel takes.
const LONG: usize = 20_000;
const RAM: u64 = 1;
const RESERVED: u64 = 2;

/// `hvm_start_info` and what it points to.
struct Given {
    entry_info: u64,
    magic: u32,
    version: u32,
    command_line_at: u64,
    command_line: Vec<u8>,
    rsdp: u64,
    map_at: u64,
    map_count: Option<u32>,
    /// Start, length, kind.
    map: Vec<[u64; 3]>,
    modules_at: u64,
    /// Start and length.
    modules: Vec<[u64; 2]>,
}

impl Given {
    fn sound() -> Self {
        Self {
            entry_info: START_INFO,
            magic: MAGIC,
            version: 1,
            command_line_at: COMMAND_LINE,
            command_line: b"test=park-unpark\0".to_vec(),
            rsdp: 0,
            map_at: MEMORY_MAP,
            map_count: None,
            map: vec![[0, 0x9_fc00, RAM], [1 << 20, MEMORY_BYTES - (1 << 20), RAM]],
            modules_at: MODULES,
            modules: Vec::new(),
        }
    }

    /// Everything from [`BASE`] on. `kernel` is the real kernel's entry.
    fn bytes(&self, kernel: u32) -> Vec<u8> {
        let mut bytes = vec![0; 0x500];
        let mut put = |at: u64, data: &[u8]| {
            let at = (at - BASE) as usize;
            bytes[at..at + data.len()].copy_from_slice(data);
        };
        // mov ebx, start_info; mov eax, kernel; jmp eax
        let code =
            [&[0xbb][..], &(self.entry_info as u32).to_le_bytes(), &[0xb8], &kernel.to_le_bytes(), &[0xff, 0xe0]];
        put(BASE, &code.concat());
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let longs = |longs: &[u64]| longs.iter().flat_map(|long| long.to_le_bytes()).collect::<Vec<_>>();
        put(START_INFO, &words(&[self.magic, self.version, 0, self.modules.len() as u32]));
        put(START_INFO + 16, &longs(&[self.modules_at, self.command_line_at, self.rsdp, self.map_at]));
        put(START_INFO + 48, &words(&[self.map_count.unwrap_or(self.map.len() as u32), 0]));
        put(MEMORY_MAP, &longs(&self.map.concat()));
        let modules: Vec<u64> = self.modules.iter().flat_map(|[start, len]| [*start, *len, 0, 0]).collect();
        put(MODULES, &longs(&modules));
        bytes.extend(&self.command_line);
        bytes
    }
}

/// An ELF file with a PVH note, whose one segment is `body`, entered at its first byte.
fn elf(body: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE_LEN: u64 = 24;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let put = |file: &mut Vec<u8>, value: u64, len: usize| file.extend(&value.to_le_bytes()[..len]);
    // Type EXEC, machine x86-64, version; entry, program headers, no sections; flags and sizes.
    let header = [
        (2, 2),
        (62, 2),
        (1, 4),
        (BASE, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (2, 2),
        (64, 2),
        (0, 2),
        (0, 2),
    ];
    let start = HEADERS + NOTE_LEN;
    let len = body.len() as u64;
    // Type, flags, offset, virtual and physical address, length in file and memory, alignment.
    let note = [(4, 4), (4, 4), (HEADERS, 8), (0, 8), (0, 8), (NOTE_LEN, 8), (NOTE_LEN, 8), (4, 8)];
    let load = [(1, 4), (7, 4), (start, 8), (BASE, 8), (BASE, 8), (len, 8), (len, 8), (1, 8)];
    // XEN_ELFNOTE_PHYS32_ENTRY.
    let entry = [(4, 4), (8, 4), (18, 4), (0x6e_6558, 4), (BASE, 8)];
    for (value, bytes) in header.into_iter().chain(note).chain(load).chain(entry) {
        put(&mut file, value, bytes);
    }
    file.extend(body);
    file
}

/// What must come of it.
enum End {
    /// The kernel starts and its test passes; the console says this, if anything.
    Boots(&'static str),
    /// One line, which contains this, and this exit code.
    Ends(u32, &'static str),
}

pub fn add(suite: &mut Suite) {
    use End::{Boots, Ends};
    let with = |change: fn(&mut Given)| {
        let mut given = Given::sound();
        change(&mut given);
        given
    };
    let cases = [
        ("sound", with(|_| ()), Boots("")),
        ("magic", with(|g| g.magic = 1), Ends(exit::BAD_START_INFO, "magic is 0x1")),
        ("no-structure", with(|g| g.entry_info = 0xf000_0000), Ends(exit::BAD_START_INFO, "points outside memory")),
        ("count", with(|g| g.map_count = Some(1 << 20)), Ends(exit::BAD_START_INFO, "claims 1048576 entries")),
        ("version-0", with(|g| g.version = 0), Ends(exit::BAD_MEMORY_MAP, "no memory map")),
        ("no-map", with(|g| g.map.clear()), Ends(exit::BAD_MEMORY_MAP, "no memory map")),
        ("map-outside", with(|g| g.map_at = 1 << 45), Ends(exit::BAD_MEMORY_MAP, "memory map lies outside")),
        ("kernel-reserved", with(|g| g.map.push([2 << 20, 4096, RESERVED])), Ends(exit::BAD_MEMORY_MAP, "no RAM")),
        ("map-overlaps", with(|g| g.map.push([8 << 20, 64 << 20, RAM])), Boots("")),
        ("map-beyond-the-cpu", with(|g| g.map.push([1 << 41, 1 << 30, RAM])), Boots("")),
        ("map-wraps", with(|g| g.map.push([u64::MAX - 9, 100, RESERVED])), Boots("")),
        (
            "more-memory-than-records",
            with(|g| g.map.push([1 << 32, 1 << 39, RAM])),
            Ends(exit::OUT_OF_MEMORY, "too little memory"),
        ),
        ("module-beyond", with(|g| g.modules = vec![[1 << 40, 4096]]), Ends(exit::BAD_MODULE, "boot module")),
        ("module-over-kernel", with(|g| g.modules = vec![[2 << 20, 4096]]), Ends(exit::BAD_MODULE, "boot module")),
        (
            "modules-outside",
            with(|g| (g.modules, g.modules_at) = (vec![[0; 2]], u64::MAX - 8)),
            Ends(exit::BAD_MODULE, "modules lie outside"),
        ),
        ("line-endless", with(|g| g.command_line = vec![b'a'; LONG]), Ends(exit::BAD_COMMAND_LINE, "no end within")),
        ("line-outside", with(|g| g.command_line_at = 1 << 40), Ends(exit::BAD_COMMAND_LINE, "lies outside memory")),
        ("line-wrong", with(|g| g.command_line = b"root=sda\0".into()), Ends(exit::BAD_COMMAND_LINE, "root=\"sda\"")),
        ("acpi-wild", with(|g| g.rsdp = 1 << 45), Boots("one CPU, devices by command line only")),
        ("acpi-garbage", with(|g| g.rsdp = BASE), Boots("one CPU, devices by command line only")),
    ];
    for (name, given, end) in cases {
        let slice = if name == "magic" { Slice::Quick } else { Slice::Default };
        suite.add(slice, format!("malformed/{name}"), move || match start(name, &given) {
            Ok(run) => judge(&run, &end),
            Err(why) => Verdict::Failed(why),
        });
    }
    suite.add(Slice::Default, "malformed/image-cut-short", image_cut_short);
}

fn start(name: &str, given: &Given) -> Result<Run, String> {
    guest::image_folder()?;
    let kernel = fs::read(KERNEL).map_err(|error| format!("{KERNEL}: {error}"))?;
    let entry = kernel.get(24..28).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let path = Path::new(IMAGES).join(format!("malformed-{name}.elf"));
    let loader = elf(&given.bytes(entry.ok_or("the kernel is no ELF file")?));
    fs::write(&path, loader).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut machine = Machine::new(&path, BootConfig::default());
    machine.memory_bytes = MEMORY_BYTES;
    machine.time_limit = Some(Duration::from_secs(30));
    machine.extra_arguments = vec!["-device".into(), format!("loader,file={KERNEL}")];
    guest::run(&machine)
}

fn judge(run: &Run, end: &End) -> Verdict {
    let console = String::from_utf8_lossy(&run.output);
    let lines: Vec<&str> = console.lines().filter(|line| !line.is_empty()).collect();
    let (right, wanted) = match *end {
        End::Boots(line) => {
            let said = line.is_empty() || console.contains(line);
            (said && run.exit_code() == Some(0), format!("a boot, and {line:?}"))
        }
        End::Ends(code, line) => {
            let ended = match run.report.outcome {
                Outcome::BadBoot { code: actual } => actual == code,
                Outcome::OutOfMemory => code == exit::OUT_OF_MEMORY,
                _ => false,
            };
            (ended && lines.len() == 1 && lines[0].contains(line), format!("code {code:#x} and one line with {line:?}"))
        }
    };
    if right { Verdict::Passed } else { run.fail(format!("ended as {:?}, wanted {wanted}", run.report.outcome)) }
}

/// A root image of which only a part arrived.
fn image_cut_short() -> Verdict {
    let cut = || {
        let whole = fs::read(boot::hello_image()?).map_err(|error| error.to_string())?;
        let path = Path::new(IMAGES).join("cut-short.erofs");
        // The superblock and nothing of what it leads to.
        fs::write(&path, &whole[..whole.len().min(4096)]).map_err(|error| error.to_string())?;
        let machine = guest::machine("/hello", 30);
        guest::run(&Machine { image: guest::image(path, ImageAs::Module), ..machine })
    };
    match cut() {
        Ok(run) => judge(&run, &End::Ends(exit::BAD_BOOT, "demitasse: error: ")),
        Err(why) => Verdict::Failed(why),
    }
}
