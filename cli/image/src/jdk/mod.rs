//! JDKs: fetched from Debian once, or a folder of the user's, with the libraries they need.
//!
//! A fetched JDK is kept unpacked at `jdk/N-VERSION/root` in the cache. It is not looked up again
//! while it is there: a run needs no network, and does the same today as yesterday.

mod apt;
mod folder;
mod keystore;
mod root;
mod sources;

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{
    cache::{Cache, CacheError, Fingerprint},
    progress::Progress,
    tree::{Tree, TreeError},
};
use apt::Apt;

/// Counts up when [`root::complete`] gives another result, so that cached roots are made again.
const ROOT_FORMAT: u32 = 1;

/// Libraries and data below a JDK, from the same release: C library and its locale, C++ and
/// compression for `libjvm` and `libzip`, pictures for a headless `java.desktop`, certificates.
const BASE_PACKAGES: [&str; 8] =
    ["libc6", "libc-bin", "libgcc-s1", "libstdc++6", "zlib1g", "liblcms2-2", "libjpeg62-turbo", "ca-certificates"];

/// Which JDK the user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A major version: 17, 21 or 25.
    Version(u32),
    /// An unpacked JDK or JRE.
    Folder(PathBuf),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(version) if debian_release(version).is_some() => Ok(Self::Version(version)),
            Ok(version) => Err(format!("no JDK {version} here: 17, 21, 25 or the folder of a JDK")),
            Err(_) => Ok(Self::Folder(text.into())),
        }
    }
}

/// The Debian release that has this version.
fn debian_release(version: u32) -> Option<&'static str> {
    match version {
        17 => Some("bookworm"),
        21 | 25 => Some(NEWEST_RELEASE),
        _ => None,
    }
}

/// Its C library also serves JDKs that were built against older ones.
const NEWEST_RELEASE: &str = "trixie";

/// A JDK that is there, ready to go into an image.
#[derive(Clone, Debug)]
pub struct Jdk {
    /// Changes whenever the JDK or its libraries do.
    pub id: String,
    /// As the JDK's `release` file says, such as `21.0.13`.
    pub version: String,
    /// Absolute path in the image.
    pub java_home: String,
    /// Base root, in which the JDK is too if it was fetched.
    root: PathBuf,
    /// The user's JDK folder.
    folder: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum JdkError {
    #[error("{path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{tool} cannot be run: {source}")]
    ToolMissing { tool: &'static str, source: io::Error },
    #[error("/etc/apt names no Debian archive to fetch from")]
    NoDebianSources,
    #[error("apt-get {command}: {message}")]
    Apt { command: String, message: String },
    #[error("{0:?} cannot be unpacked")]
    Unpack(PathBuf),
    #[error("the fetched packages hold no JDK")]
    NoJdk,
    #[error("{path:?} is no JDK for x86-64 Linux with glibc: {reason}")]
    BadFolder { path: PathBuf, reason: String },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

const MORE_SPACE: &str = "free some space, or set DEMITASSE_CACHE to a folder on another disk";

impl JdkError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// What the user can do about it, in one line.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => MORE_SPACE,
            Self::Apt { message, .. } if message.contains("No space left") => MORE_SPACE,
            Self::NoDebianSources | Self::ToolMissing { .. } => {
                "fetching needs a Debian machine with apt-get, dpkg-deb and tar; elsewhere give a JDK's folder: --jdk DIR"
            }
            Self::Apt { .. } => "check the network and the mirror in /etc/apt, or give a JDK's folder: --jdk DIR",
            Self::BadFolder { .. } => {
                "give the folder that holds `release` and `lib/server/libjvm.so`, or --jdk 17, 21 or 25"
            }
            _ => "delete the cache folder and try again",
        }
    }
}

impl Jdk {
    /// Finds the JDK in the cache, or fetches it.
    pub fn obtain(wanted: &Wanted, cache: &Cache, progress: &dyn Progress) -> Result<Self, JdkError> {
        match wanted {
            Wanted::Version(version) => Self::fetched(*version, cache, progress),
            Wanted::Folder(path) => {
                let release = folder::check(path)?;
                let root = obtain_root("base", NEWEST_RELEASE, &BASE_PACKAGES, cache, progress)?;
                let id = format!("{}-{}", folder::fingerprint(path)?, root_id(&root));
                Ok(Self {
                    id,
                    version: release.version,
                    java_home: folder::JAVA_HOME.to_string(),
                    root: root.join("root"),
                    folder: Some(path.clone()),
                })
            }
        }
    }

