//! Items that make a chunk of inodes: they hold no inodes, all are free.

use super::changes::{Changes, complete};
use super::ring::bad;
use super::transaction::Item;
use crate::Result;
use crate::fs::bytes::be32;

/// Most inodes made at once: a chunk, or a block of 64 KiB of the smallest.
const MAX_COUNT: u32 = 256;
/// Bytes of a cluster of inodes of 256 bytes.
const CLUSTER_BYTES: usize = 8192;

/// Lays free inodes over the image.
pub(super) fn apply(changes: &mut Changes, item: &Item) -> Result<()> {
    complete(item, 1)?;
    let format = item.format();
    let field = |at| be32(format, at);
    let (group, block, count, size) = (field(4), field(8), field(12), field(16));
    let (blocks, generation) = (field(20), field(24));
    let sb = changes.sb.clone();
    let start = sb.byte_in_group(u64::from(group), u64::from(block), u64::from(blocks));
    let fits = u64::from(blocks) << sb.inodes_per_block_bits == u64::from(count);
    let Some(start) = start.filter(|_| fits && (1..=MAX_COUNT).contains(&count)) else {
        return Err(bad("a chunk of inodes of impossible size or place"));
    };
    if size as usize != sb.inode_size {
        return Err(bad("a chunk of inodes of another size"));
    }
    // All of it, or nothing: inodes are freed in clusters.
    let cluster = cluster_blocks(changes);
    for at in (0..blocks).step_by(cluster as usize) {
        let unit = (start >> 9) + (u64::from(at) << (sb.block_bits - 9));
        if changes.is_cancelled((unit, cluster << (sb.block_bits - 9))) {
            return Ok(());
        }
    }
    let first = (u64::from(group) << sb.ag_block_bits | u64::from(block)) << sb.inodes_per_block_bits;
    let mut inodes = vec![0; count as usize * sb.inode_size];
    for (raw, ino) in inodes.chunks_mut(sb.inode_size).zip(first..) {
        raw[..2].copy_from_slice(b"IN");
        raw[4] = 3;
        raw[92..96].copy_from_slice(&generation.to_be_bytes());
        raw[96..100].fill(0xFF);
        raw[152..160].copy_from_slice(&ino.to_be_bytes());
        raw[160..176].copy_from_slice(&sb.meta_uuid);
    }
    changes.write(start, &inodes)
}

/// Blocks of a cluster, the unit in which inodes are read and written.
fn cluster_blocks(changes: &Changes) -> u32 {
    let sb = &changes.sb;
    let wanted = if sb.v5() { CLUSTER_BYTES * sb.inode_size / 256 } else { CLUSTER_BYTES };
    // Larger clusters are only for chunks that are aligned to them.
    let bytes = if (sb.inode_align as usize) << sb.block_bits >= wanted { wanted } else { CLUSTER_BYTES };
    u32::try_from(bytes >> sb.block_bits).unwrap_or(1).max(1)
}
