//! One QEMU process: started, watched, and never left behind.
//!
//! QEMU is started through `setpriv --pdeathsig` (util-linux), so that it ends with this process
//! even if this one is killed; where that tool is missing only orderly ends are covered.
use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use abi::{
    ConsoleInput, Exits,
    control::{Decoder, Frame, Piece},
    input,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{FdFlags, fcntl_setfd},
};

use crate::{
    Machine, VmmError,
    outcome::{Ending, Phase, Report, TestResult},
    qemu,
};

/// What the machine's console input is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stdin {
    /// Never anything, and no end.
    #[default]
    Nothing,
    /// This process' standard input until it ends; then the machine is told so.
    Inherited,
    /// These, and then their end.
    Bytes(Vec<u8>),
}

/// Something that came from the machine. Times count from QEMU's start.
#[derive(Debug)]
pub enum Event<'a> {
    /// Output of the application (and messages of the kernel).
    Output { bytes: &'a [u8], after: Duration },
    /// A control frame, taken out of the output.
    Frame { frame: Frame<'a>, after: Duration },
}

/// QEMU, killed when this is dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(machine: &Machine, each: &mut dyn FnMut(Event<'_>)) -> Result<Report, VmmError> {
    // An exact run has no second channel: when the host takes its bytes is nothing that repeats.
    let control = if machine.exact { None } else { Some(Control::new().map_err(VmmError::Console)?) };
    let arguments = qemu::arguments(machine, control.as_ref().map(Control::inherited))?;
    let program = find_program(machine.qemu.clone().unwrap_or_else(|| "qemu-system-x86_64".into()))?;
    let started = Instant::now();
    let mut command = tied_to_this_process(&program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| VmmError::QemuMissing { path: program, source })?;
    let mut qemu = Qemu(child);
    // Kept open to the end: a closed console would be one more thing that differs between runs.
    let (listening, listens) = mpsc::channel();
    if machine.boot.stdin == ConsoleInput::Terminal {
        // Such a guest does not say when it listens.
        let _ = listening.send(());
    }
    let _input = feed_input(qemu.0.stdin.take(), machine.stdin.clone(), machine.boot.stdin, listens);
    let stderr = collect(qemu.0.stderr.take());
    let mut watch = Watch { started, seen: Seen::default(), listening, each };
    let mut control = control.map(Control::ours);
    let timed_out = watch.channels(&mut qemu, control.as_mut(), machine.time_limit)?;
    if timed_out {
        let _ = qemu.0.kill();
    }
    let status = qemu.0.wait().map_err(VmmError::Console)?;
    let ended_after = started.elapsed();
    let Seen { exit, panic, exits, phases, tests, first_output_after } = watch.seen;
    let qemu_stderr = stderr.recv().unwrap_or_default();
    let ending = Ending { status: status.code(), timed_out, exit, panic, qemu_stderr };
    Ok(Report { outcome: ending.outcome(), phases, tests, exits, first_output_after, ended_after })
}

/// A pair of sockets: frames come in on one, QEMU inherits the other.
struct Control {
    ours: UnixStream,
    theirs: UnixStream,
}

impl Control {
    fn new() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // Another program that is started at this moment inherits it, too: so the end of the frames
        // is never waited for.
        fcntl_setfd(&theirs, FdFlags::empty())?;
        Ok(Self { ours, theirs })
    }

    fn inherited(&self) -> RawFd {
        self.theirs.as_raw_fd()
    }

    /// QEMU has its end now.
    fn ours(self) -> UnixStream {
        self.ours
    }
}

/// A command that is killed when this process' calling thread ends.
fn tied_to_this_process(program: &PathBuf) -> Command {
    match find_program("setpriv".into()) {
        Ok(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        Err(_) => Command::new(program),
    }
}

/// The program's path, by the PATH if it is a bare name: so a missing one is found out before
/// another program is asked to start it.
pub(crate) fn find_program(name: PathBuf) -> Result<PathBuf, VmmError> {
    let missing = || VmmError::QemuMissing { path: name.clone(), source: io::Error::other("no such program") };
    if name.components().count() > 1 {
        return if name.is_file() { Ok(name.clone()) } else { Err(missing()) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(&name)).find(|full| full.is_file()).ok_or_else(missing)
}

/// Writes the machine's input from a thread of its own, once the machine `listens`: a serial port loses
/// what comes before it is set up. What is returned keeps the pipe open.
fn feed_input(
    pipe: Option<ChildStdin>,
    stdin: Stdin,
    guest: ConsoleInput,
    listens: mpsc::Receiver<()>,
) -> Option<mpsc::Receiver<ChildStdin>> {
    let mut pipe = pipe?;
    let (keep, kept) = mpsc::channel();
    thread::spawn(move || {
        if listens.recv().is_err() {
            return;
        }
        // A machine that ended no longer reads: that is its business, and no error.
        let _ = match stdin {
            Stdin::Nothing => Ok(()),
            Stdin::Bytes(bytes) => pass_on(&mut bytes.as_slice(), &mut pipe, guest),
            Stdin::Inherited => pass_on(&mut io::stdin().lock(), &mut pipe, guest),
        };
        let _ = keep.send(pipe);
    });
    Some(kept)
}

/// ^D: ends input at the start of a line, else gives out the line begun (termios(3), VEOF).
const END_OF_INPUT: u8 = 4;

/// Copies without waiting for more than there is, then tells the machine that this was all. A
/// serial line has no end, so a guest with a terminal is told as a user would tell it.
fn pass_on(from: &mut impl Read, to: &mut impl Write, guest: ConsoleInput) -> io::Result<()> {
    let mut buffer = [0; 4096];
    if guest == ConsoleInput::Pipe {
        let mut line = Vec::new();
        loop {
            line.clear();
            match read_some(from, &mut buffer) {
                0 => break,
                count => input::encode(&buffer[..count], &mut line),
            }
            to.write_all(&line)?;
            to.flush()?;
        }
        to.write_all(&input::END_OF_INPUT)?;
        return to.flush();
    }
    let mut in_line = false;
    loop {
        let count = read_some(from, &mut buffer);
        let Some(last) = buffer[..count].last() else { break };
        in_line = *last != b'\n';
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
    let ends: &[u8] = if in_line { &[END_OF_INPUT, END_OF_INPUT] } else { &[END_OF_INPUT] };
    to.write_all(ends)?;
    to.flush()
}

/// What is there, or 0 at the end. What cannot be read has ended, too: else the machine would wait for ever.
fn read_some(from: &mut impl Read, buffer: &mut [u8]) -> usize {
    loop {
        match from.read(buffer) {
            Ok(count) => return count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // Nobody is left to be told that standard error is closed.
                let _ = writeln!(io::stderr(), "demitasse: input ends here, as it cannot be read: {error}");
                return 0;
            }
        }
    }
}

/// The whole of a stream, once it has ended.
fn collect(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What was read before an error is still worth showing.
            let _ = stream.read_to_end(&mut bytes);
        }
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}

/// What the console told.
#[derive(Default)]
struct Seen {
    exit: Option<(u8, u64)>,
    panic: Option<String>,
    exits: Option<Exits>,
    phases: Vec<Phase>,
    tests: Vec<TestResult>,
    first_output_after: Option<Duration>,
}

struct Watch<'a> {
    started: Instant,
    seen: Seen,
    /// Tells the thread that writes the machine's input.
    listening: mpsc::Sender<()>,
    each: &'a mut dyn FnMut(Event<'_>),
}

