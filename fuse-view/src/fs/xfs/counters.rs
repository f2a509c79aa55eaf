//! The size of the file system, counted as the kernel counts it.

use super::Xfs;
use super::superblock::Superblock;
use crate::StatFs;
use crate::fs::bytes::be32;

/// Blocks that the kernel keeps back in each group, so that a free list can always be filled.
const SET_ASIDE_PER_GROUP: u64 = 8;
/// More groups than this are not visited; the superblock's counters must do.
const MAX_GROUPS: u32 = 1 << 14;

/// What the headers of all groups add up to.
#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    inodes: u64,
    inodes_free: u64,
    /// Free blocks, those in use by what describes them included.
    blocks_free: u64,
    /// Blocks of the trees of free space.
    tree_blocks: u64,
}

impl Xfs {
    /// As `statfs` answers on a read-only mount. `recount`: the log was not clean, so the superblock's counters are old.
    pub(super) fn counters(&self, recount: bool) -> StatFs {
        let totals = self.totals();
        let mut sb = self.sb.clone();
        if let Some(totals) = totals.filter(|_| recount && sb.lazy_counters) {
            (sb.inodes, sb.inodes_free) = (totals.inodes, totals.inodes_free);
            sb.blocks_free = totals.blocks_free;
        }
        let log = if sb.log_start == 0 { 0 } else { u64::from(sb.log_blocks) };
        let aside = u64::from(sb.ag_count) * SET_ASIDE_PER_GROUP + totals.map_or(0, |t| t.tree_blocks);
        let blocks_free = sb.blocks_free.min(sb.blocks).saturating_sub(aside);
        let inodes = inodes_in_all(&sb, blocks_free);
        let used = sb.inodes.saturating_sub(sb.inodes_free);
        StatFs {
            block_bytes: 1 << sb.block_bits,
            blocks: sb.blocks.saturating_sub(log),
            blocks_free,
            inodes,
            inodes_free: inodes.saturating_sub(used),
            name_max: 255,
        }
    }

    /// None where a header cannot be read.
    fn totals(&self) -> Option<Totals> {
        let mut totals = Totals::default();
        if self.sb.ag_count > MAX_GROUPS {
            return None;
        }
        for group in 0..u64::from(self.sb.ag_count) {
            let start = self.sb.byte_in_group(group, 0, 1)?;
            let sector = self.sb.sector_bytes;
            // The second sector describes free space, the third inodes.
            let mut both = vec![0; 2 * sector];
            self.image.read_at(start + sector as u64, &mut both).ok()?;
            let (space, inodes) = both.split_at(sector);
            if !space.starts_with(b"XAGF") || !inodes.starts_with(b"XAGI") {
                return None;
            }
            let field = |header, at| u64::from(be32(header, at));
            let tree = field(space, 60);
            let reverse = if be32(space, 24) == 0 { 0 } else { field(space, 80).saturating_sub(1) };
            totals.inodes += field(inodes, 16);
            totals.inodes_free += field(inodes, 28);
            totals.blocks_free += field(space, 52) + field(space, 48) + tree;
            totals.tree_blocks += tree.saturating_sub(reverse);
        }
        Some(totals)
    }
}

/// Inodes are made as they are needed: those that there are, and those that the free space could hold.
fn inodes_in_all(sb: &Superblock, blocks_free: u64) -> u64 {
    let bits = sb.inodes_per_block_bits;
    let possible = sb.inodes.saturating_add(blocks_free << bits);
    // A chunk of 64 inodes is made at once.
    let chunk = (64u64 >> bits).max(1);
    let most = u128::from(sb.blocks) * u128::from(sb.inode_max_percent) / 100;
    let most = (u64::try_from(most).unwrap_or(u64::MAX) / chunk * chunk) << bits;
    let capped = if most > 0 { possible.min(most) } else { possible };
    capped.max(sb.inodes)
}
