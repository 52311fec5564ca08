//! Console input that is a pipe (`stdin=pipe`): any bytes and their end, over a line that carries bytes and
//! has no end.
//!
//! [`ESCAPE`] stands before two bytes: before itself it is that byte, before [`END`] it ends the input. All
//! else stands for itself. In the line, since a message beside it could overtake the last bytes.
use alloc::vec::Vec;

/// DLE, which text does not contain.
pub const ESCAPE: u8 = 0x10;
/// EOT.
const END: u8 = 0x04;

/// Ends the input.
pub const END_OF_INPUT: [u8; 2] = [ESCAPE, END];

/// Appends `bytes` as they go over the line.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    for piece in bytes.split_inclusive(|&byte| byte == ESCAPE) {
        out.extend_from_slice(piece);
        if piece.last() == Some(&ESCAPE) {
            out.push(ESCAPE);
        }
    }
}

/// Takes the line's bytes apart again, however they are cut.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The last byte was an [`ESCAPE`] that is still to be understood.
    escaped: bool,
    ended: bool,
}

impl Decoder {
    pub const fn new() -> Self {
        Self { escaped: false, ended: false }
    }

    /// Puts what the bytes stand for in their place; the result is how many those are. Nothing counts
    /// after the end, nor any other pair.
    pub fn decode(&mut self, bytes: &mut [u8]) -> usize {
        let mut len = 0;
        for at in 0..bytes.len() {
            let byte = bytes[at];
            let escaped = core::mem::take(&mut self.escaped);
            match byte {
                _ if self.ended => break,
                ESCAPE if !escaped => self.escaped = true,
                END if escaped => self.ended = true,
                byte if !escaped || byte == ESCAPE => {
                    bytes[len] = byte;
                    len += 1;
                }
                _ => {}
            }
        }
        len
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What arrives of `line`, cut into pieces of `len` bytes; whether it has ended.
    fn arrives(line: &[u8], len: usize) -> (Vec<u8>, bool) {
        let (mut decoder, mut out) = (Decoder::new(), Vec::new());
        for piece in line.chunks(len) {
            let mut bytes = piece.to_vec();
            let count = decoder.decode(&mut bytes);
            out.extend_from_slice(&bytes[..count]);
        }
        (out, decoder.has_ended())
    }

    #[test]
    fn any_bytes_arrive_and_then_their_end() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [&all[..], b"", b"\x10", b"\x10\x10", b"\x10\x04", b"\x04", b"text\x10", b"\x10\x04\x10\x04\n"] {
            let mut line = Vec::new();
            encode(bytes, &mut line);
            for len in [1, 2, 3, 7, 600] {
                assert_eq!(arrives(&line, len), (bytes.to_vec(), false));
            }
            line.extend(END_OF_INPUT);
            line.extend(b"later");
            for len in [1, 2, 3, 7, 600] {
                assert_eq!(arrives(&line, len), (bytes.to_vec(), true));
            }
        }
    }

    #[test]
    fn other_pairs_stand_for_nothing() {
        assert_eq!(arrives(b"a\x10bc", 1), (b"ac".to_vec(), false));
    }
}
