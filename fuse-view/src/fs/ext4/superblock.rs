//! The superblock: geometry and features, believed only after [`Superblock::read`].
//!
//! Facts: the kernel's `Documentation/filesystems/ext4/super.rst`.

use super::checksum::crc32c;
use crate::fs::bytes::{bytes16, le16, le32, u8_at};
use crate::fs::features;
use crate::{BlockRead, Error, Result};

/// Features a reader must know.
pub(super) mod incompat {
    pub const FILETYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const META_BG: u32 = 0x10;
    pub const EXTENTS: u32 = 0x40;
    pub const SIXTY_FOUR_BIT: u32 = 0x80;
    pub const EA_INODE: u32 = 0x400;
    pub const CSUM_SEED: u32 = 0x2000;
    pub const LARGE_DIR: u32 = 0x4000;
    /// All that is read; mmp (0x100) and flex_bg (0x200) change nothing for a reader.
    pub const KNOWN: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | SIXTY_FOUR_BIT
        | 0x100
        | 0x200
        | EA_INODE
        | CSUM_SEED
        | LARGE_DIR
        | 0x8000  // inline_data: told by each inode
        | 0x1_0000 // encrypt: told by each inode
        | 0x2_0000; // casefold: told by each inode
}

/// Features only a writer must know; these change what is read.
pub(super) mod ro_compat {
    pub const SPARSE_SUPER: u32 = 0x1;
    pub const HUGE_FILE: u32 = 0x8;
    pub const GDT_CSUM: u32 = 0x10;
    pub const BIGALLOC: u32 = 0x200;
    pub const METADATA_CSUM: u32 = 0x400;
    /// What ext3 knew: sparse_super, large_file, btree_dir.
    pub const EXT3: u32 = 0x7;
}

/// Features that change nothing for who does not know them.
pub(super) mod compat {
    pub const HAS_JOURNAL: u32 = 0x4;
    pub const DIR_INDEX: u32 = 0x20;
    pub const SPARSE_SUPER2: u32 = 0x200;
    pub const ORPHAN_FILE: u32 = 0x1000;
}

/// Names of incompatible features that are refused.
const REFUSED: &[(u32, &str)] = &[
    (0x1, "compression"),
    (0x8, "journal_dev (this is an external journal, not a file system)"),
    (0x1000, "dirdata"),
];

/// What the reader keeps of the superblock; every field is within its bounds.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub compat: u32,
    pub incompat: u32,
    pub ro_compat: u32,
    /// Inodes in all.
    pub inodes: u32,
    pub inodes_free: u32,
    /// Blocks in all.
    pub blocks: u64,
    pub blocks_free: u64,
    /// Blocks that hold metadata, never files.
    pub overhead: u64,
    pub first_data_block: u64,
    /// log2 of the block size, 10 to 16.
    pub block_bits: u32,
    /// log2 of the bytes allocated at once: those of a block without bigalloc.
    pub cluster_bits: u32,
    pub blocks_per_group: u64,
    pub inodes_per_group: u32,
    /// Bytes of an inode: a power of two from 128 to the block size.
    pub inode_size: usize,
    /// First inode that is not reserved.
    pub first_ino: u32,
    /// Bytes of a group descriptor.
    pub desc_size: usize,
    pub first_meta_bg: u64,
    /// Groups that hold the two backups of sparse_super2.
    pub backup_groups: [u32; 2],
    pub uuid: [u8; 16],
    pub label: Vec<u8>,
    /// Seed of every metadata checksum.
    pub csum_seed: u32,
    pub hash_seed: [u32; 4],
    /// How names are hashed where the directory does not say.
    pub hash_version: u8,
    /// Whether names are hashed as unsigned characters where the directory does not say.
    pub hash_unsigned: bool,
    pub journal_ino: u32,
    pub journal_dev: u32,
    pub journal_uuid: [u8; 16],
    /// First of the list of orphans, 0: none.
    pub last_orphan: u32,
    /// Inode of the orphan file.
    pub orphan_file: u32,
    /// The kernel found errors: recovery then leaves orphans alone.
    pub has_errors: bool,
}

