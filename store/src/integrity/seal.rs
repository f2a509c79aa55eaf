//! Computing checksums of what snapshots hold, in the background.
//!
//! A snapshot is looked at once its mappings are merged, parents first, so that only what is younger than a parent
//! that was looked at is visited: the work follows what changed, not what is there. After an open it is
//! done again, which finds the entries there and reads map nodes only.
//!
//! Leaves come in the order of the volume, the table is in that of the pool. So the checksums of many leaves are
//! gathered before they are written: a block of the table once for all of them, not once a leaf. While the snapshot
//! lives, what it holds stays in its place, and each step asks anew whether it does.

use super::table::table_block;
use crate::catalog::Kind;
use crate::core::{Cell, Core};
use crate::format::crc;
use crate::format::node::{Child, Root, span};
use crate::io::AlignedBuf;
use crate::map::NodeCache;
use crate::map::tree::{leaf_view, upper_entries};
use crate::mutation::Mutation;
use crate::types::{BLOCK, Epoch, Phys, VersionId, mem};
use crate::{BLOCK_BYTES, Result};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Most that the background reads for checksums: it is never in a hurry.
const BYTES_PER_SECOND: u64 = 128 << 20;
/// Blocks read by one request.
const RUN_BLOCKS: usize = 256;
/// Checksums gathered before they are written: 1 MiB of memory.
const GATHERED: usize = 65_536;
/// Blocks of the table written by one step: what reads are waited for must not wait for long.
const STEP_TABLE_BLOCKS: usize = 32;
/// Longest sleep of the thread.
const IDLE: Duration = Duration::from_secs(2);

/// How far it is.
#[derive(Default)]
pub struct Sealer(Mutex<State>);

#[derive(Default)]
struct State {
    /// Snapshots of which every block has its checksum, or cannot get one.
    done: HashSet<VersionId>,
    /// The snapshot at work.
    at: Option<Work>,
    /// Blocks that got one since the last checkpoint that was asked for.
    fresh: u64,
    /// A snapshot waits for a checkpoint to merge its mappings.
    unmerged: bool,
}

struct Work {
    cell: Arc<Cell>,
    /// What is not younger was looked at with the parent.
    older: Epoch,
    /// Logical block to go on from.
    from: u64,
    /// Checksums that wait for more.
    gathered: Vec<(Phys, u32)>,
    /// Those that are being written: the last blocks of the pool first, as they are taken from the end.
    leaving: Vec<(Phys, u32)>,
}

impl Work {
    /// Whether checksums are to be written before more are gathered.
    fn is_full(&self) -> bool {
        !self.leaving.is_empty() || self.gathered.len() >= GATHERED
    }

    /// What the next step writes: nothing, if nothing is left.
    fn part(&mut self) -> Vec<(Phys, u32)> {
        if self.leaving.is_empty() {
            self.leaving = std::mem::take(&mut self.gathered);
            self.leaving.sort_unstable_by(|a, b| b.cmp(a));
        }
        let in_one = self.leaving.chunk_by(|(a, _), (b, _)| table_block(*a) == table_block(*b));
        let count: usize = in_one.rev().take(STEP_TABLE_BLOCKS).map(<[_]>::len).sum();
        self.leaving.split_off(self.leaving.len() - count)
    }
}

/// The thread: until the pool stops.
pub fn run(core: &Core) {
    loop {
        if core.orders.lock().stop {
            return;
        }
        core.name_damaged();
        let sleep = match core.seal_step() {
            Ok(Some(bytes)) => Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND as f64),
            Ok(None) => {
                core.keep_sealed();
                IDLE
            }
            Err(e) => {
                tracing::warn!(error = %e, "no checksums for now");
                IDLE
            }
        };
        // Orders to the checkpointer wake this thread too, and must not make it faster.
        let until = Instant::now() + sleep;
        let mut o = core.orders.lock();
        while !o.stop && !core.ordered.wait_until(&mut o, until).timed_out() {}
    }
}

impl Core {
    /// One leaf's worth of checksums, or some blocks of the table; the bytes read and written, or None when there is
    /// nothing to do.
    pub fn seal_step(&self) -> Result<Option<u64>> {
        if self.poison.is_set() {
            return Ok(None);
        }
        let mut state = self.sealer.0.lock();
        let Some(mut work) = state.at.take().or_else(|| self.next_to_seal(&mut state)) else {
            return Ok(None);
        };
        // What is looked up in here is not used for anything else before the end.
        let _io = self.epochs.begin();
        if !work.cell.revoked.load(Ordering::SeqCst) {
            let root = work.cell.live.read().root;
            // A damaged node ends it: what is below cannot be reached by anybody.
            let next = || next_leaf(&self.cache, root, work.from, work.older).unwrap_or(None);
            if let Some((base, leaf)) = (!work.is_full()).then(next).flatten() {
                // Never the same leaf again, also when it cannot be read.
                work.from = base + span(0);
                let read = self.sum_leaf(leaf, &mut work.gathered);
                state.at = Some(work);
                return read.map(Some);
            }
            // What cannot be written is left out like what cannot be read.
            let part = work.part();
            if !part.is_empty() {
                state.at = Some(work);
                let written = self.write_sums(&part)?;
                state.fresh += part.len() as u64;
                return Ok(Some(written));
            }
        }
        state.done.insert(work.cell.id);
        Ok(Some(0))
    }

