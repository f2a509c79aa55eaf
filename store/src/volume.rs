//! The data path of a volume: read, write, flush, discard, write zeroes.
//!
//! A write goes: set space aside → gate → look up → in place where the head owns the block, else to a new
//! block → commit the mapping → leave the gate → acknowledge. No lock is held over I/O.

use crate::alloc::Stream;
use crate::core::{Cell, Core, Place, Reservation, byte_index};
use crate::format::record::Record;
use crate::gate::Gate;
use crate::io::AlignedBuf;
use crate::log::writer::MAP_FRAME;
use crate::memtable::touched;
use crate::mutation::Mutation;
use crate::types::VolumeId;
use crate::{BLOCK_BYTES, Error, Result};
use parking_lot::RwLock;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks of one step of a long write: 1 MiB.
const STEP_BLOCKS: u64 = 256;

/// An open volume. All methods may be called from many threads.
pub struct Volume {
    core: Arc<Core>,
    id: VolumeId,
    pub(crate) gate: Gate,
    pub(crate) head: RwLock<Arc<Cell>>,
    pub(crate) size_blocks: AtomicU64,
    /// Nothing is written in place, so that no block is ever torn (durability rule 9).
    atomic: bool,
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
        let (head, size_blocks) = (RwLock::new(head), AtomicU64::new(size_blocks));
        Self { core, id, gate: Gate::default(), head, size_blocks, atomic }
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

