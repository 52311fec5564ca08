//! Control frames: what the machine tells the tool that runs it. They have a virtio-serial port of
//! their own ([`PORT_NAME`]) or, where the machine has none, go between the console's bytes, hidden
//! from the application's output.
//!
//! A frame is an APC escape string, `ESC _ demitasse;KIND;PAYLOAD ESC \` (ECMA-48, 8.3.2), which a
//! terminal that sees it by accident does not print. [`Frame`] displays as such a string without
//! allocating, so that a panic can report itself; [`Decoder`] takes a byte stream apart again.
//!
//! An application can print a frame and so lie about itself; it can do no more than that, and tools
//! believe an exit code only together with an orderly end ([`crate::exit`]).
use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::exits::Exits;

/// Longest frame, all bytes counted. Longer ones are cut when written, and plain bytes when read.
pub const MAX_FRAME_BYTES: usize = 4096;

/// Name of the virtio-serial port for frames.
pub const PORT_NAME: &str = "demitasse.control";

const OPEN: &[u8] = b"\x1b_demitasse;";
const ESC: u8 = 0x1b;
/// Room for payload text beside the frame's fixed parts.
const MAX_TEXT_BYTES: usize = 2048;

/// One message from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The application ended; `tsc` is the time stamp counter just before power-off.
    Exit { code: u8, tsc: u64 },
    /// The kernel panicked; the cause is one line.
    Panic { cause: &'a str },
    /// A boot phase was reached, at `ns` since boot on the machine's clock. No white space in `name`.
    Phase { name: &'a str, ns: u64, tsc: u64 },
    /// How often the machine left the guest until now (`exits`).
    Exits(Exits),
    /// A program waits for console input, for the first time (`stdin=cooked` or `pipe`): the host may send it from now on.
    Input,
    /// A built-in test ended. No white space in `name`; `detail` may be empty.
    Test { name: &'a str, ok: bool, detail: &'a str },
}

impl fmt::Display for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\x1b_demitasse;")?;
        match *self {
            Self::Exit { code, tsc } => write!(f, "exit;{code} tsc={tsc}")?,
            Self::Panic { cause } => write!(f, "panic;{}", OneLine(cause))?,
            Self::Phase { name, ns, tsc } => write!(f, "phase;{} {ns} {tsc}", Word(name))?,
            Self::Exits(exits) => write!(f, "exits;{exits}")?,
            Self::Input => f.write_str("input;ready")?,
            Self::Test { name, ok, detail } => {
                let result = if ok { "ok" } else { "FAILED" };
                write!(f, "test;{} {result} {}", Word(name), OneLine(detail))?;
            }
        }
        f.write_str("\x1b\\")
    }
}

/// Text without control characters, cut to [`MAX_TEXT_BYTES`].
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut len_bytes = 0;
        for character in self.0.chars() {
            len_bytes += character.len_utf8();
            if len_bytes > MAX_TEXT_BYTES {
                break;
            }
            f.write_char(if character.is_control() { ' ' } else { character })?;
        }
        Ok(())
    }
}

/// Text that must stay one word.
struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars().take(MAX_TEXT_BYTES / 16) {
            let unfit = character.is_control() || character.is_whitespace();
            f.write_char(if unfit { '_' } else { character })?;
        }
        Ok(())
    }
}

impl<'a> Frame<'a> {
    /// Reads `KIND;PAYLOAD`. `None` for an unknown kind or a malformed payload.
    fn parse(body: &'a str) -> Option<Self> {
        let (kind, payload) = body.split_once(';')?;
        match kind {
            "exit" => {
                let (code, tsc) = payload.split_once(" tsc=")?;
                Some(Self::Exit { code: code.parse().ok()?, tsc: tsc.parse().ok()? })
            }
            "panic" => Some(Self::Panic { cause: payload }),
            "phase" => {
                let mut fields = payload.split(' ');
                let name = fields.next()?;
                let (ns, tsc) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
                fields.next().is_none().then_some(Self::Phase { name, ns, tsc })
            }
            "exits" => Exits::parse(payload).map(Self::Exits),
            "input" => (payload == "ready").then_some(Self::Input),
            "test" => {
                let (name, rest) = payload.split_once(' ')?;
                let (result, detail) = rest.split_once(' ').unwrap_or((rest, ""));
                let ok = match result {
                    "ok" => true,
                    "FAILED" => false,
                    _ => return None,
                };
                Some(Self::Test { name, ok, detail })
            }
            _ => None,
        }
    }
}

