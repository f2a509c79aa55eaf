//! Extents in replay: those of the log take the place of what was there, and their checksums come with them.

use super::{Replay, corrupt, set};
use crate::fs::btrfs::data::fill_sums;
use crate::fs::btrfs::extent::{Extent, ExtentKind};
use crate::fs::btrfs::key::{Key, id, kind};
use crate::fs::btrfs::node::Bytes;
use crate::{Error, Result};

/// Offsets in the item of an extent that is not inline.
const OFFSET: usize = 37;
const BYTES: usize = 45;
/// Sectors whose checksums are taken at once.
const STEP_SECTORS: u64 = 4096;

impl Replay<'_> {
    /// An extent of the log.
    pub(super) fn extent(&mut self, key: Key, item: &Bytes) -> Result<()> {
        let extent = Extent::parse(key.offset, item).map_err(corrupt)?;
        let inline = extent.kind == ExtentKind::Inline;
        let end = if inline {
            let end = extent.end().checked_next_multiple_of(self.blocks.sector_bytes);
            end.ok_or_else(|| corrupt("an inline extent that ends beyond all numbers"))?
        } else {
            extent.end()
        };
        self.inode_item(key.id)?;
        if !inline && self.subvol().get(key)?.is_some_and(|held| held[..] == item[..]) {
            return Ok(());
        }
        let dropped = self.drop_extents(key.id, key.offset, end)?;
        let mut added = extent.bytes;
        if !inline && extent.address == 0 {
            added = 0;
        }
        if inline || extent.address != 0 || !self.no_holes {
            self.shadow.put(key, item)?;
        }
        if !inline && extent.address != 0 {
            self.take_sums(&extent)?;
        }
        self.add_bytes(key.id, added, dropped)
    }

    /// Removes the bytes `start..end` from the extents of a file; how many of them were not holes.
    pub(super) fn drop_extents(&mut self, ino: u64, start: u64, end: u64) -> Result<u64> {
        let mut dropped = 0u64;
        let mut from = Key::new(ino, kind::EXTENT_DATA, start);
        if let Some((key, _)) = self.subvol().prev(from)?
            && key.is(ino, kind::EXTENT_DATA)
        {
            from = key;
        }
        while let Some((key, item)) = self.subvol().next(from)? {
            if !key.is(ino, kind::EXTENT_DATA) || key.offset >= end {
                break;
            }
            dropped = dropped.saturating_add(self.cut_extent(key, &item, start, end)?);
            let Some(next) = key.after() else { break };
            from = next;
        }
        Ok(dropped)
    }

    /// Takes `start..end` out of one extent.
    fn cut_extent(&mut self, key: Key, item: &Bytes, start: u64, end: u64) -> Result<u64> {
        let extent = Extent::parse(key.offset, item).map_err(corrupt)?;
        if extent.end() <= start && extent.bytes > 0 {
            return Ok(0);
        }
        let (from, to) = (start.max(extent.start), end.min(extent.end()));
        let inline = extent.kind == ExtentKind::Inline;
        let counted = if inline || extent.address != 0 { to.saturating_sub(from) } else { 0 };
        if from > extent.start || to < extent.end() {
            if inline {
                return Err(Error::Unsupported("btrfs log: it cuts an inline extent in two".into()));
            }
            if to < extent.end() {
                let mut tail = item.to_vec();
                set(&mut tail, OFFSET, &(extent.offset + (to - extent.start)).to_le_bytes());
                set(&mut tail, BYTES, &(extent.end() - to).to_le_bytes());
                self.shadow.put(Key { offset: to, ..key }, &tail)?;
            }
            if from > extent.start {
                let mut head = item.to_vec();
                set(&mut head, BYTES, &(from - extent.start).to_le_bytes());
                self.shadow.put(key, &head)?;
                return Ok(counted);
            }
        }
        self.shadow.remove(key)?;
        Ok(counted)
    }

    /// Takes the checksums that the log has for an extent: those on disk may be of what was there before.
    fn take_sums(&mut self, extent: &Extent) -> Result<()> {
        let (start, bytes) = if extent.compression == 0 {
            (extent.address.checked_add(extent.offset), extent.bytes)
        } else {
            (Some(extent.address), extent.disk_bytes)
        };
        let start = start.filter(|start| start.checked_add(bytes).is_some());
        let start = start.ok_or_else(|| corrupt("an extent beyond all addresses"))?;
        // Only where there is something: an extent may be large, and its checksums in the log few.
        let (sector, len) = (self.blocks.sector_bytes, self.blocks.checksum.len());
        let csum = |at: u64| Key::new(id::EXTENT_CSUM, kind::EXTENT_CSUM, at);
        let (log, end) = (self.log(), start + bytes);
        let mut at = start;
        while at < end {
            let before = log.prev(csum(at))?.filter(|(key, _)| key.is(id::EXTENT_CSUM, kind::EXTENT_CSUM));
            let covered =
                before.map(|(key, item)| key.offset.saturating_add((item.len() / len) as u64 * sector));
            let upto = match covered.filter(|&covered| covered > at) {
                Some(covered) => covered.min(end).min(at.saturating_add(STEP_SECTORS * sector)),
                None => match log.next(csum(at))? {
                    Some((key, _))
                        if key.is(id::EXTENT_CSUM, kind::EXTENT_CSUM)
                            && key.offset < end
                            && key.offset > at =>
                    {
                        at = key.offset;
                        continue;
                    }
                    _ => break,
                },
            };
            let count = (upto - at).div_ceil(sector);
            let mut sums = vec![0; usize::try_from(count).unwrap_or(0) * len];
            fill_sums(&log, at, &mut sums)?;
            for (i, sum) in (0u64..).zip(sums.chunks(len)) {
                self.sums.put(csum(at + i * sector), sum)?;
            }
            at = upto;
        }
        Ok(())
    }
}
