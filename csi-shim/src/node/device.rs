//! The block device of a volume, and what its first bytes say of a file system.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its node, no link.
    pub node: PathBuf,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Size in bytes.
    pub size_bytes: u64,
}

impl Device {
    /// The device that `path` leads to.
    ///
    /// # Errors
    /// If there is none, or something else.
    pub fn at(path: &Path) -> io::Result<Self> {
        let node = fs::canonicalize(path)?;
        let metadata = fs::metadata(&node)?;
        if !metadata.file_type().is_block_device() {
            let place = node.display();
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{place} is no block device")));
        }
        let mut device = Self { number: number_of(&metadata), node, size_bytes: 0 };
        device.size_bytes = device.now_bytes()?;
        Ok(device)
    }

    /// Its size now, bytes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn now_bytes(&self) -> io::Result<u64> {
        use std::io::Seek;
        File::open(&self.node)?.seek(io::SeekFrom::End(0))
    }

    /// Whether `path` is a node of this device.
    pub fn is_node(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device() && number_of(&m) == self.number)
    }

    /// The file system on it, as its superblock tells; None: none that is known here.
    ///
    /// # Errors
    /// Those of reading the device.
    pub fn file_system(&self) -> io::Result<Option<FileSystem>> {
        let file = File::open(&self.node)?;
        let mut first = vec![0; SUPERBLOCKS_BYTES];
        let mut filled = 0;
        while filled < first.len() {
            match file.read_at(&mut first[filled..], filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(FileSystem::parse(&first))
    }
}

fn number_of(metadata: &fs::Metadata) -> (u32, u32) {
    (libc::major(metadata.rdev()), libc::minor(metadata.rdev()))
}

/// As far as the superblocks of all known file systems lie.
const SUPERBLOCKS_BYTES: usize = 0x1_1000;

/// A file system by its superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// What mount(2) calls it: `ext4`, `xfs` or `btrfs`.
    pub kind: &'static str,
    /// Size of its blocks, bytes.
    pub block_bytes: u64,
    /// How much of the device it covers.
    pub size_bytes: u64,
}

impl FileSystem {
    /// From the first bytes of a device.
    fn parse(first: &[u8]) -> Option<Self> {
        let bytes = |at: usize, n: usize| first.get(at..at + n);
        let le = |at, n| bytes(at, n).map(|b| b.iter().rev().fold(0u64, |v, byte| v << 8 | u64::from(*byte)));
        let be = |at, n| bytes(at, n).map(|b| b.iter().fold(0u64, |v, byte| v << 8 | u64::from(*byte)));
        if bytes(0, 4)? == b"XFSB" {
            let block_bytes = be(4, 4)?;
            let size_bytes = be(8, 8)?.checked_mul(block_bytes)?;
            return Some(Self { kind: "xfs", block_bytes, size_bytes });
        }
        // The superblock of ext2, ext3 and ext4 begins at 1024.
        if le(1024 + 0x38, 2)? == 0xef53 {
            let block_bytes = 1024u64.checked_shl(u32::try_from(le(1024 + 0x18, 4)?.min(6)).ok()?)?;
            // The upper half counts only with the feature 64bit.
            let wide = le(1024 + 0x60, 4)? & 0x80 != 0;
            let upper = if wide { le(1024 + 0x150, 4)? } else { 0 };
            let blocks = upper << 32 | le(1024 + 0x4, 4)?;
            let size_bytes = blocks.checked_mul(block_bytes)?;
            return Some(Self { kind: "ext4", block_bytes, size_bytes });
        }
        if bytes(0x1_0040, 8)? == b"_BHRfS_M" {
            let (block_bytes, size_bytes) = (le(0x1_0090, 4)?, le(0x1_0070, 8)?);
            return Some(Self { kind: "btrfs", block_bytes, size_bytes });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut first = vec![0; SUPERBLOCKS_BYTES];
        for (at, bytes) in parts {
            first[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        first
    }

    #[test]
    fn superblocks_tell_kind_and_size() {
        let ext = device(&[(1028, &[0, 0, 4]), (1048, &[2]), (1080, &[0x53, 0xef])]);
        let found = FileSystem::parse(&ext).unwrap();
        assert_eq!(found, FileSystem { kind: "ext4", block_bytes: 4096, size_bytes: 1 << 30 });
        let wide =
            device(&[(1048, &[2]), (1080, &[0x53, 0xef]), (1024 + 0x60, &[0x80]), (1024 + 0x150, &[1])]);
        assert_eq!(FileSystem::parse(&wide).unwrap().size_bytes, 1 << 44);
        let xfs = device(&[(0, b"XFSB\0\0\x10\0\0\0\0\0\0\x04\0\0")]);
        let found = FileSystem::parse(&xfs).unwrap();
        assert_eq!(found, FileSystem { kind: "xfs", block_bytes: 4096, size_bytes: 1 << 30 });
        let btrfs = device(&[(0x1_0040, b"_BHRfS_M"), (0x1_0070, &[0, 0, 0, 0x40]), (0x1_0090, &[0, 0x10])]);
        let found = FileSystem::parse(&btrfs).unwrap();
        assert_eq!(found, FileSystem { kind: "btrfs", block_bytes: 4096, size_bytes: 1 << 30 });
    }

    #[test]
    fn nonsense_is_no_file_system() {
        assert_eq!(FileSystem::parse(&device(&[])), None);
        assert_eq!(FileSystem::parse(&[]), None);
        let huge = device(&[(0, b"XFSB\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")]);
        assert_eq!(FileSystem::parse(&huge), None);
        let mut noise = vec![0xff; SUPERBLOCKS_BYTES];
        noise[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(FileSystem::parse(&noise), None);
    }
}
