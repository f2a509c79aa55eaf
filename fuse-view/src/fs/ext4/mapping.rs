//! Which block of the image holds which block of a file.

use super::Ext4;
use super::fast::Mapped;
use super::inode::{Inode, fit, flag};
use crate::fs::run::{Place, Run};
use crate::{Error, Result};
use std::ops::Range;

/// How far a run of data reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// While the blocks follow each other on the image.
    Contiguous,
    /// While there is data, wherever.
    AnyData,
}

impl Ext4 {
    /// The run that begins at block `block` of the file.
    pub(super) fn map(&self, inode: &Inode, block: u64, until: Until) -> Result<Run> {
        let run = match self.fast.inode(inode.ino).filter(|edit| !edit.map.is_empty()) {
            Some(edit) => match edit.map.get(block) {
                (Some(Mapped::Data(at)), end) => Run { len: end - block, place: Place::Data(at) },
                (Some(_), end) => Run { len: end - block, place: Place::Hole },
                (None, end) => {
                    let run = self.map_on_disk(inode, block, until)?;
                    Run { len: run.len.min(end - block), ..run }
                }
            },
            None => self.map_on_disk(inode, block, until)?,
        };
        if let Place::Data(start) = run.place {
            // With AnyData only the first block of a run of pointers is known here; the others are checked when read.
            let len = if until == Until::AnyData { 1 } else { run.len };
            if !self.sb.holds(start, len) {
                return Err(Error::Corrupt(format!(
                    "ext4 inode {}: block {block} of the file points outside of the file system",
                    inode.ino
                )));
            }
        }
        Ok(run)
    }

    /// As [`Ext4::map`], by what the inode itself says.
    fn map_on_disk(&self, inode: &Inode, block: u64, until: Until) -> Result<Run> {
        if inode.has(flag::EXTENTS) {
            self.map_extents(inode, block)
        } else {
            self.map_pointers(inode, block, until)
        }
    }

    /// As [`Ext4::map`], with neighbouring extents joined up to about `want` blocks.
    fn map_joined(&self, inode: &Inode, block: u64, want: u64) -> Result<Run> {
        let mut run = self.map(inode, block, Until::Contiguous)?;
        while let Place::Data(start) = run.place {
            if run.len >= want {
                break;
            }
            // The next run's own trouble is reported when reading gets there.
            match self.map(inode, block + run.len, Until::Contiguous) {
                Ok(next) if next.place == Place::Data(start + run.len) => run.len += next.len,
                _ => break,
            }
        }
        Ok(run)
    }

    /// Reads content through the mapping; short only at the end of the file.
    pub(super) fn read_mapped(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let bits = self.sb.block_bits;
        let len = fit(buf.len(), inode.size.saturating_sub(offset));
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = at & ((1 << bits) - 1);
            let want = ((len - done) as u64 + within).div_ceil(1 << bits);
            let run = self.map_joined(inode, at >> bits, want)?;
            let run_bytes = run.len.saturating_mul(1 << bits) - within;
            let piece = &mut buf[done..done + fit(len - done, run_bytes)];
            match run.place {
                Place::Hole => piece.fill(0),
                Place::Data(start) => self.dev.read_at((start << bits) + within, piece)?,
            }
            done += piece.len();
        }
        Ok(len)
    }

    /// The next range of bytes with data at or after `offset`, within the size.
    pub(super) fn next_mapped(&self, inode: &Inode, offset: u64) -> Result<Option<Range<u64>>> {
        let bits = self.sb.block_bits;
        let end_block = inode.size.div_ceil(1 << bits);
        let mut block = offset >> bits;
        let mut data: Option<Range<u64>> = None;
        while block < end_block {
            let run = self.map(inode, block, Until::AnyData)?;
            let next = block.saturating_add(run.len).min(end_block);
            match (run.place, &mut data) {
                (Place::Hole, Some(_)) => break,
                (Place::Hole, None) => {}
                (Place::Data(_), Some(range)) => range.end = next,
                (Place::Data(_), None) => data = Some(block..next),
            }
            block = next;
        }
        Ok(data.map(|blocks| (blocks.start << bits).max(offset)..(blocks.end << bits).min(inode.size)))
    }
}
