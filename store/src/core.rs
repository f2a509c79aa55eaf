//! What an open pool consists of, and the few steps that everything else is made of: look a block up, set
//! space aside, commit records, flush.

use crate::alloc::{Allocator, Stream};
use crate::catalog::Catalog;
use crate::format::node::Root;
use crate::format::record::Record;
use crate::format::superblock::{Layout, Superblock};
use crate::gate::IoEpochs;
use crate::integrity::{ChecksumTable, Damage, Sealer};
use crate::io::port::{Waiters, block_on};
use crate::io::together::together;
use crate::io::{BlockDev, Blocking, Io, Sink};
use crate::log::Log;
use crate::log::writer::{FlushError, MAP_FRAME, Poison};
use crate::map::delete::Deletion;
use crate::map::{NodeCache, tree};
use crate::memtable::{Found, Layer, Target};
use crate::mutation::Mutation;
use crate::resequence::Resequencer;
use crate::types::{Epoch, Few, Lsn, Phys, SEGMENT_BLOCKS, VersionId, VolumeId};
use crate::volume::Volume;
use crate::{BLOCK_BYTES, Error, Recovery, Result};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Instant;

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
    /// When space went back to the host.
    pub let_go: Option<Instant>,
}

/// Requests for one thing, numbered.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Requests made.
    pub wanted: u64,
    /// Requests answered.
    pub done: u64,
}

impl Order {
    /// Whether nobody waits.
    pub fn is_answered(self) -> bool {
        self.wanted == self.done
    }
}

/// Orders to the checkpointer's thread.
#[derive(Default)]
pub struct Orders {
    /// A checkpoint.
    pub checkpoint: Order,
    /// Urgent backing of the pool file.
    pub backing: Order,
    /// Something may be to do.
    pub poke: bool,
    /// End.
    pub stop: bool,
    /// Who waits for an answer.
    pub waiting: Waiters,
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
    /// Something was discarded that only a checkpoint gives back.
    pub discarded: AtomicBool,
    pub host_full: AtomicBool,
    pub checksums: ChecksumTable,
    pub sealer: Sealer,
    pub resequencer: Resequencer,
    pub damage: Damage,
    /// The host takes no space back.
    pub keeps_space: AtomicBool,
    /// Blocks that deleting a version would free, and what they were counted of.
    pub counted: Mutex<HashMap<VersionId, (Deletion, u64)>>,
}

/// A change of a head's mappings.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// First logical block.
    pub l: u64,
    /// Blocks.
    pub n: u64,
    /// What they map to.
    pub target: Target,
}

impl Change {
    fn record(self, version: VersionId) -> Record {
        let Self { l, n, target } = self;
        match target {
            Target::Data(p) => Record::Map { version, l, n: u32::try_from(n).expect("at most a segment"), p },
            Target::Hole => Record::Unmap { version, l, n },
        }
    }
}

/// What one change needs.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Blocks for data.
    pub blocks: u64,
    /// Nodes for the merge.
    pub nodes: u64,
    /// Mappings in the ring.
    pub records: u64,
    /// The change gives space back and may use what is kept for that.
    pub freeing: bool,
}

/// Space set aside for one change; what is not used goes back when dropped. Blocks that were taken and never
/// mapped, because their write failed, stay out of use until the pool is opened again.
pub struct Reservation<'a> {
    core: &'a Core,
    blocks: u64,
    ring: u64,
}

