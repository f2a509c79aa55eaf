//! Merging a layer of the memtable into a tree, in logical order, one node at a time.
//!
//! Invariants: no node that a durable checkpoint reaches is written; a changed node goes to a new block, once
//! per checkpoint (H16). What a head drops is freed exactly when its origin cannot have it.

use super::NodeCache;
use super::tree::{leaf_view, resolve_now, upper_entries};
use crate::alloc::{Allocator, Stream};
use crate::format::crc;
use crate::format::node::{Child, FANOUT, LEAF_ENTRIES, LeafEntry, Root, pack_leaf, span};
use crate::io::{AlignedBuf, BlockDev};
use crate::memtable::{Layer, Target};
use crate::types::{BLOCK, Epoch, Phys, mem};
use crate::{Error, Result};
use std::sync::Arc;

/// Nodes written by one request, when they are consecutive.
const WRITE_NODES: usize = 64;

/// Writes nodes and pages to new blocks, consecutive ones together.
pub struct NodeWriter<'a> {
    dev: &'a dyn BlockDev,
    alloc: &'a Allocator,
    cache: &'a NodeCache,
    start: Phys,
    bytes: Vec<u8>,
    /// Blocks written so far.
    pub written: u64,
}

impl<'a> NodeWriter<'a> {
    /// A writer for one checkpoint.
    pub fn new(dev: &'a dyn BlockDev, alloc: &'a Allocator, cache: &'a NodeCache) -> Self {
        Self { dev, alloc, cache, start: Phys(0), bytes: Vec::new(), written: 0 }
    }

    /// Takes a block for the checkpoint.
    pub fn take(&self) -> Result<Phys> {
        let (p, _) = self.alloc.take(Stream::Meta, 1)?;
        self.alloc.merge(p, 1)?;
        Ok(p)
    }

    /// Puts `bytes` at `p`; on disk after the next flush.
    pub fn put(&mut self, p: Phys, bytes: &[u8; BLOCK]) -> Result<()> {
        let next = self.start.plus((self.bytes.len() / BLOCK) as u64);
        if p != next || self.bytes.len() >= WRITE_NODES * BLOCK {
            self.flush()?;
            self.start = p;
        }
        self.bytes.extend_from_slice(bytes);
        self.written += 1;
        Ok(())
    }

    /// Writes what is gathered.
    pub fn flush(&mut self) -> Result<()> {
        if !self.bytes.is_empty() {
            let mut buf = AlignedBuf::reused(self.bytes.len());
            buf.copy_from_slice(&self.bytes);
            self.dev.write_at(self.start.offset(), &buf).map_err(|e| Error::io("write map nodes", e))?;
            self.bytes.clear();
        }
        Ok(())
    }

    fn node(&mut self, birth: Epoch, bytes: Box<[u8; BLOCK]>) -> Result<Child> {
        let p = self.take()?;
        let sum = crc(0, &bytes[..]);
        self.put(p, &bytes)?;
        self.cache.insert(p, Arc::new(bytes));
        Ok(Child::Node { p, birth, crc: sum })
    }
}

/// What the origin of a version holds: decides whether a dropped block is free. While the origin is being
/// deleted, the part below `cursor` was already walked, and the origin's own origin counts there (H22).
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin {
    /// Blocks below this were walked.
    pub cursor: u64,
    /// Epoch and map that count below the cursor.
    pub below: (Epoch, Root),
    /// Epoch and map that count from the cursor on.
    pub above: (Epoch, Root),
}

impl Origin {
    fn at(&self, end: u64) -> (Epoch, Root) {
        if end <= self.cursor { self.below } else { self.above }
    }
}

/// Merges layers of one version.
pub struct Merger<'a, 'w> {
    /// Nodes by the cache.
    pub cache: &'a NodeCache,
    /// Space.
    pub alloc: &'a Allocator,
    /// New nodes go here.
    pub writer: &'w mut NodeWriter<'a>,
    /// Epoch of the version: birth of its new nodes.
    pub epoch: Epoch,
    /// Its origin.
    pub origin: Origin,
    /// Blocks that are free once the checkpoint is durable.
    pub freed: &'w mut Vec<(Phys, u64)>,
    /// Change of the number of mapped blocks.
    pub mapped: i64,
}

type Spans = [(u64, u64, Target)];

