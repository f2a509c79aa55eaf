//! What two snapshots share.
//!
//! Invariant: blocks of a snapshot are never written, so that two snapshots which refer to the same physical block
//! hold the same bytes there, for as long as both exist. Subtrees that both refer to are skipped: the cost of a
//! comparison follows what differs, once the maps are in trees (a checkpoint puts them there).

use crate::core::{Cell, Core};
use crate::format::node::{Root, span};
use crate::io::port::ready;
use crate::map::tree::subtree;
use crate::snapshot::Snapshot;
use crate::{BLOCK_BYTES, Result};
use std::ops::Range;

impl Snapshot {
    /// The next byte range at or after `offset`, in whole blocks, in which this snapshot and `base` may hold
    /// different bytes; None: what follows is shared. What lies past the end of `base` differs.
    ///
    /// # Errors
    /// `NotFound` once one of the two is deleted, `Io`, `Damaged`.
    pub fn next_difference(&self, base: &Self, offset: u64) -> Result<Option<Range<u64>>> {
        self.next_difference_within(base, offset..self.size_bytes())
    }

    /// As [`Snapshot::next_difference`], looking no further than the end of `range`.
    pub fn next_difference_within(&self, base: &Self, range: Range<u64>) -> Result<Option<Range<u64>>> {
        let _io = self.core.epochs.begin();
        self.alive()?;
        base.alive()?;
        let end = range.end.div_ceil(BLOCK_BYTES).min(self.size_blocks);
        let mut l = range.start / BLOCK_BYTES;
        let mut found: Option<Range<u64>> = None;
        while l < end {
            let common = base.size_blocks.saturating_sub(l).min(end - l);
            let (len, same) = if common == 0 {
                (end - l, false)
            } else {
                compare(&self.core, &self.cell, &base.cell, l, common)?
            };
            match (&mut found, same) {
                (None, true) => {}
                (None, false) => found = Some(l..l + len),
                (Some(range), false) => range.end += len,
                (Some(_), true) => break,
            }
            l += len;
        }
        Ok(found.map(|blocks| blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES))
    }
}

/// Whether block `l` is the same in both versions, and for how many blocks, at most `max`, that answer holds.
fn compare(core: &Core, a: &Cell, b: &Cell, l: u64, max: u64) -> Result<(u64, bool)> {
    if let (Some(a), Some(b)) = (settled(a), settled(b)) {
        let shared = shared_span(core, a, b, l)?;
        if shared > 0 {
            return Ok((shared.min(max), true));
        }
    }
    let new = ready(core.place(&core.blocking(), a, l, max))?;
    let old = ready(core.place(&core.blocking(), b, l, new.len))?;
    let same = match (new.data, old.data) {
        (None, None) => true,
        (Some((p, _)), Some((q, _))) => p == q,
        _ => false,
    };
    Ok((new.len.min(old.len), same))
}

/// The tree of a version, if nothing of it is only in memory.
fn settled(cell: &Cell) -> Option<Root> {
    let live = cell.live.read();
    (live.active.is_empty() && live.frozen.is_empty()).then_some(live.root)
}

/// The number of blocks from `l` on that lie below a node which both trees refer to; 0: none.
fn shared_span(core: &Core, a: Root, b: Root, l: u64) -> Result<u64> {
    let top = a.height.max(b.height);
    for level in (0..=top).rev() {
        let size = span(level);
        let base = l - l % size;
        let (Some(x), Some(y)) =
            (subtree(&core.cache, a, level, base)?, subtree(&core.cache, b, level, base)?)
        else {
            continue;
        };
        if x == y {
            return Ok(size - l % size);
        }
    }
    Ok(0)
}
