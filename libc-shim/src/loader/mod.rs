//! The program loader: from a path to a task that is about to run its first instruction (execve(2)).
//!
//! [`elf`] maps one ELF file, [`stack`] lays out arguments, environment and auxiliary vector; here is
//! the order: script or ELF, program, interpreter, heap, stack, registers.
use alloc::{boxed::Box, sync::Arc, vec, vec::Vec};

use fs::{
    Location, OpenFile, OpenFlags, SliceSink,
    vfs::{Base, Follow},
};
use logic::elf::{self as format, ElfError};
use rt::{
    regs::TrapFrame,
    rt,
    space::{Placement, ProgramId},
};

use crate::{
    errno::{E2BIG, EACCES, EIO, ELIBBAD, ELOOP, ENOENT, ENOEXEC, Errno, SysResult},
    mm::Brk,
    program::Image,
};

pub mod elf;
pub mod stack;

use elf::{Loaded, map_elf};

/// What to run.
pub struct Request<'a> {
    pub path: &'a [u8],
    pub arguments: Vec<Vec<u8>>,
    pub environment: Vec<Vec<u8>>,
    /// RLIMIT_STACK.
    pub stack_limit: u64,
}

/// A program in memory.
pub struct Ready {
    pub frame: Box<TrapFrame>,
    pub image: Image,
    pub brk: Brk,
    /// Last component of the path, for `comm`.
    pub name: Vec<u8>,
}

/// Where position-independent programs go: above the low 40 GiB, which the JVM wants for its heap,
/// and where Linux puts them too.
const PIE_BASE: u64 = 0x5555_0000_0000;
/// Bits of randomness in that base, in pages.
const PIE_RANDOM_PAGES: u64 = 1 << 20;
/// Scripts may name scripts, this deep (execve(2)).
const SCRIPT_DEPTH: usize = 4;
const HEADER_READ: usize = 256;

impl From<ElfError> for Errno {
    fn from(error: ElfError) -> Self {
        match error {
            ElfError::NotElf | ElfError::Foreign | ElfError::Corrupt => ENOEXEC,
        }
    }
}

/// Loads the program into mappings of `owner`. On an error, mappings may be left: the caller
/// releases the owner.
pub fn load(owner: ProgramId, base: &Base<'_>, request: Request<'_>) -> SysResult<Ready> {
    let mut path = request.path.to_vec();
    let mut arguments = request.arguments;
    for _ in 0..=SCRIPT_DEPTH {
        let (file, location) = open_program(base, &path)?;
        let mut head = vec![0u8; HEADER_READ];
        let len = read_fully(&file, 0, &mut head)?;
        head.truncate(len);
        if let Some((interpreter, argument)) = format::parse_script(&head) {
            // argv[0] gives way to interpreter, its argument, and the script's path.
            let mut new = vec![interpreter.to_vec()];
            new.extend(argument.map(<[u8]>::to_vec));
            new.push(path);
            new.extend(arguments.drain(..).skip(1));
            arguments = new;
            path = interpreter.to_vec();
            continue;
        }
        let environment = request.environment;
        return load_elf(
            owner,
            base,
            LoadElf { file, location, path, arguments, environment, stack_limit: request.stack_limit },
        );
    }
    Err(ELOOP)
}

struct LoadElf {
    file: Arc<OpenFile>,
    location: Location,
    path: Vec<u8>,
    arguments: Vec<Vec<u8>>,
    environment: Vec<Vec<u8>>,
    stack_limit: u64,
}

