//! The command itself: what it says when it cannot run something, a folder's files in the machine, its cache.

use std::{
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use crate::{
    guest::{self, IMAGES},
    suite::{Slice, Suite, Verdict},
};

const DEMITASSE: &str = "build/demitasse";
const HELLO_JAR: &str = "build/java-apps/hello.jar";

pub fn add(suite: &mut Suite) {
    suite.add(Slice::Quick, "command/says-why", || verdict(says_why()));
    suite.add(Slice::Quick, "command/cache", || verdict(cache()));
    suite.add(Slice::Default, "command/folder-as-on-linux", || verdict(folder_as_on_linux()));
}

fn verdict(result: Result<(), String>) -> Verdict {
    result.map_or_else(Verdict::Failed, |()| Verdict::Passed)
}

/// An empty folder for one test.
fn folder(name: &str) -> Result<PathBuf, String> {
    let path = Path::new(IMAGES).join("command").join(name);
    // Of an earlier run.
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).and_then(|()| path.canonicalize()).map_err(|error| format!("{name}: {error}"))
}

fn demitasse(cache: &Path, arguments: &[&str]) -> Result<Output, String> {
    let mut command = Command::new("timeout");
    command.args(["60", DEMITASSE, "run", "--accel", "tcg"]).args(arguments);
    command.env("DEMITASSE_CACHE", cache).output().map_err(|error| error.to_string())
}

/// One line each for what is wrong and what to do, nothing else, and the exit code that README.md lists.
fn says_why() -> Result<(), String> {
    let folder = folder("says-why")?;
    let path = |name: &str| folder.join(name).display().to_string();
    let failed = |error: std::io::Error| error.to_string();
    let jar = fs::read(HELLO_JAR).map_err(|error| format!("{HELLO_JAR}: {error}"))?;
    fs::write(path("cut.jar"), &jar[..jar.len() / 2]).map_err(failed)?;
    fs::write(path("text.jar"), "text").map_err(failed)?;
    fs::write(path("file"), "").map_err(failed)?;
    fs::create_dir(path("root")).map_err(failed)?;
    let (cut, text, root, file) = (path("cut.jar"), path("text.jar"), path("root"), path("file"));
    let cases: &[(&[&str], i32, &str)] = &[
        (&[], 125, "required arguments"),
        (&["--no-such-option", HELLO_JAR], 125, "--no-such-option"),
        (&["-m", "512", HELLO_JAR], 125, "512M"),
        (&["--jdk", "8", HELLO_JAR], 125, "17, 21, 25"),
        (&["--jdk", &root, HELLO_JAR], 125, "is no JDK"),
        (&["/no/such.jar"], 125, "no such file"),
        (&[&root], 125, "is a folder"),
        (&["/dev/null"], 125, "is no jar"),
        (&[&cut], 125, "is no jar"),
        (&[&text], 125, "is no jar"),
        (&["--rootfs", "/no/such", "/program"], 125, "no such folder"),
        (&["--rootfs", &root, "/program"], 127, "no such program"),
        (&["--kernel", "/no/such", HELLO_JAR], 125, "/no/such"),
        (&["--qemu", "/no/such", "--rootfs", &folder.display().to_string(), "/file"], 126, "/no/such"),
        (&["--kernel", &file, "--rootfs", &folder.display().to_string(), "/file"], 126, "QEMU failed"),
    ];
    let cache = self::folder("says-why-cache")?;
    for &(arguments, code, part) in cases {
        let ended = demitasse(&cache, arguments)?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        let two_lines = matches!(said.lines().collect::<Vec<_>>()[..],
            [error, help] if error.starts_with("error: ") && error.contains(part) && help.starts_with("help: "));
        if ended.status.code() != Some(code) || !two_lines || !ended.stdout.is_empty() {
            return Err(format!("{arguments:?}: {}, expected {code} and {part:?}\n{said}", ended.status));
        }
    }
    let ended = demitasse(Path::new(&file), &["--rootfs", &root, "/program"])?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    if ended.status.code() != Some(125) || !said.contains("DEMITASSE_CACHE") {
        return Err(format!("a file as the cache: {}\n{said}", ended.status));
    }
    Ok(())
}

