//! A block device in memory that can lose power: it remembers every write since the last sync, and a cut
//! keeps, drops or tears each of them (at 512 bytes), in any combination.

use super::BlockDev;
use crate::types::{BLOCK, mem};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Unit that a disk writes whole.
const SECTOR: usize = 512;

/// What a fault does to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// EIO.
    Eio,
    /// ENOSPC.
    NoSpace,
    /// Only the first half of the bytes is transferred.
    Short,
}

/// A fault that waits for its request.
#[derive(Clone)]
struct Trap {
    what: Request,
    /// Bytes.
    range: Range<u64>,
    /// Such requests that pass before.
    skip: u64,
    fault: Fault,
}

/// Kind of a request that is to be held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A sync; it has no range.
    Sync,
}

/// Holds the first request of a kind that touches a range back, as a very slow disk would; lets it go when
/// dropped.
pub struct Hold(Arc<Held>);

struct Held {
    what: Request,
    /// Bytes.
    range: Range<u64>,
    /// How far it is.
    stage: Mutex<Stage>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No such request came yet.
    Armed,
    Caught,
    Released,
}

impl Hold {
    /// Waits until a request is held.
    ///
    /// # Panics
    /// When none comes within a minute.
    pub fn caught(&self) {
        let mut stage = self.0.stage.lock();
        while *stage == Stage::Armed {
            assert!(
                !self.0.changed.wait_for(&mut stage, Duration::from_secs(60)).timed_out(),
                "no {:?} of {:?} came",
                self.0.what,
                self.0.range
            );
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.stage.lock() = Stage::Released;
        self.0.changed.notify_all();
    }
}

impl Held {
    fn pass(&self, what: Request, range: &Range<u64>) {
        let elsewhere = range.start >= self.range.end || self.range.start >= range.end;
        if what != self.what || (elsewhere && what != Request::Sync) {
            return;
        }
        let mut stage = self.stage.lock();
        if *stage != Stage::Armed {
            return;
        }
        *stage = Stage::Caught;
        self.changed.notify_all();
        while *stage != Stage::Released {
            self.changed.wait(&mut stage);
        }
    }
}

#[derive(Default, Clone)]
struct State {
    /// Durable blocks; copies of a device share them.
    base: Vec<Option<Arc<[u8; BLOCK]>>>,
    /// Writes that no sync covers: offset, bytes.
    pending: Vec<(u64, Vec<u8>)>,
    /// Writes that came before these.
    covered: u64,
    /// Writes and syncs so far.
    steps: u64,
    /// The process dies at this step: it and all later ones fail.
    dies_at: Option<u64>,
    /// One request of this step fails.
    fault: Option<(u64, Fault)>,
    trap: Option<Trap>,
    /// Bytes that `back` may still hand out; None: no limit.
    room: Option<u64>,
    backed: std::collections::HashSet<u64>,
    /// Blocks given back and not backed again: a write to one could meet a full host (H30).
    given_back: std::collections::HashSet<u64>,
    /// How long a slow read, and a slow write, takes before it does anything; one request in so many is slow.
    delays: (Duration, Duration),
    slow_every: u64,
    requests: u64,
    /// Blocks that nobody may write.
    forbidden: std::collections::HashSet<u64>,
    /// The last of the pending writes was under way when the process died.
    died_in_write: bool,
    hold: Option<Arc<Held>>,
}

/// A sync that runs.
#[derive(Debug, Clone, Copy)]
pub struct Begun(u64);

/// The device. Clones share it.
#[derive(Clone)]
pub struct SimDev {
    len: u64,
    state: Arc<Mutex<State>>,
}

/// What survives of the writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// All of them.
    All,
    /// None of them.
    Nothing,
    /// Each write whole or not at all.
    Writes,
    /// Each 512-byte sector of each write, on its own.
    Sectors,
}

