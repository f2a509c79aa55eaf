//! ext4 and its journal. A block of a directory or of a tree of extents is summed with its inode, which nothing in it
//! names: when an image is read, the inode is found that the sum is right with.

use super::super::image::{Edited, Image, Structure};
use super::{Sums, crc32c_raw as crc};
use std::collections::HashMap;

const JOURNAL: &[u8] = &[0xC0, 0x3B, 0x39, 0x98];
const SUPER: Structure = Structure { at: 1024, len: 1024 };

fn le16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// What is needed to sum a block again.
#[derive(Debug)]
pub struct Ext4 {
    block: usize,
    /// Seed of all sums of metadata; None: they have none.
    seed: Option<u32>,
    /// Seed of the sums of a journal that has them.
    journal: Option<u32>,
    /// Seeds of blocks that belong to an inode.
    owners: HashMap<u64, u32>,
    /// The only table of inodes: first byte, inodes, bytes of one.
    table: (u64, u64, usize),
    /// The only descriptor of a group: its byte and length.
    descriptor: (u64, usize),
}

pub fn find(image: &mut Image) {
    let sb = image.get(SUPER.at, SUPER.len);
    let block = 1024 << le32(&sb, 0x18);
    let has_sums = le32(&sb, 0x64) & 0x400 != 0;
    let descriptor =
        ((SUPER.at / block as u64 + 1) * block as u64, if le32(&sb, 0x60) & 0x80 == 0 { 32 } else { 64 });
    let first = u64::from(le32(&image.get(descriptor.0, 32), 8)) * block as u64;
    let mut ext4 = Ext4 {
        block,
        seed: has_sums.then(|| crc(!0, &sb[0x68..0x78])),
        journal: None,
        owners: HashMap::new(),
        table: (first, u64::from(le32(&sb, 0x28)), le16(&sb, 0x58).max(128)),
        descriptor,
    };
    let blocks = image.units(block);
    for &at in &blocks {
        let head = image.get(at, 256);
        if head[..8] == [0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 4] && head[0x2B] & 0x18 != 0 {
            ext4.journal = Some(crc(!0, &head[0x30..0x40]));
        }
    }
    if ext4.seed.is_some() {
        ext4.find_owners(image, &blocks);
    }
    // What is changed most is first: it is met by the smallest numbers.
    image.structures.push(SUPER);
    image.structures.extend(blocks.into_iter().map(|at| Structure { at, len: block }));
    image.sums = Sums::Ext4(std::sync::Arc::new(ext4));
}

impl Ext4 {
    fn inode_seed(&self, ino: u64, generation: u32) -> u32 {
        let number = u32::try_from(ino).expect("a small image").to_le_bytes();
        crc(crc(self.seed.unwrap_or_default(), &number), &generation.to_le_bytes())
    }

    fn find_owners(&mut self, image: &Image, blocks: &[u64]) {
        let (first, count, len) = self.table;
        let seeds: Vec<u32> = (0..count)
            .map(|i| (i + 1, le32(&image.get(first + i * len as u64, len), 0x64)))
            .map(|(ino, generation)| self.inode_seed(ino, generation))
            .collect();
        for &at in blocks {
            let bytes = image.get(at, self.block);
            let Some((end, sum)) = owned(&bytes) else { continue };
            let is_right = |seed: &&u32| crc(**seed, &bytes[..end]) == le32(&bytes, sum);
            if let Some(&seed) = seeds.iter().find(is_right) {
                self.owners.insert(at, seed);
            }
        }
    }

    pub fn settle(&self, edited: &mut Edited, structure: Structure) {
        let mut bytes = edited.get(structure);
        if bytes.starts_with(JOURNAL) {
            self.journal_block(&mut bytes);
        } else if is_fast_commit(&bytes) {
            fast_commit(&mut bytes);
        } else if let Some(seed) = self.seed {
            self.metadata(seed, structure, &mut bytes);
        }
        edited.put(structure, &bytes);
    }

