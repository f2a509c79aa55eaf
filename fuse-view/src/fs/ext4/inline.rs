//! Content kept in the inode: the first 60 bytes in `i_block`, the rest in the attribute `system.data`.

use super::Ext4;
use super::inode::{Inode, fit};
use crate::{Error, Result};
use std::ops::Range;

/// Bytes before the first entry of an inline directory: the inode number of `..`.
pub(super) const INLINE_HEAD: usize = 4;

impl Ext4 {
    /// All bytes of inline content that are stored; a file that was grown may be longer, and reads as zeros there.
    pub(super) fn inline_content(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut bytes = inode.block_area().to_vec();
        if let Some(rest) = self.inline_rest(inode)? {
            bytes.extend(rest);
        }
        bytes.truncate(fit(bytes.len(), inode.size));
        Ok(bytes)
    }

    /// Reads an inline file.
    pub(super) fn read_inline(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let content = self.inline_content(inode)?;
        let len = fit(buf.len(), inode.size.saturating_sub(offset));
        let stored = content.get(fit(content.len(), offset)..).unwrap_or_default();
        let (copied, zeros) = buf[..len].split_at_mut(stored.len().min(len));
        copied.copy_from_slice(&stored[..copied.len()]);
        zeros.fill(0);
        Ok(len)
    }

    /// The next range of an inline file with data: what is stored, from `offset` on.
    pub(super) fn next_inline(&self, inode: &Inode, offset: u64) -> Result<Option<Range<u64>>> {
        let stored = self.inline_content(inode)?.len() as u64;
        Ok((offset < stored).then_some(offset..stored))
    }

    /// The bytes of an inline directory, and where the second part of its entries begins.
    pub(super) fn inline_dir(&self, dir: &Inode) -> Result<(Vec<u8>, usize)> {
        let bytes = self.inline_content(dir)?;
        if bytes.len() < INLINE_HEAD {
            return Err(Error::Corrupt(format!(
                "ext4 directory {}: an inline directory of no size",
                dir.ino
            )));
        }
        let split = bytes.len().min(dir.block_area().len());
        Ok((bytes, split))
    }

    pub(super) fn find_inline(&self, dir: &Inode, name: &[u8]) -> Result<Option<u32>> {
        let (bytes, split) = self.inline_dir(dir)?;
        match name {
            b"." => Ok(Some(dir.ino)),
            b".." => Ok(Some(crate::fs::bytes::le32(&bytes, 0))),
            _ => match self.find_in_block(dir, &bytes[INLINE_HEAD..split], name, None) {
                Ok(None) => self.find_in_block(dir, &bytes[split..], name, None),
                found => found,
            },
        }
    }
}
