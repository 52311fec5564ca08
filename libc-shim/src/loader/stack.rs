//! The initial stack: strings, argv, envp and the auxiliary vector (System V ABI AMD64, 3.4.1).
//!
//! From high to low: 8 zero bytes, the program's path (AT_EXECFN), environment strings, argument
//! strings, the platform string, 16 random bytes, alignment; then auxv, envp, argv, and argc at rsp.
use alloc::vec::Vec;

use rt::{
    rt,
    space::{MapRequest, Placement, ProgramId, Prot},
};

use super::{check_string_bytes, elf::Loaded, random_pages};
use crate::{errno::SysResult, mm::SPACE_END};

const PAGE: u64 = 4096;
const GUARD_BYTES: u64 = 1 << 20;
/// The stack of a program whose limit is unlimited or tiny.
const MIN_BYTES: u64 = 128 << 10;
const MAX_BYTES: u64 = 64 << 20;

/// What goes onto the stack.
pub struct Contents<'a> {
    pub arguments: &'a [Vec<u8>],
    pub environment: &'a [Vec<u8>],
    pub path: &'a [u8],
    pub program: &'a Loaded,
    pub interpreter_base: u64,
    pub stack_bytes: u64,
    pub executable: bool,
}

/// Where it went.
pub struct Placed {
    pub stack_pointer: u64,
    pub arguments: (u64, u64),
    pub environment: (u64, u64),
    pub auxv: Vec<u8>,
}

/// Maps the stack and fills it.
pub fn build(owner: ProgramId, contents: &Contents<'_>) -> SysResult<Placed> {
    let top = map_stack(owner, contents)?;
    let mut random = [0u8; 16];
    rt().random(&mut random);
    let image = lay_out(top, contents, &random);
    let total = top - image.stack_pointer;
    check_string_bytes(total, contents.stack_bytes)?;
    rt().user().write(image.stack_pointer, &image.bytes)?;
    Ok(Placed {
        stack_pointer: image.stack_pointer,
        arguments: image.arguments,
        environment: image.environment,
        auxv: image.auxv,
    })
}

/// A stack of fixed size with a guard below; its top.
fn map_stack(owner: ProgramId, contents: &Contents<'_>) -> SysResult<u64> {
    let len = contents.stack_bytes.clamp(MIN_BYTES, MAX_BYTES).next_multiple_of(PAGE);
    let space = rt().address_space();
    // Near the top of the half, as on Linux, at a random distance from it.
    let wanted = SPACE_END - (1 << 30) - random_pages(1 << 18) - len;
    let mut prot = Prot::READ | Prot::WRITE;
    prot.set(Prot::EXEC, contents.executable);
    let request = |placement, len, prot, label| MapRequest {
        placement,
        len,
        prot,
        file: None,
        shared: false,
        read_only: false,
        no_reserve: true,
        stack: true,
        label,
    };
    let guard =
        space.map(owner, request(Placement::Hint(wanted - GUARD_BYTES), len + GUARD_BYTES, Prot::empty(), None))?;
    let start = guard + GUARD_BYTES;
    space.map(owner, request(Placement::Fixed(start), len, prot, Some("[stack]")))?;
    Ok(start + len)
}

struct StackImage {
    stack_pointer: u64,
    /// From `stack_pointer` to the top.
    bytes: Vec<u8>,
    arguments: (u64, u64),
    environment: (u64, u64),
    auxv: Vec<u8>,
}

mod at {
    pub const NULL: u64 = 0;
    pub const PHDR: u64 = 3;
    pub const PHENT: u64 = 4;
    pub const PHNUM: u64 = 5;
    pub const PAGESZ: u64 = 6;
    pub const BASE: u64 = 7;
    pub const FLAGS: u64 = 8;
    pub const ENTRY: u64 = 9;
    pub const UID: u64 = 11;
    pub const EUID: u64 = 12;
    pub const GID: u64 = 13;
    pub const EGID: u64 = 14;
    pub const PLATFORM: u64 = 15;
    pub const HWCAP: u64 = 16;
    pub const CLKTCK: u64 = 17;
    pub const SECURE: u64 = 23;
    pub const RANDOM: u64 = 25;
    pub const HWCAP2: u64 = 26;
    pub const EXECFN: u64 = 31;
    pub const MINSIGSTKSZ: u64 = 51;
}

