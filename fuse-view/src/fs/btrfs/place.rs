//! Where things lie on the image, for whoever compares two snapshots by the blocks that they share.
//!
//! A tree block is never written over: every change of an item moves its leaf, and every change of a file, its names
//! included, is a change of its inode's item. So an inode is the same where its leaf is the same, and whatever else
//! changes among the metadata belongs to no file that has a name. What replay laid over a subvolume has no place.

use super::Btrfs;
use super::chunk::{Chunk, profile};
use super::extent::ExtentKind;
use super::inode::Inode;
use super::key::{Key, kind};
use super::subvol::Target;
use crate::{Error, Extent, FileKind, Ino, Result};
use std::ops::Range;

/// Bytes of a superblock, and where its copies are.
const SUPER_BYTES: u64 = 4096;
const SUPERS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];

impl Btrfs {
    /// The leaf with the item of an inode; None: replay changed its subvolume, or it is in several pieces.
    pub(super) fn inode_leaf(&self, ino: Ino) -> Result<Option<Range<u64>>> {
        let Target::Inode { subvol, ino } = self.numbers.unpack(ino) else { return Ok(None) };
        let subvol = self.subvol(subvol)?;
        if subvol.shadow.is_some() {
            return Ok(None);
        }
        let address = subvol.view(&self.blocks).leaf_address(Key::new(ino, kind::INODE, 0))?;
        let place = self.blocks.chunks().place(address, 0)?;
        let len = self.blocks.node_bytes();
        Ok((place.len >= len).then(|| place.offset..place.offset + len))
    }

    pub(super) fn content_extent(&self, ino: Ino, offset: u64) -> Result<Option<Extent>> {
        let Some(inode) = self.target(ino)? else { return Ok(None) };
        let size = inode.size();
        let Some(left) = size.checked_sub(offset).filter(|left| *left > 0) else { return Ok(None) };
        match inode.kind {
            // See above: names are where the inode is, as far as it matters.
            FileKind::Dir => Ok(Some(match self.inode_leaf(ino)? {
                Some(leaf) => Extent::Data { at: leaf.start, len: left },
                None => Extent::Opaque { len: left },
            })),
            FileKind::File => self.file_extent(&inode, offset, left).map(Some),
            _ => Err(Error::WrongKind(format!("inode {ino} has no content"))),
        }
    }

    fn file_extent(&self, inode: &Inode, offset: u64, left: u64) -> Result<Extent> {
        for found in self.extents(inode, offset)? {
            let (extent, _) = found?;
            if extent.end() <= offset {
                continue;
            }
            if extent.start > offset {
                return Ok(Extent::Hole { len: left.min(extent.start - offset) });
            }
            let len = left.min(extent.end() - offset);
            if extent.is_hole() {
                return Ok(Extent::Hole { len });
            }
            if extent.kind == ExtentKind::Inline {
                return Ok(Extent::Opaque { len });
            }
            let skip = extent.offset.saturating_add(offset - extent.start);
            let chunks = self.blocks.chunks();
            if extent.compression != 0 {
                let place = chunks.place(extent.address, 0)?;
                let packed = extent.disk_bytes;
                return Ok(match place.len >= packed {
                    true => Extent::Packed { at: place.offset, packed, skip, len },
                    false => Extent::Opaque { len },
                });
            }
            let place = chunks.place(extent.address.saturating_add(skip), 0)?;
            return Ok(Extent::Data { at: place.offset, len: len.min(place.len) });
        }
        Ok(Extent::Hole { len: left })
    }

    /// Superblocks, and all chunks for metadata, which hold no content.
    pub(super) fn all_bookkeeping(&self) -> Result<Option<Vec<Range<u64>>>> {
        let mut all: Vec<_> = SUPERS.iter().map(|at| *at..at + SUPER_BYTES).collect();
        for chunk in self.blocks.chunks().all() {
            if chunk.kind & profile::DATA == 0 {
                all.extend(chunk.on_device(self.blocks.chunks().device()));
            } else if chunk.kind & profile::METADATA != 0 {
                return Ok(None);
            }
        }
        all.sort_by_key(|range| range.start);
        Ok(Some(all))
    }
}

impl Chunk {
    /// Every byte of `device` that belongs to this chunk.
    fn on_device(&self, device: u64) -> impl Iterator<Item = Range<u64>> {
        let len = self.stripe_bytes();
        self.stripes_on(device).map(move |start| start..start.saturating_add(len))
    }
}
