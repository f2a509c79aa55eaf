//! Appending records, and making them durable in groups.
//!
//! Invariants:
//! - A flush is: sync the data; if records are pending, write them padded; sync again (H8). A record never
//!   reaches the disk before a sync that began when its data was complete has ended (H2). Where no pending record
//!   stands for data, there is nothing to sync first.
//! - Syncs are pipelined: the one that makes a group's records durable is the one for the data of the next group.
//! - A sync answers only flushes that arrived before it began (H10); one sync runs at a time, and the poison
//!   flag is set before anybody is woken (H11). A failed sync is never retried.
//! - A log block that was written is not written again before its lap (H13).

use super::Ring;
use super::ring::Binding;
use crate::format::log::{PAYLOAD, frame_bytes, write_block, write_frame};
use crate::format::record::{MAP_BYTES, Record};
use crate::io::port::Waiters;
use crate::io::{AlignedBuf, Io, Source};
use crate::mutation::Mutation;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::types::{BLOCK, BLOCK_BYTES, Lsn, mem};
use crate::{Error, Result};
use std::borrow::Borrow;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// Log blocks written by one request.
const GROUP_BLOCKS: usize = 64;

/// Bytes of the stream that one mapping record takes.
pub const MAP_FRAME: u64 = frame_bytes(MAP_BYTES) as u64;

/// Set once, by the first I/O error that leaves the metadata on disk unknown; never cleared.
#[derive(Default)]
pub struct Poison {
    set: AtomicBool,
    why: Mutex<String>,
}

impl Poison {
    /// Sets it; the first reason is kept.
    pub fn set(&self, why: &str) {
        let mut first = self.why.lock();
        if first.is_empty() {
            *first = why.to_owned();
            tracing::error!(why, "the pool takes no more writes until it is opened again");
        }
        self.set.store(true, Ordering::SeqCst);
    }
    /// Sets it without an alarm: the pool was closed.
    pub fn close(&self) {
        "it is closed".clone_into(&mut self.why.lock());
        self.set.store(true, Ordering::SeqCst);
    }
    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }
    /// An error when it is set.
    pub fn check(&self) -> Result<()> {
        if !self.is_set() {
            return Ok(());
        }
        Err(Error::poisoned(format!("the pool takes no writes: {}", self.why.lock()))
            .hint("check the disk under the pool, then restart the agent"))
    }
}

/// Why a flush did not happen.
pub enum FlushError {
    /// The log region is too full; a checkpoint makes room.
    NeedCheckpoint,
    /// It failed.
    Failed(Error),
}

struct SyncState {
    running: bool,
    started: u64,
    completed: u64,
    /// While a sync runs it has its own copy.
    progress: Progress,
    /// Flushes that wait for the running sync.
    waiting: Waiters,
}

/// How far the stream of records is.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Where the next log block goes.
    next: Position,
    /// Records before this are in the log; the next sync makes them durable.
    written: Lsn,
    /// The data of records before this is durable: they may be written.
    covered: Lsn,
}

/// What a flush waits for.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    /// The first sync that began later.
    sync: u64,
    /// End of the records that came before it.
    head: Lsn,
}

/// A sync that is running. If it is dropped before its end, nobody knows what it did: the pool is poisoned.
struct Running<'a> {
    log: &'a Log,
    number: u64,
    progress: Progress,
    /// How it ended.
    ok: Option<bool>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.ok.is_none() {
            self.log.poison.set("a flush was given up while it ran");
        }
        let mut s = self.log.sync.lock();
        s.running = false;
        s.progress = self.progress;
        if self.ok == Some(true) {
            s.completed = self.number;
        }
        let woken = s.waiting.take();
        drop(s);
        woken.wake();
    }
}

/// Where the next log block goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Index of the block.
    pub index: u64,
    /// Checksum of the block before it.
    pub chain: u32,
}

struct Append {
    head: Lsn,
    /// End of the last record that stands for data.
    data_head: Lsn,
    reserved: u64,
    /// What is being appended.
    frames: Vec<u8>,
}

/// The log of an open pool.
pub struct Log {
    ring: Ring,
    start: u64,
    blocks: u64,
    pool_id: [u8; 16],
    generation: u64,
    poison: Arc<Poison>,
    append: Mutex<Append>,
    durable: AtomicU64,
    tail: AtomicU64,
    sync: Mutex<SyncState>,
    /// Index of the next log block, for everybody.
    next_index: AtomicU64,
    /// A stream position at which a new block has to begin, and the block that did.
    mark: Mutex<Option<(Lsn, Option<Position>)>>,
}

/// Where a log goes on after an open.
#[derive(Debug, Clone, Copy)]
pub struct Resume {
    /// End of the records on disk.
    pub durable: Lsn,
    /// End of the records in the ring.
    pub head: Lsn,
    /// Next block.
    pub next: Position,
    /// First block that replay still needs.
    pub tail: u64,
}

