//! How long work is shown to whoever waits for it. Without a display, [`Silent`].

/// One piece of work at a time, in bytes.
pub trait Progress {
    /// `total_bytes` is 0 when it is not known.
    fn begin(&self, what: &str, total_bytes: u64);
    fn reached(&self, done_bytes: u64);
    fn end(&self);
}

pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _total_bytes: u64) {}
    fn reached(&self, _done_bytes: u64) {}
    fn end(&self) {}
}
