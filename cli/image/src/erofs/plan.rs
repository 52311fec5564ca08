//! Where everything goes in an EROFS image: decided before the first byte is written.
use std::collections::HashMap;

use super::{
    WriteError,
    format::{self, BLOCK_BYTES, DataLayout, Dirent, Inode, SLOT_BYTES},
    read_content,
};
use crate::tree::{Kind, Node, NodeId, ROOT, Tree, file_type};

/// Files up to this long stand behind their inode. Larger ones begin on a block of their own,
/// which a reader can map.
const INLINE_MAX_BYTES: u64 = 2048;

/// The place of one inode and its content.
struct Placed {
    node: NodeId,
    parent: NodeId,
    nlink: u32,
    size_bytes: u64,
    layout: DataLayout,
    nid: u64,
    first_block: u32,
}

/// Blocks of content outside the inode area.
pub(super) struct Extent {
    pub block: u64,
    pub node: NodeId,
    /// Content of a directory or symbolic link; a file's is copied from the tree.
    pub bytes: Option<Vec<u8>>,
}

pub(super) struct Plan {
    placed: Vec<Placed>,
    /// From node to its index in `placed`.
    index: HashMap<NodeId, usize>,
    metadata_blocks: u64,
    total_blocks: u32,
    extents: Vec<Extent>,
}

