//! Where the log ends and where it begins: head and tail.
//!
//! The head is found by the cycles of sectors, then moved back over what was being written when it was cut; the last
//! whole record before it names the tail.

use super::ring::{Checksum, Header, Ring, SECTOR, bad, sector_of};
use crate::Result;

/// Records that can be in flight at once.
const MAX_IN_FLIGHT: usize = 8;
/// Flag of the operation that a clean unmount leaves.
const UNMOUNT: u8 = 0x20;

/// What there is to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// Nothing.
    Clean,
    /// The records from the first sector up to the second, over the end of the ring.
    Dirty { tail: u64, head: u64 },
}

/// The last record before the head.
struct Last {
    at: u64,
    header: Header,
}

/// Why a walk over records stopped.
struct BadRecord {
    at: u64,
}

impl Ring<'_> {
    /// Finds both ends.
    pub fn ends(&self) -> Result<Ends> {
        let Some(mut head) = self.head()? else { return Ok(Ends::Clean) };
        let mut last = self.last_record(head)?;
        if self.is_unmount(&last, head)? {
            return Ok(Ends::Clean);
        }
        let mut tail = self.tail_of(&last)?;
        // What was in flight may be torn: the first bad record is where the log really ends.
        if let Some(start) = self.in_flight(head, tail)?
            && let Err(torn) = self.check_records(start, head)?
        {
            head = torn.at;
            last = self.last_record(head)?;
            tail = self.tail_of(&last)?;
            if tail == head || self.is_unmount(&last, head)? {
                return Ok(Ends::Clean);
            }
        }
        if tail == head {
            return Ok(Ends::Clean);
        }
        let tail = self.checked_tail(head, tail, last.header.size)?;
        Ok(Ends::Dirty { tail, head })
    }

    /// Sectors from `from` forward to `to`.
    pub fn distance(&self, from: u64, to: u64) -> u64 {
        (to + self.len - from) % self.len
    }

    /// Sectors looked at around a head found by cycles: as much as can be in flight.
    fn window(&self) -> u64 {
        if self.v2 { 4096 } else { 512 }
    }

    /// Sectors of the longest record.
    fn longest(&self) -> u64 {
        if self.v2 { 512 } else { 64 }
    }

    /// The sector after the last one written; None: the log was never written to.
    fn head(&self) -> Result<Option<u64>> {
        let (first, last) = (self.cycle(0)?, self.cycle(self.len - 1)?);
        if first == 0 {
            return Ok(None);
        }
        let found = if last == 0 { self.head_before_zeros()? } else { self.head_between(first, last)? };
        Ok(Some(self.before_partial(found, last == 0)? % self.len))
    }

    /// By bisection, a sector of `cycle` with none of it before, if the cycles are in order.
    fn bisect(&self, cycle: u32) -> Result<u64> {
        let (mut low, mut high) = (0, self.len - 1);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.cycle(middle)? == cycle { high = middle } else { low = middle }
        }
        Ok(high)
    }

    /// In its first cycle the log ends where it was never written.
    fn head_before_zeros(&self) -> Result<u64> {
        let head = self.bisect(0)?;
        let start = head.saturating_sub(self.window());
        Ok(self.first_of_cycle(start, head - start, 0)?.unwrap_or(head))
    }

    fn head_between(&self, first: u32, last: u32) -> Result<u64> {
        // The end of the ring is the head, unless the last cycle has a hole before it; or the new cycle ends where the
        // last one begins.
        let (head, stop) =
            if first == last { (self.len, last.wrapping_sub(1)) } else { (self.bisect(last)?, last) };
        let window = self.window().min(self.len);
        if head >= window {
            return Ok(self.first_of_cycle(head - window, window, stop)?.unwrap_or(head));
        }
        let start = self.len - (window - head);
        if let Some(hole) = self.first_of_cycle(start, window - head, stop.wrapping_sub(1))? {
            return Ok(hole);
        }
        Ok(self.first_of_cycle(0, head, stop)?.unwrap_or(head))
    }

    /// A head in the middle of a record moves to its start.
    fn before_partial(&self, head: u64, first_cycle: bool) -> Result<u64> {
        let start = head.saturating_sub(self.longest());
        let none = || bad("there is no record before its head");
        if let Some(at) = self.last_header(start, head)? {
            let whole = head - at == self.header(at)?.total();
            return Ok(if whole { head } else { at });
        }
        if start > 0 || first_cycle {
            return Err(none());
        }
        let start = self.len - (self.longest() - head).min(self.len);
        let at = self.last_header(start, self.len)?.ok_or_else(none)?;
        let whole = self.len - at + head == self.header(at)?.total();
        Ok(if whole { head } else { at })
    }

    /// The last header before `head`, anywhere in the ring.
    fn last_record(&self, head: u64) -> Result<Last> {
        let at =
            self.header_back(head, self.len)?.ok_or_else(|| bad("there is no record before its head"))?;
        Ok(Last { at, header: self.header(at)? })
    }

    fn tail_of(&self, last: &Last) -> Result<u64> {
        let tail = sector_of(last.header.tail_lsn);
        if tail >= self.len {
            return Err(bad("its tail lies behind its end"));
        }
        Ok(tail)
    }

    /// Whether the last record says that the file system was unmounted.
    fn is_unmount(&self, last: &Last, head: u64) -> Result<bool> {
        if (last.at + last.header.total()) % self.len != head || last.header.ops != 1 {
            return Ok(false);
        }
        let data = self.read(last.at + last.header.sectors, 1)?;
        // The flags are in the third word, which no stamp replaces.
        Ok(data[9] & UNMOUNT != 0)
    }

    /// The last header in the `count` sectors before `at`, over the start of the ring.
    fn header_back(&self, at: u64, count: u64) -> Result<Option<u64>> {
        let direct = count.min(at);
        if let Some(found) = self.last_header(at - direct, at)? {
            return Ok(Some(found));
        }
        self.last_header(self.len - (count - direct).min(self.len), self.len)
    }

    /// Where the records begin that may have been in flight when the log was cut.
    fn in_flight(&self, head: u64, tail: u64) -> Result<Option<u64>> {
        let (mut at, mut left, mut found) = (head, self.distance(tail, head), None);
        for _ in 0..MAX_IN_FLIGHT {
            let Some(before) = self.header_back(at, left)? else { break };
            left -= self.distance(before, at);
            at = before;
            found = Some(before);
        }
        Ok(found)
    }

    /// Checks the records from `start` up to `head`; the first bad one is the answer of the inner result.
    fn check_records(&self, start: u64, head: u64) -> Result<std::result::Result<(), BadRecord>> {
        let mut at = start;
        let mut left = self.distance(start, head);
        while left > 0 {
            match self.record(at, Checksum::IfThere) {
                Ok(record) if record.header.total() <= left => {
                    left -= record.header.total();
                    at = (at + record.header.total()) % self.len;
                }
                Err(e @ crate::Error::Io { .. }) => return Err(e),
                _ => return Ok(Err(BadRecord { at })),
            }
        }
        Ok(Ok(()))
    }

    /// The tail may have been written over by what was in flight: then it is the next record.
    fn checked_tail(&self, head: u64, tail: u64, size: u32) -> Result<u64> {
        let none = || bad("there is no record at its tail");
        let mut tail = self.next_header(tail, self.distance(tail, head))?.ok_or_else(none)?;
        let reach = MAX_IN_FLIGHT as u64 * u64::from(size) / SECTOR as u64;
        while let Err(wrong) = self.check_records(tail, head)? {
            if self.distance(head, wrong.at) > reach {
                return Err(bad(&format!("the record at sector {} is damaged", wrong.at)));
            }
            let after = (wrong.at + 1) % self.len;
            tail = self.next_header(after, self.distance(after, head))?.ok_or_else(none)?;
        }
        Ok(tail)
    }
}