impl Superblock {
    /// Reads and verifies the superblock at byte 1024.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names the features that are not read, [`Error::Corrupt`] says which field lies.
    pub fn read(dev: &dyn BlockRead) -> Result<Self> {
        let mut raw = [0; 1024];
        dev.read_at(1024, &mut raw)?;
        if le16(&raw, 0x38) != 0xEF53 {
            return Err(corrupt("the magic is not 0xEF53"));
        }
        let rev0 = le32(&raw, 0x4C) == 0;
        let feature = |at| if rev0 { 0 } else { le32(&raw, at) };
        let (compat, incompat, ro_compat) = (feature(0x5C), feature(0x60), feature(0x64));
        refuse_unknown(incompat)?;
        let checksums = ro_compat & ro_compat::METADATA_CSUM != 0;
        if checksums {
            if u8_at(&raw, 0x175) != 1 {
                return Err(Error::Unsupported(format!("ext4 checksum type {}", u8_at(&raw, 0x175))));
            }
            if crc32c(!0, &raw[..0x3FC]) != le32(&raw, 0x3FC) {
                return Err(corrupt("its checksum is wrong"));
            }
        }
        let wide = incompat & incompat::SIXTY_FOUR_BIT != 0;
        let high = |at| if wide { u64::from(le32(&raw, at)) << 32 } else { 0 };
        let uuid = bytes16(&raw, 0x68);
        let csum_seed =
            if incompat & incompat::CSUM_SEED != 0 { le32(&raw, 0x270) } else { crc32c(!0, &uuid) };
        let label = raw[0x78..0x88].split(|&b| b == 0).next().unwrap_or_default().to_vec();
        let sb = Self {
            compat,
            incompat,
            ro_compat,
            inodes: le32(&raw, 0),
            inodes_free: le32(&raw, 0x10),
            blocks: u64::from(le32(&raw, 0x4)) | high(0x150),
            blocks_free: u64::from(le32(&raw, 0xC)) | high(0x158),
            overhead: u64::from(le32(&raw, 0x248)),
            first_data_block: u64::from(le32(&raw, 0x14)),
            block_bits: le32(&raw, 0x18).min(100) + 10,
            cluster_bits: le32(&raw, if ro_compat & ro_compat::BIGALLOC != 0 { 0x1C } else { 0x18 }).min(100)
                + 10,
            blocks_per_group: u64::from(le32(&raw, 0x20)),
            inodes_per_group: le32(&raw, 0x28),
            inode_size: if rev0 { 128 } else { usize::from(le16(&raw, 0x58)) },
            first_ino: if rev0 { 11 } else { le32(&raw, 0x54) },
            desc_size: if wide { usize::from(le16(&raw, 0xFE)) } else { 32 },
            first_meta_bg: u64::from(le32(&raw, 0x104)),
            backup_groups: [le32(&raw, 0x24C), le32(&raw, 0x250)],
            uuid,
            label,
            csum_seed,
            hash_seed: [0xEC, 0xF0, 0xF4, 0xF8].map(|at| le32(&raw, at)),
            hash_version: u8_at(&raw, 0xFC),
            hash_unsigned: le32(&raw, 0x160) & 2 != 0,
            journal_ino: le32(&raw, 0xE0),
            journal_dev: le32(&raw, 0xE4),
            journal_uuid: bytes16(&raw, 0xD0),
            last_orphan: le32(&raw, 0xE8),
            orphan_file: le32(&raw, 0x280),
            has_errors: le16(&raw, 0x3A) & 2 != 0,
        };
        sb.verify()?;
        Ok(sb)
    }

