//! Opening a pool: lock, superblock, checkpoint, log, ring; then one superblock is written and the pool
//! serves. Cut anywhere, the same again.

use super::Pool;
use crate::alloc::{Allocator, SegmentMap};
use crate::catalog::{Catalog, Kind};
use crate::checkpoint::SLICE_LEAVES;
use crate::core::{Cell, CheckpointState, Core, Orders, enter};
use crate::format::checkpoint::{Checkpoint, read_page};
use crate::format::record::Record;
use crate::format::segment::{FLAG_BACKED, RECORDS_A_PAGE, SegmentPage};
use crate::format::superblock::{RawSuperblock, SLOTS, Superblock};
use crate::gate::IoEpochs;
use crate::integrity::{ChecksumTable, Damage, Sealer, run_sealer};
use crate::io::file::{FileDev, Lock};
use crate::io::{AlignedBuf, BlockDev};
use crate::log::replay;
use crate::log::ring::{Binding, SharedBytes};
use crate::log::writer::{Poison, Resume};
use crate::log::{Log, Ring};
use crate::map::NodeCache;
use crate::resequence::{self, Resequencer};
use crate::types::{BLOCK, BLOCK_BYTES, Lsn, Phys, VersionId, mem};
use crate::{Error, Recovery, Result};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

/// How to open a pool.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Directory for the ring; it must be on a tmpfs. None: a write that needs a record is flushed before it
    /// is acknowledged.
    pub ring_dir: Option<PathBuf>,
    /// Wait for the writes of a dead owner to land (true), or answer `Busy` (false).
    pub wait_for_lock: bool,
    /// Budget of the map-node cache in bytes.
    pub cache_bytes: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { ring_dir: None, wait_for_lock: false, cache_bytes: 64 << 20 }
    }
}

/// Makes the ring for a pool id and a size in bytes; `Err` holds the reason why there is none.
pub type RingMaker<'a> = dyn FnMut(&[u8; 16], u64) -> std::result::Result<Ring, String> + 'a;

/// What a pool runs in: the parts that tests replace.
pub struct Environment<'a> {
    /// Name of the pool in messages.
    pub path: PathBuf,
    /// Boot id of the host.
    pub boot_id: [u8; 16],
    /// Makes the ring.
    pub ring: &'a mut RingMaker<'a>,
    /// Nothing is written.
    pub read_only: bool,
    /// A thread runs checkpoints; without it they run where they are needed.
    pub background: bool,
    /// Budget of the node cache in bytes.
    pub cache_bytes: u64,
    /// Leaves that the deletions of one checkpoint visit.
    pub slice_leaves: u64,
}

/// Boot id of this host: 16 bytes.
fn boot_id() -> Result<[u8; 16]> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(format!("read {path}"), e))?;
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let mut id = [0; 16];
    for (byte, digits) in id.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap_or("0");
        *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    Ok(id)
}

