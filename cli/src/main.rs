//! `demitasse`: runs a jar, or a program in a folder, as a virtual machine of its own.
//!
//! The story of a run is in [`run`]; what the user may say in [`arguments`]. Output and exit code
//! are the application's; anything this tool has to say goes to standard error, see [`failure`].

mod arguments;
mod bar;
mod dev_symbols;
mod dev_test;
mod failure;
mod places;
mod run;
mod timing;

use std::process::ExitCode;

use arguments::{Cli, Command};
use clap::Parser;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(options) => run::run(&options),
        Command::DevTest(options) => dev_test::run(&options),
        Command::DevSymbols(options) => dev_symbols::run(&options),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit_code)
        }
    }
}