    /// Fills `buf` from byte `offset`. Fastest when offset, length and the buffer's address are multiples of
    /// 4096.
    ///
    /// # Errors
    /// `Invalid` beyond the end, `Io` or `Damaged` when the disk fails.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let range = self.range(offset, buf.len() as u64)?;
        let _io = self.core.epochs.begin();
        let head = self.head.read().clone();
        read_bytes(&self.core, &head, range, buf)
    }

    /// Writes `buf` at byte `offset`. It survives the death of the process when this returns; it survives
    /// power loss after [`Volume::flush`], or with `fua`.
    ///
    /// # Errors
    /// `NoSpace` when the pool is full and the range is not the head's own already; `Poisoned`; `Io`. After
    /// an error the range holds old bytes, new bytes or (in place only) a mix at 512 bytes.
    pub fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<()> {
        let range = self.range(offset, buf.len() as u64)?;
        self.core.writable()?;
        let step = STEP_BLOCKS.min(self.core.log.largest_reservation() / MAP_FRAME) * BLOCK_BYTES;
        let (mut at, mut settled) = (range.start, true);
        while at < range.end {
            let end = (at - at % BLOCK_BYTES + step).min(range.end);
            let part = &buf[crate::types::mem(at - range.start)..crate::types::mem(end - range.start)];
            settled &= self.write_step(at..end, part, fua)?;
            at = end;
        }
        if !settled && (fua || self.core.write_through) {
            self.core.flush()?;
        }
        Ok(())
    }

    /// One step; true when nothing has to be flushed: for a FUA write, when all of it went in place, durably,
    /// to blocks whose mapping is durable (H9).
    fn write_step(&self, range: Range<u64>, bytes: &[u8], fua: bool) -> Result<bool> {
        let blocks = blocks_of(&range);
        let n = blocks.end - blocks.start;
        let nodes = touched(blocks.start, n, false).count() as u64;
        let mut reservation = self.core.try_reserve(n, nodes, n, false)?;
        loop {
            if let Some(durable) = self.try_write(&range, &blocks, bytes, fua, reservation.as_mut())? {
                // Without a ring a mapping is flushed when it is made.
                return Ok(durable);
            }
            // Full, and not wholly the head's own: find room, then look again.
            reservation = Some(self.core.reserve(n, nodes, n, false)?.ok_or_else(|| self.full())?);
        }
    }

    /// None: blocks are needed and `reservation` is missing. Else whether the write needs no flush.
    fn try_write(
        &self,
        range: &Range<u64>,
        blocks: &Range<u64>,
        bytes: &[u8],
        fua: bool,
        reservation: Option<&mut Reservation<'_>>,
    ) -> Result<Option<bool>> {
        let _pass = self.gate.enter(blocks.clone());
        let _io = self.core.epochs.begin();
        let head = self.head.read().clone();
        let places = self.places(&head, blocks.clone())?;
        let in_place = places.iter().all(|p| p.owned);
        if !in_place && reservation.is_none() {
            return Ok(None);
        }
        let whole;
        let bytes = if is_whole(range) {
            bytes
        } else {
            // The rest of the blocks at the ends: their old bytes, or zeros (H19).
            whole = self.widen(&head, range, blocks, bytes)?;
            &whole[..]
        };
        if in_place {
            let durable = fua && (Mutation::FuaUndurable.on() || places.iter().all(|p| p.durable));
            self.write_in_place(&places, bytes, durable)?;
            return Ok(Some(durable || !fua));
        }
        let reservation = reservation.expect("checked above");
        self.write_places(&head, blocks.start, &places, bytes, reservation)?;
        Ok(Some(false))
    }

    fn full(&self) -> Error {
        let host = self.core.host_full.load(Ordering::Relaxed);
        let what = if host { "the disk under the pool is full" } else { "the pool is full" };
        Error::no_space(what).hint("delete snapshots or volumes, or discard (fstrim) what is not used")
    }

    fn widen(
        &self,
        head: &Cell,
        range: &Range<u64>,
        blocks: &Range<u64>,
        bytes: &[u8],
    ) -> Result<AlignedBuf> {
        let mut whole = AlignedBuf::reused(byte_index(blocks.end - blocks.start));
        let (first, last) = (blocks.start, blocks.end - 1);
        self.core.read_blocks(head, first, &mut whole[..byte_index(1)])?;
        if last != first {
            let at = byte_index(last - first);
            self.core.read_blocks(head, last, &mut whole[at..])?;
        }
        let at = crate::types::mem(range.start - first * BLOCK_BYTES);
        whole[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(whole)
    }

    fn places(&self, head: &Cell, blocks: Range<u64>) -> Result<Vec<Place>> {
        let mut all: Vec<Place> = Vec::with_capacity(4);
        let mut l = blocks.start;
        while l < blocks.end {
            let place = self.core.place(head, l, blocks.end - l)?;
            l += place.len;
            all.push(Place { owned: place.owned && (!self.atomic || Mutation::InPlaceAtomic.on()), ..place });
        }
        Ok(all)
    }

    fn write_in_place(&self, places: &[Place], bytes: &[u8], durable: bool) -> Result<()> {
        let mut done = 0;
        for place in places {
            let (p, _) = place.data.expect("owned blocks are mapped");
            let part = &bytes[byte_index(done)..byte_index(done + place.len)];
            let write = if durable {
                self.core.dev.write_durable(p.offset(), part)
            } else {
                self.core.dev.write_at(p.offset(), part)
            };
            write.map_err(|e| Error::io(format!("write block {}", p.0), e))?;
            done += place.len;
        }
        Ok(())
    }

    /// Writes owned stretches in place and the others to new blocks, then commits the new mappings.
    fn write_places(
        &self,
        head: &Cell,
        first: u64,
        places: &[Place],
        bytes: &[u8],
        reservation: &mut Reservation<'_>,
    ) -> Result<()> {
        let mut records = Vec::new();
        match self.write_data(head, first, places, bytes, &mut records) {
            Ok(grown) => self.core.commit(head, &records, reservation, grown),
            Err(e) => {
                // What was taken is not mapped: it stays out of use until the pool is opened again.
                reservation.quarantined(records.iter().map(mapped).sum());
                return Err(e);
            }
        }
        Ok(())
    }

    /// Writes the data; fills `records` with the new mappings and returns how many blocks were holes.
    fn write_data(
        &self,
        head: &Cell,
        first: u64,
        places: &[Place],
        bytes: &[u8],
        records: &mut Vec<Record>,
    ) -> Result<u64> {
        let (mut done, mut grown) = (0, 0);
        let mut rest = places;
        while let [place, ..] = rest {
            // Neighbours that all need new blocks get them together.
            let count = if place.owned { 1 } else { rest.iter().take_while(|p| !p.owned).count() };
            let (now, later) = rest.split_at(count);
            let n: u64 = now.iter().map(|p| p.len).sum();
            let part = &bytes[byte_index(done)..byte_index(done + n)];
            if place.owned {
                self.write_in_place(now, part, false)?;
            } else {
                grown += now.iter().filter(|p| p.data.is_none()).map(|p| p.len).sum::<u64>();
                self.write_new(head, first + done, part, records)?;
            }
            done += n;
            rest = later;
        }
        Ok(grown)
    }

    fn write_new(&self, head: &Cell, first: u64, bytes: &[u8], records: &mut Vec<Record>) -> Result<()> {
        let n = bytes.len() as u64 / BLOCK_BYTES;
        let mut done = 0;
        while done < n {
            let (p, len) = self.core.alloc.take(Stream::Data(self.id), n - done)?;
            let count = u32::try_from(len).expect("at most a segment");
            records.push(Record::Map { version: head.id, l: first + done, n: count, p });
            let part = &bytes[byte_index(done)..byte_index(done + len)];
            self.core
                .dev
                .write_at(p.offset(), part)
                .map_err(|e| Error::io(format!("write block {}", p.0), e))?;
            done += len;
        }
        Ok(())
    }

    /// Everything acknowledged before the call survives power loss when this returns.
    ///
    /// # Errors
    /// `Poisoned` when the disk failed: nothing is known of what was not flushed before.
    pub fn flush(&self) -> Result<()> {
        self.core.flush()
    }

    /// The whole blocks of the range read as zeros and their space is given back. Blocks that are only partly
    /// in the range keep their bytes. On a full pool it may do nothing, as a discard may.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let range = self.range(offset, len)?;
        self.core.writable()?;
        let blocks = range.start.div_ceil(BLOCK_BYTES)..range.end / BLOCK_BYTES;
        match self.unmap(blocks) {
            Err(e) if e.kind() == crate::ErrorKind::NoSpace => Ok(()),
            other => other,
        }
    }

    /// The range reads as zeros.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let range = self.range(offset, len)?;
        self.core.writable()?;
        let blocks = range.start.div_ceil(BLOCK_BYTES)..range.end / BLOCK_BYTES;
        if blocks.start >= blocks.end {
            return self.write_at(offset, &vec![0; crate::types::mem(len)], false);
        }
        let (from, to) = (blocks.start * BLOCK_BYTES, blocks.end * BLOCK_BYTES);
        self.unmap(blocks)?;
        for edge in [range.start..from, to..range.end] {
            if !edge.is_empty() {
                self.write_at(edge.start, &vec![0; crate::types::mem(edge.end - edge.start)], false)?;
            }
        }
        Ok(())
    }

    fn unmap(&self, blocks: Range<u64>) -> Result<()> {
        if blocks.start >= blocks.end {
            return Ok(());
        }
        let n = blocks.end - blocks.start;
        let nodes = touched(blocks.start, n, true).count() as u64;
        let mut reservation = self.core.reserve(0, nodes, 1, true)?.ok_or_else(|| self.full())?;
        let pass = self.gate.enter(blocks.clone());
        let io = self.core.epochs.begin();
        let head = self.head.read().clone();
        let place = self.core.place(&head, blocks.start, n)?;
        if place.data.is_none() && place.len == n {
            return Ok(());
        }
        let record = Record::Unmap { version: head.id, l: blocks.start, n };
        self.core.commit(&head, &[record], &mut reservation, 0);
        drop((io, pass));
        if self.core.write_through {
            self.core.flush()?;
        }
        Ok(())
    }

    /// The next mapped byte range at or after `offset`, at most 1 GiB of it; None: only holes follow.
    pub fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let _io = self.core.epochs.begin();
        let head = self.head.read().clone();
        next_data(&self.core, &head, offset, self.size_bytes())
    }
}

