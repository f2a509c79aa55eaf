//! Writing: set space aside → gate → look up → in place where the head owns the block, else to a new block →
//! commit the mapping → leave the gate → acknowledge. No lock is held over I/O.

use super::{VolumeIo, blocks_of, is_whole, partly_registered};
use crate::alloc::Stream;
use crate::core::{Cell, Change, Need, Place, Reservation, byte_index};
use crate::format::node::LEAF_ENTRIES;
use crate::io::together::together;
use crate::io::{AlignedBuf, DurableError, Io, Sink, Source};
use crate::log::writer::MAP_FRAME;
use crate::memtable::{Target, touched};
use crate::mutation::Mutation;
use crate::types::{Few, Phys, mem};
use crate::{BLOCK_BYTES, Error, Result};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Blocks of one step of a long write: 1 MiB.
const STEP_BLOCKS: u64 = 256;

/// Blocks `first..first + n` of a write, and where they go.
#[derive(Clone, Copy)]
struct Piece {
    p: Phys,
    first: u64,
    n: u64,
}

impl Piece {
    fn bytes(&self) -> Range<u64> {
        self.first * BLOCK_BYTES..(self.first + self.n) * BLOCK_BYTES
    }
}

/// What a write does, before it does it.
struct Plan {
    pieces: Few<Piece>,
    /// Mappings that are new.
    records: Few<Change>,
    /// Blocks that were holes.
    grown: u64,
}

