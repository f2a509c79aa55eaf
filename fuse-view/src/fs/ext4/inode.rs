//! Inodes: where they lie, their checksum, their fields.
//!
//! Facts: the kernel's `Documentation/filesystems/ext4/inodes.rst` and `group_descr.rst`.

use super::Ext4;
use super::checksum::{crc16, crc32c, crc32c_without};
use super::superblock::{incompat, ro_compat};
use crate::fs::bytes::{le16, le32};
use crate::fs::kind;
use crate::{Attr, Error, FileKind, Piece, Result, Timestamp};

/// Inode of the root directory.
pub(super) const ROOT_INO: u32 = 2;

/// Bits of `i_flags`.
pub(super) mod flag {
    pub const ENCRYPT: u32 = 0x800;
    pub const INDEX: u32 = 0x1000;
    pub const HUGE_FILE: u32 = 0x4_0000;
    pub const EXTENTS: u32 = 0x8_0000;
    pub const EA_INODE: u32 = 0x20_0000;
    pub const INLINE_DATA: u32 = 0x1000_0000;
    pub const CASEFOLD: u32 = 0x4000_0000;
}

/// One inode, its checksum verified.
pub(super) struct Inode {
    pub ino: u32,
    pub kind: FileKind,
    /// Bytes of content.
    pub size: u64,
    pub flags: u32,
    pub links: u32,
    /// Block of extended attributes, 0: none.
    pub xattr_block: u64,
    /// Seed of the checksums of what belongs to this inode.
    pub seed: u32,
    raw: Piece,
}

impl Inode {
    /// The inode as it is on disk.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// `i_block`: 60 bytes of block pointers, an extent root, a short target or inline data.
    pub fn block_area(&self) -> &[u8] {
        &self.raw()[0x28..0x64]
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Bytes in use after the first 128.
    pub fn extra_size(&self) -> usize {
        if self.raw.len() > 128 { usize::from(le16(self.raw(), 0x80)) } else { 0 }
    }

    /// Where attributes inside the inode begin; None: there is no room for them.
    pub fn xattr_area(&self) -> Option<&[u8]> {
        let extra = self.extra_size();
        if extra == 0 { None } else { self.raw().get(128 + extra..) }
    }

    /// 32 bits of the part after the first 128 bytes, 0 where `i_extra_isize` ends before them.
    fn extra(&self, at: usize) -> u32 {
        if at + 4 <= 128 + self.extra_size() { le32(self.raw(), at) } else { 0 }
    }

    fn time(&self, base: usize, extra: usize) -> Timestamp {
        let extra = self.extra(extra);
        // The two low bits extend the signed 32-bit seconds beyond 2038.
        let seconds = i64::from(le32(self.raw(), base).cast_signed()) + (i64::from(extra & 3) << 32);
        Timestamp { seconds, nanoseconds: (extra >> 2).min(999_999_999) }
    }

    fn device(&self) -> (u32, u32) {
        if !matches!(self.kind, FileKind::CharDev | FileKind::BlockDev) {
            return (0, 0);
        }
        let old = le32(self.block_area(), 0);
        if old != 0 {
            return (old >> 8 & 0xFF, old & 0xFF);
        }
        let new = le32(self.block_area(), 4);
        (new >> 8 & 0xFFF, (new & 0xFF) | (new >> 12 & 0xF_FF00))
    }
}

impl Ext4 {
    /// Reads an inode that a directory or the superblock names.
    pub(super) fn inode(&self, ino: u32) -> Result<Inode> {
        match self.fast.inode(ino) {
            Some(edit) => self.parse_inode(ino, edit.raw.clone(), false),
            None => self.parse_inode(ino, self.slot(ino)?, true),
        }
    }

    /// The bytes of inode `ino` in its table, in use or not.
    pub(super) fn slot(&self, ino: u32) -> Result<Piece> {
        let sb = &self.sb;
        if ino == 0 || ino > sb.inodes {
            return Err(Error::Corrupt(format!("ext4: inode {ino} is beyond the last, {}", sb.inodes)));
        }
        let index = ino - 1;
        let table_start = self.inode_table(u64::from(index / sb.inodes_per_group))?;
        let byte = u64::from(index % sb.inodes_per_group) * sb.inode_size as u64;
        self.dev.piece((table_start << sb.block_bits) + byte, sb.inode_size)
    }

