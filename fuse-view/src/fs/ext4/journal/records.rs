//! Descriptor, revoke and commit blocks.

use super::super::checksum::{crc32c, crc32c_without};
use super::superblock::{Checksums, JournalSuper, MAGIC};
use crate::fs::bytes::{be32, be64, u8_at};

const HEADER: usize = 12;
const REVOKE_HEADER: usize = 16;
/// Bytes of the checksum at the end of descriptors and revokes.
const TAIL: usize = 4;
const UUID: usize = 16;

mod flag {
    pub const ESCAPED: u32 = 1;
    pub const SAME_UUID: u32 = 2;
    pub const LAST: u32 = 8;
}

/// What a block of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Descriptor,
    Commit,
    Revoke,
}

/// The kind of a block of transaction `id`; None: it is none of its.
pub(super) fn kind_of(block: &[u8], id: u32) -> Option<Kind> {
    if be32(block, 0) != MAGIC || be32(block, 8) != id {
        return None;
    }
    match be32(block, 4) {
        1 => Some(Kind::Descriptor),
        2 => Some(Kind::Commit),
        5 => Some(Kind::Revoke),
        _ => None,
    }
}

/// A block that a descriptor announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    /// Where it belongs.
    pub block: u64,
    pub escaped: bool,
    /// Checksum of the data, 16 bits of it with version 2.
    checksum: u32,
}

impl Tag {
    /// Whether `data`, the block as it is in the log, is what transaction `id` wrote.
    pub fn sum_holds(&self, sb: &JournalSuper, id: u32, data: &[u8]) -> bool {
        let crc = || crc32c(crc32c(sb.seed, &id.to_be_bytes()), data);
        match sb.checksums {
            Checksums::V2 => crc() & 0xFFFF == self.checksum,
            Checksums::V3 => crc() == self.checksum,
            Checksums::None | Checksums::V1 => true,
        }
    }
}

/// The tags of a descriptor, in the order of the blocks that follow it.
pub(super) fn tags(sb: &JournalSuper, block: &[u8]) -> Vec<Tag> {
    let tag_bytes = match sb.checksums {
        Checksums::V3 => 16,
        checksums => 8 + 2 * usize::from(checksums == Checksums::V2) + 4 * usize::from(sb.wide),
    };
    let end = block.len() - if sb.sums_blocks() { TAIL } else { 0 };
    let be16 = |at| be32(block, at) >> 16;
    let mut found = Vec::new();
    let mut at = HEADER;
    while at + tag_bytes <= end {
        let low = u64::from(be32(block, at));
        let (flags, checksum) = match sb.checksums {
            Checksums::V3 => (be32(block, at + 4), be32(block, at + 12)),
            _ => (be16(at + 6), be16(at + 4)),
        };
        let high = if sb.wide { u64::from(be32(block, at + 8)) << 32 } else { 0 };
        found.push(Tag { block: low | high, escaped: flags & flag::ESCAPED != 0, checksum });
        at += tag_bytes + if flags & flag::SAME_UUID == 0 { UUID } else { 0 };
        if flags & flag::LAST != 0 {
            break;
        }
    }
    found
}

/// Whether the checksum at the end of a descriptor or revoke block is right, where there is one.
pub(super) fn tail_holds(sb: &JournalSuper, block: &[u8]) -> bool {
    let at = block.len() - TAIL;
    !sb.sums_blocks() || be32(block, at) == crc32c_without(sb.seed, block, at, TAIL)
}

/// The blocks that a revoke block names; None: it claims more than it holds.
pub(super) fn revoked(sb: &JournalSuper, block: &[u8]) -> Option<Vec<u64>> {
    let used = usize::try_from(be32(block, HEADER)).ok()?;
    let room = block.len() - if sb.sums_blocks() { TAIL } else { 0 };
    if used > room {
        return None;
    }
    let size = if sb.wide { 8 } else { 4 };
    let numbers = block.get(REVOKE_HEADER..used).unwrap_or_default().chunks_exact(size);
    Some(numbers.map(|n| if sb.wide { be64(n, 0) } else { u64::from(be32(n, 0)) }).collect())
}

/// A commit block.
pub(super) struct Commit<'a>(pub &'a [u8]);

impl Commit<'_> {
    /// When it was written, in seconds.
    pub fn seconds(&self) -> u64 {
        be64(self.0, 48)
    }

    /// Whether its checksum is right; `sum` is the CRC of the transaction, used by version 1.
    pub fn sum_holds(&self, sb: &JournalSuper, sum: u32) -> bool {
        const AT: usize = 16;
        let stored = be32(self.0, AT);
        match sb.checksums {
            Checksums::None => true,
            Checksums::V1 => {
                let kind = (u8_at(self.0, 12), u8_at(self.0, 13));
                (kind == (1, 4) && stored == sum) || (kind == (0, 0) && stored == 0)
            }
            Checksums::V2 | Checksums::V3 => {
                // Of a torn commit block the part that counts may be there, and old bytes behind it.
                const COUNTS: usize = 64;
                let mut head = vec![0; self.0.len()];
                head[..COUNTS].copy_from_slice(&self.0[..COUNTS]);
                [self.0, &head].iter().any(|block| stored == crc32c_without(sb.seed, block, AT, 4))
            }
        }
    }
}

/// The CRC of version 1, most significant bit first, continued from `seed`.
pub(super) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        let mut byte = 0u32;
        while i < 256 {
            let mut crc = byte << 24;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000_0000 != 0 { (crc << 1) ^ 0x04C1_1DB7 } else { crc << 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(seed, |crc, &byte| (crc << 8) ^ TABLE[usize::from(crc.to_be_bytes()[0] ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_crc() {
        // The check value that the catalogues of CRCs give for CRC-32/MPEG-2.
        assert_eq!(crc32_be(!0, b"123456789"), 0x0376_E6E7);
    }
}
