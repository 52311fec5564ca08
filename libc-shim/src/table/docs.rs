//! docs/syscalls.md: generated from the table by this test, which fails when the committed file is
//! stale. `UPDATE_DOCS=1 cargo test -p libc-shim` writes it.
use std::{fmt::Write, fs, path::PathBuf};

use super::{Support, TABLE};
use crate::sysno;

fn document() -> String {
    let mut out = String::from(
        "# System calls\n\n\
         Generated from `libc-shim/src/table`; do not edit (`UPDATE_DOCS=1 cargo test -p libc-shim`).\n\n\
         *full*: as the man page says, for programs that run as root. *partial*: but for what the note\n\
         names. *no*: the errno of a Linux without the call, and one line on the console at its first\n\
         use. Calls that are not listed answer ENOSYS, also with one line.\n\n\
         | number | call | support | note |\n|---:|---|---|---|\n",
    );
    let (mut full, mut partial, mut no) = (0, 0, 0);
    for row in TABLE.iter().flatten() {
        let (level, note) = match row.support {
            Support::Full => ("full", ""),
            Support::Partial(note) => ("partial", note),
            Support::No(note) => ("no", note),
        };
        match row.support {
            Support::Full => full += 1,
            Support::Partial(_) => partial += 1,
            Support::No(_) => no += 1,
        }
        let arguments: Vec<&str> =
            row.signature.split(',').filter_map(|a| a.split(':').next()).map(str::trim).collect();
        let _ = writeln!(out, "| {} | `{}({})` | {level} | {note} |", row.number, row.name, arguments.join(", "));
    }
    let absent: Vec<&str> =
        (0..TABLE.len()).filter(|n| TABLE[*n].is_none()).filter_map(|n| sysno::name(n as u64)).collect();
    let _ = write!(
        out,
        "\n{full} full, {partial} partial, {no} refused; {} not listed: {}.\n",
        absent.len(),
        absent.join(", ")
    );
    out
}

#[test]
fn the_committed_document_is_current() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/syscalls.md");
    let fresh = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == fresh, "docs/syscalls.md is stale: UPDATE_DOCS=1 cargo test -p libc-shim");
}
