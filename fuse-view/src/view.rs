//! What every file system looks like from outside: files addressed by inode, names as bytes.

use crate::Result;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Inode number inside one file system.
pub type Ino = u64;

/// Type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDev,
    /// Block device.
    BlockDev,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// A time stamp: seconds since the epoch (negative before 1970) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, below 10⁹.
    pub nanoseconds: u32,
}

/// Attributes of one inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Number of 512-byte units allocated (`st_blocks`).
    pub blocks_512: u64,
    /// Hard links.
    pub nlink: u32,
    /// Device number of a special file, `(major, minor)`.
    pub rdev: (u32, u32),
    /// Access time.
    pub atime: Timestamp,
    /// Content modification time.
    pub mtime: Timestamp,
    /// Inode change time.
    pub ctime: Timestamp,
    /// Birth time, where the format has it.
    pub btime: Option<Timestamp>,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Name; bytes, not necessarily UTF-8. Never `.` or `..`, never empty, never with `/` or NUL.
    pub name: Vec<u8>,
    /// Inode.
    pub ino: Ino,
    /// Type, where the directory tells it.
    pub kind: Option<FileKind>,
    /// Pass this to `readdir` to go on after this entry. Never 0.
    pub cookie: u64,
}

/// Entries of a directory with their attributes.
#[derive(Debug)]
pub struct Listing {
    /// In the order of their cookies.
    pub entries: Vec<(DirEntry, Result<Attr>)>,
    /// Whether nothing follows. False where that is not known.
    pub end: bool,
}

/// Size of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StatFs {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Inodes in all (0: no limit).
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// Longest name in bytes.
    pub name_max: u32,
}

/// Where a stretch of a file's content lies. Lengths are in bytes and not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// As it is, from this byte of the source on.
    Data {
        /// Byte of the source.
        at: u64,
        /// Length.
        len: u64,
    },
    /// Compressed, in these bytes of the source.
    Packed {
        /// Byte of the source.
        at: u64,
        /// Bytes there.
        packed: u64,
        /// Where in what they unpack to this stretch begins.
        skip: u64,
        /// Length.
        len: u64,
    },
    /// Nowhere: it reads as zeros.
    Hole {
        /// Length.
        len: u64,
    },
    /// Not as it is anywhere (among metadata, in a log), or not known: only reading tells.
    Opaque {
        /// Length.
        len: u64,
    },
}

impl Extent {
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Data { len, .. } | Self::Packed { len, .. } | Self::Hole { len } | Self::Opaque { len } => {
                *len
            }
        }
    }
}

/// Records of inodes that follow each other on the source, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InodeTable {
    /// The first of them.
    pub first: Ino,
    /// Byte of the source where it starts.
    pub at: u64,
    /// How many there are.
    pub count: u64,
    /// Bytes of each.
    pub inode_bytes: u64,
}

/// Tells by inode and kind (None: the entry does not say) whether an entry of a directory is wanted.
pub type Wanted<'a> = &'a dyn Fn(Ino, Option<FileKind>) -> bool;

/// A file system opened read only. All methods may be called from many threads.
pub trait FsView: Send + Sync {
    /// Name of the format: `ext4`, `ext3`, `xfs`, …
    fn format(&self) -> &'static str;
    /// Label and UUID as text, empty where there is none.
    fn label(&self) -> String;
    /// `clean`, `replayed`, or `partial: why` (the value of `user.cowslip.replay`).
    fn replay(&self) -> String;
    /// Inode of the root directory.
    fn root(&self) -> Ino;
    /// Finds `name` in directory `dir`.
    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino>;
    /// Entries of `dir` after `cookie` (0: from the start), at most `max`; an empty answer is the end.
    fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>>;
    /// As [`FsView::readdir`], of those entries alone that are wanted: an empty answer is the end here, too. Where
    /// few are, a format that asks before it makes names of them is quicker.
    fn readdir_wanted(&self, dir: Ino, cookie: u64, max: usize, wanted: Wanted<'_>) -> Result<Vec<DirEntry>> {
        let mut cookie = cookie;
        loop {
            let mut entries = self.readdir(dir, cookie, max)?;
            let Some(last) = entries.last() else { return Ok(entries) };
            cookie = last.cookie;
            entries.retain(|entry| wanted(entry.ino, entry.kind));
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }
    /// As [`FsView::readdir`], with the attributes of each entry.
    fn list(&self, dir: Ino, cookie: u64, max: usize) -> Result<Listing> {
        let entries = self.readdir(dir, cookie, max)?;
        let end = entries.is_empty();
        let entries = entries.into_iter().map(|entry| {
            let attr = self.attr(entry.ino);
            (entry, attr)
        });
        Ok(Listing { entries: entries.collect(), end })
    }
    /// Attributes.
    fn attr(&self, ino: Ino) -> Result<Attr>;
    /// As [`FsView::lookup`], with the attributes.
    fn lookup_attr(&self, dir: Ino, name: &[u8]) -> Result<(Ino, Attr)> {
        let ino = self.lookup(dir, name)?;
        Ok((ino, self.attr(ino)?))
    }
    /// Reads a regular file; returns the bytes read, short only at the end of the file. Holes and
    /// unwritten extents read as zeros.
    fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// The next range of a regular file that holds data, at or after `offset`, within its size
    /// (SEEK_DATA, SEEK_HOLE). None: only holes follow.
    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<Range<u64>>>;
    /// Where the content of a regular file or directory lies, from `offset` on; None at or past its end. Two
    /// snapshots in which the same extents lie in blocks that they share hold the same content.
    fn extent(&self, ino: Ino, offset: u64) -> Result<Option<Extent>> {
        let size = self.attr(ino)?.size;
        Ok((offset < size).then(|| Extent::Opaque { len: size - offset }))
    }
    /// Whether content that [`FsView::extent`] calls data may be read from the source without asking: nothing is
    /// compared with it.
    fn is_unchecked(&self) -> bool {
        false
    }
    /// The bytes of the source that hold all that is told of `ino` but its content and what other blocks hold of
    /// it; None: not known. Where two snapshots share them, the inode is the same in both.
    fn inode_at(&self, _ino: Ino) -> Result<Option<Range<u64>>> {
        Ok(None)
    }
    /// The same of all inodes at once, where they lie in tables, ascending; None: they do not, or it is not known.
    fn inode_tables(&self) -> Result<Option<Vec<InodeTable>>> {
        Ok(None)
    }
    /// Every byte of the source that belongs to no file that has a name: superblocks, tables of inodes, maps of
    /// free space, logs. Ascending; None: not known.
    fn bookkeeping(&self) -> Result<Option<Vec<Range<u64>>>> {
        Ok(None)
    }
    /// Target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;
    /// Extended attributes with full names (`user.x`, `security.capability`, `system.posix_acl_access`
    /// in the kernel's xattr representation), sorted by name.
    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;
    /// Size of the file system.
    fn statfs(&self) -> StatFs;
}
