//! The checkpoint: merges the memtable into the trees, deletes in slices, and makes the result the new base.
//!
//! Invariants: it alone changes trees and frees blocks (H22). What it writes goes to blocks that no durable
//! checkpoint refers to; the superblock that names them is written after a sync, and what they replace is
//! free only after the sync behind it and when every I/O begun before has ended (H16–H18). An error anywhere
//! in it poisons the pool: the old checkpoint and the log hold.

use crate::alloc::SegmentState;
use crate::catalog::{Catalog, Version};
use crate::core::{CheckpointState, Core, LAYERS};
use crate::format::checkpoint::{Checkpoint, PAGE_PAYLOAD, write_page};
use crate::format::crc;
use crate::format::node::Root;
use crate::format::segment::{FLAG_BACKED, RECORDS_A_PAGE, SegmentPage};
use crate::format::superblock::CheckpointRef;
use crate::io::port::block_on;
use crate::io::{AlignedBuf, heap};
use crate::log::writer::FlushError;
use crate::map::delete::{Deletion, walk};
use crate::map::merge::{Merger, NodeWriter, Origin};
use crate::memtable::Layer;
use crate::mutation::Mutation;
use crate::types::{BLOCK, BLOCK_BYTES, Epoch, Lsn, Phys, SEGMENT_BLOCKS, VersionId, mem};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use zerocopy::{FromZeros, IntoBytes};

/// Leaves that the deletions of one checkpoint visit, unless a test asks for less.
pub const SLICE_LEAVES: u64 = 16_384;
/// Between two times that space goes back to the host.
const LET_GO_PAUSE: Duration = Duration::from_secs(1);
/// A checkpoint that merged so many spans, some ten MiB, gives their memory back to the system.
const MANY_SPANS: u64 = 100_000;
/// Versions that one checkpoint removes.
const SLICE_VERSIONS: usize = 256;

/// The state at the checkpoint's LSN.
struct Cut {
    lsn: Lsn,
    catalog: Catalog,
    layers: Vec<(VersionId, Vec<Arc<Layer>>)>,
}

struct Builder<'a> {
    core: &'a Core,
    writer: NodeWriter<'a>,
    catalog: Catalog,
    /// Layer → tree after it, change of mapped blocks.
    merged: HashMap<u64, (Root, i64)>,
    redeemed: u64,
    spans: u64,
    freed: Vec<(Phys, u64)>,
    removed: Vec<VersionId>,
    slice: Option<(VersionId, u64)>,
}

impl Core {
    /// Runs one checkpoint now, on this thread.
    pub fn run_checkpoint(&self) -> Result<()> {
        let mut state = self.checkpoint.lock();
        self.poison.check()?;
        let result = self.checkpoint_in(&mut state);
        if let Err(e) = &result {
            self.poison.set(&format!("checkpoint: {e}"));
        }
        result
    }

    fn checkpoint_in(&self, state: &mut CheckpointState) -> Result<()> {
        let cut = self.cut_for_checkpoint();
        block_on(self.log.flush(&self.blocking(), true)).map_err(|e| match e {
            FlushError::Failed(e) => e,
            FlushError::NeedCheckpoint => unreachable!("a checkpoint's own flush uses the space kept for it"),
        })?;
        let position = self.log.marked().expect("the flush has reached the mark");
        let mut b = Builder {
            core: self,
            writer: NodeWriter::new(&*self.dev, &self.alloc, &self.cache),
            catalog: cut.catalog,
            merged: HashMap::new(),
            redeemed: 0,
            spans: 0,
            freed: Vec::new(),
            removed: Vec::new(),
            slice: None,
        };
        b.merge_all(cut.layers)?;
        b.delete_slice()?;
        let number = state.superblock.checkpoint().number + 1;
        if Mutation::EarlyReuse.on() {
            b.freed.iter().try_for_each(|(p, n)| self.alloc.free(*p, *n))?;
        }
        if self.may_let_go(state) {
            self.alloc.let_go(Mutation::EarlyPunch.on());
        }
        if Mutation::EarlyPunch.on() {
            self.give_back();
        }
        let (page, sum, bytes, pages) = b.write_pages(state, number)?;
        let sync = || self.dev.sync().map_err(|e| Error::io("sync checkpoint", e));
        // A cut before this sync, or before the superblock: the old checkpoint and the whole log hold.
        if !Mutation::EarlySuperblock.on() {
            sync()?;
        }
        let reference = CheckpointRef {
            lsn: cut.lsn,
            log_index: position.index,
            log_chain: position.chain,
            page,
            crc: sum,
            bytes,
            number,
        };
        state.superblock.set_checkpoint(&reference);
        self.write_superblock(state)?;
        state.pages = pages;
        let merged = b.publish();
        self.log.release(position.index);
        if !Mutation::NoEpochWait.on() {
            self.epochs.wait_for_earlier();
        }
        for (p, n) in b.freed.iter().filter(|_| !Mutation::EarlyReuse.on()) {
            (0..*n).for_each(|i| self.cache.forget(p.plus(i)));
            self.alloc.free(*p, *n)?;
        }
        self.give_back();
        // Millions of spans: freed where nobody waits for it.
        drop(merged);
        if b.spans >= MANY_SPANS {
            heap::release_freed();
        }
        if b.slice.is_some() || next_doomed(&self.catalog.lock()).is_some() {
            self.poke();
        }
        Ok(())
    }

