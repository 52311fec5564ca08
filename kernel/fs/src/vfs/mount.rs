//! Mounts and the mount table.
//!
//! A file system is mounted at one place only (no bind mounts yet), so its dentries belong to its
//! mount and the mount hangs on the dentry that it covers.
//!
//! # Locking
//! The table's sleeping lock is held for writing over a whole mount and unmount, so that neither changes what
//! the other has checked; for reading over a look at all of it.
use alloc::{
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::sync::atomic::{AtomicU32, Ordering};

use rt::sync::{Mutex, RwLock, SpinLock};

use super::{dentry::Dentry, location::Location};
use crate::{
    cache::writeback,
    error::{FsError, FsResult},
    inode::{FileKind, FileSystem, FileSystemStatus, Inode},
};

/// One mounted file system.
pub struct Mount {
    /// The id that `/proc/self/mountinfo` shows.
    id: u32,
    file_system: Arc<dyn FileSystem>,
    root: Arc<Dentry>,
    /// What it covers; None for the root.
    point: Option<Location>,
    spec: MountSpec,
    /// Held over a rename, so that no two turn the tree into a circle.
    pub(super) renames: Mutex<()>,
}

/// How a file system is mounted, as `/proc/mounts` shows it.
#[derive(Clone, Debug, Default)]
pub struct MountSpec {
    /// The first column: a device, or the type's name again.
    pub source: String,
    pub read_only: bool,
    /// Options behind `rw` or `ro`, separated by commas, possibly empty.
    pub options: String,
}

/// A line of `/proc/self/mountinfo` (proc(5)).
#[derive(Clone, Debug)]
pub struct MountInfo {
    pub id: u32,
    pub parent_id: u32,
    pub device: u64,
    /// As seen from the root given to [`Vfs::mounts`].
    pub path: Vec<u8>,
    pub type_name: &'static str,
    pub spec: MountSpec,
}

impl Mount {
    fn new(file_system: Arc<dyn FileSystem>, point: Option<Location>, spec: MountSpec) -> Arc<Self> {
        static NEXT_ID: AtomicU32 = AtomicU32::new(1);
        let root = Dentry::new(file_system.root(), None, b"");
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let spec = MountSpec { read_only: spec.read_only || file_system.is_read_only(), ..spec };
        Arc::new(Self { id, file_system, root, point, spec, renames: Mutex::new(()) })
    }

    /// The mount that objects without a place in the tree pretend to be on.
    pub(super) fn of_unnamed() -> Arc<Self> {
        static UNNAMED: SpinLock<Option<Arc<Mount>>> = SpinLock::new(None);
        if let Some(mount) = &*UNNAMED.lock() {
            return mount.clone();
        }
        let device = crate::inode::anonymous_device();
        let new = Self::detached(Arc::new(Unnamed { device }));
        UNNAMED.lock().get_or_insert(new).clone()
    }

    /// A mount that no path leads to, for files that have descriptors and mappings only.
    pub(crate) fn detached(file_system: Arc<dyn FileSystem>) -> Arc<Self> {
        Self::new(file_system, None, MountSpec::default())
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn file_system(&self) -> &Arc<dyn FileSystem> {
        &self.file_system
    }

    pub fn is_read_only(&self) -> bool {
        self.spec.read_only
    }

    pub fn spec(&self) -> &MountSpec {
        &self.spec
    }

    pub(super) fn root_dentry(&self) -> &Arc<Dentry> {
        &self.root
    }

    pub(super) fn mount_point(&self) -> Option<&Location> {
        self.point.as_ref()
    }
}

/// The tree of mounts.
pub struct Vfs {
    root: Location,
    mounts: RwLock<Vec<Arc<Mount>>>,
}

impl Vfs {
    /// A tree that has `file_system` as its root.
    pub fn new(file_system: Arc<dyn FileSystem>, spec: MountSpec) -> Arc<Self> {
        let mount = Mount::new(file_system, None, spec);
        let root = Location { dentry: mount.root.clone(), mount: mount.clone() };
        Arc::new(Self { root, mounts: RwLock::new(alloc::vec![mount]) })
    }

    /// The topmost directory: root and first working directory of the first program.
    pub fn root(&self) -> Location {
        self.root.clone()
    }

    /// Mounts a file system on the directory `at`; the result is its root. Mounting on a mount's
    /// root covers that mount. [`FsError::Invalid`] in a file system whose lookups are not cached, such
    /// as procfs: the dentry that carries the mount would not be met again.
    pub fn mount(&self, at: &Location, file_system: Arc<dyn FileSystem>, spec: MountSpec) -> FsResult<Location> {
        if at.kind() != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        if at.dentry.parent().is_some_and(|parent| !parent.inode().lookups_cacheable()) {
            return Err(FsError::Invalid);
        }
        let mut mounts = self.mounts.write();
        let mount = Mount::new(file_system, Some(at.clone()), spec);
        at.dentry.set_mounted(mount.clone())?;
        mounts.push(mount.clone());
        Ok(Location { dentry: mount.root.clone(), mount })
    }

    /// Takes away the mount whose root is `at`. [`FsError::Busy`] while another is mounted below, or
    /// something of it is in use.
    pub fn unmount(&self, at: &Location) -> FsResult<()> {
        let Some(point) = at.mount.point.as_ref() else { return Err(FsError::Busy) };
        if !Arc::ptr_eq(&at.dentry, &at.mount.root) {
            return Err(FsError::Invalid);
        }
        let has_mounts = |mount: &Arc<Mount>| mount.point.as_ref().is_some_and(|p| Arc::ptr_eq(&p.mount, &at.mount));
        let mut mounts = self.mounts.write();
        if mounts.iter().any(has_mounts) {
            return Err(FsError::Busy);
        }
        at.mount.root.prune();
        // The mount itself and `at` hold the root; walks, files and cached children hold it more.
        if Arc::strong_count(&at.mount.root) > 2 {
            return Err(FsError::Busy);
        }
        at.mount.file_system.sync()?;
        let covered = point.dentry.clear_mounted();
        let gone = mounts.iter().position(|m| Arc::ptr_eq(m, &at.mount)).map(|i| mounts.remove(i));
        drop(mounts);
        drop((covered, gone));
        Ok(())
    }

    /// The mounts in the order in which they were made, paths as seen from `root`.
    pub fn mounts(&self, root: &Location) -> Vec<MountInfo> {
        let info = |mount: &Arc<Mount>| {
            let at = Location { dentry: mount.root.clone(), mount: mount.clone() };
            MountInfo {
                id: mount.id,
                parent_id: mount.point.as_ref().map_or(mount.id, |point| point.mount.id),
                device: mount.file_system.device(),
                path: at.path(root),
                type_name: mount.file_system.type_name(),
                spec: mount.spec.clone(),
            }
        };
        self.mounts.read().iter().map(info).collect()
    }

    /// sync(2): every file system and device. What a device fails at, its open files' fsync reports.
    pub fn sync(&self) -> FsResult<()> {
        writeback::sync_all();
        self.mounts.read().iter().try_for_each(|mount| mount.file_system.sync())
    }
}

impl MountSpec {
    pub fn new(source: &str) -> Self {
        Self { source: source.to_string(), ..Self::default() }
    }

    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// `rw,size=1024k`.
    pub fn option_list(&self) -> String {
        let mut list = String::from(if self.read_only { "ro" } else { "rw" });
        if !self.options.is_empty() {
            list.push(',');
            list.push_str(&self.options);
        }
        list
    }
}

/// The file system of objects without a place in the tree; its root is never reached.
struct Unnamed {
    device: u64,
}

impl FileSystem for Unnamed {
    fn type_name(&self) -> &'static str {
        "anon_inodefs"
    }

    fn root(&self) -> Arc<dyn Inode> {
        Arc::new(NoRoot)
    }

    fn status(&self) -> FileSystemStatus {
        FileSystemStatus { magic: 0x0904_1934, block_size: 4096, name_max: 255, ..FileSystemStatus::default() }
    }

    fn device(&self) -> u64 {
        self.device
    }
}

struct NoRoot;

impl Inode for NoRoot {
    fn kind(&self) -> FileKind {
        FileKind::Directory
    }

    fn metadata(&self) -> FsResult<crate::inode::Metadata> {
        Err(FsError::NotFound)
    }

    fn open(self: Arc<Self>, _flags: crate::file::OpenFlags) -> FsResult<Arc<dyn crate::file::FileOps>> {
        Err(FsError::NotFound)
    }
}
