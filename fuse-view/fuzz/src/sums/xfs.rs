//! XFS: objects of version 5 with a checksum at a place that their magic tells, and records of the log.

use super::super::image::{Edited, Image, Structure};
use super::Sums;

/// What is needed to sum an object again.
#[derive(Debug, Clone, Copy)]
pub struct Xfs {
    block: usize,
    dir_block: usize,
    inode: usize,
    v5: bool,
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

fn be32(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

const RECORD: &[u8] = b"\xFE\xED\xBA\xBE";

pub fn find(image: &mut Image) {
    let sb = image.get(0, 512);
    let block = be32(&sb, 4);
    let xfs =
        Xfs { block, dir_block: block << sb[192], inode: be16(&sb, 104), v5: be16(&sb, 100) & 0xF == 5 };
    // The log is in one group: the number of the group is above the bits of a block in it.
    let (bits, in_group) = (u32::from(sb[124]), be32(&sb, 84) as u64);
    let start = be64(&sb, 48);
    let start = ((start >> bits) * in_group + (start & ((1 << bits) - 1))) * block as u64;
    let log = start..start + (be32(&sb, 96) * block) as u64;
    for at in image.units(512) {
        let sector = image.get(at, 512);
        let len = if !log.contains(&at) {
            xfs.object(&sector).map(|(len, _)| len)
        } else if sector.starts_with(RECORD) {
            Some(512 + be32(&sector, 12)).filter(|len| at + (*len as u64) <= log.end)
        } else {
            None
        };
        image.structures.extend(len.map(|len| Structure { at, len }));
    }
    image.sums = Sums::Xfs(xfs);
}

impl Xfs {
    /// Length of the object that begins so, and where its checksum is in version 5.
    fn object(&self, start: &[u8]) -> Option<(usize, usize)> {
        Some(match &start[..4] {
            [b'I', b'N', _, _] => (self.inode, 100),
            b"XFSB" => (512, 224),
            b"XAGF" => (512, 216),
            b"XAGI" => (512, 312),
            b"XDB3" | b"XDD3" | b"XDF3" | b"XD2B" | b"XD2D" | b"XD2F" => (self.dir_block, 4),
            b"XSLM" | b"XARM" => (self.block, 12),
            b"BMA3" | b"BMAP" => (self.block, 64),
            b"AB3B" | b"AB3C" | b"IAB3" | b"FIB3" | b"RMB3" | b"R3FC" | b"ABTB" | b"ABTC" | b"IABT" => {
                (self.block, 52)
            }
            _ => match (start[8], start[9]) {
                (0x3D | 0xD2, 0xF1 | 0xFF) => (self.dir_block, 12),
                (0x3E | 0xFE, 0xBE) => (self.dir_block, 12),
                (0x3B | 0xFB, 0xEE) => (self.block, 12),
                _ => return None,
            },
        })
    }

    pub fn settle(&self, edited: &mut Edited, structure: Structure) {
        let mut bytes = edited.get(structure);
        if bytes.starts_with(RECORD) && bytes.len() > 512 {
            record(&mut bytes);
        } else if let Some((len, at)) = self.object(&bytes).filter(|(len, _)| self.v5 && *len <= bytes.len())
        {
            bytes[at..at + 4].fill(0);
            let sum = crc32c::crc32c(&bytes[..len]);
            bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
        edited.put(structure, &bytes);
    }
}

/// Sums a record of at most 32 KiB of data, as it is with the words that every sector begins with.
fn record(bytes: &mut [u8]) {
    bytes[32..36].fill(0);
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..328]), &bytes[512..]);
    bytes[32..36].copy_from_slice(&sum.to_le_bytes());
}
