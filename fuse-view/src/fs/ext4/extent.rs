//! Extent trees.
//!
//! A node is verified at each look (checksum, depth, order, no overlap), and a walk goes down one level at a time
//! with the range its parent gave it, so a tree that points at itself or at a neighbour ends in an error.

use super::Ext4;
use super::checksum::crc32c;
use super::fast::Mapped;
use super::inode::Inode;
use crate::fs::bytes::{le16, le32};
use crate::fs::run::{Place, Run};
use crate::{Error, Piece, Result};
use std::ops::Range;

const MAGIC: u16 = 0xF30A;
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// The kernel's own limit.
const MAX_DEPTH: u16 = 5;
/// Blocks of a file are numbered with 32 bits.
const END: u64 = 1 << 32;
/// Lengths above this one are those of unwritten extents.
const MAX_WRITTEN: u16 = 32768;

/// A verified node.
struct Node<'a>(&'a [u8]);

impl<'a> Node<'a> {
    /// Checks that `bytes` hold a node of `depth` whose entries lie in order within `range`.
    fn verify(bytes: &'a [u8], depth: u16, range: &Range<u64>) -> std::result::Result<Self, &'static str> {
        let node = Self(bytes);
        if le16(bytes, 0) != MAGIC {
            return Err("an extent node without its magic");
        }
        if le16(bytes, 6) != depth {
            return Err("an extent node at the wrong depth");
        }
        let (count, max) = (node.count(), usize::from(le16(bytes, 4)));
        if count > max || HEADER + max * ENTRY > bytes.len() {
            return Err("an extent node with too many entries");
        }
        if depth > 0 && count == 0 {
            return Err("an empty index node of extents");
        }
        let mut free_from = range.start;
        for i in 0..count {
            let first = node.first(i);
            let len = if depth == 0 { node.extent_len(i) } else { 1 };
            if first < free_from || len == 0 || first + len > range.end {
                return Err("extents that overlap, or leave the range of their parent");
            }
            free_from = first + len;
        }
        Ok(node)
    }

    fn count(&self) -> usize {
        usize::from(le16(self.0, 2))
    }

    /// First file block of entry `i`.
    fn first(&self, i: usize) -> u64 {
        u64::from(le32(self.0, HEADER + i * ENTRY))
    }

    fn raw_len(&self, i: usize) -> u16 {
        le16(self.0, HEADER + i * ENTRY + 4)
    }

    fn is_unwritten(&self, i: usize) -> bool {
        self.raw_len(i) > MAX_WRITTEN
    }

    fn extent_len(&self, i: usize) -> u64 {
        let raw = self.raw_len(i);
        u64::from(if raw > MAX_WRITTEN { raw - MAX_WRITTEN } else { raw })
    }

    /// Image block where the data of extent `i` starts.
    fn data(&self, i: usize) -> u64 {
        let at = HEADER + i * ENTRY;
        u64::from(le32(self.0, at + 8)) | u64::from(le16(self.0, at + 6)) << 32
    }

    /// Image block of the node below index entry `i`.
    fn child(&self, i: usize) -> u64 {
        let at = HEADER + i * ENTRY;
        u64::from(le32(self.0, at + 4)) | u64::from(le16(self.0, at + 8)) << 32
    }

    /// Number of entries that start at or before `block`.
    fn entries_upto(&self, block: u64) -> usize {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low.midpoint(high);
            if self.first(middle) <= block { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The answer of a leaf that covers `range`.
    fn leaf_run(&self, block: u64, range: &Range<u64>) -> Run {
        let upto = self.entries_upto(block);
        if upto > 0 {
            let i = upto - 1;
            let (first, len) = (self.first(i), self.extent_len(i));
            if block < first + len {
                let skip = block - first;
                let place = if self.is_unwritten(i) { Place::Hole } else { Place::Data(self.data(i) + skip) };
                return Run { len: len - skip, place };
            }
        }
        let next = if upto < self.count() { self.first(upto) } else { range.end };
        Run { len: next - block, place: Place::Hole }
    }
}

impl Ext4 {
    /// The run at `block` of a file with extents.
    pub(super) fn map_extents(&self, inode: &Inode, block: u64) -> Result<Run> {
        if block >= END {
            return Ok(Run { len: u64::MAX - block, place: Place::Hole });
        }
        let bad = |what: &str| Error::Corrupt(format!("ext4 inode {}: {what}", inode.ino));
        let root = inode.block_area();
        let mut depth = le16(root, 6);
        if depth > MAX_DEPTH {
            return Err(bad("its extent tree is too deep"));
        }
        let mut range = 0..END;
        let mut piece;
        let mut node = Node::verify(root, depth, &range).map_err(bad)?;
        while depth > 0 {
            let upto = node.entries_upto(block);
            if upto == 0 {
                return Ok(Run { len: node.first(0) - block, place: Place::Hole });
            }
            let end = if upto < node.count() { node.first(upto) } else { range.end };
            range = node.first(upto - 1)..end;
            depth -= 1;
            let child = node.child(upto - 1);
            piece = self.extent_node(inode, child, depth, &range)?;
            node = Node(&piece);
        }
        Ok(node.leaf_run(block, &range))
    }

    /// Passes every extent of the tree of `inode` to `visit` as first block, length and place; the number of blocks of
    /// the tree itself that lead to extents before block `end`.
    pub(super) fn each_extent(
        &self,
        inode: &Inode,
        end: u64,
        visit: &mut dyn FnMut(u64, u64, Mapped),
    ) -> Result<u64> {
        let bad = |what: &str| Error::Corrupt(format!("ext4 inode {}: {what}", inode.ino));
        let root = inode.block_area();
        let depth = le16(root, 6);
        if depth > MAX_DEPTH {
            return Err(bad("its extent tree is too deep"));
        }
        let root = Node::verify(root, depth, &(0..END)).map_err(bad)?;
        self.each_below(inode, &root, depth, 0..END, end, visit)
    }

    fn each_below(
        &self,
        inode: &Inode,
        node: &Node<'_>,
        depth: u16,
        range: Range<u64>,
        end: u64,
        visit: &mut dyn FnMut(u64, u64, Mapped),
    ) -> Result<u64> {
        if depth == 0 {
            for i in 0..node.count() {
                let at = node.data(i);
                let place = if node.is_unwritten(i) { Mapped::Unwritten(at) } else { Mapped::Data(at) };
                visit(node.first(i), node.extent_len(i), place);
            }
            return Ok(0);
        }
        let mut nodes = 0;
        for i in 0..node.count() {
            let upto = if i + 1 < node.count() { node.first(i + 1) } else { range.end };
            let range = node.first(i)..upto;
            let piece = self.extent_node(inode, node.child(i), depth - 1, &range)?;
            let child = Node(&piece);
            let below = self.each_below(inode, &child, depth - 1, range, end, visit)?;
            let leaf_is_kept = depth == 1 && child.count() > 0 && child.first(0) < end;
            nodes += below + u64::from(below > 0 || leaf_is_kept);
        }
        Ok(nodes)
    }

    fn extent_node(&self, inode: &Inode, block: u64, depth: u16, range: &Range<u64>) -> Result<Piece> {
        let bad = |what: &str| Error::Corrupt(format!("ext4 inode {}, block {block}: {what}", inode.ino));
        if !self.sb.holds(block, 1) {
            return Err(bad("an extent node outside of the file system"));
        }
        let piece = self.block(block)?;
        let bytes = &piece[..];
        let node = Node::verify(bytes, depth, range).map_err(bad)?;
        let tail = HEADER + usize::from(le16(node.0, 4)) * ENTRY;
        let sum = |at: usize| crc32c(inode.seed, &bytes[..at.min(bytes.len())]);
        if self.sb.checksums() && le32(bytes, tail) != sum(tail) {
            return Err(bad("an extent node whose checksum is wrong"));
        }
        Ok(piece)
    }
}

/// Whether `i_block` holds the root of an extent tree at all.
pub(super) fn is_root(area: &[u8]) -> bool {
    le16(area, 0) == MAGIC
}

/// `i_block` of a file without extents.
pub(super) fn empty_root() -> [u8; 60] {
    let mut area = [0; 60];
    area[..2].copy_from_slice(&MAGIC.to_le_bytes());
    area[4] = 4;
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(depth: u16, entries: &[(u32, u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![0x0A, 0xF3];
        bytes.extend(u16::try_from(entries.len()).unwrap().to_le_bytes());
        bytes.extend(4u16.to_le_bytes());
        bytes.extend(depth.to_le_bytes());
        bytes.extend([0; 4]);
        for (first, len, start) in entries {
            bytes.extend(first.to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend([0; 2]);
            bytes.extend(start.to_le_bytes());
        }
        bytes.resize(60, 0);
        bytes
    }

    #[test]
    fn a_leaf_answers_for_every_block_of_its_range() {
        let bytes = node(0, &[(10, 5, 100), (15, 32768 + 5, 200), (30, 32768, 300)]);
        let range = 5..END;
        let leaf = Node::verify(&bytes, 0, &range).unwrap();
        let check =
            |block, len, place| assert_eq!(leaf.leaf_run(block, &range), Run { len, place }, "block {block}");
        check(5, 5, Place::Hole);
        check(10, 5, Place::Data(100));
        check(14, 1, Place::Data(104));
        check(15, 5, Place::Hole);
        check(20, 10, Place::Hole);
        check(30, 32768, Place::Data(300));
        check(32798, END - 32798, Place::Hole);
    }

    #[test]
    fn lies_are_refused() {
        let good = [(10, 5, 100), (15, 5, 200)];
        let check = |what: &str, bytes: &[u8], depth, range: Range<u64>| {
            assert!(Node::verify(bytes, depth, &range).is_err(), "{what}");
        };
        Node::verify(&node(0, &good), 0, &(0..END)).map(|_| ()).unwrap();
        check("depth", &node(1, &good), 0, 0..END);
        check("overlap", &node(0, &[(10, 6, 100), (15, 5, 200)]), 0, 0..END);
        check("order", &node(0, &[(15, 5, 100), (10, 5, 200)]), 0, 0..END);
        check("empty extent", &node(0, &[(15, 0, 100)]), 0, 0..END);
        check("before the parent's range", &node(0, &good), 0, 11..END);
        check("past the parent's range", &node(0, &good), 0, 0..19);
        check("past the last block", &node(0, &[(u32::MAX, 2, 7)]), 0, 0..END);
        check("empty index", &node(1, &[]), 1, 0..END);
        check("short", &node(0, &good)[..40], 0, 0..END);
        check("nothing", &[], 0, 0..END);
    }
}
