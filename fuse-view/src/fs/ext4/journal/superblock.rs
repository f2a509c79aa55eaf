//! The superblock of a journal, believed only after [`JournalSuper::verify`].

use super::super::checksum::{crc32c, crc32c_without};
use crate::fs::bytes::{be32, u8_at};
use std::ops::Range;

/// Magic of every block of a journal.
pub(super) const MAGIC: u32 = 0xC03B_3998;
/// Fewest blocks of a log.
const MIN_BLOCKS: u32 = 1024;
/// Blocks of the fast-commit area where the superblock does not say.
const DEFAULT_FAST_BLOCKS: u32 = 256;

mod incompat {
    pub const SIXTY_FOUR_BIT: u32 = 0x2;
    pub const ASYNC_COMMIT: u32 = 0x4;
    pub const CSUM_V2: u32 = 0x8;
    pub const CSUM_V3: u32 = 0x10;
    pub const FAST_COMMIT: u32 = 0x20;
    /// All of them; 0x1 says that there may be revoke blocks.
    pub const KNOWN: u32 = 0x3F;
}

/// How blocks of the journal are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksums {
    None,
    /// A CRC of each transaction in its commit block.
    V1,
    /// crc32c of every block, 16 bits of it in the tags.
    V2,
    /// crc32c of every block.
    V3,
}

/// What recovery needs of the journal's superblock.
#[derive(Debug, Clone)]
pub(super) struct JournalSuper {
    pub block_size: usize,
    /// First block of the log.
    pub first: u32,
    /// Block after the last of the log.
    pub last: u32,
    /// First transaction.
    pub sequence: u32,
    /// Where it begins; 0: the journal is empty.
    pub start: u32,
    pub errno: u32,
    pub checksums: Checksums,
    /// Seed of every checksum.
    pub seed: u32,
    /// Block numbers have 64 bits.
    pub wide: bool,
    pub async_commit: bool,
    /// Blocks of the fast commits; empty without the feature.
    pub fast: Range<u32>,
}

impl JournalSuper {
    /// Believes `raw`, 1024 bytes, of a journal of `blocks` blocks of `block_size` bytes.
    pub fn verify(raw: &[u8], block_size: usize, blocks: u64) -> Result<Self, String> {
        if be32(raw, 0) != MAGIC {
            return Err("there is none".into());
        }
        let features = |at| match be32(raw, 4) {
            3 => Ok(0),
            4 => Ok(be32(raw, at)),
            other => Err(format!("its block type is {other}")),
        };
        let (compat, incompat, ro_compat) = (features(0x24)?, features(0x28)?, features(0x2C)?);
        if incompat & !incompat::KNOWN != 0 || ro_compat != 0 {
            let unknown = incompat & !incompat::KNOWN;
            return Err(format!("unknown features, incompatible 0x{unknown:x}, read-only 0x{ro_compat:x}"));
        }
        let checksums = Self::checksums(raw, compat, incompat)?;
        if usize::try_from(be32(raw, 0x0C)) != Ok(block_size) {
            return Err(format!("its blocks are of {} bytes, not {block_size}", be32(raw, 0x0C)));
        }
        let (max_len, first) = (be32(raw, 0x10), be32(raw, 0x14));
        if u64::from(max_len) > blocks {
            return Err(format!("it claims {max_len} blocks, its file has {blocks}"));
        }
        let fast_commit = incompat & incompat::FAST_COMMIT != 0;
        let fast_blocks = match be32(raw, 0x54) {
            _ if !fast_commit => 0,
            0 => DEFAULT_FAST_BLOCKS,
            n => n,
        };
        let last = max_len.checked_sub(fast_blocks).filter(|&last| last >= MIN_BLOCKS);
        let Some(last) = last else { return Err(format!("a journal of {max_len} blocks is too short")) };
        let start = be32(raw, 0x1C);
        if first == 0 || first >= last || (start != 0 && !(first..last).contains(&start)) {
            return Err(format!("its log begins at block {first} or {start} of {last}"));
        }
        Ok(Self {
            block_size,
            first,
            last,
            sequence: be32(raw, 0x18),
            start,
            errno: be32(raw, 0x20),
            checksums,
            seed: crc32c(!0, &raw[0x30..0x40]),
            wide: incompat & incompat::SIXTY_FOUR_BIT != 0,
            async_commit: incompat & incompat::ASYNC_COMMIT != 0,
            // The block between the log and the fast commits is never used.
            fast: if fast_commit { last + 1..max_len } else { 0..0 },
        })
    }

