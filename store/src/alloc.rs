//! Free space: which blocks are used, by the checkpoint and beyond it, and who may take the free ones.
//!
//! Invariants:
//! - `merged` is exactly what the checkpoint being written refers to; it alone goes to disk (H17). `used` is
//!   that, and blocks allocated since, and blocks dropped but not yet safe to reuse (H18).
//! - A write is admitted only when its blocks and every node that its merge may need are free (H32), in
//!   segments that the host really holds (H30). So neither a checkpoint nor an overwrite meets ENOSPC.
//! - Setting a set bit or clearing a clear bit is a fault: the caller poisons the pool (H6).

use crate::integrity::Sealed;
use crate::mutation::Mutation;
use crate::types::{Phys, SEGMENT_BLOCKS, VolumeId, mem};
use crate::{Error, Result};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};

const FULL: u16 = 256;

/// A bitmap of blocks in segments; only partly used segments take memory beyond two bytes.
#[derive(Clone)]
pub struct SegmentMap {
    free: Vec<u16>,
    partial: HashMap<u64, [u64; 4]>,
}

fn mask(from: u64, n: u64) -> [u64; 4] {
    let mut out = [0; 4];
    for (w, word) in out.iter_mut().enumerate() {
        let base = w as u64 * 64;
        let (a, b) = (from.max(base), (from + n).min(base + 64));
        if a < b {
            let bits = if b - a == 64 { u64::MAX } else { (1 << (b - a)) - 1 };
            *word = bits << (a - base);
        }
    }
    out
}

impl SegmentMap {
    /// All free.
    pub fn new(segments: u64) -> Self {
        Self { free: vec![FULL; mem(segments)], partial: HashMap::new() }
    }

    /// Bits of a segment: set is used.
    pub fn words(&self, segment: u64) -> [u64; 4] {
        match self.free[mem(segment)] {
            FULL => [0; 4],
            0 => [u64::MAX; 4],
            _ => self.partial[&segment],
        }
    }

    /// Free blocks of a segment.
    pub fn free_in(&self, segment: u64) -> u64 {
        u64::from(self.free[mem(segment)])
    }

    /// Number of segments.
    pub fn segments(&self) -> u64 {
        self.free.len() as u64
    }

    /// Replaces the bits of a segment.
    pub fn put(&mut self, segment: u64, words: [u64; 4]) {
        let used: u32 = words.iter().map(|w| w.count_ones()).sum();
        let free = FULL - u16::try_from(used).expect("at most 256");
        self.free[mem(segment)] = free;
        if free == 0 || free == FULL {
            self.partial.remove(&segment);
        } else {
            self.partial.insert(segment, words);
        }
    }

    /// Sets (or clears) `n` bits from `p`.
    ///
    /// # Errors
    /// `Damaged` when one of them already was; nothing is changed in that segment then.
    pub fn change(&mut self, p: Phys, n: u64, set: bool) -> Result<()> {
        let mut at = p.0;
        let end = p.0 + n;
        if end > self.segments() * SEGMENT_BLOCKS {
            return Err(Error::damaged(format!("blocks {}+{n} lie beyond the pool", p.0)));
        }
        while at < end {
            let segment = at / SEGMENT_BLOCKS;
            let from = at % SEGMENT_BLOCKS;
            let count = (end - at).min(SEGMENT_BLOCKS - from);
            let mut words = self.words(segment);
            for (word, m) in words.iter_mut().zip(mask(from, count)) {
                if (if set { *word & m } else { !*word & m }) != 0 {
                    let state = if set { "used" } else { "free" };
                    return Err(Error::damaged(format!("a block in {at}+{count} is already {state}")));
                }
                *word ^= m;
            }
            self.put(segment, words);
            at += count;
        }
        Ok(())
    }

