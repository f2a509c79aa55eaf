//! Work that the log promised and did not do, done over the inodes concerned: mappings, sizes, attributes.
//!
//! The inodes on the image stay as they are; what differs is kept beside them, by inode. Blocks that a tree of extents
//! would take or give back are not counted: `blocks_512` of such a file can differ from what the kernel makes of it.

use super::Xfs;
use super::extent::{END, Extent, Found};
use super::inode::{Inode, Which};
use super::log::Intent;
use crate::{Error, Ino, Result};
use std::collections::{BTreeMap, HashMap};

/// Extents of one file that are taken into memory at most.
const MAX_EXTENTS: usize = 1 << 20;

/// Bits of a promised mapping.
mod map_flag {
    pub const UNMAP: u32 = 2;
    pub const KIND: u32 = 0xFF;
    pub const REALTIME: u32 = 1 << 29;
    pub const UNWRITTEN: u32 = 1 << 30;
    pub const ATTRIBUTES: u32 = 1 << 31;
}

/// Bits of a promised exchange.
mod exchange_flag {
    pub const ATTRIBUTES: u64 = 1;
    pub const ONLY_WRITTEN: u64 = 4;
}

/// An attribute promised for an inode: name space, name, value; None removes it.
type Promised = (u8, Vec<u8>, Option<Vec<u8>>);

/// What differs from the image.
#[derive(Default)]
pub(super) struct Completed {
    forks: HashMap<(Ino, Which), Vec<Extent>>,
    /// Blocks more, or fewer.
    blocks: HashMap<Ino, i64>,
    sizes: HashMap<Ino, u64>,
    attributes: HashMap<Ino, Vec<Promised>>,
}

impl Completed {
    /// The extents of a fork, if they are not those of the image.
    pub fn extents(&self, ino: Ino, which: Which) -> Option<&[Extent]> {
        self.forks.get(&(ino, which)).map(Vec::as_slice)
    }

    /// Whether anything of an inode differs.
    pub fn changes(&self, ino: Ino) -> bool {
        [Which::Data, Which::Attributes].iter().any(|which| self.forks.contains_key(&(ino, *which)))
            || self.blocks.contains_key(&ino)
            || self.sizes.contains_key(&ino)
            || self.attributes.contains_key(&ino)
    }

    /// Corrects an inode as it is read.
    pub fn correct(&self, inode: &mut Inode) {
        if let Some(size) = self.sizes.get(&inode.ino) {
            inode.size = *size;
        }
        if let Some(more) = self.blocks.get(&inode.ino) {
            inode.blocks = inode.blocks.saturating_add_signed(*more);
        }
    }

    /// Corrects the attributes of an inode.
    pub fn correct_attributes(&self, ino: Ino, all: &mut Vec<super::attributes::Stored>) {
        for (space, name, value) in self.attributes.get(&ino).into_iter().flatten() {
            all.retain(|(s, n, _)| (s, n) != (space, name));
            if let Some(value) = value {
                all.push((*space, name.clone(), value.clone()));
            }
        }
    }
}

/// Extents of a fork by their first block.
type Extents = BTreeMap<u64, Extent>;

/// What is at `block`: an extent from there on, or a hole of so many blocks.
fn at(extents: &Extents, block: u64) -> std::result::Result<Extent, u64> {
    if let Some((_, found)) = extents.range(..=block).next_back().filter(|(_, e)| e.end() > block) {
        let skip = block - found.offset;
        let (start, count) = (found.start + skip, found.count - skip);
        return Ok(Extent { offset: block, start, count, ..*found });
    }
    Err(extents.range(block..).next().map_or(END, |(&next, _)| next) - block)
}

/// Takes `count` blocks from `block` on out; the number of blocks that were mapped.
fn take_out(extents: &mut Extents, block: u64, count: u64) -> u64 {
    let end = block.saturating_add(count);
    for edge in [block, end] {
        if let Ok(rest) = at(extents, edge)
            && let Some((_, before)) = extents.range_mut(..edge).next_back().filter(|(_, e)| e.end() > edge)
        {
            before.count = edge - before.offset;
            extents.insert(edge, rest);
        }
    }
    let inside: Vec<u64> = extents.range(block..end).map(|(&k, _)| k).collect();
    inside.iter().filter_map(|k| extents.remove(k)).map(|e| e.count).sum()
}

impl Xfs {
    /// Does what is left.
    pub(super) fn complete(&mut self, left: &[Intent]) -> Result<()> {
        for intent in left {
            match intent {
                Intent::Map { owner, start, offset, count, flags } => {
                    let extent = Extent {
                        offset: *offset,
                        start: *start,
                        count: *count,
                        unwritten: flags & map_flag::UNWRITTEN != 0,
                    };
                    self.complete_map(*owner, extent, *flags)?;
                }
                Intent::Exchange { .. } => self.complete_exchange(intent)?,
                Intent::Attribute { ino, space, name, value } => {
                    let promised = (*space, name.clone(), value.clone());
                    self.completed.attributes.entry(*ino).or_default().push(promised);
                }
            }
        }
        Ok(())
    }

