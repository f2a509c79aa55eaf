//! Where things lie on the image, for whoever compares two snapshots by the blocks that they share.
//!
//! A snapshot of a mounted XFS has a log, whose replay mostly repeats what is on disk. What it does lay over the image
//! is not at its place there: nothing is told of that. The rest is where it is.

use super::Xfs;
use super::extent::END;
use super::inode::{Format, Inode, Which};
use super::superblock::incompat;
use crate::fs::bytes::{be16, be32};
use crate::fs::run::Place;
use crate::{Error, Extent, FileKind, Ino, Result};
use std::ops::Range;

/// More groups than this are not looked at.
const MAX_GROUPS: u32 = 1 << 12;
/// Most blocks of trees that are visited.
const MAX_VISITED: usize = 1 << 16;
/// Most levels of a tree of a group.
const MAX_LEVEL: u32 = 12;
/// Inodes are allocated 64 at a time, for which there is a record; it tells of every four whether they are there.
const TOLD_INODES: u32 = 4;

/// A tree of an allocation group: where its root and number of levels stand in its header, and its forms.
struct Tree {
    /// Sector of the group with its header.
    sector: usize,
    root: usize,
    levels: usize,
    magics: [&'static [u8; 4]; 2],
    /// Bytes of a key in a node; pointers are 4 each.
    key: usize,
}

/// Free space by place and by size, owners, shared extents; inodes, free inodes.
const TREES: [Tree; 6] = [
    Tree { sector: 1, root: 16, levels: 28, magics: [b"AB3B", b"ABTB"], key: 8 },
    Tree { sector: 1, root: 20, levels: 32, magics: [b"AB3C", b"ABTC"], key: 8 },
    Tree { sector: 1, root: 24, levels: 36, magics: [b"RMB3", b"RMB3"], key: 40 },
    Tree { sector: 1, root: 88, levels: 92, magics: [b"R3FC", b"R3FC"], key: 4 },
    Tree { sector: 2, root: 20, levels: 24, magics: [b"IAB3", b"IABT"], key: 4 },
    Tree { sector: 2, root: 328, levels: 332, magics: [b"FIB3", b"FIBT"], key: 4 },
];
/// Of these the one whose records say where inodes are.
const INODES: usize = 4;

impl Xfs {
    pub(super) fn content_extent(&self, ino: Ino, offset: u64) -> Result<Option<Extent>> {
        let inode = self.inode(ino)?;
        if !matches!(inode.kind, FileKind::File | FileKind::Dir) {
            return Err(Error::WrongKind(format!("inode {ino} has no content")));
        }
        let is_dir = inode.kind == FileKind::Dir;
        // The index of a directory lies behind its names, and changes with them.
        let size =
            if is_dir && inode.format() != Format::Local { END << self.sb.block_bits } else { inode.size };
        let Some(left) = size.checked_sub(offset).filter(|left| *left > 0) else { return Ok(None) };
        if inode.is_realtime() {
            return Ok(Some(Extent::Opaque { len: left }));
        }
        if inode.format() == Format::Local {
            return Ok(Some(self.in_the_inode(&inode, left)));
        }
        let bits = self.sb.block_bits;
        let within = offset & ((1 << bits) - 1);
        let run = self.map(&inode, Which::Data, offset >> bits)?;
        let len = run.len.saturating_mul(1 << bits).saturating_sub(within).min(left);
        Ok(match run.place {
            // Behind the last block of a directory is nothing, which is its end.
            Place::Hole if is_dir && len == left => None,
            Place::Hole => Some(Extent::Hole { len }),
            Place::Data(start) => Some(self.unpatched(start, run.len, within, len)),
        })
    }

    /// The names of a small directory.
    fn in_the_inode(&self, inode: &Inode, len: u64) -> Extent {
        match self.inode_range(inode.ino) {
            Some(range) => Extent::Data { at: range.start, len },
            None => Extent::Opaque { len },
        }
    }

    /// A run of blocks, as far as the log did not change it.
    fn unpatched(&self, start: u64, count: u64, within: u64, len: u64) -> Extent {
        let at = self.sb.byte_of(start, count).map(|byte| byte + within);
        match at.filter(|at| !self.image.is_patched(*at, usize::try_from(len).unwrap_or(usize::MAX))) {
            Some(at) => Extent::Data { at, len },
            None => Extent::Opaque { len },
        }
    }

    /// None: the log has another state of it.
    pub(super) fn inode_range(&self, ino: Ino) -> Option<Range<u64>> {
        let at = self.sb.byte_of_inode(ino)?;
        let is_plain = !self.image.is_patched(at, self.sb.inode_size) && !self.completed.changes(ino);
        is_plain.then(|| at..at + self.sb.inode_size as u64)
    }

