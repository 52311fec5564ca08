//! A file tree in memory: what an image will hold, before it is written.
//!
//! Content comes from host files (read when the image is written) or from bytes in memory. Owners
//! are root and times are fixed when written, so equal trees give equal images.
use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use crate::cache::Fingerprint;

/// Symbolic links followed in one path, as on Linux.
const MAX_LINKS: usize = 40;
/// Longest file name, as on Linux and in EROFS.
const MAX_NAME_BYTES: usize = 255;

pub(crate) type NodeId = usize;
pub(crate) const ROOT: NodeId = 0;

/// Where a file's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Host { path: PathBuf, len: u64 },
    Bytes(Vec<u8>),
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Host { len, .. } => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Dir(BTreeMap<Vec<u8>, NodeId>),
    File(Content),
    Symlink(Vec<u8>),
    /// Character or block device, by the type bits in the mode.
    Device {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

/// One inode; hard links are several directory entries of one node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Type and permission bits as in `st_mode`.
    pub(crate) mode: u32,
}

/// `st_mode` type bits, see inode(7).
pub(crate) mod file_type {
    pub(crate) const FIFO: u32 = 0o010_000;
    pub(crate) const CHAR: u32 = 0o020_000;
    pub(crate) const DIR: u32 = 0o040_000;
    pub(crate) const BLOCK: u32 = 0o060_000;
    pub(crate) const REGULAR: u32 = 0o100_000;
    pub(crate) const SYMLINK: u32 = 0o120_000;
    pub(crate) const SOCKET: u32 = 0o140_000;
    pub(crate) const MASK: u32 = 0o170_000;
}

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{path:?} cannot be read: {source}")]
    Host { path: PathBuf, source: io::Error },
    #[error("{0:?} in the image: not a directory")]
    NotADirectory(PathBuf),
    #[error("{0:?} in the image: is a directory")]
    IsADirectory(PathBuf),
    #[error("{0:?} in the image: too many levels of symbolic links")]
    TooManyLinks(PathBuf),
    #[error("{0:?} in the image: no such file")]
    Missing(PathBuf),
    #[error("{0:?}: no file name, or one longer than 255 bytes")]
    BadName(PathBuf),
}

