//! The path operations: open, and all that makes, removes and renames names.
use alloc::{sync::Arc, vec::Vec};

use super::{
    location::Location,
    walk::{Base, Follow, Goal, LastName, Name, Reached, Walk},
};
use crate::{
    error::{FsError, FsResult},
    file::{NoContent, OpenFile, OpenFlags},
    inode::{FileKind, NewNode, RenameMode},
};

/// The permissions of a file that a call may create, with the umask applied already.
pub type CreateMode = u16;

impl Base<'_> {
    /// openat(2).
    pub fn open(&self, path: &[u8], flags: OpenFlags, permissions: CreateMode) -> FsResult<Arc<OpenFile>> {
        let mut walk = Walk::begin(self, path)?;
        let follow = if flags.contains(OpenFlags::NO_FOLLOW) { Follow::No } else { Follow::Yes };
        if flags.contains(OpenFlags::TEMPORARY) {
            let directory = reached_object(walk.run(path, Goal::Object(Follow::Yes))?)?;
            return open_temporary(&directory, flags, permissions);
        }
        if !flags.contains(OpenFlags::CREATE) || flags.contains(OpenFlags::PATH) {
            let location = reached_object(walk.run(path, Goal::Object(follow))?)?;
            return location.open(flags);
        }
        // The last component may be a link to a file that does not exist yet, and again.
        let mut link_target: Vec<u8>;
        let mut path = path;
        loop {
            let last = reached_name(walk.run(path, Goal::Name)?)?;
            let Ok(name) = last.normal() else { return Err(FsError::IsDirectory) };
            if last.trailing_slash {
                return Err(FsError::IsDirectory);
            }
            let child = loop {
                match last.directory.child(name) {
                    Err(FsError::NotFound) => {}
                    found => break found?,
                }
                match last.directory.create(name, NewNode::File, permissions) {
                    // Just created: truncating it is needless, and its permissions do not count yet.
                    Ok(created) => return created.open(flags - OpenFlags::TRUNCATE),
                    // Another task was faster; its file may be gone again by the next look.
                    Err(FsError::Exists) => {}
                    Err(error) => return Err(error),
                }
            };
            if flags.contains(OpenFlags::EXCLUSIVE) {
                return Err(FsError::Exists);
            }
            if child.kind() != FileKind::Symlink || follow == Follow::No {
                return child.open(flags);
            }
            match walk.follow(&child)? {
                None => return walk.at().open(flags),
                Some(target) => {
                    link_target = target;
                    path = &link_target;
                }
            }
        }
    }

    pub fn create_directory(&self, path: &[u8], permissions: CreateMode) -> FsResult<()> {
        let last = self.free_name(path, true)?;
        last.directory.create(last.normal()?, NewNode::Directory, permissions).map(|_| ())
    }

    /// mknod(2), and the name of a bound AF_UNIX socket.
    pub fn create_node(&self, path: &[u8], node: NewNode<'_>, permissions: CreateMode) -> FsResult<Location> {
        let last = self.free_name(path, false)?;
        last.directory.create(last.normal()?, node, permissions)
    }

    pub fn symlink(&self, target: &[u8], path: &[u8]) -> FsResult<()> {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        self.create_node(path, NewNode::Symlink(target), 0o777).map(|_| ())
    }

    /// linkat(2) to an object that was resolved before.
    pub fn link(&self, target: &Location, path: &[u8]) -> FsResult<()> {
        let last = self.free_name(path, false)?;
        let name = last.normal()?;
        if !Arc::ptr_eq(&target.mount, &last.directory.mount) {
            return Err(FsError::CrossDevice);
        }
        last.directory.check_writable()?;
        if target.kind() == FileKind::Directory {
            return Err(FsError::NotPermitted);
        }
        let _change = last.directory.dentry.change();
        last.directory.inode().link(name, target.inode())?;
        last.directory.dentry.add_child(name, target.inode().clone());
        Ok(())
    }

    pub fn unlink(&self, path: &[u8]) -> FsResult<()> {
        let last = self.name(path)?;
        let name = last.normal().map_err(|_| FsError::IsDirectory)?;
        let _change = last.directory.dentry.change();
        let child = last.directory.child(name)?;
        if child.kind() == FileKind::Directory {
            return Err(FsError::IsDirectory);
        }
        if last.trailing_slash {
            return Err(FsError::NotDirectory);
        }
        last.directory.check_writable()?;
        last.directory.inode().unlink(name)?;
        last.directory.dentry.forget_child(name);
        Ok(())
    }

    pub fn remove_directory(&self, path: &[u8]) -> FsResult<()> {
        let last = self.name(path)?;
        let name = match &last.name {
            Name::Normal(name) => name,
            Name::Current => return Err(FsError::Invalid),
            Name::Parent => return Err(FsError::NotEmpty),
            Name::Root => return Err(FsError::Busy),
        };
        let _change = last.directory.dentry.change();
        let child = last.directory.child(name)?;
        if child.kind() != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        if !Arc::ptr_eq(&child.mount, &last.directory.mount) {
            return Err(FsError::Busy);
        }
        last.directory.check_writable()?;
        last.directory.inode().remove_directory(name)?;
        last.directory.dentry.forget_child(name);
        Ok(())
    }

    /// renameat2(2). `to` is the base of the new path.
    pub fn rename(&self, path: &[u8], to: &Base<'_>, to_path: &[u8], mode: RenameMode) -> FsResult<()> {
        let from = self.name(path)?;
        let to = to.name(to_path)?;
        let (name, to_name) = (from.normal()?, to.normal()?);
        if !Arc::ptr_eq(&from.directory.mount, &to.directory.mount) {
            return Err(FsError::CrossDevice);
        }
        from.directory.check_writable()?;
        check_name(to_name)?;
        let _one_at_a_time = from.directory.mount.renames.lock();
        let _changes = from.directory.dentry.change_both(&to.directory.dentry);
        let source = from.directory.child(name)?;
        let target = match to.directory.child(to_name) {
            Ok(target) => Some(target),
            Err(FsError::NotFound) => None,
            Err(error) => return Err(error),
        };
        if check_rename(&from, &source, &to, target.as_ref(), mode)? == Needed::No {
            return Ok(());
        }
        from.directory.inode().rename(name, to.directory.inode(), to_name, mode)?;
        if mode == RenameMode::Exchange {
            from.directory.dentry.exchanged(name, &to.directory.dentry, to_name);
        } else {
            from.directory.dentry.moved(name, &to.directory.dentry, to_name);
        }
        Ok(())
    }

    pub fn read_link(&self, path: &[u8]) -> FsResult<Vec<u8>> {
        let location = self.resolve(path, Follow::No)?;
        location.read_link(self.root)
    }

    /// The last component of a path that is to be made. An existing one is told before all else that is
    /// wrong with the call, as Linux does (mkdir -p relies on it).
    fn free_name(&self, path: &[u8], is_directory: bool) -> FsResult<LastName> {
        let last = self.name(path)?;
        let name = last.normal().map_err(|_| FsError::Exists)?;
        match last.directory.child(name) {
            Ok(_) => Err(FsError::Exists),
            Err(FsError::NotFound) if last.trailing_slash && !is_directory => Err(FsError::NotFound),
            Err(FsError::NotFound) => Ok(last),
            Err(error) => Err(error),
        }
    }

    fn name(&self, path: &[u8]) -> FsResult<LastName> {
        reached_name(Walk::begin(self, path)?.run(path, Goal::Name)?)
    }
}

