//! Signatures of file systems and of layers under them.

use super::bytes::{le16, le32, le64, u8_at};
use crate::{BlockRead, Result};
use std::fmt;

/// What a signature stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// FAT12, FAT16 or FAT32.
    Vfat,
    /// Recognised by this name, not read.
    Other(&'static str),
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::Other(name) => name,
        })
    }
}

/// A signature: its place in bytes from the start, the bytes, the name.
type Magic = (u64, &'static [u8], &'static str);

/// Layers and formats whose signature lies where mke2fs writes or wipes: if one is there, no newer ext is.
const BEFORE_EXT: &[Magic] = &[
    (0, b"LUKS\xba\xbe", "LUKS (an encrypted volume)"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (3, b"-FVE-FS-", "BitLocker (an encrypted volume)"),
    (0, b"\xfc\x4e\x2b\xa9", "md RAID"),
    (4096, b"\xfc\x4e\x2b\xa9", "md RAID"),
    (0, b"hsqs", "squashfs"),
];

/// Formats whose signature can outlive a later mke2fs.
const AFTER_EXT: &[Magic] = &[
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (32769, b"CD001", "iso9660"),
];

/// Tells what `dev` holds by its signatures; None: nothing known. Partition tables are not looked at.
///
/// # Errors
/// Only those of reading `dev`; a device too short for a signature does not have it.
pub fn detect(dev: &dyn BlockRead) -> Result<Option<Format>> {
    for &(at, magic, name) in BEFORE_EXT {
        if has(dev, at, magic)? {
            return Ok(Some(Format::Other(name)));
        }
    }
    if has(dev, 0, b"XFSB")? {
        return Ok(Some(Format::Xfs));
    }
    if is_lvm(dev)? {
        return Ok(Some(Format::Other("LVM2 (a physical volume)")));
    }
    if is_md_at_end(dev)? {
        return Ok(Some(Format::Other("md RAID")));
    }
    if is_ext(dev)? {
        return Ok(Some(Format::Ext));
    }
    if has(dev, 0x1_0040, b"_BHRfS_M")? {
        return Ok(Some(Format::Btrfs));
    }
    for &(at, magic, name) in AFTER_EXT {
        if has(dev, at, magic)? {
            return Ok(Some(Format::Other(name)));
        }
    }
    if is_plain_fat(dev)? {
        return Ok(Some(Format::Vfat));
    }
    if is_swap(dev)? {
        return Ok(Some(Format::Other("swap space")));
    }
    Ok(if is_zfs(dev)? { Some(Format::Other("zfs")) } else { None })
}

/// Up to 4 KiB at `at`, None if the device ends before.
fn piece(dev: &dyn BlockRead, at: u64, len: usize) -> Result<Option<Vec<u8>>> {
    let Some(end) = at.checked_add(len as u64) else { return Ok(None) };
    if end > dev.len() {
        return Ok(None);
    }
    let mut buf = vec![0; len];
    dev.read_at(at, &mut buf)?;
    Ok(Some(buf))
}

fn has(dev: &dyn BlockRead, at: u64, magic: &[u8]) -> Result<bool> {
    Ok(piece(dev, at, magic.len())?.is_some_and(|found| found == magic))
}

fn is_ext(dev: &dyn BlockRead) -> Result<bool> {
    // The magic alone is two bytes; the block size and the revision keep chance out.
    Ok(piece(dev, 1024, 1024)?
        .is_some_and(|sb| le16(&sb, 0x38) == 0xEF53 && le32(&sb, 0x18) <= 6 && le32(&sb, 0x4C) <= 1))
}

fn is_lvm(dev: &dyn BlockRead) -> Result<bool> {
    for sector in 0..4 {
        if piece(dev, sector * 512, 32)?
            .is_some_and(|s| s.starts_with(b"LABELONE") && s.ends_with(b"LVM2 001"))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// md versions 0.90 and 1.0 keep their superblock at the end: the start looks like what the array holds.
fn is_md_at_end(dev: &dyn BlockRead) -> Result<bool> {
    const MD: u32 = 0xA92B_4EFC;
    let v090 = (dev.len() & !0xFFFF).checked_sub(0x1_0000);
    let v10 = dev.len().checked_sub(8192).map(|at| at & !4095);
    for at in [v090, v10].into_iter().flatten() {
        if piece(dev, at, 4)?.is_some_and(|m| le32(&m, 0) == MD || m == MD.to_be_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// FAT without the format name, as old or small tools write it: judged by the fields of the boot sector.
fn is_plain_fat(dev: &dyn BlockRead) -> Result<bool> {
    let Some(b) = piece(dev, 0, 512)? else { return Ok(false) };
    let jump = matches!(u8_at(&b, 0), 0xEB | 0xE9);
    let sector = le16(&b, 11);
    let fats = u8_at(&b, 16);
    let media = u8_at(&b, 21);
    Ok(jump
        && le16(&b, 510) == 0xAA55
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && u8_at(&b, 13).is_power_of_two()
        && le16(&b, 14) != 0
        && matches!(fats, 1 | 2)
        && (media == 0xF0 || media >= 0xF8))
}

fn is_swap(dev: &dyn BlockRead) -> Result<bool> {
    for page in [4096, 8192, 16384, 65536] {
        if piece(dev, page - 10, 10)?.is_some_and(|m| m == b"SWAPSPACE2" || m == b"SWAP-SPACE") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The uberblock ring of the first label, in either byte order.
fn is_zfs(dev: &dyn BlockRead) -> Result<bool> {
    const UBERBLOCK: u64 = 0x00BA_B10C;
    let Some(ring) = piece(dev, 128 << 10, 128 << 10)? else { return Ok(false) };
    Ok(ring.chunks(1024).any(|ub| le64(ub, 0) == UBERBLOCK || le64(ub, 0).swap_bytes() == UBERBLOCK))
}
