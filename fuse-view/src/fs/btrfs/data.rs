//! File data by logical address: every sector is checked, and read from another copy where it does not match.

use super::Btrfs;
use super::items::View;
use super::key::{Key, id, kind};
use crate::{Error, Result};

/// Most bytes read and checked at once.
const STEP_BYTES: usize = 4 << 20;

/// The checksums of some sectors in a row; empty where there is none.
type Sums = Vec<u8>;

impl Btrfs {
    /// Reads data at a logical address, checked against its checksums unless it has none.
    pub(super) fn read_data(&self, address: u64, buf: &mut [u8], checked: bool) -> Result<()> {
        if !checked {
            return self.read_any_copy(address, buf);
        }
        let sector = self.blocks.sector_bytes;
        let sector_len = usize::try_from(sector).unwrap_or(usize::MAX);
        if address.checked_add(buf.len() as u64 + sector).is_none() {
            return Err(Error::Corrupt(format!("btrfs data at {address}: beyond all addresses")));
        }
        let mut done = 0;
        while done < buf.len() {
            let at = address + done as u64;
            let within = usize::try_from(at % sector).unwrap_or(0);
            let rest = buf.len() - done;
            if within != 0 || rest < sector_len {
                // Part of a sector: all of it is needed for its checksum.
                let mut whole = vec![0; sector_len];
                self.read_sectors(at - within as u64, &mut whole)?;
                let len = rest.min(sector_len - within);
                buf[done..done + len].copy_from_slice(&whole[within..within + len]);
                done += len;
            } else {
                let len = (rest - rest % sector_len).min(STEP_BYTES);
                self.read_sectors(at, &mut buf[done..done + len])?;
                done += len;
            }
        }
        Ok(())
    }

    fn read_any_copy(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        let mut error = None;
        for copy in 0..self.blocks.copies(address)? {
            match self.blocks.read_copy(address, copy, buf) {
                Ok(()) => return Ok(()),
                Err(e) => {
                    error.get_or_insert(e);
                }
            }
        }
        Err(error.unwrap_or_else(|| Error::Corrupt(format!("btrfs data at {address}: no copy"))))
    }

    /// Reads whole sectors, each with a checksum that matches.
    fn read_sectors(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        let sector_len = usize::try_from(self.blocks.sector_bytes).unwrap_or(usize::MAX);
        let sums = self.sums(address, buf.len() / sector_len)?;
        let len = self.blocks.checksum.len();
        let readable = self.read_any_copy(address, buf).is_ok();
        for (i, sector) in buf.chunks_mut(sector_len).enumerate() {
            let sum = sums.get(i * len..(i + 1) * len).unwrap_or_default();
            let at = address + (i * sector_len) as u64;
            if !readable || !self.blocks.checksum.matches(sector, sum) || sum.is_empty() {
                self.repair(at, sector, sum)?;
            }
        }
        Ok(())
    }

    /// Reads a sector from the first copy that matches.
    fn repair(&self, address: u64, sector: &mut [u8], sum: &[u8]) -> Result<()> {
        let mut error = None;
        for copy in 0..self.blocks.copies(address)? {
            match self.blocks.read_copy(address, copy, sector) {
                Ok(()) if !sum.is_empty() && self.blocks.checksum.matches(sector, sum) => return Ok(()),
                Ok(()) => {
                    let what =
                        if sum.iter().all(|&b| b == 0) { "is missing" } else { "is wrong in every copy" };
                    error.get_or_insert_with(|| {
                        Error::Corrupt(format!("btrfs data at {address}: its checksum {what}"))
                    });
                }
                Err(e) => {
                    error.get_or_insert(e);
                }
            }
        }
        Err(error.unwrap_or_else(|| Error::Corrupt(format!("btrfs data at {address}: no copy"))))
    }

    /// The checksums of `count` sectors from `address` on; zeros where there is none, as the kernel takes it.
    fn sums(&self, address: u64, count: usize) -> Result<Sums> {
        let Some(tree) = self.csum_tree else {
            return Err(Error::Corrupt("btrfs: there is no tree of checksums".into()));
        };
        let view = View { blocks: &self.blocks, tree, shadow: None };
        let len = self.blocks.checksum.len();
        let mut sums = vec![0; count * len];
        fill_sums(&view, address, &mut sums)?;
        if let Some(shadow) = &self.replayed_sums {
            let end = address + count as u64 * self.blocks.sector_bytes;
            let mut from = Key::new(id::EXTENT_CSUM, kind::EXTENT_CSUM, address);
            while let Some((key, Some(place))) = shadow.at_or_after(from)
                && key.offset < end
            {
                let i =
                    usize::try_from((key.offset - address) / self.blocks.sector_bytes).unwrap_or(usize::MAX);
                if let Some(slot) = sums.get_mut(i * len..(i + 1) * len) {
                    slot.copy_from_slice(shadow.bytes(place)?.get(..len).unwrap_or_default());
                }
                let Some(next) = key.after() else { break };
                from = next;
            }
        }
        Ok(sums)
    }
}

/// Fills in the checksums of the sectors from `address` on that the tree `view` has.
pub(super) fn fill_sums(view: &View, address: u64, sums: &mut [u8]) -> Result<()> {
    let (len, sector) = (view.blocks.checksum.len(), view.blocks.sector_bytes);
    let end = address + (sums.len() / len) as u64 * sector;
    let key = Key::new(id::EXTENT_CSUM, kind::EXTENT_CSUM, address);
    let first = view.prev(key)?.filter(|(key, _)| key.is(id::EXTENT_CSUM, kind::EXTENT_CSUM));
    for item in view.walk(first.map_or(key, |(key, _)| key)) {
        let (key, item) = item?;
        if !key.is(id::EXTENT_CSUM, kind::EXTENT_CSUM) || key.offset >= end {
            break;
        }
        // The part of the item that lies within the range asked for.
        let skip = address.saturating_sub(key.offset).div_ceil(sector);
        let at = key.offset.saturating_sub(address) / sector;
        let (Ok(skip), Ok(at)) = (usize::try_from(skip), usize::try_from(at)) else { continue };
        let (Some(from), Some(to)) = (item.get(skip.saturating_mul(len)..), sums.get_mut(at * len..)) else {
            continue;
        };
        let count = (from.len() / len).min(to.len() / len) * len;
        to[..count].copy_from_slice(&from[..count]);
    }
    Ok(())
}
