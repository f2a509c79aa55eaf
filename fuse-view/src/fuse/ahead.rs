//! What was listed of directories and did not fit into a reply.
//!
//! A reply has room for some two dozen entries with attributes; making them in larger batches costs a fraction. What is
//! left is kept for the request that goes on there. Only directories in snapshots, which never change, are kept.

use crate::{
    Attr, Result,
    tree::{Lifetime, Node, Tree, TreeEntry},
};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Entries listed at once in a directory that never changes, and in others.
const BATCH: usize = 256;
const SHORT_BATCH: usize = 64;
/// Listings kept: about one for each program that lists.
const KEPT: usize = 16;

/// The rest of a listing.
pub struct Ahead {
    dir: Node,
    /// The cookie after which the entries follow.
    pub after: u64,
    pub entries: VecDeque<(TreeEntry, Result<Attr>)>,
    /// Whether nothing follows them.
    pub end: bool,
    lasting: bool,
}

/// The rests that are kept, the one used last at the end.
#[derive(Default)]
pub struct ReadAhead(Mutex<VecDeque<Ahead>>);

impl ReadAhead {
    /// What follows `after` in `dir`: kept, or listed now. Nothing: that is the end.
    pub fn take(&self, tree: &dyn Tree, dir: Node, after: u64) -> Result<Ahead> {
        {
            let mut kept = self.0.lock();
            if let Some(at) = kept.iter().position(|ahead| ahead.dir == dir && ahead.after == after)
                && let Some(ahead) = kept.remove(at)
            {
                return Ok(ahead);
            }
        }
        let lasting = tree.lifetime(dir) == Lifetime::Forever;
        let listing = tree.list(dir, after, if lasting { BATCH } else { SHORT_BATCH })?;
        Ok(Ahead { dir, after, entries: listing.entries.into(), end: listing.end, lasting })
    }

    /// Keeps a rest.
    pub fn keep(&self, ahead: Ahead) {
        if !ahead.lasting {
            return;
        }
        let mut kept = self.0.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(ahead);
    }
}