    fn metadata(&self, seed: u32, structure: Structure, bytes: &mut [u8]) {
        let range = structure.at..structure.at + structure.len as u64;
        if range.contains(&SUPER.at) {
            let sb = &mut bytes[(SUPER.at - structure.at) as usize..][..SUPER.len];
            let sum = crc(!0, &sb[..0x3FC]);
            sb[0x3FC..].copy_from_slice(&sum.to_le_bytes());
        }
        let (first, count, len) = self.table;
        if range.contains(&self.descriptor.0) {
            let descriptor = &mut bytes[(self.descriptor.0 - structure.at) as usize..][..self.descriptor.1];
            descriptor[0x1E..0x20].fill(0);
            let sum = crc(crc(seed, &[0; 4]), descriptor);
            descriptor[0x1E..0x20].copy_from_slice(&sum.to_le_bytes()[..2]);
        } else if (first..first + count * len as u64).contains(&range.start) {
            let before = (range.start - first) / len as u64;
            for (ino, inode) in (before + 1..).zip(bytes.chunks_exact_mut(len)) {
                self.inode(ino, inode);
            }
        } else if le32(bytes, 0) == 0xEA02_0000 {
            bytes[0x10..0x14].fill(0);
            let number = structure.at / self.block as u64;
            let sum = crc(crc(seed, &number.to_le_bytes()), bytes);
            bytes[0x10..0x14].copy_from_slice(&sum.to_le_bytes());
        } else if let (Some(&seed), Some((end, at))) = (self.owners.get(&range.start), owned(bytes)) {
            let sum = crc(seed, &bytes[..end]);
            bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    fn inode(&self, ino: u64, inode: &mut [u8]) {
        let wide = inode.len() > 128 && le16(inode, 0x80) >= 4;
        inode[0x7C..0x7E].fill(0);
        if wide {
            inode[0x82..0x84].fill(0);
        }
        let sum = crc(self.inode_seed(ino, le32(inode, 0x64)), inode).to_le_bytes();
        inode[0x7C..0x7E].copy_from_slice(&sum[..2]);
        if wide {
            inode[0x82..0x84].copy_from_slice(&sum[2..]);
        }
    }

    /// A block of the journal with a header; what blocks of data are summed to stands in their descriptor, and stays.
    fn journal_block(&self, bytes: &mut [u8]) {
        let Some(seed) = self.journal else { return };
        let (at, seed, len) = match bytes[7] {
            1 | 5 => (bytes.len() - 4, seed, bytes.len()),
            2 => (16, seed, bytes.len()),
            3 | 4 => (0xFC, !0, 1024),
            _ => return,
        };
        bytes[at..at + 4].fill(0);
        let sum = crc(seed, &bytes[..len]);
        bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }
}

/// How much of a block of entries or extents is summed, and where the sum is.
fn owned(bytes: &[u8]) -> Option<(usize, usize)> {
    let tail = bytes.len() - 12;
    if le16(bytes, 0) == 0xF30A {
        let end = 12 + 12 * le16(bytes, 4);
        return (end + 4 <= bytes.len()).then_some((end, end));
    }
    (le32(bytes, tail) == 0 && le32(bytes, tail + 4) == 0xDE00_000C).then_some((tail, tail + 8))
}

/// The head of the area, and blocks that begin with a record of any other kind.
fn is_fast_commit(bytes: &[u8]) -> bool {
    (1..=9).contains(&le16(bytes, 0)) && (8..bytes.len()).contains(&le16(bytes, 2))
}

/// Sums every unit that ends in this block, as far as it begins here too.
fn fast_commit(bytes: &mut [u8]) {
    let (mut at, mut sum) = (0, 0);
    while at + 4 <= bytes.len() {
        let (tag, len) = (le16(bytes, at), le16(bytes, at + 2));
        let end = at + 4 + len;
        if end > bytes.len() {
            return;
        }
        if tag == 8 && len >= 8 {
            let sum = crc(sum, &bytes[at..at + 8]);
            bytes[at + 8..at + 12].copy_from_slice(&sum.to_le_bytes());
            return;
        }
        sum = crc(sum, &bytes[at..end]);
        at = end;
    }
}
