//! Hashed directories: finding a name without reading all of the directory.
//!
//! Facts: "Hash Tree Directories" in the kernel's `Documentation/filesystems/ext4/directory.rst`.

use super::Ext4;
use super::dir::tree_entries_at;
use super::hash::{Algorithm, name_hash};
use super::inode::Inode;
use super::superblock::incompat;
use crate::fs::bytes::{le16, le32, u8_at};
use crate::{Error, Piece, Result};

/// A place in one node: its entries and the one that was taken.
struct Frame {
    node: Piece,
    entries_at: usize,
    count: usize,
    at: usize,
}

/// Why the tree cannot be used; all of the directory can still be searched.
type BadTree = String;

impl Frame {
    fn new(node: Piece, is_root: bool) -> std::result::Result<Self, BadTree> {
        let bytes = &node[..];
        let entries_at =
            tree_entries_at(bytes).filter(|&at| is_root == (at == 32)).ok_or("no node of the hash tree")?;
        let (limit, count) = (usize::from(le16(bytes, entries_at)), usize::from(le16(bytes, entries_at + 2)));
        if count == 0 || count > limit || entries_at + 8 * limit > bytes.len() {
            return Err("a node of the hash tree with an impossible count".into());
        }
        Ok(Self { node, entries_at, count, at: 0 })
    }

    /// Hash from which entry `i` counts; the first has none, it counts from the start.
    fn hash(&self, i: usize) -> u32 {
        if i == 0 { 0 } else { le32(&self.node, self.entries_at + 8 * i) }
    }

    /// Directory block below the entry taken.
    fn child(&self) -> u64 {
        u64::from(le32(&self.node, self.entries_at + 8 * self.at + 4) & 0x0FFF_FFFF)
    }

    /// Takes the last entry whose hash is not above `hash`.
    fn seek(&mut self, hash: u32) {
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.hash(middle) <= hash { low = middle + 1 } else { high = middle }
        }
        self.at = low - 1;
    }
}

impl Ext4 {
    /// Finds `name` by its hash. The outer error says that the tree is not usable, the inner one that the leaf is not.
    pub(super) fn find_in_tree(
        &self,
        dir: &Inode,
        name: &[u8],
    ) -> std::result::Result<Result<Option<u32>>, BadTree> {
        let root = self.tree_node(dir, 0)?;
        let (version, levels) = (u8_at(&root, 28), u8_at(&root, 30));
        let algorithm = Algorithm::of(version, self.sb.hash_unsigned).ok_or("an unknown hash")?;
        let most = if self.sb.has(incompat::LARGE_DIR) { 2 } else { 1 };
        if levels > most || u8_at(&root, 31) & 1 != 0 {
            return Err("a hash tree that is too deep, or of a newer kind".into());
        }
        let hash = name_hash(algorithm, &self.sb.hash_seed, name);
        let mut frames = vec![Frame::new(root, true)?];
        frames[0].seek(hash);
        self.descend(dir, &mut frames, usize::from(levels), hash)?;
        // A run of equal hashes may go on in following leaves; no more of them than the directory has blocks.
        for _ in 0..=self.dir_blocks(dir) {
            let Some(leaf) = frames.last().map(Frame::child) else { break };
            match self.leaf(dir, leaf, name) {
                Ok(None) => {}
                found => return Ok(found),
            }
            if !self.next_leaf(dir, &mut frames, usize::from(levels), hash)? {
                break;
            }
        }
        Ok(Ok(None))
    }

    fn leaf(&self, dir: &Inode, block: u64, name: &[u8]) -> Result<Option<u32>> {
        if block == 0 || block >= self.dir_blocks(dir) {
            return Err(Error::Corrupt(format!("ext4 directory {}: a leaf outside of it", dir.ino)));
        }
        match self.dir_block(dir, block)? {
            Ok(found) => self.find_in_block(dir, &found, name, None),
            Err(_) => Err(Error::Corrupt(format!("ext4 directory {}: a leaf in a hole", dir.ino))),
        }
    }

    fn tree_node(&self, dir: &Inode, block: u64) -> std::result::Result<Piece, BadTree> {
        if block >= self.dir_blocks(dir) {
            return Err("a node of the hash tree outside of the directory".into());
        }
        match self.dir_block(dir, block) {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(_)) => Err("a node of the hash tree in a hole".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Goes down from the last frame until there is one for each level.
    fn descend(
        &self,
        dir: &Inode,
        frames: &mut Vec<Frame>,
        levels: usize,
        hash: u32,
    ) -> std::result::Result<(), BadTree> {
        while frames.len() <= levels {
            let Some(child) = frames.last().map(Frame::child) else { break };
            let mut frame = Frame::new(self.tree_node(dir, child)?, false)?;
            frame.seek(hash);
            frames.push(frame);
        }
        Ok(())
    }

    /// Goes to the next leaf if it continues the run of `hash`.
    fn next_leaf(
        &self,
        dir: &Inode,
        frames: &mut Vec<Frame>,
        levels: usize,
        hash: u32,
    ) -> std::result::Result<bool, BadTree> {
        while frames.last().is_some_and(|frame| frame.at + 1 >= frame.count) {
            frames.pop();
        }
        let Some(frame) = frames.last_mut() else { return Ok(false) };
        // The low bit says that the entries of the leaf before reach into this one.
        if frame.hash(frame.at + 1) & !1 != hash {
            return Ok(false);
        }
        frame.at += 1;
        while frames.len() <= levels {
            let Some(child) = frames.last().map(Frame::child) else { break };
            frames.push(Frame::new(self.tree_node(dir, child)?, false)?);
        }
        Ok(true)
    }
}