    /// Whether this checkpoint may give space back to the host: one in a while, for it holds all I/O up (H31).
    fn may_let_go(&self, state: &mut CheckpointState) -> bool {
        let now = Instant::now();
        let rested = state.let_go.is_none_or(|t| now - t >= LET_GO_PAUSE);
        // Where no thread runs checkpoints by itself there is nobody to hold up.
        let may = (rested || !self.background) && !self.keeps_space.load(Ordering::Relaxed);
        if may && self.alloc.has_surplus() {
            state.let_go = Some(now);
        }
        may
    }

    /// Gives the segments back that the durable checkpoint says the host does not hold. A cut before or in it leaves
    /// them with the host's file, which costs space and nothing else.
    fn give_back(&self) {
        let bytes = SEGMENT_BLOCKS * BLOCK_BYTES;
        for (first, n) in self.alloc.leaving() {
            if let Err(e) = self.dev.punch(first * bytes, n * bytes) {
                tracing::debug!(error = %e, "the host takes no space back");
                self.keeps_space.store(true, Ordering::Relaxed);
            }
        }
        self.alloc.gone();
    }

    /// Writes the next superblock and syncs.
    pub fn write_superblock(&self, state: &mut CheckpointState) -> Result<()> {
        let (slot, bytes) = state.superblock.seal();
        self.dev.write_at(slot.offset(), bytes).map_err(|e| Error::io("write superblock", e))?;
        self.dev.sync().map_err(|e| Error::io("sync superblock", e))
    }

    /// Freezes every layer and marks the log, so that both hold the same changes.
    fn cut_for_checkpoint(&self) -> Cut {
        let _alone = self.commit.write();
        self.discarded.store(false, Ordering::Relaxed);
        let mut layers = Vec::new();
        for (id, cell) in &*self.cells.read() {
            let mut live = cell.live.write();
            live.freeze();
            if !live.frozen.is_empty() {
                layers.push((*id, live.frozen.clone()));
            }
        }
        Cut { lsn: self.log.mark(), catalog: self.catalog.lock().clone(), layers }
    }

    /// Whether some head has so many layers that lookups get long.
    pub fn has_many_layers(&self) -> bool {
        self.cells.read().values().any(|c| c.live.read().frozen.len() > LAYERS)
    }
}

/// The version whose deletion goes on next: the one begun, else the first with at most one child.
pub fn next_doomed(catalog: &Catalog) -> Option<&Arc<Version>> {
    let doomed = || catalog.versions.values().filter(|v| v.doomed && catalog.children_of(v.id).len() <= 1);
    doomed().find(|v| v.cursor > 0).or_else(|| doomed().next())
}

