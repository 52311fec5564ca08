//! Starting the disks: each virtio block device becomes a [`BlockDevice`].
use alloc::sync::Arc;

use logic::virtio::VirtioError;
use rt::block::BlockDevice as _;

use super::{
    discovery::{DeviceTransport, Found},
    virtio_blk::{Handle, VirtioDisk, interrupt},
};

/// Starts the disk. Without an interrupt it is polled, with one line in the log.
pub fn start(found: Found) -> Result<Arc<VirtioDisk<DeviceTransport>>, VirtioError> {
    let bus = found.bus();
    let (transport, wire) = found.open()?;
    let handle = Handle::new();
    let connected = wire.connect(interrupt, handle.data());
    if connected.is_none() {
        log::warn!("a disk on {bus} has no interrupt: it is polled");
    }
    let vector = connected.and_then(|connected| connected.entry);
    let disk = handle.start(transport, vector, connected.is_some())?;
    wire.listen(connected);
    log::info!("virtio disk on {bus}: {} sectors", disk.sectors());
    Ok(disk)
}
