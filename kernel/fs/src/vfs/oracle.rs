//! Linux as the oracle: random sequences of calls on our tree and in a folder of the host must have the
//! same results, errors included, and leave the same trees.
use std::{
    fs as host,
    io::{self, Write},
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
    string::String,
    vec::Vec,
};

use super::{Follow, Location};
use crate::{
    erofs::Erofs,
    error::{FsError, FsResult},
    file::OpenFlags,
    inode::{FileKind, RenameMode},
    io::SliceSource,
    testing::{Calls, Folder, MemDisk, erofs_image, pattern, vfs},
    tmpfs::TmpFs,
};

/// errno(3) on x86-64, as libc-shim maps them.
fn errno(error: FsError) -> i32 {
    match error {
        FsError::NotFound => 2,
        FsError::Exists => 17,
        FsError::CrossDevice => 18,
        FsError::NotDirectory => 20,
        FsError::IsDirectory => 21,
        FsError::Invalid => 22,
        FsError::NotPermitted => 1,
        FsError::Busy => 16,
        FsError::NameTooLong => 36,
        FsError::NotEmpty => 39,
        FsError::Loop => 40,
        error => panic!("unexpected {error:?}"),
    }
}

/// A small generator, so that a failure repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % sides
    }

    /// A path of up to three components out of few names, now and then odd.
    fn path(&mut self) -> String {
        const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "."];
        let mut path = String::from(NAMES[self.roll(5)]);
        for _ in 0..self.roll(3) {
            path.push('/');
            path.push_str(NAMES[self.roll(6)]);
        }
        if self.roll(20) == 0 {
            path.push('/');
        }
        path
    }
}

/// What a call gave: nothing, or bytes.
type Outcome = Result<Vec<u8>, i32>;

struct Pair {
    ours: Location,
    folder: Folder,
}

impl Pair {
    fn at(&self, path: &str) -> PathBuf {
        // A joined path would lose a trailing slash or dot.
        PathBuf::from(std::format!("{}/{path}", self.folder.0.display()))
    }

    fn step(&self, dice: &mut Dice) -> (String, Outcome, Outcome) {
        let (path, other) = (dice.path(), dice.path());
        let base = self.ours.base();
        let bytes = path.as_bytes();
        let len = dice.roll(3) * 3000 + dice.roll(100);
        let (name, ours, theirs) = match dice.roll(12) {
            0 => ("mkdir", unit(self.ours.mkdir(&path)), done(host::create_dir(self.at(&path)))),
            1 => ("rmdir", unit(base.remove_directory(bytes)), done(host::remove_dir(self.at(&path)))),
            2 => ("unlink", unit(base.unlink(bytes)), done(host::remove_file(self.at(&path)))),
            3 | 4 => {
                ("write", unit(self.ours.write(&path, &pattern(len))), done(host::write(self.at(&path), pattern(len))))
            }
            5 => ("append", unit(self.append(&path)), done(self.append_theirs(&path))),
            6 => ("read", self.ours.read(&path).map_err(errno), host::read(self.at(&path)).map_err(number)),
            7 | 8 => (
                "rename",
                unit(base.rename(bytes, &base, other.as_bytes(), RenameMode::Replace)),
                done(host::rename(self.at(&path), self.at(&other))),
            ),
            9 => ("symlink", unit(base.symlink(other.as_bytes(), bytes)), done(symlink(&other, self.at(&path)))),
            10 => ("link", unit(self.link(&path, &other)), done(host::hard_link(self.at(&path), self.at(&other)))),
            _ => ("truncate", unit(self.truncate(&path, len)), done(self.truncate_theirs(&path, len))),
        };
        (std::format!("{name} {path} {other} {len}"), ours, theirs)
    }

    fn append(&self, path: &str) -> FsResult<()> {
        let file = self.ours.open_path(path, OpenFlags::WRITE_ONLY | OpenFlags::APPEND)?;
        file.write(&mut SliceSource::new(b"appended")).map(|_| ())
    }