impl Log {
    /// The log of a pool in blocks `region.0 .. region.0 + region.1`.
    pub fn new(
        ring: Ring,
        region: (u64, u64),
        pool_id: [u8; 16],
        generation: u64,
        poison: Arc<Poison>,
        at: Resume,
    ) -> Self {
        Self {
            ring,
            start: region.0,
            blocks: region.1,
            pool_id,
            generation,
            poison,
            append: Mutex::new(Append { head: at.head, data_head: at.head, reserved: 0, frames: Vec::new() }),
            durable: AtomicU64::new(at.durable.0),
            tail: AtomicU64::new(at.tail),
            sync: Mutex::new(SyncState {
                running: false,
                started: 0,
                completed: 0,
                progress: Progress { next: at.next, written: at.durable, covered: at.durable },
                waiting: Waiters::default(),
            }),
            next_index: AtomicU64::new(at.next.index),
            mark: Mutex::new(None),
        }
    }

    /// Binds the ring to its owner.
    pub fn bind_ring(&self, owner: &Binding) {
        self.ring.bind(owner);
    }

    /// End of the stream.
    pub fn head(&self) -> Lsn {
        self.append.lock().head
    }

    /// Records before this are on disk, durably.
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// Sets `bytes` of the ring aside; false when a flush has to make room first.
    pub fn try_reserve(&self, bytes: u64) -> bool {
        let mut a = self.append.lock();
        let fits = a.head.0 - self.durable().0 + a.reserved + bytes <= self.ring.capacity();
        if fits {
            a.reserved += bytes;
        }
        fits
    }

    /// Most bytes that one caller may reserve.
    pub fn largest_reservation(&self) -> u64 {
        self.ring.capacity() / 2
    }

    /// Gives back what was not used.
    pub fn unreserve(&self, bytes: u64) {
        self.append.lock().reserved -= bytes;
    }

    /// Appends records, in order, within the caller's reservation; returns the LSN after the last, and the
    /// bytes that they took.
    pub fn append<R: Borrow<Record>>(&self, records: impl IntoIterator<Item = R>) -> (Lsn, u64) {
        let mut append = self.append.lock();
        let a = &mut *append;
        a.frames.clear();
        let mut data_end = 0;
        for record in records {
            let lsn = Lsn(a.head.0 + a.frames.len() as u64);
            write_frame(&mut a.frames, lsn, &record.borrow().encode());
            if record.borrow().stands_for_data() {
                data_end = a.frames.len() as u64;
            }
        }
        self.ring.put(a.head, &a.frames);
        if data_end > 0 {
            a.data_head = Lsn(a.head.0 + data_end);
        }
        let len = a.frames.len() as u64;
        a.head.0 += len;
        a.reserved -= len;
        (a.head, len)
    }

    /// Bytes that `record` takes.
    pub fn frame_len(record: &Record) -> u64 {
        frame_bytes(record.encode().len()) as u64
    }

    /// From the next flush on, a block begins at the current head; returns that LSN. The caller makes sure
    /// that nobody appends meanwhile.
    pub fn mark(&self) -> Lsn {
        let head = self.head();
        *self.mark.lock() = Some((head, None));
        head
    }

    /// The block that begins at the mark, once a flush has reached it.
    pub fn marked(&self) -> Option<Position> {
        self.mark.lock().and_then(|(_, at)| at)
    }

    /// Blocks before this index are not needed any more.
    pub fn release(&self, index: u64) {
        self.tail.store(index, Ordering::Release);
    }

    fn free_blocks(&self) -> u64 {
        let next = self.next_index.load(Ordering::Acquire);
        self.blocks - next.saturating_sub(self.tail.load(Ordering::Acquire))
    }

    /// Blocks kept for the flush that a checkpoint itself needs.
    fn kept_blocks(&self) -> u64 {
        self.ring.capacity() / PAYLOAD as u64 + 4
    }

    /// Whether a checkpoint should begin, so that nobody has to wait for it.
    pub fn is_half_full(&self) -> bool {
        self.free_blocks() < self.blocks / 2
    }

    /// Bytes of the log that a replay would read.
    pub fn live_bytes(&self) -> u64 {
        (self.blocks - self.free_blocks()) * BLOCK_BYTES
    }

    /// Makes everything acknowledged before the call durable. Callers share syncs.
    pub async fn flush(&self, io: &impl Io, for_checkpoint: bool) -> std::result::Result<(), FlushError> {
        let mut arrival = None;
        loop {
            let turn = poll_fn(|cx| self.turn(&mut arrival, for_checkpoint, cx.waker())).await?;
            let Some(mut running) = turn else { return Ok(()) };
            let result = self.sync_once(io, &mut running.progress).await;
            if let Err(e) = &result
                && !Mutation::IgnoreFailedSync.on()
            {
                // Before anybody is woken (H11).
                self.poison.set(&e.to_string());
            }
            running.ok = Some(result.is_ok());
            drop(running);
            result.map_err(FlushError::Failed)?;
        }
    }

