//! The console as a terminal: a line discipline over the runtime's console bytes.
//!
//! Output passes unchanged. Input is edited a line at a time while the
//! terminal is canonical (termios(3)): backspace, ^U, ^D; and echoed if that is on. A kernel task,
//! started by the first read or poll, moves input from the runtime into the buffer and wakes readers,
//! so that reads and polls wait on one queue.
//!
//! The termios ioctls are libc-shim's, which translates them to [`Console::settings`] and
//! [`Console::set_settings`].
//!
//! # Locking
//! `input` and `settings` are leaf spin locks.
use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use rt::{
    sync::{Mutex, SpinLock, WaitQueue},
    task::{ParkMode, Parked, TaskSpec},
};

use crate::{
    error::{FsError, FsResult},
    file::{FileOps, OpenFlags, Readiness, ReadyQueues, Wait},
    inode::{FileKind, Metadata},
    io::{Sink, Source},
};

/// Bytes of a line, and of typed-ahead input before no more is taken from the device, as N_TTY does. What
/// is not taken waits with the host: nothing is lost.
const INPUT_MAX: usize = 4096;

/// What of termios has an effect here; the rest libc-shim keeps for show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// ICANON: reads give whole lines.
    pub canonical: bool,
    /// ECHO.
    pub echo: bool,
    /// ICRNL: a carriage return is read as a newline.
    pub return_is_newline: bool,
    /// OPOST and ONLCR: a newline is written as carriage return and newline.
    /// Deviation: off at first, unlike Linux, so that the host gets the application's own bytes;
    /// the host's terminal does it again anyway.
    pub newline_to_return: bool,
    /// ISIG: ^C, ^\ and ^Z call the signal hook instead of being read.
    pub signals: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { canonical: true, echo: true, return_is_newline: true, newline_to_return: false, signals: true }
    }
}

/// Signals that the keyboard sends; the numbers are the personality's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyboardSignal {
    /// ^C
    Interrupt,
    /// ^\
    Quit,
    /// ^Z
    Stop,
}

/// The one console.
pub struct Console {
    input: SpinLock<Input>,
    settings: SpinLock<Settings>,
    /// Held over a write, so that those of several tasks do not mix. Sleeping.
    writing: Mutex<()>,
    arrived: WaitQueue,
    /// Input was read: there is room again.
    drained: WaitQueue,
    pump_started: AtomicBool,
    /// Input goes elsewhere ([`crate::stdin`]).
    has_no_input: AtomicBool,
    signal_hook: SpinLock<Option<fn(KeyboardSignal)>>,
}

#[derive(Default)]
struct Input {
    /// What reads may take.
    ready: VecDeque<u8>,
    /// The line that is being typed.
    line: Vec<u8>,
    /// Ends of file typed (^D at a line's start) and not yet read.
    ends: usize,
}

impl Console {
    fn new() -> Self {
        Self {
            input: SpinLock::new(Input::default()),
            settings: SpinLock::new(Settings::default()),
            writing: Mutex::new(()),
            arrived: WaitQueue::new(),
            drained: WaitQueue::new(),
            pump_started: AtomicBool::new(false),
            has_no_input: AtomicBool::new(false),
            signal_hook: SpinLock::new(None),
        }
    }

    /// The console; all opens of it share one state.
    pub fn get() -> Arc<Self> {
        static CONSOLE: SpinLock<Option<Arc<Console>>> = SpinLock::new(None);
        CONSOLE.lock().get_or_insert_with(|| Arc::new(Self::new())).clone()
    }

    pub fn settings(&self) -> Settings {
        *self.settings.lock()
    }

    /// Leaving canonical mode makes a half-typed line readable.
    pub fn set_settings(&self, settings: Settings) {
        *self.settings.lock() = settings;
        if !settings.canonical {
            {
                let input = &mut *self.input.lock();
                input.ready.extend(input.line.drain(..));
            }
            self.arrived.wake_all();
        }
    }

