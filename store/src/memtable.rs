//! The memtable: mappings that are in the log and not yet in the tree, as spans of logical blocks.
//!
//! A layer holds the changes of one head in one epoch. Invariants: spans do not overlap; every block that a
//! span drops was allocated in this layer, so nothing but this layer's drop list refers to it.

use crate::format::node::{FANOUT, LEAF_ENTRIES, MAX_HEIGHT};
use crate::types::{Epoch, Few, Lsn, Phys};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a span maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Consecutive blocks from here.
    Data(Phys),
    /// Zeros.
    Hole,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    len: u64,
    target: Target,
    /// End of the youngest record in it.
    lsn: Lsn,
}

/// Changes of one head in one epoch.
#[derive(Debug)]
pub struct Layer {
    /// Unique within the process.
    pub id: u64,
    /// Epoch in which its blocks are born.
    pub epoch: Epoch,
    /// Blocks that were mapped in this layer and then dropped.
    pub dropped: Vec<(Phys, u64)>,
    /// Blocks that were holes before this layer mapped them (as the writer saw it).
    pub grown: u64,
    spans: BTreeMap<u64, Span>,
    /// Nodes that merging the layer will copy, `(level, index)`.
    nodes: HashSet<(u8, u64)>,
}

/// What a layer says of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It and the `len − 1` blocks after it.
    Hit {
        /// Blocks that the answer covers.
        len: u64,
        /// Where the first lies.
        target: Target,
        /// End of the record that says so.
        lsn: Lsn,
    },
    /// Nothing about it and the `len − 1` blocks after it.
    Gap {
        /// Blocks that the answer covers.
        len: u64,
    },
}

static NEXT_LAYER: AtomicU64 = AtomicU64::new(1);

impl Layer {
    /// An empty layer.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            id: NEXT_LAYER.fetch_add(1, Ordering::Relaxed),
            epoch,
            dropped: Vec::new(),
            grown: 0,
            spans: BTreeMap::new(),
            nodes: HashSet::new(),
        }
    }

    /// Whether merging it would change nothing.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty() && self.dropped.is_empty()
    }

    /// Number of spans, a measure of its memory.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Most nodes that merging will write.
    pub fn promised_nodes(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// What the layer says of block `l`.
    pub fn find(&self, l: u64) -> Found {
        if let Some((start, span)) = self.spans.range(..=l).next_back()
            && l < start + span.len
        {
            let skip = l - start;
            let target = match span.target {
                Target::Data(p) => Target::Data(p.plus(skip)),
                Target::Hole => Target::Hole,
            };
            return Found::Hit { len: span.len - skip, target, lsn: span.lsn };
        }
        let next = self.spans.range(l..).next().map_or(u64::MAX, |(start, _)| *start);
        Found::Gap { len: next - l }
    }

    /// Maps `n` blocks from `l`; returns the number of nodes newly promised.
    pub fn insert(&mut self, l: u64, n: u64, target: Target, lsn: Lsn) -> u64 {
        let end = l + n;
        let mut overlapped = Few::new();
        // One search: the span that begins at the end, those inside, and the one before, from right to left.
        let (mut before, mut after) = (None, None);
        for (at, old) in self.spans.range(..=end).rev() {
            if *at == end {
                after = Some(*old);
            } else if at + old.len > l {
                overlapped.push((*at, *old));
            } else if at + old.len == l {
                before = Some((*at, *old));
            }
            if *at < l {
                break;
            }
        }
        for (at, old) in overlapped.as_slice() {
            self.cut_out(l, end, *at, *old);
        }
        if !overlapped.as_slice().is_empty() {
            // What is left of these are neighbours now.
            let left = self.spans.range(..l).next_back().map(|(at, s)| (*at, *s));
            before = left.filter(|(at, s)| at + s.len == l);
            after = self.spans.get(&end).copied();
        }
        let (mut start, mut span) = (l, Span { len: n, target, lsn });
        if let Some((at, old)) = before.filter(|(_, old)| continues(old.target, old.len, target)) {
            start = at;
            span = Span { len: old.len + n, target: old.target, lsn };
        }
        if let Some(old) = after.filter(|old| continues(span.target, span.len, old.target)) {
            span = Span { len: span.len + old.len, lsn: lsn.max(old.lsn), ..span };
            self.spans.remove(&end);
        }
        self.spans.insert(start, span);
        self.promise(l, n, target)
    }

    /// Removes `l..end` from the span at `at`; what it held there goes to the drop list.
    fn cut_out(&mut self, l: u64, end: u64, at: u64, span: Span) {
        let (from, to) = (at.max(l), (at + span.len).min(end));
        let target_at = |x: u64| match span.target {
            Target::Data(p) => Target::Data(p.plus(x - at)),
            Target::Hole => Target::Hole,
        };
        if at < from {
            self.spans.insert(at, Span { len: from - at, ..span });
        } else {
            self.spans.remove(&at);
        }
        if to < at + span.len {
            self.spans.insert(to, Span { len: at + span.len - to, target: target_at(to), lsn: span.lsn });
        }
        if let Target::Data(p) = target_at(from) {
            self.dropped.push((p, to - from));
        }
    }

    fn promise(&mut self, l: u64, n: u64, target: Target) -> u64 {
        // A leaf that is promised has all the nodes above it promised.
        let leaf = l / LEAF_ENTRIES;
        if (l + n - 1) / LEAF_ENTRIES == leaf && self.nodes.contains(&(0, leaf)) {
            return 0;
        }
        let before = self.nodes.len();
        for (level, index) in touched(l, n, target == Target::Hole) {
            self.nodes.insert((level, index));
        }
        (self.nodes.len() - before) as u64
    }

    /// Spans in logical order: start, length, target.
    pub fn spans(&self) -> impl Iterator<Item = (u64, u64, Target)> {
        self.spans.iter().map(|(start, s)| (*start, s.len, s.target))
    }

    /// Data blocks held by the spans.
    pub fn data(&self) -> impl Iterator<Item = (Phys, u64)> {
        self.spans.values().filter_map(|s| match s.target {
            Target::Data(p) => Some((p, s.len)),
            Target::Hole => None,
        })
    }
}

