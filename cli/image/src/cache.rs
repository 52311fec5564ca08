//! The cache folder: fetched JDKs and built images, each complete or not there at all.
//!
//! `$DEMITASSE_CACHE`, else `$XDG_CACHE_HOME/demitasse`, else `~/.cache/demitasse`. Anything in it
//! may be deleted at any time when no command runs.
use std::{
    env,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest, Sha256};

use crate::{erofs, progress::Progress};

pub struct Cache {
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("there is no home folder to keep a cache in")]
    NoHome,
    #[error("{path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Held while something is made, so that two commands do not make it at once. Released on drop.
pub struct CacheLock {
    _file: File,
}

impl Cache {
    /// The user's cache, made if it is not there.
    pub fn open() -> Result<Self, CacheError> {
        let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = folder("DEMITASSE_CACHE")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("demitasse")))
            .or_else(|| folder("HOME").map(|home| home.join(".cache/demitasse")))
            .ok_or(CacheError::NoHome)?;
        Self::at(root)
    }

    pub fn at(root: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(|source| CacheError::Io { path: root.clone(), source })?;
        // The paths are handed to tools that change their working directory.
        let root = root.canonicalize().map_err(|source| CacheError::Io { path: root, source })?;
        Ok(Self { root })
    }

    /// A folder within the cache, made if it is not there.
    pub fn folder(&self, name: &str) -> Result<PathBuf, CacheError> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(|source| CacheError::Io { path: path.clone(), source })?;
        Ok(path)
    }

    /// Waits until no other command holds the lock of this name.
    pub fn lock(&self, name: &str, progress: &dyn Progress) -> Result<CacheLock, CacheError> {
        let path = self.folder("locks")?.join(name);
        let lock = || -> io::Result<File> {
            let file = File::create(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    progress.begin("waiting for another command", 0);
                    file.lock()?;
                    progress.end();
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            Ok(file)
        };
        lock().map(|file| CacheLock { _file: file }).map_err(|source| CacheError::Io { path: path.clone(), source })
    }

    /// Opens a file that [`Cache::trim`] then leaves alone, as long as the result is open. `None`: it is
    /// not there.
    pub fn hold(&self, path: &Path) -> io::Result<Option<File>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // Where files cannot be locked, whoever trims finds it just used.
        let _ = file.lock_shared();
        // Its turn may have come before the lock.
        let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let still =
            fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|own| identity(own) == identity(there)));
        Ok(still.then_some(file))
    }

    /// Deletes the least recently used files of a folder until at most `limit_bytes` remain, but none that
    /// is held, nor what is still being made.
    pub fn trim(&self, folder: &Path, limit_bytes: u64) -> io::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(erofs::UNFINISHED) {
                continue;
            }
            // Another command may have deleted it meanwhile.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_file() {
                files.push((meta.modified()?, meta.len(), entry.path()));
            }
        }
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        files.sort();
        for (_, len, path) in files {
            if total <= limit_bytes {
                break;
            }
            let Ok(file) = File::open(&path) else { continue };
            if !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && fs::remove_file(&path).is_ok() {
                total -= len;
            }
        }
        Ok(())
    }

    /// Deletes what a command that was killed left half made in a folder: what begins with `prefix`. Under
    /// the lock that is held while such a thing is made.
    pub fn remove_leftovers(&self, folder: &Path, prefix: &str) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(prefix) {
                continue;
            }
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
        Ok(())
    }
}

/// A name for something by what it is made of. Parts are kept apart, so no two lists collide.
#[derive(Clone)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// `format` changes whenever the same parts shall give another result.
    pub fn new(format: &str) -> Self {
        Self(Sha256::new()).part(format.as_bytes())
    }

    pub fn part(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The content of a host file.
    pub fn file(mut self, path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut content = Sha256::new();
        io::copy(&mut file, &mut HashWriter(&mut content))?;
        self.0.update(content.finalize());
        Ok(self)
    }

    /// 32 hexadecimal digits.
    pub fn name(self) -> String {
        self.0.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_kept_apart() {
        let name = |parts: &[&str]| parts.iter().fold(Fingerprint::new("1"), |f, part| f.part(part.as_bytes())).name();
        assert_ne!(name(&["ab", "c"]), name(&["a", "bc"]));
        assert_eq!(name(&["ab", "c"]), name(&["ab", "c"]));
        assert_eq!(name(&[]).len(), 32);
    }

    #[test]
    fn the_oldest_files_go_first_and_one_in_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let images = cache.folder("images").unwrap();
        for (age, name) in [(30, "old"), (20, "middle"), (10, "new")] {
            fs::write(images.join(name), [0; 100]).unwrap();
            let time = SystemTime::now() - std::time::Duration::from_secs(age);
            File::open(images.join(name)).unwrap().set_modified(time).unwrap();
        }
        let held = cache.hold(&images.join("old")).unwrap().unwrap();
        assert!(cache.hold(&images.join("none")).unwrap().is_none());
        let unfinished = images.join(format!("{}image", erofs::UNFINISHED));
        fs::write(&unfinished, [0; 1000]).unwrap();
        cache.trim(&images, 250).unwrap();
        assert!(images.join("old").exists() && !images.join("middle").exists() && images.join("new").exists());
        drop(held);
        cache.trim(&images, 150).unwrap();
        assert!(!images.join("old").exists() && images.join("new").exists() && unfinished.exists());
    }

    #[test]
    fn what_was_left_half_made_goes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        fs::create_dir_all(folder.path().join(".making-17-a/root")).unwrap();
        fs::write(folder.path().join(".making-17-b"), "").unwrap();
        fs::write(folder.path().join("17-whole"), "").unwrap();
        cache.remove_leftovers(folder.path(), ".making-17-").unwrap();
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["17-whole"]);
    }
}
