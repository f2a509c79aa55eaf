//! Metadata in memory: pieces of the image that passed the check of their kind, bounded by bytes.
//!
//! No lock is held over I/O; two readers of one missing piece may both read it.

use quick_cache::{Weighter, sync::Cache as Weighted};
use std::sync::Arc;

/// Bytes that one open file system may keep.
const BUDGET_BYTES: u64 = 24 << 20;
/// What a piece costs besides its bytes.
const OVERHEAD_BYTES: u64 = 128;
/// Most pieces are a block of 4 KiB.
const LIKELY_PIECES: usize = 6144;

/// What a piece is, so that a block checked as one thing is never taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// A piece of a chunk of inodes; each inode is checked when it is taken.
    Inodes,
    /// A node or leaf of a tree of extents.
    Extents,
    /// A block of a directory, or of the index of one, or of attributes.
    Dir,
    /// A block of the value of an attribute.
    Value,
}

/// A piece, shared with whoever still reads it.
pub(super) type Piece = Arc<[u8]>;

#[derive(Clone)]
struct ByBytes;

impl Weighter<(Kind, u64), Piece> for ByBytes {
    fn weight(&self, _key: &(Kind, u64), piece: &Piece) -> u64 {
        piece.len() as u64 + OVERHEAD_BYTES
    }
}

/// The pieces of one image, by kind and byte.
pub(super) struct Cache(Weighted<(Kind, u64), Piece, ByBytes>);

impl Cache {
    pub fn new() -> Self {
        Self(Weighted::with_weighter(LIKELY_PIECES, BUDGET_BYTES, ByBytes))
    }

    /// What is kept of `kind` at byte `at`, if it is `len` bytes.
    pub fn get(&self, kind: Kind, at: u64, len: usize) -> Option<Piece> {
        self.0.get(&(kind, at)).filter(|piece| piece.len() == len)
    }

    pub fn keep(&self, kind: Kind, at: u64, piece: &Piece) {
        self.0.insert((kind, at), piece.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_exact() {
        let cache = Cache::new();
        for at in 0..1000u64 {
            cache.keep(Kind::Dir, at << 16, &vec![1; 1 << 16].into());
            assert!(cache.0.weight() <= BUDGET_BYTES);
        }
        cache.keep(Kind::Dir, 5, &vec![7; 10].into());
        assert_eq!(cache.get(Kind::Dir, 5, 10).unwrap()[..], [7; 10]);
        assert!(cache.get(Kind::Dir, 5, 11).is_none() && cache.get(Kind::Inodes, 5, 10).is_none());
    }
}
