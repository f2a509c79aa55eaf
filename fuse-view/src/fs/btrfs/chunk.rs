//! Chunks: where the logical addresses that all trees use lie on the device, and in how many copies.

use super::key::{KEY_BYTES, Key, id, kind};
use crate::fs::bytes::{le16, le64};
use crate::{Error, Result};

/// Most chunks of one file system: 2⁴⁰ bytes hold about a thousand.
const MAX_CHUNKS: usize = 1 << 20;
/// Bytes of a chunk item before its stripes, and of a stripe.
const HEAD: usize = 48;
const STRIPE: usize = 32;

/// Bits of a chunk's type.
pub(super) mod profile {
    pub const DATA: u64 = 1;
    pub const METADATA: u64 = 1 << 2;
    pub const RAID0: u64 = 1 << 3;
    pub const RAID1: u64 = 1 << 4;
    pub const DUP: u64 = 1 << 5;
    pub const RAID10: u64 = 1 << 6;
    pub const RAID5: u64 = 1 << 7;
    pub const RAID6: u64 = 1 << 8;
    pub const RAID1C3: u64 = 1 << 9;
    pub const RAID1C4: u64 = 1 << 10;
}

/// Where a stripe begins.
#[derive(Debug, Clone, Copy)]
struct Stripe {
    device: u64,
    offset: u64,
}

/// A range of logical addresses that is laid out in one way.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub start: u64,
    pub len: u64,
    pub kind: u64,
    stripe_len: u64,
    sub_stripes: u64,
    stripes: Vec<Stripe>,
}

/// A piece of a copy that lies in one piece on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Offset on the device.
    pub offset: u64,
    /// Bytes from there on.
    pub len: u64,
}

impl Chunk {
    /// The chunk of an item whose key ends in `start`.
    fn parse(start: u64, item: &[u8]) -> Result<Self> {
        let bad = |what: &str| Error::Corrupt(format!("btrfs chunk at {start}: {what}"));
        let count = usize::from(le16(item, 44));
        let chunk = Self {
            start,
            len: le64(item, 0),
            kind: le64(item, 24),
            stripe_len: le64(item, 16),
            sub_stripes: u64::from(le16(item, 46)),
            stripes: (0..count)
                .map(|i| HEAD + i * STRIPE)
                .take_while(|at| at + STRIPE <= item.len())
                .map(|at| Stripe { device: le64(item, at), offset: le64(item, at + 8) })
                .collect(),
        };
        if count == 0 || chunk.stripes.len() != count {
            return Err(bad("its stripes do not fit its item"));
        }
        if chunk.len == 0 || start.checked_add(chunk.len).is_none() {
            return Err(bad("its length is impossible"));
        }
        if !chunk.stripe_len.is_power_of_two() || !(4096..=1 << 30).contains(&chunk.stripe_len) {
            return Err(bad("its stripe length is impossible"));
        }
        if chunk.kind & profile::RAID10 != 0
            && (chunk.sub_stripes == 0 || !(count as u64).is_multiple_of(chunk.sub_stripes))
        {
            return Err(bad("its sub-stripes do not fit its stripes"));
        }
        Ok(chunk)
    }

    /// How many copies there are.
    pub fn copies(&self) -> usize {
        const COPIED: u64 = profile::RAID1 | profile::DUP | profile::RAID1C3 | profile::RAID1C4;
        if self.kind & COPIED != 0 {
            self.stripes.len()
        } else if self.kind & profile::RAID10 != 0 {
            usize::try_from(self.sub_stripes).unwrap_or(1)
        } else {
            1
        }
    }

    /// Bytes of each stripe.
    pub fn stripe_bytes(&self) -> u64 {
        let spread = self.kind & (profile::RAID0 | profile::RAID10) != 0;
        let parts = if spread { self.stripes.len() / self.copies().max(1) } else { 1 };
        self.len / (parts as u64).max(1)
    }

    /// Where its stripes on `device` begin.
    pub fn stripes_on(&self, device: u64) -> impl Iterator<Item = u64> {
        self.stripes.iter().filter(move |stripe| stripe.device == device).map(|stripe| stripe.offset)
    }

