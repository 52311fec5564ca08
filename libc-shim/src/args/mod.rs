//! Typed system-call arguments: each type decodes itself from a register and prints itself for strace.
//!
//! Base types are here; [`flags`] and [`names`] have the bit sets and enumerations.
use alloc::{string::String, vec::Vec};
use core::fmt::Write;

use rt::rt;

use crate::errno::{ENAMETOOLONG, SysResult};

pub mod flags;
pub mod names;

/// Longest path of a call, its NUL included (path_resolution(7)).
pub const PATH_MAX: usize = 4096;

/// One argument of a system call.
pub trait Arg: Sized {
    fn decode(raw: u64) -> Self;
    /// As strace(1) shows it.
    fn print(&self, out: &mut String);
}

macro_rules! decimal_args {
    ($($int:ty),*) => {$(
        impl Arg for $int {
            fn decode(raw: u64) -> Self {
                raw as $int
            }
            fn print(&self, out: &mut String) {
                let _ = write!(out, "{self}");
            }
        }
    )*};
}

decimal_args!(i32, u32, i64, u64);

/// An address in application memory; 0 prints as NULL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Addr(pub u64);

impl Addr {
    pub fn is_null(self) -> bool {
        self.0 == 0
    }

    pub fn write(self, bytes: &[u8]) -> SysResult<()> {
        Ok(rt().user().write(self.0, bytes)?)
    }

    pub fn read<const N: usize>(self) -> SysResult<[u8; N]> {
        let mut bytes = [0; N];
        rt().user().read(&mut bytes, self.0)?;
        Ok(bytes)
    }

    pub fn read_u64(self) -> SysResult<u64> {
        Ok(u64::from_le_bytes(self.read()?))
    }
}

impl Arg for Addr {
    fn decode(raw: u64) -> Self {
        Self(raw)
    }
    fn print(&self, out: &mut String) {
        if self.is_null() {
            out.push_str("NULL");
        } else {
            let _ = write!(out, "{:#x}", self.0);
        }
    }
}

/// A file descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fd(pub i32);

impl Arg for Fd {
    fn decode(raw: u64) -> Self {
        Self(raw as i32)
    }
    fn print(&self, out: &mut String) {
        let _ = write!(out, "{}", self.0);
    }
}

/// A directory's descriptor, or AT_FDCWD.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DirFd(pub i32);

impl DirFd {
    pub const CWD: Self = Self(-100);
}

impl Arg for DirFd {
    fn decode(raw: u64) -> Self {
        Self(raw as i32)
    }
    fn print(&self, out: &mut String) {
        if *self == Self::CWD {
            out.push_str("AT_FDCWD");
        } else {
            let _ = write!(out, "{}", self.0);
        }
    }
}

/// A NUL-terminated string in application memory: a path, mostly.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Path(pub u64);

impl Path {
    /// The bytes without the NUL. ENAMETOOLONG beyond [`PATH_MAX`].
    pub fn read(self) -> SysResult<Vec<u8>> {
        read_string(self.0, PATH_MAX)?.ok_or(ENAMETOOLONG)
    }
}

/// The string at `address`, without its NUL; None if it has more than `limit - 1` bytes.
pub fn read_string(address: u64, limit: usize) -> SysResult<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut piece = [0u8; 128];
    while bytes.len() < limit {
        let room = piece.len().min(limit - bytes.len());
        match rt().user().read_c_str(&mut piece[..room], address + bytes.len() as u64)? {
            Some(len) => {
                bytes.extend_from_slice(&piece[..len]);
                return Ok(Some(bytes));
            }
            None => bytes.extend_from_slice(&piece[..room]),
        }
    }
    Ok(None)
}

impl Arg for Path {
    fn decode(raw: u64) -> Self {
        Self(raw)
    }
    fn print(&self, out: &mut String) {
        if self.0 == 0 {
            return out.push_str("NULL");
        }
        match self.read() {
            Ok(bytes) => print_quoted(out, &bytes),
            Err(_) => Addr(self.0).print(out),
        }
    }
}

