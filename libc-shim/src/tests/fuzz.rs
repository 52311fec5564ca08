//! Every call with arguments that make little sense: none may panic, and with the test profile's checks
//! none may overflow. tests/guest/fuzz-calls.c does the same to the real kernel.
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use alloc::{sync::Arc, vec::Vec};

use super::{Caller, in_program};
use crate::{
    signal::{SIGKILL, SigInfo, SigSet, send},
    table,
    thread::Thread,
};

const CALLS: usize = 30_000;
/// What ends the task, needs a machine (threads), or would take the handlers away that keep the program
/// alive.
const LEFT_OUT: [u64; 7] = [13, 15, 56, 60, 231, 435, 59];
const SIGUSR1: u32 = 10;
/// rt_sigaction flags: SA_RESTORER, SA_NODEFER.
const FLAGS: u64 = 0x0400_0000 | 0x4000_0000;
/// Calls that change mappings: they get addresses of their own to work on.
const ON_MAPPINGS: [u64; 6] = [9, 10, 11, 25, 28, 12];

/// xorshift64*: the seed decides the run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Never 9, so that no structure in memory asks for SIGKILL.
    fn number(&mut self) -> u64 {
        let number = match self.below(8) {
            0 => self.below(64),
            1 => self.below(5),
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => (-(self.below(5) as i64)) as u64,
            5 => i32::MIN as u64 ^ self.below(3),
            6 => i64::MAX as u64 - self.below(3),
            _ => self.next(),
        };
        if number as u32 == SIGKILL || number >> 32 == u64::from(SIGKILL) { 10 } else { number }
    }
}

const PATHS: [&[u8]; 8] =
    [b"a\0", b"a/b\0", b"/proc/self/fd/5\0", b"../..\0", b"/\0", b"link\0", b"./a/../a/c/\0", b"\0"];

/// New content of the page that calls read from: paths at its start, then numbers.
fn fill(caller: &Caller, random: &mut Random) {
    for (index, path) in PATHS.iter().enumerate() {
        caller.write(index as u64 * 32, path);
    }
    for at in (256..4096).step_by(8) {
        caller.write(at, &random.number().to_le_bytes());
    }
}

/// An argument that is mostly of its type, by the table's signature.
fn argument(caller: &Caller, random: &mut Random, signature: &str) -> u64 {
    let pointer = |random: &mut Random| match random.below(6) {
        0 => caller.memory + 4096 - random.below(32),
        1 => [0, 8, 0x1_0000, 0x7fff_ffff_f000, 0x7fff_ffff_effc, u64::MAX - 4095][random.below(6) as usize],
        _ => caller.memory + random.below(4096 / 32) * 32,
    };
    if random.below(8) == 0 {
        return random.number();
    }
    match signature.rsplit(' ').next() {
        Some("Fd") => random.below(24),
        Some("DirFd") => [-100i64 as u64, random.below(24)][random.below(2) as usize],
        Some("Path") if random.below(4) > 0 => caller.memory + random.below(PATHS.len() as u64) * 32,
        Some("Path" | "Addr" | "Bytes" | "TimespecIn") => pointer(random),
        Some("") | None => 0,
        Some(_) => match random.below(2) {
            0 => random.below(16),
            _ => random.number(),
        },
    }
}

fn arguments(caller: &Caller, random: &mut Random, number: u64, region: u64) -> Vec<u64> {
    let signature = table::row(number).unwrap().signature;
    let mut arguments: Vec<u64> = signature.split(',').map(|of_one| argument(caller, random, of_one.trim())).collect();
    arguments.resize(6, 0);
    if ON_MAPPINGS.contains(&number) {
        const FIXED_AND_POPULATED: u64 = 0x10 | 0x10_0000 | 0x8000 | 0x2000;
        arguments[0] = region + random.below(16) * 4096;
        match number {
            9 => arguments[3] &= !FIXED_AND_POPULATED,
            // Nothing beyond the region is changed.
            10 | 11 | 28 => arguments[1] = random.below(16 * 4096),
            25 => arguments[1..5].copy_from_slice(&[4096, random.below(16 * 4096), random.below(2), 0]),
            _ => arguments[0] = 0,
        }
    }
    arguments
}

fn open_some(caller: &Caller) {
    let at = caller.memory + 1024;
    for (number, arguments) in [
        (293, [at, 0, 0, 0]),
        (290, [1, 0, 0, 0]),
        (291, [0, 0, 0, 0]),
        (283, [1, 0, 0, 0]),
        (319, [caller.memory, 0, 0, 0]),
        (53, [1, 1, 0, at]),
        (2, [caller.memory, 0o102, 0o600, 0]),
        (2, [caller.memory + 4 * 32, 0, 0, 0]),
    ] {
        caller.call(number, &arguments);
    }
}

/// Interrupts the program's only thread again and again, so that no call waits for long.
fn disturb(caller: &Caller, over: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (task, pid) = (caller.task.clone(), caller.program.pid);
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(500));
            if let Some(thread) = Thread::of(&task) {
                // Whatever the call blocks.
                thread.signals.lock().mask = SigSet::EMPTY;
                let _ = send::to_thread(&task, thread, SigInfo::from_sender(SIGUSR1, 0, pid));
            }
        }
    })
}

fn fuzz(caller: &Caller, seed: u64) {
    let mut random = Random(seed);
    let numbers: Vec<u64> = (0..500).filter(|n| table::row(*n).is_some() && !LEFT_OUT.contains(n)).collect();
    for signal in (1..=64).filter(|signal| !matches!(signal, 9 | 19)) {
        let action: Vec<u8> = [0x40_2000, FLAGS, 0x40_3000, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(caller.call(13, &[signal, caller.write(2048, &action), 0, 8]), 0);
    }
    let region = caller.call(9, &[0, 16 * 4096, 3, 0x22, u64::MAX, 0]) as u64;
    let over = Arc::new(AtomicBool::new(false));
    let disturbing = disturb(caller, over.clone());
    let trace = std::env::var_os("FUZZ_TRACE").is_some();
    for round in 0..CALLS {
        if round % 64 == 0 {
            fill(caller, &mut random);
            // No signal stays blocked, and there are descriptors.
            let none = caller.write(1024, &[0; 8]);
            caller.call(14, &[2, none, 0, 8]);
            let limit: Vec<u8> = [1024u64, 1 << 20].iter().flat_map(|word| word.to_le_bytes()).collect();
            caller.call(160, &[7, caller.write(1024, &limit)]);
            caller.call(436, &[24, u64::from(u32::MAX), 0]);
            open_some(caller);
        }
        let number = numbers[random.below(numbers.len() as u64) as usize];
        let mut arguments = arguments(caller, &mut random, number, region);
        if matches!(number, 62 | 129 | 200 | 234 | 297) {
            for argument in &mut arguments[1..3] {
                if *argument as u32 == SIGKILL {
                    *argument = u64::from(SIGUSR1);
                }
            }
        }
        if trace {
            std::eprintln!("{round}: {number} {arguments:x?}");
        }
        caller.call(number, &arguments);
    }
    over.store(true, Ordering::Relaxed);
    disturbing.join().unwrap();
}

#[test]
fn no_call_panics_whatever_it_is_given() {
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed);
    in_program(move |caller| fuzz(caller, seed));
}
