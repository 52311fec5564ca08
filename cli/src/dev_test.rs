//! `demitasse dev-test`: runs the kernel's built-in tests and prints their results.
use std::io::{self, Write};

use abi::{BootConfig, control::Frame};
use image::Cache;
use vmm::{Event, Outcome};

use crate::{
    arguments::TestOptions,
    failure::{Failure, TOOL_FAILED},
    places, run,
};

pub fn run(options: &TestOptions) -> Result<u8, Failure> {
    let kernel = places::kernel(options.machine.kernel.as_deref())?;
    let boot = BootConfig { test: Some(options.name.clone()), seed: options.seed, ..BootConfig::default() };
    let machine = run::machine(&options.machine, kernel, boot, options.exact, &Cache::open()?)?;
    let report = machine.run(&mut |event| match event {
        // A closed standard output changes nothing about the tests' results.
        Event::Output { bytes, .. } => drop(io::stdout().write_all(bytes)),
        Event::Frame { frame: Frame::Test { name, ok, detail }, .. } => {
            let result = if ok { "ok" } else { "FAILED" };
            let colon = if detail.is_empty() { "" } else { ": " };
            drop(writeln!(io::stdout(), "test {name} ... {result}{colon}{detail}"));
        }
        Event::Frame { .. } => {}
    })?;
    let failed = report.tests.iter().filter(|test| !test.ok).count();
    match report.outcome {
        Outcome::Exited { code: 0, .. } if failed == 0 && !report.tests.is_empty() => Ok(0),
        outcome => Err(Failure::new(
            TOOL_FAILED,
            format!("{failed} of {} kernel tests failed; the machine's end: {outcome:?}", report.tests.len()),
            "the reason is above",
        )),
    }
}