impl Pool {
    /// Opens a pool for writing; this process becomes its owner.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when another process has it, `Unsupported` for a newer format, `Damaged`, `Io`.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<Self>> {
        let lock = if options.wait_for_lock { Lock::ExclusiveWait } else { Lock::Exclusive };
        let dev = Arc::new(FileDev::open(path, lock)?);
        let dir = options.ring_dir.clone();
        let environment = Environment {
            path: path.to_path_buf(),
            boot_id: boot_id()?,
            ring: &mut |id, bytes| match &dir {
                None => Err("no ring directory is set".to_owned()),
                Some(dir) => Ring::open(dir, id, bytes).map_err(|e| e.to_string()),
            },
            read_only: false,
            background: true,
            cache_bytes: options.cache_bytes,
            slice_leaves: SLICE_LEAVES,
        };
        Self::open_on(dev, environment)
    }

    /// Opens a pool to look into it: nothing is written, everything flushed is seen.
    ///
    /// # Errors
    /// As [`Pool::open`]; `Busy` while an owner has it.
    pub fn open_read_only(path: &Path) -> Result<Arc<Self>> {
        let dev = Arc::new(FileDev::open(path, Lock::Shared)?);
        let environment = Environment {
            path: path.to_path_buf(),
            boot_id: boot_id()?,
            ring: &mut |_, _| Err("read-only".to_owned()),
            read_only: true,
            background: false,
            cache_bytes: 64 << 20,
            slice_leaves: SLICE_LEAVES,
        };
        Self::open_on(dev, environment)
    }

    /// Opens the pool on a device that is locked already, or that needs no lock.
    pub fn open_on(dev: Arc<dyn BlockDev>, environment: Environment<'_>) -> Result<Arc<Self>> {
        let background = environment.background;
        let core = Arc::new(open_core(dev, environment)?);
        let pool = Arc::new(Self { core, threads: Mutex::default() });
        if background {
            pool.start("checkpointer", checkpointer)?;
            pool.start("sealer", run_sealer)?;
            pool.start("resequencer", resequence::run)?;
        }
        Ok(pool)
    }

    /// Starts a thread that works until the pool stops.
    fn start(&self, name: &str, work: fn(&Core)) -> Result<()> {
        let core = self.core.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || work(&core));
        self.threads.lock().push(thread.map_err(|e| Error::io(format!("start the {name}"), e))?);
        Ok(())
    }
}

/// The newer valid superblock of a device.
pub fn read_superblock(dev: &dyn BlockDev, writable: bool) -> Result<Superblock> {
    let mut slots = Vec::with_capacity(2);
    for slot in SLOTS {
        let mut buf = AlignedBuf::zeroed(BLOCK);
        if slot.offset() + BLOCK_BYTES <= dev.len() {
            dev.read_at(slot.offset(), &mut buf).map_err(|e| Error::io("read superblock", e))?;
        }
        slots.push(RawSuperblock::read_from_bytes(&buf).expect("one block"));
    }
    let slots: [RawSuperblock; 2] = slots.try_into().expect("two slots");
    let sb = Superblock::choose(slots, writable)?;
    let (need, have) = (sb.layout().total_blocks * BLOCK_BYTES, dev.len());
    if have < need {
        return Err(Error::damaged(format!("the pool is cut short: {have} of {need} bytes are left"))
            .hint("restore the pool file or device to its full length"));
    }
    Ok(sb)
}

/// The checkpoint that a superblock refers to, and its pages.
pub fn read_checkpoint(dev: &dyn BlockDev, sb: &Superblock) -> Result<(Checkpoint, Vec<Phys>)> {
    let at = sb.checkpoint();
    let (mut blob, mut pages) = (Vec::new(), Vec::new());
    let (mut p, mut sum) = (at.page, at.crc);
    while (blob.len() as u64) < at.bytes {
        if p.0 < sb.layout().data_start || p.0 >= sb.layout().total_blocks {
            return Err(Error::damaged("a checkpoint page lies outside the data area"));
        }
        let mut buf = AlignedBuf::reused(BLOCK);
        dev.read_at(p.offset(), &mut buf).map_err(|e| Error::io("read checkpoint", e))?;
        let page: [u8; BLOCK] = buf[..].try_into().expect("one block");
        let (part, next, next_sum) = read_page(&page, sum)?;
        if part.is_empty() {
            return Err(Error::damaged("a checkpoint page is empty"));
        }
        blob.extend_from_slice(part);
        pages.push(p);
        (p, sum) = (next, next_sum);
    }
    let checkpoint = Checkpoint::decode(&blob)?;
    if checkpoint.number != at.number {
        return Err(Error::damaged("the checkpoint is not the one that the superblock names"));
    }
    Ok((checkpoint, pages))
}

/// The segment table as a checkpoint has it.
pub struct Segments {
    /// Blocks in use.
    pub used: SegmentMap,
    /// Blocks that have a checksum.
    pub sealed: SegmentMap,
    /// Segments that the host holds.
    pub backed: Vec<bool>,
}