impl<I: Io> VolumeIo<'_, I> {
    /// Writes `from` at byte `offset`. It survives the death of the process when this is ready; it survives power
    /// loss after [`VolumeIo::flush`], or with `fua`.
    ///
    /// # Errors
    /// `NoSpace` when the pool is full and the range is not the head's own already; `Poisoned`; `Io`. After
    /// an error the range holds old bytes, new bytes or (in place only) a mix at 512 bytes.
    pub async fn write(&self, offset: u64, from: Source<'_>, fua: bool) -> Result<()> {
        let core = &self.volume.core;
        let range = self.volume.range(offset, from.len())?;
        core.writable()?;
        let step = STEP_BLOCKS.min(core.log.largest_reservation() / MAP_FRAME) * BLOCK_BYTES;
        let (mut at, mut settled) = (range.start, true);
        while at < range.end {
            let end = (at - at % BLOCK_BYTES + step).min(range.end);
            let part = from.part(&(at - range.start..end - range.start));
            settled &= self.write_step(at..end, part, fua).await?;
            at = end;
        }
        if !settled && (fua || core.write_through) {
            core.flush(self.io).await?;
        }
        Ok(())
    }

    /// One step; true when nothing has to be flushed: for a FUA write, when all of it went in place, durably,
    /// to blocks whose mapping is durable (H9).
    async fn write_step(&self, range: Range<u64>, from: Source<'_>, fua: bool) -> Result<bool> {
        let (v, core) = (self.volume, &self.volume.core);
        let blocks = blocks_of(&range);
        let n = blocks.end - blocks.start;
        let need = || {
            let nodes = touched(blocks.start, n, false).count() as u64;
            Need { blocks: n, nodes, records: n, freeing: false }
        };
        // A guess: overwrites in place need nothing, and come in rows, as redirected writes do.
        let mut reservation = match v.redirects.load(Ordering::Relaxed) {
            true => core.try_reserve(self.io, need()).await?,
            false => None,
        };
        loop {
            if let Some(settled) = self.try_write(&range, &blocks, from, fua, reservation.as_mut()).await? {
                // Without a ring a mapping is flushed when it is made.
                return Ok(settled);
            }
            // Not wholly the head's own: find room, outside of the gate, then look again.
            let found = core.reserve(self.io, need()).await?;
            reservation = Some(found.ok_or_else(|| v.full())?);
        }
    }

    /// None: blocks are needed and `reservation` is missing. Else whether the write needs no flush.
    async fn try_write(
        &self,
        range: &Range<u64>,
        blocks: &Range<u64>,
        from: Source<'_>,
        fua: bool,
        mut reservation: Option<&mut Reservation<'_>>,
    ) -> Result<Option<bool>> {
        let (v, core) = (self.volume, &self.volume.core);
        let _pass = v.gate.enter(blocks.clone()).await;
        let _io = core.epochs.begin();
        let head = v.head.read().clone();
        let places = self.places(&head, blocks.clone()).await?;
        let places = places.as_slice();
        let in_place = places.iter().all(|p| p.owned);
        if v.redirects.load(Ordering::Relaxed) == in_place {
            v.redirects.store(!in_place, Ordering::Relaxed);
        }
        if !in_place && reservation.is_none() {
            return Ok(None);
        }
        let whole;
        let from = match from {
            _ if is_whole(range) => from,
            // The rest of the blocks at the ends: their old bytes, or zeros (H19).
            Source::Memory(bytes) => {
                whole = self.widen(&head, range, blocks, bytes).await?;
                Source::Memory(&whole)
            }
            Source::Registered(_) => return Err(partly_registered()),
        };
        let plan = self.plan(blocks.start, places, reservation.as_deref_mut())?;
        let mapped = places.iter().all(|p| p.durable);
        let durable = fua && in_place && (mapped || Mutation::FuaUndurable.on());
        self.write_pieces(plan.pieces.as_slice(), from, durable).await?;
        let Some(reservation) = reservation.filter(|_| !in_place) else {
            // Without a ring the death of the process takes a mapping that is not durable, and this write with it.
            return Ok(Some(durable || (!fua && (mapped || !core.write_through))));
        };
        core.commit(&head, plan.records.as_slice(), reservation, plan.grown);
        Ok(Some(false))
    }

    async fn widen(
        &self,
        head: &Cell,
        range: &Range<u64>,
        blocks: &Range<u64>,
        bytes: &[u8],
    ) -> Result<AlignedBuf> {
        let core = &self.volume.core;
        let mut whole = AlignedBuf::reused(byte_index(blocks.end - blocks.start));
        let (first, last) = (blocks.start, blocks.end - 1);
        core.read_blocks(self.io, head, first, Sink::Memory(&mut whole[..byte_index(1)])).await?;
        if last != first {
            let at = byte_index(last - first);
            core.read_blocks(self.io, head, last, Sink::Memory(&mut whole[at..])).await?;
        }
        let at = mem(range.start - first * BLOCK_BYTES);
        whole[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(whole)
    }

    /// Where the head's blocks lie. None are its own where nothing may be written in place.
    async fn places(&self, head: &Cell, blocks: Range<u64>) -> Result<Few<Place>> {
        let in_place = !self.volume.atomic || Mutation::InPlaceAtomic.on();
        let places = self.volume.core.places(self.io, head, blocks).await?;
        Ok(if in_place { places } else { places.map(|place| Place { owned: false, ..place }) })
    }

    /// Writes the pieces of `from` where they belong, together: nobody is told before all have landed, and until then any
    /// part of them may have.
    async fn write_pieces(&self, pieces: &[Piece], from: Source<'_>, durable: bool) -> Result<()> {
        together(pieces.iter().map(|piece| self.write_piece(piece.p, from.part(&piece.bytes()), durable)))
            .await
    }

    async fn write_piece(&self, p: Phys, from: Source<'_>, durable: bool) -> Result<()> {
        let written = match durable {
            false => self.io.write(p.offset(), from).await,
            true => self.io.write_durable(p.offset(), from).await.map_err(|e| self.judge(e)),
        };
        written.map_err(|e| Error::io(format!("write block {}", p.0), e))
    }

    /// A sync that failed may have told of other writes than this one: the pool is poisoned (H11, H12).
    fn judge(&self, e: DurableError) -> std::io::Error {
        match e {
            DurableError::Data(e) => e,
            DurableError::Sync(e) => {
                self.volume.core.poison.set(&format!("a durable write failed: {e}"));
                e
            }
        }
    }

    /// What goes where: owned stretches stay in place, the others get new blocks out of `reservation`.
    fn plan(
        &self,
        first: u64,
        places: &[Place],
        mut reservation: Option<&mut Reservation<'_>>,
    ) -> Result<Plan> {
        let mut plan = Plan { pieces: Few::new(), records: Few::new(), grown: 0 };
        let (mut done, mut rest) = (0, places);
        while let [place, ..] = rest {
            // Neighbours that all need new blocks get them together.
            let count = if place.owned { 1 } else { rest.iter().take_while(|p| !p.owned).count() };
            let (now, later) = rest.split_at(count);
            let end = done + now.iter().map(|p| p.len).sum::<u64>();
            if place.owned {
                let (p, _) = place.data.expect("owned blocks are mapped");
                plan.pieces.push(Piece { p, first: done, n: place.len });
            } else {
                plan.grown += now.iter().filter(|p| p.data.is_none()).map(|p| p.len).sum::<u64>();
                let reservation = reservation.as_deref_mut().expect("made before anything is redirected");
                while done < end {
                    let leaf = (first + done) / LEAF_ENTRIES;
                    let (p, n) =
                        reservation.take(Stream::Data { volume: self.volume.id, leaf }, end - done)?;
                    plan.pieces.push(Piece { p, first: done, n });
                    plan.records.push(Change { l: first + done, n, target: Target::Data(p) });
                    done += n;
                }
            }
            (done, rest) = (end, later);
        }
        Ok(plan)
    }
}
