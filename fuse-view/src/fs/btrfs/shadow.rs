//! Items that replay changed in one tree: added, replaced or removed; nothing of it is written to the image.
//!
//! Invariants: keys are in memory, at most [`MAX_CHANGES`] of them; contents lie in the scratch that all overlays of the
//! process share, at most [`MAX_BYTES`] of them. A log that wants more is not replayed.

use super::key::Key;
use super::node::Bytes;
use crate::overlay::{Arena, Scratch};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Most items changed: about 100 MiB of memory.
const MAX_CHANGES: usize = 2 << 20;
/// Most bytes of contents, spilled to a file beyond the budget of the scratch.
const MAX_BYTES: u64 = 1 << 30;

/// Position and length of a content; None: removed.
type Change = Option<(u64, u32)>;

/// The changes to one tree.
pub(super) struct Shadow {
    changes: BTreeMap<Key, Change>,
    arena: Arena,
    bytes: u64,
}

impl Shadow {
    pub fn new(scratch: &Scratch) -> Self {
        Self { changes: BTreeMap::new(), arena: Arena::new(scratch), bytes: 0 }
    }

    /// What became of `key`; None: it was not changed.
    pub fn get(&self, key: Key) -> Option<Change> {
        self.changes.get(&key).copied()
    }

    /// The first change at or after `key`.
    pub fn at_or_after(&self, key: Key) -> Option<(Key, Change)> {
        self.changes.range(key..).next().map(|(&key, &change)| (key, change))
    }

    /// The last change at or before `key`.
    pub fn at_or_before(&self, key: Key) -> Option<(Key, Change)> {
        self.changes.range(..=key).next_back().map(|(&key, &change)| (key, change))
    }

    /// A content.
    pub fn bytes(&self, (at, len): (u64, u32)) -> Result<Bytes> {
        let mut bytes = vec![0; len as usize];
        self.arena.read(at, &mut bytes)?;
        Ok(Bytes::Own(bytes.into()))
    }

    /// Adds or replaces an item.
    pub fn put(&mut self, key: Key, bytes: &[u8]) -> Result<()> {
        let len = u32::try_from(bytes.len()).map_err(|_| too_much())?;
        if let Some(Some((at, held))) = self.get(key)
            && held == len
        {
            return self.arena.write(at, bytes);
        }
        self.bytes += u64::from(len);
        if self.bytes > MAX_BYTES {
            return Err(too_much());
        }
        let at = self.arena.append(bytes)?;
        self.change(key, Some((at, len)))
    }

    /// Removes an item, whether it was there or not.
    pub fn remove(&mut self, key: Key) -> Result<()> {
        self.change(key, None)
    }

    fn change(&mut self, key: Key, change: Change) -> Result<()> {
        self.changes.insert(key, change);
        if self.changes.len() > MAX_CHANGES { Err(too_much()) } else { Ok(()) }
    }
}

fn too_much() -> Error {
    Error::Unsupported("its replay changes more than two million items or 1 GiB of them".into())
}
