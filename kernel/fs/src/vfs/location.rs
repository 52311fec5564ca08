//! Locations: an object in the tree, together with the way it was reached.
use alloc::{sync::Arc, vec::Vec};

use super::{dentry::Dentry, mount::Mount};
use crate::{
    error::{FsError, FsResult},
    file::{ObjectInode, OpenFile},
    inode::{AttributeChanges, FileKind, FileSystemStatus, Inode, Metadata},
};

/// A dentry, and the mount through which it was reached. Cheap to clone.
#[derive(Clone)]
pub struct Location {
    pub(super) mount: Arc<Mount>,
    pub(super) dentry: Arc<Dentry>,
}

impl Location {
    /// Where an open file is. One without a path gets a location of its own, so that magic links can
    /// lead to it; opening that reopens the object.
    pub fn of_file(file: &Arc<OpenFile>) -> Self {
        match file.location() {
            Some(location) => location.clone(),
            None => {
                let inode = Arc::new(ObjectInode(file.clone()));
                Self::unnamed(Mount::of_unnamed(), inode, &file.ops().description())
            }
        }
    }

    /// An inode without a place in the tree, such as a memfd; shown as `shown_as`.
    pub fn unnamed(mount: Arc<Mount>, inode: Arc<dyn Inode>, shown_as: &[u8]) -> Self {
        Self { mount, dentry: Dentry::unnamed(inode, shown_as) }
    }

    pub fn inode(&self) -> &Arc<dyn Inode> {
        self.dentry.inode()
    }

    pub fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }

    pub fn kind(&self) -> FileKind {
        self.inode().kind()
    }

    pub fn metadata(&self) -> FsResult<Metadata> {
        self.inode().metadata()
    }

    pub(crate) fn inode_number(&self) -> u64 {
        self.metadata().map_or(0, |m| m.inode)
    }

    pub fn set_attributes(&self, changes: &AttributeChanges) -> FsResult<()> {
        self.check_writable()?;
        self.inode().set_attributes(changes)
    }

    /// truncate(2).
    pub fn truncate(&self, size: u64) -> FsResult<()> {
        if self.kind() == FileKind::Directory {
            return Err(FsError::IsDirectory);
        }
        self.check_writable()?;
        self.inode().truncate(size)
    }

    pub fn file_system_status(&self) -> FileSystemStatus {
        self.mount.file_system().status()
    }

    /// [`FsError::ReadOnly`] if the mount is.
    pub fn check_writable(&self) -> FsResult<()> {
        if self.mount.is_read_only() { Err(FsError::ReadOnly) } else { Ok(()) }
    }

    /// The name was removed while the object is still in use.
    pub fn is_unlinked(&self) -> bool {
        self.dentry.is_unlinked()
    }

    pub fn is_same(&self, other: &Location) -> bool {
        Arc::ptr_eq(&self.dentry, &other.dentry) && Arc::ptr_eq(&self.mount, &other.mount)
    }

    /// What `..` means here, mount boundaries crossed; the topmost root's is itself.
    pub fn parent(&self) -> Location {
        let mut at = self.clone();
        loop {
            if let Some(parent) = at.dentry.parent() {
                return Location { mount: at.mount, dentry: parent };
            }
            match at.mount.mount_point() {
                Some(point) => at = point.clone(),
                None => return at,
            }
        }
    }

    /// If something is mounted here, its root (again and again).
    pub(super) fn enter_mounts(mut self) -> Location {
        while let Some(mount) = self.dentry.mounted() {
            self = Location { dentry: mount.root_dentry().clone(), mount };
        }
        self
    }

    /// The path as seen from `root`; ` (deleted)` behind that of an unlinked object (proc(5)). A
    /// location outside `root` is shown from its own topmost root.
    pub fn path(&self, root: &Location) -> Vec<u8> {
        self.path_up_to(Some(root))
    }

    /// The path as seen from the topmost root.
    pub fn path_from_top(&self) -> Vec<u8> {
        self.path_up_to(None)
    }

    fn path_up_to(&self, root: Option<&Location>) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = self.clone();
        while !root.is_some_and(|root| at.is_same(root)) {
            let (parent, name) = at.dentry.parent_and_name();
            match (parent, at.mount.mount_point()) {
                (Some(parent), _) => {
                    names.push(name);
                    at.dentry = parent;
                }
                (None, Some(point)) => at = point.clone(),
                (None, None) => {
                    if at.dentry.is_unlinked() {
                        // Unnamed: what is shown is no path.
                        return name.to_vec();
                    }
                    break;
                }
            }
        }
        let mut path = logic::path::join_reversed(names.iter().map(|name| &name[..]));
        if self.is_unlinked() {
            path.extend_from_slice(b" (deleted)");
        }
        path
    }

    /// The child of that name, what is mounted on it included.
    pub(super) fn child(&self, name: &[u8]) -> FsResult<Location> {
        if name.len() > logic::path::NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        let dentry = self.dentry.child(name)?;
        super::dentry::prune_if_full(self.mount.root_dentry());
        Ok(Location { mount: self.mount.clone(), dentry }.enter_mounts())
    }

    #[cfg(test)]
    pub(crate) fn prune_for_test(&self) -> usize {
        self.dentry.prune()
    }
}
