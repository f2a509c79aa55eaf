//! Free space: which blocks are used, by the checkpoint and beyond it, and who may take the free ones.
//!
//! Invariants:
//! - `merged` is exactly what the checkpoint being written refers to; it alone goes to disk (H17). `used` is
//!   that, and blocks allocated since, and blocks dropped but not yet safe to reuse (H18).
//! - A write is admitted only when its blocks and every node that its merge may need are free (H32), in
//!   segments that the host really holds (H30). So neither a checkpoint nor an overwrite meets ENOSPC.
//! - Setting a set bit or clearing a clear bit is a fault: the caller poisons the pool (H6).
//! - A segment goes back to the host only when nothing in it is used, and after a durable checkpoint says that the
//!   host does not hold it (H30, H31).

mod chunks;
mod segments;

use crate::integrity::Sealed;
use crate::mutation::Mutation;
use crate::types::{Phys, SEGMENT_BLOCKS, VolumeId, mem};
use crate::{Error, Result};
use chunks::Chunks;
use parking_lot::Mutex;
pub use segments::SegmentMap;
use segments::SegmentSet;
use std::collections::{BTreeSet, HashMap};

/// Who allocates; each goes on where it was, in segments of its own as long as whole ones are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Data of a volume.
    Data {
        /// The volume.
        volume: VolumeId,
        /// Number of the leaf that will map the blocks.
        leaf: u64,
    },
    /// Data of a volume that is put in order: only what is free in whole segments.
    Order {
        /// The volume.
        volume: VolumeId,
    },
    /// Nodes and checkpoint pages.
    Meta,
}

/// Whose allocations go on behind each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Cursor {
    Data(VolumeId),
    Order(VolumeId),
    Meta,
}

struct Inner {
    used: SegmentMap,
    merged: SegmentMap,
    backed: Vec<bool>,
    /// Backed and all free; backed and partly free; not backed. Segments that are leaving are in none of them.
    whole: SegmentSet,
    partial: SegmentSet,
    unbacked: SegmentSet,
    /// Free blocks in backed segments, those kept for chunks among them.
    free: u64,
    unbacked_segments: u64,
    reserved: u64,
    promised: u64,
    /// Where each goes on.
    cursors: HashMap<Cursor, Phys>,
    /// Free blocks kept for leaves: set in `used`, and free in every other respect.
    chunks: Chunks,
    rover: u64,
    dirty: BTreeSet<u64>,
    /// Runs of segments that the host gets back, first and number.
    leaving: Vec<(u64, u64)>,
}

/// The allocator of an open pool.
pub struct Allocator {
    first_segment: u64,
    fixed: u64,
    /// What is kept backed ahead of need.
    ahead: u64,
    inner: Mutex<Inner>,
    sealed: Sealed,
}