impl SimDev {
    /// A device of `len` zero bytes.
    pub fn new(len: u64) -> Self {
        let base = vec![None; mem(len / BLOCK as u64)];
        Self { len, state: Arc::new(Mutex::new(State { base, ..State::default() })) }
    }

    /// Fills everything with `byte`, durably, as an earlier tenant would have left it.
    pub fn poison(&self, byte: u8) {
        self.state.lock().base.fill(Some(Arc::new([byte; BLOCK])));
    }

    /// Lets one request in `every` take its time, so that others can come between its look-up and its I/O.
    pub fn set_delays(&self, read: Duration, write: Duration, every: u64) {
        let mut s = self.state.lock();
        (s.delays, s.slow_every) = ((read, write), every);
    }

    /// From now on a write to one of these blocks is a panic; replaces the blocks of an earlier call.
    pub fn forbid(&self, blocks: impl IntoIterator<Item = u64>) {
        self.state.lock().forbidden = blocks.into_iter().collect();
    }

    /// Holds back the next request of this kind that touches these bytes. A later hold replaces an earlier one.
    pub fn hold(&self, what: Request, range: Range<u64>) -> Hold {
        let held = Held { what, range, stage: Mutex::new(Stage::Armed), changed: Condvar::new() };
        let held = Arc::new(held);
        self.state.lock().hold = Some(held.clone());
        Hold(held)
    }

    fn wait(&self, what: Request, offset: u64, len: usize) {
        let (delay, slow, hold) = {
            let mut s = self.state.lock();
            s.requests += 1;
            let delay = match what {
                Request::Read => s.delays.0,
                Request::Write => s.delays.1,
                Request::Sync => Duration::ZERO,
            };
            (delay, s.slow_every > 0 && s.requests.is_multiple_of(s.slow_every), s.hold.clone())
        };
        if slow && !delay.is_zero() {
            std::thread::sleep(delay);
        }
        if let Some(held) = hold {
            held.pass(what, &(offset..offset + len as u64));
        }
    }

    /// Writes and syncs so far.
    pub fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// From step `n` on everything fails, as seen by a process that is being killed.
    pub fn die_at(&self, n: u64) {
        self.state.lock().dies_at = Some(n);
    }

    /// The request of step `n` fails.
    pub fn fail_at(&self, n: u64, fault: Fault) {
        self.state.lock().fault = Some((n, fault));
    }

    /// The next request of this kind that touches these bytes fails, after `skip` others. A later call replaces an
    /// earlier one.
    pub fn fail_next(&self, what: Request, range: Range<u64>, skip: u64, fault: Fault) {
        self.state.lock().trap = Some(Trap { what, range, skip, fault });
    }

    /// Whether the request of [`SimDev::fail_next`] has come.
    pub fn has_failed(&self) -> bool {
        self.state.lock().trap.is_none()
    }