impl Watch<'_> {
    /// Reads console and control channel until the console closes; true if the time limit came first.
    fn channels(
        &mut self,
        qemu: &mut Qemu,
        mut control: Option<&mut UnixStream>,
        limit: Option<Duration>,
    ) -> Result<bool, VmmError> {
        let Some(mut stdout) = qemu.0.stdout.take() else { return Ok(false) };
        let mut decoder = Decoder::new();
        let mut frames = Decoder::new();
        let mut buffer = vec![0; 64 << 10];
        let mut timed_out = false;
        loop {
            let left = limit.map(|limit| limit.saturating_sub(self.started.elapsed()));
            if left == Some(Duration::ZERO) {
                timed_out = true;
                break;
            }
            let wait = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            let mut watched = vec![PollFd::new(&stdout, PollFlags::IN)];
            watched.extend(control.as_deref().map(|control| PollFd::new(control, PollFlags::IN)));
            match poll(&mut watched, wait.as_ref()) {
                Ok(0) => continue,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(VmmError::Console(error.into())),
            }
            let console_ready = !watched[0].revents().is_empty();
            if watched.get(1).is_some_and(|control| !control.revents().is_empty())
                && let Some(open) = control.take()
                && self.frames(open, &mut frames)
            {
                control = Some(open);
            }
            if !console_ready {
                continue;
            }
            let count = stdout.read(&mut buffer).map_err(VmmError::Console)?;
            let after = self.started.elapsed();
            if count == 0 {
                break;
            }
            decoder.push(&buffer[..count], &mut |piece| self.piece(piece, after));
        }
        let after = self.started.elapsed();
        decoder.finish(&mut |piece| self.piece(piece, after));
        if let Some(control) = control {
            // What was sent before the end.
            self.frames(control, &mut frames);
        }
        Ok(timed_out)
    }

    /// Takes the frames that are there; false: there will be no more.
    fn frames(&mut self, control: &mut UnixStream, decoder: &mut Decoder) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match control.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    let after = self.started.elapsed();
                    // Nothing but frames belongs here.
                    decoder.push(&buffer[..count], &mut |piece| {
                        if let Piece::Frame(_) = piece {
                            self.piece(piece, after);
                        }
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    fn piece(&mut self, piece: Piece<'_>, after: Duration) {
        match piece {
            Piece::Plain(bytes) => {
                self.seen.first_output_after.get_or_insert(after);
                (self.each)(Event::Output { bytes, after });
            }
            Piece::Frame(frame) => {
                self.note(frame, after);
                (self.each)(Event::Frame { frame, after });
            }
        }
    }

    fn note(&mut self, frame: Frame<'_>, seen_after: Duration) {
        match frame {
            Frame::Exit { code, tsc } => self.seen.exit = Some((code, tsc)),
            // The first panic is the cause of those that follow.
            Frame::Panic { cause } => drop(self.seen.panic.get_or_insert_with(|| cause.to_string())),
            Frame::Phase { name, ns, tsc } => {
                self.seen.phases.push(Phase { name: name.to_string(), ns, tsc, seen_after });
            }
            Frame::Exits(exits) => self.seen.exits = Some(exits),
            Frame::Input => drop(self.listening.send(())),
            Frame::Test { name, ok, detail } => {
                self.seen.tests.push(TestResult { name: name.to_string(), ok, detail: detail.to_string() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_input_is_told_as_a_user_would() {
        let passed = |text: &str| {
            let mut out = Vec::new();
            pass_on(&mut text.as_bytes(), &mut out, ConsoleInput::Cooked).unwrap();
            out
        };
        assert_eq!(passed(""), b"\x04");
        assert_eq!(passed("a\n"), b"a\n\x04");
        assert_eq!(passed("a\nb"), b"a\nb\x04\x04");
        let mut out = Vec::new();
        pass_on(&mut &b"\x10\x04b"[..], &mut out, ConsoleInput::Pipe).unwrap();
        assert_eq!(out, b"\x10\x10\x04b\x10\x04");
    }
}