    /// Believes `inode_size` bytes that stand for inode `ino`, with `summed` only if their checksum is right.
    pub(super) fn parse_inode(&self, ino: u32, piece: Piece, summed: bool) -> Result<Inode> {
        let sb = &self.sb;
        let raw = &piece[..];
        let len = raw.len();
        let bad = |what: &str| Err(Error::Corrupt(format!("ext4 inode {ino}: {what}")));
        if len < 128 {
            return bad("it lies outside of its table");
        }
        let mut seed = crc32c(sb.csum_seed, &ino.to_le_bytes());
        seed = crc32c(seed, &raw[0x64..0x68]);
        if summed && sb.checksums() && !inode_checksum_holds(raw, seed) {
            return bad("its checksum is wrong");
        }
        let links = u32::from(le16(raw, 0x1A));
        let mode = le16(raw, 0);
        if links == 0 {
            return bad("it is deleted, but still named");
        }
        let Some(kind) = kind::of_mode(mode) else { return bad("its type is unknown") };
        let extra = if len > 128 { usize::from(le16(raw, 0x80)) } else { 0 };
        if extra % 4 != 0 || 128 + extra > len {
            return bad("i_extra_isize is impossible");
        }
        let wide_size = kind == FileKind::File || (kind == FileKind::Dir && sb.has(incompat::LARGE_DIR));
        let size_high = if wide_size { u64::from(le32(raw, 0x6C)) << 32 } else { 0 };
        let size = u64::from(le32(raw, 0x4)) | size_high;
        if size > i64::MAX as u64 {
            return bad("its size is negative");
        }
        let acl_high = if sb.has(incompat::SIXTY_FOUR_BIT) { u64::from(le16(raw, 0x76)) << 32 } else { 0 };
        let xattr_block = u64::from(le32(raw, 0x68)) | acl_high;
        let flags = le32(raw, 0x20);
        Ok(Inode { ino, kind, size, flags, links, xattr_block, seed, raw: piece })
    }

    /// `i_blocks` in units of 512 bytes.
    pub(super) fn blocks_512(&self, inode: &Inode) -> u64 {
        let wide = self.sb.has_ro(ro_compat::HUGE_FILE) && inode.has(flag::HUGE_FILE);
        self.raw_blocks(inode) << if wide { self.sb.block_bits - 9 } else { 0 }
    }

    /// `i_blocks` in the units of the inode.
    pub(super) fn raw_blocks(&self, inode: &Inode) -> u64 {
        let raw = inode.raw();
        let low = u64::from(le32(raw, 0x1C));
        if self.sb.has_ro(ro_compat::HUGE_FILE) { low | u64::from(le16(raw, 0x74)) << 32 } else { low }
    }

    pub(super) fn attr_of(&self, inode: &Inode) -> Attr {
        let raw = inode.raw();
        let id = |low, high| u32::from(le16(raw, low)) | u32::from(le16(raw, high)) << 16;
        let mut blocks_512 = self.blocks_512(inode);
        if inode.has(flag::INLINE_DATA) && inode.kind == FileKind::File {
            // The kernel counts inline content so that tools do not take the file for a hole.
            blocks_512 = blocks_512.saturating_add(inode.size.div_ceil(512));
        }
        Attr {
            ino: u64::from(inode.ino),
            kind: inode.kind,
            mode: le16(raw, 0) & 0o7777,
            uid: id(0x2, 0x78),
            gid: id(0x18, 0x7A),
            size: inode.size,
            blocks_512,
            nlink: inode.links,
            rdev: inode.device(),
            atime: inode.time(0x8, 0x8C),
            mtime: inode.time(0x10, 0x88),
            ctime: inode.time(0xC, 0x84),
            btime: (inode.extra_size() >= 0x94 - 0x80).then(|| inode.time(0x90, 0x94)),
        }
    }

    /// Free blocks and inodes by the descriptors of all groups: in a dirty image the superblock's own figures are old.
    pub(super) fn free_counts(&self) -> Result<(u64, u64)> {
        let (mut blocks, mut inodes) = (0u64, 0u64);
        for group in 0..self.sb.groups() {
            let desc = self.descriptor(group)?;
            let wide = |low, high| {
                let high = if self.sb.desc_size >= 64 { u64::from(le16(&desc, high)) << 16 } else { 0 };
                u64::from(le16(&desc, low)) | high
            };
            blocks += wide(0xC, 0x2C) << (self.sb.cluster_bits - self.sb.block_bits);
            inodes += wide(0xE, 0x2E);
        }
        Ok((blocks, inodes))
    }