impl Location {
    /// Opens this object, the last component of a path: O_CREAT, O_EXCL are behind us.
    pub fn open(&self, flags: OpenFlags) -> FsResult<Arc<OpenFile>> {
        let kind = self.kind();
        if flags.contains(OpenFlags::DIRECTORY) && kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        if flags.contains(OpenFlags::PATH) {
            return Ok(OpenFile::at(Arc::new(NoContent(kind)), self.clone(), flags));
        }
        match kind {
            FileKind::Symlink => return Err(FsError::Loop),
            FileKind::Socket => return Err(FsError::NoPeer),
            FileKind::Directory if flags.writes() || flags.contains(OpenFlags::CREATE) => {
                return Err(FsError::IsDirectory);
            }
            FileKind::Regular if flags.writes() => self.check_writable()?,
            _ => {}
        }
        let ops = self.inode().clone().open(flags)?;
        if flags.contains(OpenFlags::TRUNCATE) && kind == FileKind::Regular {
            self.check_writable()?;
            self.inode().truncate(0)?;
        }
        Ok(OpenFile::at(ops, self.clone(), flags))
    }

    /// readlink(2); a magic link shows its object's path as seen from `root`.
    pub fn read_link(&self, root: &Location) -> FsResult<Vec<u8>> {
        use crate::inode::LinkTarget;
        if self.kind() != FileKind::Symlink {
            return Err(FsError::Invalid);
        }
        match self.inode().follow()? {
            LinkTarget::Path(target) => Ok(target),
            LinkTarget::Object(location) => Ok(location.path(root)),
        }
    }

