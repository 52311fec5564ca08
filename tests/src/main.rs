//! Tests of whole virtual machines: boots them under QEMU and compares what they do with what Linux
//! does, or with what was written down.
//!
//! `vm-tests [--quick|--full] [--list] [NAME...]`, from the repository's root, after the kernel and
//! the test programs have been built (`scripts/test` does all of it). A NAME is part of a test's
//! name. `vm-tests --measure [NAME...]` takes measurements instead ([`measure`]). The last line is `N passed, N failed, N skipped`; the exit code is 1 if any failed.

mod balloon;
mod block;
mod bochs;
mod boot;
mod command;
mod conformance;
mod devices;
mod diagnosis;
mod gaps;
mod guest;
mod java;
mod kernel;
mod malformed;
mod measure;
mod pressure;
mod stopped;
mod suite;

use std::{env, process::ExitCode};

use suite::{Slice, Suite};

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(unknown) => {
            eprintln!(
                "error: unknown option {unknown}\nhelp: vm-tests [--quick|--full] [--list] [NAME...] | --measure [NAME...]"
            );
            return ExitCode::from(2);
        }
    };
    if options.measure {
        return match measure::run(&options.names) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("error: {why}");
                ExitCode::FAILURE
            }
        };
    }
    let mut suite = Suite::default();
    kernel::add(&mut suite);
    boot::add(&mut suite);
    command::add(&mut suite);
    diagnosis::add(&mut suite);
    malformed::add(&mut suite);
    conformance::add(&mut suite);
    java::add(&mut suite);
    pressure::add(&mut suite);
    block::add(&mut suite);
    balloon::add(&mut suite);
    devices::add(&mut suite);
    stopped::add(&mut suite);
    bochs::add(&mut suite);
    suite.select(options.slice, &options.names);
    if options.list {
        suite.list();
        return ExitCode::SUCCESS;
    }
    if suite.is_empty() {
        eprintln!("error: no test of this slice has such a name\nhelp: vm-tests --full --list");
        return ExitCode::from(2);
    }
    if suite.run() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Options {
    slice: Slice,
    list: bool,
    measure: bool,
    names: Vec<String>,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { slice: Slice::Default, list: false, measure: false, names: Vec::new() };
        for argument in arguments {
            match argument.as_str() {
                "--quick" => options.slice = Slice::Quick,
                "--full" => options.slice = Slice::Full,
                "--measure" => options.measure = true,
                "--list" => options.list = true,
                option if option.starts_with('-') => return Err(argument),
                _ => options.names.push(argument),
            }
        }
        Ok(options)
    }
}
