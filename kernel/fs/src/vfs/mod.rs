//! The virtual file system: mounts, dentries, and path walk (path_resolution(7)).
//!
//! A [`Location`] is an object in the tree: a dentry and the mount through which it was reached.
//! Programs hold two (root and working directory) and open files one each. [`Base`] carries the two
//! that a walk needs, and has the path operations; [`Vfs`] has the mount table.
//!
//! Permissions: every program runs as root, so walks check none. Read-only mounts refuse changes.
mod dentry;
mod location;
mod mount;
mod operations;
mod walk;

pub use location::Location;
pub use mount::{Mount, MountInfo, MountSpec, Vfs};
pub use operations::CreateMode;
pub use walk::{Base, Follow};

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
