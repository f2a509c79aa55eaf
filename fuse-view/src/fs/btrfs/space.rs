//! How large the file system is and how much of it is free.

use super::Btrfs;
use super::chunk::{Chunk, profile};
use super::items::View;
use super::key::{Key, id, kind};
use super::subvol::find_root;
use super::superblock::compat_ro;
use crate::fs::bytes::le64;
use crate::{Result, StatFs};

/// Chunks whose use is looked up one by one; the superblock's sum stands in for more.
const MAX_COUNTED: usize = 4096;

impl Btrfs {
    /// Sizes in blocks of a sector. As in the kernel, what is used on the device is set against all of it, and both are
    /// divided by the number of copies that data has. The kernel also takes off a reserve that it sizes at run time.
    pub(super) fn count_space(&self) -> StatFs {
        let sector = self.blocks.sector_bytes;
        let copies = |chunk: &Chunk| u64::try_from(chunk.copies()).unwrap_or(1).max(1);
        let data = self.blocks.chunks().all().iter().filter(|chunk| chunk.kind & profile::DATA != 0);
        let factor = data.map(copies).max().unwrap_or(1);
        let used = self.used_on_device().unwrap_or(self.sb.bytes_used);
        let blocks = self.sb.total_bytes / factor / sector;
        StatFs {
            block_bytes: u32::try_from(sector).unwrap_or(4096),
            blocks,
            blocks_free: blocks.saturating_sub(used / factor / sector),
            inodes: 0,
            inodes_free: 0,
            name_max: 255,
        }
    }

    fn used_on_device(&self) -> Result<u64> {
        let chunks = self.blocks.chunks().all();
        let own_tree = self.sb.compat_ro & compat_ro::BLOCK_GROUP_TREE != 0;
        let tree = if own_tree { id::BLOCK_GROUP_TREE } else { id::EXTENT_TREE };
        let tree = find_root(&self.roots(), tree)?.filter(|_| chunks.len() <= MAX_COUNTED);
        let Some(tree) = tree else { return Ok(self.sb.bytes_used) };
        let groups = View::plain(&self.blocks, tree.tree);
        let mut used = 0u64;
        for chunk in chunks {
            if let Some(item) = groups.get(Key::new(chunk.start, kind::BLOCK_GROUP, chunk.len))? {
                used = used.saturating_add(le64(&item, 0).saturating_mul(chunk.copies() as u64));
            }
        }
        Ok(used)
    }
}
