//! `/dev`: a tmpfs with the device files and links that programs expect, and a file for each disk.
use alloc::sync::Arc;

use crate::{
    block, devices,
    error::FsResult,
    inode::{FileSystem, NewNode},
    tmpfs::TmpFs,
};

/// Programs may add files to /dev; not many.
const LIMIT_BYTES: u64 = 1 << 20;

const DEVICES: [(&[u8], u64); 7] = [
    (b"null", devices::NULL),
    (b"zero", devices::ZERO),
    (b"full", devices::FULL),
    (b"random", devices::RANDOM),
    (b"urandom", devices::URANDOM),
    (b"tty", devices::TTY),
    (b"console", devices::CONSOLE),
];

const LINKS: [(&[u8], &[u8]); 4] = [
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
];

/// A filled `/dev`, with an empty `shm` to mount a tmpfs on.
pub fn devfs() -> FsResult<Arc<TmpFs>> {
    let devfs = TmpFs::named("devtmpfs", LIMIT_BYTES);
    let root = devfs.root();
    for (name, number) in DEVICES {
        root.create(name, NewNode::CharDevice(number), 0o666)?;
    }
    for (name, number) in block::devices() {
        root.create(name.as_bytes(), NewNode::BlockDevice(number), 0o660)?;
    }
    for (name, target) in LINKS {
        root.create(name, NewNode::Symlink(target), 0o777)?;
    }
    root.create(b"shm", NewNode::Directory, 0o1777)?;
    Ok(devfs)
}