    /// The first run of free blocks at or after `from` in a segment, at most `max` long.
    fn run(&self, segment: u64, from: u64, max: u64) -> Option<(u64, u64)> {
        let words = self.words(segment);
        let used = |b: u64| words[mem(b / 64)] >> (b % 64) & 1 == 1;
        let start = (from..SEGMENT_BLOCKS).find(|b| !used(*b))?;
        let len = (start..SEGMENT_BLOCKS).take(mem(max)).take_while(|b| !used(*b)).count() as u64;
        Some((start, len))
    }

    /// Whether block `p` is set.
    pub fn is_set(&self, p: Phys) -> bool {
        let b = p.0 % SEGMENT_BLOCKS;
        self.words(p.segment())[mem(b / 64)] >> (b % 64) & 1 == 1
    }
}

/// Who allocates; each has a segment of its own as long as whole ones are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Data of a volume.
    Data(VolumeId),
    /// Nodes and checkpoint pages.
    Meta,
}

struct Inner {
    used: SegmentMap,
    merged: SegmentMap,
    backed: Vec<bool>,
    /// Free blocks in backed segments.
    free: u64,
    unbacked_segments: u64,
    reserved: u64,
    promised: u64,
    cursors: HashMap<Stream, Phys>,
    rover: u64,
    dirty: BTreeSet<u64>,
}

/// The allocator of an open pool.
pub struct Allocator {
    first_segment: u64,
    fixed: u64,
    inner: Mutex<Inner>,
    sealed: Sealed,
}

/// Segments backed by one request when the host has the room: 64 MiB.
pub const BACK_SEGMENTS: u64 = 64;
/// Free backed blocks below which more are backed ahead of need: 64 MiB.
const BACK_AHEAD: u64 = 64 * SEGMENT_BLOCKS;

/// A segment as the table has it.
#[derive(Debug, Clone, Copy, Default)]
pub struct SegmentState {
    /// Bits of the blocks in use.
    pub used: [u64; 4],
    /// Bits of the blocks that have a checksum.
    pub sealed: [u64; 4],
    /// The host holds it.
    pub backed: bool,
}

/// Figures of the allocator, in blocks.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Used, reservations excluded.
    pub used: u64,
    /// Free in backed segments, what is reserved and promised subtracted.
    pub free_backed: u64,
    /// Blocks in segments not backed yet.
    pub unbacked: u64,
    /// All allocatable blocks.
    pub total: u64,
}

impl Allocator {
    /// An allocator over the state read from the checkpoint; `data_start` in blocks.
    pub fn new(merged: SegmentMap, sealed: SegmentMap, backed: Vec<bool>, data_start: u64) -> Self {
        let first_segment = data_start / SEGMENT_BLOCKS;
        let segments = first_segment..merged.segments();
        let total = (merged.segments() - first_segment) * SEGMENT_BLOCKS;
        let free = segments.clone().filter(|s| backed[mem(*s)]).map(|s| merged.free_in(s)).sum();
        let unbacked_segments = segments.filter(|s| !backed[mem(*s)]).count() as u64;
        let inner = Inner {
            used: merged.clone(),
            merged,
            backed,
            free,
            unbacked_segments,
            reserved: 0,
            promised: 0,
            cursors: HashMap::new(),
            rover: first_segment,
            dirty: BTreeSet::new(),
        };
        // What only checkpoints and deletions may use: 2 %, at most 64 MiB.
        let fixed = (total / 50).clamp(64, 16_384);
        Self { first_segment, fixed, inner: Mutex::new(inner), sealed: Sealed::new(sealed) }
    }

    /// Sets `n` blocks aside, beyond what is promised to the next checkpoint. `freeing`: for a change that
    /// gives space back, which may use half of the fixed share.
    pub fn try_reserve(&self, n: u64, freeing: bool) -> bool {
        let mut i = self.inner.lock();
        let kept = if freeing { self.fixed / 2 } else { self.fixed };
        let fits = i.free >= i.reserved + i.promised + kept + n;
        if fits {
            i.reserved += n;
        }
        fits
    }

    /// Gives back `reserved` blocks of a reservation and promises `nodes` to the next checkpoint.
    pub fn settle(&self, reserved: u64, nodes: u64) {
        let mut i = self.inner.lock();
        i.reserved -= reserved;
        i.promised += nodes;
    }