/// A piece of the console's stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Output of the application or kernel, unchanged.
    Plain(&'a [u8]),
    Frame(Frame<'a>),
}

/// Splits the console's bytes into plain output and frames, whatever pieces they arrive in.
///
/// # Invariants
/// `held` is empty, a prefix of [`OPEN`], or [`OPEN`] and an unfinished body; never longer than
/// [`MAX_FRAME_BYTES`].
#[derive(Default)]
pub struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream and gives out what is complete, in order.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut dyn FnMut(Piece<'_>)) {
        while let Some(&byte) = bytes.first() {
            if self.held.is_empty() {
                let plain = bytes.iter().position(|&b| b == ESC).unwrap_or(bytes.len());
                if plain > 0 {
                    sink(Piece::Plain(&bytes[..plain]));
                }
                bytes = &bytes[plain..];
                if !bytes.is_empty() {
                    self.held.push(ESC);
                    bytes = &bytes[1..];
                }
            } else if self.hold(byte, sink) {
                bytes = &bytes[1..];
            }
        }
    }

    /// The stream has ended: an unfinished frame was plain output after all.
    pub fn finish(&mut self, sink: &mut dyn FnMut(Piece<'_>)) {
        self.release(0, sink);
    }

    /// Adds `byte` to what is held, or finds that it cannot belong there: then it is still to be
    /// looked at (false).
    fn hold(&mut self, byte: u8, sink: &mut dyn FnMut(Piece<'_>)) -> bool {
        let len = self.held.len();
        if len < OPEN.len() {
            if byte != OPEN[len] {
                self.release(0, sink);
                return false;
            }
        } else if self.held[len - 1] == ESC && byte != b'\\' {
            // Not the terminator: but this ESC may open a frame.
            self.release(1, sink);
            return false;
        } else if len == MAX_FRAME_BYTES {
            self.release(0, sink);
            return false;
        }
        self.held.push(byte);
        if byte == b'\\' && self.held.ends_with(b"\x1b\\") {
            self.complete(sink);
        }
        true
    }

    fn complete(&mut self, sink: &mut dyn FnMut(Piece<'_>)) {
        let body = &self.held[OPEN.len()..self.held.len() - 2];
        match core::str::from_utf8(body).ok().and_then(Frame::parse) {
            Some(frame) => {
                sink(Piece::Frame(frame));
                self.held.clear();
            }
            None => self.release(0, sink),
        }
    }

    /// Gives out what is held as plain bytes, but the last `keep`.
    fn release(&mut self, keep: usize, sink: &mut dyn FnMut(Piece<'_>)) {
        let plain = self.held.len() - keep;
        if plain > 0 {
            sink(Piece::Plain(&self.held[..plain]));
        }
        self.held.drain(..plain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::String};

    /// Decodes `stream` in chunks of `chunk` bytes: plain bytes, and frames as debug text.
    fn decode(stream: &[u8], chunk: usize) -> (Vec<u8>, Vec<String>) {
        let (mut plain, mut frames) = (Vec::new(), Vec::new());
        let mut sink = |piece: Piece<'_>| match piece {
            Piece::Plain(bytes) => plain.extend_from_slice(bytes),
            Piece::Frame(frame) => frames.push(format!("{frame:?}")),
        };
        let mut decoder = Decoder::new();
        for bytes in stream.chunks(chunk) {
            decoder.push(bytes, &mut sink);
        }
        decoder.finish(&mut sink);
        (plain, frames)
    }

    #[test]
    fn each_kind_survives_however_the_stream_is_cut() {
        let frames = [
            Frame::Exit { code: 255, tsc: u64::MAX },
            Frame::Panic { cause: "page fault at 0x10; rip 0x20" },
            Frame::Phase { name: "first-task", ns: 12, tsc: 34 },
            Frame::Exits(Exits { ports: 7, ..Exits::default() }),
            Frame::Input,
            Frame::Test { name: "paging", ok: true, detail: "" },
            Frame::Test { name: "ist", ok: false, detail: "wanted 3, got 4" },
        ];
        let mut stream = String::from("before");
        let mut wanted = Vec::new();
        for frame in frames {
            stream += &format!("{frame}between");
            wanted.push(format!("{frame:?}"));
        }
        for chunk in 1..=stream.len() {
            let (plain, found) = decode(stream.as_bytes(), chunk);
            assert_eq!(plain, format!("before{}", "between".repeat(frames.len())).as_bytes());
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn what_is_no_frame_passes_unchanged() {
        let long = [OPEN, b"panic;", &[b'x'; 2 * MAX_FRAME_BYTES], b"\x1b\\"].concat();
        let streams: [&[u8]; 9] = [
            b"\x1b[31mred\x1b[0m",
            b"\x1b\x1b\x1b_demi",
            b"\x1b_demitasse;exit;256 tsc=1\x1b\\",
            b"\x1b_demitasse;exit;1\x1b\\",
            b"\x1b_demitasse;wish;more\x1b\\",
            b"\x1b_demitasse;panic;cut off",
            b"\x1b_demitasse;panic;\xff\x1b\\",
            b"\x1b_demitasse;panic;half\x1b[0m\x1b\\",
            &long,
        ];
        for stream in streams {
            for chunk in [1, 2, 3, 7, stream.len()] {
                assert_eq!(decode(stream, chunk), (stream.to_vec(), Vec::new()));
            }
        }
    }

    #[test]
    fn a_frame_inside_a_broken_one_is_found() {
        let stream = format!("\x1b_demitasse;panic;broken{}", Frame::Exit { code: 3, tsc: 9 });
        for chunk in [1, 5, stream.len()] {
            let (plain, frames) = decode(stream.as_bytes(), chunk);
            assert_eq!(plain, b"\x1b_demitasse;panic;broken");
            assert_eq!(frames, ["Exit { code: 3, tsc: 9 }"]);
        }
    }

    #[test]
    fn hostile_text_cannot_break_a_frame_open() {
        let text = format!("a\x1b\\b\n{}", "ä".repeat(MAX_FRAME_BYTES));
        let stream = format!("{}", Frame::Panic { cause: &text });
        let (plain, frames) = decode(stream.as_bytes(), 64);
        assert!(plain.is_empty() && frames.len() == 1);
    }
}
