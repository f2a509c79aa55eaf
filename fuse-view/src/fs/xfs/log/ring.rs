//! The log as a ring of sectors, and the records in it.
//!
//! A record is a header of one or more sectors and its data; both may go over the end of the ring. In each sector of
//! data the first word was replaced by the cycle; the header has the words that belong there.

use super::super::superblock::Superblock;
use crate::fs::bytes::{be32, be64, bytes16, le32};
use crate::{BlockRead, Error, Result};

/// The unit of the log.
pub(super) const SECTOR: usize = 512;
const MAGIC: u32 = 0xFEED_BABE;
/// Data that one sector of header has words for.
const HEADER_COVERS: u32 = 32768;
/// Largest record that the kernel writes or reads.
const MAX_RECORD_BYTES: u32 = 256 << 10;
/// Sectors read at once in a search.
const BULK_SECTORS: u64 = 256;

/// The log of one file system.
pub(super) struct Ring<'a> {
    dev: &'a dyn BlockRead,
    start: u64,
    /// Sectors.
    pub len: u64,
    pub v2: bool,
    v5: bool,
    uuid: [u8; 16],
}

/// The first sector of a record.
#[derive(Debug, Clone)]
pub(super) struct Header {
    raw: Vec<u8>,
    /// Bytes of data.
    pub len: u32,
    /// Place of the record: cycle and sector.
    pub lsn: u64,
    /// Place of the oldest change that is not yet on disk.
    pub tail_lsn: u64,
    pub ops: u32,
    /// Size of the buffer it was written from.
    pub size: u32,
    /// Sectors of header.
    pub sectors: u64,
}

impl Header {
    /// A header that says nothing but this.
    #[cfg(test)]
    pub fn of_operations(lsn: u64, ops: u32) -> Self {
        Self { raw: Vec::new(), len: 0, lsn, tail_lsn: 0, ops, size: 0, sectors: 1 }
    }

    /// Sectors of header and data.
    pub fn total(&self) -> u64 {
        self.sectors + u64::from(self.len).div_ceil(SECTOR as u64)
    }
}

/// A whole record, its stamps replaced.
pub(super) struct Record {
    pub header: Header,
    pub data: Vec<u8>,
}

/// How strictly the checksum of a record is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    /// In a search: a record without one passes.
    IfThere,
    /// In replay: version 5 must have one; version 4 is believed without.
    Must,
}

/// The sector that an LSN names.
pub(super) fn sector_of(lsn: u64) -> u64 {
    lsn & 0xFFFF_FFFF
}

/// The cycle that a sector was written in.
pub(super) fn cycle_of(sector: &[u8]) -> u32 {
    match be32(sector, 0) {
        MAGIC => be32(sector, 4),
        cycle => cycle,
    }
}

impl<'a> Ring<'a> {
    /// The log inside the file system.
    pub fn new(dev: &'a dyn BlockRead, sb: &Superblock) -> Result<Self> {
        let start = sb
            .byte_of(sb.log_start, u64::from(sb.log_blocks))
            .ok_or_else(|| bad("it does not lie in one allocation group"))?;
        let len = u64::from(sb.log_blocks) << (sb.block_bits - 9);
        if len < 64 || start + len * SECTOR as u64 > dev.len() {
            return Err(bad("it is too small, or leaves the image"));
        }
        Ok(Self { dev, start, len, v2: sb.log_v2, v5: sb.v5(), uuid: sb.uuid })
    }

    /// Sectors from `at` on, over the end of the ring.
    pub fn read(&self, at: u64, count: u64) -> Result<Vec<u8>> {
        let bytes = |sectors: u64| usize::try_from(sectors).unwrap_or(usize::MAX) * SECTOR;
        let (at, count) = (at % self.len, count.min(self.len));
        let mut buf = vec![0; bytes(count)];
        let upto = bytes(count.min(self.len - at));
        self.dev.read_at(self.start + at * SECTOR as u64, &mut buf[..upto])?;
        if upto < buf.len() {
            self.dev.read_at(self.start, &mut buf[upto..])?;
        }
        Ok(buf)
    }

    /// The cycle of sector `at`.
    pub fn cycle(&self, at: u64) -> Result<u32> {
        Ok(cycle_of(&self.read(at, 1)?))
    }

    /// The first of `count` sectors from `at` on, not over the end, of this cycle.
    pub fn first_of_cycle(&self, at: u64, count: u64, cycle: u32) -> Result<Option<u64>> {
        let end = (at + count).min(self.len);
        for start in (at..end).step_by(usize::try_from(BULK_SECTORS).unwrap_or(1)) {
            let sectors = self.read(start, BULK_SECTORS.min(end - start))?;
            if let Some(i) = sectors.chunks(SECTOR).position(|s| cycle_of(s) == cycle) {
                return Ok(Some(start + i as u64));
            }
        }
        Ok(None)
    }

