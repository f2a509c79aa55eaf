//! What the structures of an image are, and how their checksums are made right after a change.

pub mod ext4;
pub mod gpt;
pub mod lvm;
pub mod xfs;

use super::image::{Edited, Image, Structure};

/// Which checksums an image has.
#[derive(Debug, Clone)]
pub enum Sums {
    /// None, or none that are made right.
    None,
    Ext4(std::sync::Arc<ext4::Ext4>),
    Xfs(xfs::Xfs),
    Btrfs,
    Gpt,
    Lvm,
}

impl Sums {
    /// Makes right what a change of `structure` broke.
    pub fn settle(&self, edited: &mut Edited, structure: Structure) {
        match self {
            Self::None => {}
            Self::Ext4(ext4) => ext4.settle(edited, structure),
            Self::Xfs(xfs) => xfs.settle(edited, structure),
            Self::Btrfs => btrfs(edited, structure),
            Self::Gpt => gpt::settle(edited),
            Self::Lvm => lvm::settle(edited),
        }
    }
}

/// Fills in the structures and checksums of an image, by what it is.
pub fn find(image: &mut Image) {
    let start = image.get(0, 1024);
    let whole = |at: Vec<u64>, len: usize| at.into_iter().map(|at| Structure { at, len }).collect();
    if image.get(1024 + 0x38, 2) == [0x53, 0xEF] {
        ext4::find(image);
    } else if start.starts_with(b"XFSB") {
        xfs::find(image);
    } else if image.get(BTRFS_SUPER + 64, 8) == *b"_BHRfS_M" {
        let node = u32::from_le_bytes(image.get(BTRFS_SUPER + 148, 4).try_into().expect("four bytes"));
        let mut found = image.units(node as usize);
        found.retain(|&at| is_btrfs(&image.get(at, node as usize)));
        (image.structures, image.sums) = (whole(found, node as usize), Sums::Btrfs);
    } else {
        image.structures = whole(image.units(512), 512);
        if start[512..].starts_with(b"EFI PART") {
            image.sums = Sums::Gpt;
        } else if start[512..].starts_with(b"LABELONE") {
            image.sums = Sums::Lvm;
        }
    }
}

const BTRFS_SUPER: u64 = 0x1_0000;

/// Tree blocks and superblocks: they hold their own address, and a level that makes sense; no content does by chance.
fn is_btrfs(block: &[u8]) -> bool {
    let address = u64::from_le_bytes(block[48..56].try_into().expect("eight bytes"));
    block[64..72] == *b"_BHRfS_M"
        || address != 0 && address.is_multiple_of(4096) && block[100] < 8 && block[32..48] != [0; 16]
}

fn btrfs(edited: &mut Edited, structure: Structure) {
    let mut bytes = edited.get(structure);
    // A superblock is 4096 bytes, whatever a node is.
    let len = if bytes[64..72] == *b"_BHRfS_M" { 4096 } else { bytes.len() };
    let sum = crc32c::crc32c(&bytes[32..len]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    edited.put(structure, &bytes);
}

/// The raw CRC of ext4 and jbd2: seeded, and not inverted at the end.
fn crc32c_raw(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}