/// The files of an image. Paths are absolute; parents are made as needed (mode 755), and symbolic
/// links in a parent are followed within the tree. Adding a file replaces what was there.
#[derive(Clone, Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    pub fn new() -> Self {
        Self { nodes: vec![directory(0o755)] }
    }

    /// Makes a directory, or sets the mode of one that is there.
    pub fn add_dir(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<(), TreeError> {
        let id = self.directory_at(path.as_ref())?;
        self.nodes[id].mode = file_type::DIR | (mode & 0o7777);
        Ok(())
    }

    pub fn add_bytes(&mut self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>, mode: u32) -> Result<(), TreeError> {
        let kind = Kind::File(Content::Bytes(bytes.into()));
        self.insert(path.as_ref(), Node { kind, mode: file_type::REGULAR | (mode & 0o7777) }).map(drop)
    }

    /// A host file's content, read when the image is written; symbolic links are followed.
    pub fn add_file(&mut self, path: impl AsRef<Path>, host: impl AsRef<Path>, mode: u32) -> Result<(), TreeError> {
        let host = host.as_ref();
        let meta = fs::metadata(host).map_err(|source| TreeError::Host { path: host.into(), source })?;
        let content = Content::Host { path: host.to_path_buf(), len: meta.len() };
        let mode = file_type::REGULAR | (mode & 0o7777);
        self.insert(path.as_ref(), Node { kind: Kind::File(content), mode }).map(drop)
    }

    pub fn add_symlink(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<(), TreeError> {
        let target = target.as_ref().as_os_str().as_bytes().to_vec();
        self.insert(path.as_ref(), Node { kind: Kind::Symlink(target), mode: file_type::SYMLINK | 0o777 }).map(drop)
    }

    /// `mode` includes the type: character or block.
    pub fn add_device(&mut self, path: impl AsRef<Path>, mode: u32, major: u32, minor: u32) -> Result<(), TreeError> {
        self.insert(path.as_ref(), Node { kind: Kind::Device { major, minor }, mode }).map(drop)
    }

    /// A second name for the file at `existing`.
    pub fn add_hard_link(&mut self, path: impl AsRef<Path>, existing: impl AsRef<Path>) -> Result<(), TreeError> {
        let (path, existing) = (path.as_ref(), existing.as_ref());
        let target = self.find(existing).ok_or_else(|| TreeError::Missing(existing.into()))?;
        if matches!(self.nodes[target].kind, Kind::Dir(_)) {
            return Err(TreeError::IsADirectory(existing.into()));
        }
        self.link(path, target)
    }

    /// Copies a host folder's content to `at`. `keep` decides on each path, relative to `host`; a
    /// folder that is refused is not entered. Hard links within the folder stay such.
    pub fn add_host_tree(
        &mut self,
        at: impl AsRef<Path>,
        host: impl AsRef<Path>,
        keep: &dyn Fn(&Path) -> bool,
    ) -> Result<(), TreeError> {
        let host = host.as_ref();
        let meta = fs::symlink_metadata(host).map_err(|source| TreeError::Host { path: host.into(), source })?;
        self.add_dir(at.as_ref(), meta.mode())?;
        let mut copy = HostCopy { host, at: at.as_ref(), keep, linked: HashMap::new() };
        copy.folder(self, Path::new(""))
    }

    /// True if there is anything at the path (symbolic links followed in parents only).
    pub fn contains(&self, path: impl AsRef<Path>) -> bool {
        self.find(path.as_ref()).is_some()
    }

    /// Takes a file or a whole directory out. Nothing happens if it is not there.
    pub fn remove(&mut self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
        if let Some(parent) = self.find_dir(parent)
            && let Kind::Dir(entries) = &mut self.nodes[parent].kind
        {
            entries.remove(name.as_bytes());
        }
    }

    /// Bytes of all files' content, hard links counted once.
    pub fn file_bytes(&self) -> u64 {
        (0..self.nodes.len()).filter_map(|id| self.content(id)).map(Content::len).sum()
    }

    /// A name for this tree: changes with any path, mode or content. Host files count by length,
    /// times and inode, as in git's index: reading them all at each run would be slow.
    pub fn fingerprint(&self) -> Result<Fingerprint, TreeError> {
        self.add_to_print(Fingerprint::new("tree 1"), ROOT)
    }

    fn add_to_print(&self, mut print: Fingerprint, id: NodeId) -> Result<Fingerprint, TreeError> {
        let node = &self.nodes[id];
        print = print.part(&node.mode.to_le_bytes());
        match &node.kind {
            Kind::Dir(entries) => {
                print = print.part(&entries.len().to_le_bytes());
                for (name, &child) in entries {
                    print = self.add_to_print(print.part(name), child)?;
                }
            }
            Kind::File(Content::Bytes(bytes)) => print = print.part(bytes),
            Kind::File(Content::Host { path, .. }) => {
                let meta = fs::metadata(path).map_err(|source| TreeError::Host { path: path.clone(), source })?;
                let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
                for word in times.map(|time| time as u64).into_iter().chain([meta.len(), meta.ino(), meta.dev()]) {
                    print = print.part(&word.to_le_bytes());
                }
            }
            Kind::Symlink(target) => print = print.part(target),
            Kind::Device { major, minor } => print = print.part(&major.to_le_bytes()).part(&minor.to_le_bytes()),
            Kind::Fifo | Kind::Socket => {}
        }
        Ok(print)
    }

    pub(crate) fn content(&self, id: NodeId) -> Option<&Content> {
        match &self.nodes[id].kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }

    fn insert(&mut self, path: &Path, node: Node) -> Result<NodeId, TreeError> {
        let id = self.nodes.len();
        self.nodes.push(node);
        self.link(path, id)?;
        Ok(id)
    }

    fn link(&mut self, path: &Path, target: NodeId) -> Result<(), TreeError> {
        let bad_name = || TreeError::BadName(path.into());
        let (parent, name) = (path.parent().ok_or_else(bad_name)?, path.file_name().ok_or_else(bad_name)?);
        if name.len() > MAX_NAME_BYTES {
            return Err(bad_name());
        }
        let parent = self.directory_at(parent)?;
        let old = self.entries(parent).get(name.as_bytes()).copied();
        if old.is_some_and(|old| matches!(self.nodes[old].kind, Kind::Dir(_))) {
            return Err(TreeError::IsADirectory(path.into()));
        }
        if let Kind::Dir(entries) = &mut self.nodes[parent].kind {
            entries.insert(name.as_bytes().to_vec(), target);
        }
        Ok(())
    }

    /// The directory at `path`, made if missing.
    fn directory_at(&mut self, path: &Path) -> Result<NodeId, TreeError> {
        let mut walk = Walk::new(path);
        while let Some(name) = self.advance(&mut walk)? {
            let id = self.nodes.len();
            self.nodes.push(directory(0o755));
            if let Kind::Dir(entries) = &mut self.nodes[walk.here()].kind {
                entries.insert(name, id);
            }
            walk.above.push(id);
        }
        Ok(walk.here())
    }

    /// Walks on until the path ends (`None`) or a name is not there (which is then used up).
    fn advance(&self, walk: &mut Walk<'_>) -> Result<Option<Vec<u8>>, TreeError> {
        while let Some(name) = walk.left.pop() {
            match name.as_slice() {
                b"" | b"." => {}
                b".." if walk.above.len() > 1 => drop(walk.above.pop()),
                b".." => {}
                _ => match self.entries(walk.here()).get(&name).map(|id| (*id, &self.nodes[*id].kind)) {
                    None => return Ok(Some(name)),
                    Some((id, Kind::Dir(_))) => walk.above.push(id),
                    Some((_, Kind::Symlink(target))) => walk.follow(target)?,
                    Some(_) => return Err(TreeError::NotADirectory(walk.path.into())),
                },
            }
        }
        Ok(None)
    }

    fn entries(&self, id: NodeId) -> &BTreeMap<Vec<u8>, NodeId> {
        static NONE: BTreeMap<Vec<u8>, NodeId> = BTreeMap::new();
        match &self.nodes[id].kind {
            Kind::Dir(entries) => entries,
            _ => &NONE,
        }
    }

    fn find(&self, path: &Path) -> Option<NodeId> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => self.entries(self.find_dir(parent)?).get(name.as_bytes()).copied(),
            _ => Some(ROOT),
        }
    }

    fn find_dir(&self, path: &Path) -> Option<NodeId> {
        let mut walk = Walk::new(path);
        match self.advance(&mut walk) {
            Ok(None) => Some(walk.here()),
            _ => None,
        }
    }
}