    /// Where `copy` of the bytes at logical address `at`, which must lie in this chunk, is on `device`.
    fn place(&self, at: u64, copy: usize, device: u64) -> Result<Place> {
        let within = at - self.start;
        let rest = self.len - within;
        let (number, row) = (within / self.stripe_len, within % self.stripe_len);
        let count = self.stripes.len() as u64;
        let (index, skip, len) = if self.kind & (profile::RAID5 | profile::RAID6) != 0 {
            return Err(Error::Unsupported("btrfs chunks of RAID5 and RAID6 are not read".into()));
        } else if self.kind & profile::RAID10 != 0 {
            let factor = count / self.sub_stripes;
            let index = (number % factor) * self.sub_stripes + copy as u64;
            (index, number / factor * self.stripe_len + row, self.stripe_len - row)
        } else if self.kind & profile::RAID0 != 0 {
            (number % count, number / count * self.stripe_len + row, self.stripe_len - row)
        } else {
            (copy as u64, within, rest)
        };
        let stripe = usize::try_from(index).ok().and_then(|index| self.stripes.get(index));
        let stripe =
            stripe.ok_or_else(|| Error::Corrupt(format!("btrfs chunk at {}: no copy {copy}", self.start)))?;
        if stripe.device != device {
            return Err(Error::Unsupported(format!(
                "btrfs chunk at {}: copy {copy} is on device {}, which is not this image",
                self.start, stripe.device
            )));
        }
        let offset = stripe.offset.checked_add(skip);
        let offset =
            offset.ok_or_else(|| Error::Corrupt(format!("btrfs chunk at {}: beyond all", self.start)))?;
        Ok(Place { offset, len: len.min(rest) })
    }
}

/// All chunks of a file system, by address.
#[derive(Debug, Clone, Default)]
pub(super) struct ChunkMap {
    chunks: Vec<Chunk>,
    device: u64,
}

impl ChunkMap {
    /// The chunks that the superblock itself holds: enough to read the tree of all of them.
    pub fn of_superblock(array: &[u8], device: u64) -> Result<Self> {
        let mut map = Self { chunks: Vec::new(), device };
        let mut rest = array;
        while !rest.is_empty() {
            let key = Key::read(rest, 0);
            let item = rest.get(KEY_BYTES..).unwrap_or_default();
            let len = HEAD + usize::from(le16(item, 44)) * STRIPE;
            let bad = || Error::Corrupt("btrfs superblock: its system chunks are cut off".into());
            if !key.is(id::FIRST_CHUNK_TREE, kind::CHUNK) {
                return Err(bad());
            }
            map.add(key.offset, item.get(..len).ok_or_else(bad)?)?;
            rest = &item[len..];
        }
        Ok(map)
    }

    /// Adds the chunk of an item; one that is there already stays.
    pub fn add(&mut self, start: u64, item: &[u8]) -> Result<()> {
        let chunk = Chunk::parse(start, item)?;
        let at = self.chunks.partition_point(|other| other.start < start);
        let before = at.checked_sub(1).and_then(|i| self.chunks.get(i));
        if before.is_some_and(|other| other.start + other.len > start) {
            return Err(Error::Corrupt(format!("btrfs chunk at {start}: it overlaps the one before")));
        }
        match self.chunks.get(at) {
            Some(other) if other.start == start => return Ok(()),
            Some(other) if start + chunk.len > other.start => {
                return Err(Error::Corrupt(format!("btrfs chunk at {start}: it overlaps the one after")));
            }
            _ => {}
        }
        if self.chunks.len() >= MAX_CHUNKS {
            return Err(Error::Corrupt(format!("btrfs: more than {MAX_CHUNKS} chunks")));
        }
        self.chunks.insert(at, chunk);
        Ok(())
    }

    /// The chunk that holds logical address `at`.
    pub fn chunk(&self, at: u64) -> Result<&Chunk> {
        let index = self.chunks.partition_point(|chunk| chunk.start <= at);
        let chunk = index.checked_sub(1).and_then(|i| self.chunks.get(i));
        chunk
            .filter(|chunk| at - chunk.start < chunk.len)
            .ok_or_else(|| Error::Corrupt(format!("btrfs: no chunk holds logical address {at}")))
    }