    /// Headers and trees of the groups, inodes, the log. None where something of it cannot be read.
    pub(super) fn all_bookkeeping(&self) -> Option<Vec<Range<u64>>> {
        let sb = &self.sb;
        if sb.ag_count > MAX_GROUPS || sb.log_start == 0 {
            return None;
        }
        let log = sb.byte_of(sb.log_start, u64::from(sb.log_blocks))?;
        let mut all = Vec::new();
        all.push(log..log + (u64::from(sb.log_blocks) << sb.block_bits));
        let mut visited = 0;
        for group in 0..u64::from(sb.ag_count) {
            let start = sb.byte_in_group(group, 0, 1)?;
            // Superblock, free space, inodes, the list of blocks for trees.
            let header = 4 * sb.sector_bytes as u64;
            all.push(start..start + header);
            let mut sectors = vec![0; 3 * sb.sector_bytes];
            self.image.read_at(start, &mut sectors).ok()?;
            if sectors.get(sb.sector_bytes..)?.get(..4)? != b"XAGF"
                || sectors.get(2 * sb.sector_bytes..)?.get(..4)? != b"XAGI"
            {
                return None;
            }
            for (number, tree) in TREES.iter().enumerate() {
                let header = &sectors[tree.sector * sb.sector_bytes..];
                let (root, levels) = (be32(header, tree.root), be32(header, tree.levels));
                if levels > 0 {
                    self.tree_blocks(group, tree, (root, levels), number == INODES, &mut visited, &mut all)?;
                }
            }
            self.spare_blocks(group, start, &sectors, &mut all)?;
        }
        all.sort_by_key(|range| range.start);
        Some(all)
    }

    /// The blocks of a tree; of that of the inodes the chunks, too. Leaves of the others are not read.
    fn tree_blocks(
        &self,
        group: u64,
        tree: &Tree,
        (root, levels): (u32, u32),
        inodes: bool,
        visited: &mut usize,
        all: &mut Vec<Range<u64>>,
    ) -> Option<()> {
        let size = self.sb.block_size();
        let header = if self.sb.v5() { 56 } else { 16 };
        let mut todo = vec![(root, levels.checked_sub(1).filter(|level| *level < MAX_LEVEL)?)];
        while let Some((block, level)) = todo.pop() {
            *visited += 1;
            let at = self.sb.byte_in_group(group, u64::from(block), 1).filter(|_| *visited <= MAX_VISITED)?;
            all.push(at..at + size as u64);
            if level == 0 && !inodes {
                continue;
            }
            let bytes = self.image.piece(at, size).ok()?;
            let is_one = tree.magics.iter().any(|magic| bytes.starts_with(&magic[..]));
            if !is_one || u32::from(be16(&bytes, 4)) != level {
                return None;
            }
            let count = usize::from(be16(&bytes, 6));
            let area = bytes.get(header..)?;
            if level > 0 {
                let most = area.len() / (tree.key + 4);
                let pointers = area.get(most * tree.key..)?.chunks_exact(4).take(count.min(most));
                todo.extend(pointers.map(|pointer| (be32(pointer, 0), level - 1)));
            } else {
                let records = area.chunks_exact(16).take(count);
                records.for_each(|record| all.extend(self.chunk(group, record)));
            }
        }
        Some(())
    }

    /// Where the inodes of a record lie.
    fn chunk(&self, group: u64, record: &[u8]) -> impl Iterator<Item = Range<u64>> {
        let (first, bits) = (be32(record, 0), self.sb.inodes_per_block_bits);
        let missing = if self.sb.incompat & incompat::SPARSE_INODES != 0 { be16(record, 4) } else { 0 };
        (0..16).filter(move |bit| missing >> bit & 1 == 0).filter_map(move |bit| {
            let ino = u64::from(first) + u64::from(bit * TOLD_INODES);
            let within = (ino & ((1 << bits) - 1)) * self.sb.inode_size as u64;
            let at = self.sb.byte_in_group(group, ino >> bits, 1)? + within;
            Some(at..at + u64::from(TOLD_INODES) * self.sb.inode_size as u64)
        })
    }

    /// The blocks on the list for trees to come: they were in one before, or will be.
    fn spare_blocks(&self, group: u64, start: u64, sectors: &[u8], all: &mut Vec<Range<u64>>) -> Option<()> {
        let sector = self.sb.sector_bytes;
        let header = sectors.get(sector..)?;
        let (first, count) = (be32(header, 40), be32(header, 48));
        let mut list = vec![0; sector];
        self.image.read_at(start + 3 * sector as u64, &mut list).ok()?;
        let slots = list.get(if self.sb.v5() { 36 } else { 0 }..)?;
        let room = u32::try_from(slots.len() / 4).ok()?;
        for i in 0..count.min(room) {
            let slot = usize::try_from((first.checked_add(i)?) % room).ok()?;
            if let Some(at) = self.sb.byte_in_group(group, u64::from(be32(slots, slot * 4)), 1) {
                all.push(at..at + self.sb.block_size() as u64);
            }
        }
        Some(())
    }
}