    /// The last header in `start..end`, not over the end of the ring.
    pub fn last_header(&self, start: u64, end: u64) -> Result<Option<u64>> {
        let mut end = end;
        while end > start {
            let from = end.saturating_sub(BULK_SECTORS).max(start);
            let sectors = self.read(from, end - from)?;
            if let Some(i) = sectors.chunks(SECTOR).rposition(|s| be32(s, 0) == MAGIC) {
                return Ok(Some(from + i as u64));
            }
            end = from;
        }
        Ok(None)
    }

    /// The first header in the `count` sectors from `at` on, over the end of the ring.
    pub fn next_header(&self, at: u64, count: u64) -> Result<Option<u64>> {
        let mut done = 0;
        while done < count {
            let sectors = self.read(at + done, BULK_SECTORS.min(count - done))?;
            if let Some(i) = sectors.chunks(SECTOR).position(|s| be32(s, 0) == MAGIC) {
                return Ok(Some((at + done + i as u64) % self.len));
            }
            done += BULK_SECTORS;
        }
        Ok(None)
    }

    /// The header at sector `at`, of this file system.
    pub fn header(&self, at: u64) -> Result<Header> {
        let raw = self.read(at, 1)?;
        let refuse = |what: &str| Err(bad(&format!("the record at sector {at} {what}")));
        if be32(&raw, 0) != MAGIC {
            return refuse("has no header");
        }
        let version = be32(&raw, 8);
        if version == 0 || version & !3 != 0 {
            return refuse("is of an unknown version");
        }
        if be32(&raw, 300) != 1 {
            return refuse("was written by another kind of machine");
        }
        if bytes16(&raw, 304) != self.uuid {
            return refuse("belongs to another file system");
        }
        let (len, ops) = (be32(&raw, 12), be32(&raw, 40));
        let size = if version & 2 != 0 { be32(&raw, 320) } else { HEADER_COVERS };
        let size = if size == 0 { HEADER_COVERS } else { size };
        // mkfs writes one record with one operation that is longer than it says its buffer was.
        let fits = len <= size || (ops == 1 && len <= MAX_RECORD_BYTES);
        if len == 0 || len > i32::MAX as u32 || size > MAX_RECORD_BYTES || !fits {
            return refuse("is of impossible length");
        }
        let sectors = if size > HEADER_COVERS { u64::from(size.div_ceil(HEADER_COVERS)) } else { 1 };
        let (lsn, tail_lsn) = (be64(&raw, 16), be64(&raw, 24));
        Ok(Header { raw, len, lsn, tail_lsn, ops, size, sectors })
    }

    /// The record at sector `at`, its checksum verified and its stamps replaced.
    pub fn record(&self, at: u64, strict: Checksum) -> Result<Record> {
        let header = self.header(at)?;
        if header.total() > self.len {
            return Err(bad(&format!("the record at sector {at} is longer than the log")));
        }
        let more = self.read(at + 1, header.total() - 1)?;
        let (extended, data) = more.split_at(usize::try_from(header.sectors - 1).unwrap_or(0) * SECTOR);
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if !self.checksum_holds(&header, extended, &data[..len], strict) {
            return Err(bad(&format!("the record at sector {at} has a wrong checksum")));
        }
        let mut data = data.to_vec();
        for (i, sector) in data.chunks_mut(SECTOR).enumerate() {
            let word = match i.checked_sub(64) {
                None => header.raw.get(44 + i * 4..48 + i * 4),
                Some(beyond) => {
                    let at = beyond / 64 * SECTOR + 4 + beyond % 64 * 4;
                    extended.get(at..at + 4)
                }
            };
            let word = word.ok_or_else(|| bad(&format!("the record at sector {at} has too few words")))?;
            sector[..4].copy_from_slice(word);
        }
        data.truncate(len);
        Ok(Record { header, data })
    }

    /// The checksum of a record covers its header, as much of the extended ones as is used, and its data as stamped.
    fn checksum_holds(&self, header: &Header, extended: &[u8], data: &[u8], strict: Checksum) -> bool {
        let stored = le32(&header.raw, 32);
        if strict == Checksum::IfThere && stored == 0 {
            return true;
        }
        // Machines with 32 bits have a header shorter by its padding.
        let any = [328, 324].iter().any(|&end| {
            let mut crc = crc32c::crc32c(&header.raw[..32]);
            crc = crc32c::crc32c_append(crc, &[0; 4]);
            crc = crc32c::crc32c_append(crc, &header.raw[36..end]);
            let used = usize::try_from(header.len.div_ceil(HEADER_COVERS)).unwrap_or(1);
            for more in extended.chunks(SECTOR).take(used.saturating_sub(1)) {
                crc = crc32c::crc32c_append(crc, &more[..260]);
            }
            crc32c::crc32c_append(crc, data) == stored
        });
        any || (strict == Checksum::Must && !self.v5)
    }
}

pub(super) fn bad(what: &str) -> Error {
    Error::Corrupt(format!("xfs log: {what}"))
}
