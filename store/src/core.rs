//! What an open pool consists of, and the few steps that everything else is made of: look a block up, set
//! space aside, commit records, flush.

use crate::alloc::Allocator;
use crate::catalog::Catalog;
use crate::format::node::Root;
use crate::format::record::Record;
use crate::format::superblock::{Layout, Superblock};
use crate::gate::IoEpochs;
use crate::io::BlockDev;
use crate::log::Log;
use crate::log::writer::{FlushError, MAP_FRAME, Poison};
use crate::map::{NodeCache, tree};
use crate::memtable::{Found, Layer, Target};
use crate::mutation::Mutation;
use crate::types::{Epoch, Lsn, Phys, SEGMENT_BLOCKS, VersionId, VolumeId};
use crate::volume::Volume;
use crate::{BLOCK_BYTES, Error, Recovery, Result};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Spans in memory at which a checkpoint begins: about 100 MiB of memtable, 48 MiB of log.
const MEMTABLE_SPANS: u64 = 1_000_000;
/// Layers below a head at which a checkpoint begins, so that a lookup stays short under many snapshots.
pub const LAYERS: usize = 16;

/// The mappings of one version: its tree as of the last checkpoint, and layers not yet merged.
pub struct Cell {
    /// Version.
    pub id: VersionId,
    /// State.
    pub live: RwLock<Live>,
    /// The version is being deleted: no read may begin.
    pub revoked: AtomicBool,
}

/// See [`Cell`].
pub struct Live {
    /// Epoch in which new blocks are born.
    pub epoch: Epoch,
    /// Tree.
    pub root: Root,
    /// Layers that change no more, oldest first.
    pub frozen: Vec<Arc<Layer>>,
    /// A head's youngest layer.
    pub active: Layer,
}

impl Cell {
    /// A cell without layers.
    pub fn new(id: VersionId, epoch: Epoch, root: Root, frozen: Vec<Arc<Layer>>) -> Arc<Self> {
        let live = RwLock::new(Live { epoch, root, frozen, active: Layer::new(epoch) });
        Arc::new(Self { id, live, revoked: AtomicBool::new(false) })
    }
}

impl Live {
    /// Freezes the active layer, if there is something in it.
    pub fn freeze(&mut self) {
        if !self.active.is_empty() {
            let layer = std::mem::replace(&mut self.active, Layer::new(self.epoch));
            self.frozen.push(Arc::new(layer));
        }
    }
}

/// Where a stretch of blocks lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Blocks.
    pub len: u64,
    /// First block and birth; None: a hole. A birth of None: ancient.
    pub data: Option<(Phys, Option<Epoch>)>,
    /// The head may write it in place.
    pub owned: bool,
    /// The mapping survives power loss.
    pub durable: bool,
}

/// What the checkpointer alone changes.
pub struct CheckpointState {
    /// The superblock last written.
    pub superblock: Superblock,
    /// Current slot of each page of the segment table.
    pub slots: Vec<u8>,
    /// Pages of the current checkpoint.
    pub pages: Vec<Phys>,
}

/// Orders to the checkpointer's thread.
#[derive(Default)]
pub struct Orders {
    /// Checkpoints asked for, by number of requests.
    pub wanted: u64,
    /// Requests answered.
    pub done: u64,
    /// Something may be to do.
    pub poke: bool,
    /// Urgent backing asked for and answered.
    pub back_wanted: u64,
    /// See `back_wanted`.
    pub back_done: u64,
    /// End.
    pub stop: bool,
}

/// An open pool.
pub struct Core {
    pub dev: Arc<dyn BlockDev>,
    pub path: PathBuf,
    pub layout: Layout,
    pub pool_id: [u8; 16],
    pub generation: u64,
    pub recovery: Recovery,
    pub ring_state: String,
    pub read_only: bool,
    /// No ring: a write that needs a record is flushed before it is acknowledged.
    pub write_through: bool,
    pub alloc: Allocator,
    pub cache: NodeCache,
    pub log: Log,
    pub poison: Arc<Poison>,
    pub epochs: IoEpochs,
    /// Held shared while records are appended and entered into layers, exclusively by a checkpoint's cut and
    /// by changes of the catalog: what is before an LSN in the log is before it in memory.
    pub commit: RwLock<()>,
    pub catalog: Mutex<Catalog>,
    pub cells: RwLock<BTreeMap<VersionId, Arc<Cell>>>,
    pub volumes: Mutex<HashMap<VolumeId, Weak<Volume>>>,
    /// One operation on the catalog at a time; the data path never takes it.
    pub ops: Mutex<()>,
    pub checkpoint: Mutex<CheckpointState>,
    pub orders: Mutex<Orders>,
    pub ordered: Condvar,
    /// Whether a thread serves `orders`.
    pub background: bool,
    /// Leaves that the deletions of one checkpoint visit.
    pub slice_leaves: u64,
    pub spans: AtomicU64,
    pub host_full: AtomicBool,
}

