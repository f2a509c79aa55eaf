//! Trees of extents.
//!
//! A node is verified when it comes in (checksum, address, level, order), and a walk goes down one level at a time
//! with the range its parent gave it, so a tree that points at itself or at a neighbour ends in an error.

use super::extent::{END, Extent, Found, RECORD, find_in, in_order};
use super::inode::{Fork, Inode};
use super::{Xfs, checksum};
use crate::fs::bytes::{be16, be32, be64, bytes16};
use crate::{Error, Piece, Result};
use std::ops::Range;

/// More levels than the most extents in the smallest blocks take.
const MAX_LEVEL: u16 = 12;
const KEY: usize = 8;
const POINTER: usize = 8;

/// The keys and pointers of a node, be it the root in the inode or a block.
struct Index<'a> {
    keys: &'a [u8],
    pointers: &'a [u8],
    count: usize,
}

impl<'a> Index<'a> {
    /// Keys and pointers in `area`, each with room for as many as fit.
    fn new(area: &'a [u8], count: usize) -> Option<Self> {
        let most = area.len() / (KEY + POINTER);
        (1..=most).contains(&count).then(|| Self {
            keys: &area[..count * KEY],
            pointers: &area[most * KEY..][..count * POINTER],
            count,
        })
    }

    fn key(&self, i: usize) -> u64 {
        be64(self.keys, i * KEY)
    }

    fn in_order(&self) -> bool {
        (1..self.count).all(|i| self.key(i - 1) < self.key(i))
    }

    /// The child that covers `block` within `range`, with the range it covers; None: nothing before that block.
    fn child(&self, block: u64, range: &Range<u64>) -> std::result::Result<(u64, Range<u64>), u64> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) <= block { low = middle + 1 } else { high = middle }
        }
        if low == 0 {
            return Err(self.key(0));
        }
        let end = if low < self.count { self.key(low) } else { range.end };
        Ok((be64(self.pointers, (low - 1) * POINTER), self.key(low - 1)..end))
    }
}

impl Xfs {
    /// What is at `block` of a fork whose root is in the inode.
    pub(super) fn map_tree(&self, inode: &Inode, fork: &Fork, block: u64) -> Result<Found> {
        let bad = |what: &str| Error::Corrupt(format!("xfs inode {}: {what}", inode.ino));
        let root = inode.fork_bytes(fork);
        let mut level = be16(root, 0);
        if !(1..=MAX_LEVEL).contains(&level) {
            return Err(bad("the root of its tree of extents has an impossible level"));
        }
        let mut range = 0..END;
        let mut piece: Piece;
        let mut index = Index::new(&root[4..], usize::from(be16(root, 2)))
            .filter(Index::in_order)
            .ok_or_else(|| bad("the root of its tree of extents is impossible"))?;
        loop {
            let (child, covered) = match index.child(block, &range) {
                Ok(found) => found,
                Err(first) => return Ok(Found::Hole(first)),
            };
            if covered.start < range.start || covered.end > range.end {
                return Err(bad("a node of its tree of extents leaves the range of its parent"));
            }
            range = covered;
            level -= 1;
            piece = self.tree_node(inode, child)?;
            let count = usize::from(be16(&piece, 6));
            if be16(&piece, 4) != level {
                return Err(bad("a node of its tree of extents is at the wrong level"));
            }
            let area = &piece[self.tree_header()..];
            if level == 0 {
                // Order is known; that its ends are within the range is left to say.
                let ends = count == 0
                    || (Extent::decode(area, 0).offset >= range.start
                        && Extent::decode(area, count - 1).end() <= range.end);
                if !ends {
                    return Err(bad("a leaf of its tree of extents leaves the range of its parent"));
                }
                return Ok(find_in(count, |i| Extent::decode(area, i), block, range.end));
            }
            index = Index::new(area, count).ok_or_else(|| bad("an empty node of extents"))?;
        }
    }

    /// Bytes before the entries of a node.
    fn tree_header(&self) -> usize {
        if self.sb.v5() { 72 } else { 24 }
    }

    fn tree_node(&self, inode: &Inode, number: u64) -> Result<Piece> {
        let len = self.sb.block_size();
        let bad = |what: &str| Error::Corrupt(format!("xfs inode {}, block {number}: {what}", inode.ino));
        let byte = self
            .sb
            .byte_of(number, 1)
            .filter(|byte| *byte > 0)
            .ok_or_else(|| bad("a node of extents outside of the file system"))?;
        let piece = self.image.piece(byte, len)?;
        self.check_node(&piece, byte).map_err(bad)?;
        Ok(piece)
    }

    /// The owner is not asked: an exchange of content may be waiting in the log to change it.
    fn check_node(&self, bytes: &[u8], byte: u64) -> std::result::Result<(), &'static str> {
        let v5 = self.sb.v5();
        if be32(bytes, 0) != u32::from_be_bytes(if v5 { *b"BMA3" } else { *b"BMAP" }) {
            return Err("a node of extents without its magic");
        }
        if v5 {
            if !self.image.is_patched(byte, bytes.len()) && !checksum::holds(bytes, 64) {
                return Err("a node of extents whose checksum is wrong");
            }
            if be64(bytes, 24) != byte >> 9 || bytes16(bytes, 40) != self.sb.meta_uuid {
                return Err("a node of extents that belongs elsewhere");
            }
        }
        let (level, count) = (be16(bytes, 4), usize::from(be16(bytes, 6)));
        let area = &bytes[self.tree_header()..];
        let sane = if level == 0 {
            count <= area.len() / RECORD && in_order(area, count, &(0..END))
        } else {
            Index::new(area, count).is_some_and(|index| index.in_order())
        };
        if sane { Ok(()) } else { Err("a node of extents whose entries are impossible") }
    }
}
