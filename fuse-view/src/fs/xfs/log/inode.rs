//! Items that hold an inode: its core in the order of bytes of the machine, and what changed of its forks.

use super::changes::{Changes, complete, is_at_least, place_at};
use super::ring::bad;
use super::transaction::Item;
use crate::Result;
use crate::fs::bytes::{be16, be64, le16, le32, le64, u8_at};

/// Parts of an inode that were logged.
mod part {
    pub const DATA_LOCAL: u32 = 2;
    pub const DATA_EXTENTS: u32 = 4;
    pub const DATA_ROOT: u32 = 8;
    pub const DEVICE: u32 = 0x10;
    pub const ATTR_LOCAL: u32 = 0x40;
    pub const ATTR_EXTENTS: u32 = 0x80;
    pub const ATTR_ROOT: u32 = 0x100;
    pub const DATA: u32 = DATA_LOCAL | DATA_EXTENTS | DATA_ROOT;
    pub const ATTR: u32 = ATTR_LOCAL | ATTR_EXTENTS | ATTR_ROOT;
}

const MAGIC: u16 = 0x494E;
const FLAG2_BIGTIME: u64 = 8;
const FLAG2_NREXT64: u64 = 0x10;

/// The item's own description.
struct Format {
    parts: u32,
    ino: u64,
    device: u32,
    /// 512-byte unit and length of the cluster it lies in.
    cluster: (u64, u32),
    /// Byte of the image.
    at: u64,
}

impl Format {
    fn parse(item: &Item) -> Result<Self> {
        complete(item, 2)?;
        let format = item.format();
        // Writers with 32 bits have no padding before the inode number.
        let pad = match format.len() {
            56 => 4,
            52 => 0,
            _ => return Err(bad("the item of an inode of impossible length")),
        };
        let cluster = place_at(format, 36 + pad, le32(format, 44 + pad));
        let offset = u64::from(le32(format, 48 + pad));
        if offset >= u64::from(cluster.1).saturating_mul(512) {
            return Err(bad("an inode that leaves its cluster"));
        }
        let at = cluster.0.checked_mul(512).and_then(|start| start.checked_add(offset));
        Ok(Self {
            parts: le32(format, 4),
            ino: le64(format, 12 + pad),
            device: le32(format, 20 + pad),
            cluster,
            at: at.ok_or_else(|| bad("an inode that leaves the file system"))?,
        })
    }
}

/// Lays an inode over the image.
pub(super) fn apply(changes: &mut Changes, item: &Item, lsn: u64) -> Result<()> {
    let format = Format::parse(item)?;
    if changes.is_cancelled(format.cluster) {
        return Ok(());
    }
    let mut raw = vec![0; changes.sb.inode_size];
    changes.over.read_at(format.at, &mut raw)?;
    let logged = item.regions[1].as_slice();
    if be16(&raw, 0) != MAGIC || le16(logged, 0) != MAGIC {
        return Err(bad(&format!("there is no inode {} where one was changed", format.ino)));
    }
    let v3 = changes.sb.v5();
    if logged.len() < if v3 { 176 } else { 96 } {
        return Err(bad("the core of an inode is too short"));
    }
    if v3 {
        let disk = be64(&raw, 112);
        if is_at_least(disk, lsn) && disk != lsn {
            return Ok(());
        }
    } else if !is_due(le16(logged, 30), be16(&raw, 30)) {
        return Ok(());
    }
    core(&mut raw, logged, v3.then_some(lsn));
    forks(&mut raw, item, &format, v3)?;
    changes.write(format.at, &raw)
}

/// Version 4 counts how often an inode was written, with wrap.
fn is_due(logged: u16, disk: u16) -> bool {
    logged >= disk || (disk == 0xFFFF && logged < 0x7FFF)
}

