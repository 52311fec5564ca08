//! Memory that goes back to the host: free pages are reported, and the balloon follows the host's
//! target. Seen from outside, by QEMU's resident memory and its monitor.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use vmm::{Event, ImageAs, Machine, MachineType};

use crate::{
    guest::{self, IMAGES},
    pressure,
    suite::{Slice, Suite, Verdict},
};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 512 * MIB;
/// What the guest program touches.
const TOUCHED: u64 = 300 * MIB;
const LIMIT_S: u64 = 90;
/// For what the guest does by itself; most of it takes two seconds.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn add(suite: &mut Suite) {
    for machine_type in [MachineType::Q35, MachineType::Microvm] {
        let name = format!("balloon/{machine_type:?}").to_lowercase();
        suite.add(Slice::Default, name, move || match watched(machine_type) {
            Ok(()) => Verdict::Passed,
            Err(why) => Verdict::Failed(why),
        });
    }
}

/// Runs the guest, and beside it what watches it.
fn watched(machine_type: MachineType) -> Result<(), String> {
    let program = guest::compiled("touch-and-free")?;
    let image = guest::image(pressure::image_of(&program)?, ImageAs::Disk);
    let name = format!("balloon-{machine_type:?}").to_lowercase();
    let (monitor, pid) = (path(&name, "qmp"), path(&name, "pid"));
    let arguments = [
        "-qmp".into(),
        format!("unix:{},server=on,wait=off", monitor.display()),
        "-pidfile".into(),
        pid.display().to_string(),
    ];
    let machine = guest::machine("/program", LIMIT_S);
    let machine =
        Machine { machine_type, memory_bytes: MEMORY, image, cpus: 2, extra_arguments: arguments.into(), ..machine };
    let (said, lines) = mpsc::channel();
    let watcher = thread::spawn(move || {
        let mut host = Host::find(&monitor, &pid, lines)?;
        let seen = host.watch();
        // QEMU may close the connection before its answer is out.
        let _ = host.command("quit", json!({}));
        seen
    });
    let mut console = Vec::new();
    let ran = machine.run(&mut |event| {
        if let Event::Output { bytes, .. } = event {
            console.extend_from_slice(bytes);
            // The watcher may have given up.
            let _ = said.send(String::from_utf8_lossy(&console).into_owned());
        }
    });
    drop(said);
    let seen = watcher.join().map_err(|_| String::from("the watcher panicked"))?;
    ran.map_err(|error| error.to_string())?;
    seen.map_err(|why| format!("{why}\nthe console's end:\n{}", guest::tail(&console)))
}

fn path(name: &str, extension: &str) -> PathBuf {
    let path = Path::new(IMAGES).join(name).with_extension(extension);
    // Of an earlier run.
    let _ = fs::remove_file(&path);
    path
}

/// The host's side of a machine that runs.
struct Host {
    replies: BufReader<UnixStream>,
    commands: UnixStream,
    pid: u32,
    /// The console so far, as it grows.
    console: Receiver<String>,
}

impl Host {
    fn find(monitor: &Path, pid: &Path, console: Receiver<String>) -> Result<Self, String> {
        let number = || fs::read_to_string(pid).ok()?.trim().parse().ok();
        let pid = eventually(number).ok_or("QEMU wrote no process id")?;
        let commands = eventually(|| UnixStream::connect(monitor).ok()).ok_or("no monitor")?;
        commands.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let replies = BufReader::new(commands.try_clone().map_err(|error| error.to_string())?);
        let mut host = Self { replies, commands, pid, console };
        host.command("qmp_capabilities", json!({}))?;
        Ok(host)
    }

    /// Sends a command to the monitor; the result is what it returns.
    fn command(&mut self, name: &str, arguments: Value) -> Result<Value, String> {
        writeln!(self.commands, "{}", json!({ "execute": name, "arguments": arguments }))
            .map_err(|error| format!("{name}: {error}"))?;
        loop {
            let mut line = String::new();
            self.replies.read_line(&mut line).map_err(|error| format!("{name}: {error}"))?;
            let reply: Value = serde_json::from_str(&line).map_err(|error| format!("{name}: {error}"))?;
            if let Some(result) = reply.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = reply.get("error") {
                return Err(format!("{name}: {error}"));
            }
        }
    }

    /// QEMU's resident memory.
    fn resident(&self) -> Result<u64, String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).map_err(|error| error.to_string())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("QEMU has ended")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().map_err(|_| "VmRSS is no number")?;
        Ok(kib * 1024)
    }

    /// What the balloon leaves the guest, by the monitor.
    fn left(&mut self) -> Result<u64, String> {
        let answer = self.command("query-balloon", json!({}))?;
        answer["actual"].as_u64().ok_or(format!("query-balloon: {answer}"))
    }

    fn wait_for_line(&self, line: &str) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(console) = self.console.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if console.lines().any(|there| there == line) {
                return Ok(());
            }
        }
        Err(format!("the guest did not say {line:?}"))
    }

    fn watch(&mut self) -> Result<(), String> {
        self.wait_for_line("touched")?;
        let most = self.resident()?;
        self.wait_for_line("freed")?;
        if most < TOUCHED {
            return Err(format!("only {} MiB resident after the guest touched its memory", most / MIB));
        }
        // Most of it, though what it shares 2 MiB with may stay.
        let freed = most - TOUCHED * 9 / 10;
        eventually(|| self.resident().is_ok_and(|now| now < freed).then_some(())).ok_or_else(|| {
            format!("{} MiB resident, of {} before the guest freed 300", self.resident().unwrap_or(0) / MIB, most / MIB)
        })?;
        for target in [MEMORY / 2, MEMORY / 4, MEMORY * 3 / 4, MEMORY] {
            self.command("balloon", json!({ "value": target }))?;
            let mut left = Ok(0);
            eventually(|| {
                left = self.left();
                (left == Ok(target)).then_some(())
            })
            .ok_or_else(|| format!("the balloon leaves {left:?} bytes, the target is {target}"))?;
        }
        Ok(())
    }
}

/// Asks again and again until there is an answer.
fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
            answer => return answer,
        }
    }
}
