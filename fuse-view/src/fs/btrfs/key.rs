//! Keys of items, and the numbers in them.
//!
//! Facts: the on-disk format pages of btrfs.readthedocs.io.

use crate::fs::bytes::{le64, u8_at};

/// Bytes of a key on disk.
pub(super) const KEY_BYTES: usize = 17;

/// What every tree is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// Object the item belongs to, such as an inode.
    pub id: u64,
    /// What the item is.
    pub kind: u8,
    /// Meaning depends on the kind.
    pub offset: u64,
}

impl Key {
    pub const fn new(id: u64, kind: u8, offset: u64) -> Self {
        Self { id, kind, offset }
    }

    /// The key stored at `at`.
    pub fn read(bytes: &[u8], at: usize) -> Self {
        Self { id: le64(bytes, at), kind: u8_at(bytes, at + 8), offset: le64(bytes, at + 9) }
    }

    /// As stored.
    pub fn to_bytes(self) -> [u8; KEY_BYTES] {
        let mut out = [0; KEY_BYTES];
        out[..8].copy_from_slice(&self.id.to_le_bytes());
        out[8] = self.kind;
        out[9..].copy_from_slice(&self.offset.to_le_bytes());
        out
    }

    /// The next larger key; None after the largest.
    pub fn after(self) -> Option<Self> {
        if let Some(offset) = self.offset.checked_add(1) {
            return Some(Self { offset, ..self });
        }
        if let Some(kind) = self.kind.checked_add(1) {
            return Some(Self { kind, offset: 0, ..self });
        }
        self.id.checked_add(1).map(|id| Self::new(id, 0, 0))
    }

    /// The next smaller key; None before the smallest.
    pub fn before(self) -> Option<Self> {
        if let Some(offset) = self.offset.checked_sub(1) {
            return Some(Self { offset, ..self });
        }
        if let Some(kind) = self.kind.checked_sub(1) {
            return Some(Self { kind, offset: u64::MAX, ..self });
        }
        self.id.checked_sub(1).map(|id| Self::new(id, u8::MAX, u64::MAX))
    }

    /// Whether this is an item of that kind of that object.
    pub fn is(self, id: u64, kind: u8) -> bool {
        self.id == id && self.kind == kind
    }
}

/// Kinds of items.
pub(super) mod kind {
    pub const INODE: u8 = 1;
    pub const INODE_REF: u8 = 12;
    pub const INODE_EXTREF: u8 = 13;
    pub const XATTR: u8 = 24;
    pub const DIR_LOG_INDEX: u8 = 72;
    pub const DIR_ITEM: u8 = 84;
    pub const DIR_INDEX: u8 = 96;
    pub const EXTENT_DATA: u8 = 108;
    pub const EXTENT_CSUM: u8 = 128;
    pub const ROOT: u8 = 132;
    pub const ROOT_REF: u8 = 156;
    pub const BLOCK_GROUP: u8 = 192;
    pub const CHUNK: u8 = 228;
}

/// Objects with fixed numbers.
pub(super) mod id {
    pub const EXTENT_TREE: u64 = 2;
    /// The top-level subvolume.
    pub const FS_TREE: u64 = 5;
    /// Directory in the root tree that names the default subvolume.
    pub const ROOT_TREE_DIR: u64 = 6;
    pub const CSUM_TREE: u64 = 7;
    pub const BLOCK_GROUP_TREE: u64 = 11;
    /// The first number of inodes and of subvolumes other than the top-level one.
    pub const FIRST_FREE: u64 = 256;
    pub const LAST_FREE: u64 = -256i64 as u64;
    pub const FIRST_CHUNK_TREE: u64 = 256;
    pub const TREE_LOG: u64 = -6i64 as u64;
    pub const EXTENT_CSUM: u64 = -10i64 as u64;
}

/// Hash of a name, as directory entries and extended attributes are found by.
pub(super) fn name_hash(name: &[u8]) -> u64 {
    raw_crc32c(!1, name)
}

/// Hash of a name together with its directory, as extended back references are found by.
pub(super) fn extref_hash(dir: u64, name: &[u8]) -> u64 {
    let [a, b, c, d, ..] = dir.to_le_bytes();
    raw_crc32c(u32::from_le_bytes([a, b, c, d]), name)
}

/// crc32c continued from `seed`, nothing inverted before or after.
fn raw_crc32c(seed: u32, bytes: &[u8]) -> u64 {
    u64::from(!crc32c::crc32c_append(!seed, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours() {
        let key = Key::new(5, 1, u64::MAX);
        assert_eq!(key.after(), Some(Key::new(5, 2, 0)));
        assert_eq!(Key::new(5, 255, u64::MAX).after(), Some(Key::new(6, 0, 0)));
        assert_eq!(Key::new(u64::MAX, 255, u64::MAX).after(), None);
        assert_eq!(Key::new(0, 0, 0).before(), None);
        for key in [Key::new(5, 2, 0), Key::new(6, 0, 0), Key::new(6, 0, 9)] {
            assert_eq!(key.before().unwrap().after(), Some(key));
        }
        assert_eq!(Key::read(&Key::new(1, 2, 3).to_bytes(), 0), Key::new(1, 2, 3));
    }

    #[test]
    fn hashes() {
        // The name under which the root tree keeps the default subvolume; its hash is in the format's description.
        assert_eq!(name_hash(b"default"), 2_378_154_706);
        assert_ne!(extref_hash(256, b"default"), name_hash(b"default"));
    }
}