fn load_elf(owner: ProgramId, base: &Base<'_>, what: LoadElf) -> SysResult<Ready> {
    let program = map_elf(owner, &what.file, Placement::Hint(PIE_BASE + random_pages(PIE_RANDOM_PAGES)))?;
    let interpreter = match &program.interpreter {
        None => None,
        Some(path) => {
            let (file, _) = open_program(base, path).inspect_err(|&error| {
                log::error!("{}: its interpreter {} cannot be opened: {error}", shown(&what.path), shown(path));
            })?;
            Some(map_interpreter(owner, &file)?)
        }
    };
    // What gdb's `add-symbol-file FILE -o OFFSET` wants to know: docs/debugging.md.
    log::debug!("{}: loaded at offset {:#x}", shown(&what.path), program.bias);
    if let (Some(path), Some(loaded)) = (&program.interpreter, &interpreter) {
        log::debug!("{}: loaded at offset {:#x}", shown(path), loaded.bias);
    }
    let entry = interpreter.as_ref().map_or(program.entry, |i| i.entry);
    // The heap starts behind the program, at a distance of its own, as on Linux.
    let brk_start = program.end + random_pages(0x2000);
    let placed = stack::build(
        owner,
        &stack::Contents {
            arguments: &what.arguments,
            environment: &what.environment,
            path: &what.path,
            program: &program,
            interpreter_base: interpreter.as_ref().map_or(0, |i| i.bias),
            stack_bytes: what.stack_limit,
            executable: program.exec_stack,
        },
    )?;
    let frame = TrapFrame {
        rip: entry,
        rsp: placed.stack_pointer,
        rflags: 0x202,
        cs: 0x33,
        ss: 0x2b,
        vector: TrapFrame::REPLACED,
        ..TrapFrame::default()
    };
    let image = Image {
        exe: Some(what.location),
        arguments: placed.arguments,
        environment: placed.environment,
        auxv: placed.auxv,
        code: program.code,
        data: program.data,
        stack_start: placed.stack_pointer,
    };
    let name = what.path.rsplit(|b| *b == b'/').next().unwrap_or(&what.path).to_vec();
    Ok(Ready { frame: Box::new(frame), image, brk: Brk { start: brk_start, current: brk_start }, name })
}

/// The interpreter goes where mmap would put it.
fn map_interpreter(owner: ProgramId, file: &Arc<OpenFile>) -> SysResult<Loaded> {
    elf::read_layout(file).map_err(|_| ELIBBAD)?;
    map_elf(owner, file, Placement::Anywhere)
}

/// Opens a file that is to be run, and checks that it may be.
fn open_program(base: &Base<'_>, path: &[u8]) -> SysResult<(Arc<OpenFile>, Location)> {
    if path.is_empty() {
        return Err(ENOENT);
    }
    let location = base.resolve(path, Follow::Yes)?;
    let metadata = location.metadata()?;
    if metadata.kind != fs::FileKind::Regular || metadata.permissions & 0o111 == 0 {
        return Err(EACCES);
    }
    Ok((location.open(OpenFlags::empty())?, location))
}

/// Reads until the buffer is full or the file ends; the bytes read.
pub fn read_fully(file: &OpenFile, offset: u64, out: &mut [u8]) -> SysResult<usize> {
    let mut done = 0;
    while done < out.len() {
        let now = file.read_at(offset + done as u64, &mut SliceSink::new(&mut out[done..]))?;
        if now == 0 {
            break;
        }
        done += now;
    }
    Ok(done)
}

/// Reads exactly `len` bytes; a file that is too short is EIO, as on Linux.
fn read_exactly(file: &OpenFile, offset: u64, len: usize) -> SysResult<Vec<u8>> {
    let mut bytes = vec![0u8; len];
    if read_fully(file, offset, &mut bytes)? < len { Err(EIO) } else { Ok(bytes) }
}

/// A random distance below `pages` pages, in bytes. In `exact` mode the runtime's stream is seeded.
fn random_pages(pages: u64) -> u64 {
    let mut bytes = [0u8; 8];
    rt().random(&mut bytes);
    u64::from_le_bytes(bytes) % pages * 4096
}

fn shown(path: &[u8]) -> alloc::string::String {
    alloc::string::String::from_utf8_lossy(path).into_owned()
}

/// The bytes that arguments and environment may take (execve(2): a quarter of the stack, at most 6 MiB).
fn check_string_bytes(total: u64, stack_bytes: u64) -> SysResult<()> {
    if total > (stack_bytes / 4).clamp(131_072, 6 << 20) { Err(E2BIG) } else { Ok(()) }
}