/// Reads the segment table.
pub fn read_segments(dev: &dyn BlockDev, sb: &Superblock, slots: &[u8]) -> Result<Segments> {
    let layout = sb.layout();
    let segments = layout.total_blocks / 256;
    let (start, pages) = layout.segtab;
    if pages != segments.div_ceil(RECORDS_A_PAGE as u64) || (slots.len() as u64) < pages.div_ceil(8) {
        return Err(Error::damaged("the segment table has the wrong size"));
    }
    let (mut used, mut sealed) = (SegmentMap::new(segments), SegmentMap::new(segments));
    let mut backed = vec![false; mem(segments)];
    for index in 0..pages {
        let slot = u64::from(slots[mem(index / 8)] >> (index % 8) & 1);
        let mut buf = AlignedBuf::reused(BLOCK);
        let at = Phys(start + slot * pages + index);
        dev.read_at(at.offset(), &mut buf).map_err(|e| Error::io("read segment table", e))?;
        let page = SegmentPage::ref_from_bytes(&buf).expect("one block");
        if !page.is_valid(index) {
            return Err(Error::damaged(format!("page {index} of the segment table fails its checksum")));
        }
        let first = index * RECORDS_A_PAGE as u64;
        for (s, record) in (first..segments).zip(&page.records) {
            used.put(s, record.used.map(|w| w.get()));
            sealed.put(s, record.crc_valid.map(|w| w.get()));
            backed[mem(s)] = record.flags.get() & FLAG_BACKED != 0;
        }
    }
    Ok(Segments { used, sealed, backed })
}

/// Catalog and cells while the log is replayed.
pub struct Replay {
    /// Catalog.
    pub catalog: Catalog,
    /// One cell a version.
    pub cells: BTreeMap<VersionId, Arc<Cell>>,
}

impl Replay {
    /// The state of the checkpoint.
    pub fn new(catalog: Catalog) -> Self {
        let cells = catalog.versions.values().map(|v| {
            let cell = Cell::new(v.id, v.epoch, v.root, Vec::new());
            cell.revoked.store(v.doomed, Ordering::Relaxed);
            (v.id, cell)
        });
        let cells = cells.collect();
        Self { catalog, cells }
    }

    fn apply(&mut self, alloc: &Allocator, record: &Record, lsn: Lsn) -> Result<()> {
        let version = match record {
            Record::Map { version, p, n, .. } => {
                alloc.claim(*p, u64::from(*n))?;
                *version
            }
            Record::Unmap { version, .. } => *version,
            other => return perform(&mut self.catalog, &mut self.cells, other),
        };
        let cell = self.cells.get(&version).ok_or_else(|| {
            Error::damaged(format!("the log changes version {}, which is not there", version.0))
        })?;
        let nodes = enter(&mut cell.live.write().active, record, lsn);
        alloc.settle(0, nodes);
        Ok(())
    }
}

/// Performs a change of the catalog, on the catalog and on the cells; at run time and at replay alike.
pub fn perform(
    catalog: &mut Catalog,
    cells: &mut BTreeMap<VersionId, Arc<Cell>>,
    record: &Record,
) -> Result<()> {
    match record {
        Record::Create { head, epoch, .. } => {
            cells.insert(*head, Cell::new(*head, *epoch, Default::default(), Vec::new()));
        }
        Record::Cut { entries, .. } => {
            for e in entries {
                let head = cells[&catalog.head_of(e.volume)?.id].clone();
                let mut live = head.live.write();
                live.freeze();
                let frozen = Cell::new(e.snapshot, live.epoch, live.root, live.frozen.clone());
                cells.insert(e.snapshot, frozen);
                live.epoch = e.head_epoch;
                live.active = crate::memtable::Layer::new(e.head_epoch);
            }
        }
        Record::Clone { source, head, epoch, .. } => {
            let new = derive(cells, *source, *head, *epoch)?;
            cells.insert(*head, new);
        }
        Record::Rollback { volume, source, head, epoch } => {
            let new = derive(cells, *source, *head, *epoch)?;
            cells.insert(*head, new);
            revoke(cells, catalog.head_of(*volume)?.id);
        }
        Record::DeleteSnapshot { version } => revoke(cells, *version),
        Record::DeleteVolume { volume } => revoke(cells, catalog.head_of(*volume)?.id),
        _ => {}
    }
    catalog.apply(record)
}