/// A walk along a path, as path_resolution(7) has it.
struct Walk<'a> {
    path: &'a Path,
    /// The directories passed, from the root to where the walk is.
    above: Vec<NodeId>,
    /// The names still to go, the next one last.
    left: Vec<Vec<u8>>,
    links_left: usize,
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path) -> Self {
        let mut walk = Self { path, above: vec![ROOT], left: Vec::new(), links_left: MAX_LINKS };
        walk.push_names(path.as_os_str().as_bytes());
        walk
    }

    fn here(&self) -> NodeId {
        self.above.last().copied().unwrap_or(ROOT)
    }

    fn follow(&mut self, target: &[u8]) -> Result<(), TreeError> {
        self.links_left = self.links_left.checked_sub(1).ok_or_else(|| TreeError::TooManyLinks(self.path.into()))?;
        if target.starts_with(b"/") {
            self.above.truncate(1);
        }
        self.push_names(target);
        Ok(())
    }

    fn push_names(&mut self, path: &[u8]) {
        self.left.extend(path.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec));
    }
}

fn directory(mode: u32) -> Node {
    Node { kind: Kind::Dir(BTreeMap::new()), mode: file_type::DIR | (mode & 0o7777) }
}

/// One walk over a host folder.
struct HostCopy<'a> {
    host: &'a Path,
    at: &'a Path,
    keep: &'a dyn Fn(&Path) -> bool,
    /// (device, inode) of files with several names, and the node each became.
    linked: HashMap<(u64, u64), NodeId>,
}

