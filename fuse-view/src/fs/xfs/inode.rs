//! Inodes: where they lie, their checksum, their fields, their two forks.
//!
//! Facts: "XFS Algorithms & Data Structures", the chapter on on-disk inodes.

use super::Xfs;
use super::checksum;
use crate::fs::bytes::{be16, be32, be64, bytes16, u8_at};
use crate::fs::kind;
use crate::{Attr, Error, FileKind, Ino, Piece, Result, Timestamp};
use std::ops::Range;

/// `di_flags`: the data lies on the realtime device.
const FLAG_REALTIME: u16 = 1;
/// `di_flags2`
const FLAG2_BIGTIME: u64 = 8;
const FLAG2_NREXT64: u64 = 0x10;

/// How a fork keeps what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A device number.
    Device,
    /// In the fork itself.
    Local,
    /// A list of extents in the fork.
    Extents,
    /// The root of a tree of extents.
    Tree,
}

/// One of the two forks of an inode.
#[derive(Debug, Clone)]
pub(super) struct Fork {
    pub format: Format,
    /// Number of extents.
    pub extents: u64,
    /// Where it lies in the inode.
    range: Range<usize>,
}

/// Which of the two forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Which {
    Data,
    Attributes,
}

/// One inode, its checksum verified.
pub(super) struct Inode {
    pub ino: Ino,
    pub kind: FileKind,
    /// Bytes of content.
    pub size: u64,
    /// Blocks held by both forks, those of their trees included.
    pub blocks: u64,
    pub links: u32,
    flags: u16,
    flags2: u64,
    data: Fork,
    attributes: Option<Fork>,
    raw: Piece,
}

impl Inode {
    /// The inode as it is on disk.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// A fork; None: there are no attributes.
    pub fn fork(&self, which: Which) -> Option<&Fork> {
        match which {
            Which::Data => Some(&self.data),
            Which::Attributes => self.attributes.as_ref(),
        }
    }

    /// The bytes of a fork within the inode.
    pub fn fork_bytes(&self, fork: &Fork) -> &[u8] {
        &self.raw()[fork.range.clone()]
    }

    /// How the data fork is kept.
    pub fn format(&self) -> Format {
        self.data.format
    }

    pub fn is_realtime(&self) -> bool {
        self.flags & FLAG_REALTIME != 0
    }

    fn time(&self, at: usize) -> Timestamp {
        if self.flags2 & FLAG2_BIGTIME == 0 {
            let seconds = i64::from(be32(self.raw(), at).cast_signed());
            return Timestamp { seconds, nanoseconds: be32(self.raw(), at + 4).min(999_999_999) };
        }
        // Nanoseconds since the earliest time of the old form, 2³¹ seconds before the epoch.
        let stamp = be64(self.raw(), at);
        let seconds = (stamp / 1_000_000_000).cast_signed() - (1 << 31);
        Timestamp { seconds, nanoseconds: u32::try_from(stamp % 1_000_000_000).unwrap_or(0) }
    }

    fn device(&self) -> (u32, u32) {
        if !matches!(self.kind, FileKind::CharDev | FileKind::BlockDev) {
            return (0, 0);
        }
        let device = be32(self.fork_bytes(&self.data), 0);
        (device >> 18, device & 0x3_FFFF)
    }

    /// What is shown of the inode; `block_bits` is log2 of the block size.
    pub fn attr(&self, block_bits: u32) -> Attr {
        let raw = self.raw();
        let version = u8_at(raw, 4);
        Attr {
            ino: self.ino,
            kind: self.kind,
            mode: be16(raw, 2) & 0o7777,
            uid: be32(raw, 8),
            gid: be32(raw, 12),
            size: self.size,
            blocks_512: self.blocks.saturating_mul(1 << (block_bits - 9)),
            nlink: self.links,
            rdev: self.device(),
            atime: self.time(32),
            mtime: self.time(40),
            ctime: self.time(48),
            btime: (version >= 3).then(|| self.time(144)),
        }
    }
}