fn print_quoted(out: &mut String, bytes: &[u8]) {
    out.push('"');
    let _ = write!(out, "{}", bytes.escape_ascii());
    out.push('"');
}

/// Bytes that the call reads: the first of them are shown. The length is the argument after it, so
/// only a NUL-free beginning can be shown here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Arg for Bytes {
    fn decode(raw: u64) -> Self {
        Self(raw)
    }
    fn print(&self, out: &mut String) {
        Addr(self.0).print(out);
    }
}

/// A file's permission bits, octal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

impl Arg for Mode {
    fn decode(raw: u64) -> Self {
        Self(raw as u32)
    }
    fn print(&self, out: &mut String) {
        let _ = write!(out, "{:#o}", self.0);
    }
}

/// A number that reads best in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex(pub u64);

impl Arg for Hex {
    fn decode(raw: u64) -> Self {
        Self(raw)
    }
    fn print(&self, out: &mut String) {
        let _ = write!(out, "{:#x}", self.0);
    }
}

/// A `struct timespec` that the call reads, or NULL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TimespecIn(pub Addr);

impl Arg for TimespecIn {
    fn decode(raw: u64) -> Self {
        Self(Addr(raw))
    }
    fn print(&self, out: &mut String) {
        match (self.0.is_null(), self.0.read::<16>()) {
            (false, Ok(bytes)) => {
                let (seconds, ns) = split_pair(&bytes);
                let _ = write!(out, "{{tv_sec={seconds}, tv_nsec={ns}}}");
            }
            _ => self.0.print(out),
        }
    }
}

/// Two 64-bit numbers, as timespec, timeval and rlimit have them.
pub fn split_pair(bytes: &[u8; 16]) -> (i64, i64) {
    let mut halves = [[0u8; 8]; 2];
    halves[0].copy_from_slice(&bytes[..8]);
    halves[1].copy_from_slice(&bytes[8..]);
    (i64::from_le_bytes(halves[0]), i64::from_le_bytes(halves[1]))
}

/// The bytes of two 64-bit numbers.
pub fn pair_bytes(first: u64, second: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..].copy_from_slice(&second.to_le_bytes());
    bytes
}

/// Builds a C structure field by field.
pub struct Fields<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Default for Fields<N> {
    fn default() -> Self {
        Self { bytes: [0; N], at: 0 }
    }
}

impl<const N: usize> Fields<N> {
    pub fn put(mut self, bytes: &[u8]) -> Self {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        self
    }
    pub fn u16(self, value: u16) -> Self {
        self.put(&value.to_le_bytes())
    }
    pub fn u32(self, value: u32) -> Self {
        self.put(&value.to_le_bytes())
    }
    pub fn u64(self, value: u64) -> Self {
        self.put(&value.to_le_bytes())
    }
    /// Leaves zeros.
    pub fn skip(mut self, len: usize) -> Self {
        self.at += len;
        self
    }
    /// The structure; what was not set is zero.
    pub fn finish(self) -> [u8; N] {
        debug_assert!(self.at <= N);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_print_as_strace_does() {
        let mut out = String::new();
        DirFd::decode(-100i32 as u32 as u64).print(&mut out);
        out.push(' ');
        Addr(0).print(&mut out);
        out.push(' ');
        Mode(0o644).print(&mut out);
        out.push(' ');
        flags::OpenFlags::decode(0o2000001).print(&mut out);
        out.push(' ');
        flags::Prot::decode(0).print(&mut out);
        out.push(' ');
        names::Signal::decode(11).print(&mut out);
        assert_eq!(out, "AT_FDCWD NULL 0o644 O_WRONLY|O_CLOEXEC PROT_NONE SIGSEGV");
    }

    #[test]
    fn fields_lie_where_they_were_put() {
        let bytes = Fields::<12>::default().u16(1).skip(2).u64(0x0203).finish();
        assert_eq!(bytes, [1, 0, 0, 0, 3, 2, 0, 0, 0, 0, 0, 0]);
    }
}
