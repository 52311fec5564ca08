//! Images checked by the standard tools (erofs-utils).
use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Cursor,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use super::*;
use crate::tree::Tree;

fn sample(extra_names: usize) -> Tree {
    let mut tree = Tree::new();
    tree.add_bytes("/etc/passwd", "root:x:0:0::/:/bin/sh\n", 0o644).unwrap();
    tree.add_bytes("/etc/empty", "", 0o600).unwrap();
    for len in [1, 2047, 2048, 2049, 4095, 4096, 4097, 100_000] {
        tree.add_bytes(format!("/sizes/{len}"), vec![len as u8; len], 0o644).unwrap();
    }
    tree.add_bytes("/bin/tool", "#!", 0o4755).unwrap();
    tree.add_hard_link("/bin/same", "/bin/tool").unwrap();
    tree.add_symlink("/lib", "usr/lib").unwrap();
    tree.add_symlink("/long", "x".repeat(4000)).unwrap();
    tree.add_device("/dev/null", 0o020_666, 1, 3).unwrap();
    tree.add_dir("/tmp", 0o1777).unwrap();
    for n in 0..extra_names {
        tree.add_bytes(format!("/many/file-with-a-long-name-{n:06}"), "x", 0o644).unwrap();
    }
    tree
}

fn image(tree: &Tree) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let len = write(tree, &mut out, &|_| {}).unwrap();
    assert_eq!(len, out.get_ref().len() as u64);
    out.into_inner()
}

/// Output of an erofs tool.
fn tool(name: &str, arguments: &[&str], image: &Path) -> String {
    let output = Command::new(name).args(arguments).arg(image).output();
    let output = output.expect("erofs-utils are missing: scripts/setup installs them");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {text}");
    text
}

#[test]
fn the_standard_checker_extracts_what_went_in() {
    let folder = tempfile::tempdir().unwrap();
    for extra in [0, 1, 80, 3000] {
        let path = folder.path().join("image");
        write_file(&sample(extra), &path, &|_| {}).unwrap();
        let out = folder.path().join(format!("out{extra}"));
        let extract = format!("--extract={}", out.display());
        tool("fsck.erofs", &[&extract], &path);
        for len in [1usize, 2048, 2049, 4096, 100_000] {
            assert_eq!(fs::read(out.join(format!("sizes/{len}"))).unwrap(), vec![len as u8; len]);
        }
        assert_eq!(fs::read_link(out.join("lib")).unwrap(), Path::new("usr/lib"));
        assert_eq!(fs::read_link(out.join("long")).unwrap().as_os_str().len(), 4000);
        assert_eq!(fs::read(out.join("bin/same")).unwrap(), b"#!");
        assert_eq!(fs::read_dir(out.join("many")).map(|entries| entries.count()).unwrap_or(0), extra);
    }
}

/// A host folder with what is legal and rare; what comes out of the image is what went in, and a copy of
/// the folder, made in another order, gives the same image.
#[test]
fn odd_trees_survive() {
    let folder = tempfile::tempdir().unwrap();
    let (odd, copy) = (folder.path().join("odd"), folder.path().join("copy"));
    make_odd(&odd, false);
    make_odd(&copy, true);
    let (path, other, out) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("out"));
    for (source, image) in [(&odd, &path), (&copy, &other)] {
        let mut tree = Tree::new();
        tree.add_host_tree("/", source, &|_| true).unwrap();
        write_file(&tree, image, &|_| {}).unwrap();
    }
    assert!(fs::read(&path).unwrap() == fs::read(other).unwrap());
    tool("fsck.erofs", &[&format!("--extract={}", out.display())], &path);
    let (wanted, found) = (listed(&odd), listed(&out));
    assert_eq!(wanted.len(), found.len());
    for (one, two) in wanted.iter().zip(&found) {
        assert!(one == two, "{:?} and {:?}", one.0, two.0);
    }
}

