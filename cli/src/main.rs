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
use clap::{Parser, error::ErrorKind};
use failure::Failure;

fn main() -> ExitCode {
    match parse().and_then(|parsed| parsed.map_or_else(Ok, execute)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit_code)
        }
    }
}

/// What the user asked for; if that was help, or nothing at all, help is printed, and this is the exit code.
fn parse() -> Result<Result<Cli, u8>, Failure> {
    match Cli::try_parse() {
        Ok(cli) => Ok(Ok(cli)),
        Err(error) if error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(error.into())
        }
        Err(help) => {
            // Nobody is left to be told that nobody reads the help.
            let _ = help.print();
            Ok(Err(if help.use_stderr() { failure::TOOL_FAILED } else { 0 }))
        }
    }
}

fn execute(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Command::Run(options) => run::run(&options),
        Command::DevTest(options) => dev_test::run(&options),
        Command::DevSymbols(options) => dev_symbols::run(&options),
    }
}