impl Core {
    /// The device, for a thread that may wait.
    pub fn blocking(&self) -> Blocking<'_> {
        Blocking(&*self.dev)
    }

    /// Where block `l` of a version and at most `max − 1` after it lie. Call inside an I/O epoch.
    pub async fn place(&self, io: &impl Io, cell: &Cell, l: u64, max: u64) -> Result<Place> {
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
        let extent = tree::resolve(io, &self.cache, root, l, limit).await?;
        Ok(Place {
            len: extent.len,
            data: extent.data.map(|e| (e.p, e.birth)),
            owned: extent.data.is_some_and(|e| e.birth == Some(epoch)),
            durable: true,
        })
    }

    /// Where each stretch of these blocks of a version lies. Call inside an I/O epoch.
    pub async fn places(&self, io: &impl Io, cell: &Cell, blocks: Range<u64>) -> Result<Few<Place>> {
        let mut all = Few::new();
        let mut l = blocks.start;
        while l < blocks.end {
            let place = self.place(io, cell, l, blocks.end - l).await?;
            l += place.len;
            all.push(place);
        }
        Ok(all)
    }

    /// Reads blocks `l..` of a version into `into`: all stretches of them together.
    pub async fn read_blocks(&self, io: &impl Io, cell: &Cell, l: u64, mut into: Sink<'_>) -> Result<()> {
        let places = self.places(io, cell, l..l + into.len() / BLOCK_BYTES).await?;
        let mut next = l;
        let reads = places.as_slice().iter().map(|place| {
            let first = next;
            next += place.len;
            self.read_place(io, cell, first, place, into.take(place.len * BLOCK_BYTES))
        });
        together(reads).await
    }

    /// Reads blocks `l..`, which lie at one place.
    async fn read_place(
        &self,
        io: &impl Io,
        cell: &Cell,
        l: u64,
        place: &Place,
        into: Sink<'_>,
    ) -> Result<()> {
        let Some((p, _)) = place.data else {
            if Mutation::ForeignBytes.on() {
                return Ok(());
            }
            return io.zero(into).await.map_err(|e| Error::io("fill with zeros", e));
        };
        self.read_data(io, cell, l, p, into).await
    }

    /// Like [`Core::try_reserve`], but finds room first: backs more of the pool file, then lets a checkpoint
    /// free what was dropped since the last one.
    pub async fn reserve(&self, io: &impl Io, need: Need) -> Result<Option<Reservation<'_>>> {
        if let found @ Some(_) = self.try_reserve(io, need).await? {
            return Ok(found);
        }
        self.backed().await?;
        if let found @ Some(_) = self.try_reserve(io, need).await? {
            return Ok(found);
        }
        self.checkpointed().await?;
        self.try_reserve(io, need).await
    }

    /// Sets space aside. None: there is no room.
    pub async fn try_reserve(&self, io: &impl Io, need: Need) -> Result<Option<Reservation<'_>>> {
        let nodes = if Mutation::NoNodePromise.on() { 0 } else { need.nodes };
        let blocks = need.blocks + nodes;
        if !self.alloc.try_reserve(blocks, need.freeing) {
            return Ok(None);
        }
        let mut reservation = Reservation { core: self, blocks, ring: 0 };
        let ring = need.records * MAP_FRAME;
        self.reserve_ring(io, ring).await?;
        reservation.ring = ring;
        Ok(Some(reservation))
    }

    /// Sets ring space aside; flushes until there is some.
    pub async fn reserve_ring(&self, io: &impl Io, bytes: u64) -> Result<()> {
        while !self.log.try_reserve(bytes) {
            self.flush(io).await?;
        }
        Ok(())
    }

    /// Appends changes of one head and enters them into its active layer; then they are acknowledged as far
    /// as the death of the process goes.
    pub fn commit(&self, cell: &Cell, changes: &[Change], reservation: &mut Reservation<'_>, grown: u64) {
        let _shared = self.commit.read();
        let mut live = cell.live.write();
        let (lsn, frames) = self.log.append(changes.iter().map(|c| c.record(cell.id)));
        let before = live.active.len();
        let nodes = changes.iter().map(|c| live.active.insert(c.l, c.n, c.target, lsn)).sum();
        live.active.grown += grown;
        let after = live.active.len();
        drop(live);
        reservation.ring -= frames;
        self.alloc.settle(0, if Mutation::NoNodePromise.on() { 0 } else { nodes });
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
    pub async fn flush(&self, io: &impl Io) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        loop {
            match self.log.flush(io, false).await {
                Ok(()) => return Ok(()),
                Err(FlushError::Failed(e)) => return Err(e),
                Err(FlushError::NeedCheckpoint) => self.checkpointed().await?,
            }
        }
    }

    /// [`Core::flush`] on a thread that may wait.
    pub fn flush_now(&self) -> Result<()> {
        block_on(self.flush(&self.blocking()))
    }

    /// Wakes the checkpointer.
    pub fn poke(&self) {
        self.orders.lock().poke = true;
        self.ordered.notify_all();
    }

    /// A checkpoint that begins after the call; returns when it is durable.
    pub async fn checkpointed(&self) -> Result<()> {
        self.writable()?;
        if !self.background {
            return self.run_checkpoint();
        }
        self.order(|o| &mut o.checkpoint).await?;
        self.poison.check()
    }

    /// [`Core::checkpointed`] on a thread that may wait.
    pub fn checkpoint_now(&self) -> Result<()> {
        block_on(self.checkpointed())
    }

    /// Backs more of the pool file now, if the host can.
    async fn backed(&self) -> Result<()> {
        if !self.background {
            self.back_more(true);
            return Ok(());
        }
        self.order(|o| &mut o.backing).await
    }

    /// Gives the checkpointer's thread an order and waits until it is answered.
    async fn order(&self, which: fn(&mut Orders) -> &mut Order) -> Result<()> {
        let mine = {
            let mut o = self.orders.lock();
            let order = which(&mut o);
            order.wanted += 1;
            order.wanted
        };
        self.ordered.notify_all();
        poll_fn(|cx| {
            let mut o = self.orders.lock();
            if which(&mut o).done >= mine || o.stop {
                return Poll::Ready(Ok(()));
            }
            if let failed @ Err(_) = self.poison.check() {
                return Poll::Ready(failed);
            }
            o.waiting.add(cx.waker());
            Poll::Pending
        })
        .await
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
    /// Takes at most `n` consecutive blocks out of it.
    pub fn take(&mut self, stream: Stream, n: u64) -> Result<(Phys, u64)> {
        let (p, len) = self.core.alloc.take(stream, n)?;
        self.blocks -= len;
        Ok((p, len))
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.core.alloc.settle(self.blocks, 0);
        self.core.log.unreserve(self.ring);
    }
}
