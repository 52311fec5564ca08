//! A JDK in a folder of the user's: checked, and copied into an image with all that it links to.
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::JdkError;
use crate::{
    cache::Fingerprint,
    tree::{Tree, TreeError},
};

pub(super) const JAVA_HOME: &str = "/usr/lib/jvm/jdk";

/// Needed only to build programs, or to read.
const LEFT_OUT: [&str; 8] = ["jmods", "demo", "sample", "man", "legal", "docs", "lib/src.zip", "lib/ct.sym"];

/// What a JDK says about itself.
pub(super) struct Release {
    pub version: String,
}

/// Reads the JDK's `release` file and makes sure that it can run in the guest.
pub(super) fn check(folder: &Path) -> Result<Release, JdkError> {
    let bad = |reason: String| JdkError::BadFolder { path: folder.into(), reason };
    let text = fs::read_to_string(folder.join("release")).map_err(|error| bad(format!("`release`: {error}")))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_string())
    };
    if let Some(arch) = field("OS_ARCH").filter(|arch| arch != "x86_64" && arch != "amd64") {
        return Err(bad(format!("it is for {arch}")));
    }
    if let Some(libc) = field("LIBC").filter(|libc| libc != "gnu" && libc != "default") {
        return Err(bad(format!("it is for the C library {libc}")));
    }
    if !folder.join("lib/server/libjvm.so").is_file() {
        return Err(bad("no `lib/server/libjvm.so`".to_string()));
    }
    let version = field("JAVA_VERSION").ok_or_else(|| bad("`release` has no JAVA_VERSION".to_string()))?;
    Ok(Release { version })
}

/// By the files' names, lengths and times: reading hundreds of megabytes at each run would be slow.
pub(super) fn fingerprint(folder: &Path) -> Result<String, JdkError> {
    let path = folder.canonicalize().map_err(JdkError::io(folder))?;
    let mut files = Vec::new();
    list(&path, &mut files).map_err(JdkError::io(folder))?;
    files.sort();
    let mut print = Fingerprint::new("jdk folder 1").part(path.as_os_str().as_encoded_bytes());
    for (file, len, time, inode) in files {
        print = print.part(file.as_os_str().as_encoded_bytes()).part(&len.to_le_bytes());
        print = print.part(&time.to_le_bytes()).part(&inode.to_le_bytes());
    }
    Ok(print.name())
}

fn list(folder: &Path, files: &mut Vec<(PathBuf, u64, i64, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push((entry.path(), meta.len(), meta.mtime(), meta.ino()));
        }
    }
    Ok(())
}

/// Copies the JDK to [`JAVA_HOME`]. Links that leave the folder (Debian keeps a JDK's configuration
/// below /etc) become files; those that lead nowhere are left out.
pub(super) fn add(tree: &mut Tree, folder: &Path) -> Result<(), JdkError> {
    let folder = folder.canonicalize().map_err(JdkError::io(folder))?;
    let wanted = |relative: &Path| !LEFT_OUT.iter().any(|name| relative == Path::new(name));
    tree.add_host_tree(JAVA_HOME, &folder, &wanted)?;
    follow_links(tree, &folder, Path::new(""), &wanted)
}

fn follow_links(
    tree: &mut Tree,
    folder: &Path,
    relative: &Path,
    wanted: &dyn Fn(&Path) -> bool,
) -> Result<(), JdkError> {
    let here = folder.join(relative);
    for entry in fs::read_dir(&here).map_err(JdkError::io(&here))? {
        let entry = entry.map_err(JdkError::io(&here))?;
        let (kind, relative) = (entry.file_type().map_err(JdkError::io(&here))?, relative.join(entry.file_name()));
        if !wanted(&relative) {
            continue;
        }
        if kind.is_dir() {
            follow_links(tree, folder, &relative, wanted)?;
        } else if kind.is_symlink() {
            resolve_link(tree, folder, &entry.path(), &relative)?;
        }
    }
    Ok(())
}

fn resolve_link(tree: &mut Tree, folder: &Path, link: &Path, relative: &Path) -> Result<(), JdkError> {
    let at = Path::new(JAVA_HOME).join(relative);
    match link.canonicalize() {
        Ok(target) if target.starts_with(folder) => Ok(()),
        Ok(target) => {
            let meta = fs::metadata(&target).map_err(|source| TreeError::Host { path: target.clone(), source })?;
            tree.remove(&at);
            if meta.is_dir() {
                tree.add_host_tree(&at, &target, &|_| true)?;
            } else {
                tree.add_file(&at, &target, meta.mode())?;
            }
            Ok(())
        }
        Err(_) => {
            tree.remove(&at);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn make_jdk(folder: &Path, release: &str) {
        fs::create_dir_all(folder.join("lib/server")).unwrap();
        fs::write(folder.join("lib/server/libjvm.so"), "x").unwrap();
        fs::write(folder.join("release"), release).unwrap();
    }

    #[test]
    fn links_out_of_the_folder_become_files() {
        let base = tempfile::tempdir().unwrap();
        let (jdk, etc) = (base.path().join("jdk"), base.path().join("etc"));
        make_jdk(&jdk, "JAVA_VERSION=\"21.0.1\"\nOS_ARCH=\"x86_64\"\nLIBC=\"gnu\"\n");
        fs::create_dir_all(jdk.join("jmods")).unwrap();
        fs::create_dir(&etc).unwrap();
        fs::write(etc.join("jvm.cfg"), "-server KNOWN\n").unwrap();
        symlink(etc.join("jvm.cfg"), jdk.join("lib/jvm.cfg")).unwrap();
        symlink("server/libjvm.so", jdk.join("lib/libjvm.so")).unwrap();
        symlink("/no/such/file", jdk.join("lib/dangling")).unwrap();
        assert_eq!(check(&jdk).unwrap().version, "21.0.1");
        let mut tree = Tree::new();
        add(&mut tree, &jdk).unwrap();
        assert!(tree.contains("/usr/lib/jvm/jdk/lib/libjvm.so") && !tree.contains("/usr/lib/jvm/jdk/jmods"));
        assert!(!tree.contains("/usr/lib/jvm/jdk/lib/dangling"));
        assert_eq!(tree.file_bytes(), 1 + 14 + fs::metadata(jdk.join("release")).unwrap().len());
    }

    #[test]
    fn what_cannot_run_is_refused_with_the_reason() {
        let base = tempfile::tempdir().unwrap();
        let reason = |release: &str| {
            make_jdk(base.path(), release);
            check(base.path()).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(reason("JAVA_VERSION=\"21\"\nLIBC=\"musl\"\n").contains("musl"));
        assert!(reason("JAVA_VERSION=\"21\"\nOS_ARCH=\"aarch64\"\n").contains("aarch64"));
        assert!(reason("").contains("JAVA_VERSION"));
        assert!(check(Path::new("/no/such/folder")).is_err());
    }
}