/// Pure: what the top of the stack holds, for a stack that ends at `top`.
fn lay_out(top: u64, contents: &Contents<'_>, random: &[u8; 16]) -> StackImage {
    // The strings, lowest address first.
    let mut strings: Vec<u8> = Vec::new();
    let mut put = |bytes: &[u8], terminated: bool| {
        let at = strings.len() as u64;
        strings.extend_from_slice(bytes);
        if terminated {
            strings.push(0);
        }
        at
    };
    let random_at = put(random, false);
    let platform_at = put(b"x86_64", true);
    let arguments: Vec<u64> = contents.arguments.iter().map(|s| put(s, true)).collect();
    let environment: Vec<u64> = contents.environment.iter().map(|s| put(s, true)).collect();
    let path_at = put(contents.path, true);
    put(&[0; 8], false);

    let strings_at = (top - strings.len() as u64) & !15;
    strings.resize((top - strings_at) as usize, 0);
    let address = |offset: u64| strings_at + offset;
    let first_argument = address(arguments.first().copied().unwrap_or(platform_at + 7));
    let first_environment = address(environment.first().copied().unwrap_or(path_at));

    let auxv = auxiliary_vector(contents, address(random_at), address(platform_at), address(path_at));
    let mut words: Vec<u64> = Vec::new();
    words.push(arguments.len() as u64);
    words.extend(arguments.iter().map(|at| address(*at)));
    words.push(0);
    words.extend(environment.iter().map(|at| address(*at)));
    words.push(0);
    words.extend_from_slice(&auxv);

    // rsp is a multiple of 16 at the entry.
    let stack_pointer = (strings_at - words.len() as u64 * 8) & !15;
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize((strings_at - stack_pointer) as usize, 0);
    bytes.extend_from_slice(&strings);
    StackImage {
        stack_pointer,
        bytes,
        arguments: (first_argument, first_environment),
        environment: (first_environment, address(path_at)),
        auxv: auxv.iter().flat_map(|word| word.to_le_bytes()).collect(),
    }
}

/// AT_SYSINFO_EHDR is absent: there is no vDSO, so libc makes the calls.
fn auxiliary_vector(contents: &Contents<'_>, random: u64, platform: u64, path: u64) -> Vec<u64> {
    let program = contents.program;
    let (hwcap, hwcap2) = hardware_capabilities();
    [
        (at::HWCAP, hwcap),
        (at::PAGESZ, PAGE),
        (at::CLKTCK, 100),
        (at::PHDR, program.program_headers),
        (at::PHENT, logic::elf::PROGRAM_HEADER_BYTES as u64),
        (at::PHNUM, u64::from(program.program_header_count)),
        (at::BASE, contents.interpreter_base),
        (at::FLAGS, 0),
        (at::ENTRY, program.entry),
        (at::UID, 0),
        (at::EUID, 0),
        (at::GID, 0),
        (at::EGID, 0),
        (at::SECURE, 0),
        (at::RANDOM, random),
        (at::HWCAP2, hwcap2),
        (at::EXECFN, path),
        (at::PLATFORM, platform),
        (at::MINSIGSTKSZ, minimum_signal_stack()),
        (at::NULL, 0),
    ]
    .into_iter()
    .flat_map(|(kind, value)| [kind, value])
    .collect()
}

/// AT_HWCAP is CPUID leaf 1's edx; AT_HWCAP2 says that user code may use FSGSBASE (bit 1) or not.
fn hardware_capabilities() -> (u64, u64) {
    let leaf = core::arch::x86_64::__cpuid(1);
    (u64::from(leaf.edx), 0)
}

/// A frame, its alignment, and the largest vector area (AT_MINSIGSTKSZ, sysconf(3)).
fn minimum_signal_stack() -> u64 {
    (crate::signal::frame::FRAME_BYTES + rt::regs::VECTOR_STATE_BYTES + 4 + 64 + 16) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn loaded() -> Loaded {
        Loaded {
            bias: 0,
            entry: 0x40_1000,
            program_headers: 0x40_0040,
            program_header_count: 9,
            end: 0x40_5000,
            interpreter: None,
            exec_stack: false,
            code: (0, 0),
            data: (0, 0),
        }
    }

    #[test]
    fn the_stack_is_what_the_abi_says() {
        let program = loaded();
        let contents = Contents {
            arguments: &[b"prog".to_vec(), b"-x".to_vec()],
            environment: &[b"A=1".to_vec()],
            path: b"/bin/prog",
            program: &program,
            interpreter_base: 0,
            stack_bytes: 8 << 20,
            executable: false,
        };
        let top = 0x7000_0000;
        let image = lay_out(top, &contents, &[7; 16]);
        assert_eq!(image.stack_pointer % 16, 0);
        assert_eq!(image.stack_pointer + image.bytes.len() as u64, top);
        let word = |index: usize| u64::from_le_bytes(image.bytes[index * 8..index * 8 + 8].try_into().unwrap());
        let string = |at: u64| {
            let from = (at - image.stack_pointer) as usize;
            let rest = &image.bytes[from..];
            rest[..rest.iter().position(|b| *b == 0).unwrap()].to_vec()
        };
        assert_eq!(word(0), 2);
        assert_eq!(string(word(1)), b"prog");
        assert_eq!(string(word(2)), b"-x");
        assert_eq!((word(3), word(5)), (0, 0));
        assert_eq!(string(word(4)), b"A=1");
        let auxv: Vec<(u64, u64)> = (6..).step_by(2).map(|i| (word(i), word(i + 1))).take_while(|p| p.0 != 0).collect();
        let value = |kind| auxv.iter().find(|p| p.0 == kind).unwrap().1;
        assert_eq!(value(at::ENTRY), 0x40_1000);
        assert_eq!(string(value(at::EXECFN)), b"/bin/prog");
        assert_eq!(string(value(at::PLATFORM)), b"x86_64");
        let random = (value(at::RANDOM) - image.stack_pointer) as usize;
        assert_eq!(image.bytes[random..random + 16], vec![7; 16]);
        assert_eq!(image.arguments.1, image.environment.0);
    }
}