impl Builder<'_> {
    /// Merges the layers of all versions, parents first.
    fn merge_all(&mut self, mut layers: Vec<(VersionId, Vec<Arc<Layer>>)>) -> Result<()> {
        layers.sort_by_key(|(id, _)| self.catalog.versions[id].epoch);
        for (id, stack) in layers {
            for layer in stack {
                let v = self.catalog.version(id)?;
                let (root, delta) = match self.merged.get(&layer.id) {
                    Some(done) => *done,
                    None => self.merge(&v, &layer)?,
                };
                self.catalog.update_version(id, |v| {
                    v.root = root;
                    v.mapped_blocks = v.mapped_blocks.saturating_add_signed(delta);
                });
            }
        }
        Ok(())
    }

    fn merge(&mut self, v: &Version, layer: &Layer) -> Result<(Root, i64)> {
        let mut merger = Merger {
            cache: &self.core.cache,
            alloc: &self.core.alloc,
            origin: origin_of(&self.catalog, v),
            epoch: v.epoch,
            writer: &mut self.writer,
            freed: &mut self.freed,
            mapped: 0,
        };
        let root = merger.merge(v.root, layer)?;
        let outcome = (root, merger.mapped);
        // Later merges may read these nodes from disk.
        self.writer.flush()?;
        self.merged.insert(layer.id, outcome);
        self.redeemed += layer.promised_nodes();
        self.spans += layer.len() as u64;
        Ok(outcome)
    }

    /// Goes on with deletions, one version after the other.
    fn delete_slice(&mut self) -> Result<()> {
        let mut budget = self.core.slice_leaves;
        while self.removed.len() < SLICE_VERSIONS {
            let Some(v) = next_doomed(&self.catalog).cloned() else { break };
            let d = deletion_of(&self.catalog, &v);
            let (alloc, freed) = (&self.core.alloc, &mut self.freed);
            let next = walk(&self.core.cache, d, v.cursor, &mut budget, |p| {
                alloc.unmerge(p, 1)?;
                freed.push((p, 1));
                Ok(())
            })?;
            if let Some(cursor) = next {
                self.catalog.update_version(v.id, |v| v.cursor = cursor);
                self.slice = Some((v.id, cursor));
                break;
            }
            self.catalog.remove_version(v.id);
            self.removed.push(v.id);
        }
        Ok(())
    }

    /// Writes the segment table's changed pages to their other slots, and the checkpoint's own pages. Returns
    /// the first page, its checksum, the bytes, and all pages.
    fn write_pages(
        &mut self,
        state: &mut CheckpointState,
        number: u64,
    ) -> Result<(Phys, u32, u64, Vec<Phys>)> {
        for p in &state.pages {
            self.core.alloc.unmerge(*p, 1)?;
            self.freed.push((*p, 1));
        }
        let checkpoint = Checkpoint { number, slots: state.slots.clone(), catalog: self.catalog.clone() };
        let count = checkpoint.encode().len().div_ceil(PAGE_PAYLOAD);
        let pages = (0..count).map(|_| self.writer.take()).collect::<Result<Vec<_>>>()?;
        // Everything is allocated now: the table is final.
        for index in self.core.alloc.take_dirty(RECORDS_A_PAGE as u64) {
            let (byte, bit) = (mem(index / 8), 1 << (index % 8));
            if !Mutation::KeptSlot.on() {
                state.slots[byte] ^= bit;
            }
            self.write_segment_page(index, state.slots[byte] & bit != 0, number)?;
        }
        let blob = Checkpoint { slots: state.slots.clone(), ..checkpoint }.encode();
        let (first, images) = link_pages(&blob, &pages);
        for (p, image) in pages.iter().zip(&images) {
            self.writer.put(*p, image)?;
        }
        self.writer.flush()?;
        Ok((pages[0], first, blob.len() as u64, pages))
    }

    fn write_segment_page(&self, index: u64, slot: bool, number: u64) -> Result<()> {
        let core = self.core;
        let page = segment_page(index, number, core.layout.total_blocks / 256, |s| core.alloc.segment(s));
        let (start, pages) = core.layout.segtab;
        let at = Phys(start + u64::from(slot) * pages + index);
        let mut buf = AlignedBuf::reused(BLOCK);
        buf.copy_from_slice(page.as_bytes());
        core.dev.write_at(at.offset(), &buf).map_err(|e| Error::io("write segment table", e))
    }

    /// Makes the new trees the ones that lookups use, and takes over what deletions did. Returns the layers that are in
    /// the trees now.
    fn publish(&self) -> Vec<Arc<Layer>> {
        let core = self.core;
        let mut merged = Vec::new();
        let _alone = core.commit.write();
        let mut catalog = core.catalog.lock();
        for (id, cell) in &*core.cells.read() {
            let mut live = cell.live.write();
            let done = live.frozen.iter().take_while(|l| self.merged.contains_key(&l.id)).count();
            if done == 0 {
                continue;
            }
            let delta: i64 = live.frozen[..done].iter().map(|l| self.merged[&l.id].1).sum();
            live.root = self.merged[&live.frozen[done - 1].id].0;
            merged.extend(live.frozen.drain(..done));
            catalog.update_version(*id, |v| {
                v.root = live.root;
                v.mapped_blocks = v.mapped_blocks.saturating_add_signed(delta);
            });
        }
        for id in &self.removed {
            if Mutation::OwnershipRegained.on() {
                let cells = core.cells.read();
                let epoch = catalog.versions[id].epoch;
                catalog.children_of(*id).iter().for_each(|c| cells[c].live.write().epoch = epoch);
            }
            catalog.remove_version(*id);
            core.cells.write().remove(id);
        }
        if let Some((id, cursor)) = self.slice {
            catalog.update_version(id, |v| v.cursor = cursor);
        }
        core.alloc.redeem(if Mutation::NoNodePromise.on() { 0 } else { self.redeemed });
        core.spans.fetch_sub(self.spans, Ordering::Relaxed);
        merged
    }
}

