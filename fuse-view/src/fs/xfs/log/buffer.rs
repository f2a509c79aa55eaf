//! Items that hold pieces of 128 bytes of a buffer.

use super::super::superblock::Superblock;
use super::changes::{Changes, Place, complete, count_at, place_at};
use super::ring::bad;
use super::transaction::Item;
use crate::Result;
use crate::fs::bytes::{be16, be32, bytes16, le16, le32};

/// Bytes that one bit of the map stands for.
const PIECE: usize = 128;
/// Longest buffer, in units of 512 bytes: a block of 64 KiB and some.
const MAX_UNITS: u32 = 2048;
const MAP_AT: usize = 20;

/// Flags of a buffer.
mod flag {
    pub const INODES: u16 = 1;
    pub const CANCEL: u16 = 2;
    /// Of users, projects and groups.
    pub const QUOTA: u16 = 4 | 8 | 16;
}

fn flags(item: &Item) -> u16 {
    le16(item.format(), 4)
}

/// Whether the buffer is given up: what was logged of it before is void.
pub(super) fn is_cancel(item: &Item) -> bool {
    flags(item) & flag::CANCEL != 0
}

/// Whether only links between unlinked inodes are meant.
pub(super) fn is_of_inodes(item: &Item) -> bool {
    flags(item) & flag::INODES != 0
}

pub(super) fn is_of_quota(item: &Item) -> bool {
    flags(item) & flag::QUOTA != 0
}

/// Where the buffer lies.
pub(super) fn place(item: &Item) -> Place {
    place_at(item.format(), 8, u32::from(le16(item.format(), 6)))
}

/// Checks what does not depend on content.
pub(super) fn check(item: &Item) -> Result<()> {
    complete(item, 1)?;
    let (unit, count) = place(item);
    // That it lies in the image is checked where it is written.
    if !(1..=MAX_UNITS).contains(&count) || unit >= 1 << 54 {
        return Err(bad("a buffer of impossible length or place"));
    }
    if count_at(item.format(), 16) > (item.format().len().saturating_sub(MAP_AT)) / 4 {
        return Err(bad("a buffer whose map leaves its item"));
    }
    Ok(())
}

/// Lays the logged pieces over the image.
pub(super) fn apply(changes: &mut Changes, item: &Item) -> Result<()> {
    let (unit, count) = place(item);
    let format = item.format();
    let pieces = count_at(format, 16) * 32;
    let is_set = |bit: usize| le32(format, MAP_AT + bit / 32 * 4) >> (bit % 32) & 1 == 1;
    let mut bit = 0;
    for region in &item.regions[1..] {
        let Some(first) = (bit..pieces).find(|bit| is_set(*bit)) else {
            return Err(bad("more pieces of a buffer than its map says"));
        };
        let run = (first..pieces).take_while(|bit| is_set(*bit)).count();
        // One run of the map may come in several regions.
        let run = run.min(region.len() / PIECE);
        let bytes = run * PIECE;
        if run == 0 || first * PIECE + bytes > count as usize * 512 {
            return Err(bad("a piece that leaves its buffer"));
        }
        changes.write(unit * 512 + (first * PIECE) as u64, &region[..bytes])?;
        bit = first + run;
    }
    Ok(())
}

/// Where the LSN is in the object that begins with `start`; None: it has none, or is of another file system.
pub(super) fn lsn_at(start: &[u8], sb: &Superblock) -> Option<usize> {
    let (lsn, uuid) = match &be32(start, 0).to_be_bytes() {
        b"AB3B" | b"AB3C" | b"IAB3" | b"FIB3" | b"RMB3" | b"R3FC" => (24, 32),
        b"BMA3" | b"MAPR" | b"RCNT" => (32, 40),
        b"XAGF" => (208, 64),
        b"XAGI" => (320, 296),
        b"XAFL" => (24, 8),
        b"XDB3" | b"XDD3" | b"XDF3" => (16, 24),
        b"XSLM" => (48, 16),
        b"XFSB" => return (bytes16(start, 32) == sb.uuid).then_some(240),
        _ if matches!(be16(start, 8), 0x3EBE | 0x3DF1 | 0x3DFF | 0x3BEE) => (24, 32),
        _ => return None,
    };
    (bytes16(start, uuid) == sb.meta_uuid).then_some(lsn)
}