    fn complete_map(&mut self, owner: Ino, extent: Extent, flags: u32) -> Result<()> {
        if flags & map_flag::REALTIME != 0 {
            return Ok(());
        }
        let which = if flags & map_flag::ATTRIBUTES != 0 { Which::Attributes } else { Which::Data };
        if extent.count == 0 || extent.offset >= END || extent.count >= END {
            return Err(Error::Corrupt("xfs log: a promised extent that is impossible".into()));
        }
        let mut extents = self.extents_of(owner, which)?;
        let removed = take_out(&mut extents, extent.offset, extent.count);
        self.count_blocks(owner, -i64::try_from(removed).unwrap_or(0));
        if flags & map_flag::KIND != map_flag::UNMAP {
            extents.insert(extent.offset, extent);
            self.count_blocks(owner, i64::try_from(extent.count).unwrap_or(0));
        }
        self.completed.forks.insert((owner, which), extents.into_values().collect());
        Ok(())
    }

    fn count_blocks(&mut self, ino: Ino, more: i64) {
        let count = self.completed.blocks.entry(ino).or_default();
        *count = count.saturating_add(more);
    }

    /// Exchanges the mappings of two files, piece by piece; what is the same on both sides stays.
    fn complete_exchange(&mut self, intent: &Intent) -> Result<()> {
        let Intent::Exchange { inodes, offsets, count, flags, sizes } = intent else { return Ok(()) };
        let which = if flags & exchange_flag::ATTRIBUTES != 0 { Which::Attributes } else { Which::Data };
        if inodes[0] == inodes[1] || offsets.iter().any(|o| o.saturating_add(*count) > END) {
            return Err(Error::Corrupt("xfs log: a promised exchange that is impossible".into()));
        }
        let mut both = [self.extents_of(inodes[0], which)?, self.extents_of(inodes[1], which)?];
        let mut ends = [0, 0];
        let mut done = 0;
        while done < *count {
            let here = [at(&both[0], offsets[0] + done), at(&both[1], offsets[1] + done)];
            let len = here.iter().map(|h| h.map_or_else(|hole| hole, |e| e.count)).min().unwrap_or(1);
            let len = len.min(count - done);
            let same = match here {
                [Err(_), Err(_)] => true,
                [Ok(a), Ok(b)] => a.start == b.start,
                _ => false,
            };
            let left_out = flags & exchange_flag::ONLY_WRITTEN != 0 && here[0].is_ok_and(|e| !e.unwritten);
            if !same && (flags & exchange_flag::ONLY_WRITTEN == 0 || left_out) {
                for side in [0, 1] {
                    let offset = offsets[side] + done;
                    let removed = take_out(&mut both[side], offset, len);
                    self.count_blocks(inodes[side], -i64::try_from(removed).unwrap_or(0));
                    if let Ok(other) = here[1 - side] {
                        both[side].insert(offset, Extent { offset, count: len, ..other });
                        self.count_blocks(inodes[side], i64::try_from(len).unwrap_or(0));
                        ends[side] = offset + len;
                    }
                }
            }
            done += len;
        }
        for (side, extents) in both.into_iter().enumerate() {
            self.grow(inodes[side], ends[side], sizes[side])?;
            self.completed.forks.insert((inodes[side], which), extents.into_values().collect());
        }
        Ok(())
    }

    /// What was exchanged behind the end of a file becomes part of it, up to the size that was intended.
    fn grow(&mut self, ino: Ino, end_block: u64, intended: u64) -> Result<()> {
        if intended <= i64::MAX as u64 {
            let size = end_block.saturating_mul(1 << self.sb.block_bits).min(intended);
            if size > self.inode(ino)?.size {
                self.completed.sizes.insert(ino, size);
            }
        }
        Ok(())
    }

    fn extents_of(&self, ino: Ino, which: Which) -> Result<Extents> {
        let inode = self.inode(ino)?;
        let (mut extents, mut block) = (Extents::new(), 0);
        while block < END {
            match self.found(&inode, which, block)? {
                Found::Extent(extent) => {
                    block = extent.end();
                    extents.insert(extent.offset, extent);
                }
                Found::Hole(end) => block = end.max(block + 1),
            }
            if extents.len() > MAX_EXTENTS {
                return Err(Error::Unsupported(format!("inode {ino} has more than {MAX_EXTENTS} extents")));
            }
        }
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, start: u64, count: u64) -> Extent {
        Extent { offset, start, count, unwritten: false }
    }

    #[test]
    fn what_is_taken_out_leaves_its_neighbours() {
        let all = || Extents::from([(0, extent(0, 100, 10)), (20, extent(20, 200, 10))]);
        let mut extents = all();
        assert_eq!(take_out(&mut extents, 3, 4), 4);
        let left: Vec<_> = extents.into_values().collect();
        assert_eq!(left, [extent(0, 100, 3), extent(7, 107, 3), extent(20, 200, 10)]);
        let mut extents = all();
        assert_eq!(take_out(&mut extents, 5, 20), 10);
        assert_eq!(extents.into_values().collect::<Vec<_>>(), [extent(0, 100, 5), extent(25, 205, 5)]);
        let mut extents = all();
        assert_eq!((take_out(&mut extents, 10, 10), extents.len()), (0, 2));
        assert_eq!(at(&extents, 12), Err(8));
        assert_eq!(at(&extents, 22), Ok(extent(22, 202, 8)));
        assert_eq!(at(&extents, 30), Err(END - 30));
    }
}
