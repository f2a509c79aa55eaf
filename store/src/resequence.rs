//! Putting an aged head back in order (H36): blocks that are neighbours in the volume and far apart in the pool are
//! copied to new places behind each other, in the background.
//!
//! Invariants: it is a write like any other (new blocks, then the mapping by the log), of what is there already; so
//! a cut at any point leaves the old order or the new one. Nobody waits for it: the copy is made outside of the
//! gate, and counts only if nothing has changed in the volume since before it was read. It takes whole free
//! segments only, and none while the pool is less than a quarter free: what snapshots hold stays where it is.

use crate::alloc::Stream;
use crate::core::{Cell, Change, Core, Need, Reservation, byte_index};
use crate::format::node::{Child, Root, span};
use crate::integrity::next_leaf;
use crate::io::port::{block_on, ready};
use crate::io::{AlignedBuf, Io, Sink, Source};
use crate::log::writer::MAP_FRAME;
use crate::memtable::{Target, touched};
use crate::types::{Epoch, Phys, VersionId, VolumeId};
use crate::volume::Volume;
use crate::{BLOCK_BYTES, Error, ErrorKind, Pool, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Blocks put in order at a time: 1 MiB, a segment.
const PIECE_BLOCKS: u64 = 256;
/// The same as a step.
const PIECE: usize = 256;
/// A piece is worth it when it has a seam for so many blocks on average, which are 32 KiB: a place where neighbours in
/// the volume lie apart. Blocks beside a hole have no neighbour, and no order would make them one.
const SHORT_BLOCKS: u64 = 8;
/// Most that the background reads: it is never in a hurry.
const BYTES_PER_SECOND: u64 = 64 << 20;
/// What looking at a piece counts as.
const LOOK_BYTES: u64 = 64 << 10;
/// Sleep of the thread when there is nothing to do, or others are busy.
const IDLE: Duration = Duration::from_secs(2);
/// I/Os of others a second up to which the pool counts as idle.
const QUIET_IOS: u64 = 64;

/// What the re-sequencer does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Resequencing {
    /// All that it looked at is in order.
    #[default]
    Idle,
    /// A volume, and how far it is in bytes of it.
    Working {
        /// Name.
        volume: String,
        /// Bytes of the volume looked at.
        at: u64,
    },
    /// Others use the pool.
    Waiting,
    /// Less than a quarter of the pool is free, or no segment as a whole.
    NoRoom,
}

impl std::fmt::Display for Resequencing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::Working { volume, at } => write!(f, "volume {volume} at {} MiB", at >> 20),
            Self::Waiting => f.write_str("waiting for a quiet moment"),
            Self::NoRoom => f.write_str("waiting for room"),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Resequencer {
    state: Mutex<State>,
    doing: Mutex<Resequencing>,
    moved: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Heads that were looked at.
    seen: HashMap<VersionId, Seen>,
    at: Option<Work>,
}

/// What a head was when its last pass began.
#[derive(Clone, Copy)]
struct Seen {
    root: Root,
    epoch: Epoch,
}

/// A pass over a head.
#[derive(Clone, Copy)]
struct Work {
    volume: VolumeId,
    head: VersionId,
    seen: Seen,
    /// Nodes that are not younger were looked at by an earlier pass.
    older: Epoch,
    /// Block to go on from.
    from: u64,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Bytes that it read, or what its looking counts as.
    Done(u64),
    /// Nothing is left.
    Nothing,
    /// Somebody changed the volume meanwhile.
    Disturbed,
    /// A checkpoint gave the segment to the host that was there for it; the next try gets another one.
    Again,
    /// The pool has no room for it.
    NoRoom,
}

/// How a range of a volume lies in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Placement {
    /// Blocks that are mapped.
    pub blocks: u64,
    /// I/Os that reading them in order takes, 1 MiB of the volume a request.
    pub ios: u64,
}