fn derive(
    cells: &BTreeMap<VersionId, Arc<Cell>>,
    source: VersionId,
    head: VersionId,
    epoch: crate::types::Epoch,
) -> Result<Arc<Cell>> {
    let source =
        cells.get(&source).ok_or_else(|| Error::damaged(format!("version {} is not there", source.0)))?;
    let live = source.live.read();
    Ok(Cell::new(head, epoch, live.root, live.frozen.clone()))
}

fn revoke(cells: &BTreeMap<VersionId, Arc<Cell>>, id: VersionId) {
    if let Some(cell) = cells.get(&id) {
        cell.revoked.store(true, Ordering::SeqCst);
    }
}

/// Bytes of the ring for a log of `log_blocks`: an eighth of it, 4 MiB at most.
pub fn ring_bytes(log_blocks: u64) -> u64 {
    (log_blocks * BLOCK_BYTES / 8).min(4 << 20)
}

fn open_core(dev: Arc<dyn BlockDev>, environment: Environment<'_>) -> Result<Core> {
    let Environment { path, boot_id, ring: make_ring, read_only, background, cache_bytes, slice_leaves } =
        environment;
    let mut sb = read_superblock(&*dev, !read_only)?;
    let layout = sb.layout();
    let (checkpoint, pages) = read_checkpoint(&*dev, &sb)?;
    let Segments { used, sealed, backed } = read_segments(&*dev, &sb, &checkpoint.slots)?;
    let alloc = Allocator::new(used, sealed, backed, layout.data_start);
    let mut state = Replay::new(checkpoint.catalog);
    let mut resume = replay::from_disk(&*dev, &sb, &mut |record, lsn| state.apply(&alloc, &record, lsn))?;

    let bytes = ring_bytes(layout.log.1);
    let made = make_ring(&sb.pool_id(), bytes);
    let binding = made.as_ref().ok().and_then(Ring::binding);
    let current = binding.is_some_and(|b| replay::is_current(&sb, &b, boot_id));
    let recovery = replay::judge(&sb, current, boot_id);
    let resumes = current && recovery == Recovery::Resumed;
    let write_through = made.is_err();
    let ring_state = made.as_ref().map_or_else(|why| format!("write-through: {why}"), |_| "ring".to_owned());
    let ring = match made {
        Ok(ring) => {
            recover_ring(&ring, resumes, &mut resume, &mut |r, lsn| state.apply(&alloc, &r, lsn))?;
            ring
        }
        Err(_) => Ring::heap(SharedBytes::new(bytes)),
    };
    let poison = Arc::new(Poison::default());
    if !read_only {
        sb.take_over(boot_id, !write_through);
        if resumes {
            // Its records are ours from here on, whether or not the superblock gets to disk.
            ring.bind(&Binding { pool_id: sb.pool_id(), boot_id, generation: sb.generation() });
        }
    }
    let log = Log::new(ring, layout.log, sb.pool_id(), sb.generation(), poison.clone(), resume);
    let core = Core {
        cache: NodeCache::new(dev.clone(), cache_bytes),
        checksums: ChecksumTable::new(dev.clone(), layout.crctab.0),
        sealer: Sealer::default(),
        resequencer: Resequencer::default(),
        damage: Damage::default(),
        dev,
        path,
        layout,
        pool_id: sb.pool_id(),
        generation: sb.generation(),
        recovery,
        ring_state,
        read_only,
        write_through,
        alloc,
        log,
        poison,
        epochs: IoEpochs::default(),
        commit: RwLock::new(()),
        catalog: Mutex::new(state.catalog),
        spans: AtomicU64::new(state.cells.values().map(|c| c.live.read().active.len() as u64).sum()),
        discarded: AtomicBool::new(false),
        cells: RwLock::new(state.cells),
        volumes: Mutex::new(HashMap::new()),
        ops: Mutex::new(()),
        checkpoint: Mutex::new(CheckpointState {
            superblock: sb,
            slots: checkpoint.slots,
            pages,
            let_go: None,
        }),
        orders: Mutex::new(Orders { poke: true, ..Orders::default() }),
        ordered: Condvar::new(),
        background,
        slice_leaves,
        host_full: AtomicBool::new(false),
        keeps_space: AtomicBool::new(false),
        counted: Mutex::default(),
    };
    if !read_only {
        let mut state = core.checkpoint.lock();
        // The generation is durable before the first record of it is written (H14).
        core.write_superblock(&mut state)?;
        drop(state);
        // An emptied ring is bound only now: an open that is cut before leaves a lost ring as lost (H4).
        core.log.bind_ring(&Binding { pool_id: core.pool_id, boot_id, generation: core.generation });
        core.back_more(false);
    }
    tracing::info!(pool = %core.path.display(), ?recovery, generation = core.generation, "pool opened");
    Ok(core)
}

