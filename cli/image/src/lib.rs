//! What goes into a virtual machine: file trees, EROFS images, JDKs and applications.
//!
//! [`Tree`] describes an image's files, [`erofs`] writes it, [`jdk`] obtains a JDK with the
//! libraries it needs, [`app`] puts an application on top, and [`cache`] keeps all of it.

pub mod app;
pub mod cache;
pub mod erofs;
pub mod jdk;
pub mod progress;
pub mod tree;

pub use cache::{Cache, CacheError, Fingerprint};
pub use jdk::{Jdk, JdkError};
pub use progress::Progress;
pub use tree::{Tree, TreeError};