/// The thread: until the pool stops.
pub fn run(core: &Core) {
    let mut sleep = IDLE;
    loop {
        let (from, before) = (Instant::now(), core.epochs.begun());
        // Orders to the checkpointer wake this thread too, and must not make it faster.
        let until = from + sleep;
        let mut o = core.orders.lock();
        while !o.stop && !core.ordered.wait_until(&mut o, until).timed_out() {}
        if o.stop {
            return;
        }
        drop(o);
        let quiet = QUIET_IOS * from.elapsed().as_secs().max(1);
        if core.epochs.begun().wrapping_sub(before) > quiet {
            *core.resequencer.doing.lock() = Resequencing::Waiting;
            sleep = IDLE;
            continue;
        }
        sleep = match core.resequence_step() {
            Ok(Step::Done(bytes)) => Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND as f64),
            Ok(_) => IDLE,
            Err(e) => {
                tracing::debug!(error = %e, "blocks stay where they are");
                IDLE
            }
        };
    }
}

impl Pool {
    /// Puts all open volumes in order now, as the background does in its own time, as far as their changes are merged,
    /// and lets a checkpoint free what that replaced. Ends early where somebody changes a volume meanwhile or the
    /// room is used up.
    ///
    /// # Errors
    /// `Io`, `Poisoned`.
    pub fn resequence(&self) -> Result<()> {
        while matches!(self.core.resequence_step()?, Step::Done(_) | Step::Again) {}
        self.core.checkpoint_now()
    }

    /// What the re-sequencer does, and the bytes that it has put in order since the pool was opened.
    pub fn resequencing(&self) -> (Resequencing, u64) {
        let r = &self.core.resequencer;
        (r.doing.lock().clone(), r.moved.load(Ordering::Relaxed) * BLOCK_BYTES)
    }
}

impl Volume {
    /// How the volume lies in the pool.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn placement(&self) -> Result<Placement> {
        let mut all = Placement::default();
        let end = self.size_bytes() / BLOCK_BYTES;
        for l in (0..end).step_by(PIECE) {
            let _io = self.core.epochs.begin();
            let head = self.head.read().clone();
            let places = self.core.stretches(&head, l..(l + PIECE_BLOCKS).min(end))?;
            all.blocks += places.iter().map(|s| s.n).sum::<u64>();
            all.ios += places.len() as u64;
        }
        Ok(all)
    }
}

/// Consecutive blocks of a volume that are consecutive in the pool.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    l: u64,
    n: u64,
    p: Phys,
}

impl Resequencer {
    /// Keeps it from holding a volume open, as long as the answer lives.
    pub fn pause(&self) -> impl Sized + '_ {
        self.state.lock()
    }
}

impl Core {
    /// Looks at one piece of an open volume, and puts it in order where that is worth it.
    pub fn resequence_step(&self) -> Result<Step> {
        self.writable()?;
        let mut state = self.resequencer.state.lock();
        let Some(mut work) = state.at.take().or_else(|| self.next_to_resequence(&mut state)) else {
            return Ok(self.doing(Resequencing::Idle, Step::Nothing));
        };
        let volume = self.open_handle(work.volume).filter(|v| v.head.read().id == work.head);
        let Some(volume) = volume else { return Ok(Step::Done(0)) };
        let step = match self.resequence_at(&volume, &mut work) {
            Ok(Some(step)) => step,
            done => {
                // Also after an error: the next look is at what has changed since.
                state.seen.insert(work.head, work.seen);
                return done.map(|_| Step::Done(0));
            }
        };
        state.at = Some(work);
        let name = || self.catalog.lock().volumes.get(&work.volume).map(|v| v.name.clone());
        Ok(match step {
            Step::NoRoom => self.doing(Resequencing::NoRoom, step),
            Step::Disturbed => self.doing(Resequencing::Waiting, step),
            _ => {
                let (volume, at) = (name().unwrap_or_default(), work.from * BLOCK_BYTES);
                self.doing(Resequencing::Working { volume, at }, step)
            }
        })
    }