    /// What a flush does next: nothing, when a sync begun after its arrival has ended and the records of that time are
    /// durable; wait for the running one; or run one itself.
    fn turn(
        &self,
        arrival: &mut Option<Arrival>,
        for_checkpoint: bool,
        waker: &Waker,
    ) -> Poll<std::result::Result<Option<Running<'_>>, FlushError>> {
        let mut s = self.sync.lock();
        let arrival = *arrival.get_or_insert_with(|| match s.running && Mutation::JoinRunningSync.on() {
            true => Arrival { sync: s.started, head: Lsn(0) },
            false => Arrival { sync: s.started + 1, head: self.head() },
        });
        if let Err(e) = self.poison.check() {
            return Poll::Ready(Err(FlushError::Failed(e)));
        }
        if s.completed >= arrival.sync && self.durable() >= arrival.head {
            return Poll::Ready(Ok(None));
        }
        if s.running {
            s.waiting.add(waker);
            return Poll::Pending;
        }
        if !for_checkpoint && self.free_blocks() < 2 * self.kept_blocks() {
            return Poll::Ready(Err(FlushError::NeedCheckpoint));
        }
        s.running = true;
        s.started += 1;
        Poll::Ready(Ok(Some(Running { log: self, number: s.started, progress: s.progress, ok: None })))
    }

    /// One sync: for the records whose data is durable, which are written before it, and for the data of those that
    /// came since. A cut before its end keeps the flushed state, or the new one: the chain tells which.
    async fn sync_once(&self, io: &impl Io, progress: &mut Progress) -> Result<()> {
        // Read after every flush that this sync answers has arrived.
        let (arrived, data_head) = {
            let a = self.append.lock();
            (a.head, a.data_head)
        };
        if data_head <= progress.covered || Mutation::OneSync.on() {
            progress.covered = arrived;
        }
        self.write_covered(io, progress).await?;
        let durable = progress.covered;
        io.sync().await.map_err(|e| Error::io("sync", e))?;
        self.durable.store(durable.0, Ordering::Release);
        // What came while it ran waits for the next one (H2, H10).
        progress.covered = if Mutation::RecordBeforeData.on() { self.head() } else { arrived };
        Ok(())
    }

    /// Writes the records whose data is durable.
    async fn write_covered(&self, io: &impl Io, progress: &mut Progress) -> Result<()> {
        let Progress { next, written, covered } = progress;
        // Read after `covered` was: a mark beyond it is for a later group.
        let mark = *self.mark.lock();
        match mark {
            Some((mark, None)) if mark <= *covered => {
                self.write_records(io, next, *written, mark).await?;
                *self.mark.lock() = Some((mark, Some(*next)));
                self.write_records(io, next, mark, *covered).await?;
            }
            _ if Mutation::RewrittenTail.on() => {
                let whole = Lsn(covered.0 - (covered.0 - written.0) % PAYLOAD as u64);
                self.write_records(io, next, *written, whole).await?;
                let last = *next;
                self.write_records(io, next, whole, *covered).await?;
                (*next, *written) = (last, whole);
                return Ok(());
            }
            _ => self.write_records(io, next, *written, *covered).await?,
        }
        *written = *covered;
        Ok(())
    }

    /// Writes the stream `from..to`, padded to whole blocks.
    async fn write_records(&self, io: &impl Io, next: &mut Position, from: Lsn, to: Lsn) -> Result<()> {
        let mut at = from;
        while at < to {
            let first = next.index;
            let group = self.group(next, &mut at, to);
            let used = next.index - self.tail.load(Ordering::Acquire);
            assert!(used <= self.blocks, "the log never overtakes itself");
            self.next_index.store(next.index, Ordering::Release);
            let offset = (self.start + first % self.blocks) * BLOCK_BYTES;
            let written = io.write(offset, Source::Memory(&group)).await;
            written.map_err(|e| Error::io("write log", e))?;
        }
        Ok(())
    }

    /// The next consecutive blocks of the log, filled from the ring; moves `next` and `at` behind them.
    fn group(&self, next: &mut Position, at: &mut Lsn, to: Lsn) -> AlignedBuf {
        let mut stream = [0; PAYLOAD];
        let room = self.blocks - next.index % self.blocks;
        let want = (to.0 - at.0).div_ceil(PAYLOAD as u64);
        let n = mem(want.min(room)).min(GROUP_BLOCKS);
        let mut group = AlignedBuf::reused(n * BLOCK);
        for block in group.chunks_mut(BLOCK) {
            let len = mem(to.0 - at.0).min(PAYLOAD);
            self.ring.get(*at, &mut stream[..len]);
            let Position { index, chain } = *next;
            let chain = write_block(block, chain, &self.pool_id, self.generation, index, *at, &stream[..len]);
            *next = Position { index: index + 1, chain };
            at.0 += len as u64;
        }
        group
    }
}
