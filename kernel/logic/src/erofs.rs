//! The EROFS on-disk layout (Linux, fs/erofs/erofs_fs.h): superblock, inodes, directory blocks.
//!
//! Pure parsing: the caller reads the bytes, this says what they mean and where to read next. Images
//! are not trusted: every offset is checked, and a lie is [`ErofsError::Corrupt`], never a panic.
//! Understood are uncompressed images with 4 KiB blocks: flat, inline-tail and chunk-based files.

pub const BLOCK_SIZE: u64 = 4096;
/// Byte offset of the superblock, and how many of its bytes are needed.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
pub const SUPERBLOCK_SIZE: usize = 128;
/// Bytes of a compact inode; an extended one has [`INODE_SIZE_MAX`].
pub const INODE_SIZE_MIN: usize = 32;
pub const INODE_SIZE_MAX: usize = 64;

const MAGIC: u32 = 0xe0f5_e1e2;
const NID_SIZE: u64 = 32;
const DIRENT_SIZE: usize = 12;
/// Block address of a hole in a chunk-based file.
const HOLE: u32 = u32::MAX;

/// Incompatible features that do not concern us: zero padding of compressed data (there is none),
/// chunk-based files, extended-attribute prefixes.
const FEATURES_KNOWN: u32 = 0x1 | 0x4 | 0x40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErofsError {
    /// No EROFS at all.
    BadMagic,
    /// Valid perhaps, but compressed, with other block sizes, or spread over several devices.
    Unsupported,
    Corrupt,
}

use ErofsError::{Corrupt, Unsupported};

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ErofsError> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b)).ok_or(Corrupt)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ErofsError> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)).ok_or(Corrupt)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, ErofsError> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b)).ok_or(Corrupt)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperBlock {
    pub root_nid: u64,
    pub inodes: u64,
    pub blocks: u32,
    /// Modification time of compact inodes: seconds and nanoseconds since 1970.
    pub build_time: (i64, u32),
    meta_start: u64,
    image_bytes: u64,
}

impl SuperBlock {
    /// Parses the [`SUPERBLOCK_SIZE`] bytes at [`SUPERBLOCK_OFFSET`] of an image of `image_bytes`.
    pub fn parse(bytes: &[u8], image_bytes: u64) -> Result<Self, ErofsError> {
        if u32_at(bytes, 0)? != MAGIC {
            return Err(ErofsError::BadMagic);
        }
        let block_bits = *bytes.get(12).ok_or(Corrupt)?;
        let directory_bits = *bytes.get(90).ok_or(Corrupt)?;
        let extra_devices = u16_at(bytes, 86)?;
        if block_bits != 12 || directory_bits != 0 || extra_devices != 0 || u32_at(bytes, 80)? & !FEATURES_KNOWN != 0 {
            return Err(Unsupported);
        }
        Ok(Self {
            root_nid: u16_at(bytes, 14)?.into(),
            inodes: u64_at(bytes, 16)?,
            build_time: (u64_at(bytes, 24)? as i64, u32_at(bytes, 32)?.min(999_999_999)),
            blocks: u32_at(bytes, 36)?,
            meta_start: u64::from(u32_at(bytes, 40)?) * BLOCK_SIZE,
            image_bytes,
        })
    }

    /// Byte offset of an inode; at least [`INODE_SIZE_MIN`] bytes are in the image there.
    pub fn inode_offset(&self, nid: u64) -> Result<u64, ErofsError> {
        let offset = nid.checked_mul(NID_SIZE).and_then(|o| o.checked_add(self.meta_start)).ok_or(Corrupt)?;
        match offset.checked_add(INODE_SIZE_MIN as u64) {
            Some(end) if end <= self.image_bytes => Ok(offset),
            _ => Err(Corrupt),
        }
    }

    fn check_extent(&self, start: u64, len: u64) -> Result<(), ErofsError> {
        match start.checked_add(len) {
            Some(end) if end <= self.image_bytes => Ok(()),
            _ => Err(Corrupt),
        }
    }
}

/// How a file's content lies in the image; byte offsets of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Devices, FIFOs, sockets, and empty files.
    Nothing,
    Plain {
        start: u64,
    },
    /// Whole blocks at `start`; what is left of the last one at `tail`.
    Inline {
        start: u64,
        tail: u64,
    },
    /// A table of block addresses at `table`, one entry for each chunk.
    Chunked {
        table: u64,
        entry_size: u64,
        chunk_bits: u32,
    },
}