    /// The next piece of a pass; None: that was all.
    fn resequence_at(&self, v: &Volume, work: &mut Work) -> Result<Option<Step>> {
        let found = {
            let _io = self.epochs.begin();
            let root = v.head.read().live.read().root;
            next_leaf(&self.cache, root, work.from, work.older)?
        };
        let Some((base, leaf)) = found else { return Ok(None) };
        let l = work.from.max(base);
        let most = PIECE_BLOCKS.min(self.log.largest_reservation() / MAP_FRAME);
        let blocks = l..(l + most).min(base + span(0));
        let step = match leaf {
            // In order as a whole.
            Child::Run { .. } => Step::Done(LOOK_BYTES),
            _ => self.put_in_order(v, blocks.clone())?,
        };
        if let Step::Done(_) = step {
            work.from = blocks.end;
        }
        Ok(Some(step))
    }

    fn doing(&self, what: Resequencing, step: Step) -> Step {
        *self.resequencer.doing.lock() = what;
        step
    }

    /// An open volume whose tree has changed since its last pass.
    fn next_to_resequence(&self, state: &mut State) -> Option<Work> {
        let open: Vec<_> =
            self.volumes.lock().iter().filter_map(|(id, v)| Some((*id, v.upgrade()?))).collect();
        let heads: HashMap<VersionId, VolumeId> =
            open.iter().map(|(id, v)| (v.head.read().id, *id)).collect();
        state.seen.retain(|head, _| heads.contains_key(head));
        open.iter().find_map(|(id, v)| {
            let head = v.head.read().clone();
            let live = head.live.read();
            let (seen, before) = (Seen { root: live.root, epoch: live.epoch }, state.seen.get(&head.id));
            if before.is_some_and(|b| b.root == seen.root) {
                return None;
            }
            // What was young then may have changed since.
            let older = before.map_or(Epoch(0), |b| Epoch(b.epoch.0.saturating_sub(1)));
            Some(Work { volume: *id, head: head.id, seen, older, from: 0 })
        })
    }

    /// How blocks of a head lie in the pool. Call inside an I/O epoch.
    fn stretches(&self, head: &Cell, blocks: Range<u64>) -> Result<Vec<Stretch>> {
        let mut all: Vec<Stretch> = Vec::new();
        let mut l = blocks.start;
        while l < blocks.end {
            let place = ready(self.place(&self.blocking(), head, l, blocks.end - l))?;
            if let Some((p, _)) = place.data {
                match all.last_mut() {
                    Some(s) if s.l + s.n == l && s.p.plus(s.n) == p => s.n += place.len,
                    _ => all.push(Stretch { l, n: place.len, p }),
                }
            }
            l += place.len;
        }
        Ok(all)
    }

    /// Copies the blocks to places behind each other, if they lie in short stretches.
    fn put_in_order(&self, v: &Volume, blocks: Range<u64>) -> Result<Step> {
        let Some(still) = v.gate.still() else { return Ok(Step::Disturbed) };
        let head = v.head.read().clone();
        let stretches = {
            let _io = self.epochs.begin();
            self.stretches(&head, blocks.clone())?
        };
        let n: u64 = stretches.iter().map(|s| s.n).sum();
        let seams = stretches.windows(2).filter(|pair| pair[0].l + pair[0].n == pair[1].l).count() as u64;
        if seams == 0 || seams * SHORT_BLOCKS < n {
            return Ok(Step::Done(LOOK_BYTES));
        }
        // Outside of the epoch: this may wait for a checkpoint, which waits for epochs to end.
        let Some(mut room) = self.room_to_order(&blocks, n)? else { return Ok(Step::NoRoom) };
        let _io = self.epochs.begin();
        // What these blocks are has not changed, so none of them is free or somebody else's.
        if !v.gate.is_still(still) {
            return Ok(Step::Disturbed);
        }
        let mut bytes = AlignedBuf::reused(byte_index(n));
        if let Err(e) = self.gather(&head, &stretches, &mut bytes) {
            // A damaged block stays where it is; whoever reads it is told.
            tracing::debug!(error = %e, l = blocks.start, "blocks stay where they are");
            return Ok(Step::Done(LOOK_BYTES));
        }
        let mut taken = Vec::new();
        let changes = self.write_ordered(v, &stretches, &bytes, &mut room, &mut taken);
        let changes = match changes {
            Ok(changes) => changes,
            Err(e) if e.kind() == ErrorKind::NoSpace => {
                self.untake(&taken)?;
                return Ok(Step::Again);
            }
            Err(e) => {
                // Where a write failed nothing is put again until the pool is opened anew, as after any write.
                tracing::warn!(error = %e, l = blocks.start, "blocks stay where they are");
                return Ok(Step::Done(LOOK_BYTES));
            }
        };
        let Some(pass) = v.gate.enter_if_still(still, blocks) else {
            self.untake(&taken)?;
            return Ok(Step::Disturbed);
        };
        self.commit(&head, &changes, &mut room, 0);
        drop(pass);
        self.resequencer.moved.fetch_add(n, Ordering::Relaxed);
        Ok(Step::Done(2 * n * BLOCK_BYTES))
    }

