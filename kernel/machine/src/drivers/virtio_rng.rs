//! The virtio entropy device: read once at boot, mixed into the generator, switched off.
use logic::virtio::{
    VirtioError,
    entropy::{Entropy, REQUEST_BYTES},
};

use super::{discovery::Found, memory::DmaArea};
use crate::{random, time};

/// A device on a busy host takes a while; boot does not wait longer.
const PATIENCE_NS: u64 = 500_000_000;

/// Mixes [`REQUEST_BYTES`] of the device's into the generator. It is polled: this is one exchange,
/// and the bytes are wanted before the first program starts.
pub fn seed(found: Found) -> Result<(), VirtioError> {
    let (transport, _) = found.open()?;
    let mut entropy = Entropy::new(transport, DmaArea::allocate)?;
    let result = exchange(&mut entropy);
    // Its memory is never given back, so a device that does not stop does no harm.
    entropy.stop();
    if result.is_ok() {
        log::info!("{REQUEST_BYTES} bytes of the entropy device's mixed in");
    }
    result
}

fn exchange<T: logic::virtio::transport::Transport>(entropy: &mut Entropy<T, DmaArea>) -> Result<(), VirtioError> {
    let deadline = time::now_ns() + PATIENCE_NS;
    let mut bytes = [0; REQUEST_BYTES];
    let mut missing = REQUEST_BYTES;
    while missing > 0 {
        match entropy.take(&mut bytes)? {
            Some(count) => {
                random::mix(&bytes[..count]);
                missing = missing.saturating_sub(count);
            }
            None if time::now_ns() >= deadline => return Err(VirtioError::Silent),
            None => core::hint::spin_loop(),
        }
    }
    Ok(())
}