/// Turns the core around, field by field. `lsn`: version 3 has one, and it is that of the transaction.
fn core(raw: &mut [u8], logged: &[u8], lsn: Option<u64>) {
    let flags2 = if lsn.is_some() { le64(logged, 120) } else { 0 };
    let mut turn = |at: usize, len: usize| {
        let mut field = logged[at..at + len].to_vec();
        field.reverse();
        raw[at..at + len].copy_from_slice(&field);
    };
    let (bigtime, wide) = (flags2 & FLAG2_BIGTIME != 0, flags2 & FLAG2_NREXT64 != 0);
    let time: &[(usize, usize)] = if bigtime { &[(0, 8)] } else { &[(0, 4), (4, 4)] };
    for &(at, len) in &[(0, 2), (2, 2), (4, 1), (5, 1), (6, 2), (8, 4), (12, 4), (16, 4), (20, 2), (22, 2)] {
        turn(at, len);
    }
    for stamp in [32, 40, 48] {
        time.iter().for_each(|&(at, len)| turn(stamp + at, len));
    }
    for &(at, len) in
        &[(56, 8), (64, 8), (72, 4), (76, 4), (82, 1), (83, 1), (84, 4), (88, 2), (90, 2), (92, 4)]
    {
        turn(at, len);
    }
    // What counts extents, and in version 2 the writes.
    if wide {
        turn(24, 8);
        turn(80, 2);
    } else {
        turn(80, 2);
        raw[24..32].fill(0);
    }
    let Some(lsn) = lsn else { return };
    let mut turn = |at: usize, len: usize| {
        let mut field = logged[at..at + len].to_vec();
        field.reverse();
        raw[at..at + len].copy_from_slice(&field);
    };
    for &(at, len) in &[(104, 8), (120, 8), (128, 4), (152, 8)] {
        turn(at, len);
    }
    time.iter().for_each(|&(at, len)| turn(144 + at, len));
    raw[160..176].copy_from_slice(&logged[160..176]);
    raw[112..120].copy_from_slice(&lsn.to_be_bytes());
}

/// Copies what changed of the forks to where the new core says they are.
fn forks(raw: &mut [u8], item: &Item, format: &Format, v3: bool) -> Result<()> {
    let core = if v3 { 176 } else { 100 };
    let offset = usize::from(u8_at(raw, 82)) * 8;
    if core + offset > raw.len() {
        return Err(bad(&format!("the attributes of inode {} begin outside of it", format.ino)));
    }
    let split = if offset == 0 { raw.len() - core } else { offset };
    let (data, attr) = raw[core..].split_at_mut(split);
    if format.parts & part::DEVICE != 0 {
        data[..4].copy_from_slice(&format.device.to_be_bytes());
    }
    let mut regions = item.regions[2..].iter();
    let mut take = || regions.next().ok_or_else(|| bad("an inode without its forks"));
    if format.parts & part::DATA != 0 {
        fork(data, take()?, format.parts & part::DATA_ROOT != 0, v3)?;
    }
    if format.parts & part::ATTR != 0 {
        fork(attr, take()?, format.parts & part::ATTR_ROOT != 0, v3)?;
    }
    Ok(())
}

fn fork(to: &mut [u8], from: &[u8], is_root: bool, v3: bool) -> Result<()> {
    if is_root {
        return root(to, from, v3);
    }
    // Rounded up to words, content may seem longer than the fork by less than one.
    let len = from.len().min(to.len());
    if from.len() > to.len() + 3 {
        return Err(bad("more of a fork than there is room for"));
    }
    to[..len].copy_from_slice(&from[..len]);
    Ok(())
}

/// The root of a tree is logged as it is in memory, as a block with a header.
fn root(to: &mut [u8], from: &[u8], v3: bool) -> Result<()> {
    let header = if v3 { 72 } else { 24 };
    let impossible = || bad("the root of a tree that is impossible");
    let room_from = from.len().checked_sub(header).ok_or_else(impossible)? / 16;
    let room_to = to.len().checked_sub(4).ok_or_else(impossible)? / 16;
    let count = usize::from(be16(from, 6));
    if count > room_from || count > room_to {
        return Err(impossible());
    }
    to[..4].copy_from_slice(&from[4..8]);
    let len = count * 8;
    to[4..4 + len].copy_from_slice(&from[header..header + len]);
    let (to_at, from_at) = (4 + room_to * 8, header + room_from * 8);
    to[to_at..to_at + len].copy_from_slice(&from[from_at..from_at + len]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_moves_from_memory_to_its_inode() {
        let mut from = vec![0; 72 + 4 * 16];
        from[4..8].copy_from_slice(&[0, 1, 0, 2]);
        from[72..88].copy_from_slice(&[[1; 8], [2; 8]].concat());
        from[72 + 32..72 + 48].copy_from_slice(&[[3; 8], [4; 8]].concat());
        let mut to = vec![0; 4 + 3 * 16 + 5];
        root(&mut to, &from, true).unwrap();
        assert_eq!(to[..4], [0, 1, 0, 2]);
        assert_eq!(to[4..20], [[1; 8], [2; 8]].concat());
        assert_eq!(to[28..44], [[3; 8], [4; 8]].concat());
        from[7] = 4;
        assert!(root(&mut to, &from, true).is_err(), "more than the inode has room for");
        assert!(root(&mut to, &from[..50], true).is_err());
    }

    #[test]
    fn writes_of_version_4_are_counted_with_wrap() {
        assert!(is_due(5, 5) && is_due(6, 5) && !is_due(4, 5));
        assert!(is_due(3, 0xFFFF) && !is_due(0x7FFF, 0xFFFF));
    }
}
