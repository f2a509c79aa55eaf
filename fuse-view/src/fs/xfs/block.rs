//! Blocks of directories and of attributes: reading them, the header they share, their checksum.
//!
//! Facts: "XFS Algorithms & Data Structures", the chapters on directories and extended attributes.

use super::inode::{Inode, Which};
use super::{Xfs, checksum};
use crate::fs::bytes::{be16, be32, be64, bytes16};
use crate::fs::run::Place;
use crate::{Error, Piece, Result};

/// What a block is, by its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Magic {
    /// All of a small directory: entries and, at the end, their hashes.
    DirBlock,
    /// Entries of a directory.
    DirData,
    /// Hashes of the names of a directory, where one block holds all.
    DirLeaf1,
    /// Hashes of names, under a node.
    DirLeaf,
    /// Hashes of the blocks below it.
    Node,
    /// Attributes.
    AttrLeaf,
}

/// A block and what it is.
pub(super) struct Block {
    pub magic: Magic,
    piece: Piece,
    v5: bool,
}

impl Block {
    pub fn bytes(&self) -> &[u8] {
        &self.piece
    }

    /// Bytes before the first entry.
    pub fn header(&self) -> usize {
        match (self.magic, self.v5) {
            (Magic::AttrLeaf, true) => 80,
            (Magic::AttrLeaf, false) => 32,
            (_, true) => 64,
            (_, false) => 16,
        }
    }

    /// Number of entries of an index or a block of attributes.
    pub fn count(&self) -> usize {
        usize::from(be16(&self.piece, if self.v5 { 56 } else { 12 }))
    }

    /// Level of a node above the leaves.
    pub fn level(&self) -> u16 {
        be16(&self.piece, if self.v5 { 58 } else { 14 })
    }

    /// The next block of the same level, 0: none.
    pub fn forward(&self) -> u32 {
        be32(&self.piece, 0)
    }
}

/// What a block of `bytes` is by its magic; the second: whether it is of version 5.
fn magic(bytes: &[u8]) -> Option<(Magic, bool)> {
    let at_start = match &be32(bytes, 0).to_be_bytes() {
        b"XD2B" => Some((Magic::DirBlock, false)),
        b"XDB3" => Some((Magic::DirBlock, true)),
        b"XD2D" => Some((Magic::DirData, false)),
        b"XDD3" => Some((Magic::DirData, true)),
        _ => None,
    };
    at_start.or(match be16(bytes, 8) {
        0xD2F1 => Some((Magic::DirLeaf1, false)),
        0x3DF1 => Some((Magic::DirLeaf1, true)),
        0xD2FF => Some((Magic::DirLeaf, false)),
        0x3DFF => Some((Magic::DirLeaf, true)),
        0xFEBE => Some((Magic::Node, false)),
        0x3EBE => Some((Magic::Node, true)),
        0xFBEE => Some((Magic::AttrLeaf, false)),
        0x3BEE => Some((Magic::AttrLeaf, true)),
        _ => None,
    })
}

/// Where the checksum stands; the address follows it 4 bytes on, the UUID 20, the owner 36.
fn checksum_at(magic: Magic) -> usize {
    if matches!(magic, Magic::DirBlock | Magic::DirData) { 4 } else { 12 }
}

impl Xfs {
    /// log2 of the bytes of a block of this fork's structures.
    fn unit_bits(&self, which: Which) -> u32 {
        if which == Which::Data { self.sb.dir_block_bits } else { self.sb.block_bits }
    }

    /// The block of a directory or of attributes that begins at block `block` of the fork; a hole of that many blocks
    /// otherwise.
    pub(super) fn meta_block(
        &self,
        inode: &Inode,
        which: Which,
        block: u64,
    ) -> Result<std::result::Result<Block, u64>> {
        let bits = self.unit_bits(which);
        let run = self.map(inode, which, block)?;
        let Place::Data(start) = run.place else { return Ok(Err(run.len)) };
        let Some(byte) = self.sb.byte_of(start, 1) else {
            return Err(self.bad_block(inode, block, "it lies outside of the file system"));
        };
        let (piece, patched) = if run.len >= 1 << (bits - self.sb.block_bits) {
            let piece = self.image.piece(byte, 1 << bits)?;
            (piece, self.image.is_patched(byte, 1 << bits))
        } else {
            self.in_pieces(inode, which, block)?
        };
        let (magic, v5) = magic(&piece).ok_or_else(|| self.bad_block(inode, block, "no known magic"))?;
        if v5 != self.sb.v5() {
            return Err(self.bad_block(inode, block, "it is of another version"));
        }
        if v5 {
            self.check_block(inode, &piece, magic, byte, patched)
                .map_err(|what| self.bad_block(inode, block, what))?;
        }
        Ok(Ok(Block { magic, piece, v5 }))
    }

    /// A block larger than those of the file system need not be in one piece. The second: whether the log changed it.
    fn in_pieces(&self, inode: &Inode, which: Which, block: u64) -> Result<(Piece, bool)> {
        let bits = self.unit_bits(which);
        let mut bytes = vec![0; 1 << bits];
        self.read_mapped(inode, which, u64::MAX, block << self.sb.block_bits, &mut bytes)?;
        let mut patched = false;
        for part in 0..1 << (bits - self.sb.block_bits) {
            if let Place::Data(start) = self.map(inode, which, block + part)?.place {
                let at = self.sb.byte_of(start, 1).unwrap_or_default();
                patched |= self.image.is_patched(at, self.sb.block_size());
            }
        }
        Ok((bytes.into(), patched))
    }

    fn bad_block(&self, inode: &Inode, block: u64, what: &str) -> Error {
        Error::Corrupt(format!("xfs inode {}, block {block} of its index or entries: {what}", inode.ino))
    }

    /// Whether a block of version 5 is whole, and the one of this inode at this place.
    fn check_block(
        &self,
        inode: &Inode,
        bytes: &[u8],
        magic: Magic,
        byte: u64,
        patched: bool,
    ) -> std::result::Result<(), &'static str> {
        let at = checksum_at(magic);
        if !patched && !checksum::holds(bytes, at) {
            return Err("its checksum is wrong");
        }
        if be64(bytes, at + 4) != byte >> 9
            || bytes16(bytes, at + 20) != self.sb.meta_uuid
            || be64(bytes, at + 36) != inode.ino
        {
            return Err("it belongs elsewhere");
        }
        Ok(())
    }
}
