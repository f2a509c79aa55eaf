//! Where things lie on the image, for whoever compares two snapshots by the blocks that they share.
//!
//! What a replayed journal lays over the image is not at its place there, so nothing is told then.

use super::Ext4;
use super::inode::{ROOT_INO, fit, flag};
use super::mapping::Until;
use super::superblock::incompat;
use crate::fs::bytes::le32;
use crate::fs::run::Place;
use crate::{Error, Extent, FileKind, Ino, InodeTable, Result};
use std::ops::Range;

/// Most inodes that no name leads to.
const MAX_RESERVED: u32 = 128;

impl Ext4 {
    /// Whether every byte is where the image has it.
    fn is_plain(&self) -> bool {
        self.replay == "clean"
    }

    pub(super) fn content_extent(&self, ino: Ino, offset: u64) -> Result<Option<Extent>> {
        let inode = self.named_inode(ino)?;
        if !matches!(inode.kind, FileKind::File | FileKind::Dir) {
            return Err(Error::WrongKind(format!("inode {ino} has no content")));
        }
        let Some(left) = inode.size.checked_sub(offset).filter(|left| *left > 0) else { return Ok(None) };
        if !self.is_plain() || inode.has(flag::INLINE_DATA | flag::ENCRYPT) {
            return Ok(Some(Extent::Opaque { len: left }));
        }
        let bits = self.sb.block_bits;
        let within = offset & ((1 << bits) - 1);
        let run = self.map(&inode, offset >> bits, Until::Contiguous)?;
        let len = run.len.saturating_mul(1 << bits).saturating_sub(within).min(left);
        Ok(Some(match run.place {
            Place::Hole => Extent::Hole { len },
            Place::Data(start) => Extent::Data { at: (start << bits) + within, len },
        }))
    }

    pub(super) fn inode_range(&self, ino: Ino) -> Result<Option<Range<u64>>> {
        if !self.is_plain() {
            return Ok(None);
        }
        let sb = &self.sb;
        let index = self.named(ino)?.saturating_sub(1);
        if index >= sb.inodes {
            return Err(Error::Corrupt(format!("ext4: inode {ino} is beyond the last, {}", sb.inodes)));
        }
        let table = self.inode_table(u64::from(index / sb.inodes_per_group))? << sb.block_bits;
        let at = table + u64::from(index % sb.inodes_per_group) * sb.inode_size as u64;
        Ok(Some(at..at + sb.inode_size as u64))
    }

    pub(super) fn all_inode_tables(&self) -> Result<Option<Vec<InodeTable>>> {
        if !self.is_plain() {
            return Ok(None);
        }
        let sb = &self.sb;
        let table = |group: u32| -> Result<InodeTable> {
            let before = group.saturating_mul(sb.inodes_per_group);
            Ok(InodeTable {
                first: u64::from(before) + 1,
                at: self.inode_table(group.into())? << sb.block_bits,
                count: sb.inodes_per_group.min(sb.inodes - before).into(),
                inode_bytes: sb.inode_size as u64,
            })
        };
        (0..sb.inodes.div_ceil(sb.inodes_per_group)).map(table).collect::<Result<_>>().map(Some)
    }

    /// Superblocks, descriptors, bitmaps, inode tables, and the content of inodes that no name leads to.
    pub(super) fn all_bookkeeping(&self) -> Result<Option<Vec<Range<u64>>>> {
        let sb = &self.sb;
        // Eleven everywhere; a larger number is a lie, and would take for ever.
        if !self.is_plain() || sb.has(incompat::META_BG) || sb.first_ino > MAX_RESERVED {
            return Ok(None);
        }
        let bits = sb.block_bits;
        let blocks = |start: u64, count: u64| start << bits..(start.saturating_add(count)) << bits;
        let groups = sb.inodes.div_ceil(sb.inodes_per_group);
        let descriptors = (u64::from(groups) * sb.desc_size as u64).div_ceil(1 << bits);
        let table = (u64::from(sb.inodes_per_group) * sb.inode_size as u64).div_ceil(1 << bits);
        // Up to the superblock and its descriptors: the boot block too, which is nobody's.
        let mut all = vec![blocks(0, sb.first_data_block + 1 + descriptors)];
        for group in 0..u64::from(groups) {
            if group > 0 && sb.group_has_super(group) {
                all.push(blocks(sb.first_data_block + group * sb.blocks_per_group, 1 + descriptors));
            }
            let [block_map, inode_map] = self.bitmaps(group)?;
            all.extend([blocks(block_map, 1), blocks(inode_map, 1), blocks(self.inode_table(group)?, table)]);
        }
        for ino in (1..sb.first_ino).filter(|ino| *ino != ROOT_INO) {
            self.hidden_content(ino, &mut all);
        }
        all.sort_by_key(|range| range.start);
        Ok(Some(all))
    }

    /// The blocks that hold the bitmaps of a group.
    fn bitmaps(&self, group: u64) -> Result<[u64; 2]> {
        let sb = &self.sb;
        let per_block = (sb.block_size() / sb.desc_size) as u64;
        let at = (self.descriptor_block(group / per_block, per_block) << sb.block_bits)
            + group % per_block * sb.desc_size as u64;
        let mut desc = [0; 64];
        self.dev.read_at(at, &mut desc[..sb.desc_size.min(64)])?;
        let high = |at| if sb.desc_size >= 64 { u64::from(le32(&desc, at)) << 32 } else { 0 };
        Ok([u64::from(le32(&desc, 0)) | high(0x20), u64::from(le32(&desc, 4)) | high(0x24)])
    }

    /// The content of a reserved inode; one that is not in use, or damaged, has none.
    fn hidden_content(&self, ino: u32, all: &mut Vec<Range<u64>>) {
        let Ok(inode) = self.inode(ino) else { return };
        let (mut block, bits) = (0, self.sb.block_bits);
        let end = inode.size.div_ceil(1 << bits);
        while block < end {
            let Ok(run) = self.map(&inode, block, Until::Contiguous) else { return };
            if let Place::Data(start) = run.place {
                all.push(start << bits..start.saturating_add(run.len) << bits);
            }
            block = block.saturating_add(fit(usize::MAX, run.len.max(1)) as u64);
        }
    }
}
