//! Files: the VFS, the page cache, and the file systems of the image and of memory.
//!
//! A descriptor's [`file::OpenFile`] sends bytes to a [`file::FileOps`] object; a path becomes a
//! [`vfs::Location`] by [`vfs::Vfs`]'s walk over [`inode::Inode`]s, which each file system
//! implements. File content lies in the [`cache`], from where it is read, copied and mapped.
//! Everything runs on the `rt` seam, so it blocks and is tested on the host as in the guest.
//!
//! # Locking
//! From outer to inner; a task takes a lock only while it holds none of the later ones:
//! 1. an open file's position (sleeping), then the mount table (sleeping);
//! 2. a file system's rename lock, then directory locks (sleeping; parent before child);
//! 3. a regular file's write lock (sleeping), a pipe's lock (sleeping);
//! 4. the spin locks: dentry children, page-cache slots, the cache registry. These are
//!    leaves: no two at once, and no I/O, allocation of pages or copy to application memory.
//!
//! No lock of any kind is held over device reads but a file's write lock (a partial write of a page
//! that is not in memory must read it first).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod block;
pub mod cache;
pub mod console;
pub mod descriptor;
pub mod devfs;
pub mod devices;
pub mod erofs;
pub mod error;
pub mod eventfd;
pub mod file;
pub mod flock;
pub mod inode;
pub mod io;
pub mod pipe;
pub mod pseudo;
pub mod stdin;
pub mod tmpfs;
pub mod vfs;

pub use error::{FsError, FsResult};
pub use file::{FileOps, OpenFile, OpenFlags, Readiness};
pub use inode::{FileKind, FileSystem, Inode, Metadata};
pub use io::{Sink, SliceSink, SliceSource, Source};
pub use vfs::{Location, Vfs};

#[cfg(test)]
mod testing;