    /// The promise of layers that were merged is kept.
    pub fn redeem(&self, nodes: u64) {
        self.inner.lock().promised -= nodes;
    }

    /// Takes at most `n` consecutive blocks out of the caller's reservation.
    ///
    /// # Errors
    /// `NoSpace` only if the caller had reserved nothing.
    pub fn take(&self, stream: Stream, n: u64) -> Result<(Phys, u64)> {
        let mut i = self.inner.lock();
        let (p, len) =
            i.find(stream, n, self.first_segment).ok_or_else(|| Error::no_space("the pool is full"))?;
        i.used.change(p, len, true)?;
        i.free -= len;
        if let Stream::Data(_) = stream {
            i.reserved -= len;
        }
        i.cursors.insert(stream, p.plus(len));
        Ok((p, len))
    }

    /// Marks blocks as used by a mapping found in the log.
    pub fn claim(&self, p: Phys, n: u64) -> Result<()> {
        let mut i = self.inner.lock();
        let (first, last) = (p.segment(), p.plus(n - 1).segment());
        if last >= i.used.segments() || first < self.first_segment {
            return Err(Error::damaged(format!("the log maps blocks {}+{n} outside the data area", p.0)));
        }
        for s in first..=last {
            // Backed by the dead owner, after the checkpoint.
            i.set_backed(s, 1);
        }
        i.used.change(p, n, true)?;
        i.free -= n;
        Ok(())
    }

    /// The checkpoint refers to these blocks from now on.
    pub fn merge(&self, p: Phys, n: u64) -> Result<()> {
        let mut i = self.inner.lock();
        i.touch(p, n);
        i.merged.change(p, n, true)
    }

    /// The checkpoint refers to these blocks no longer; they are not free yet.
    pub fn unmerge(&self, p: Phys, n: u64) -> Result<()> {
        let mut i = self.inner.lock();
        i.touch(p, n);
        i.merged.change(p, n, false)?;
        if !Mutation::StaleChecksum.on() {
            self.sealed.clear(p, n);
        }
        Ok(())
    }

    /// Which blocks have a checksum.
    pub fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    /// These blocks have a checksum from now on, those that the checkpoint has dropped meanwhile excepted.
    pub fn seal(&self, blocks: impl Iterator<Item = Phys>) {
        let mut i = self.inner.lock();
        for p in blocks {
            if i.merged.is_set(p) {
                self.sealed.set(p);
                i.dirty.insert(p.segment());
            }
        }
    }

    /// These blocks may be used again.
    pub fn free(&self, p: Phys, n: u64) -> Result<()> {
        let mut i = self.inner.lock();
        i.used.change(p, n, false)?;
        i.free += n;
        Ok(())
    }

    /// A segment range to back next, when little backed space is left; `urgent`: whatever is left.
    pub fn to_back(&self, urgent: bool) -> Option<(u64, u64)> {
        let i = self.inner.lock();
        let ahead = i.reserved + i.promised + self.fixed + BACK_AHEAD;
        if i.unbacked_segments == 0 || (!urgent && i.free >= ahead) {
            return None;
        }
        let first = (self.first_segment..i.used.segments()).find(|s| !i.backed[mem(*s)])?;
        let n =
            (first..i.used.segments()).take(mem(BACK_SEGMENTS)).take_while(|s| !i.backed[mem(*s)]).count();
        Some((first, n as u64))
    }

    /// The host holds these segments.
    pub fn set_backed(&self, first: u64, n: u64) {
        self.inner.lock().set_backed(first, n);
    }

    /// Pages of the segment table that changed since the last call.
    pub fn take_dirty(&self, segments_a_page: u64) -> Vec<u64> {
        let dirty = std::mem::take(&mut self.inner.lock().dirty);
        let mut pages: Vec<u64> = dirty.into_iter().map(|s| s / segments_a_page).collect();
        pages.dedup();
        pages
    }