/// What the origin of `v` holds (H22).
fn origin_of(catalog: &Catalog, v: &Version) -> Origin {
    let state = |id: Option<VersionId>| {
        id.map_or((Epoch(0), Root::default()), |id| (catalog.versions[&id].epoch, catalog.versions[&id].root))
    };
    let above = state(v.parent);
    match v.parent.map(|p| &catalog.versions[&p]) {
        Some(p) if p.cursor > 0 && !Mutation::ForgottenCursor.on() => {
            Origin { cursor: p.cursor, below: state(p.parent), above }
        }
        _ => Origin { cursor: 0, below: above, above },
    }
}

/// A version and its neighbours, for the walk.
pub fn deletion_of(catalog: &Catalog, v: &Version) -> Deletion {
    let root = |id: &VersionId| catalog.versions[id].root;
    Deletion {
        root: v.root,
        child: catalog.children_of(v.id).first().map(root),
        parent: (catalog.origin_epoch(v), v.parent.as_ref().map_or(Root::default(), root)),
    }
}

/// A page of the segment table over the state that `segment` tells.
pub fn segment_page(
    index: u64,
    number: u64,
    segments: u64,
    segment: impl Fn(u64) -> SegmentState,
) -> SegmentPage {
    let mut page = SegmentPage::new_zeroed();
    let first = index * RECORDS_A_PAGE as u64;
    for (s, record) in (first..segments).zip(&mut page.records) {
        let SegmentState { used, sealed, backed } = segment(s);
        record.used = used.map(Into::into);
        record.crc_valid = sealed.map(Into::into);
        let count: u32 = used.iter().map(|w| w.count_ones()).sum();
        record.used_count = u16::try_from(count).expect("at most 256").into();
        record.flags = (u16::from(backed) * FLAG_BACKED).into();
    }
    page.seal(index, number);
    page
}

/// Cuts a checkpoint into pages at the given places, each naming the next one and its checksum. Returns the
/// first page's checksum and the pages' bytes.
pub fn link_pages(blob: &[u8], places: &[Phys]) -> (u32, Vec<[u8; BLOCK]>) {
    let mut images = Vec::with_capacity(places.len());
    let mut next = None;
    for (part, p) in blob.chunks(PAGE_PAYLOAD).zip(places).rev() {
        let image = write_page(part, next);
        next = Some((*p, crc(0, &image)));
        images.push(image);
    }
    images.reverse();
    (next.expect("a checkpoint is not empty").1, images)
}
