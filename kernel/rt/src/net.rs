//! Network devices, at the level of Ethernet frames.
use crate::task::Parked;

/// An Ethernet frame without its check sequence: header of 14 bytes and 1500 of payload.
pub const MAX_FRAME_BYTES: usize = 1514;
pub const HEADER_BYTES: usize = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// Too many frames wait to be sent. They go out without the sender's help: try again later.
    Full,
    /// Shorter than a header, or longer than [`MAX_FRAME_BYTES`].
    BadLength,
    /// The device lied, and was switched off.
    Gone,
}

/// A device that sends and receives Ethernet frames. Checksums and segmentation are the caller's.
/// Frames may be lost in either direction.
pub trait NetDevice: Send + Sync {
    fn mac(&self) -> [u8; 6];
    fn link_is_up(&self) -> bool;
    /// Hands a frame to the device; the bytes are copied. Never sleeps.
    fn send(&self, frame: &[u8]) -> Result<(), NetError>;
    /// The next received frame's length, its bytes in `out`; one that does not fit is dropped. Never
    /// sleeps. None: nothing was received.
    fn receive(&self, out: &mut [u8]) -> Option<usize>;
    /// Sleeps until something was received. May wake for nothing.
    fn wait_received(&self, deadline_ns: Option<u64>) -> Parked;
}
