//! Reading every block that has a checksum, in the order of the disk.

use crate::core::Core;
use crate::io::port::ready;
use crate::io::{AlignedBuf, Blocking};
use crate::types::{BLOCK, Phys, SEGMENT_BLOCKS};
use crate::{BLOCK_BYTES, Pool, Result};
use std::ops::ControlFlow;

/// How far a scrub is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Segment (1 MiB of the pool) that comes next: where a later scrub can go on.
    pub segment: u64,
    /// Segments of the pool.
    pub segments: u64,
    /// Bytes read and compared since the scrub began or went on.
    pub checked_bytes: u64,
    /// Blocks of 4 KiB found damaged or unreadable since then.
    pub damaged_blocks: u64,
}

/// What a scrub did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubReport {
    /// Where it ended.
    pub progress: ScrubProgress,
    /// It reached the end of the pool.
    pub complete: bool,
}

impl Pool {
    /// Compares every block that has a checksum with it, from segment `from` on. `step` is asked after each
    /// segment that has some, and may sleep to limit the rate; `Break` ends the scrub there. Damaged blocks are
    /// told by [`Pool::damage`].
    ///
    /// # Errors
    /// `Io` when the checksums themselves cannot be read.
    pub fn scrub(
        &self,
        from: u64,
        step: &mut dyn FnMut(&ScrubProgress) -> ControlFlow<()>,
    ) -> Result<ScrubReport> {
        let core = &self.core;
        let segments = core.layout.total_blocks / SEGMENT_BLOCKS;
        let mut progress = ScrubProgress { segment: from, segments, ..ScrubProgress::default() };
        while progress.segment < segments {
            let (checked, damaged) = core.scrub_segment(progress.segment)?;
            progress.segment += 1;
            progress.checked_bytes += checked * BLOCK_BYTES;
            progress.damaged_blocks += damaged;
            if damaged > 0 {
                core.name_damaged();
            }
            if checked > 0 && step(&progress).is_break() {
                return Ok(ScrubReport { progress, complete: false });
            }
        }
        Ok(ScrubReport { progress, complete: true })
    }
}

impl Core {
    /// Blocks compared and blocks damaged of one segment.
    fn scrub_segment(&self, segment: u64) -> Result<(u64, u64)> {
        // A block that has its checksum now is not used for anything else before the end.
        let _io = self.epochs.begin();
        let words = self.alloc.sealed().words(segment);
        let first = segment * SEGMENT_BLOCKS;
        let blocks: Vec<Phys> = (0..SEGMENT_BLOCKS)
            .filter(|b| words[crate::types::mem(b / 64)] >> (b % 64) & 1 == 1)
            .map(|b| Phys(first + b))
            .collect();
        let mut damaged = 0;
        for run in blocks.chunk_by(|a, b| a.plus(1) == *b) {
            let mut buf = AlignedBuf::reused(run.len() * BLOCK);
            if self.dev.read_at(run[0].offset(), &mut buf).is_ok() {
                for (p, block) in run.iter().zip(buf.chunks_exact(BLOCK)) {
                    damaged += u64::from(!self.is_good(*p, block)?);
                }
                continue;
            }
            // One by one: which of them it is.
            for p in run {
                let one = &mut buf[..BLOCK];
                let good = self.dev.read_at(p.offset(), one).is_ok() && self.is_good(*p, one)?;
                if !good {
                    self.damage.report(*p, None);
                }
                damaged += u64::from(!good);
            }
        }
        Ok((blocks.len() as u64, damaged))
    }

    fn is_good(&self, p: Phys, block: &[u8]) -> Result<bool> {
        let good = ready(self.checksums.matches(&Blocking(&*self.dev), p, block))?;
        if !good && self.alloc.sealed().has(p) {
            self.damage.report(p, None);
        }
        Ok(good || !self.alloc.sealed().has(p))
    }
}
