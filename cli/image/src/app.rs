//! Applications: a jar on top of a JDK, checked before anything is built.
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use zip::{ZipArchive, result::ZipError};

use crate::{
    jdk::{Jdk, JdkError},
    tree::Tree,
};

/// The guest's first program, in the image.
pub const JVM_HOST: &str = "/usr/lib/demitasse/jvm-host";
const JVM_HOST_CONFIG: &str = "/etc/demitasse/jvm-host.conf";
/// Folder of the jar, and the application's working directory.
pub const APP_FOLDER: &str = "/app";

#[derive(Debug, thiserror::Error)]
pub enum JarError {
    #[error("{0:?}: no such file")]
    Missing(PathBuf),
    #[error("{0:?} is a folder, not a jar")]
    Folder(PathBuf),
    #[error("{path:?} cannot be read: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path:?} is no jar: {reason}")]
    NotAJar { path: PathBuf, reason: String },
    #[error("{0:?} has no Main-Class in its manifest")]
    NoMainClass(PathBuf),
}

impl JarError {
    /// What the user can do about it, in one line.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Folder(_) => "give the path of a jar that `java -jar` runs",
            Self::Unreadable { .. } => "check the file's permissions",
            Self::NotAJar { .. } => "the file is damaged, cut off, or something else: build or download it again",
            Self::NoMainClass(_) => "build the jar with a main class, such as by `jar --create --main-class NAME …`",
        }
    }
}

/// A jar that has a main class.
#[derive(Clone, Debug)]
pub struct Jar {
    path: PathBuf,
    name: String,
}

impl Jar {
    pub fn open(path: &Path) -> Result<Self, JarError> {
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => JarError::Missing(path.into()),
            _ => JarError::Unreadable { path: path.into(), source },
        };
        // Before it is opened: that would wait for a FIFO's writer.
        let kind = fs::metadata(path).map_err(unreadable)?.file_type();
        if kind.is_dir() {
            return Err(JarError::Folder(path.into()));
        }
        if !kind.is_file() {
            return Err(JarError::NotAJar { path: path.into(), reason: "it is no file".to_string() });
        }
        let file = File::open(path).map_err(unreadable)?;
        let not_a_jar = |error: ZipError| JarError::NotAJar { path: path.into(), reason: error.to_string() };
        let mut archive = ZipArchive::new(file).map_err(not_a_jar)?;
        let mut manifest = Vec::new();
        match archive.by_name("META-INF/MANIFEST.MF") {
            // A manifest is small; a longer one is cut, and then has its main section in any case.
            Ok(entry) => entry.take(1 << 20).read_to_end(&mut manifest).map_err(unreadable)?,
            Err(ZipError::FileNotFound) => return Err(JarError::NoMainClass(path.into())),
            Err(error) => return Err(not_a_jar(error)),
        };
        if !has_main_class(&String::from_utf8_lossy(&manifest)) {
            return Err(JarError::NoMainClass(path.into()));
        }
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or("app.jar").to_string();
        Ok(Self { path: path.into(), name })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// True if the manifest's main section (up to the first empty line) names a main class.
fn has_main_class(manifest: &str) -> bool {
    manifest.lines().take_while(|line| !line.trim().is_empty()).any(|line| {
        line.split_once(':')
            .is_some_and(|(name, value)| name.eq_ignore_ascii_case("Main-Class") && !value.trim().is_empty())
    })
}

/// The files of a machine that runs `jar` on `jdk`. `jvm_args` are options as before `-jar`.
pub fn tree(jar: &Jar, jdk: &Jdk, jvm_host: &Path, jvm_args: &[String]) -> Result<Tree, JdkError> {
    let mut tree = jdk.tree()?;
    let jar_in_image = format!("{APP_FOLDER}/{}", jar.name);
    tree.add_file(&jar_in_image, &jar.path, 0o644)?;
    tree.add_file(JVM_HOST, jvm_host, 0o755)?;
    let config = serde_json::json!({ "jar": jar_in_image, "java_home": jdk.java_home, "jvm_args": jvm_args });
    tree.add_bytes(JVM_HOST_CONFIG, format!("{config}\n"), 0o644)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::write::{SimpleFileOptions, ZipWriter};

    fn jar(folder: &Path, manifest: &str) -> PathBuf {
        let path = folder.join("app.jar");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        zip.start_file("META-INF/MANIFEST.MF", SimpleFileOptions::default()).unwrap();
        zip.write_all(manifest.as_bytes()).unwrap();
        zip.finish().unwrap();
        path
    }

    #[test]
    fn each_kind_of_bad_jar_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let good = jar(folder.path(), "Manifest-Version: 1.0\r\nMain-Class: Hello\r\n\r\n");
        assert!(Jar::open(&good).is_ok());
        let cut = folder.path().join("cut.jar");
        let bytes = fs::read(&good).unwrap();
        fs::write(&cut, &bytes[..bytes.len() - 30]).unwrap();
        assert!(matches!(Jar::open(&cut), Err(JarError::NotAJar { .. })));
        fs::write(&cut, "plain text").unwrap();
        assert!(matches!(Jar::open(&cut), Err(JarError::NotAJar { .. })));
        assert!(matches!(Jar::open(Path::new("/no/such.jar")), Err(JarError::Missing(_))));
        assert!(matches!(Jar::open(folder.path()), Err(JarError::Folder(_))));
        let bad = jar(folder.path(), "Manifest-Version: 1.0\n\nName: x\nMain-Class: InASection\n");
        assert!(matches!(Jar::open(&bad), Err(JarError::NoMainClass(_))));
    }
}