/// Takes the records of a ring that belongs to this pool's last owner, or empties it.
fn recover_ring(
    ring: &Ring,
    resumes: bool,
    resume: &mut Resume,
    apply: &mut dyn FnMut(Record, Lsn) -> Result<()>,
) -> Result<()> {
    if resumes {
        resume.head = replay::from_ring(ring, resume.durable, apply)?;
    } else {
        // Old frames must not look like a continuation of ours.
        ring.clear();
    }
    Ok(())
}

/// Longest sleep of the checkpointer.
const IDLE: Duration = Duration::from_secs(5);
/// Without a new record for so long, what was discarded is given back by a checkpoint of its own.
const QUIET: Duration = Duration::from_secs(1);

/// How long nothing was mapped or dropped.
struct Silence {
    head: Lsn,
    since: Instant,
}

impl Silence {
    /// Whether something was discarded and nothing came after it for a while.
    fn is_long(&mut self, core: &Core) -> bool {
        let head = core.log.head();
        if head != self.head {
            *self = Self { head, since: Instant::now() };
        }
        core.discarded.load(Ordering::Relaxed) && self.since.elapsed() >= QUIET
    }
}

/// The checkpointer's thread: backs the pool file ahead of need, runs checkpoints, goes on with deletions.
fn checkpointer(core: &Core) {
    let mut silence = Silence { head: core.log.head(), since: Instant::now() };
    loop {
        let mut o = core.orders.lock();
        if !o.stop && !o.poke && o.checkpoint.is_answered() && o.backing.is_answered() {
            let most = if core.discarded.load(Ordering::Relaxed) { QUIET } else { IDLE };
            core.ordered.wait_for(&mut o, most);
        }
        if o.stop {
            let woken = o.waiting.take();
            drop(o);
            return woken.wake();
        }
        o.poke = false;
        let (checkpoint, backing) = (o.checkpoint, o.backing);
        let (asked, back) = (!checkpoint.is_answered(), !backing.is_answered());
        drop(o);
        core.back_more(back);
        if asked || (!core.poison.is_set() && (silence.is_long(core) || has_work(core))) {
            // Errors have poisoned the pool; whoever waits sees that.
            let _ = core.run_checkpoint();
        }
        let mut o = core.orders.lock();
        (o.checkpoint.done, o.backing.done) = (checkpoint.wanted, backing.wanted);
        let woken = o.waiting.take();
        drop(o);
        woken.wake();
    }
}

fn has_work(core: &Core) -> bool {
    core.has_much_to_merge()
        || (core.alloc.has_surplus() && !core.keeps_space.load(Ordering::Relaxed))
        || core.has_many_layers()
        || crate::checkpoint::next_doomed(&core.catalog.lock()).is_some()
}

/// Name of a snapshot version.
pub fn snapshot_name(kind: &Kind) -> &str {
    match kind {
        Kind::Snapshot { name, .. } => name,
        Kind::Head => "",
    }
}
