#![allow(unsafe_code, reason = "RDRAND")]
//! Random bytes: ChaCha20 seeded from what the machine has, or, in `exact` mode, from the command
//! line's seed alone.
use core::arch::x86_64::{_rdrand64_step, _rdtsc};

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::cpu::{features, lock::IrqSpin};

static GENERATOR: IrqSpin<Option<ChaCha20Rng>> = IrqSpin::new(None);

/// Seeds from the command line: every run with this seed draws the same bytes.
pub fn seed_exact(seed: u64) {
    *GENERATOR.lock() = Some(ChaCha20Rng::seed_from_u64(seed));
}

/// Seeds from RDRAND where the CPU has it, and from time stamps. [`mix`] adds a device's bytes.
pub fn seed_from_machine() {
    let mut seed = [0; 32];
    for chunk in seed.chunks_mut(8) {
        chunk.copy_from_slice(&(hardware().unwrap_or(0) ^ time_stamp()).to_le_bytes());
    }
    *GENERATOR.lock() = Some(ChaCha20Rng::from_seed(seed));
}

/// Stirs a device's random bytes in: the new seed depends on them and on the old state.
pub fn mix(bytes: &[u8]) {
    let mut seed = [0; 32];
    fill(&mut seed);
    for (index, byte) in bytes.iter().enumerate() {
        seed[index % 32] ^= byte;
    }
    *GENERATOR.lock() = Some(ChaCha20Rng::from_seed(seed));
}

/// Fills `out`. Panics before the generator is seeded.
pub fn fill(out: &mut [u8]) {
    GENERATOR.lock().as_mut().expect("random numbers before the seed").fill_bytes(out);
}

pub fn next_u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

fn time_stamp() -> u64 {
    // SAFETY: RDTSC is always allowed at ring 0.
    unsafe { _rdtsc() }
}

fn hardware() -> Option<u64> {
    if features::cpuid(1, 0).2 & (1 << 30) == 0 {
        return None;
    }
    (0..10).find_map(|_| {
        let mut value = 0;
        // SAFETY: CPUID says that the CPU has RDRAND.
        (unsafe { rdrand(&mut value) } == 1).then_some(value)
    })
}

#[target_feature(enable = "rdrand")]
fn rdrand(value: &mut u64) -> i32 {
    _rdrand64_step(value)
}
