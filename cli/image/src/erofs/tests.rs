//! Images checked by the standard tools (erofs-utils); without these the tests only compare bytes.
use std::{fs, io::Cursor, path::Path, process::Command};

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

/// Output of an erofs tool, or None where it is not installed.
fn tool(name: &str, arguments: &[&str], image: &Path) -> Option<String> {
    let output = Command::new(name).args(arguments).arg(image).output().ok()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {text}");
    Some(text)
}

#[test]
fn the_standard_checker_extracts_what_went_in() {
    let folder = tempfile::tempdir().unwrap();
    for extra in [0, 1, 80, 3000] {
        let path = folder.path().join("image");
        write_file(&sample(extra), &path, &|_| {}).unwrap();
        let out = folder.path().join(format!("out{extra}"));
        let extract = format!("--extract={}", out.display());
        if tool("fsck.erofs", &[&extract], &path).is_none() {
            eprintln!("fsck.erofs is not installed: not checked");
            return;
        }
        for len in [1usize, 2048, 2049, 4096, 100_000] {
            assert_eq!(fs::read(out.join(format!("sizes/{len}"))).unwrap(), vec![len as u8; len]);
        }
        assert_eq!(fs::read_link(out.join("lib")).unwrap(), Path::new("usr/lib"));
        assert_eq!(fs::read_link(out.join("long")).unwrap().as_os_str().len(), 4000);
        assert_eq!(fs::read(out.join("bin/same")).unwrap(), b"#!");
        assert_eq!(fs::read_dir(out.join("many")).map(|entries| entries.count()).unwrap_or(0), extra);
    }
}

#[test]
fn inodes_show_links_modes_and_the_fixed_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    write_file(&sample(0), &path, &|_| {}).unwrap();
    if let Some(text) = tool("dump.erofs", &["--path=/bin/tool"], &path) {
        assert!(text.contains("Links: 2") && text.contains("Access: 0755"), "{text}");
        assert!(text.contains("2026-01-01") || text.contains("2025-12-31"), "{text}");
    }
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
    if let Some(text) = tool("dump.erofs", &["--path=/huge"], &path) {
        assert!(text.contains(&len.to_string()), "{text}");
    }
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
