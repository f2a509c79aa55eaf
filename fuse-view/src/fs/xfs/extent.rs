//! Extents: one record, a list of them, and which block of the image holds which block of a file.
//!
//! Facts: "XFS Algorithms & Data Structures", the chapter on data extents.

use super::inode::{Format, Inode, Which};
use super::{Xfs, fit};
use crate::fs::bytes::be64;
use crate::fs::run::{Place, Run};
use crate::{Error, Result};
use std::ops::Range;

/// Bytes of a record.
pub(super) const RECORD: usize = 16;
/// Blocks of a file are numbered with 54 bits.
pub(super) const END: u64 = 1 << 54;

/// One extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// First block of the file.
    pub offset: u64,
    /// File-system block number of its data.
    pub start: u64,
    /// Blocks.
    pub count: u64,
    /// Allocated, never written: reads as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// The record at index `i` of `records`.
    pub fn decode(records: &[u8], i: usize) -> Self {
        let (high, low) = (be64(records, i * RECORD), be64(records, i * RECORD + 8));
        Self {
            offset: high >> 9 & (END - 1),
            start: (high & 0x1FF) << 43 | low >> 21,
            count: low & 0x1F_FFFF,
            unwritten: high >> 63 == 1,
        }
    }

    /// Block of the file after the last.
    pub fn end(&self) -> u64 {
        self.offset + self.count
    }
}

/// What is found at a block of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The extent that holds it.
    Extent(Extent),
    /// A hole up to this block.
    Hole(u64),
}

impl Run {
    /// The run from `block` on.
    fn of(found: Found, block: u64) -> Self {
        match found {
            Found::Extent(extent) => {
                let skip = block - extent.offset;
                let place = if extent.unwritten { Place::Hole } else { Place::Data(extent.start + skip) };
                Self { len: extent.count - skip, place }
            }
            Found::Hole(end) => Self { len: end.saturating_sub(block).max(1), place: Place::Hole },
        }
    }
}

/// Checks that `count` records are in order, without overlap, and within `range`.
pub(super) fn in_order(records: &[u8], count: usize, range: &Range<u64>) -> bool {
    let mut free_from = range.start;
    (0..count).all(|i| {
        let extent = Extent::decode(records, i);
        let good = extent.count > 0 && extent.offset >= free_from && extent.end() <= range.end;
        free_from = extent.end();
        good
    })
}

/// The answer of `count` records in order that cover all up to `end`; `get` yields the record of an index.
pub(super) fn find_in(count: usize, get: impl Fn(usize) -> Extent, block: u64, end: u64) -> Found {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if get(middle).offset <= block { low = middle + 1 } else { high = middle }
    }
    if low > 0 {
        let found = get(low - 1);
        if block < found.end() {
            return Found::Extent(found);
        }
    }
    Found::Hole(if low < count { get(low).offset } else { end })
}

impl Xfs {
    /// The run that begins at block `block` of a fork.
    pub(super) fn map(&self, inode: &Inode, which: Which, block: u64) -> Result<Run> {
        if block >= END {
            return Ok(Run::of(Found::Hole(u64::MAX), block));
        }
        let run = Run::of(self.found(inode, which, block)?, block);
        if let Place::Data(start) = run.place
            && self.sb.byte_of(start, run.len).is_none()
        {
            return Err(Error::Corrupt(format!(
                "xfs inode {}: block {block} of the file points outside of the file system",
                inode.ino
            )));
        }
        Ok(run)
    }

    /// What is at block `block` of a fork.
    pub(super) fn found(&self, inode: &Inode, which: Which, block: u64) -> Result<Found> {
        if let Some(list) = self.completed.extents(inode.ino, which) {
            return Ok(find_in(list.len(), |i| list[i], block, END));
        }
        let Some(fork) = inode.fork(which) else { return Ok(Found::Hole(END)) };
        match fork.format {
            Format::Extents => {
                let records = inode.fork_bytes(fork);
                let count = fit(records.len() / RECORD, fork.extents);
                if !in_order(records, count, &(0..END)) {
                    return Err(Error::Corrupt(format!(
                        "xfs inode {}: its extents overlap, or are out of order",
                        inode.ino
                    )));
                }
                Ok(find_in(count, |i| Extent::decode(records, i), block, END))
            }
            Format::Tree => self.map_tree(inode, fork, block),
            Format::Local | Format::Device => Ok(Found::Hole(END)),
        }
    }