    /// Called when the user types an interrupt, quit or stop character.
    pub fn set_signal_hook(&self, hook: fn(KeyboardSignal)) {
        *self.signal_hook.lock() = Some(hook);
    }

    /// From now on nobody types here: reads find the end at once.
    pub(crate) fn give_up_input(&self) {
        self.has_no_input.store(true, Ordering::Relaxed);
        self.pump_started.store(true, Ordering::Relaxed);
    }

    /// Drops input that was not read (TCIFLUSH).
    pub fn flush_input(&self) {
        *self.input.lock() = Input::default();
        self.drained.wake_all();
    }

    /// Bytes that a read would give now (FIONREAD).
    pub fn input_len(&self) -> usize {
        // Some look here only, again and again, before they read.
        self.start_pump();
        self.input.lock().ready.len()
    }

    fn start_pump(&self) {
        if self.pump_started.load(Ordering::Relaxed) || self.pump_started.swap(true, Ordering::Relaxed) {
            return;
        }
        let spec = TaskSpec::kernel("console", pump);
        if rt::rt().spawn(spec).is_err() {
            // The next read or poll tries again.
            self.pump_started.store(false, Ordering::Relaxed);
        }
    }

    /// Takes typed bytes through the line discipline.
    fn accept(&self, bytes: &[u8]) {
        let settings = self.settings();
        for &byte in bytes {
            if let Some(signal) = keyboard_signal(byte).filter(|_| settings.signals) {
                let hook = *self.signal_hook.lock();
                if let Some(hook) = hook {
                    self.input.lock().line.clear();
                    hook(signal);
                }
                continue;
            }
            let byte = if byte == b'\r' && settings.return_is_newline { b'\n' } else { byte };
            let echoed = if settings.canonical { self.input.lock().edit(byte) } else { self.input.lock().append(byte) };
            if settings.echo {
                self.echo(echoed, settings);
            }
        }
        self.arrived.wake_all();
    }

    fn echo(&self, echoed: Echo, settings: Settings) {
        match echoed {
            Echo::Nothing => {}
            Echo::Byte(b'\n') if settings.newline_to_return => rt::rt().console_write(b"\r\n"),
            Echo::Byte(byte) => rt::rt().console_write(&[byte]),
            Echo::Erase(count) => (0..count).for_each(|_| rt::rt().console_write(b"\x08 \x08")),
        }
    }
}

/// What the user sees of a typed byte.
enum Echo {
    Nothing,
    Byte(u8),
    /// So many characters are rubbed out.
    Erase(usize),
}

impl Input {
    /// Canonical mode: a line becomes ready with its newline.
    fn edit(&mut self, byte: u8) -> Echo {
        match byte {
            0x7f | 0x08 => {
                // A whole UTF-8 character goes.
                while self.line.pop().is_some_and(|b| b & 0xc0 == 0x80) {}
                return Echo::Erase(1);
            }
            0x15 => {
                let erased = self.line.iter().filter(|&b| b & 0xc0 != 0x80).count();
                self.line.clear();
                return Echo::Erase(erased);
            }
            0x04 if self.line.is_empty() => self.ends += 1,
            0x04 => self.ready.extend(self.line.drain(..)),
            // A line that is too long loses its end, as on Linux.
            _ if self.line.len() < INPUT_MAX - 1 || byte == b'\n' => {
                self.line.push(byte);
                if byte == b'\n' {
                    self.ready.extend(self.line.drain(..));
                }
                return Echo::Byte(byte);
            }
            _ => {}
        }
        Echo::Nothing
    }

    fn append(&mut self, byte: u8) -> Echo {
        self.ready.push_back(byte);
        Echo::Byte(byte)
    }

    fn has_room(&self) -> bool {
        self.ready.len() < INPUT_MAX
    }

