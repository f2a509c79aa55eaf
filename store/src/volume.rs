//! The data path of a volume: read, write, flush, discard, write zeroes.
//!
//! It is written once, as futures over [`Io`]: a queue's thread drives many of them on its own ring
//! ([`Volume::on`]); the methods of [`Volume`] drive one each, on a thread that may wait.

mod write;

use crate::core::{Cell, Change, Core, Need, Place};
use crate::format::node::LEAF_ENTRIES;
use crate::gate::Gate;
use crate::io::port::{block_on, ready};
use crate::io::{AlignedBuf, Io, Sink, Source};
use crate::memtable::{Target, touched};
use crate::mutation::Mutation;
use crate::types::{BLOCK, VolumeId, mem};
use crate::{BLOCK_BYTES, Error, Result};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// An open volume. All methods may be called from many threads.
pub struct Volume {
    pub(crate) core: Arc<Core>,
    id: VolumeId,
    pub(crate) gate: Gate,
    pub(crate) head: RwLock<Arc<Cell>>,
    pub(crate) size_blocks: AtomicU64,
    /// Nothing is written in place, so that no block is ever torn (durability rule 9).
    atomic: bool,
    /// The last write needed new blocks: the next one sets space aside before it looks.
    redirects: AtomicBool,
}

/// A volume driven by one thread's [`Io`]: its methods are futures of that thread. None of them may be polled
/// inside [`block_on`]-like waits of the same thread, and no change of the pool (a snapshot, a deletion) may be made
/// on a thread that drives them: it would wait for them.
pub struct VolumeIo<'a, I> {
    volume: &'a Volume,
    io: &'a I,
}

/// Whether both ends lie between blocks.
fn is_whole(range: &Range<u64>) -> bool {
    range.start.is_multiple_of(BLOCK_BYTES) && range.end.is_multiple_of(BLOCK_BYTES)
}

fn blocks_of(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)
}

impl Volume {
    pub(crate) fn new(
        core: Arc<Core>,
        id: VolumeId,
        head: Arc<Cell>,
        size_blocks: u64,
        atomic: bool,
    ) -> Self {
        Self {
            core,
            id,
            gate: Gate::default(),
            head: RwLock::new(head),
            size_blocks: AtomicU64::new(size_blocks),
            atomic,
            redirects: AtomicBool::new(false),
        }
    }

    /// Stable id of the volume.
    pub fn id(&self) -> u64 {
        self.id.0
    }

    /// Size in bytes; it only grows.
    pub fn size_bytes(&self) -> u64 {
        self.size_blocks.load(Ordering::Acquire) * BLOCK_BYTES
    }

    fn range(&self, offset: u64, len: u64) -> Result<Range<u64>> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size_bytes() => Ok(offset..end),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {offset} lie beyond the volume's {} bytes",
                self.size_bytes()
            ))),
        }
    }

    /// The open description of the pool's file or device, for the ring of a thread that drives [`Volume::on`]. It holds
    /// the pool's lock: register it, never duplicate or pass it on (H1). None: the pool is simulated.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.core.dev.descriptor()
    }

    /// The volume's data path over the I/O of the calling thread.
    pub fn on<'a, I: Io>(&'a self, io: &'a I) -> VolumeIo<'a, I> {
        VolumeIo { volume: self, io }
    }

    /// [`VolumeIo::read`] into memory, on a thread that may wait. Fastest when offset, length and the buffer's
    /// address are multiples of 4096.
    ///
    /// # Errors
    /// As [`VolumeIo::read`].
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        block_on(self.on(&self.core.blocking()).read(offset, Sink::Memory(buf)))
    }

    /// [`VolumeIo::write`] from memory, on a thread that may wait.
    ///
    /// # Errors
    /// As [`VolumeIo::write`].
    pub fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<()> {
        block_on(self.on(&self.core.blocking()).write(offset, Source::Memory(buf), fua))
    }

    /// [`VolumeIo::flush`], on a thread that may wait.
    ///
    /// # Errors
    /// As [`VolumeIo::flush`].
    pub fn flush(&self) -> Result<()> {
        self.core.flush_now()
    }

    /// [`VolumeIo::discard`], on a thread that may wait.
    ///
    /// # Errors
    /// As [`VolumeIo::discard`].
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        block_on(self.on(&self.core.blocking()).discard(offset, len))
    }

    /// [`VolumeIo::write_zeroes`], on a thread that may wait.
    ///
    /// # Errors
    /// As [`VolumeIo::write_zeroes`].
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        block_on(self.on(&self.core.blocking()).write_zeroes(offset, len))
    }

    /// The next mapped byte range at or after `offset`, at most 1 GiB of it; None: only holes follow.
    pub fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let _io = self.core.epochs.begin();
        let head = self.head.read().clone();
        next_data(&self.core, &head, offset, self.size_bytes())
    }

    fn full(&self) -> Error {
        let host = self.core.host_full.load(Ordering::Relaxed);
        let what = if host { "the disk under the pool is full" } else { "the pool is full" };
        Error::no_space(what).hint("delete snapshots or volumes, or discard (fstrim) what is not used")
    }
}

