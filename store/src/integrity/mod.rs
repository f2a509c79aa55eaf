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
pub use seal::{Sealer, next_leaf, run as run_sealer};
pub use table::{ChecksumTable, Sealed};

use crate::core::{Cell, Core};
use crate::io::{AlignedBuf, Io, Sink};
use crate::types::{BLOCK, Phys, mem};
use crate::{BLOCK_BYTES, Error, Result};

impl Core {
    /// Reads blocks `p..` of a version, logical blocks `l..`, and verifies those that have checksums. Call inside an
    /// I/O epoch.
    ///
    /// # Errors
    /// `Io`; `Damaged` when a block is not what it was.
    pub async fn read_data(
        &self,
        io: &impl Io,
        cell: &Cell,
        l: u64,
        p: Phys,
        mut into: Sink<'_>,
    ) -> Result<()> {
        let failed = |e| Error::io(format!("read block {}", p.0), e);
        let n = into.len() / BLOCK_BYTES;
        let has_checksums = || self.alloc.sealed().any(p, n);
        // Nobody can look into a registered buffer: what is to be verified is copied into it afterwards.
        if let Sink::Registered(to) = into
            && has_checksums()
        {
            let mut copy = AlignedBuf::reused(mem(to.len));
            io.read(p.offset(), Sink::Memory(&mut copy)).await.map_err(failed)?;
            self.compare(io, cell, l, p, &copy).await?;
            return io.fill(to, &copy).await.map_err(failed);
        }
        io.read(p.offset(), into.whole()).await.map_err(failed)?;
        match into {
            Sink::Memory(bytes) if has_checksums() => self.compare(io, cell, l, p, bytes).await,
            // Those that got checksums just now are verified the next time.
            Sink::Memory(_) | Sink::Registered(_) => Ok(()),
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