    /// State of a segment for the table.
    pub fn segment(&self, s: u64) -> SegmentState {
        let i = self.inner.lock();
        SegmentState { used: i.merged.words(s), sealed: self.sealed.words(s), backed: i.backed[mem(s)] }
    }

    /// Figures.
    pub fn space(&self) -> Space {
        let i = self.inner.lock();
        let total = (i.used.segments() - self.first_segment) * SEGMENT_BLOCKS;
        let unbacked = i.unbacked_segments * SEGMENT_BLOCKS;
        Space {
            used: total - unbacked - i.free,
            free_backed: i.free.saturating_sub(i.reserved + i.promised + self.fixed),
            unbacked,
            total,
        }
    }
}

impl Inner {
    fn set_backed(&mut self, first: u64, n: u64) {
        for s in first..first + n {
            if !std::mem::replace(&mut self.backed[mem(s)], true) {
                self.free += self.used.free_in(s);
                self.unbacked_segments -= 1;
                self.dirty.insert(s);
            }
        }
    }

    fn touch(&mut self, p: Phys, n: u64) {
        self.dirty.extend(p.segment()..=p.plus(n - 1).segment());
    }

    /// Goes on where the stream was, then in a whole free segment, then in any hole.
    fn find(&mut self, stream: Stream, n: u64, first: u64) -> Option<(Phys, u64)> {
        let at = |s: u64, (start, len): (u64, u64)| (Phys(s * SEGMENT_BLOCKS + start), len);
        if let Some(c) = self.cursors.get(&stream).copied() {
            // A cursor at the end of its segment has run out of it.
            let from = c.0 % SEGMENT_BLOCKS;
            if from != 0
                && let Some(run) = self.used.run(c.segment(), from, n)
            {
                return Some(at(c.segment(), run));
            }
        }
        let segments = self.used.segments();
        let ring = (self.rover..segments).chain(first..self.rover);
        let usable = |s: &u64, least: u64| self.backed[mem(*s)] && self.used.free_in(*s) >= least;
        let found = ring
            .clone()
            .find(|s| usable(s, SEGMENT_BLOCKS))
            .or_else(|| ring.clone().find(|s| usable(s, 1)))?;
        self.rover = found;
        self.used.run(found, 0, n).map(|run| at(found, run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn segment_map_agrees_with_a_set(ops in prop::collection::vec((0u64..1000, 1u64..300, any::<bool>()), 1..50)) {
            let mut map = SegmentMap::new(5);
            let mut model = BTreeSet::new();
            for (p, n, set) in ops {
                let n = n.min(1280 - p);
                // Faults are only found, not undone, over several segments: stay within one.
                let n = n.min(256 - p % 256);
                let clean = (p..p + n).all(|b| model.contains(&b) != set);
                prop_assert_eq!(map.change(Phys(p), n, set).is_ok(), clean);
                if clean {
                    for b in p..p + n {
                        if set { model.insert(b); } else { model.remove(&b); }
                    }
                }
            }
            for b in 0..1280 {
                prop_assert_eq!(map.is_set(Phys(b)), model.contains(&b));
            }
            for s in 0..5 {
                prop_assert_eq!(map.free_in(s), 256 - model.range(s * 256..(s + 1) * 256).count() as u64);
            }
        }
    }

    #[test]
    fn reservations_promises_and_the_fixed_share_are_kept() {
        let a = Allocator::new(SegmentMap::new(8), SegmentMap::new(8), vec![true; 8], 256);
        let mut taken = 0;
        while a.try_reserve(1, false) {
            taken += 1;
        }
        assert_eq!(taken, 7 * 256 - 64);
        assert!(a.take(Stream::Meta, 1).is_ok(), "a checkpoint still finds room");
        a.settle(100, 40);
        for _ in 0..59 {
            assert!(a.try_reserve(1, false), "100 given back, 40 promised, 1 taken");
        }
        assert!(!a.try_reserve(1, false));
        assert!(a.try_reserve(32, true) && !a.try_reserve(1, true), "half of the fixed share frees space");
    }
}