    fn checksums(raw: &[u8], compat: u32, incompat: u32) -> Result<Checksums, String> {
        let has = |bit| incompat & bit != 0;
        let checksums = match (compat & 1 != 0, has(incompat::CSUM_V2), has(incompat::CSUM_V3)) {
            (false, false, false) => return Ok(Checksums::None),
            (true, false, false) => return Ok(Checksums::V1),
            (false, true, false) => Checksums::V2,
            (false, false, true) => Checksums::V3,
            _ => return Err("checksums of several versions at once".into()),
        };
        if u8_at(raw, 0x50) != 4 {
            return Err(format!("checksums of the unknown type {}", u8_at(raw, 0x50)));
        }
        if be32(raw, 0xFC) != crc32c_without(!0, raw, 0xFC, 4) {
            return Err("its checksum is wrong".into());
        }
        Ok(checksums)
    }

    /// Whether descriptors, revokes, commits and data blocks carry crc32c checksums.
    pub fn sums_blocks(&self) -> bool {
        matches!(self.checksums, Checksums::V2 | Checksums::V3)
    }

    /// The block after `block` by `count`, around the end of the log.
    pub fn advance(&self, block: u32, count: u32) -> u32 {
        let len = u64::from(self.last - self.first);
        let at = (u64::from(block - self.first) + u64::from(count)) % len;
        self.first + u32::try_from(at).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(kind: u32, fields: &[(usize, u32)]) -> Vec<u8> {
        let mut raw = vec![0; 1024];
        let defaults = [(0, MAGIC), (4, kind), (0xC, 4096), (0x10, 4096), (0x14, 1), (0x18, 7), (0x1C, 1)];
        for (at, value) in defaults.iter().chain(fields) {
            raw[*at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        raw
    }

    #[test]
    fn good_ones() {
        let sb = JournalSuper::verify(&raw(4, &[(0x28, 0x2 | 0x20)]), 4096, 4096).unwrap();
        assert_eq!((sb.first, sb.last, sb.fast.clone()), (1, 3840, 3841..4096));
        assert!(sb.wide && sb.checksums == Checksums::None);
        assert_eq!([sb.advance(3838, 1), sb.advance(3838, 2), sb.advance(3838, 2 + 3839)], [3839, 1, 1]);
        // The first version has no features, whatever stands in their place.
        let sb = JournalSuper::verify(&raw(3, &[(0x28, !0), (0x24, !0), (0x2C, !0)]), 4096, 4096).unwrap();
        assert!(!sb.wide && sb.fast.is_empty() && sb.last == 4096);
        assert_eq!(JournalSuper::verify(&raw(4, &[(0x24, 1)]), 4096, 5000).unwrap().checksums, Checksums::V1);
    }

    #[test]
    fn refused_by_name() {
        for (fields, why) in [
            (&[(0, 1)][..], "none"),
            (&[(4, 5)], "block type is 5"),
            (&[(0x28, 0x40)], "0x40"),
            (&[(0x2C, 1)], "read-only 0x1"),
            (&[(0xC, 1024)], "1024 bytes"),
            (&[(0x10, 4097)], "4097"),
            (&[(0x10, 1023)], "too short"),
            (&[(0x10, 1200), (0x28, 0x20)], "too short"),
            (&[(0x28, 0x20), (0x54, !0)], "too short"),
            (&[(0x14, 0)], "begins"),
            (&[(0x14, 4096)], "begins"),
            (&[(0x1C, 4096)], "begins"),
            (&[(0x28, 0x18)], "several"),
            (&[(0x28, 0x8), (0x24, 1)], "several"),
            (&[(0x28, 0x8)], "type 0"),
            (&[(0x28, 0x10), (0x50, 4 << 24)], "checksum is wrong"),
        ] {
            let refused = JournalSuper::verify(&raw(4, fields), 4096, 4096).unwrap_err();
            assert!(refused.contains(why), "{fields:?}: {refused}");
        }
    }
}