/// Where the bytes of one page of a file come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSource {
    /// `len` bytes at this offset of the image; the rest of the page is zero. Whole pages and the last
    /// page of a plain file are aligned to blocks.
    Image {
        offset: u64,
        len: usize,
    },
    /// Its chunk's block address stands in the image here ([`Inode::resolve_chunk`]).
    ChunkEntry {
        offset: u64,
    },
    Zero,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// st_mode.
    pub mode: u16,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Device number as Linux encodes it on disk (new_encode_dev), for device files.
    pub rdev: u32,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
    layout: Layout,
    image_bytes: u64,
}

impl Inode {
    /// Bytes that [`Inode::parse`] needs, told from the first two.
    pub fn size_on_disk(first: [u8; 2]) -> usize {
        if first[0] & 1 == 0 { INODE_SIZE_MIN } else { INODE_SIZE_MAX }
    }

    /// Parses the inode at `offset` (from [`SuperBlock::inode_offset`]).
    pub fn parse(bytes: &[u8], offset: u64, sb: &SuperBlock) -> Result<Self, ErofsError> {
        let format = u16_at(bytes, 0)?;
        let extended = format & 1 != 0;
        let mode = u16_at(bytes, 4)?;
        let content = u32_at(bytes, 16)?;
        let (size, uid, gid, links, modified) = if extended {
            let seconds = u64_at(bytes, 32)? as i64;
            let modified = (seconds, u32_at(bytes, 40)?.min(999_999_999));
            (u64_at(bytes, 8)?, u32_at(bytes, 24)?, u32_at(bytes, 28)?, u32_at(bytes, 44)?, modified)
        } else {
            let (uid, gid) = (u16_at(bytes, 24)?.into(), u16_at(bytes, 26)?.into());
            (u32_at(bytes, 8)?.into(), uid, gid, u16_at(bytes, 6)?.into(), sb.build_time)
        };
        let xattr_count = u64::from(u16_at(bytes, 2)?);
        let xattr_size = if xattr_count == 0 { 0 } else { 12 + (xattr_count - 1) * 4 };
        let body_end = offset + if extended { INODE_SIZE_MAX } else { INODE_SIZE_MIN } as u64 + xattr_size;
        let has_content = matches!(mode & 0o170000, 0o040000 | 0o100000 | 0o120000);
        let layout =
            if has_content && size > 0 { Self::layout(format, content, size, body_end, sb)? } else { Layout::Nothing };
        let size = if has_content { size } else { 0 };
        let rdev = if has_content { 0 } else { content };
        Ok(Self { mode, links, uid, gid, size, rdev, modified, layout, image_bytes: sb.image_bytes })
    }

    fn layout(format: u16, content: u32, size: u64, body_end: u64, sb: &SuperBlock) -> Result<Layout, ErofsError> {
        let start = u64::from(content) * BLOCK_SIZE;
        match format >> 1 & 7 {
            0 => {
                sb.check_extent(start, size)?;
                Ok(Layout::Plain { start })
            }
            2 => {
                let tail_len = size % BLOCK_SIZE;
                if size > tail_len {
                    sb.check_extent(start, size - tail_len)?;
                }
                sb.check_extent(body_end, tail_len)?;
                Ok(Layout::Inline { start, tail: body_end })
            }
            4 => {
                // erofs_inode_chunk_info: low 5 bits are the chunk size's, bit 5 says 8-byte entries.
                let chunk_bits = (content & 0x1f) + 12;
                let entry_size = if content & 0x20 == 0 { 4 } else { 8 };
                let table = body_end.next_multiple_of(entry_size);
                let entries = size.div_ceil(1u64.checked_shl(chunk_bits).ok_or(Corrupt)?);
                sb.check_extent(table, entries.checked_mul(entry_size).ok_or(Corrupt)?)?;
                Ok(Layout::Chunked { table, entry_size, chunk_bits })
            }
            _ => Err(Unsupported),
        }
    }

    pub fn pages(&self) -> u64 {
        self.size.div_ceil(BLOCK_SIZE)
    }

