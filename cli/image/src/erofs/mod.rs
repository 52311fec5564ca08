//! The EROFS writer: uncompressed, read-only file system images, reproducible to the byte.
//!
//! Layout: one superblock, then the inodes in the order of a walk by name, each small file's,
//! directory's or link's content right behind its inode (`FLAT_INLINE`), then the content of large
//! directories and files, each in whole blocks on its own (`FLAT_PLAIN`), so that a reader can map
//! file pages straight from an image in memory. The source for the format is Linux'
//! `fs/erofs/erofs_fs.h`; Linux 5.4 and later read the result.
//!
//! Owners are root and all times are [`IMAGE_TIME`].

mod format;
mod plan;

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::tree::{Content, Tree};
use plan::Plan;

/// Modification time of every file in an image: 2026-01-01 UTC, seconds since 1970.
pub const IMAGE_TIME: u64 = 1_767_225_600;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{path:?} cannot be read: {source}")]
    Source { path: PathBuf, source: io::Error },
    #[error("{0:?} changed while the image was written")]
    Changed(PathBuf),
    #[error("the image cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error("the image would be larger than EROFS allows (16 TiB)")]
    TooLarge,
}

/// Writes the tree as an image and returns its length in bytes, a multiple of 4096. `progress` is
/// told of each piece written, in bytes.
pub fn write(tree: &Tree, out: &mut (impl Write + Seek), progress: &dyn Fn(u64)) -> Result<u64, WriteError> {
    let plan = Plan::new(tree)?;
    let mut out = BufWriter::with_capacity(1 << 20, out);
    out.write_all(&plan.metadata(tree)?)?;
    let mut written = plan.metadata_bytes();
    for extent in plan.extents() {
        let start = extent.block * format::BLOCK_BYTES;
        debug_assert_eq!(start, written);
        let len = match extent.bytes {
            Some(ref bytes) => {
                out.write_all(bytes)?;
                bytes.len() as u64
            }
            None => copy_content(tree, extent.node, &mut out, progress)?,
        };
        let end = (start + len).next_multiple_of(format::BLOCK_BYTES);
        out.write_all(&[0; format::BLOCK_BYTES as usize][..(end - start - len) as usize])?;
        written = end;
    }
    out.flush()?;
    Ok(written)
}

/// What a file is called that is being written: a process that is killed leaves it behind.
pub const UNFINISHED: &str = ".making-";

/// Writes the image to a new file at `path`; on failure nothing is left there.
pub fn write_file(tree: &Tree, path: &Path, progress: &dyn Fn(u64)) -> Result<u64, WriteError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
    let len = write(tree, file.as_file_mut(), progress)?;
    file.persist(path).map_err(|failed| failed.error)?;
    Ok(len)
}

/// Bytes of content that [`write`] will report as progress, about.
pub fn content_bytes(tree: &Tree) -> u64 {
    tree.file_bytes()
}

fn copy_content(tree: &Tree, node: usize, out: &mut impl Write, progress: &dyn Fn(u64)) -> Result<u64, WriteError> {
    let Some(content) = tree.content(node) else { return Ok(0) };
    match content {
        Content::Bytes(bytes) => {
            out.write_all(bytes)?;
            progress(bytes.len() as u64);
            Ok(bytes.len() as u64)
        }
        Content::Host { path, len } => copy_host_file(path, *len, out, progress),
    }
}

/// Exactly `len` bytes: the layout is fixed, so a file that grew or shrank is an error.
fn copy_host_file(path: &Path, len: u64, out: &mut impl Write, progress: &dyn Fn(u64)) -> Result<u64, WriteError> {
    let failed = |source| WriteError::Source { path: path.into(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    let mut copied = 0;
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            break;
        }
        copied += count as u64;
        if copied > len {
            return Err(WriteError::Changed(path.into()));
        }
        out.write_all(&buffer[..count])?;
        progress(count as u64);
    }
    if copied == len { Ok(len) } else { Err(WriteError::Changed(path.into())) }
}

/// A whole small file.
fn read_content(content: &Content) -> Result<Vec<u8>, WriteError> {
    match content {
        Content::Bytes(bytes) => Ok(bytes.clone()),
        Content::Host { path, len } => {
            let mut bytes = Vec::new();
            copy_host_file(path, *len, &mut bytes, &|_| {})?;
            Ok(bytes)
        }
    }
}

/// Length of an image file's content by its superblock; `None` if it is no EROFS image.
pub fn image_bytes(image: &mut (impl Read + Seek)) -> io::Result<Option<u64>> {
    let mut start = [0; format::SUPER_END];
    image.seek(SeekFrom::Start(0))?;
    match image.read_exact(&mut start) {
        Ok(()) => Ok(format::blocks_of(&start).map(|blocks| blocks * format::BLOCK_BYTES)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