/// Several commands at once build an image once, and a damaged one is built again.
fn cache() -> Result<(), String> {
    let (root, cache) = (folder("cache-root")?, folder("cache")?);
    fs::copy("build/conformance/hello-musl", root.join("hello")).map_err(|error| format!("hello-musl: {error}"))?;
    let runs = || {
        let run = || demitasse(&cache, &["--rootfs", &root.display().to_string(), "/hello"]);
        thread::scope(|scope| [0; 3].map(|_| scope.spawn(run)).map(|one| one.join().map_err(|_| "a panic".to_string())))
    };
    for image_is in ["missing", "cut", "empty"] {
        for ended in runs() {
            let ended = ended??;
            if ended.status.code() != Some(0) || ended.stdout != b"hello\n" {
                let [output, said] = [&ended.stdout, &ended.stderr].map(|bytes| String::from_utf8_lossy(bytes));
                return Err(format!("image {image_is}: {}\n{output}{said}", ended.status));
            }
        }
        let left = fs::read_dir(cache.join("images")).map_err(|error| error.to_string())?;
        let left: Vec<PathBuf> = left.flatten().map(|entry| entry.path()).collect();
        let [image] = &left[..] else { return Err(format!("image {image_is}: left are {left:?}")) };
        let len = if image_is == "missing" { 8192 } else { 0 };
        let cut = File::options().write(true).open(image).and_then(|file| file.set_len(len));
        cut.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A program that lists a folder says the same on Linux and in a machine whose root that folder is in.
fn folder_as_on_linux() -> Result<(), String> {
    let root = folder("folder-as-on-linux")?;
    let program = guest::compiled("list-tree")?;
    let made = || -> std::io::Result<()> {
        fs::copy(program, root.join("list-tree"))?;
        let tree = root.join("tree");
        for name in ["empty", "many", "names", "sizes"] {
            fs::create_dir_all(tree.join(name))?;
        }
        for number in 0..3000 {
            fs::write(tree.join(format!("many/file-{number}")), format!("{number}"))?;
        }
        for name in [&b"\xff\xfe\x80"[..], b"line\nfeed", b"...", &[b'n'; 255]] {
            fs::write(tree.join("names").join(std::ffi::OsStr::from_bytes(name)), name)?;
        }
        for len in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 1 << 20] {
            fs::write(tree.join(format!("sizes/{len}")), vec![len as u8; len])?;
        }
        for len in [1, 2048, 2049, 4095] {
            symlink("t".repeat(len), tree.join(format!("link-{len}")))?;
        }
        File::create(tree.join("sparse"))?.set_len(20 << 20)?;
        fs::hard_link(tree.join("sparse"), tree.join("empty-no-more"))
    };
    made().map_err(|error| error.to_string())?;
    let linux = Command::new(root.join("list-tree")).arg(root.join("tree")).stdin(Stdio::null()).output();
    let linux = linux.map_err(|error| error.to_string())?;
    let ours = demitasse(&folder("folder-cache")?, &["--rootfs", &root.display().to_string(), "/list-tree", "/tree"])?;
    if !linux.status.success() || ours.status.code() != Some(0) {
        let said = String::from_utf8_lossy(&ours.stderr).into_owned();
        return Err(format!("on Linux {}, in a machine {}\n{said}", linux.status, ours.status));
    }
    let [linux, ours] = [linux, ours].map(|run| String::from_utf8_lossy(&run.stdout).into_owned());
    match guest::differences(&linux, &ours) {
        none if none.is_empty() && linux.lines().count() > 3000 => Ok(()),
        differences => Err(differences),
    }
}
