//! Pipes: bytes in order, blocking, hang-up, atomic small writes.
use std::{thread, time::Duration, vec};

use super::*;
use crate::io::{SliceSink, SliceSource};

fn read(file: &OpenFile, len: usize) -> FsResult<Vec<u8>> {
    let mut bytes = vec![0; len];
    let read = file.read(&mut SliceSink::new(&mut bytes))?;
    bytes.truncate(read);
    Ok(bytes)
}

fn write(file: &OpenFile, bytes: &[u8]) -> FsResult<usize> {
    file.write(&mut SliceSource::new(bytes))
}

fn pipe(flags: OpenFlags) -> (Arc<OpenFile>, Arc<OpenFile>) {
    rt::host::install();
    Pipe::pair(flags).unwrap()
}

#[test]
fn bytes_pass_in_order_through_a_full_ring() {
    let (reader, writer) = pipe(OpenFlags::empty());
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n / 3) as u8).collect();
    let expected = data.clone();
    let sender = thread::spawn(move || assert_eq!(write(&writer, &data), Ok(1_000_000)));
    let mut got = Vec::new();
    loop {
        let piece = read(&reader, 10_007).unwrap();
        if piece.is_empty() {
            break;
        }
        got.extend(piece);
    }
    sender.join().unwrap();
    assert!(got == expected);
}

#[test]
fn hang_up_and_broken_pipe() {
    let (reader, writer) = pipe(OpenFlags::empty());
    write(&writer, b"last").unwrap();
    assert_eq!(reader.readiness(), Readiness::IN);
    drop(writer);
    assert_eq!(reader.readiness(), Readiness::IN | Readiness::HANG_UP);
    assert_eq!(read(&reader, 9).unwrap(), b"last");
    assert_eq!(read(&reader, 9).unwrap(), b"");
    let (reader, writer) = pipe(OpenFlags::empty());
    drop(reader);
    assert_eq!(writer.readiness(), Readiness::OUT | Readiness::ERROR);
    assert_eq!(write(&writer, b"x"), Err(FsError::BrokenPipe));
    assert_eq!(read(&writer, 1), Err(FsError::BadDescriptor));
}

#[test]
fn nonblocking_and_atomic() {
    let (reader, writer) = pipe(OpenFlags::NONBLOCK);
    assert_eq!(read(&reader, 1), Err(FsError::WouldBlock));
    assert_eq!(write(&writer, &vec![1; CAPACITY + 5]), Ok(CAPACITY));
    assert_eq!(write(&writer, b"x"), Err(FsError::WouldBlock));
    read(&reader, 4000).unwrap();
    assert_eq!(write(&writer, &[2; 4096]), Err(FsError::WouldBlock), "atomic: all or nothing");
    assert!(!writer.readiness().contains(Readiness::OUT));
    assert_eq!(write(&writer, &[2; 4097]), Ok(4000), "larger ones may be cut");
    assert_eq!(read(&reader, CAPACITY * 2).unwrap().len(), CAPACITY);
}

#[test]
fn a_signal_ends_the_wait() {
    let (reader, _writer) = pipe(OpenFlags::empty());
    let task = rt::rt().current();
    let interrupter = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        task.interrupt();
    });
    assert_eq!(read(&reader, 1), Err(FsError::Interrupted));
    interrupter.join().unwrap();
    rt::rt().current().clear_interrupt();
}

#[test]
fn small_writes_do_not_mix() {
    let (reader, writer) = pipe(OpenFlags::empty());
    let writers: Vec<_> = (0..4u8)
        .map(|n| {
            let writer = writer.clone();
            thread::spawn(move || (0..200).for_each(|_| assert_eq!(write(&writer, &[n; 1000]), Ok(1000))))
        })
        .collect();
    drop(writer);
    let mut all = Vec::new();
    while let piece = read(&reader, 3333).unwrap()
        && !piece.is_empty()
    {
        all.extend(piece);
    }
    writers.into_iter().for_each(|w| w.join().unwrap());
    assert_eq!(all.len(), 800_000);
    assert!(all.chunks(1000).all(|record| record.iter().all(|&b| b == record[0])));
}

#[test]
fn fifo_openers_meet() {
    rt::host::install();
    let pipe = Pipe::new();
    assert!(pipe.clone().open_fifo(OpenFlags::WRITE_ONLY | OpenFlags::NONBLOCK).is_err());
    let other = pipe.clone();
    let writer = thread::spawn(move || other.open_fifo(OpenFlags::WRITE_ONLY).map(|_| ()));
    let reader = pipe.open_fifo(OpenFlags::empty()).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(reader.readiness(), Readiness::HANG_UP);
}