    /// Where page `index` lies; Zero beyond the end.
    pub fn page_source(&self, index: u64) -> PageSource {
        if index >= self.pages() {
            return PageSource::Zero;
        }
        let at = index * BLOCK_SIZE;
        let len = (self.size - at).min(BLOCK_SIZE) as usize;
        match self.layout {
            Layout::Nothing => PageSource::Zero,
            Layout::Plain { start } => PageSource::Image { offset: start + at, len },
            Layout::Inline { tail, .. } if len < BLOCK_SIZE as usize => PageSource::Image { offset: tail, len },
            Layout::Inline { start, .. } => PageSource::Image { offset: start + at, len },
            Layout::Chunked { table, entry_size, chunk_bits } => {
                // In an 8-byte entry the block address is the second half.
                let entry = table + (at >> chunk_bits) * entry_size;
                PageSource::ChunkEntry { offset: entry + entry_size - 4 }
            }
        }
    }

    /// The source of page `index`, given the four bytes at its `ChunkEntry`.
    pub fn resolve_chunk(&self, index: u64, entry: [u8; 4]) -> Result<PageSource, ErofsError> {
        let Layout::Chunked { chunk_bits, .. } = self.layout else { return Err(Corrupt) };
        let block = u32::from_le_bytes(entry);
        if block == HOLE {
            return Ok(PageSource::Zero);
        }
        let at = index.checked_mul(BLOCK_SIZE).filter(|&at| at < self.size).ok_or(Corrupt)?;
        let len = (self.size - at).min(BLOCK_SIZE);
        let offset = u64::from(block) * BLOCK_SIZE + (at & ((1 << chunk_bits) - 1));
        if offset + len > self.image_bytes {
            return Err(Corrupt);
        }
        Ok(PageSource::Image { offset, len: len as usize })
    }

    /// Pages from `index` on whose bytes follow each other in the image block by block, at most
    /// `max`; all of them are whole or the padded last one of a plain file.
    pub fn contiguous_pages(&self, index: u64, max: u64) -> u64 {
        let whole = match self.layout {
            Layout::Plain { .. } => self.pages(),
            Layout::Inline { .. } => self.size / BLOCK_SIZE,
            Layout::Nothing | Layout::Chunked { .. } => return 1.min(max),
        };
        whole.saturating_sub(index).clamp(1, max.max(1))
    }
}

/// One entry of a directory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    /// 1 regular, 2 directory, 3 char device, 4 block device, 5 FIFO, 6 socket, 7 symlink.
    pub file_type: u8,
}