    /// What one read gives: at most a line, in canonical mode. None: nothing is there yet.
    fn take(&mut self, out: &mut [u8], canonical: bool) -> Option<usize> {
        if self.ready.is_empty() {
            if self.ends > 0 {
                self.ends -= 1;
                return Some(0);
            }
            return None;
        }
        let mut taken = 0;
        while taken < out.len() {
            let Some(byte) = self.ready.pop_front() else { break };
            out[taken] = byte;
            taken += 1;
            if canonical && byte == b'\n' {
                break;
            }
        }
        Some(taken)
    }
}

fn keyboard_signal(byte: u8) -> Option<KeyboardSignal> {
    match byte {
        0x03 => Some(KeyboardSignal::Interrupt),
        0x1c => Some(KeyboardSignal::Quit),
        0x1a => Some(KeyboardSignal::Stop),
        _ => None,
    }
}

/// The console's task.
fn pump(_: usize) {
    let console = Console::get();
    let mut bytes = [0; 64];
    loop {
        let has_room = || console.input.lock().has_room().then_some(());
        if console.drained.wait_until(None, ParkMode::Interruptible, has_room).is_err() {
            rt::rt().current().clear_interrupt();
            continue;
        }
        let len = rt::rt().console_read(&mut bytes);
        if len > 0 {
            console.accept(&bytes[..len]);
        } else if rt::rt().console_wait_input(None) == Parked::Interrupted {
            rt::rt().current().clear_interrupt();
        }
    }
}

impl FileOps for Console {
    fn read(&self, _at: u64, out: &mut dyn Sink, wait: Wait) -> FsResult<usize> {
        self.start_pump();
        if out.remaining() == 0 || self.has_no_input.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let mut bytes = [0; 256];
        let len = out.remaining().min(bytes.len());
        let canonical = self.settings().canonical;
        let mut take = || self.input.lock().take(&mut bytes[..len], canonical);
        let taken = match wait {
            Wait::Never => take().ok_or(FsError::WouldBlock)?,
            Wait::Allowed => self.arrived.wait_until(None, ParkMode::Interruptible, take)?,
        };
        self.drained.wake_all();
        out.put(&bytes[..taken])?;
        Ok(taken)
    }

    fn write(&self, _at: u64, from: &mut dyn Source, _wait: Wait) -> FsResult<usize> {
        let translate = self.settings().newline_to_return;
        let _writing = self.writing.lock();
        let mut bytes = [0; 256];
        let mut done = 0;
        while from.remaining() > 0 {
            let now = from.remaining().min(bytes.len());
            match from.take(&mut bytes[..now]) {
                Ok(()) => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            if translate {
                write_lines(&bytes[..now]);
            } else {
                rt::rt().console_write(&bytes[..now]);
            }
            done += now;
        }
        Ok(done)
    }

    fn is_stream(&self) -> bool {
        true
    }

    /// For standard streams that were not opened by path.
    fn metadata(&self) -> FsResult<Metadata> {
        let anonymous = crate::eventfd::anonymous_metadata();
        let kind = FileKind::CharDevice;
        Ok(Metadata { kind, permissions: 0o620, rdev: crate::devices::CONSOLE, block_size: 1024, ..anonymous })
    }

    fn readiness(&self) -> Readiness {
        self.start_pump();
        let input = self.input.lock();
        let waits = input.ready.is_empty() && input.ends == 0 && !self.has_no_input.load(Ordering::Relaxed);
        if waits { Readiness::OUT } else { Readiness::IN | Readiness::OUT }
    }

    fn ready_queues(&self) -> ReadyQueues<'_> {
        ReadyQueues { input: Some(&self.arrived), output: None }
    }

    fn reopen(&self, _flags: OpenFlags) -> FsResult<Arc<dyn FileOps>> {
        Ok(Self::get())
    }

    fn description(&self) -> Vec<u8> {
        b"/dev/console".to_vec()
    }
}

/// Each newline becomes carriage return and newline, in few console calls.
fn write_lines(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&b| b == b'\n') {
        rt::rt().console_write(&rest[..at]);
        rt::rt().console_write(b"\r\n");
        rest = &rest[at + 1..];
    }
    rt::rt().console_write(rest);
}
