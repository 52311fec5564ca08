//! The cache folder: fetched JDKs and built images, each complete or not there at all.
//!
//! `$DEMITASSE_CACHE`, else `$XDG_CACHE_HOME/demitasse`, else `~/.cache/demitasse`. Anything in it
//! may be deleted at any time when no command runs.
use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest, Sha256};

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
    pub fn lock(&self, name: &str) -> Result<CacheLock, CacheError> {
        let path = self.folder("locks")?.join(name);
        let lock = || -> io::Result<File> {
            let file = File::create(&path)?;
            file.lock()?;
            Ok(file)
        };
        lock().map(|file| CacheLock { _file: file }).map_err(|source| CacheError::Io { path: path.clone(), source })
    }

    /// Deletes the least recently used files of a folder until at most `limit_bytes` remain; the
    /// file at `spare` stays.
    pub fn trim(&self, folder: &Path, limit_bytes: u64, spare: &Path) -> io::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
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
            if path != spare {
                fs::remove_file(&path)?;
                total -= len;
            }
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
    fn the_oldest_files_go_first_and_the_spared_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let images = cache.folder("images").unwrap();
        for (age, name) in [(30, "old"), (20, "middle"), (10, "new")] {
            fs::write(images.join(name), [0; 100]).unwrap();
            let time = SystemTime::now() - std::time::Duration::from_secs(age);
            File::open(images.join(name)).unwrap().set_modified(time).unwrap();
        }
        cache.trim(&images, 250, &images.join("old")).unwrap();
        assert!(images.join("old").exists() && !images.join("middle").exists() && images.join("new").exists());
    }
}