fn continues(a: Target, len: u64, b: Target) -> bool {
    match (a, b) {
        (Target::Hole, Target::Hole) => true,
        (Target::Data(p), Target::Data(q)) => p.plus(len) == q,
        _ => false,
    }
}

/// Nodes that a change of `l..l + n` makes the checkpointer copy. A hole empties whole subtrees, so only the
/// nodes at its two ends are copied.
pub fn touched(l: u64, n: u64, hole: bool) -> impl Iterator<Item = (u8, u64)> {
    let last = l + n - 1;
    (0..=MAX_HEIGHT).flat_map(move |level| {
        let span = LEAF_ENTRIES * FANOUT.pow(u32::from(level));
        let (a, b) = (l / span, last / span);
        let middle = if hole && b > a { a..a + 1 } else { a..b };
        middle.chain(std::iter::once(b)).map(move |i| (level, i))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a map of single blocks: same answers, and every block dropped exactly once.
        #[test]
        fn agrees_with_a_map_of_blocks(ops in prop::collection::vec((0u64..64, 1u64..20, any::<bool>()), 1..60)) {
            let mut layer = Layer::new(Epoch(1));
            let mut model: BTreeMap<u64, Option<u64>> = BTreeMap::new();
            let (mut next, mut dropped) = (1000u64, Vec::new());
            for (l, n, data) in ops {
                let target = if data { Target::Data(Phys(next)) } else { Target::Hole };
                layer.insert(l, n, target, Lsn(next));
                for i in 0..n {
                    if let Some(Some(p)) = model.insert(l + i, data.then_some(next + i)) {
                        dropped.push(p);
                    }
                }
                next += n + 1;
            }
            for l in 0..100 {
                let want = model.get(&l).copied();
                match layer.find(l) {
                    Found::Hit { target: Target::Data(p), .. } => prop_assert_eq!(want, Some(Some(p.0))),
                    Found::Hit { target: Target::Hole, .. } => prop_assert_eq!(want, Some(None)),
                    Found::Gap { len } => {
                        prop_assert_eq!(want, None);
                        prop_assert!((l..100.min(l.saturating_add(len))).all(|x| !model.contains_key(&x)));
                    }
                }
            }
            let mut got: Vec<u64> =
                layer.dropped.iter().flat_map(|(p, n)| p.0..p.0 + n).collect();
            got.sort_unstable();
            dropped.sort_unstable();
            prop_assert_eq!(got, dropped);
        }
    }
}