    fn verify(&self) -> Result<()> {
        if self.block_bits > 16 {
            return Err(corrupt("the block size is above 64 KiB"));
        }
        let bits_per_block = 8 * self.block_size() as u64;
        if !(self.block_bits..=30).contains(&self.cluster_bits) {
            return Err(corrupt("the cluster size is impossible"));
        }
        if self.blocks_per_group == 0
            || self.blocks_per_group >> (self.cluster_bits - self.block_bits) > bits_per_block
        {
            return Err(corrupt("the number of blocks per group is impossible"));
        }
        if !self.inode_size.is_power_of_two() || !(128..=self.block_size()).contains(&self.inode_size) {
            return Err(corrupt("the inode size is not a power of two from 128 to the block size"));
        }
        if self.inodes_per_group == 0 || u64::from(self.inodes_per_group) > bits_per_block {
            return Err(corrupt("the number of inodes per group is impossible"));
        }
        let wide_desc = self.has(incompat::SIXTY_FOUR_BIT);
        if wide_desc
            && (!self.desc_size.is_power_of_two() || !(64..=self.block_size()).contains(&self.desc_size))
        {
            return Err(corrupt("the size of group descriptors is impossible"));
        }
        if self.blocks <= self.first_data_block || self.blocks >= 1 << 48 || self.first_data_block > 1 {
            return Err(corrupt("the number of blocks is impossible"));
        }
        let room = self.groups().checked_mul(u64::from(self.inodes_per_group));
        if self.inodes < 11 || room.is_none_or(|room| u64::from(self.inodes) > room) {
            return Err(corrupt("the number of inodes does not fit the groups"));
        }
        Ok(())
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> usize {
        1 << self.block_bits
    }

    /// Number of block groups.
    pub fn groups(&self) -> u64 {
        (self.blocks - self.first_data_block).div_ceil(self.blocks_per_group)
    }

    /// Whether an incompatible feature is on.
    pub fn has(&self, feature: u32) -> bool {
        self.incompat & feature != 0
    }

    /// Whether a read-only compatible feature is on.
    pub fn has_ro(&self, feature: u32) -> bool {
        self.ro_compat & feature != 0
    }

    /// Whether metadata carries crc32c checksums.
    pub fn checksums(&self) -> bool {
        self.has_ro(ro_compat::METADATA_CSUM)
    }

    /// Whether blocks `start..start + len` can hold something of a file.
    pub fn holds(&self, start: u64, len: u64) -> bool {
        start >= self.first_data_block
            && start > 0
            && start.checked_add(len).is_some_and(|end| end <= self.blocks)
    }

    /// Whether `group` begins with a copy of the superblock.
    pub fn group_has_super(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat & compat::SPARSE_SUPER2 != 0 {
            return self.backup_groups.iter().any(|&g| u64::from(g) == group);
        }
        if group == 1 || !self.has_ro(ro_compat::SPARSE_SUPER) {
            return true;
        }
        [3, 5, 7].iter().any(|&base| is_power_of(group, base))
    }

    /// The name under which the format is known, by its features.
    pub fn format(&self) -> &'static str {
        const EXT3: u32 = incompat::FILETYPE | incompat::RECOVER | incompat::META_BG;
        if self.incompat & !EXT3 != 0 || self.ro_compat & !ro_compat::EXT3 != 0 {
            "ext4"
        } else if self.compat & compat::HAS_JOURNAL != 0 {
            "ext3"
        } else {
            "ext2"
        }
    }
}

fn is_power_of(mut n: u64, base: u64) -> bool {
    while n > 1 && n.is_multiple_of(base) {
        n /= base;
    }
    n == 1
}

fn refuse_unknown(incompat: u32) -> Result<()> {
    features::refuse_unknown("ext4", incompat, incompat::KNOWN, REFUSED)
}

fn corrupt(what: &str) -> Error {
    Error::Corrupt(format!("ext4 superblock: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers() {
        let yes: Vec<u64> = (1..400).filter(|&n| [3, 5, 7].iter().any(|&b| is_power_of(n, b))).collect();
        assert_eq!(yes, [1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
    }

    #[test]
    fn unknown_features_are_refused_by_name() {
        refuse_unknown(incompat::KNOWN).unwrap();
        let text = refuse_unknown(0x8 | 0x1 | 0x8000_0000).unwrap_err().to_string();
        assert!(
            text.contains("compression") && text.contains("journal_dev") && text.contains("0x80000000"),
            "{text}"
        );
    }
}
