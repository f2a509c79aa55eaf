//! The snapshots of one volume, as whoever follows a file through them needs them.

use crate::{BlockRead, Result, tree::SnapshotEntry};
use serde::{Deserialize, Serialize};
use std::{ops::Range, sync::Arc};

/// Most changes in one answer.
pub const MAX_CHANGES: usize = 4096;

/// A snapshot in which something differs from the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its id.
    pub id: u64,
    /// Whether anything that was watched differs, or the size.
    pub watched: bool,
    /// Offset and bytes of the blocks asked for that differ.
    pub blocks: Vec<(u64, Vec<u8>)>,
}

/// What a number of snapshots change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Those in which something differs, oldest first. Those in between hold the same.
    pub changes: Vec<Change>,
    /// Id of the last snapshot that was compared; unless `end`, ask again from it.
    pub through: u64,
    /// Whether that is the newest one.
    pub end: bool,
}

/// The snapshots of one volume.
pub trait History {
    /// All of them, oldest first.
    fn snapshots(&self) -> Result<Vec<SnapshotEntry>>;
    /// Opens one of them.
    fn open(&self, snapshot: &SnapshotEntry) -> Result<Arc<dyn BlockRead>>;
    /// Compares each snapshot after the one with id `from` with the one before it, until there are [`MAX_CHANGES`] or it
    /// has done enough for one answer: the blocks in `read`
    /// ([`crate::memo::BLOCK`] bytes each, aligned) that differ, and whether anything in `watch` does.
    fn changes(&self, from: u64, read: &[Range<u64>], watch: &[Range<u64>]) -> Result<Changes>;
}
