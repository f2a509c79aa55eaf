//! Checksums of data that cannot change any more.
//!
//! A block that a snapshot holds is never written in place again, so a checksum computed at any later time holds until
//! the block is freed. It is computed in the background (`seal`), verified by every read, and all of them by a
//! scrub. The write path knows nothing of it.
//!
//! Invariants: a block's bit in the segment table is set only after its entry in the checksum table was written,
//! and becomes durable with a checkpoint, whose first sync makes the entry durable before (H26). The bit is cleared
//! in the same record and by the same checkpoint that drops the block, so no entry outlives its block. Only
//! the sealer writes the table; entries beside the changed ones are written as they were, so a torn page is whole.

mod damage;
mod scrub;
mod seal;
mod table;

pub use damage::{Damage, DamagedBlock};
pub use scrub::{ScrubProgress, ScrubReport};
pub use seal::{Sealer, run as run_sealer};
pub use table::{ChecksumTable, Sealed};

use crate::core::{Cell, Core};
use crate::io::{AlignedBuf, Io, Sink};
use crate::types::{BLOCK, Phys, mem};
use crate::{BLOCK_BYTES, Error, Result};

impl Core {
    /// Verifies what was read from blocks `p..` of a version, logical blocks `l..`, into `bytes`, as far as they
    /// have checksums. Call inside the I/O epoch of the read.
    ///
    /// # Errors
    /// `Damaged` when a block is not what it was.
    pub async fn verify(&self, io: &impl Io, cell: &Cell, l: u64, p: Phys, bytes: &Sink<'_>) -> Result<()> {
        let n = bytes.len() / BLOCK_BYTES;
        if !self.alloc.sealed().any(p, n) {
            return Ok(());
        }
        match bytes {
            Sink::Memory(bytes) => self.compare(io, cell, l, p, bytes).await,
            // Nobody can look into a registered buffer: the blocks are read a second time.
            Sink::Registered(_) => {
                let mut copy = AlignedBuf::reused(mem(bytes.len()));
                let read = io.read(p.offset(), Sink::Memory(&mut copy)).await;
                read.map_err(|e| Error::io(format!("read block {}", p.0), e))?;
                self.compare(io, cell, l, p, &copy).await
            }
        }
    }

    async fn compare(&self, io: &impl Io, cell: &Cell, l: u64, p: Phys, bytes: &[u8]) -> Result<()> {
        for (i, block) in (0..).zip(bytes.chunks_exact(BLOCK)) {
            let at = p.plus(i);
            if self.alloc.sealed().has(at) && !self.checksums.matches(io, at, block).await? {
                self.damage.report(at, Some(l + i));
                self.poke();
                return Err(Error::damaged(format!(
                    "block {} of version {} is not what it was: block {} of the pool fails its checksum",
                    l + i,
                    cell.id.0,
                    at.0
                ))
                .hint(
                    "`cowslip scrub` finds all such blocks and names the volumes and snapshots they are in",
                ));
            }
        }
        Ok(())
    }
}
