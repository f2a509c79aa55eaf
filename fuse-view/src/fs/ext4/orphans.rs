//! Orphans: files that were being truncated or deleted. Recovery finishes that, which shows in the blocks they hold.
//!
//! Files without a name are not seen at all. Of the others the size is right already; blocks behind it go. Their times
//! become those of recovery, which nobody can know: here they stay.

use super::Ext4;
use super::fast::{Mapped, with_blocks};
use super::inode::{Inode, fit, flag};
use super::superblock::compat;
use crate::fs::bytes::{le16, le32};
use crate::{Error, FileKind, Result};
use std::collections::HashSet;

const LINKS: usize = 0x1A;
/// In an orphan, the inode number of the next one.
const NEXT: usize = 0x14;
const FILE_MAGIC: u32 = 0x0B10_CA04;
/// Magic and checksum at the end of each block of the orphan file.
const FILE_TAIL: usize = 8;
/// Most orphans that are looked at, and most blocks of pointers of one of them.
const MOST: usize = 1 << 20;

impl Ext4 {
    /// Does to the orphans what recovery does, in the layer over the image.
    pub(super) fn cut_orphans(&mut self) -> Result<()> {
        if self.sb.has_errors {
            return Ok(());
        }
        for ino in self.orphans()? {
            match self.cut(ino) {
                Ok(()) => {}
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => tracing::debug!("ext4 orphan {ino}: {e}"),
            }
        }
        Ok(())
    }

    fn orphans(&self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut ino = self.sb.last_orphan;
        while ino >= self.sb.first_ino && found.len() < MOST && seen.insert(ino) {
            let raw = match self.slot(ino) {
                Ok(raw) => raw,
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(_) => break,
            };
            found.push(ino);
            ino = le32(&raw, NEXT);
        }
        if self.sb.compat & compat::ORPHAN_FILE != 0 {
            match self.orphan_file(&mut found) {
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => tracing::debug!("ext4 orphan file: {e}"),
                Ok(()) => {}
            }
        }
        Ok(found)
    }

    fn orphan_file(&self, found: &mut Vec<u32>) -> Result<()> {
        let inode = self.inode(self.sb.orphan_file)?;
        let size = self.sb.block_size();
        let mut block = vec![0; size];
        for at in (0..inode.size).step_by(size) {
            self.read_mapped(&inode, at, &mut block)?;
            if le32(&block, size - FILE_TAIL) != FILE_MAGIC || found.len() > MOST {
                return Err(Error::Corrupt("a block without its magic".into()));
            }
            let numbers = block[..size - FILE_TAIL].chunks_exact(4).map(|n| le32(n, 0));
            found.extend(numbers.filter(|&ino| ino >= self.sb.first_ino));
        }
        Ok(())
    }

    fn cut(&mut self, ino: u32) -> Result<()> {
        let raw = match self.fast.inode(ino) {
            Some(edit) => edit.raw.clone(),
            None => self.slot(ino)?,
        };
        if le16(&raw, LINKS) == 0 {
            return Ok(());
        }
        let inode = self.inode(ino)?;
        let has_blocks = match inode.kind {
            FileKind::File | FileKind::Dir => true,
            FileKind::Symlink => !self.is_short_link(&inode),
            _ => false,
        };
        if !has_blocks || inode.has(flag::INLINE_DATA) {
            return Ok(());
        }
        let bits = self.sb.block_bits;
        let end = inode.size.div_ceil(1 << bits);
        let freed = if inode.has(flag::EXTENTS) {
            self.extents_from(&inode, end)?
        } else {
            self.pointers_from(&inode, end)?
        };
        if freed > 0 {
            let unit = if inode.has(flag::HUGE_FILE) { 0 } else { bits - 9 };
            let held = self.raw_blocks(&inode).saturating_sub(freed << unit);
            self.fast.cut(ino, with_blocks(&raw, held), end);
        }
        Ok(())
    }

    /// Blocks of the content from block `end` on, and of the tree that leads to nothing else.
    fn extents_from(&self, inode: &Inode, end: u64) -> Result<u64> {
        let cluster = self.sb.cluster_bits - self.sb.block_bits;
        let mut freed = HashSet::new();
        let (mut kept, mut blocks) = (HashSet::new(), 0);
        let mut visit = |first: u64, len: u64, place: Mapped| {
            let (Mapped::Data(at) | Mapped::Unwritten(at)) = place else { return };
            let keep = end.saturating_sub(first).min(len);
            blocks += len - keep;
            if cluster > 0 {
                kept.extend((at..at + keep).map(|block| block >> cluster));
                freed.extend((at + keep..at + len).map(|block| block >> cluster));
            }
        };
        let all = self.each_extent(inode, u64::MAX, &mut visit)?;
        let nodes = all - self.each_extent(inode, end, &mut |_, _, _| {})?;
        if cluster > 0 {
            // Clusters that the rest of the file still uses stay.
            blocks = (freed.difference(&kept).count() as u64) << cluster;
        }
        Ok(blocks + (nodes << cluster))
    }

    /// As [`Ext4::extents_from`] for block pointers.
    fn pointers_from(&self, inode: &Inode, end: u64) -> Result<u64> {
        const DIRECT: u64 = 12;
        let area = inode.block_area();
        let direct = (end.min(DIRECT)..DIRECT).filter(|&i| le32(area, 4 * fit(usize::MAX, i)) != 0).count();
        let mut freed = direct as u64;
        let (mut first, mut left) = (DIRECT, MOST);
        for level in 1..=3u32 {
            freed +=
                self.pointers_below(le32(area, 4 * (11 + level as usize)), level, first, end, &mut left)?;
            first += 1 << ((self.sb.block_bits - 2) * level);
        }
        Ok(freed)
    }

    fn pointers_below(&self, block: u32, level: u32, first: u64, end: u64, left: &mut usize) -> Result<u64> {
        let bits = self.sb.block_bits - 2;
        if block == 0 || first + (1 << (bits * level)) <= end {
            return Ok(0);
        }
        *left = left.checked_sub(1).filter(|_| self.sb.holds(u64::from(block), 1)).ok_or_else(|| {
            Error::Corrupt("blocks of pointers without end, or outside of the file system".into())
        })?;
        let piece = self.block(u64::from(block))?;
        let mut freed = u64::from(first >= end);
        for (i, pointer) in (0..).zip(piece.chunks_exact(4).map(|p| le32(p, 0))) {
            let at = first + (i << (bits * (level - 1)));
            freed += match level {
                1 => u64::from(pointer != 0 && at >= end),
                _ => self.pointers_below(pointer, level - 1, at, end, left)?,
            };
        }
        Ok(freed)
    }
}