    /// As [`Xfs::map`], with neighbouring extents joined up to about `want` blocks.
    fn map_joined(&self, inode: &Inode, which: Which, block: u64, want: u64) -> Result<Run> {
        let mut run = self.map(inode, which, block)?;
        while let Place::Data(start) = run.place {
            if run.len >= want {
                break;
            }
            // The next run's own trouble is reported when reading gets there.
            match self.map(inode, which, block + run.len) {
                Ok(next) if next.place == Place::Data(start + run.len) => run.len += next.len,
                _ => break,
            }
        }
        // What lies in two allocation groups is not contiguous, whatever its numbers say.
        if let Place::Data(start) = run.place
            && self.sb.byte_of(start, run.len).is_none()
        {
            return self.map(inode, which, block);
        }
        Ok(run)
    }

    /// Reads content through the mapping, `limit` bytes long; short only at its end.
    pub(super) fn read_mapped(
        &self,
        inode: &Inode,
        which: Which,
        limit: u64,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        let bits = self.sb.block_bits;
        let len = fit(buf.len(), limit.saturating_sub(offset));
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = at & ((1 << bits) - 1);
            let want = ((len - done) as u64 + within).div_ceil(1 << bits);
            let run = self.map_joined(inode, which, at >> bits, want)?;
            let run_bytes = run.len.saturating_mul(1 << bits) - within;
            let piece = &mut buf[done..done + fit(len - done, run_bytes)];
            match run.place {
                Place::Hole => piece.fill(0),
                Place::Data(start) => {
                    let byte = self.sb.byte_of(start, run.len).unwrap_or(u64::MAX / 2);
                    self.image.read_at(byte + within, piece)?;
                }
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
            let run = self.map(inode, Which::Data, block)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: u64, start: u64, count: u64, unwritten: bool) -> Vec<u8> {
        let high = u64::from(unwritten) << 63 | offset << 9 | start >> 43;
        let low = start << 21 | count;
        [high.to_be_bytes(), low.to_be_bytes()].concat()
    }

    #[test]
    fn records_are_taken_apart() {
        let all = Extent { offset: END - 9, start: (1 << 52) - 3, count: 0x1F_FFFE, unwritten: true };
        let raw = record(all.offset, all.start, all.count, all.unwritten);
        assert_eq!(Extent::decode(&raw, 0), all);
    }

    #[test]
    fn a_list_answers_for_every_block() {
        let raw =
            [record(10, 100, 5, false), record(15, 200, 5, true), record(30, 300, 1 << 20, false)].concat();
        assert!(in_order(&raw, 3, &(0..END)));
        let check = |block, len, place| {
            let run = Run::of(find_in(3, |i| Extent::decode(&raw, i), block, END), block);
            assert_eq!(run, Run { len, place }, "block {block}");
        };
        check(5, 5, Place::Hole);
        check(10, 5, Place::Data(100));
        check(14, 1, Place::Data(104));
        check(15, 5, Place::Hole);
        check(20, 10, Place::Hole);
        check(31, (1 << 20) - 1, Place::Data(301));
        check(END - 1, 1, Place::Hole);
    }

    #[test]
    fn lies_are_refused() {
        let check = |what: &str, records: &[Vec<u8>], range: Range<u64>| {
            assert!(!in_order(&records.concat(), records.len(), &range), "{what}");
        };
        let good = [record(10, 100, 5, false), record(15, 200, 5, false)];
        check("overlap", &[record(10, 100, 6, false), good[1].clone()], 0..END);
        check("order", &[good[1].clone(), good[0].clone()], 0..END);
        check("empty", &[record(10, 100, 0, false)], 0..END);
        check("before the range", &good, 11..END);
        check("past the range", &good, 0..19);
        check("past the end", &[record(END - 1, 1, 2, false)], 0..END);
    }
}