/// Space set aside for one change; what is not used goes back when dropped.
pub struct Reservation<'a> {
    core: &'a Core,
    blocks: u64,
    ring: u64,
}

impl Core {
    /// Where block `l` of a version and at most `max − 1` after it lie. Call inside an I/O epoch.
    pub fn place(&self, cell: &Cell, l: u64, max: u64) -> Result<Place> {
        let (epoch, root, limit) = {
            let live = cell.live.read();
            let mut limit = max;
            let layers = std::iter::once(&live.active).chain(live.frozen.iter().rev().map(Arc::as_ref));
            for layer in layers {
                match layer.find(l) {
                    Found::Gap { len } => limit = limit.min(len),
                    Found::Hit { len, target, lsn } => {
                        let data = match target {
                            Target::Data(p) => Some((p, Some(layer.epoch))),
                            Target::Hole => None,
                        };
                        return Ok(Place {
                            len: len.min(limit),
                            data,
                            owned: data.is_some() && layer.epoch == live.epoch,
                            durable: lsn <= self.log.durable(),
                        });
                    }
                }
            }
            (live.epoch, live.root, limit)
        };
        let extent = tree::resolve(&self.cache, root, l, limit)?;
        Ok(Place {
            len: extent.len,
            data: extent.data.map(|e| (e.p, e.birth)),
            owned: extent.data.is_some_and(|e| e.birth == Some(epoch)),
            durable: true,
        })
    }

    /// Reads blocks `l..` of a version into `buf`.
    pub fn read_blocks(&self, cell: &Cell, l: u64, buf: &mut [u8]) -> Result<()> {
        let n = buf.len() as u64 / BLOCK_BYTES;
        let mut done = 0;
        while done < n {
            let place = self.place(cell, l + done, n - done)?;
            let bytes = &mut buf[byte_index(done)..byte_index(done + place.len)];
            match place.data {
                None if Mutation::ForeignBytes.on() => {}
                None => bytes.fill(0),
                Some((p, _)) => self
                    .dev
                    .read_at(p.offset(), bytes)
                    .map_err(|e| Error::io(format!("read block {}", p.0), e))?,
            }
            done += place.len;
        }
        Ok(())
    }

