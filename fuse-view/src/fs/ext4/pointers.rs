//! Block pointers of ext2 and ext3: twelve direct ones, then one, two and three levels of blocks of pointers.

use super::Ext4;
use super::inode::{Inode, fit};
use super::mapping::Until;
use crate::fs::bytes::le32;
use crate::fs::run::{Place, Run};
use crate::{Error, Result};

const DIRECT: u64 = 12;

impl Ext4 {
    /// The run at `block` of a file with block pointers.
    pub(super) fn map_pointers(&self, inode: &Inode, block: u64, until: Until) -> Result<Run> {
        let area = inode.block_area();
        if block < DIRECT {
            return Ok(run_of_pointers(&area[..4 * 12], block, until));
        }
        let per_block_bits = self.sb.block_bits - 2;
        let mut first = DIRECT;
        for level in 1..=3u32 {
            let covered = 1u64 << (per_block_bits * level);
            if block - first < covered {
                let top = le32(area, 4 * (11 + level as usize));
                return self.map_tree(inode, top, level, block - first, until);
            }
            first += covered;
        }
        Ok(Run { len: u64::MAX - block, place: Place::Hole })
    }

    /// Goes down from `top`, `level` levels above the data, to the `index`th block below it.
    fn map_tree(&self, inode: &Inode, top: u32, level: u32, index: u64, until: Until) -> Result<Run> {
        let per_block_bits = self.sb.block_bits - 2;
        let mut pointer = top;
        for level in (0..level).rev() {
            let below = per_block_bits * level;
            if pointer == 0 {
                // Nothing under this pointer: the hole reaches to the end of what it would cover.
                let covered = 1u64 << (below + per_block_bits);
                return Ok(Run { len: covered - (index & (covered - 1)), place: Place::Hole });
            }
            if !self.sb.holds(u64::from(pointer), 1) {
                return Err(Error::Corrupt(format!(
                    "ext4 inode {}: a block of pointers outside of the file system",
                    inode.ino
                )));
            }
            let piece = self.block(u64::from(pointer))?;
            let slot = index >> below & ((1 << per_block_bits) - 1);
            if level == 0 {
                return Ok(run_of_pointers(&piece, slot, until));
            }
            pointer = le32(&piece, 4 * fit(usize::MAX, slot));
            if pointer == 0 {
                let covered = 1u64 << below;
                return Ok(Run { len: covered - (index & (covered - 1)), place: Place::Hole });
            }
        }
        Ok(Run { len: 1, place: Place::Hole })
    }
}

/// The run that starts at pointer `slot` of an array of pointers.
fn run_of_pointers(pointers: &[u8], slot: u64, until: Until) -> Run {
    let at = |i: u64| le32(pointers, 4 * fit(usize::MAX, i));
    let count = (pointers.len() / 4) as u64;
    let start = at(slot);
    let mut end = slot + 1;
    let goes_on = |i: u64| match (start, until) {
        (0, _) => at(i) == 0,
        (_, Until::AnyData) => at(i) != 0,
        (_, Until::Contiguous) => u64::from(at(i)) == u64::from(start) + (i - slot),
    };
    while end < count && goes_on(end) {
        end += 1;
    }
    let place = if start == 0 { Place::Hole } else { Place::Data(u64::from(start)) };
    Run { len: end - slot, place }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_pointers() {
        let bytes: Vec<u8> = [0u32, 0, 7, 8, 20, 0].iter().flat_map(|p| p.to_le_bytes()).collect();
        let check =
            |slot, until, len, place| assert_eq!(run_of_pointers(&bytes, slot, until), Run { len, place });
        check(0, Until::Contiguous, 2, Place::Hole);
        check(1, Until::AnyData, 1, Place::Hole);
        check(2, Until::Contiguous, 2, Place::Data(7));
        check(2, Until::AnyData, 3, Place::Data(7));
        check(4, Until::Contiguous, 1, Place::Data(20));
        check(5, Until::Contiguous, 1, Place::Hole);
    }
}
