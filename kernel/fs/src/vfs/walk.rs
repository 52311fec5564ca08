//! Path walk (path_resolution(7)).
//!
//! A walk goes component by component. A symbolic link's target is put before what is left of the
//! path; at most 40 links in one walk.
use alloc::{boxed::Box, vec::Vec};

use logic::path::{LINKS_MAX, PATH_MAX, is_absolute, is_exhausted, split_first};

use super::location::Location;
use crate::{
    error::{FsError, FsResult},
    inode::{FileKind, LinkTarget},
};

/// Whether a symbolic link in the last component is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    Yes,
    /// AT_SYMLINK_NOFOLLOW, O_NOFOLLOW, lstat. A slash behind the link follows it still.
    No,
}

/// Where a path starts: absolute ones at `root`, others at `start` (the working directory, or the
/// directory of an *at call). `..` never leads above `root`.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    pub root: &'a Location,
    pub start: &'a Location,
}

impl<'a> Base<'a> {
    pub fn new(root: &'a Location, start: &'a Location) -> Self {
        Self { root, start }
    }

    /// The object that the path names. An empty path is [`FsError::NotFound`]; AT_EMPTY_PATH is the
    /// caller's to handle.
    pub fn resolve(&self, path: &[u8], follow: Follow) -> FsResult<Location> {
        match Walk::begin(self, path)?.run(path, Goal::Object(follow))? {
            Reached::Object(location) => Ok(location),
            Reached::Name(_) => Err(FsError::Invalid),
        }
    }
}

/// What a walk is after.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Object(Follow),
    /// The directory of the last component, and its name, which need not exist.
    Name,
}

pub(super) enum Reached {
    Object(Location),
    Name(LastName),
}

pub(super) struct LastName {
    pub directory: Location,
    pub name: Name,
    /// A slash follows: it must be a directory.
    pub trailing_slash: bool,
}

/// A last component.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Normal(Box<[u8]>),
    /// `.`
    Current,
    /// `..`
    Parent,
    /// The path was `/`.
    Root,
}

pub(super) struct Walk<'a> {
    root: &'a Location,
    at: Location,
    links: usize,
}

impl<'a> Walk<'a> {
    pub fn begin(base: &Base<'a>, path: &[u8]) -> FsResult<Self> {
        if path.is_empty() {
            return Err(FsError::NotFound);
        }
        if path.len() >= PATH_MAX {
            return Err(FsError::NameTooLong);
        }
        let start = if is_absolute(path) { base.root } else { base.start };
        Ok(Self { root: base.root, at: start.clone(), links: 0 })
    }

    /// Walks `path` from where the walk is now.
    pub fn run(&mut self, path: &[u8], goal: Goal) -> FsResult<Reached> {
        // The rest of the path, once a symbolic link has been put before it.
        let mut spliced: Vec<u8>;
        let mut rest = path;
        if goal == Goal::Name && is_exhausted(rest) {
            return Ok(self.reached_name(Name::Root, true));
        }
        while let Some((name, after)) = split_first(rest) {
            if self.at.kind() != FileKind::Directory {
                return Err(FsError::NotDirectory);
            }
            let is_last = is_exhausted(after);
            let trailing_slash = is_last && !after.is_empty();
            if is_last && goal == Goal::Name {
                let name = match name {
                    b"." => Name::Current,
                    b".." => Name::Parent,
                    _ => Name::Normal(name.into()),
                };
                return Ok(self.reached_name(name, trailing_slash));
            }
            rest = after;
            match name {
                b"." => continue,
                b".." => {
                    self.go_up();
                    continue;
                }
                _ => {}
            }
            let child = self.at.child(name)?;
            let follows = !is_last || trailing_slash || goal == Goal::Object(Follow::Yes);
            if child.kind() == FileKind::Symlink && follows {
                if let Some(target) = self.follow(&child)? {
                    spliced = splice(target, rest)?;
                    rest = &spliced;
                }
            } else {
                self.at = child;
            }
        }
        // `file/` and `link-to-file/` end here.
        if !rest.is_empty() && self.at.kind() != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        Ok(Reached::Object(self.at.clone()))
    }

    /// Follows a link that was met: a magic one at once; another's target is returned to be walked,
    /// from the root if it is absolute.
    pub fn follow(&mut self, link: &Location) -> FsResult<Option<Vec<u8>>> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(FsError::Loop);
        }
        match link.inode().follow()? {
            LinkTarget::Object(location) => {
                self.at = location;
                Ok(None)
            }
            LinkTarget::Path(target) => {
                if target.is_empty() {
                    return Err(FsError::NotFound);
                }
                if is_absolute(&target) {
                    self.at = self.root.clone();
                }
                Ok(Some(target))
            }
        }
    }

    pub fn at(&self) -> &Location {
        &self.at
    }

    fn go_up(&mut self) {
        if !self.at.is_same(self.root) {
            // A mount on the parent is not entered: it would hide where we come from.
            self.at = self.at.parent();
        }
    }

    fn reached_name(&self, name: Name, trailing_slash: bool) -> Reached {
        Reached::Name(LastName { directory: self.at.clone(), name, trailing_slash })
    }
}

fn splice(mut target: Vec<u8>, rest: &[u8]) -> FsResult<Vec<u8>> {
    target.extend_from_slice(rest);
    if target.len() >= PATH_MAX { Err(FsError::NameTooLong) } else { Ok(target) }
}
