//! Entries of directories, in blocks and inside the inode.

use super::block::{Block, Magic};
use crate::fs::bytes::{be16, be32, be64, u8_at};
use crate::fs::kind;
use crate::{FileKind, Ino};

/// One entry as it is on disk, its length verified.
pub(super) struct Entry<'a> {
    /// Offset in its block, or in the fork.
    pub at: usize,
    /// Offset of the next entry.
    pub next: usize,
    pub ino: Ino,
    pub name: &'a [u8],
    /// Type, where the file system tells it.
    pub kind: Option<FileKind>,
}

impl Entry<'_> {
    /// Whether this is a name to show, not `.` or `..`.
    pub fn is_shown(&self) -> bool {
        self.name != b"." && self.name != b".."
    }

    /// Whether the name can be a name at all.
    pub fn is_sane(&self) -> bool {
        !self.name.is_empty() && !self.name.iter().any(|&b| b == b'/' || b == 0)
    }
}

/// The type that an entry tells; one that is no type tells nothing.
fn kind_of(file_type: u8) -> Option<FileKind> {
    /// A whiteout of an overlay mount, which is a character device.
    const WHITEOUT: u8 = 8;
    if file_type == WHITEOUT { Some(FileKind::CharDev) } else { kind::of_entry(file_type) }
}

/// The entries of a block; ends after the first bad one.
pub(super) struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    typed: bool,
}

impl<'a> Entries<'a> {
    /// The entries of a block of a directory from byte `from` on, which is one where an entry starts.
    pub fn new(block: &'a Block, from: usize, typed: bool) -> Result<Self, &'static str> {
        let bytes = block.bytes();
        let end = match block.magic {
            Magic::DirData => bytes.len(),
            Magic::DirBlock => bytes.len() - 8 - hashes(block)?.len(),
            _ => return Err("a block that is not one of entries where one must be"),
        };
        let at = block.header().max(from);
        Ok(Self { bytes: &bytes[..end], at, typed })
    }

    fn parse(&mut self) -> Result<Option<Entry<'a>>, &'static str> {
        while self.at < self.bytes.len() {
            let at = self.at;
            let room = self.bytes.len() - at;
            if be16(self.bytes, at) == 0xFFFF {
                let len = usize::from(be16(self.bytes, at + 2));
                // 64 KiB less the header is the longest.
                if len < 8 || !len.is_multiple_of(8) || len > room {
                    return Err("unused space of impossible length");
                }
                self.at += len;
                continue;
            }
            let name_len = usize::from(u8_at(self.bytes, at + 8));
            let len = (11 + name_len + usize::from(self.typed)).next_multiple_of(8);
            if name_len == 0 || len > room {
                return Err("a name that leaves its block");
            }
            self.at += len;
            let kind = if self.typed { kind_of(u8_at(self.bytes, at + 9 + name_len)) } else { None };
            let name = &self.bytes[at + 9..at + 9 + name_len];
            return Ok(Some(Entry { at, next: self.at, ino: be64(self.bytes, at), name, kind }));
        }
        Ok(None)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.parse().transpose();
        if matches!(entry, Some(Err(_))) {
            self.at = self.bytes.len();
        }
        entry
    }
}

/// The pairs of hash and address at the end of a directory of one block.
pub(super) fn hashes(block: &Block) -> Result<&[u8], &'static str> {
    let bytes = block.bytes();
    let tail = bytes.len() - 8;
    let count = usize::try_from(be32(bytes, tail)).unwrap_or(usize::MAX);
    let room = (tail - block.header()) / 8;
    if count > room {
        return Err("more hashes than its block has room for");
    }
    Ok(&bytes[tail - count * 8..tail])
}

/// The entries of a directory inside its inode.
pub(super) struct Shortform<'a> {
    bytes: &'a [u8],
    at: usize,
    left: usize,
    wide: bool,
    typed: bool,
}

impl<'a> Shortform<'a> {
    pub fn new(fork: &'a [u8], typed: bool) -> Self {
        let wide = u8_at(fork, 1) != 0;
        let left = usize::from(u8_at(fork, if wide && u8_at(fork, 0) == 0 { 1 } else { 0 }));
        Self { bytes: fork, at: if wide { 10 } else { 6 }, left, wide, typed }
    }

    /// The directory above.
    pub fn parent(&self) -> Ino {
        if self.wide { be64(self.bytes, 2) } else { u64::from(be32(self.bytes, 2)) }
    }
}

impl<'a> Iterator for Shortform<'a> {
    type Item = Result<Entry<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let at = self.at;
        let name_len = usize::from(u8_at(self.bytes, at));
        let ino_at = at + 3 + name_len + usize::from(self.typed);
        let next = ino_at + if self.wide { 8 } else { 4 };
        if name_len == 0 || next > self.bytes.len() {
            self.left = 0;
            return Some(Err("a name that leaves its inode"));
        }
        self.at = next;
        let ino = if self.wide { be64(self.bytes, ino_at) } else { u64::from(be32(self.bytes, ino_at)) };
        let kind = if self.typed { kind_of(u8_at(self.bytes, ino_at - 1)) } else { None };
        Some(Ok(Entry { at, next, ino, name: &self.bytes[at + 3..at + 3 + name_len], kind }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_inside_its_inode() {
        let mut fork = vec![2, 0, 0, 0, 0, 128];
        fork.extend([1, 0, 0x60, b'a', 1, 0, 0, 0, 131]);
        fork.extend([3, 0, 0x70, b'x', b'y', b'z', 2, 0, 0, 0, 132]);
        let entries = Shortform::new(&fork, true);
        assert_eq!(entries.parent(), 128);
        let found: Vec<_> = entries.map(|e| e.map(|e| (e.name.to_vec(), e.ino, e.kind))).collect();
        assert_eq!(
            found,
            [Ok((b"a".to_vec(), 131, Some(FileKind::File))), Ok((b"xyz".to_vec(), 132, Some(FileKind::Dir)))]
        );
        assert!(Shortform::new(&fork[..20], true).last().unwrap().is_err());
        assert!(Shortform::new(&[], true).next().is_none());
        let wide = [1, 1, 0, 0, 0, 1, 0, 0, 0, 5, 1, 0, 0x60, b'b', 0, 0, 0, 1, 0, 0, 0, 6];
        let mut entries = Shortform::new(&wide, false);
        assert_eq!(entries.parent(), 0x1_0000_0005);
        assert_eq!(entries.next().unwrap().unwrap().ino, 0x1_0000_0006);
    }
}
