//! A root folder from unpacked Debian packages, finished as their maintainer scripts would do it.
//!
//! The scripts themselves are not run: they want a running Debian with many more packages.
use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{JdkError, keystore};
use crate::erofs::IMAGE_TIME;

/// Not needed to run a JVM: documentation, translations, tools of other packages, state.
/// `gconv` (character sets for iconv) is not used by the JDK, which has its own.
const DROPPED: [&str; 19] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/gdb",
    "usr/share/gcc",
    "usr/share/binfmts",
    "usr/share/libc-bin",
    "usr/lib/debug",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/audit",
    "usr/bin",
    "usr/sbin",
    "sbin",
    "bin",
    "var",
    "usr/share/ca-certificates",
    "etc/ca-certificates",
];

/// Within the JDK's own folder.
const DROPPED_JDK: [&str; 5] = ["legal", "man", "docs", "src.zip", "lib/src.zip"];

/// Folders that moved below /usr; packages of Debian 12 still use the old places.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Makes an empty root in which both places of each merged folder are one.
pub(super) fn prepare(root: &Path) -> io::Result<()> {
    for name in MERGED {
        fs::create_dir_all(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    Ok(())
}

pub(super) fn unpack(package: &Path, root: &Path) -> Result<(), JdkError> {
    // `dpkg-deb -x` would replace the merged folders' links by folders; tar can be told not to.
    let mut data = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| JdkError::ToolMissing { tool: "dpkg-deb", source })?;
    let tar = data.stdout.take().map(|stdout| {
        Command::new("tar")
            .args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--same-permissions", "--directory"])
            .arg(root)
            .stdin(stdout)
            .status()
    });
    let unpacked = data.wait().map_err(JdkError::io(package))?;
    match tar {
        Some(Ok(status)) if status.success() && unpacked.success() => Ok(()),
        Some(Err(source)) => Err(JdkError::ToolMissing { tool: "tar", source }),
        _ => Err(JdkError::Unpack(package.into())),
    }
}

/// Does what the maintainer scripts would, and drops what a machine with one JVM has no use for.
/// The result is the JDK's home within the root, if there is a JDK.
pub(super) fn complete(root: &Path) -> Result<Option<PathBuf>, JdkError> {
    let home = jdk_home(root).map_err(JdkError::io(root))?;
    make_linker_cache(root);
    let finish = || -> io::Result<()> {
        make_certificates(root)?;
        for name in DROPPED {
            remove(&root.join(name))?;
        }
        write_base_files(root)?;
        if let Some(home) = &home {
            for name in DROPPED_JDK {
                remove(&root.join(home).join(name))?;
            }
            fs::create_dir_all(root.join("usr/bin"))?;
            symlink(Path::new("/").join(home).join("bin/java"), root.join("usr/bin/java"))?;
        }
        // Both were dropped with their content; the links are part of the layout.
        for name in ["bin", "sbin"] {
            fs::create_dir_all(root.join("usr").join(name))?;
            symlink(format!("usr/{name}"), root.join(name))?;
        }
        drop_dangling_links(root, root)
    };
    finish().map_err(JdkError::io(root))?;
    Ok(home)
}

/// `usr/lib/jvm/java-N-openjdk-amd64`, relative to the root.
fn jdk_home(root: &Path) -> io::Result<Option<PathBuf>> {
    let jvms = root.join("usr/lib/jvm");
    if !jvms.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(&jvms)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.path().join("release").is_file() {
            return Ok(Some(Path::new("usr/lib/jvm").join(entry.file_name())));
        }
    }
    Ok(None)
}

/// The dynamic linker's cache, by the root's own `ldconfig`. It must change its root folder: an
/// unprivileged user does so in a user namespace. Without it the linker searches its folders, so a
/// failure only costs some microseconds at start.
fn make_linker_cache(root: &Path) {
    let ldconfig = root.join("usr/sbin/ldconfig");
    let ldconfig = if ldconfig.is_file() { ldconfig } else { PathBuf::from("/sbin/ldconfig") };
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(ldconfig)
    } else {
        let mut command = Command::new("unshare");
        command.arg("--map-root-user").arg(ldconfig);
        command
    };
    let _ = command.arg("-r").arg(root).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

fn make_certificates(root: &Path) -> io::Result<()> {
    let folder = root.join("usr/share/ca-certificates");
    if !folder.is_dir() {
        return Ok(());
    }
    let authorities = keystore::read_authorities(&folder)?;
    let certs = root.join("etc/ssl/certs");
    fs::create_dir_all(certs.join("java"))?;
    fs::write(certs.join("java/cacerts"), keystore::encode_jks(&authorities, IMAGE_TIME))?;
    fs::write(certs.join("ca-certificates.crt"), keystore::encode_pem(&authorities))
}

/// What the installer and base-files would leave: one user, names from files, empty mount points.
fn write_base_files(root: &Path) -> io::Result<()> {
    for folder in ["dev", "etc", "proc", "sys", "run", "root", "tmp", "var/tmp", "app"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let files = [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
        ("etc/os-release", "ID=demitasse\nNAME=Demitasse\nPRETTY_NAME=\"Demitasse\"\n"),
    ];
    for (name, text) in files {
        fs::write(root.join(name), text)?;
    }
    Ok(())
}

/// Links that lead nowhere once things are dropped (documentation, sources).
fn drop_dangling_links(root: &Path, folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            drop_dangling_links(root, &path)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            let target = match target.strip_prefix("/") {
                Ok(within) => root.join(within),
                Err(_) => folder.join(target),
            };
            if !target.exists() {
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