impl Xfs {
    /// Reads an inode that a directory or the superblock names.
    pub(super) fn inode(&self, ino: Ino) -> Result<Inode> {
        let Some(byte) = self.sb.byte_of_inode(ino) else {
            return Err(Error::Corrupt(format!("xfs: there is no room for an inode {ino}")));
        };
        let raw = self.image.piece(byte, self.sb.inode_size)?;
        let bad = |what: &str| Error::Corrupt(format!("xfs inode {ino}: {what}"));
        if be16(&raw, 0) != 0x494E {
            return Err(bad("its magic is not IN"));
        }
        let version = u8_at(&raw, 4);
        if if self.sb.v5() { version != 3 } else { !matches!(version, 1 | 2) } {
            return Err(bad("its version is impossible"));
        }
        if version == 3 {
            let patched = self.image.is_patched(byte, raw.len());
            if !patched && !checksum::holds(&raw, 100) {
                return Err(bad("its checksum is wrong"));
            }
            if be64(&raw, 152) != ino || bytes16(&raw, 160) != self.sb.meta_uuid {
                return Err(bad("it is another inode, or of another file system"));
            }
        }
        let fields = fields(&raw).map_err(bad)?;
        let mut inode = Inode { ino, raw, ..fields };
        self.completed.correct(&mut inode);
        Ok(inode)
    }
}

/// Checks the fields that everything else relies on.
fn fields(raw: &[u8]) -> std::result::Result<Inode, &'static str> {
    let version = u8_at(raw, 4);
    let core = if version == 3 { 176 } else { 100 };
    let kind = kind::of_mode(be16(raw, 2)).ok_or(if be16(raw, 2) == 0 {
        "it is free, but still named"
    } else {
        "its type is unknown"
    })?;
    let size = be64(raw, 56);
    if size > i64::MAX as u64 {
        return Err("its size is negative");
    }
    let flags2 = if version == 3 { be64(raw, 120) } else { 0 };
    let (extents, attr_extents) = if flags2 & FLAG2_NREXT64 != 0 {
        (be64(raw, 24), u64::from(be32(raw, 76)))
    } else {
        (u64::from(be32(raw, 76)), u64::from(be16(raw, 80)))
    };
    let fork_offset = usize::from(u8_at(raw, 82)) * 8;
    if core + fork_offset > raw.len() {
        return Err("its attributes begin outside of it");
    }
    let split = if fork_offset == 0 { raw.len() } else { core + fork_offset };
    let data = fork(u8_at(raw, 5), extents, core..split)?;
    let fits = match kind {
        FileKind::File => matches!(data.format, Format::Extents | Format::Tree),
        FileKind::Dir | FileKind::Symlink => data.format != Format::Device,
        _ => data.format == Format::Device,
    };
    if !fits {
        return Err("the format of its data does not fit its type");
    }
    let attributes = (fork_offset != 0)
        .then(|| fork(u8_at(raw, 83), attr_extents, split..raw.len()))
        .transpose()?
        .filter(|f| f.format == Format::Local || f.extents > 0);
    if attributes.as_ref().is_some_and(|f| f.format == Format::Device) {
        return Err("the format of its attributes is impossible");
    }
    let links = if version == 1 { u32::from(be16(raw, 6)) } else { be32(raw, 16) };
    Ok(Inode {
        ino: 0,
        kind,
        size,
        blocks: be64(raw, 64),
        links,
        flags: be16(raw, 90),
        flags2,
        data,
        attributes,
        raw: Vec::new().into(),
    })
}

fn fork(format: u8, extents: u64, range: Range<usize>) -> std::result::Result<Fork, &'static str> {
    let format = match format {
        0 => Format::Device,
        1 => Format::Local,
        2 => Format::Extents,
        3 => Format::Tree,
        _ => return Err("the format of a fork is unknown"),
    };
    if format == Format::Extents && extents > range.len() as u64 / 16 {
        return Err("more extents than a fork has room for");
    }
    if range.len() < 8 {
        return Err("a fork without room");
    }
    Ok(Fork { format, extents, range })
}
