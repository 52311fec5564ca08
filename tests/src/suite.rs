//! A list of named tests, run one after the other.
//!
//! They run in sequence because each occupies its virtual CPUs under QEMU's translator: side by side
//! on two cores they would run into their time limits.

use std::{
    io::{self, Write},
    time::Instant,
};

/// How much is run. A test belongs to the smallest slice that has it, and to all larger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slice {
    /// Under five minutes together with building.
    Quick,
    /// Under twenty-five minutes on two cores.
    Default,
    /// Everything: long soaks, all combinations.
    Full,
}

pub enum Verdict {
    Passed,
    /// Why, in as many lines as it takes.
    Failed(String),
    /// Why it cannot be run here.
    Skipped(String),
}

pub type Check = Box<dyn Fn() -> Verdict>;

struct Test {
    name: String,
    slice: Slice,
    check: Check,
}

#[derive(Default)]
pub struct Suite {
    tests: Vec<Test>,
}

impl Suite {
    pub fn add(&mut self, slice: Slice, name: impl Into<String>, check: impl Fn() -> Verdict + 'static) {
        self.tests.push(Test { name: name.into(), slice, check: Box::new(check) });
    }

    /// Keeps the tests of the slice; of these, if names are given, those that contain one of them.
    pub fn select(&mut self, slice: Slice, names: &[String]) {
        self.tests.retain(|test| {
            test.slice <= slice && (names.is_empty() || names.iter().any(|name| test.name.contains(name.as_str())))
        });
    }

    pub fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    pub fn list(&self) {
        for test in &self.tests {
            println!("{} ({:?})", test.name, test.slice);
        }
    }

    /// Runs all; true if none failed.
    pub fn run(&self) -> bool {
        let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
        for test in &self.tests {
            print!("{:<50}", test.name);
            // The name is to stand there while the test runs; a closed pipe shows up at the summary.
            let _ = io::stdout().flush();
            let started = Instant::now();
            let verdict = (test.check)();
            let seconds = started.elapsed().as_secs_f32();
            match verdict {
                Verdict::Passed => {
                    passed += 1;
                    println!(" ok ({seconds:.1} s)");
                }
                Verdict::Skipped(why) => {
                    skipped += 1;
                    println!(" skipped: {why}");
                }
                Verdict::Failed(why) => {
                    println!(" FAILED ({seconds:.1} s)");
                    for line in why.lines() {
                        println!("    {line}");
                    }
                    failed.push(&test.name);
                }
            }
        }
        for name in &failed {
            println!("failed: {name}");
        }
        println!("{passed} passed, {} failed, {skipped} skipped", failed.len());
        failed.is_empty()
    }
}