    /// First block of the inode table of `group`, by its descriptor.
    pub(super) fn inode_table(&self, group: u64) -> Result<u64> {
        let sb = &self.sb;
        let desc = self.descriptor(group)?;
        let high = if sb.desc_size >= 64 { u64::from(le32(&desc, 0x28)) << 32 } else { 0 };
        let table = u64::from(le32(&desc, 0x8)) | high;
        let blocks = (u64::from(sb.inodes_per_group) * sb.inode_size as u64).div_ceil(sb.block_size() as u64);
        if !sb.holds(table, blocks) {
            return Err(Error::Corrupt(format!(
                "ext4 group {group}: its inode table is outside of the file system"
            )));
        }
        Ok(table)
    }

    /// The descriptor of `group`, its checksum verified.
    fn descriptor(&self, group: u64) -> Result<Piece> {
        let sb = &self.sb;
        let per_block = (sb.block_size() / sb.desc_size) as u64;
        let block = self.descriptor_block(group / per_block, per_block);
        if !sb.holds(block, 1) {
            return Err(Error::Corrupt(format!(
                "ext4 group {group}: its descriptor is outside of the file system"
            )));
        }
        let at = (block << sb.block_bits) + group % per_block * sb.desc_size as u64;
        let piece = self.dev.piece(at, sb.desc_size)?;
        if !self.descriptor_checksum_holds(group, &piece) {
            return Err(Error::Corrupt(format!(
                "ext4 group {group}: the checksum of its descriptor is wrong"
            )));
        }
        Ok(piece)
    }

    /// Block number of the `nth` block of group descriptors.
    pub(super) fn descriptor_block(&self, nth: u64, per_block: u64) -> u64 {
        let sb = &self.sb;
        let super_block = 1024 >> sb.block_bits;
        if !sb.has(incompat::META_BG) || nth < sb.first_meta_bg {
            return super_block + nth + 1;
        }
        let group = nth * per_block;
        let mut skip = u64::from(sb.group_has_super(group));
        if sb.block_bits == 10 && nth == 0 && sb.first_data_block == 0 {
            // With 1 KiB blocks counted from 0 the boot block comes before the superblock.
            skip += 1;
        }
        sb.first_data_block.saturating_add(group.saturating_mul(sb.blocks_per_group)).saturating_add(skip)
    }

    fn descriptor_checksum_holds(&self, group: u64, desc: &[u8]) -> bool {
        const CHECKSUM_AT: usize = 0x1E;
        let sb = &self.sb;
        let number = u32::try_from(group).unwrap_or(u32::MAX).to_le_bytes();
        let stored = le16(desc, CHECKSUM_AT);
        if sb.checksums() {
            let crc = crc32c_without(crc32c(sb.csum_seed, &number), desc, CHECKSUM_AT, 2);
            stored == low16(crc)
        } else if sb.has_ro(ro_compat::GDT_CSUM) {
            let crc = crc16(crc16(crc16(!0, &sb.uuid), &number), desc.get(..CHECKSUM_AT).unwrap_or_default());
            stored == crc16(crc, desc.get(CHECKSUM_AT + 2..).unwrap_or_default())
        } else {
            true
        }
    }
}

fn inode_checksum_holds(raw: &[u8], seed: u32) -> bool {
    const LOW: usize = 0x7C;
    const HIGH: usize = 0x82;
    let crc = crc32c_without(seed, &raw[..128], LOW, 2);
    let low = le16(raw, LOW);
    if raw.len() == 128 {
        return low == low16(crc);
    }
    if le16(raw, 0x80) >= 4 {
        let crc = crc32c_without(crc, &raw[128..], HIGH - 128, 2);
        crc == u32::from(low) | u32::from(le16(raw, HIGH)) << 16
    } else {
        low == low16(crc32c(crc, &raw[128..]))
    }
}

fn low16(crc: u32) -> u16 {
    u16::from_le_bytes([crc.to_le_bytes()[0], crc.to_le_bytes()[1]])
}

/// The smaller of a length in memory and one on disk.
pub(super) fn fit(limit: usize, on_disk: u64) -> usize {
    usize::try_from(on_disk).unwrap_or(usize::MAX).min(limit)
}
