//! The superblock: geometry and features, believed only after [`Superblock::read`].
//!
//! Facts: "XFS Algorithms & Data Structures", the chapters on allocation groups, with the features that came later.

use super::checksum;
use super::image::Image;
use crate::fs::bytes::{be16, be32, be64, bytes16, u8_at};
use crate::fs::features;
use crate::{Error, Ino, Result};

/// Features of version 5 that a reader must know.
pub(super) mod incompat {
    pub const FTYPE: u32 = 0x1;
    pub const SPARSE_INODES: u32 = 0x2;
    pub const META_UUID: u32 = 0x4;
    pub const NEEDS_REPAIR: u32 = 0x10;
    /// All that is read. Sparse inodes (2), bigtime (8), nrext64 (0x20), exchange of ranges (0x40), parent pointers
    /// (0x80) and the metadata directory (0x100) are told by each object, or change nothing for a reader.
    pub const KNOWN: u32 = 0x1FF;
}

/// Names of incompatible features that are refused.
const REFUSED: &[(u32, &str)] = &[(0x200, "zoned"), (0x400, "zone_gaps")];

/// Bits of `versionnum`.
mod version {
    pub const LOG_V2: u16 = 0x400;
    pub const DIR_V2: u16 = 0x2000;
    pub const CASE_INSENSITIVE: u16 = 0x4000;
    pub const MORE_BITS: u16 = 0x8000;
}

/// Bits of `features2`, for version 4.
const FEATURES2_FTYPE: u32 = 0x200;
const FEATURES2_LAZY_COUNTERS: u32 = 0x2;

/// What the reader keeps of the superblock; every field of the geometry is within its bounds.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    /// 4 or 5.
    pub version: u8,
    /// log2 of the block size, 9 to 16.
    pub block_bits: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks of an allocation group; the last may have fewer.
    pub ag_blocks: u32,
    pub ag_count: u32,
    /// Bits of a block number that are the block within its group.
    pub ag_block_bits: u32,
    /// Bytes of an inode: a power of two from 256 to 2048, not above the block size.
    pub inode_size: usize,
    /// log2 of the inodes in a block.
    pub inodes_per_block_bits: u32,
    /// log2 of the size of a block of a directory, up to 16.
    pub dir_block_bits: u32,
    pub sector_bytes: usize,
    pub root_ino: Ino,
    pub uuid: [u8; 16],
    /// The UUID that metadata carries.
    pub meta_uuid: [u8; 16],
    pub label: Vec<u8>,
    /// Block where the log starts, 0: it is on another device.
    pub log_start: u64,
    pub log_blocks: u32,
    pub log_v2: bool,
    pub incompat: u32,
    /// Features of the log alone.
    pub log_incompat: u32,
    /// Alignment of inode chunks in blocks.
    pub inode_align: u32,
    /// Whether the counters below are kept up only at unmount.
    pub lazy_counters: bool,
    pub inodes: u64,
    pub inodes_free: u64,
    pub blocks_free: u64,
    /// Most of the space that inodes may take, in percent; 0: all.
    pub inode_max_percent: u8,
    /// Whether entries of directories tell the type.
    pub ftype: bool,
    pub case_insensitive: bool,
}

impl Superblock {
    /// Reads and verifies the superblock at byte 0.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names the features that are not read, [`Error::Corrupt`] says which field lies.
    pub fn read(image: &Image) -> Result<Self> {
        Self::read_by(&|at, buf| image.read_at(at, buf), &|len| image.is_patched(0, len))
    }

    /// As [`Superblock::read`], from whatever `read` reads; `patched` tells whether so many bytes of it are not those
    /// that their checksum was made for.
    pub fn read_by(
        read: &dyn Fn(u64, &mut [u8]) -> Result<()>,
        patched: &dyn Fn(usize) -> bool,
    ) -> Result<Self> {
        let mut raw = vec![0; 512];
        read(0, &mut raw)?;
        if be32(&raw, 0) != u32::from_be_bytes(*b"XFSB") {
            return Err(corrupt("the magic is not XFSB"));
        }
        let versionnum = be16(&raw, 100);
        let version = u8::try_from(versionnum & 0xF).unwrap_or(0);
        if !matches!(version, 4 | 5) {
            return Err(Error::Unsupported(format!("xfs version {version}; versions 4 and 5 are read")));
        }
        let sector_bytes = usize::from(be16(&raw, 102));
        if !sector_bytes.is_power_of_two() || !(512..=32768).contains(&sector_bytes) {
            return Err(corrupt("the sector size is impossible"));
        }
        let v5 = version == 5;
        if v5 {
            raw.resize(sector_bytes, 0);
            read(0, &mut raw)?;
            if !patched(sector_bytes) && !checksum::holds(&raw, 224) {
                return Err(corrupt("its checksum is wrong"));
            }
        }
        let incompat = if v5 { be32(&raw, 216) } else { 0 };
        refuse_unknown(incompat)?;
        if !v5 && versionnum & version::DIR_V2 == 0 {
            return Err(Error::Unsupported("xfs feature not read: directories of version 1".into()));
        }
        let sb = Self::parse(&raw, version, versionnum, incompat);
        sb.verify(&raw)?;
        Ok(sb)
    }