    /// Limits what the host can still allocate.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.state.lock().room = bytes;
    }

    /// The device after a power cut: what was synced, and of the rest what `survival` and the numbers from
    /// `random` let through, applied in an order of their own for sectors written more than once.
    pub fn after_cut(&self, survival: Survival, random: &mut dyn FnMut() -> u64) -> Self {
        let mut state = self.state.lock().clone();
        let pending = std::mem::take(&mut state.pending);
        for (offset, bytes) in pending {
            let whole = random() & 1 == 0;
            for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                let keep = match survival {
                    Survival::All => true,
                    Survival::Nothing => false,
                    Survival::Writes => whole,
                    Survival::Sectors => random() & 1 == 0,
                };
                if keep {
                    put(&mut state.base, offset + (i * SECTOR) as u64, sector);
                }
            }
        }
        state.died_in_write = false;
        state.hold = None;
        state.dies_at = None;
        state.trap = None;
        state.fault = None;
        state.steps = 0;
        Self { len: self.len, state: Arc::new(Mutex::new(state)) }
    }

    /// A device of its own in the same state, that lives on.
    #[must_use]
    pub fn copy(&self) -> Self {
        let mut state = self.state.lock().clone();
        state.hold = None;
        state.dies_at = None;
        state.trap = None;
        state.fault = None;
        state.steps = 0;
        Self { len: self.len, state: Arc::new(Mutex::new(state)) }
    }

    /// The device after the death of the process alone, when the last of its writes has landed: all that were
    /// answered, and of the one under way at the kill whatever `random` lets through (H1). What was not synced
    /// can still be lost with the power.
    #[must_use]
    pub fn after_death(&self, random: &mut dyn FnMut() -> u64) -> Self {
        let dev = self.copy();
        let mut state = dev.state.lock();
        if std::mem::take(&mut state.died_in_write) {
            let (offset, bytes) = state.pending.pop().expect("the write under way is the last");
            let how = random() % 3;
            for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                if how == 0 || (how == 1 && random() & 1 == 0) {
                    state.pending.push((offset + (i * SECTOR) as u64, sector.to_vec()));
                }
            }
        }
        drop(state);
        dev
    }

    /// Flips one bit, durably.
    pub fn flip(&self, byte: u64, bit: u8) {
        let mut s = self.state.lock();
        let all = Self::so_far(&s);
        Self::settle(&mut s, all);
        let block = s.base[mem(byte / BLOCK as u64)].get_or_insert_with(|| Arc::new([0; BLOCK]));
        Arc::make_mut(block)[mem(byte % BLOCK as u64)] ^= 1 << bit;
    }

    fn settle(s: &mut State, until: Begun) {
        let n = until.0.saturating_sub(s.covered);
        for (offset, bytes) in s.pending.drain(..mem(n)) {
            put(&mut s.base, offset, &bytes);
        }
        s.covered += n;
    }

    fn so_far(s: &State) -> Begun {
        Begun(s.covered + s.pending.len() as u64)
    }

    /// Begins a sync: it covers the writes that were answered by now, and no later ones (H10).
    pub fn begin_sync(&self) -> Begun {
        Self::so_far(&self.state.lock())
    }

    /// Ends it.
    ///
    /// # Errors
    /// Those that were asked for.
    pub fn end_sync(&self, begun: Begun) -> io::Result<()> {
        let mut s = self.state.lock();
        if let Some(fault) = Self::sprung(&mut s, Request::Sync, 0, 0) {
            return Err(Self::error(fault));
        }
        Self::step(&mut s)?;
        Self::settle(&mut s, begun);
        Ok(())
    }

    /// The fault that waits for this request.
    fn sprung(s: &mut State, what: Request, offset: u64, len: usize) -> Option<Fault> {
        let trap = s.trap.as_mut()?;
        let touches = offset < trap.range.end && trap.range.start < offset + len as u64;
        if trap.what != what || !(touches || what == Request::Sync) {
            return None;
        }
        if trap.skip > 0 {
            trap.skip -= 1;
            return None;
        }
        s.trap.take().map(|t| t.fault)
    }

    fn error(fault: Fault) -> io::Error {
        match fault {
            Fault::Eio => io::Error::from_raw_os_error(libc::EIO),
            Fault::NoSpace => io::Error::from_raw_os_error(libc::ENOSPC),
            Fault::Short => io::Error::new(io::ErrorKind::UnexpectedEof, "a short transfer"),
        }
    }

    fn step(s: &mut State) -> io::Result<()> {
        s.steps += 1;
        if s.dies_at.is_some_and(|n| s.steps >= n) {
            return Err(io::Error::other("the process is dead"));
        }
        match s.fault {
            Some((n, fault)) if n == s.steps => Err(Self::error(fault)),
            _ => Ok(()),
        }
    }
}