fn make_odd(folder: &Path, backwards: bool) {
    let ordered = |mut items: Vec<(OsString, Vec<u8>)>| {
        if backwards {
            items.reverse();
        }
        items
    };
    let mut files = Vec::new();
    for len in [0, 1, 31, 32, 2047, 2048, 2049, 4063, 4064, 4065, 4095, 4096, 4097, 8192, 8193] {
        files.push((format!("sizes/{len}").into(), (0..len).map(|n| (n * 7) as u8).collect()));
    }
    // Directories whose length is that of a block, or of what fits behind an inode, and one more or less;
    // `.` and `..` take 27 bytes.
    for total in [2047, 2048, 2049, 4095, 4096, 4097, 12_000] {
        let (mut left, mut number) = (total - 27, 0);
        while left > 0 {
            let entry = if left < 400 { left } else { 200 };
            let (here, rest) = if entry > 255 + 12 { (200, left - 200) } else { (entry, left - entry) };
            files.push((format!("directories/{total}/{number:0width$}", width = here - 12).into(), Vec::new()));
            (left, number) = (rest, number + 1);
        }
    }
    for number in 0..17 {
        files.push((format!("full/{number:03}{}", "z".repeat(252)).into(), Vec::new()));
    }
    for name in [&b"\xff\xfe\x80"[..], b"line\nfeed", b"\x01", b" ", b"...", b"\xc3\xa4"] {
        files.push((OsStr::from_bytes(&[b"names/", name].concat()).into(), name.to_vec()));
    }
    for (name, content) in ordered(files) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    for empty in ["empty", "nested/empty"] {
        fs::create_dir_all(folder.join(empty)).unwrap();
    }
    for len in [1, 2048, 2049, 4095] {
        symlink("t".repeat(len), folder.join(format!("link-{len}"))).unwrap();
    }
    // A hole of 30 MiB, and a name elsewhere for it.
    let sparse = fs::File::create(folder.join("sparse")).unwrap();
    sparse.set_len(30 << 20).unwrap();
    sparse.write_at(b"middle", 20 << 20).unwrap();
    fs::hard_link(folder.join("sparse"), folder.join("nested/again")).unwrap();
}

/// Path, type and permissions, and content or target of everything in a folder, in order.
fn listed(folder: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut all = Vec::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path).unwrap()
        };
        all.push((path.strip_prefix(folder).unwrap().to_path_buf(), meta.mode(), content));
    }
    all.sort();
    all
}

#[test]
fn inodes_show_links_modes_and_the_fixed_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    write_file(&sample(0), &path, &|_| {}).unwrap();
    let text = tool("dump.erofs", &["--path=/bin/tool"], &path);
    assert!(text.contains("Links: 2") && text.contains("Access: 0755"), "{text}");
    assert!(text.contains("2026-01-01") || text.contains("2025-12-31"), "{text}");
}

#[test]
fn equal_trees_give_equal_images() {
    assert_eq!(image(&sample(5)), image(&sample(5)));
    assert_ne!(image(&sample(5)), image(&sample(6)));
}

#[test]
fn large_content_is_in_whole_blocks_of_its_own() {
    let mut tree = Tree::new();
    tree.add_bytes("/a", vec![b'A'; 5000], 0o644).unwrap();
    tree.add_bytes("/b", vec![b'B'; 4096], 0o644).unwrap();
    let image = image(&tree);
    let start = image.windows(8).position(|bytes| bytes == b"AAAAAAAA").unwrap();
    assert_eq!(start % 4096, 0);
    assert!(image[start + 5000..start + 8192].iter().all(|byte| *byte == 0));
    assert_eq!(image[start + 8192], b'B');
    assert_eq!(image_bytes(&mut Cursor::new(&image)).unwrap(), Some(image.len() as u64));
}

#[test]
fn files_beyond_4_gib_keep_their_length() {
    let folder = tempfile::tempdir().unwrap();
    let (host, path) = (folder.path().join("huge"), folder.path().join("image"));
    let len = (4 << 30) + 5000;
    fs::File::create(&host).unwrap().set_len(len).unwrap();
    let mut tree = Tree::new();
    tree.add_file("/huge", &host, 0o644).unwrap();
    // The plan is checked without writing 4 GiB.
    let plan = Plan::new(&tree).unwrap();
    let metadata = plan.metadata(&tree).unwrap();
    fs::write(&path, &metadata).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(plan.metadata_bytes() + len.next_multiple_of(4096))
        .unwrap();
    let text = tool("dump.erofs", &["--path=/huge"], &path);
    assert!(text.contains(&len.to_string()), "{text}");
}

#[test]
fn a_source_that_changes_its_length_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join("file");
    fs::write(&host, vec![1; 9000]).unwrap();
    let mut tree = Tree::new();
    tree.add_file("/file", &host, 0o644).unwrap();
    for len in [8999, 9001] {
        fs::write(&host, vec![1; len]).unwrap();
        assert!(matches!(write(&tree, &mut Cursor::new(Vec::new()), &|_| {}), Err(WriteError::Changed(_))));
    }
}