/// A subtree before the merge: in the tree, or the place of a node that a taller root needs.
#[derive(Clone, Copy)]
enum Source {
    Child(Child),
    Lifted(Root),
}

impl Merger<'_, '_> {
    /// The tree with the layer's changes.
    pub fn merge(&mut self, root: Root, layer: &Layer) -> Result<Root> {
        let mut spans: Vec<_> = layer.spans().collect();
        let data_end = spans.iter().filter(|s| s.2 != Target::Hole).map(|s| s.0 + s.1).max().unwrap_or(0);
        let mut height = root.height;
        while span(height) < data_end {
            height += 1;
        }
        let end = span(height);
        spans.retain(|s| s.0 < end);
        for s in &mut spans {
            s.1 = s.1.min(end - s.0);
        }
        let source = match root.child {
            child if height == root.height => Source::Child(child),
            Child::Hole => Source::Child(Child::Hole),
            _ => Source::Lifted(root),
        };
        let child = self.apply(source, height, 0, &spans)?;
        for (p, n) in &layer.dropped {
            self.freed_unmerged(*p, *n);
        }
        Ok(if child == Child::Hole { Root::default() } else { Root { height, child } })
    }

    /// Blocks that no checkpoint ever held.
    fn freed_unmerged(&mut self, p: Phys, n: u64) {
        self.freed.push((p, n));
    }

    fn apply(&mut self, source: Source, level: u8, base: u64, spans: &Spans) -> Result<Child> {
        if let Source::Child(child) = source {
            if spans.is_empty() {
                return Ok(child);
            }
            if level == 0 {
                return self.apply_leaf(child, base, spans);
            }
            if let [(l, n, Target::Hole)] = spans
                && *l <= base
                && l + n >= base + span(level)
            {
                self.drop_subtree(child, level, base)?;
                return Ok(Child::Hole);
            }
        }
        let before = self.children(source, level)?;
        let mut after = Vec::with_capacity(before.len());
        let size = span(level - 1);
        let mut rest = spans;
        for (i, s) in before.iter().enumerate() {
            let at = base + i as u64 * size;
            // Spans are sorted: skip those that ended, take those that begin before the child's end.
            while let [(l, n, _), tail @ ..] = rest
                && l + n <= at
            {
                rest = tail;
            }
            let count = rest.iter().take_while(|(l, _, _)| *l < at + size).count();
            after.push(self.apply(*s, level - 1, at, &rest[..count])?);
        }
        let unchanged = before.iter().zip(&after).all(|(b, a)| matches!(b, Source::Child(c) if c == a));
        match source {
            Source::Child(child) if unchanged => return Ok(child),
            Source::Child(child) => self.drop_node(child, level, base)?,
            Source::Lifted(_) => {}
        }
        if after.iter().all(|c| *c == Child::Hole) {
            return Ok(Child::Hole);
        }
        let mut bytes = Box::new([0; BLOCK]);
        for (slot, child) in bytes.chunks_exact_mut(16).zip(&after) {
            slot.copy_from_slice(&child.pack());
        }
        self.writer.node(self.epoch, bytes)
    }

    fn children(&self, source: Source, level: u8) -> Result<Vec<Source>> {
        Ok(match source {
            Source::Child(Child::Node { p, crc, .. }) => {
                upper_entries(&*self.cache.load_now(p, crc)?)?.into_iter().map(Source::Child).collect()
            }
            Source::Child(_) => vec![Source::Child(Child::Hole); mem(FANOUT)],
            Source::Lifted(root) => {
                let mut all = vec![Source::Child(Child::Hole); mem(FANOUT)];
                let direct = level - 1 == root.height;
                all[0] = if direct { Source::Child(root.child) } else { source };
                all
            }
        })
    }

    fn apply_leaf(&mut self, child: Child, base: u64, spans: &Spans) -> Result<Child> {
        let mut entries = leaf_view(self.cache, child)?;
        let mut changed = false;
        for (l, n, target) in spans {
            let (from, to) = ((*l).max(base), (l + n).min(base + LEAF_ENTRIES));
            if let Target::Data(p) = target {
                self.alloc.merge(p.plus(from - l), to - from)?;
            }
            for at in from..to {
                let new = match target {
                    Target::Data(p) => Some(LeafEntry { p: p.plus(at - l), birth: Some(self.epoch) }),
                    Target::Hole => None,
                };
                let old = std::mem::replace(&mut entries[mem(at - base)], new);
                changed |= old != new;
                self.mapped += i64::from(new.is_some()) - i64::from(old.is_some());
                if let Some(old) = old {
                    self.drop_block(old, at)?;
                }
            }
        }
        if !changed {
            return Ok(child);
        }
        self.drop_node(child, 0, base)?;
        self.leaf(&entries)
    }

