//! The `--timing` table.
use vmm::Report;

use crate::failure::say;

pub fn print(report: &Report) {
    let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    say(format_args!("{:>12} {:>12}  phase", "guest ms", "host ms"));
    for phase in &report.phases {
        say(format_args!("{:>12.3} {:>12.1}  {}", phase.ns as f64 / 1e6, milliseconds(phase.seen_after), phase.name));
    }
    if let Some(after) = report.first_output_after {
        say(format_args!("{:>12} {:>12.1}  first output", "", milliseconds(after)));
    }
    say(format_args!("{:>12} {:>12.1}  end", "", milliseconds(report.ended_after)));
    if let Some(exits) = report.exits {
        say(format_args!("exits from the guest: {exits}"));
    }
    if let vmm::Outcome::Exited { tsc, .. } = report.outcome {
        say(format_args!("time stamp counter at power-off: {tsc}"));
    }
}