    /// Where `copy` of the bytes at `at` is.
    pub fn place(&self, at: u64, copy: usize) -> Result<Place> {
        self.chunk(at)?.place(at, copy, self.device)
    }

    /// The device that is read.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// All chunks in the order of their addresses.
    pub fn all(&self) -> &[Chunk] {
        &self.chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 64 << 10;

    /// A chunk item: the device of stripe i is always 1, its offset `(i + 1) << 30`.
    fn item(len: u64, kind: u64, stripes: u16, sub: u16) -> Vec<u8> {
        let mut out = vec![0; HEAD + usize::from(stripes) * STRIPE];
        out[..8].copy_from_slice(&len.to_le_bytes());
        out[16..24].copy_from_slice(&UNIT.to_le_bytes());
        out[24..32].copy_from_slice(&kind.to_le_bytes());
        out[44..46].copy_from_slice(&stripes.to_le_bytes());
        out[46..48].copy_from_slice(&sub.to_le_bytes());
        for i in 0..usize::from(stripes) {
            let at = HEAD + i * STRIPE;
            out[at..at + 8].copy_from_slice(&1u64.to_le_bytes());
            out[at + 8..at + 16].copy_from_slice(&((i as u64 + 1) << 30).to_le_bytes());
        }
        out
    }

    fn check(kind: u64, stripes: u16, sub: u16, at: u64, copy: usize, offset: u64, len: u64) {
        let mut map = ChunkMap { chunks: Vec::new(), device: 1 };
        map.add(0, &item(16 * UNIT, kind, stripes, sub)).unwrap();
        assert_eq!(map.place(at, copy).unwrap(), Place { offset, len }, "{kind} {at} {copy}");
    }

    #[test]
    fn layouts() {
        check(0, 1, 1, 5 * UNIT + 7, 0, (1 << 30) + 5 * UNIT + 7, 11 * UNIT - 7);
        check(profile::DUP, 2, 1, 7, 1, (2 << 30) + 7, 16 * UNIT - 7);
        check(profile::RAID1C3, 3, 1, 7, 2, (3 << 30) + 7, 16 * UNIT - 7);
        check(profile::RAID0, 3, 1, 4 * UNIT + 9, 0, (2 << 30) + UNIT + 9, UNIT - 9);
        check(profile::RAID10, 4, 2, 5 * UNIT + 1, 1, (4 << 30) + 2 * UNIT + 1, UNIT - 1);
    }

    #[test]
    fn refused() {
        let mut map = ChunkMap { chunks: Vec::new(), device: 2 };
        map.add(4 * UNIT, &item(4 * UNIT, profile::RAID5, 3, 1)).unwrap();
        map.add(16 * UNIT, &item(4 * UNIT, 0, 1, 1)).unwrap();
        assert!(matches!(map.place(5 * UNIT, 0), Err(Error::Unsupported(why)) if why.contains("RAID5")));
        assert!(matches!(map.place(17 * UNIT, 0), Err(Error::Unsupported(why)) if why.contains("device 1")));
        for at in [0, 4 * UNIT - 1, 8 * UNIT, 20 * UNIT, u64::MAX] {
            assert!(matches!(map.place(at, 0), Err(Error::Corrupt(_))), "{at}");
        }
        for (start, bad) in [
            (7 * UNIT, item(UNIT, 0, 1, 1)),
            (3 * UNIT, item(2 * UNIT, 0, 1, 1)),
            (0, item(0, 0, 1, 1)),
            (0, item(UNIT, 0, 0, 1)),
            (0, item(UNIT, profile::RAID10, 3, 2)),
            (u64::MAX, item(UNIT, 0, 1, 1)),
            (0, item(UNIT, 0, 2, 1)[..HEAD + STRIPE].to_vec()),
        ] {
            assert!(map.add(start, &bad).is_err());
        }
        assert!(ChunkMap::of_superblock(&[0; 100], 1).is_err());
        assert_eq!(map.all().len(), 2);
    }
}