fn mapped(record: &Record) -> u64 {
    if let Record::Map { n, .. } = record { u64::from(*n) } else { 0 }
}

/// Reads any byte range of a version.
pub(crate) fn read_bytes(core: &Core, cell: &Cell, range: Range<u64>, buf: &mut [u8]) -> Result<()> {
    if is_whole(&range) {
        return core.read_blocks(cell, range.start / BLOCK_BYTES, buf);
    }
    let blocks = blocks_of(&range);
    let mut whole = AlignedBuf::reused(byte_index(blocks.end - blocks.start));
    core.read_blocks(cell, blocks.start, &mut whole)?;
    let at = crate::types::mem(range.start - blocks.start * BLOCK_BYTES);
    buf.copy_from_slice(&whole[at..at + buf.len()]);
    Ok(())
}

/// Longest range answered at once.
const MAX_RANGE_BLOCKS: u64 = 1 << 18;

/// The next mapped range of a version of `size` bytes.
pub(crate) fn next_data(core: &Core, cell: &Cell, offset: u64, size: u64) -> Result<Option<Range<u64>>> {
    let end = size / BLOCK_BYTES;
    let mut l = offset / BLOCK_BYTES;
    let mut found: Option<Range<u64>> = None;
    while l < end {
        let place = core.place(cell, l, end - l)?;
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