impl HostCopy<'_> {
    fn folder(&mut self, tree: &mut Tree, relative: &Path) -> Result<(), TreeError> {
        let folder = self.host.join(relative);
        let failed = |source| TreeError::Host { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let relative = relative.join(entry.map_err(failed)?.file_name());
            if (self.keep)(&relative) {
                self.entry(tree, &relative)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, tree: &mut Tree, relative: &Path) -> Result<(), TreeError> {
        let (path, at) = (self.host.join(relative), self.at.join(relative));
        let failed = |source| TreeError::Host { path: path.clone(), source };
        let meta = fs::symlink_metadata(&path).map_err(failed)?;
        let mode = meta.mode();
        let kind = match mode & file_type::MASK {
            file_type::DIR => {
                tree.add_dir(&at, mode)?;
                return self.folder(tree, relative);
            }
            file_type::REGULAR => Kind::File(Content::Host { path: path.clone(), len: meta.len() }),
            file_type::SYMLINK => Kind::Symlink(fs::read_link(&path).map_err(failed)?.as_os_str().as_bytes().to_vec()),
            file_type::CHAR | file_type::BLOCK => {
                Kind::Device { major: rustix::fs::major(meta.rdev()), minor: rustix::fs::minor(meta.rdev()) }
            }
            file_type::FIFO => Kind::Fifo,
            _ => Kind::Socket,
        };
        let identity = (meta.dev(), meta.ino());
        if let Some(&target) = self.linked.get(&identity) {
            return tree.link(&at, target);
        }
        let id = tree.insert(&at, Node { kind, mode })?;
        if meta.nlink() > 1 {
            self.linked.insert(identity, id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_through_links_lead_where_they_point() {
        let mut tree = Tree::new();
        tree.add_symlink("/lib", "usr/lib").unwrap();
        tree.add_symlink("/usr/lib/up", "../share/../lib").unwrap();
        tree.add_bytes("/lib/a", "x", 0o644).unwrap();
        tree.add_bytes("/lib/up/b", "x", 0o644).unwrap();
        assert!(tree.contains("/usr/lib/a") && tree.contains("/usr/lib/b") && tree.contains("/lib/b"));
        assert!(!tree.contains("/lib/c") && !tree.contains("/no/such"));
    }

    #[test]
    fn impossible_paths_are_errors() {
        let mut tree = Tree::new();
        tree.add_bytes("/file", "x", 0o644).unwrap();
        tree.add_symlink("/loop", "loop").unwrap();
        assert!(matches!(tree.add_bytes("/file/x", "", 0o644), Err(TreeError::NotADirectory(_))));
        assert!(matches!(tree.add_bytes("/loop/x", "", 0o644), Err(TreeError::TooManyLinks(_))));
        tree.add_dir("/dir", 0o755).unwrap();
        assert!(matches!(tree.add_bytes("/dir", "", 0o644), Err(TreeError::IsADirectory(_))));
        assert!(matches!(tree.add_hard_link("/x", "/none"), Err(TreeError::Missing(_))));
        assert!(matches!(tree.add_bytes("/", "", 0o644), Err(TreeError::BadName(_))));
    }

    #[test]
    fn the_fingerprint_sees_each_change() {
        let folder = tempfile::tempdir().unwrap();
        let host = folder.path().join("file");
        fs::write(&host, "one").unwrap();
        let name = |mode| {
            let mut tree = Tree::new();
            tree.add_file("/file", &host, mode).unwrap();
            tree.add_symlink("/link", "file").unwrap();
            tree.fingerprint().unwrap().name()
        };
        let first = name(0o644);
        assert_eq!(first, name(0o644));
        assert_ne!(first, name(0o755));
        fs::write(&host, "three").unwrap();
        assert_ne!(first, name(0o644));
    }

    #[test]
    fn removed_files_are_gone() {
        let mut tree = Tree::new();
        tree.add_bytes("/a/b/c", "x", 0o644).unwrap();
        tree.remove("/a/b");
        tree.remove("/nothing/here");
        assert!(tree.contains("/a") && !tree.contains("/a/b/c"));
    }
}