impl Plan {
    pub(super) fn new(tree: &Tree) -> Result<Self, WriteError> {
        let mut plan = Self {
            placed: Vec::new(),
            index: HashMap::new(),
            metadata_blocks: 0,
            total_blocks: 0,
            extents: Vec::new(),
        };
        plan.collect(tree, ROOT, ROOT);
        plan.place_inodes();
        plan.place_content(tree)?;
        Ok(plan)
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    pub(super) fn metadata_bytes(&self) -> u64 {
        self.metadata_blocks * BLOCK_BYTES
    }

    /// Walks by name: parents before children, so the order depends on nothing but the tree.
    fn collect(&mut self, tree: &Tree, node: NodeId, parent: NodeId) {
        if let Some(&seen) = self.index.get(&node) {
            self.placed[seen].nlink += 1;
            return;
        }
        let size_bytes = match &tree.nodes[node].kind {
            Kind::Dir(entries) => {
                let mut lens: Vec<&[u8]> = entries.keys().map(Vec::as_slice).chain([&b"."[..], b".."]).collect();
                lens.sort_unstable();
                format::directory_bytes(lens.iter().map(|name| name.len()))
            }
            Kind::File(content) => content.len(),
            Kind::Symlink(target) => target.len() as u64,
            Kind::Device { .. } | Kind::Fifo | Kind::Socket => 0,
        };
        let at = self.placed.len();
        self.index.insert(node, at);
        let layout =
            if size_bytes > 0 && size_bytes <= INLINE_MAX_BYTES { DataLayout::Inline } else { DataLayout::Plain };
        self.placed.push(Placed { node, parent, nlink: 1, size_bytes, layout, nid: 0, first_block: 0 });
        if let Kind::Dir(entries) = &tree.nodes[node].kind {
            self.placed[at].nlink = 2;
            for &child in entries.values() {
                self.collect(tree, child, node);
                if matches!(tree.nodes[child].kind, Kind::Dir(_)) {
                    self.placed[at].nlink += 1;
                }
            }
        }
    }

    /// Inodes in a row; one with its inline content never crosses a block boundary.
    fn place_inodes(&mut self) {
        let mut at = (format::SUPER_END as u64).next_multiple_of(SLOT_BYTES);
        for placed in &mut self.placed {
            let mut len = Inode::len(placed.size_bytes, placed.nlink);
            if placed.layout == DataLayout::Inline {
                len += placed.size_bytes;
            }
            if at % BLOCK_BYTES + len > BLOCK_BYTES {
                at = at.next_multiple_of(BLOCK_BYTES);
            }
            placed.nid = at / SLOT_BYTES;
            at = (at + len).next_multiple_of(SLOT_BYTES);
        }
        self.metadata_blocks = at.div_ceil(BLOCK_BYTES);
    }

    /// Directories first, as they are read first, then files.
    fn place_content(&mut self, tree: &Tree) -> Result<(), WriteError> {
        let mut block = self.metadata_blocks;
        for directories in [true, false] {
            for at in 0..self.placed.len() {
                let placed = &self.placed[at];
                let is_directory = matches!(tree.nodes[placed.node].kind, Kind::Dir(_));
                if is_directory != directories || placed.layout == DataLayout::Inline || placed.size_bytes == 0 {
                    continue;
                }
                let bytes = match &tree.nodes[placed.node].kind {
                    Kind::File(_) => None,
                    _ => Some(self.small_content(tree, placed)?),
                };
                let (node, blocks) = (placed.node, placed.size_bytes.div_ceil(BLOCK_BYTES));
                self.placed[at].first_block = u32::try_from(block).map_err(|_| WriteError::TooLarge)?;
                self.extents.push(Extent { block, node, bytes });
                block += blocks;
            }
        }
        self.total_blocks = u32::try_from(block).map_err(|_| WriteError::TooLarge)?;
        Ok(())
    }

    fn directory(&self, tree: &Tree, placed: &Placed) -> Vec<u8> {
        let Kind::Dir(entries) = &tree.nodes[placed.node].kind else { return Vec::new() };
        let dirent = |name, node| Dirent {
            name,
            nid: self.placed[self.index[&node]].nid,
            file_type: dirent_type(&tree.nodes[node]),
        };
        let mut dirents: Vec<Dirent<'_>> = entries.iter().map(|(name, &node)| dirent(name.as_slice(), node)).collect();
        dirents.push(dirent(b".", placed.node));
        dirents.push(dirent(b"..", placed.parent));
        dirents.sort_unstable_by(|a, b| a.name.cmp(b.name));
        format::encode_directory(&dirents)
    }

    /// The superblock and all inodes with their inline content.
    pub(super) fn metadata(&self, tree: &Tree) -> Result<Vec<u8>, WriteError> {
        let mut image = vec![0; self.metadata_bytes() as usize];
        for (number, placed) in self.placed.iter().enumerate() {
            let node = &tree.nodes[placed.node];
            let at = (placed.nid * SLOT_BYTES) as usize;
            let block_or_device = match node.kind {
                Kind::Device { major, minor } => format::encode_device(major, minor),
                _ => placed.first_block,
            };
            Inode {
                layout: placed.layout,
                mode: node.mode,
                nlink: placed.nlink,
                size_bytes: placed.size_bytes,
                block_or_device,
                number: number as u32 + 1,
            }
            .encode(&mut image[at..]);
            if placed.layout == DataLayout::Inline {
                let content = self.small_content(tree, placed)?;
                let start = at + Inode::len(placed.size_bytes, placed.nlink) as usize;
                image[start..start + content.len()].copy_from_slice(&content);
            }
        }
        // The root is the first inode, so its number fits the superblock's 16 bits.
        let root_nid = self.placed[0].nid as u16;
        format::encode_super(&mut image, root_nid, self.placed.len() as u64, self.total_blocks);
        Ok(image)
    }

    fn small_content(&self, tree: &Tree, placed: &Placed) -> Result<Vec<u8>, WriteError> {
        match &tree.nodes[placed.node].kind {
            Kind::Dir(_) => Ok(self.directory(tree, placed)),
            Kind::File(content) => read_content(content),
            Kind::Symlink(target) => Ok(target.clone()),
            Kind::Device { .. } | Kind::Fifo | Kind::Socket => Ok(Vec::new()),
        }
    }
}

fn dirent_type(node: &Node) -> u8 {
    match node.mode & file_type::MASK {
        file_type::REGULAR => 1,
        file_type::DIR => 2,
        file_type::CHAR => 3,
        file_type::BLOCK => 4,
        file_type::FIFO => 5,
        file_type::SOCKET => 6,
        _ => 7,
    }
}
