//! A small deterministic random stream: for `exact` mode's choices and for model tests. Never for keys.

/// xorshift64*: one word of state, full period, and the same stream for the same seed everywhere.
#[derive(Clone, Debug)]
pub struct Stream(u64);

impl Stream {
    pub const fn new(seed: u64) -> Self {
        // The all-zero state is a fixed point; neighbouring seeds must not give similar streams.
        let mixed = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self(if mixed == 0 { 1 } else { mixed })
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number in `0..limit`; 0 for an empty range. The bias is below 2^-32 for limits below 2^32.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(limit)) >> 64) as u64
    }
}