    /// Like [`Core::try_reserve`], but finds room first: backs more of the pool file, then lets a checkpoint
    /// free what was dropped since the last one.
    pub fn reserve(
        &self,
        blocks: u64,
        nodes: u64,
        records: u64,
        freeing: bool,
    ) -> Result<Option<Reservation<'_>>> {
        let again = || self.try_reserve(blocks, nodes, records, freeing);
        if let found @ Some(_) = again()? {
            return Ok(found);
        }
        self.back_now()?;
        if let found @ Some(_) = again()? {
            return Ok(found);
        }
        self.checkpoint_now()?;
        again()
    }

    /// Sets aside `blocks` for data, `nodes` for the merge, and ring space for `records` mappings. None: there
    /// is no room. `freeing`: the change gives space back and may use what is kept for that.
    pub fn try_reserve(
        &self,
        blocks: u64,
        nodes: u64,
        records: u64,
        freeing: bool,
    ) -> Result<Option<Reservation<'_>>> {
        let need = if Mutation::NoNodePromise.on() { blocks } else { blocks + nodes };
        if !self.alloc.try_reserve(need, freeing) {
            return Ok(None);
        }
        let ring = records * MAP_FRAME;
        if let Err(e) = self.reserve_ring(ring) {
            self.alloc.settle(need, 0);
            return Err(e);
        }
        Ok(Some(Reservation { core: self, blocks: need, ring }))
    }

    /// Sets ring space aside; flushes until there is some.
    pub fn reserve_ring(&self, bytes: u64) -> Result<()> {
        while !self.log.try_reserve(bytes) {
            self.flush()?;
        }
        Ok(())
    }

    /// Appends records of one head and enters them into its active layer; then they are acknowledged as far
    /// as the death of the process goes.
    pub fn commit(&self, cell: &Cell, records: &[Record], reservation: &mut Reservation<'_>, grown: u64) {
        let _shared = self.commit.read();
        let mut live = cell.live.write();
        let (lsn, frames) = self.log.append(records);
        let mut nodes = 0;
        let before = live.active.len();
        for record in records {
            nodes += enter(&mut live.active, record, lsn);
        }
        live.active.grown += grown;
        let after = live.active.len();
        drop(live);
        reservation.ring -= frames;
        let data: u64 =
            records.iter().map(|r| if let Record::Map { n, .. } = r { u64::from(*n) } else { 0 }).sum();
        reservation.settle_nodes(data, nodes);
        let spans = (after as u64).wrapping_sub(before as u64);
        self.spans.fetch_add(spans, Ordering::Relaxed);
        if self.has_much_to_merge() {
            self.poke();
        }
    }

    /// Whether memtable or log are so large that a checkpoint should begin.
    pub fn has_much_to_merge(&self) -> bool {
        self.spans.load(Ordering::Relaxed) > MEMTABLE_SPANS || self.log.is_half_full()
    }

    /// Makes everything acknowledged durable.
    pub fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        loop {
            match self.log.flush(false) {
                Ok(()) => return Ok(()),
                Err(FlushError::Failed(e)) => return Err(e),
                Err(FlushError::NeedCheckpoint) => self.checkpoint_now()?,
            }
        }
    }

    /// Wakes the checkpointer.
    pub fn poke(&self) {
        self.orders.lock().poke = true;
        self.ordered.notify_all();
    }

    /// A checkpoint that begins after the call; returns when it is durable.
    pub fn checkpoint_now(&self) -> Result<()> {
        self.writable()?;
        if !self.background {
            return self.run_checkpoint();
        }
        let mut o = self.orders.lock();
        o.wanted += 1;
        let mine = o.wanted;
        self.ordered.notify_all();
        while o.done < mine && !o.stop {
            self.poison.check()?;
            self.ordered.wait(&mut o);
        }
        drop(o);
        self.poison.check()
    }

    /// Backs more of the pool file now, if the host can.
    pub fn back_now(&self) -> Result<()> {
        if !self.background {
            self.back_more(true);
            return Ok(());
        }
        let mut o = self.orders.lock();
        o.back_wanted += 1;
        let mine = o.back_wanted;
        self.ordered.notify_all();
        while o.back_done < mine && !o.stop {
            self.poison.check()?;
            self.ordered.wait(&mut o);
        }
        Ok(())
    }

    /// Asks the host for the next stretch of the pool file, smaller ones when it has little left.
    pub fn back_more(&self, urgent: bool) {
        let Some((first, mut n)) = self.alloc.to_back(urgent) else { return };
        while n > 0 {
            let bytes = SEGMENT_BLOCKS * BLOCK_BYTES;
            match self.dev.back(first * bytes, n * bytes) {
                Ok(()) => {
                    self.host_full.store(false, Ordering::Relaxed);
                    return self.alloc.set_backed(first, n);
                }
                Err(e) => {
                    tracing::debug!(error = %e, segments = n, "the host has no room for more of the pool");
                    self.host_full.store(true, Ordering::Relaxed);
                    if Mutation::BelievedBacking.on() {
                        return self.alloc.set_backed(first, n);
                    }
                    n /= 2;
                }
            }
        }
    }

    /// An error when nothing may be changed.
    pub fn writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::unsupported("the pool is open read-only")
                .hint("start the agent and use the command without --pool"));
        }
        if Mutation::WriteAfterPoison.on() {
            return Ok(());
        }
        self.poison.check()
    }

    /// The cell of a version.
    pub fn cell(&self, id: VersionId) -> Result<Arc<Cell>> {
        self.cells
            .read()
            .get(&id)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("version {} does not exist any more", id.0)))
    }
}

/// Enters a mapping record into a layer; returns the nodes newly promised.
pub fn enter(layer: &mut Layer, record: &Record, lsn: Lsn) -> u64 {
    match record {
        Record::Map { l, n, p, .. } => layer.insert(*l, u64::from(*n), Target::Data(*p), lsn),
        Record::Unmap { l, n, .. } => layer.insert(*l, *n, Target::Hole, lsn),
        _ => unreachable!("only mappings are entered into layers"),
    }
}

/// Byte index of block `n` of a buffer.
pub fn byte_index(n: u64) -> usize {
    crate::types::mem(n * BLOCK_BYTES)
}

impl Reservation<'_> {
    /// `data` blocks were taken, `nodes` are promised; the rest of the blocks goes back when dropped.
    fn settle_nodes(&mut self, data: u64, nodes: u64) {
        self.blocks -= data;
        self.core.alloc.settle(0, if Mutation::NoNodePromise.on() { 0 } else { nodes });
    }

    /// Blocks that were taken and are lost until the pool is opened again (their write failed).
    pub fn quarantined(&mut self, blocks: u64) {
        self.blocks -= blocks;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.core.alloc.settle(self.blocks, 0);
        self.core.log.unreserve(self.ring);
    }
}