    fn append_theirs(&self, path: &str) -> io::Result<()> {
        host::OpenOptions::new().append(true).open(self.at(path))?.write_all(b"appended")
    }

    fn link(&self, path: &str, to: &str) -> FsResult<()> {
        let target = self.ours.base().resolve(path.as_bytes(), Follow::No)?;
        self.ours.base().link(&target, to.as_bytes())
    }

    fn truncate(&self, path: &str, len: usize) -> FsResult<()> {
        self.ours.open_path(path, OpenFlags::WRITE_ONLY)?.truncate(len as u64)
    }

    fn truncate_theirs(&self, path: &str, len: usize) -> io::Result<()> {
        host::OpenOptions::new().write(true).open(self.at(path))?.set_len(len as u64)
    }

    /// Names, kinds, links and content below a directory.
    fn compare_trees(&self, directory: &str) {
        let mut ours = self.ours.names(directory).unwrap();
        ours.sort();
        let listed = host::read_dir(self.at(directory)).unwrap();
        let mut theirs: Vec<String> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        theirs.sort();
        assert_eq!(ours, theirs, "{directory}");
        for name in ours {
            let path = std::format!("{directory}/{name}");
            let location = self.ours.base().resolve(path.as_bytes(), Follow::No).unwrap();
            let (ours, theirs) = (location.metadata().unwrap(), host::symlink_metadata(self.at(&path)).unwrap());
            assert_eq!(ours.mode() & 0o170000, theirs.mode() & 0o170000, "{path}");
            match ours.kind {
                FileKind::Directory => self.compare_trees(&path),
                FileKind::Symlink => {
                    let target = host::read_link(self.at(&path)).unwrap();
                    assert_eq!(location.read_link(&self.ours).unwrap(), target.as_os_str().as_encoded_bytes());
                }
                _ => {
                    assert_eq!((ours.size, u64::from(ours.links)), (theirs.size(), theirs.nlink()), "{path}");
                    assert!(self.ours.read(&path).unwrap() == host::read(self.at(&path)).unwrap(), "{path}");
                }
            }
        }
    }

    fn run(&self, seed: u64, steps: usize) {
        let mut dice = Dice(seed);
        for step in 0..steps {
            let (call, ours, theirs) = self.step(&mut dice);
            assert!(ours == theirs, "seed {seed}, step {step}: {call}: {:?}, Linux {:?}", short(ours), short(theirs));
            if step % 500 == 0 {
                self.ours.prune_for_test();
            }
        }
        self.compare_trees(".");
    }
}

fn unit(result: FsResult<()>) -> Outcome {
    result.map(|()| Vec::new()).map_err(errno)
}

fn done(result: io::Result<()>) -> Outcome {
    result.map(|()| Vec::new()).map_err(number)
}

fn number(error: io::Error) -> i32 {
    error.raw_os_error().unwrap()
}

fn short(outcome: Outcome) -> Result<usize, i32> {
    outcome.map(|bytes| bytes.len())
}

#[test]
fn tmpfs_behaves_like_the_host() {
    rt::host::install();
    for seed in 0..8 {
        Pair { ours: vfs(TmpFs::new(1 << 30)), folder: Folder::new() }.run(seed, 3000);
    }
}

#[test]
fn the_copy_up_layer_behaves_like_the_host() {
    rt::host::install();
    for seed in 0..8 {
        let folder = Folder::new();
        for path in ["a/a", "a/b/c", "b/a", "b/b/a", "b/b/b", "c/d/e", "d", "e"] {
            folder.file(path, &pattern(10_000 + seed as usize));
        }
        symlink("a/b", folder.0.join("b/d")).unwrap();
        symlink("d/e", folder.0.join("c/e")).unwrap();
        host::hard_link(folder.0.join("e"), folder.0.join("c/a")).unwrap();
        let image = Erofs::open(MemDisk::new(erofs_image(&folder.0, &[]))).unwrap();
        let ours = vfs(TmpFs::over(&*image, 1 << 30).unwrap());
        Pair { ours, folder }.run(seed, 3000);
    }
}