/// Copies bytes into blocks; they may begin and end anywhere.
fn put(base: &mut [Option<Arc<[u8; BLOCK]>>], offset: u64, bytes: &[u8]) {
    let mut at = mem(offset);
    let mut rest = bytes;
    while !rest.is_empty() {
        let from = at % BLOCK;
        let (now, later) = rest.split_at(rest.len().min(BLOCK - from));
        let block = base[at / BLOCK].get_or_insert_with(|| Arc::new([0; BLOCK]));
        Arc::make_mut(block)[from..from + now.len()].copy_from_slice(now);
        at += now.len();
        rest = later;
    }
}

impl BlockDev for SimDev {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > self.len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read beyond the end of the pool"));
        }
        self.wait(Request::Read, offset, buf.len());
        let mut s = self.state.lock();
        let fault = Self::sprung(&mut s, Request::Read, offset, buf.len());
        for (block, out) in s.base[mem(offset / BLOCK as u64)..].iter().zip(buf.chunks_mut(BLOCK)) {
            match block {
                Some(block) => out.copy_from_slice(&block[..out.len()]),
                None => out.fill(0),
            }
        }
        let end = offset + buf.len() as u64;
        for (at, bytes) in &s.pending {
            let (from, to) = (offset.max(*at), end.min(at + bytes.len() as u64));
            if from < to {
                let pos = |x: u64, base: u64| usize::try_from(x - base).expect("in memory");
                buf[pos(from, offset)..pos(to, offset)].copy_from_slice(&bytes[pos(from, *at)..pos(to, *at)]);
            }
        }
        if let Some(fault) = fault {
            let kept = if fault == Fault::Short { buf.len() / 2 } else { 0 };
            buf[kept..].fill(0xee);
            return Err(Self::error(fault));
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > self.len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "write beyond the end of the pool"));
        }
        self.wait(Request::Write, offset, buf.len());
        let mut s = self.state.lock();
        for block in offset / BLOCK as u64..(offset + buf.len() as u64).div_ceil(BLOCK as u64) {
            assert!(!s.forbidden.contains(&block), "block {block} is in use and must not be written");
            assert!(
                !s.given_back.contains(&block),
                "block {block} was given back to the host and is written"
            );
        }
        if let Some(fault) = Self::sprung(&mut s, Request::Write, offset, buf.len()) {
            if fault == Fault::Short {
                s.pending.push((offset, buf[..buf.len() / 2].to_vec()));
            }
            return Err(Self::error(fault));
        }
        let result = Self::step(&mut s);
        // The write at which the process dies may still land: it is pending like any other.
        if result.is_ok() || s.dies_at == Some(s.steps) {
            s.died_in_write = result.is_err();
            s.pending.push((offset, buf.to_vec()));
        }
        result
    }

    fn sync(&self) -> io::Result<()> {
        let begun = self.begin_sync();
        self.wait(Request::Sync, 0, 0);
        self.end_sync(begun)
    }

    fn back(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut s = self.state.lock();
        const UNIT: u64 = 4096;
        let new: Vec<u64> =
            (offset / UNIT..(offset + len) / UNIT).filter(|b| !s.backed.contains(b)).collect();
        if let Some(room) = s.room {
            let need = new.len() as u64 * UNIT;
            if need > room {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            s.room = Some(room - need);
        }
        new.iter().for_each(|b| {
            s.given_back.remove(b);
        });
        s.backed.extend(new);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut s = self.state.lock();
        for block in offset / BLOCK as u64..(offset + len) / BLOCK as u64 {
            assert!(!s.forbidden.contains(&block), "block {block} is in use and must not be punched");
            s.given_back.insert(block);
            if s.backed.remove(&block) && s.room.is_some() {
                s.room = s.room.map(|room| room + BLOCK as u64);
            }
        }
        Self::step(&mut s)?;
        // May be lost like a write; what is read after it is not to be believed.
        s.pending.push((offset, vec![0x5a; mem(len)]));
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn host_free(&self) -> Option<u64> {
        self.state.lock().room
    }
}