/// Zeros for the edges of a range that is zeroed.
static ZEROS: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

impl<I: Io> VolumeIo<'_, I> {
    /// Fills `into` from byte `offset`.
    ///
    /// # Errors
    /// `Invalid` beyond the end, `Io` or `Damaged` when the disk fails.
    pub async fn read(&self, offset: u64, into: Sink<'_>) -> Result<()> {
        let v = self.volume;
        let range = v.range(offset, into.len())?;
        let _io = v.core.epochs.begin();
        let head = v.head.read().clone();
        read_bytes(self.io, &v.core, &head, range, into).await
    }

    /// Everything acknowledged before the call survives power loss when this is ready.
    ///
    /// # Errors
    /// `Poisoned` when the disk failed: nothing is known of what was not flushed before.
    pub async fn flush(&self) -> Result<()> {
        self.volume.core.flush(self.io).await
    }

    /// The whole blocks of the range read as zeros and their space is given back. Blocks that are only partly
    /// in the range keep their bytes. On a full pool it may do nothing, as a discard may.
    ///
    /// # Errors
    /// `Invalid` beyond the end, `Poisoned`.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let range = self.volume.range(offset, len)?;
        self.volume.core.writable()?;
        let blocks = range.start.div_ceil(BLOCK_BYTES)..range.end / BLOCK_BYTES;
        match self.unmap(blocks).await {
            Err(e) if e.kind() == crate::ErrorKind::NoSpace => Ok(()),
            other => other,
        }
    }

    /// The range reads as zeros.
    ///
    /// # Errors
    /// As [`VolumeIo::write`].
    pub async fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let range = self.volume.range(offset, len)?;
        self.volume.core.writable()?;
        let blocks = range.start.div_ceil(BLOCK_BYTES)..range.end / BLOCK_BYTES;
        if blocks.start >= blocks.end {
            return self.write(offset, Source::Memory(&ZEROS[..mem(len)]), false).await;
        }
        let (from, to) = (blocks.start * BLOCK_BYTES, blocks.end * BLOCK_BYTES);
        self.unmap(blocks).await?;
        for edge in [range.start..from, to..range.end] {
            if !edge.is_empty() {
                let zeros = Source::Memory(&ZEROS[..mem(edge.end - edge.start)]);
                self.write(edge.start, zeros, false).await?;
            }
        }
        Ok(())
    }

    async fn unmap(&self, blocks: Range<u64>) -> Result<()> {
        if Mutation::SplitDiscard.on() {
            for first in blocks.clone().step_by(mem(LEAF_ENTRIES)) {
                self.unmap_at_once(first..(first + LEAF_ENTRIES).min(blocks.end)).await?;
            }
            return Ok(());
        }
        self.unmap_at_once(blocks).await
    }

    async fn unmap_at_once(&self, blocks: Range<u64>) -> Result<()> {
        if blocks.start >= blocks.end {
            return Ok(());
        }
        let (v, core) = (self.volume, &*self.volume.core);
        let n = blocks.end - blocks.start;
        let nodes = touched(blocks.start, n, true).count() as u64;
        let need = Need { blocks: 0, nodes, records: 1, freeing: true };
        let mut reservation = core.reserve(self.io, need).await?.ok_or_else(|| v.full())?;
        let pass = v.gate.enter(blocks.clone()).await;
        let io = core.epochs.begin();
        let head = v.head.read().clone();
        let place = core.place(self.io, &head, blocks.start, n).await?;
        if Mutation::ReissuedFree.on() {
            free_what_the_first_freed(core, blocks.start, place)?;
        }
        if place.data.is_none() && place.len == n && !Mutation::SplitDiscard.on() {
            return Ok(());
        }
        let hole = Change { l: blocks.start, n, target: Target::Hole };
        core.commit(&head, &[hole], &mut reservation, 0);
        drop((io, pass));
        if !core.discarded.swap(true, Ordering::Relaxed) {
            core.poke();
        }
        if core.write_through {
            core.flush(self.io).await?;
        }
        Ok(())
    }
}

