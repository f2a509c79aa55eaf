//! The superblock: which copy counts, what it says, and which features are not read.

use super::checksum::Checksum;
use crate::fs::bytes::{bytes16, le16, le32, le64, u8_at};
use crate::fs::features;
use crate::{BlockRead, Error, Result};

/// Bytes of a superblock.
const BYTES: usize = 4096;
/// Where the copies are.
const COPIES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
const MAGIC: &[u8] = b"_BHRfS_M";
/// Levels of a tree, leaves included.
pub(super) const MAX_LEVELS: u8 = 8;
/// Most bytes of chunk items in a superblock.
const SYS_CHUNKS: usize = 2048;

/// Bits of `incompat_flags`.
pub(super) mod incompat {
    pub const NO_HOLES: u64 = 1 << 9;
    pub const METADATA_UUID: u64 = 1 << 10;
    /// What is read: mixed back references, default subvolume, mixed groups, LZO, zstd, big metadata, extended
    /// references, RAID56 (refused where a chunk has it), skinny metadata, no-holes, metadata UUID, RAID1C34,
    /// simple quotas.
    pub const KNOWN: u64 = 0x0FFF | 1 << 16;
    pub const REFUSED: &[(u64, &str)] = &[
        (1 << 12, "zoned"),
        (1 << 13, "extent-tree-v2"),
        (1 << 14, "raid-stripe-tree"),
        (1 << 17, "remap-tree"),
    ];
}

/// Bits of `compat_ro_flags`.
pub(super) mod compat_ro {
    pub const BLOCK_GROUP_TREE: u64 = 1 << 3;
    /// Free space tree and its validity, verity, block group tree.
    pub const KNOWN: u64 = 0xF;
}

/// The fields that are used, verified.
pub(super) struct Superblock {
    /// Which copy this is, 0 the first.
    pub copy: usize,
    pub generation: u64,
    pub root: u64,
    pub root_level: u8,
    pub chunk_root: u64,
    pub chunk_root_level: u8,
    pub chunk_root_generation: u64,
    /// Root of the tree of log trees, 0: no log.
    pub log_root: u64,
    pub log_root_level: u8,
    pub total_bytes: u64,
    pub bytes_used: u64,
    pub sector_bytes: u32,
    pub node_bytes: u32,
    pub incompat: u64,
    pub compat_ro: u64,
    pub checksum: Checksum,
    pub device: u64,
    pub fsid: [u8; 16],
    /// What the header of each tree block carries.
    pub metadata_uuid: [u8; 16],
    pub label: Vec<u8>,
    pub sys_chunks: Vec<u8>,
}

impl Superblock {
    /// The first copy, as the kernel takes it; if it is damaged, the newest of the others.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names what is not read; [`Error::Corrupt`] where no copy is whole.
    pub fn read(dev: &dyn BlockRead) -> Result<Self> {
        let first = Self::read_copy(dev, 0);
        if !matches!(first, Err(Error::Corrupt(_))) {
            return first;
        }
        let others = (1..COPIES.len()).filter_map(|copy| Self::read_copy(dev, copy).ok());
        others.max_by_key(|sb| sb.generation).map_or(first, Ok)
    }

    fn read_copy(dev: &dyn BlockRead, copy: usize) -> Result<Self> {
        let at = COPIES[copy];
        if at + BYTES as u64 > dev.len() {
            return Err(corrupt(copy, "lies past the end of the image"));
        }
        let mut raw = vec![0; BYTES];
        dev.read_at(at, &mut raw)?;
        if raw.get(64..72) != Some(MAGIC) {
            return Err(corrupt(copy, "has no magic"));
        }
        let code = le16(&raw, 0xC4);
        let checksum = Checksum::of(code).ok_or_else(|| {
            Error::Unsupported(format!("btrfs checksums of type {code} are not known to this version"))
        })?;
        if !checksum.matches(&raw[32..], &raw) {
            return Err(corrupt(copy, "has a wrong checksum"));
        }
        if le64(&raw, 0x30) != at {
            return Err(corrupt(copy, "belongs elsewhere"));
        }
        Self::parse(&raw, copy, checksum)
    }

    fn parse(raw: &[u8], copy: usize, checksum: Checksum) -> Result<Self> {
        let incompat = le64(raw, 0xBC);
        refuse_unknown(incompat)?;
        let fsid = bytes16(raw, 0x20);
        let with_uuid = incompat & incompat::METADATA_UUID != 0;
        let label = &raw[0x12B..0x22B];
        let sys_len = usize::try_from(le32(raw, 0xA0)).unwrap_or(usize::MAX);
        if sys_len > SYS_CHUNKS {
            return Err(corrupt(copy, "holds too many system chunks"));
        }
        let sb = Self {
            copy,
            generation: le64(raw, 0x48),
            root: le64(raw, 0x50),
            root_level: u8_at(raw, 0xC6),
            chunk_root: le64(raw, 0x58),
            chunk_root_level: u8_at(raw, 0xC7),
            chunk_root_generation: le64(raw, 0xA4),
            log_root: le64(raw, 0x60),
            log_root_level: u8_at(raw, 0xC8),
            total_bytes: le64(raw, 0x70),
            bytes_used: le64(raw, 0x78),
            sector_bytes: le32(raw, 0x90),
            node_bytes: le32(raw, 0x94),
            incompat,
            compat_ro: le64(raw, 0xB4),
            checksum,
            device: le64(raw, 0xC9),
            fsid,
            metadata_uuid: if with_uuid { bytes16(raw, 0x23B) } else { fsid },
            label: label.split(|&b| b == 0).next().unwrap_or_default().to_vec(),
            sys_chunks: raw[0x32B..0x32B + sys_len].to_vec(),
        };
        sb.verify()?;
        let devices = le64(raw, 0x88);
        if devices != 1 {
            return Err(Error::Unsupported(format!(
                "a btrfs over {devices} devices is not read: this image is device {} of it",
                sb.device
            )));
        }
        Ok(sb)
    }

    fn verify(&self) -> Result<()> {
        let power = |n: u32, from: u32| n.is_power_of_two() && (from..=1 << 16).contains(&n);
        if !power(self.sector_bytes, 512) {
            return Err(corrupt(self.copy, "names an impossible sector size"));
        }
        if !power(self.node_bytes, self.sector_bytes.max(4096)) {
            return Err(corrupt(self.copy, "names an impossible node size"));
        }
        let levels = [self.root_level, self.chunk_root_level, self.log_root_level];
        if levels.iter().any(|&level| level >= MAX_LEVELS) {
            return Err(corrupt(self.copy, "names an impossible level of a tree"));
        }
        Ok(())
    }

    /// Whether an incompatible feature is on.
    pub fn has(&self, feature: u64) -> bool {
        self.incompat & feature != 0
    }
}

fn refuse_unknown(incompat: u64) -> Result<()> {
    features::refuse_unknown("btrfs", incompat, incompat::KNOWN, incompat::REFUSED)
}

fn corrupt(copy: usize, what: &str) -> Error {
    Error::Corrupt(format!("btrfs superblock at {}: it {what}", COPIES[copy]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_features_are_refused_by_name() {
        refuse_unknown(incompat::KNOWN).unwrap();
        let text = refuse_unknown(1 << 12 | 1 << 13 | 1 << 14 | 1 << 63).unwrap_err().to_string();
        for name in ["zoned", "extent-tree-v2", "raid-stripe-tree", "0x8000000000000000"] {
            assert!(text.contains(name), "{text}");
        }
    }
}
