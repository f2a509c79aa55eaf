//! Inodes: the fields of an inode item.

use super::Btrfs;
use super::key::{Key, kind};
use super::node::Bytes;
use super::subvol::{Subvol, Target};
use crate::fs::bytes::{le16, le32, le64};
use crate::fs::kind as file_kind;
use crate::{Attr, Error, FileKind, Ino, Result, Timestamp};
use std::sync::Arc;

/// Bytes of an inode item.
pub(super) const INODE_BYTES: usize = 160;

/// Offsets in an inode item that replay changes, too.
pub(super) mod field {
    pub const GENERATION: usize = 0;
    pub const SIZE: usize = 16;
    pub const NBYTES: usize = 24;
    pub const NLINK: usize = 40;
    pub const MODE: usize = 52;
}

/// Bits of the flags.
mod flag {
    pub const NODATASUM: u64 = 1;
    pub const PREALLOC: u64 = 1 << 4;
}

/// One inode.
pub(super) struct Inode {
    pub subvol: Arc<Subvol>,
    pub ino: u64,
    pub kind: FileKind,
    item: Bytes,
}

impl Inode {
    pub fn size(&self) -> u64 {
        le64(&self.item, field::SIZE)
    }

    /// Bytes of extents, holes and what was preallocated beyond the end left out.
    pub fn nbytes(&self) -> u64 {
        le64(&self.item, field::NBYTES)
    }

    pub fn owner(&self) -> (u32, u32) {
        (le32(&self.item, 44), le32(&self.item, 48))
    }

    /// Whether data has no checksums.
    pub fn without_checksums(&self) -> bool {
        le64(&self.item, 64) & flag::NODATASUM != 0
    }

    /// Whether there may be preallocated extents.
    pub fn preallocated(&self) -> bool {
        le64(&self.item, 64) & flag::PREALLOC != 0
    }

    fn time(&self, at: usize) -> Timestamp {
        Timestamp {
            seconds: le64(&self.item, at).cast_signed(),
            nanoseconds: le32(&self.item, at + 8).min(999_999_999),
        }
    }

    /// Attributes, under the number `ino`.
    pub fn attr(&self, ino: Ino, sector_bytes: u64) -> Attr {
        let (uid, gid) = self.owner();
        let device = le64(&self.item, 56);
        let major = u32::try_from(device >> 20 & 0xFFF).unwrap_or(0);
        let minor = u32::try_from(device & 0xF_FFFF).unwrap_or(0);
        let special = matches!(self.kind, FileKind::CharDev | FileKind::BlockDev);
        let mode = le32(&self.item, field::MODE);
        Attr {
            ino,
            kind: self.kind,
            mode: u16::try_from(mode & 0o7777).unwrap_or(0),
            uid,
            gid,
            size: self.size(),
            blocks_512: self.nbytes().div_ceil(sector_bytes).saturating_mul(sector_bytes / 512),
            nlink: le32(&self.item, field::NLINK),
            rdev: if special { (major, minor) } else { (0, 0) },
            atime: self.time(112),
            mtime: self.time(136),
            ctime: self.time(124),
            btime: Some(self.time(148)),
        }
    }
}

impl Btrfs {
    /// Inode `ino` of a subvolume.
    pub(super) fn inode(&self, subvol: Arc<Subvol>, ino: u64) -> Result<Inode> {
        let item = subvol.view(&self.blocks).get(Key::new(ino, kind::INODE, 0))?;
        let bad =
            |what: &str| Error::Corrupt(format!("btrfs inode {ino} of subvolume {}: {what}", subvol.id));
        let item = item.ok_or_else(|| bad("a name leads to it, and it is not there"))?;
        if item.len() < INODE_BYTES {
            return Err(bad("its item is too short"));
        }
        let kind =
            file_kind::of_mode(le16(&item, field::MODE)).ok_or_else(|| bad("its type is not known"))?;
        Ok(Inode { subvol, ino, kind, item })
    }

    /// The inode with this number; None: a directory that stands for a subvolume that is not there.
    pub(super) fn target(&self, ino: Ino) -> Result<Option<Inode>> {
        match self.numbers.unpack(ino) {
            Target::Inode { subvol, ino } => self.inode(self.subvol(subvol)?, ino).map(Some),
            Target::Empty { .. } => Ok(None),
        }
    }

    /// The number of an inode of `subvol`.
    pub(super) fn number(&self, subvol: u64, ino: u64) -> Result<Ino> {
        self.numbers.pack(Target::Inode { subvol, ino })
    }
}
