//! Known gaps: checks that hold on Linux and do not hold in the guest yet (`tests/known-gaps`).
//!
//! A line is `PROGRAM: CHECK # REASON`. Such a check must fail: once it passes, its line has to go,
//! and the test says so. A gap that ends a program early cannot be listed, and fails its test.

use std::{collections::BTreeSet, fs};

const LIST: &str = "tests/known-gaps";

/// The checks of `program` that are known to fail in the guest.
pub fn of(program: &str) -> Result<BTreeSet<String>, String> {
    let list = fs::read_to_string(LIST).map_err(|error| format!("cannot read {LIST}: {error}"))?;
    parse(&list, program)
}

fn parse(list: &str, program: &str) -> Result<BTreeSet<String>, String> {
    let mut checks = BTreeSet::new();
    for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let malformed = || format!("{LIST}: {line:?} is not like `PROGRAM: CHECK # REASON`");
        let (gap, reason) = line.split_once(" # ").ok_or_else(malformed)?;
        let (name, check) = gap.split_once(": ").ok_or_else(malformed)?;
        if reason.trim().is_empty() {
            return Err(malformed());
        }
        if name == program {
            checks.insert(check.to_owned());
        }
    }
    Ok(checks)
}

/// Linux's output as the guest would give it if exactly the known gaps fail: each such line becomes
/// `FAILED CHECK`, and so do the guest's, without their details.
pub fn apply(gaps: &BTreeSet<String>, linux: &str, guest: &str) -> (String, String) {
    let expected = linux.lines().map(|line| match line.strip_prefix("ok ") {
        Some(check) if gaps.contains(check) => format!("FAILED {check}\n"),
        _ if line == "done" && !gaps.is_empty() => "done, with failures\n".into(),
        _ => format!("{line}\n"),
    });
    let actual = guest.lines().map(|line| {
        let known = gaps.iter().find(|check| {
            line.strip_prefix("FAILED ")
                .and_then(|rest| rest.strip_prefix(check.as_str()))
                .is_some_and(|details| details.starts_with(" (") || details.starts_with(": "))
        });
        known.map_or_else(|| format!("{line}\n"), |check| format!("FAILED {check}\n"))
    });
    (expected.collect(), actual.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_needs_a_reason() {
        let list = "# comment\n\nfiles: flock # not written yet\npipes: select # likewise\n";
        assert_eq!(parse(list, "files").unwrap(), BTreeSet::from(["flock".to_owned()]));
        assert!(parse("files: flock", "files").is_err());
    }

    #[test]
    fn a_known_gap_must_fail_and_nothing_else_may() {
        let gaps = BTreeSet::from(["b".to_owned()]);
        let (expected, actual) =
            apply(&gaps, "ok a\nok b\ndone\n", "ok a\nFAILED b (x.c:1, errno 38)\ndone, with failures\n");
        assert_eq!(expected, actual);
        let (expected, actual) = apply(&gaps, "ok a\nok b\ndone\n", "ok a\nok b\ndone\n");
        assert_ne!(expected, actual);
        let (expected, actual) = apply(
            &gaps,
            "ok a\nok b\ndone\n",
            "FAILED a (x.c:1, errno 0)\nFAILED b: 1, expected 2 (x.c:2)\ndone, with failures\n",
        );
        assert_ne!(expected, actual);
    }
}
