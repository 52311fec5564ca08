//! The system-call table: one row a call is dispatch, strace and documentation at once.
//!
//! A row: number, name, typed arguments, handler, support. The argument types decode the registers
//! and print themselves ([`crate::args::Arg`]). Rows stand in the folder's files by family;
//! docs/syscalls.md is generated from them (see [`docs`]).
use alloc::string::String;

use crate::{call::Ctx, errno::SysResult};

mod files;
mod system;

#[cfg(test)]
mod docs;

/// How much of a call is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As the man page says, for programs that run as root.
    Full,
    /// All but what the note names.
    Partial(&'static str),
    /// Always the errno that a Linux without it gives; said once on the console.
    No(&'static str),
}

/// One system call.
pub struct Row {
    pub number: u16,
    pub name: &'static str,
    /// Argument names and types, as written in the table.
    #[cfg_attr(not(test), allow(dead_code))]
    pub signature: &'static str,
    pub support: Support,
    /// Takes its arguments from the caller's registers.
    pub call: fn(&mut Ctx<'_>) -> SysResult,
    pub print: fn(&mut String, [u64; 6]),
    /// The result is an address: strace shows it in hexadecimal.
    pub gives_address: bool,
    /// Makes kernel objects, and so draws on the memory budget first ([`rt::Runtime::draw_budget`]).
    pub allocates: bool,
    /// Nothing has to be looked at before the call: it is supported, and draws on no budget.
    pub plain: bool,
}

/// Calls whose objects stay after them: mappings, descriptors, names, threads, timers. Not brk, which has
/// no errno for it.
pub const fn allocates(number: u16) -> bool {
    matches!(
        number,
        2 | 9
            | 10
            | 22
            | 25
            | 32
            | 33
            | 53
            | 56
            | 82
            | 83
            | 85
            | 86
            | 88
            | 133
            | 213
            | 222
            | 233
            | 257
            | 258
            | 259
            | 264
            | 265
            | 266
            | 283
            | 284
            | 290
            | 291
            | 292
            | 293
            | 316
            | 319
            | 435
            | 437
    )
}

/// Rows of one family. `number name(arg: Type, ...) => handler, support;`
macro_rules! rows {
    ($($number:literal $name:ident($($arg:ident: $type:ty),* $(,)?) => $handler:path, $support:expr;)*) => {
        &[$(crate::table::Row {
            number: $number,
            name: stringify!($name),
            signature: stringify!($($arg: $type),*),
            support: $support,
            call: |cx| {
                #[allow(unused_mut, unused_variables)]
                let mut raw = cx.arguments().into_iter();
                $(let $arg = <$type as crate::args::Arg>::decode(raw.next().unwrap_or(0));)*
                $handler(cx $(, $arg)*)
            },
            print: |out, raw| {
                #[allow(unused_mut, unused_variables)]
                let mut raw = raw.into_iter();
                #[allow(unused_mut, unused_variables)]
                let mut separator = "";
                $(
                    out.push_str(separator);
                    let $arg = <$type as crate::args::Arg>::decode(raw.next().unwrap_or(0));
                    crate::args::Arg::print(&$arg, out);
                    separator = ", ";
                )*
                let _ = (out, separator);
            },
            gives_address: matches!($number, 9 | 12 | 25),
            allocates: crate::table::allocates($number),
            plain: !crate::table::allocates($number) && !matches!($support, crate::table::Support::No(_)),
        }),*]
    };
}
use rows;

const FAMILIES: [&[Row]; 2] = [files::ROWS, system::ROWS];
const NUMBERS: usize = 463;

static TABLE: [Option<&Row>; NUMBERS] = {
    let mut table = [None; NUMBERS];
    let mut family = 0;
    while family < FAMILIES.len() {
        let rows = FAMILIES[family];
        let mut at = 0;
        while at < rows.len() {
            let number = rows[at].number as usize;
            assert!(table[number].is_none(), "a system call has two rows");
            table[number] = Some(&rows[at]);
            at += 1;
        }
        family += 1;
    }
    table
};

/// The row of a number, if there is one.
#[inline]
pub fn row(number: u64) -> Option<&'static Row> {
    *TABLE.get(number as usize)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysno;

    #[test]
    fn rows_have_linux_names() {
        for row in TABLE.iter().flatten() {
            assert_eq!(sysno::name(u64::from(row.number)), Some(row.name));
        }
    }

    #[test]
    fn arguments_print_by_their_types() {
        let mut out = String::new();
        let row = row(9).unwrap();
        (row.print)(&mut out, [0, 4096, 3, 0x22, u64::MAX, 0]);
        assert_eq!(out, "NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0");
    }
}