    fn parse(raw: &[u8], version: u8, versionnum: u16, incompat: u32) -> Self {
        let v5 = version == 5;
        let features2 = if v5 || versionnum & version::MORE_BITS != 0 { be32(raw, 200) } else { 0 };
        let uuid = bytes16(raw, 32);
        let meta_uuid = if incompat & incompat::META_UUID != 0 { bytes16(raw, 248) } else { uuid };
        let block_bits = u32::from(u8_at(raw, 120));
        Self {
            version,
            block_bits,
            blocks: be64(raw, 8),
            ag_blocks: be32(raw, 84),
            ag_count: be32(raw, 88),
            ag_block_bits: u32::from(u8_at(raw, 124)),
            inode_size: usize::from(be16(raw, 104)),
            inodes_per_block_bits: u32::from(u8_at(raw, 123)),
            dir_block_bits: block_bits + u32::from(u8_at(raw, 192)),
            sector_bytes: usize::from(be16(raw, 102)),
            root_ino: be64(raw, 56),
            uuid,
            meta_uuid,
            label: raw[108..120].split(|&b| b == 0).next().unwrap_or_default().to_vec(),
            log_start: be64(raw, 48),
            log_blocks: be32(raw, 96),
            log_v2: v5 || versionnum & version::LOG_V2 != 0,
            incompat,
            log_incompat: if v5 { be32(raw, 220) } else { 0 },
            inode_align: be32(raw, 180),
            lazy_counters: v5 || features2 & FEATURES2_LAZY_COUNTERS != 0,
            inodes: be64(raw, 128),
            inodes_free: be64(raw, 136),
            blocks_free: be64(raw, 144),
            inode_max_percent: u8_at(raw, 127).min(100),
            ftype: if v5 { incompat & incompat::FTYPE != 0 } else { features2 & FEATURES2_FTYPE != 0 },
            case_insensitive: versionnum & version::CASE_INSENSITIVE != 0,
        }
    }

    fn verify(&self, raw: &[u8]) -> Result<()> {
        if !(9..=16).contains(&self.block_bits) || be32(raw, 4) != 1 << self.block_bits {
            return Err(corrupt("the block size is not a power of two from 512 to 65536"));
        }
        if !(self.block_bits..=16).contains(&self.dir_block_bits) {
            return Err(corrupt("the block size of directories is impossible"));
        }
        if !self.inode_size.is_power_of_two()
            || !(256..=2048.min(self.block_size())).contains(&self.inode_size)
            || self.inode_size << self.inodes_per_block_bits.min(16) != self.block_size()
        {
            return Err(corrupt("the inode size is impossible"));
        }
        let ag_bits = self.ag_blocks.checked_next_power_of_two().map_or(32, u32::trailing_zeros);
        if self.ag_blocks < 2 || self.ag_block_bits != ag_bits || self.ag_block_bits > 31 {
            return Err(corrupt("the size of allocation groups is impossible"));
        }
        let most = u64::from(self.ag_count) * u64::from(self.ag_blocks);
        if self.ag_count == 0
            || self.blocks > most
            || self.blocks <= most - u64::from(self.ag_blocks)
            || self.blocks >= 1 << (63 - self.block_bits)
        {
            return Err(corrupt("the number of blocks does not fit the allocation groups"));
        }
        if self.sector_bytes > self.block_size() {
            return Err(corrupt("the sector size is above the block size"));
        }
        Ok(())
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> usize {
        1 << self.block_bits
    }

    /// Whether metadata carries checksums, its own address, its owner and the UUID.
    pub fn v5(&self) -> bool {
        self.version == 5
    }

    /// Blocks of allocation group `group`.
    fn group_blocks(&self, group: u64) -> u64 {
        let start = group * u64::from(self.ag_blocks);
        self.blocks.saturating_sub(start).min(u64::from(self.ag_blocks))
    }

    /// Byte of block `block` of group `group`; None unless `count` blocks from there on lie in that group.
    pub fn byte_in_group(&self, group: u64, block: u64, count: u64) -> Option<u64> {
        let fits = group < u64::from(self.ag_count)
            && block.checked_add(count).is_some_and(|end| end <= self.group_blocks(group));
        fits.then(|| (group * u64::from(self.ag_blocks) + block) << self.block_bits)
    }

    /// Byte of the block with file-system block number `number`, as [`Superblock::byte_in_group`].
    pub fn byte_of(&self, number: u64, count: u64) -> Option<u64> {
        let block = number & ((1 << self.ag_block_bits) - 1);
        self.byte_in_group(number >> self.ag_block_bits, block, count)
    }

    /// Byte of inode `ino`; None: there is no room for an inode of that number.
    pub fn byte_of_inode(&self, ino: Ino) -> Option<u64> {
        let number = ino >> self.inodes_per_block_bits;
        let block = self.byte_of(number, 1)?;
        let index = ino & ((1 << self.inodes_per_block_bits) - 1);
        Some(block + index * self.inode_size as u64)
    }
}

fn refuse_unknown(incompat: u32) -> Result<()> {
    features::refuse_unknown("xfs", incompat, incompat::KNOWN, REFUSED)
}

fn corrupt(what: &str) -> Error {
    Error::Corrupt(format!("xfs superblock: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_features_are_refused_by_name() {
        refuse_unknown(incompat::KNOWN).unwrap();
        let text = refuse_unknown(0x200 | 0x8000_0000).unwrap_err().to_string();
        assert!(text.contains("zoned") && text.contains("0x80000000"), "{text}");
    }
}
