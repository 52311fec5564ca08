//! The runner against a shell script in QEMU's place: console, end, time limit and clean-up.
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use abi::BootConfig;
use vmm::{Event, Machine, Outcome, Report, Stdin, VmmError};

/// A machine whose QEMU is `script`.
fn machine(folder: &Path, script: &str) -> Machine {
    let qemu = folder.join("qemu");
    // By another process: what is open for writing here, a child of another test has open until its exec,
    // and such a file cannot be run (ETXTBSY).
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(&qemu).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    write!(shell.stdin.take().unwrap(), "#!/bin/sh\n{script}\n").unwrap();
    assert!(shell.wait().unwrap().success());
    let kernel = folder.join("kernel");
    fs::write(&kernel, "").unwrap();
    Machine { qemu: Some(qemu), ..Machine::new(kernel, BootConfig::default()) }
}

fn run(machine: &Machine) -> (Report, String) {
    let mut text = Vec::new();
    let report = machine
        .run(&mut |event| {
            if let Event::Output { bytes, .. } = event {
                text.extend_from_slice(bytes);
            }
        })
        .unwrap();
    (report, String::from_utf8(text).unwrap())
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn frames_are_taken_out_and_the_exit_code_is_theirs() {
    let script = r"printf 'one\033_demitasse;phase;main 12 34\033\\two\n'
printf '\033_demitasse;exit;7 tsc=99\033\\'; exit 33";
    let (report, text) = run(&machine(&folder("frames"), script));
    assert_eq!(text, "onetwo\n");
    assert_eq!(report.outcome, Outcome::Exited { code: 7, tsc: 99 });
    assert_eq!((report.phases[0].name.as_str(), report.phases[0].ns), ("main", 12));
    assert!(report.first_output_after.is_some_and(|after| after <= report.ended_after));
}

#[test]
fn a_panic_has_its_cause() {
    let (report, _) = run(&machine(&folder("panic"), r"printf '\033_demitasse;panic;why\033\\'; exit 65"));
    assert_eq!(report.outcome, Outcome::Panicked { cause: "why".into() });
}

#[test]
fn qemus_own_complaint_is_kept() {
    let (report, _) = run(&machine(&folder("complaint"), "echo 'bad option' >&2; exit 1"));
    assert_eq!(report.outcome, Outcome::QemuFailed { status: Some(1), message: "bad option".into() });
}

#[test]
fn input_reaches_the_machine_and_stays_open() {
    let script = r"read line; echo got $line; printf '\033_demitasse;exit;0 tsc=1\033\\'; exit 33";
    let machine = Machine { stdin: Stdin::Bytes(b"hello\n".to_vec()), ..machine(&folder("input"), script) };
    assert_eq!(run(&machine).1, "got hello\n");
}

/// A serial port loses what arrives before the guest has set it up.
#[test]
fn input_waits_until_the_machine_listens() {
    let script = r"timeout 0.3 head -c1 >early; printf '\033_demitasse;input;ready\033\\'; read line
echo got $line, $(wc -c <early) bytes early; printf '\033_demitasse;exit;0 tsc=1\033\\'; exit 33";
    let folder = folder("listens");
    let mut machine = machine(&folder, &format!("cd {}; {script}", folder.display()));
    machine.stdin = Stdin::Bytes(b"hello\n".to_vec());
    machine.boot.stdin = abi::ConsoleInput::Pipe;
    assert_eq!(run(&machine).1, "got hello, 0 bytes early\n");
}

#[test]
fn the_time_limit_ends_the_machine() {
    let mut limit = Duration::from_millis(300);
    let folder = folder("limit");
    let pid_file = folder.join("pid");
    let _ = fs::remove_file(&pid_file);
    let script = format!("echo $$ > {}; exec sleep 1000", pid_file.display());
    let machine = machine(&folder, &script);
    loop {
        let started = Instant::now();
        assert_eq!(run(&Machine { time_limit: Some(limit), ..machine.clone() }).0.outcome, Outcome::TimedOut);
        assert!(started.elapsed() >= limit);
        match fs::read_to_string(&pid_file) {
            Ok(pid) if pid.ends_with('\n') => {
                assert!(!Path::new("/proc").join(pid.trim()).exists());
                return;
            }
            // On a busy host it may have been ended before it got so far.
            _ => limit *= 2,
        }
        assert!(limit < Duration::from_secs(60), "it never ran");
    }
}

#[test]
fn a_missing_qemu_or_kernel_is_an_error() {
    let folder = folder("missing");
    let gone = Machine { qemu: Some("/no/such/qemu".into()), ..machine(&folder, "") };
    assert!(matches!(gone.run(&mut |_| {}), Err(VmmError::QemuMissing { .. })));
    let gone = Machine { kernel: "/no/such/kernel".into(), ..machine(&folder, "") };
    assert!(matches!(gone.run(&mut |_| {}), Err(VmmError::NoFile(_))));
}

/// Not run by itself: the process that [`the_machine_ends_with_its_runner`] kills.
#[test]
#[ignore = "helper of another test"]
fn runner_to_be_killed() {
    let folder = folder("orphan");
    let script = format!("echo $$ > {}; exec sleep 1000", folder.join("pid").display());
    run(&machine(&folder, &script));
}

#[test]
fn the_machine_ends_with_its_runner() {
    if Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("setpriv is not installed: not checked");
        return;
    }
    let pid_file = folder("orphan").join("pid");
    let _ = fs::remove_file(&pid_file);
    let own = std::env::current_exe().unwrap();
    let mut runner = Command::new(own).args(["--ignored", "--exact", "runner_to_be_killed"]).spawn().unwrap();
    let soon = Instant::now() + Duration::from_secs(20);
    let wait_for = |done: &dyn Fn() -> bool| {
        while !done() {
            assert!(Instant::now() < soon, "too late");
            thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for(&|| fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n')));
    runner.kill().unwrap();
    runner.wait().unwrap();
    let process = Path::new("/proc").join(fs::read_to_string(&pid_file).unwrap().trim());
    // Without a parent that reaps it, it may stay a zombie for a moment: that counts as ended.
    wait_for(&|| fs::read_to_string(process.join("stat")).is_ok_and(|stat| stat.contains(") Z ")) || !process.exists());
}