    /// The snapshot to look at next: the oldest that nobody looked at.
    fn next_to_seal(&self, state: &mut State) -> Option<Work> {
        let catalog = self.catalog.lock();
        state.done.retain(|id| catalog.versions.contains_key(id));
        let mut waiting: Vec<_> = catalog
            .versions
            .values()
            .filter(|v| matches!(v.kind, Kind::Snapshot { .. }) && !v.doomed && !state.done.contains(&v.id))
            .collect();
        waiting.sort_by_key(|v| v.epoch);
        let cells = self.cells.read();
        waiting.into_iter().find_map(|v| {
            let cell = cells.get(&v.id)?;
            // Until its layers are merged, its tree is not its own.
            if !cell.live.read().frozen.is_empty() {
                state.unmerged = true;
                return None;
            }
            let parent = v.parent.filter(|p| state.done.contains(p));
            let older = parent.map_or(Epoch(0), |p| catalog.versions[&p].epoch);
            Some(Work { cell: cell.clone(), older, from: 0, gathered: Vec::new(), leaving: Vec::new() })
        })
    }

    /// Adds the checksums of a leaf's blocks that have none to `sums`; the bytes read.
    fn sum_leaf(&self, leaf: Child, sums: &mut Vec<(Phys, u32)>) -> Result<u64> {
        let mut blocks: Vec<Phys> =
            leaf_view(&self.cache, leaf)?.into_iter().flatten().map(|e| e.p).collect();
        blocks.retain(|p| !self.alloc.sealed().has(*p));
        blocks.sort_unstable();
        for run in blocks.chunk_by(|a, b| a.plus(1) == *b).flat_map(|run| run.chunks(RUN_BLOCKS)) {
            let mut buf = AlignedBuf::reused(run.len() * BLOCK);
            if let Err(e) = self.dev.read_at(run[0].offset(), &mut buf) {
                tracing::warn!(error = %e, block = run[0].0, "cannot be read for its checksum");
                continue;
            }
            sums.extend(run.iter().copied().zip(buf.chunks_exact(BLOCK).map(|block| crc(0, block))));
        }
        Ok(blocks.len() as u64 * BLOCK_BYTES)
    }

    /// Writes checksums; the bytes read and written.
    fn write_sums(&self, sums: &[(Phys, u32)]) -> Result<u64> {
        if Mutation::EarlySeal.on() {
            self.alloc.seal(sums.iter().map(|(p, _)| *p));
        }
        let blocks = self.checksums.put(sums)?;
        self.alloc.seal(sums.iter().map(|(p, _)| *p));
        Ok(2 * blocks * BLOCK_BYTES)
    }

    /// Asks for a checkpoint where one is needed to go on, or to keep the checksums that were computed since the last.
    pub fn keep_sealed(&self) {
        let (fresh, unmerged) = {
            let mut state = self.sealer.0.lock();
            (std::mem::take(&mut state.fresh), std::mem::take(&mut state.unmerged))
        };
        if fresh > 0 || unmerged {
            // An error has poisoned the pool, which tells it.
            let _ = self.checkpoint_now();
        }
    }
}

/// The first leaf at or after block `from` that is younger than `older`.
pub fn next_leaf(cache: &NodeCache, root: Root, from: u64, older: Epoch) -> Result<Option<(u64, Child)>> {
    find(cache, root.child, root.height, 0, from, older)
}

fn find(
    cache: &NodeCache,
    child: Child,
    level: u8,
    base: u64,
    from: u64,
    older: Epoch,
) -> Result<Option<(u64, Child)>> {
    let (Child::Node { birth, .. } | Child::Run { birth, .. }) = child else { return Ok(None) };
    if base + span(level) <= from || birth <= older {
        return Ok(None);
    }
    let Child::Node { p, crc, .. } = child else { return Ok(Some((base, child))) };
    if level == 0 {
        return Ok(Some((base, child)));
    }
    let size = span(level - 1);
    let first = mem(from.saturating_sub(base) / size);
    for (i, child) in (0..).zip(upper_entries(&*cache.load_now(p, crc)?)?).skip(first) {
        let found = find(cache, child, level - 1, base + i * size, from, older)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
