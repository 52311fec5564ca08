//! Standard input as a pipe. A binary of its own, since the console is one for the process.
use std::thread;

use fs::{FileKind, FsError, OpenFile, OpenFlags, Readiness, SliceSink, stdin};

fn read(file: &OpenFile) -> Result<Vec<u8>, FsError> {
    let mut bytes = vec![0; 10_000];
    let len = file.read(&mut SliceSink::new(&mut bytes))?;
    bytes.truncate(len);
    Ok(bytes)
}

#[test]
fn every_byte_arrives_and_then_the_end() {
    let host = rt::host::install();
    let input = stdin::open();
    assert_eq!(input.metadata().unwrap().kind, FileKind::Fifo);
    input.set_flags(OpenFlags::NONBLOCK);
    assert_eq!(read(&input), Err(FsError::WouldBlock));
    assert_eq!(input.readiness(), Readiness::empty());
    input.set_flags(OpenFlags::empty());
    // More than the pipe holds; control characters of terminals among it, and the escape at every place.
    let sent: Vec<u8> = (0..300_000u32).map(|n| (n / 257 + n) as u8).collect();
    let mut line = Vec::new();
    abi::input::encode(&sent, &mut line);
    line.extend(abi::input::END_OF_INPUT);
    let typist = thread::spawn(move || line.chunks(77).for_each(|piece| host.type_on_console(piece)));
    let mut got = Vec::new();
    loop {
        let piece = read(&input).unwrap();
        if piece.is_empty() {
            break;
        }
        got.extend(piece);
    }
    typist.join().unwrap();
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    // The end stays the end.
    assert_eq!(read(&input).unwrap(), b"");
    assert_eq!(input.readiness(), Readiness::HANG_UP);
    // The terminal has none of it, and no keys: reading it does not wait.
    let console = OpenFile::new(fs::console::Console::get(), OpenFlags::READ_WRITE);
    assert_eq!(console.readiness(), Readiness::IN | Readiness::OUT);
    assert_eq!(read(&console).unwrap(), b"");
    assert!(host.take_console_output().is_empty(), "nothing is echoed");
}