    fn create(&self, name: &[u8], node: NewNode<'_>, permissions: CreateMode) -> FsResult<Location> {
        check_name(name)?;
        self.check_writable()?;
        if self.dentry.is_unlinked() {
            return Err(FsError::NotFound);
        }
        let _change = self.dentry.change();
        let inode = self.inode().create(name, node, permissions)?;
        Ok(Location { mount: self.mount.clone(), dentry: self.dentry.add_child(name, inode) })
    }
}

impl LastName {
    /// The name, if it is not `.`, `..` or the root's.
    fn normal(&self) -> FsResult<&[u8]> {
        match &self.name {
            Name::Normal(name) => Ok(name),
            _ => Err(FsError::Busy),
        }
    }
}

#[derive(PartialEq, Eq)]
enum Needed {
    Yes,
    No,
}

/// rename(2)'s rules that need the tree.
fn check_rename(
    from: &LastName,
    source: &Location,
    to: &LastName,
    target: Option<&Location>,
    mode: RenameMode,
) -> FsResult<Needed> {
    let source_is_directory = source.kind() == FileKind::Directory;
    if (from.trailing_slash || to.trailing_slash) && !source_is_directory {
        return Err(FsError::NotDirectory);
    }
    if source.dentry.is_same_or_above(&to.directory.dentry) {
        return Err(FsError::Invalid);
    }
    let elsewhere = |location: &Location| !Arc::ptr_eq(&location.mount, &from.directory.mount);
    if elsewhere(source) || target.is_some_and(elsewhere) {
        return Err(FsError::Busy);
    }
    let Some(target) = target else {
        return if mode == RenameMode::Exchange { Err(FsError::NotFound) } else { Ok(Needed::Yes) };
    };
    match mode {
        RenameMode::NoReplace => return Err(FsError::Exists),
        RenameMode::Exchange if target.dentry.is_same_or_above(&from.directory.dentry) => {
            return Err(FsError::Invalid);
        }
        RenameMode::Exchange => return Ok(Needed::Yes),
        RenameMode::Replace => {}
    }
    if target.dentry.is_same_or_above(&from.directory.dentry) {
        return Err(FsError::NotEmpty);
    }
    // Two names of one file: nothing happens, both stay.
    if Arc::ptr_eq(source.inode(), target.inode()) {
        return Ok(Needed::No);
    }
    match (source_is_directory, target.kind() == FileKind::Directory) {
        (true, false) => Err(FsError::NotDirectory),
        (false, true) => Err(FsError::IsDirectory),
        _ => Ok(Needed::Yes),
    }
}

fn open_temporary(directory: &Location, flags: OpenFlags, permissions: CreateMode) -> FsResult<Arc<OpenFile>> {
    if directory.kind() != FileKind::Directory {
        return Err(FsError::NotDirectory);
    }
    if !flags.writes() {
        return Err(FsError::Invalid);
    }
    directory.check_writable()?;
    let inode = directory.inode().create_unnamed(permissions)?;
    let location =
        Location { mount: directory.mount.clone(), dentry: super::dentry::Dentry::unnamed(inode, b"/#temporary") };
    location.open(flags - (OpenFlags::DIRECTORY | OpenFlags::TRUNCATE))
}

fn check_name(name: &[u8]) -> FsResult<()> {
    if name.len() > logic::path::NAME_MAX { Err(FsError::NameTooLong) } else { Ok(()) }
}

fn reached_object(reached: Reached) -> FsResult<Location> {
    match reached {
        Reached::Object(location) => Ok(location),
        Reached::Name(_) => Err(FsError::Invalid),
    }
}

fn reached_name(reached: Reached) -> FsResult<LastName> {
    match reached {
        Reached::Name(last) => Ok(last),
        Reached::Object(_) => Err(FsError::Invalid),
    }
}
