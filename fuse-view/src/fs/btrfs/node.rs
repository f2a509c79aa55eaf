//! Tree blocks: their header, and the keys, pointers and items in them.
//!
//! A [`Node`] exists only after its structure was verified, so its accessors need no checks.

use super::key::{KEY_BYTES, Key};
use super::superblock::MAX_LEVELS;
use crate::fs::bytes::{le32, le64, u8_at};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes of the header.
pub(super) const HEADER: usize = 101;
const ITEM: usize = 25;
const POINTER: usize = 33;

/// One tree block.
pub(super) struct Node {
    bytes: Box<[u8]>,
    level: u8,
    count: usize,
}

impl Node {
    /// Verifies that keys ascend and that every item lies inside of the block.
    pub fn parse(bytes: Box<[u8]>) -> Result<Self, &'static str> {
        let level = u8_at(&bytes, 100);
        let count = usize::try_from(le32(&bytes, 96)).unwrap_or(usize::MAX);
        let step = if level == 0 { ITEM } else { POINTER };
        if level >= MAX_LEVELS {
            return Err("its level is impossible");
        }
        if bytes.len() < HEADER || count > (bytes.len() - HEADER) / step || (level > 0 && count == 0) {
            return Err("its number of items is impossible");
        }
        let node = Self { bytes, level, count };
        if (1..count).any(|i| node.key(i - 1) >= node.key(i)) {
            return Err("its keys do not ascend");
        }
        let first = HEADER + count * ITEM;
        if level == 0 && (0..count).any(|i| node.data(i).is_none_or(|data| data.start < first)) {
            return Err("an item leaves it");
        }
        Ok(node)
    }

    /// 0 for a leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Number of items or pointers.
    pub fn count(&self) -> usize {
        self.count
    }

    pub fn generation(&self) -> u64 {
        le64(&self.bytes, 80)
    }

    /// Bytes in memory.
    pub fn weight(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Key `i`, which must be below the count.
    pub fn key(&self, i: usize) -> Key {
        let step = if self.level == 0 { ITEM } else { POINTER };
        Key::read(&self.bytes, HEADER + i * step)
    }

    /// Address and generation of child `i`.
    pub fn child(&self, i: usize) -> (u64, u64) {
        let at = HEADER + i * POINTER + KEY_BYTES;
        (le64(&self.bytes, at), le64(&self.bytes, at + 8))
    }

    /// Where item `i` lies; None: not inside of the block.
    fn data(&self, i: usize) -> Option<Range<usize>> {
        let at = HEADER + i * ITEM + KEY_BYTES;
        let start = usize::try_from(le32(&self.bytes, at)).ok()?.checked_add(HEADER)?;
        let end = usize::try_from(le32(&self.bytes, at + 4)).ok()?.checked_add(start)?;
        (end <= self.bytes.len()).then_some(start..end)
    }

    /// How many keys are below `key`.
    pub fn below(&self, key: Key) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.key(middle) < key { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The last index whose key is not above `key`; None: all are above.
    pub fn at_or_before(&self, key: Key) -> Option<usize> {
        let below = self.below(key);
        if below < self.count && self.key(below) == key { Some(below) } else { below.checked_sub(1) }
    }
}

/// The bytes of an item, shared with the block they are in.
#[derive(Clone)]
pub(super) enum Bytes {
    /// In a leaf.
    Leaf(Arc<Node>, Range<usize>),
    /// On their own: an item that replay made.
    Own(Arc<[u8]>),
}

impl Bytes {
    /// Item `i` of `leaf`.
    pub fn of(leaf: &Arc<Node>, i: usize) -> Self {
        Self::Leaf(leaf.clone(), leaf.data(i).unwrap_or_default())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Leaf(node, range) => node.bytes.get(range.clone()).unwrap_or_default(),
            Self::Own(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leaf with items of these keys and lengths.
    fn leaf(items: &[(u64, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[96..100].copy_from_slice(&u32::try_from(items.len()).unwrap().to_le_bytes());
        let mut end = u32::try_from(4096 - HEADER).unwrap();
        for (i, (id, len)) in items.iter().enumerate() {
            let at = HEADER + i * ITEM;
            end -= len;
            bytes[at..at + 17].copy_from_slice(&Key::new(*id, 1, 0).to_bytes());
            bytes[at + 17..at + 21].copy_from_slice(&end.to_le_bytes());
            bytes[at + 21..at + 25].copy_from_slice(&len.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn search() {
        let node = Node::parse(leaf(&[(2, 10), (4, 0), (6, 20)]).into()).ok().unwrap();
        let key = |id| Key::new(id, 1, 0);
        assert_eq!([1, 2, 3, 6, 7].map(|id| node.below(key(id))), [0, 0, 1, 2, 3]);
        assert_eq!(
            [1, 2, 3, 6, 7].map(|id| node.at_or_before(key(id))),
            [None, Some(0), Some(0), Some(2), Some(2)]
        );
        let node = Arc::new(node);
        assert_eq!([0, 1, 2].map(|i| Bytes::of(&node, i).len()), [10, 0, 20]);
    }

    #[test]
    fn structure() {
        let with = |at: usize, value: u8| {
            let mut bytes = leaf(&[(2, 10), (4, 30), (6, 20)]);
            bytes[at] = value;
            Node::parse(bytes.into()).err()
        };
        assert_eq!(with(4095, 1), None);
        assert_eq!(with(100, 8), Some("its level is impossible"));
        assert_eq!(with(98, 1), Some("its number of items is impossible"));
        assert_eq!(with(HEADER, 4), Some("its keys do not ascend"));
        assert_eq!(with(HEADER + 19, 1), Some("an item leaves it"));
        assert_eq!(with(HEADER + 23, 1), Some("an item leaves it"));
        let mut low = leaf(&[(2, 10)]);
        low[HEADER + 17..HEADER + 21].fill(0);
        assert_eq!(Node::parse(low.into()).err(), Some("an item leaves it"));
    }
}