    /// Gives blocks back of which nobody has heard, and on which no write is under way.
    fn untake(&self, taken: &[(Phys, u64)]) -> Result<()> {
        taken.iter().try_for_each(|(p, n)| self.alloc.free(*p, *n))
    }

    /// Space for a copy, while the pool has plenty.
    fn room_to_order(&self, blocks: &Range<u64>, n: u64) -> Result<Option<Reservation<'_>>> {
        let space = self.alloc.space();
        let host = self.dev.host_free().map_or(u64::MAX, |b| b / BLOCK_BYTES);
        if (space.free_backed + space.unbacked.min(host)) < space.total / 4 {
            return Ok(None);
        }
        if !self.alloc.has_whole_segment() {
            self.back_more(true);
            if !self.alloc.has_whole_segment() {
                return Ok(None);
            }
        }
        let nodes = touched(blocks.start, blocks.end - blocks.start, false).count() as u64;
        let need = Need { blocks: n, nodes, records: n, freeing: false };
        block_on(self.try_reserve(&self.blocking(), need))
    }

    fn gather(&self, head: &Cell, stretches: &[Stretch], bytes: &mut [u8]) -> Result<()> {
        let mut done = 0;
        for s in stretches {
            let part = &mut bytes[byte_index(done)..byte_index(done + s.n)];
            ready(self.read_blocks(&self.blocking(), head, s.l, Sink::Memory(part)))?;
            done += s.n;
        }
        Ok(())
    }

    /// Writes the bytes behind each other; the new mappings, and in `taken` where.
    fn write_ordered(
        &self,
        v: &Volume,
        stretches: &[Stretch],
        bytes: &[u8],
        room: &mut Reservation<'_>,
        taken: &mut Vec<(Phys, u64)>,
    ) -> Result<Vec<Change>> {
        let n = bytes.len() as u64 / BLOCK_BYTES;
        let mut done = 0;
        while done < n {
            let (p, len) = room.take(Stream::Order { volume: VolumeId(v.id()) }, n - done)?;
            taken.push((p, len));
            let part = Source::Memory(&bytes[byte_index(done)..byte_index(done + len)]);
            let written = ready(self.blocking().write(p.offset(), part));
            written.map_err(|e| Error::io(format!("write block {}", p.0), e))?;
            done += len;
        }
        Ok(mappings(stretches, taken))
    }
}

/// Maps logical stretches to runs of the pool, both in order and of the same length together.
fn mappings(stretches: &[Stretch], runs: &[(Phys, u64)]) -> Vec<Change> {
    let mut all: Vec<Change> = Vec::new();
    let mut runs = runs.iter().copied();
    let (mut p, mut left) = (Phys(0), 0);
    for s in stretches {
        let (mut l, mut n) = (s.l, s.n);
        while n > 0 {
            if left == 0 {
                (p, left) = runs.next().expect("as many blocks as the stretches have");
            }
            let len = n.min(left);
            let last = all
                .last_mut()
                .filter(|c| c.l + c.n == l && matches!(c.target, Target::Data(q) if q.plus(c.n) == p));
            match last {
                Some(change) => change.n += len,
                None => all.push(Change { l, n: len, target: Target::Data(p) }),
            }
            (l, n, p, left) = (l + len, n - len, p.plus(len), left - len);
        }
    }
    all
}