/// A deliberate bug: a discard that comes again goes by what the first one found, not by what the map says now.
fn free_what_the_first_freed(core: &Core, l: u64, found: Place) -> Result<()> {
    static FIRST: Mutex<BTreeMap<u64, Place>> = Mutex::new(BTreeMap::new());
    let first = *FIRST.lock().entry(l).or_insert(found);
    match (first.data, found.data) {
        (Some((p, _)), None) => core.alloc.free(p, first.len),
        _ => Ok(()),
    }
}

/// Reads any byte range of a version.
pub(crate) async fn read_bytes(
    io: &impl Io,
    core: &Core,
    cell: &Cell,
    range: Range<u64>,
    into: Sink<'_>,
) -> Result<()> {
    let blocks = blocks_of(&range);
    if is_whole(&range) {
        return core.read_blocks(io, cell, blocks.start, into).await;
    }
    let Sink::Memory(buf) = into else { return Err(partly_registered()) };
    let mut whole = AlignedBuf::reused(mem((blocks.end - blocks.start) * BLOCK_BYTES));
    core.read_blocks(io, cell, blocks.start, Sink::Memory(&mut whole)).await?;
    let at = mem(range.start - blocks.start * BLOCK_BYTES);
    buf.copy_from_slice(&whole[at..at + buf.len()]);
    Ok(())
}

/// Nobody can copy a part of a block into or out of a registered buffer.
fn partly_registered() -> Error {
    Error::unsupported("a registered buffer takes whole blocks of 4096 bytes")
        .hint("give the device logical blocks of 4096 bytes, or copy through memory")
}

/// Longest range answered at once.
const MAX_RANGE_BLOCKS: u64 = 1 << 18;

/// The next mapped range of a version of `size` bytes.
pub(crate) fn next_data(core: &Core, cell: &Cell, offset: u64, size: u64) -> Result<Option<Range<u64>>> {
    let end = size / BLOCK_BYTES;
    let mut l = offset / BLOCK_BYTES;
    let mut found: Option<Range<u64>> = None;
    while l < end {
        let place = ready(core.place(&core.blocking(), cell, l, end - l))?;
        match (&mut found, place.data) {
            (None, None) => {}
            (None, Some(_)) => found = Some(l..l + place.len),
            (Some(range), Some(_)) => range.end += place.len,
            (Some(_), None) => break,
        }
        if found.as_ref().is_some_and(|r| r.end - r.start >= MAX_RANGE_BLOCKS) {
            break;
        }
        l += place.len;
    }
    Ok(found.map(|r| (r.start * BLOCK_BYTES).max(offset)..r.end * BLOCK_BYTES))
}
