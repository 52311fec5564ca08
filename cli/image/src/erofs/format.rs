//! EROFS on-disk structures, encoded field by field in little-endian (Linux `fs/erofs/erofs_fs.h`).

pub(super) const BLOCK_BITS: u8 = 12;
pub(super) const BLOCK_BYTES: u64 = 1 << BLOCK_BITS;
/// Inodes are numbered (nid) in units of this.
pub(super) const SLOT_BYTES: u64 = 32;
pub(super) const COMPACT_INODE_BYTES: u64 = 32;
pub(super) const EXTENDED_INODE_BYTES: u64 = 64;
pub(super) const DIRENT_BYTES: usize = 12;
pub(super) const SUPER_OFFSET: usize = 1024;
const SUPER_BYTES: usize = 128;
pub(super) const SUPER_END: usize = SUPER_OFFSET + SUPER_BYTES;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataLayout {
    Plain = 0,
    Inline = 2,
}

/// An inode's fields, whichever of the two forms it is written in.
pub(super) struct Inode {
    pub layout: DataLayout,
    pub mode: u32,
    pub nlink: u32,
    pub size_bytes: u64,
    /// First block of content, or the device number.
    pub block_or_device: u32,
    /// `st_ino` of 32-bit readers.
    pub number: u32,
}

impl Inode {
    /// The short form has 16 bits for links, 32 for the size, and no time of its own.
    pub(super) fn is_extended(size_bytes: u64, nlink: u32) -> bool {
        size_bytes > u64::from(u32::MAX) || nlink > u32::from(u16::MAX)
    }

    pub(super) fn len(size_bytes: u64, nlink: u32) -> u64 {
        if Self::is_extended(size_bytes, nlink) { EXTENDED_INODE_BYTES } else { COMPACT_INODE_BYTES }
    }

    pub(super) fn encode(&self, out: &mut [u8]) {
        let extended = Self::is_extended(self.size_bytes, self.nlink);
        put(out, 0, &((self.layout as u16) << 1 | u16::from(extended)).to_le_bytes());
        put(out, 4, &(self.mode as u16).to_le_bytes());
        put(out, 16, &self.block_or_device.to_le_bytes());
        put(out, 20, &self.number.to_le_bytes());
        if extended {
            put(out, 8, &self.size_bytes.to_le_bytes());
            put(out, 32, &super::IMAGE_TIME.to_le_bytes());
            put(out, 44, &self.nlink.to_le_bytes());
        } else {
            put(out, 6, &(self.nlink as u16).to_le_bytes());
            put(out, 8, &(self.size_bytes as u32).to_le_bytes());
        }
    }
}

/// Writes the superblock into the first block, with the checksum over the whole of it: call last.
pub(super) fn encode_super(image_start: &mut [u8], root_nid: u16, inodes: u64, blocks: u32) {
    let block = &mut image_start[SUPER_OFFSET..BLOCK_BYTES as usize];
    put(block, 0, &MAGIC.to_le_bytes());
    put(block, 8, &COMPAT_CHECKSUM.to_le_bytes());
    block[12] = BLOCK_BITS;
    put(block, 14, &root_nid.to_le_bytes());
    put(block, 16, &inodes.to_le_bytes());
    put(block, 24, &super::IMAGE_TIME.to_le_bytes());
    put(block, 36, &blocks.to_le_bytes());
    put(block, 64, b"demitasse");
    // The format's CRC-32C starts as usual but is not inverted at the end.
    let checksum = !crc32c::crc32c(block);
    put(block, 4, &checksum.to_le_bytes());
}

pub(super) fn blocks_of(image_start: &[u8; SUPER_END]) -> Option<u64> {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| image_start[SUPER_OFFSET + at + i]));
    (word(0) == MAGIC && image_start[SUPER_OFFSET + 12] == BLOCK_BITS).then(|| u64::from(word(36)))
}

/// A directory entry before it is packed into blocks.
pub(super) struct Dirent<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    /// `FT_*`: 1 regular, 2 directory, 3 character, 4 block, 5 FIFO, 6 socket, 7 symbolic link.
    pub file_type: u8,
}

/// Bytes of a directory with names of these lengths, in order. Blocks are filled whole, the last
/// one counts to its end of use.
pub(super) fn directory_bytes(name_lens: impl Iterator<Item = usize>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for len in name_lens {
        if used + DIRENT_BYTES + len > BLOCK_BYTES as usize {
            blocks += 1;
            used = 0;
        }
        used += DIRENT_BYTES + len;
    }
    blocks * BLOCK_BYTES + used as u64
}

/// Packs entries, sorted by name, into directory blocks: in each the fixed parts, then the names.
pub(super) fn encode_directory(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        out.resize(out.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        let mut used = 0;
        let fitting = rest
            .iter()
            .take_while(|entry| {
                used += DIRENT_BYTES + entry.name.len();
                used <= BLOCK_BYTES as usize
            })
            .count();
        let (block, next) = rest.split_at(fitting);
        let mut name_at = (block.len() * DIRENT_BYTES) as u16;
        for entry in block {
            out.extend_from_slice(&entry.nid.to_le_bytes());
            out.extend_from_slice(&name_at.to_le_bytes());
            out.extend_from_slice(&[entry.file_type, 0]);
            name_at += entry.name.len() as u16;
        }
        for entry in block {
            out.extend_from_slice(entry.name);
        }
        rest = next;
    }
    out
}

/// Device number as the kernel's `new_encode_dev`.
pub(super) fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}
