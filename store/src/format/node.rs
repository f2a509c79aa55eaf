//! Nodes of the map: a leaf maps 512 blocks, an upper node refers to 256 children. Neither has a header:
//! the checksum and birth of a node stand in its parent's entry, the root's in the checkpoint.

use crate::types::{BLOCK_BYTES, Epoch, Phys};

/// Entries of a leaf: 512 blocks of 4 KiB, 2 MiB of a volume.
pub const LEAF_ENTRIES: u64 = if cfg!(mutation = "oversized-node") { 513 } else { 512 };
/// Children of an upper node.
pub const FANOUT: u64 = 256;
/// Ages from here on are not known exactly any more: the origin's tree has to be asked.
pub const ANCIENT: u64 = (1 << 24) - 1;
/// Highest node level: 2 MiB · 256⁴ exceeds every volume.
pub const MAX_HEIGHT: u8 = 4;
/// An entry of an upper node.
const CHILD_BYTES: usize = 16;

// No room for a checksum, and none is needed there (H34).
const _: () =
    assert!(LEAF_ENTRIES * size_of::<u64>() as u64 == BLOCK_BYTES, "the entries of a leaf fill a block");
const _: () = assert!(FANOUT * CHILD_BYTES as u64 == BLOCK_BYTES, "the entries of a node fill a block");

const PHYS_BITS: u32 = 38;
const KIND_DATA: u64 = 1;

/// One entry of a leaf, unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafEntry {
    /// Physical block.
    pub p: Phys,
    /// Epoch in which the block was written; None: ancient.
    pub birth: Option<Epoch>,
}

/// Packs an entry: P 38 bits | age 24 bits | kind 2 bits, low to high. A hole is 0.
pub fn pack_leaf(entry: Option<LeafEntry>, leaf_birth: Epoch) -> u64 {
    let Some(e) = entry else { return 0 };
    let age = e.birth.map_or(ANCIENT, |b| (leaf_birth.0 - b.0).min(ANCIENT));
    debug_assert!(e.p.0 < 1 << PHYS_BITS);
    e.p.0 | age << PHYS_BITS | KIND_DATA << 62
}

/// Unpacks an entry of a leaf born in `leaf_birth`. Unknown kinds and impossible ages read as `Err`.
pub fn unpack_leaf(word: u64, leaf_birth: Epoch) -> Result<Option<LeafEntry>, &'static str> {
    match word >> 62 {
        0 if word == 0 => Ok(None),
        KIND_DATA => {
            let age = (word >> PHYS_BITS) & ANCIENT;
            let birth = if age == ANCIENT {
                None
            } else {
                Some(Epoch(leaf_birth.0.checked_sub(age).ok_or("a block is older than the pool")?))
            };
            Ok(Some(LeafEntry { p: Phys(word & ((1 << PHYS_BITS) - 1)), birth }))
        }
        _ => Err("a leaf entry has an unknown kind"),
    }
}

/// What an upper entry, or a root, refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Child {
    /// Nothing is mapped below.
    #[default]
    Hole,
    /// A node with this checksum, last written in epoch `birth`.
    Node {
        /// Where it is.
        p: Phys,
        /// Epoch in which it was written.
        birth: Epoch,
        /// CRC32C of its 4096 bytes.
        crc: u32,
    },
    /// In the place of a leaf: 512 consecutive blocks from `p`, all born in `birth`.
    Run {
        /// First block.
        p: Phys,
        /// Epoch in which all of them were written.
        birth: Epoch,
    },
}

const KIND_HOLE: u64 = 0;
const KIND_NODE: u64 = 1;
const KIND_RUN: u64 = 2;

impl Child {
    /// P 40 bits | birth 40 bits | kind 8 bits | flags 8 bits | crc32c 32 bits, low to high.
    pub fn pack(self) -> [u8; CHILD_BYTES] {
        let (p, birth, kind, crc) = match self {
            Self::Hole => return [0; CHILD_BYTES],
            Self::Node { p, birth, crc } => (p.0, birth.0, KIND_NODE, crc),
            Self::Run { p, birth } => (p.0, birth.0, KIND_RUN, 0),
        };
        debug_assert!(p < 1 << 40 && birth < 1 << 40);
        let low = p | birth << 40;
        let high = birth >> 24 | kind << 16 | u64::from(crc) << 32;
        let mut out = [0; CHILD_BYTES];
        out[..8].copy_from_slice(&low.to_le_bytes());
        out[8..].copy_from_slice(&high.to_le_bytes());
        out
    }

    /// The opposite of [`Child::pack`].
    pub fn unpack(bytes: &[u8; CHILD_BYTES]) -> Result<Self, &'static str> {
        let word = |r: std::ops::Range<usize>| u64::from_le_bytes(bytes[r].try_into().expect("8 bytes"));
        let (low, high) = (word(0..8), word(8..16));
        let p = Phys(low & ((1 << 40) - 1));
        let birth = Epoch(low >> 40 | (high & 0xffff) << 24);
        let crc = u32::try_from(high >> 32).expect("32 bits");
        match (high >> 16) & 0xff {
            KIND_HOLE if low == 0 && high == 0 => Ok(Self::Hole),
            KIND_NODE => Ok(Self::Node { p, birth, crc }),
            KIND_RUN => Ok(Self::Run { p, birth }),
            _ => Err("an upper entry has an unknown kind"),
        }
    }
}

/// Root of a version's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Root {
    /// Level of what `child` refers to: 0 a leaf (or run), 1 a node of leaves, and so on.
    pub height: u8,
    /// The top of the tree.
    pub child: Child,
}

/// Blocks below a child at `level`.
pub fn span(level: u8) -> u64 {
    LEAF_ENTRIES << (8 * u32::from(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_packing() {
        for (p, birth, leaf) in [(0, 1, 1), ((1 << 38) - 1, 5, 5 + ANCIENT - 1), (77, 0, 1 << 39)] {
            let e = LeafEntry { p: Phys(p), birth: Some(Epoch(birth)) };
            let got = unpack_leaf(pack_leaf(Some(e), Epoch(leaf)), Epoch(leaf)).unwrap().unwrap();
            assert_eq!(got.p, e.p);
            assert_eq!(got.birth, (leaf - birth < ANCIENT).then_some(Epoch(birth)));
        }
        for c in [
            Child::Hole,
            Child::Node { p: Phys((1 << 40) - 1), birth: Epoch((1 << 40) - 1), crc: u32::MAX },
            Child::Run { p: Phys(3), birth: Epoch(1 << 30) },
        ] {
            assert_eq!(Child::unpack(&c.pack()), Ok(c));
        }
        assert!(Child::unpack(&[0xff; 16]).is_err());
        assert!(unpack_leaf(u64::MAX, Epoch(1)).is_err());
    }
}