/// A directory's content is a row of blocks; each has its entries first, sorted by name, then the
/// names. The blocks are sorted as well.
#[derive(Clone, Copy)]
pub struct DirBlock<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> DirBlock<'a> {
    /// `bytes`: the block, cut to the directory's size if it is the last.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ErofsError> {
        let names_start = usize::from(u16_at(bytes, 8)?);
        if names_start < DIRENT_SIZE || !names_start.is_multiple_of(DIRENT_SIZE) || names_start >= bytes.len() {
            return Err(Corrupt);
        }
        Ok(Self { bytes, count: names_start / DIRENT_SIZE })
    }

    /// Entries, at least 1.
    pub fn count(&self) -> usize {
        self.count
    }

    pub fn entry(&self, at: usize) -> Result<DirEntry<'a>, ErofsError> {
        let entry = at * DIRENT_SIZE;
        let start = usize::from(u16_at(self.bytes, entry + 8)?);
        let name = if at + 1 < self.count {
            let end = usize::from(u16_at(self.bytes, entry + DIRENT_SIZE + 8)?);
            self.bytes.get(start..end)
        } else {
            // The last name ends at a NUL or with the block.
            let rest = self.bytes.get(start..);
            rest.map(|rest| &rest[..rest.iter().position(|&b| b == 0).unwrap_or(rest.len())])
        };
        let name = name.filter(|n| !n.is_empty() && n.len() <= 255 && !n.contains(&b'/')).ok_or(Corrupt)?;
        let file_type = *self.bytes.get(entry + 10).ok_or(Corrupt)?;
        Ok(DirEntry { name, nid: u64_at(self.bytes, entry)?, file_type })
    }

    /// Binary search. `Err(Ordering)`: not in this block, but if anywhere then in one before (Less) or
    /// behind (Greater), or, between its names, nowhere (Equal).
    pub fn find(&self, name: &[u8]) -> Result<Result<DirEntry<'a>, core::cmp::Ordering>, ErofsError> {
        use core::cmp::Ordering;
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = (low + high) / 2;
            let entry = self.entry(middle)?;
            match name.cmp(entry.name) {
                Ordering::Equal => return Ok(Ok(entry)),
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        Ok(Err(match low {
            0 => Ordering::Less,
            _ if low == self.count => Ordering::Greater,
            _ => Ordering::Equal,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{vec, vec::Vec};

    fn super_block() -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_SIZE];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[12] = 12;
        bytes[14] = 36;
        bytes
    }

    #[test]
    fn super_block_checks() {
        let sb = SuperBlock::parse(&super_block(), 1 << 20).unwrap();
        assert_eq!(sb.root_nid, 36);
        assert_eq!(sb.inode_offset(36), Ok(36 * 32));
        assert_eq!(sb.inode_offset(1 << 15), Err(Corrupt));
        assert_eq!(sb.inode_offset(u64::MAX), Err(Corrupt));
        assert_eq!(SuperBlock::parse(&[0; 128], 0), Err(ErofsError::BadMagic));
        assert_eq!(SuperBlock::parse(&super_block()[..20], 0), Err(Corrupt));
        let mut compressed = super_block();
        compressed[80] = 2;
        assert_eq!(SuperBlock::parse(&compressed, 1 << 20), Err(Unsupported));
    }

    #[test]
    fn flat_inodes() {
        let sb = SuperBlock::parse(&super_block(), 1 << 20).unwrap();
        let mut bytes = [0; 32];
        bytes[0] = 2 << 1; // inline
        bytes[4..6].copy_from_slice(&0o100644u16.to_le_bytes());
        bytes[8..12].copy_from_slice(&(2 * 4096 + 10u32).to_le_bytes());
        bytes[16] = 3;
        let inode = Inode::parse(&bytes, 1152, &sb).unwrap();
        assert_eq!(inode.page_source(1), PageSource::Image { offset: 4 * 4096, len: 4096 });
        assert_eq!(inode.page_source(2), PageSource::Image { offset: 1152 + 32, len: 10 });
        assert_eq!(inode.page_source(3), PageSource::Zero);
        assert_eq!(inode.contiguous_pages(0, 32), 2);
        assert_eq!(inode.contiguous_pages(2, 32), 1);
        // Beyond the image.
        bytes[0] = 0;
        bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Inode::parse(&bytes, 1152, &sb), Err(Corrupt));
        bytes[0] = 1 << 1;
        assert_eq!(Inode::parse(&bytes, 1152, &sb), Err(Unsupported));
    }

    fn block(names: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut at = names.len() * DIRENT_SIZE;
        for (i, name) in names.iter().enumerate() {
            bytes[i * DIRENT_SIZE] = i as u8 + 1;
            bytes[i * DIRENT_SIZE + 8..][..2].copy_from_slice(&(at as u16).to_le_bytes());
            bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
            at += name.len();
        }
        bytes
    }

    #[test]
    fn directory_blocks() {
        use core::cmp::Ordering;
        let bytes = block(&["b", "bin", "lib", "usr"]);
        let dir = DirBlock::parse(&bytes).unwrap();
        assert_eq!(dir.count(), 4);
        assert_eq!(dir.find(b"lib").unwrap().unwrap().nid, 3);
        assert_eq!(dir.find(b"usr").unwrap().unwrap().name, b"usr");
        assert_eq!(dir.find(b"a").unwrap(), Err(Ordering::Less));
        assert_eq!(dir.find(b"c").unwrap(), Err(Ordering::Equal));
        assert_eq!(dir.find(b"z").unwrap(), Err(Ordering::Greater));
    }

    /// Any bytes at all: errors are fine, panics are not.
    #[test]
    fn noise_does_not_panic() {
        let mut seed = 1u64;
        let mut noise = |len: usize| -> Vec<u8> {
            (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (seed >> 56) as u8
                })
                .collect()
        };
        let sb = SuperBlock::parse(&super_block(), 1 << 20).unwrap();
        for round in 0..20_000 {
            let mut bytes = noise(64);
            bytes[0] &= 0xf;
            bytes[10] &= 0x1;
            bytes[11..16].fill(0);
            if let Ok(inode) = Inode::parse(&bytes, round, &sb) {
                for index in [0, 1, inode.pages(), u64::MAX] {
                    inode.page_source(index);
                    let _ = inode.resolve_chunk(index, [round as u8; 4]);
                    inode.contiguous_pages(index, 32);
                }
            }
            let mut bytes = noise(256);
            bytes[8] = bytes[8] / 12 * 12;
            bytes[9] = 0;
            if let Ok(dir) = DirBlock::parse(&bytes) {
                for at in 0..=dir.count() {
                    let _ = dir.entry(at);
                }
                let _ = dir.find(b"name");
            }
        }
    }
}
