//! Deleting a version: what it holds and neither its parent nor its one child holds is freed, found by walking
//! the difference of two trees with shared subtrees pruned. The walk goes in slices and can go on anywhere.

use super::NodeCache;
use super::merge::outlives;
use super::tree::{leaf_view, subtree, upper_entries};
use crate::Result;
use crate::format::node::{Child, LEAF_ENTRIES, Root, span};
use crate::mutation::Mutation;
use crate::types::{Epoch, Phys};

/// A version that goes, and its neighbours. Equal ones free the same blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// Its map.
    pub root: Root,
    /// Its child's map, if it has a child.
    pub child: Option<Root>,
    /// Its parent's epoch and map; epoch 0 without one.
    pub parent: (Epoch, Root),
}

/// What a walk has left to do.
struct Walk<'a, F> {
    cache: &'a NodeCache,
    d: Deletion,
    cursor: u64,
    budget: &'a mut u64,
    free: F,
}

/// Where to go on, or the end.
enum Progress {
    Done,
    StopAt(u64),
}

/// Walks from `cursor`, visiting at most `budget` leaves (it is counted down), and calls `free` for what only
/// this version holds. Returns where to go on; None when the version is gone.
pub fn walk(
    cache: &NodeCache,
    d: Deletion,
    cursor: u64,
    budget: &mut u64,
    free: impl FnMut(Phys) -> Result<()>,
) -> Result<Option<u64>> {
    let mut w = Walk { cache, d, cursor, budget, free };
    Ok(match w.visit(d.root.child, d.root.height, 0)? {
        Progress::Done => None,
        Progress::StopAt(l) => Some(l),
    })
}

impl<F: FnMut(Phys) -> Result<()>> Walk<'_, F> {
    fn visit(&mut self, child: Child, level: u8, base: u64) -> Result<Progress> {
        if base + span(level) <= self.cursor {
            return Ok(Progress::Done);
        }
        let birth = match child {
            Child::Hole => return Ok(Progress::Done),
            Child::Node { birth, .. } | Child::Run { birth, .. } => birth,
        };
        let other = match self.d.child {
            Some(root) => subtree(self.cache, root, level, base)?,
            None => Some(Child::Hole),
        };
        if birth <= self.d.parent.0 || other == Some(child) {
            return Ok(Progress::Done);
        }
        match child {
            Child::Node { p, crc, .. } if level > 0 => {
                let size = span(level - 1);
                for (i, c) in upper_entries(&*self.cache.load_now(p, crc)?)?.into_iter().enumerate() {
                    if let stop @ Progress::StopAt(_) = self.visit(c, level - 1, base + i as u64 * size)? {
                        return Ok(stop);
                    }
                }
            }
            _ => {
                if *self.budget == 0 {
                    return Ok(Progress::StopAt(base));
                }
                *self.budget -= 1;
                // A leaf of a shorter tree has no node above it to compare with.
                self.free_leaf(child, base, other.unwrap_or_default())?;
            }
        }
        if let Child::Node { p, .. } = child {
            (self.free)(p)?;
        }
        Ok(Progress::Done)
    }

    fn free_leaf(&mut self, child: Child, base: u64, other: Child) -> Result<()> {
        let mine = leaf_view(self.cache, child)?;
        let theirs = leaf_view(self.cache, other)?;
        let (epoch, root) = self.d.parent;
        for (i, (m, t)) in (0..LEAF_ENTRIES).zip(mine.into_iter().zip(theirs)) {
            let Some(m) = m else { continue };
            if t.is_none_or(|t| t.p != m.p)
                && (Mutation::NaiveDeletion.on() || !outlives(self.cache, m, base + i, epoch, root)?)
            {
                (self.free)(m.p)?;
            }
        }
        Ok(())
    }
}