/// Segments backed by one request when the host has the room: 64 MiB.
pub const BACK_SEGMENTS: u64 = 64;
/// Free backed blocks below which more are backed ahead of need: 64 MiB, less in small pools.
const BACK_AHEAD: u64 = 64 * SEGMENT_BLOCKS;
/// Segments given back to the host by one checkpoint: 256 MiB, in at most [`LEAVING_RUNS`] requests (H31).
const LEAVING_SEGMENTS: u64 = 256;
/// See [`LEAVING_SEGMENTS`].
const LEAVING_RUNS: usize = 8;

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
        let count = merged.segments();
        let mut inner = Inner {
            used: merged.clone(),
            merged,
            backed,
            whole: SegmentSet::new(count),
            partial: SegmentSet::new(count),
            unbacked: SegmentSet::new(count),
            free,
            unbacked_segments,
            reserved: 0,
            promised: 0,
            cursors: HashMap::new(),
            chunks: Chunks::default(),
            rover: first_segment,
            dirty: BTreeSet::new(),
            leaving: Vec::new(),
        };
        for s in first_segment..count {
            inner.unbacked.set(s, !inner.backed[mem(s)]);
            inner.sort_in(s);
        }
        // What only checkpoints and deletions may use: 2 %, at most 64 MiB.
        let fixed = (total / 50).clamp(64, 16_384);
        let ahead = BACK_AHEAD.min(total / 8);
        Self { first_segment, fixed, ahead, inner: Mutex::new(inner), sealed: Sealed::new(sealed) }
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
        let full = || Error::no_space("the pool is full");
        let (p, len) = match stream {
            Stream::Data { volume, leaf } if n < chunks::LARGEST => {
                i.take_small(volume, leaf, n, self.first_segment)?.ok_or_else(full)?
            }
            Stream::Data { volume, .. } => {
                i.carve(Cursor::Data(volume), n, self.first_segment)?.ok_or_else(full)?
            }
            Stream::Order { volume } => {
                i.carve(Cursor::Order(volume), n, self.first_segment)?.ok_or_else(full)?
            }
            Stream::Meta => i.carve(Cursor::Meta, n, self.first_segment)?.ok_or_else(full)?,
        };
        i.free -= len;
        if stream != Stream::Meta {
            i.reserved -= len;
        }
        Ok((p, len))
    }

    /// Whether a whole segment is free.
    pub fn has_whole_segment(&self) -> bool {
        self.inner.lock().whole.next(self.first_segment).is_some()
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
        i.mark(p, n, true)?;
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
        i.mark(p, n, false)?;
        i.free += n;
        Ok(())
    }

    /// A segment range to back next, when little backed space is left; `urgent`: whatever is left.
    pub fn to_back(&self, urgent: bool) -> Option<(u64, u64)> {
        let i = self.inner.lock();
        let need = i.reserved + i.promised + self.fixed + self.ahead;
        if i.unbacked_segments == 0 || (!urgent && i.free >= need) {
            return None;
        }
        let first = i.unbacked.next(self.first_segment)?;
        let most = (self.ahead / SEGMENT_BLOCKS).clamp(1, BACK_SEGMENTS);
        let end = (first + most).min(i.used.segments());
        let n = (first..end).take_while(|s| i.unbacked.has(*s)).count();
        Some((first, n as u64))
    }

    /// Whether much more is backed than is needed soon, in segments that are free as a whole.
    pub fn has_surplus(&self) -> bool {
        let i = self.inner.lock();
        self.surplus(&i) > 0 && i.whole.next(self.first_segment).is_some()
    }

    /// Whole segments that the host can have back.
    fn surplus(&self, i: &Inner) -> u64 {
        // Twice what backing ahead strives for: space does not go to and fro.
        let keep = i.reserved + i.promised + self.fixed + 2 * self.ahead + SEGMENT_BLOCKS;
        i.free.saturating_sub(keep) / SEGMENT_BLOCKS
    }

    /// Takes free segments out of use, so that the checkpoint about to be written says that the host does not
    /// hold them. `early` is a deliberate bug: segments whose blocks this checkpoint is the first not to need.
    pub fn let_go(&self, early: bool) {
        let mut i = self.inner.lock();
        let mut left = self.surplus(&i).min(LEAVING_SEGMENTS);
        let mut from = self.first_segment;
        while left > 0
            && i.leaving.len() < LEAVING_RUNS
            && let Some(first) = i.whole.next(from)
        {
            let n = (first..first + left).take_while(|s| *s < i.used.segments() && i.whole.has(*s)).count()
                as u64;
            for s in first..first + n {
                i.backed[mem(s)] = false;
                i.whole.set(s, false);
                i.dirty.insert(s);
            }
            i.free -= n * SEGMENT_BLOCKS;
            i.unbacked_segments += n;
            i.leaving.push((first, n));
            (from, left) = (first + n, left - n);
        }
        if early {
            let unmerged =
                |s: &u64| i.merged.free_in(*s) == SEGMENT_BLOCKS && i.used.free_in(*s) < SEGMENT_BLOCKS;
            let found: Vec<_> = (self.first_segment..i.used.segments()).filter(unmerged).collect();
            i.leaving.extend(found.into_iter().map(|s| (s, 1)));
        }
    }

    /// What [`Allocator::let_go`] took.
    pub fn leaving(&self) -> Vec<(u64, u64)> {
        self.inner.lock().leaving.clone()
    }

    /// The host has them back; they may be backed again.
    pub fn gone(&self) {
        let mut i = self.inner.lock();
        for (first, n) in std::mem::take(&mut i.leaving) {
            (first..first + n).for_each(|s| i.unbacked.set(s, true));
        }
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
                self.unbacked.set(s, false);
                self.sort_in(s);
            }
        }
    }

    fn touch(&mut self, p: Phys, n: u64) {
        self.dirty.extend(p.segment()..=p.plus(n - 1).segment());
    }

    /// Puts a segment into the sets where it belongs.
    fn sort_in(&mut self, s: u64) {
        let (free, backed) = (self.used.free_in(s), self.backed[mem(s)]);
        self.whole.set(s, backed && free == SEGMENT_BLOCKS);
        self.partial.set(s, backed && (1..SEGMENT_BLOCKS).contains(&free));
    }

    /// Sets or clears bits of `used`.
    fn mark(&mut self, p: Phys, n: u64, set: bool) -> Result<()> {
        self.used.change(p, n, set)?;
        (p.segment()..=p.plus(n - 1).segment()).for_each(|s| self.sort_in(s));
        Ok(())
    }

    /// A few blocks for one leaf: out of its chunk, so that neighbours lie together (H36).
    fn take_small(&mut self, volume: VolumeId, leaf: u64, n: u64, first: u64) -> Result<Option<(Phys, u64)>> {
        if let Some(found) = self.chunks.take(volume, leaf, n) {
            return Ok(Some(found));
        }
        let size = self.chunks.next_size(volume, leaf).max(n);
        let Some((p, len)) = self.carve(Cursor::Data(volume), size, first)? else { return Ok(None) };
        if size > n && len > n {
            for (p, n) in self.chunks.keep(volume, leaf, (p.plus(n), len - n), size) {
                self.mark(p, n, false)?;
            }
        }
        Ok(Some((p, len.min(n))))
    }

    /// Marks at most `n` consecutive free blocks as used.
    fn carve(&mut self, whose: Cursor, n: u64, first: u64) -> Result<Option<(Phys, u64)>> {
        let mut found = self.find(whose, n, first);
        if found.is_none() && !matches!(whose, Cursor::Order(_)) {
            for (p, n) in self.chunks.dissolve() {
                self.mark(p, n, false)?;
            }
            found = self.find(whose, n, first);
        }
        let Some((p, len)) = found else { return Ok(None) };
        self.mark(p, len, true)?;
        self.cursors.insert(whose, p.plus(len));
        Ok(found)
    }

    /// Goes on where it was, then in a whole free segment, then in any hole.
    fn find(&mut self, whose: Cursor, n: u64, first: u64) -> Option<(Phys, u64)> {
        let at = |s: u64, (start, len): (u64, u64)| (Phys(s * SEGMENT_BLOCKS + start), len);
        if let Some(c) = self.cursors.get(&whose).copied() {
            // A cursor at the end of its segment has run out of it.
            let from = c.0 % SEGMENT_BLOCKS;
            if from != 0
                && self.backed[mem(c.segment())]
                && let Some(run) = self.used.run(c.segment(), from, n)
            {
                return Some(at(c.segment(), run));
            }
        }
        let from = self.rover.max(first);
        let hole = || self.partial.next_around(from).filter(|_| !matches!(whose, Cursor::Order(_)));
        let found = self.whole.next_around(from).or_else(hole)?;
        self.rover = found;
        self.used.run(found, 0, n).map(|run| at(found, run))
    }
}

#[cfg(test)]
mod tests;