    /// The shortest form of a leaf.
    fn leaf(&mut self, entries: &[Option<LeafEntry>]) -> Result<Child> {
        if entries.iter().all(Option::is_none) {
            return Ok(Child::Hole);
        }
        if let Some(LeafEntry { p, birth: Some(birth) }) = entries[0] {
            let follows = |(i, e): (usize, &Option<LeafEntry>)| {
                *e == Some(LeafEntry { p: p.plus(i as u64), birth: Some(birth) })
            };
            if entries.iter().enumerate().all(follows) {
                return Ok(Child::Run { p, birth });
            }
        }
        let mut bytes = Box::new([0; BLOCK]);
        for (slot, entry) in bytes.chunks_exact_mut(8).zip(entries) {
            slot.copy_from_slice(&pack_leaf(*entry, self.epoch).to_le_bytes());
        }
        self.writer.node(self.epoch, bytes)
    }

    fn release(&mut self, p: Phys, n: u64) -> Result<()> {
        self.alloc.unmerge(p, n)?;
        self.freed.push((p, n));
        Ok(())
    }

    fn drop_block(&mut self, entry: LeafEntry, l: u64) -> Result<()> {
        let (epoch, root) = self.origin.at(l + 1);
        if outlives(self.cache, entry, l, epoch, root)? { Ok(()) } else { self.release(entry.p, 1) }
    }

    fn drop_node(&mut self, child: Child, level: u8, base: u64) -> Result<()> {
        let Child::Node { p, birth, .. } = child else { return Ok(()) };
        let (epoch, _) = self.origin.at(base + span(level));
        if birth > epoch { self.release(p, 1) } else { Ok(()) }
    }

    /// Drops everything below a child that becomes a hole.
    fn drop_subtree(&mut self, child: Child, level: u8, base: u64) -> Result<()> {
        let oldest = if base < self.origin.cursor { self.origin.below.0 } else { self.origin.above.0 };
        match child {
            Child::Hole => return Ok(()),
            Child::Run { .. } => {}
            // Nothing in a node is younger than the node: all of it is the origin's.
            Child::Node { birth, .. } if birth <= oldest => {
                self.mapped -= i64::try_from(self.count(child, level)?).expect("fits");
                return Ok(());
            }
            Child::Node { p, crc, .. } if level > 0 => {
                let size = span(level - 1);
                for (i, c) in upper_entries(&*self.cache.load_now(p, crc)?)?.into_iter().enumerate() {
                    self.drop_subtree(c, level - 1, base + i as u64 * size)?;
                }
            }
            Child::Node { .. } => {}
        }
        if level == 0 {
            for (i, entry) in leaf_view(self.cache, child)?.into_iter().enumerate() {
                if let Some(entry) = entry {
                    self.mapped -= 1;
                    self.drop_block(entry, base + i as u64)?;
                }
            }
        }
        self.drop_node(child, level, base)
    }

    /// Mapped blocks below a child.
    fn count(&self, child: Child, level: u8) -> Result<u64> {
        match child {
            Child::Hole => Ok(0),
            Child::Run { .. } => Ok(LEAF_ENTRIES),
            Child::Node { p, crc, .. } if level > 0 => {
                let children = upper_entries(&*self.cache.load_now(p, crc)?)?;
                children.into_iter().map(|c| self.count(c, level - 1)).sum()
            }
            Child::Node { .. } => {
                Ok(leaf_view(self.cache, child)?.iter().filter(|e| e.is_some()).count() as u64)
            }
        }
    }
}

/// Whether an older version holds the block at `l`: it is not younger than that version, or, where its age
/// is not known any more, that version's own tree says so.
pub fn outlives(cache: &NodeCache, entry: LeafEntry, l: u64, epoch: Epoch, root: Root) -> Result<bool> {
    match entry.birth {
        Some(birth) => Ok(birth <= epoch),
        None => Ok(resolve_now(cache, root, l, 1)?.data.is_some_and(|e| e.p == entry.p)),
    }
}