    fn fetched(version: u32, cache: &Cache, progress: &dyn Progress) -> Result<Self, JdkError> {
        let jre = format!("openjdk-{version}-jre-headless");
        let mut packages = vec![jre.as_str()];
        packages.extend(BASE_PACKAGES);
        let release = debian_release(version).ok_or(JdkError::NoJdk)?;
        let kept = obtain_root(&version.to_string(), release, &packages, cache, progress)?;
        let root = kept.join("root");
        let home = fs::read_to_string(kept.join("java-home")).map_err(JdkError::io(&kept))?;
        let release = folder::check(&root.join(home.trim_start_matches('/')))?;
        Ok(Self { id: root_id(&kept), version: release.version, java_home: home, root, folder: None })
    }

    /// The files of an image with this JDK and nothing else.
    pub fn tree(&self) -> Result<Tree, JdkError> {
        let mut tree = Tree::new();
        tree.add_host_tree("/", &self.root, &|_| true)?;
        tree.add_dir("/", 0o755)?;
        tree.add_dir("/tmp", 0o1777)?;
        tree.add_dir("/var/tmp", 0o1777)?;
        tree.add_dir("/root", 0o700)?;
        if let Some(path) = &self.folder {
            folder::add(&mut tree, path)?;
        }
        Ok(tree)
    }
}

fn root_id(kept: &Path) -> String {
    kept.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A completed root of these packages, named after `label` and the first package's version.
fn obtain_root(
    label: &str,
    release: &str,
    packages: &[&str],
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<PathBuf, JdkError> {
    let jdks = cache.folder("jdk")?;
    if let Some(kept) = find_root(&jdks, label)? {
        return Ok(kept);
    }
    let _lock = cache.lock(&format!("jdk-{label}"), progress)?;
    if let Some(kept) = find_root(&jdks, label)? {
        return Ok(kept);
    }
    progress.begin(&format!("reading Debian {release}'s package lists"), 0);
    let apt = Apt::open(&cache.folder(&format!("apt/{release}"))?, release)?;
    let offers = apt.offers(packages)?;
    progress.end();
    let version = offers.iter().find(|offer| offer.package == packages[0]).ok_or(JdkError::NoJdk)?.version.clone();
    let making = format!(".making-{label}-");
    cache.remove_leftovers(&jdks, &making).map_err(JdkError::io(&jdks))?;
    let making = tempfile::Builder::new().prefix(&making).tempdir_in(&jdks).map_err(JdkError::io(&jdks))?;
    let (downloads, root) = (making.path().join("packages"), making.path().join("root"));
    for folder in [&downloads, &root] {
        fs::create_dir(folder).map_err(JdkError::io(folder))?;
    }
    apt.download(&offers, &downloads, progress)?;
    progress.begin("unpacking", 0);
    root::prepare(&root).map_err(JdkError::io(&root))?;
    for entry in fs::read_dir(&downloads).map_err(JdkError::io(&downloads))? {
        root::unpack(&entry.map_err(JdkError::io(&downloads))?.path(), &root)?;
    }
    let home = root::complete(&root)?.map(|home| Path::new("/").join(home)).unwrap_or_default();
    let keep = jdks.join(format!("{label}-{version}"));
    let finish = || -> io::Result<()> {
        fs::remove_dir_all(&downloads)?;
        fs::write(making.path().join("java-home"), home.as_os_str().as_encoded_bytes())?;
        fs::write(making.path().join("format"), ROOT_FORMAT.to_string())?;
        if keep.exists() {
            fs::remove_dir_all(&keep)?;
        }
        fs::rename(making.keep(), &keep)
    };
    finish().map_err(JdkError::io(&jdks))?;
    progress.end();
    Ok(keep)
}

/// The newest kept root for `label` that is of this program's format.
fn find_root(jdks: &Path, label: &str) -> Result<Option<PathBuf>, JdkError> {
    let prefix = format!("{label}-");
    let mut found = None;
    for entry in fs::read_dir(jdks).map_err(JdkError::io(jdks))? {
        let entry = entry.map_err(JdkError::io(jdks))?;
        let path = entry.path();
        let current = fs::read_to_string(path.join("format")).is_ok_and(|format| format == ROOT_FORMAT.to_string());
        if !entry.file_name().to_string_lossy().starts_with(&prefix) || !current {
            continue;
        }
        let made = entry.metadata().and_then(|meta| meta.modified()).map_err(JdkError::io(jdks))?;
        if found.as_ref().is_none_or(|(time, _)| *time < made) {
            found = Some((made, path));
        }
    }
    Ok(found.map(|(_, path)| path))
}

/// Names an image by JDK and whatever else is in it.
pub fn fingerprint(jdk: &Jdk) -> Fingerprint {
    Fingerprint::new("jdk image 1").part(jdk.id.as_bytes()).part(&ROOT_FORMAT.to_le_bytes())
}
