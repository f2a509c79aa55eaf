//! Reading a snapshot.
//!
//! Invariant: a block of a snapshot is never written until it is freed, and it is freed only when every read
//! begun before the deletion has ended; a read begun after it is refused (H25).

use crate::core::{Cell, Core};
use crate::io::Sink;
use crate::io::port::ready;
use crate::mutation::Mutation;
use crate::volume::{next_data, read_bytes};
use crate::{BLOCK_BYTES, Error, Result};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// An open snapshot. All methods may be called from many threads.
pub struct Snapshot {
    pub(crate) core: Arc<Core>,
    pub(crate) cell: Arc<Cell>,
    pub(crate) size_blocks: u64,
}

impl Snapshot {
    /// Stable id of the snapshot.
    pub fn id(&self) -> u64 {
        self.cell.id.0
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_blocks * BLOCK_BYTES
    }

    pub(crate) fn alive(&self) -> Result<()> {
        if self.cell.revoked.load(Ordering::SeqCst) && !Mutation::ReadRevoked.on() {
            return Err(Error::not_found("the snapshot was deleted"));
        }
        Ok(())
    }

    /// Fills `buf` from byte `offset`.
    ///
    /// # Errors
    /// `Invalid` beyond the end, `NotFound` once the snapshot is deleted, `Io`, `Damaged`.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let range = match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.size_bytes() => offset..end,
            _ => return Err(Error::invalid("read beyond the end of the snapshot")),
        };
        let _io = self.core.epochs.begin();
        self.alive()?;
        ready(read_bytes(&self.core.blocking(), &self.core, &self.cell, range, Sink::Memory(buf)))
    }

    /// The next mapped byte range at or after `offset`, at most 1 GiB of it; None: only holes follow.
    pub fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let _io = self.core.epochs.begin();
        self.alive()?;
        next_data(&self.core, &self.cell, offset, self.size_bytes())
    }

    /// Identity of the block at `offset`, (physical block, birth epoch): equal identities hold equal bytes,
    /// in every snapshot of the pool (H24). None: a hole, or too old to tell.
    pub fn identity(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let _io = self.core.epochs.begin();
        self.alive()?;
        let place = ready(self.core.place(&self.core.blocking(), &self.cell, offset / BLOCK_BYTES, 1))?;
        Ok(place.data.and_then(|(p, birth)| {
            birth.map(|b| (p.0, if Mutation::PlaceIsIdentity.on() { 0 } else { b.0 }))
        }))
    }
}
