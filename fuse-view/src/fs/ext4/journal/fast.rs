//! Fast commits: what the blocks behind the log say, as operations. They are applied by [`super::super::fast`].
//!
//! Facts: "Fast commits" in the kernel's `Documentation/filesystems/ext4/journal.rst`.

use super::super::checksum::crc32c;
use super::log::Log;
use crate::Result;
use crate::fs::bytes::{le16, le32};
use std::ops::Range;

/// Tag and length of each record.
const HEADER: usize = 4;
/// Lengths above this one are those of unwritten ranges.
const MAX_WRITTEN: u16 = 32768;

mod tag {
    pub const ADD_RANGE: u16 = 1;
    pub const DEL_RANGE: u16 = 2;
    pub const CREATE: u16 = 3;
    pub const LINK: u16 = 4;
    pub const UNLINK: u16 = 5;
    pub const INODE: u16 = 6;
    pub const PAD: u16 = 7;
    pub const TAIL: u16 = 8;
    pub const HEAD: u16 = 9;
}

/// What became of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum NameOp {
    Create,
    Link,
    Unlink,
}

/// One operation that a fast commit recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Op {
    /// Blocks of a file, from `image` on; unwritten ones read as zeros.
    Map {
        ino: u32,
        blocks: Range<u64>,
        image: u64,
        unwritten: bool,
    },
    /// Blocks of a file that are no more.
    Unmap {
        ino: u32,
        blocks: Range<u64>,
    },
    Name {
        op: NameOp,
        parent: u32,
        ino: u32,
        name: Vec<u8>,
    },
    /// An inode, as long as it was in use.
    Inode {
        ino: u32,
        body: Vec<u8>,
    },
}

/// The accepted operations, and why the kernel would refuse.
#[derive(Debug, Default)]
pub(in super::super) struct FastCommits {
    pub ops: Vec<Op>,
    pub trouble: Option<String>,
}

/// Why the area ends.
#[derive(Clone, Copy)]
enum End {
    /// Nothing more.
    Quiet,
    /// What is there is not a fast commit.
    Bad(&'static str),
}

struct Scanner {
    /// The transaction that the operations belong to.
    tid: u32,
    inode_size: usize,
    ops: Vec<Op>,
    /// Operations up to the last good tail.
    accepted: usize,
    any_tail: bool,
    crc: u32,
}

/// Reads the area of fast commits; `tid` is the transaction that did not complete.
pub(super) fn scan(log: &Log<'_>, tid: u32) -> Result<FastCommits> {
    let mut scanner = Scanner {
        tid,
        inode_size: log.fs.sb.inode_size,
        ops: Vec::new(),
        accepted: 0,
        any_tail: false,
        crc: 0,
    };
    for (i, at) in log.sb.fast.clone().enumerate() {
        let block = log.block(at)?;
        if i == 0 && le16(&block, 0) != tag::HEAD {
            return Ok(FastCommits::default());
        }
        if let Some(end) = scanner.block(&block) {
            return Ok(scanner.finish(end));
        }
    }
    Ok(scanner.finish(End::Quiet))
}

impl Scanner {
    fn finish(mut self, end: End) -> FastCommits {
        let trouble = match end {
            End::Bad(why) if !self.any_tail => {
                Some(format!("the first fast commit is incomplete or damaged ({why}) and was left out"))
            }
            _ => None,
        };
        self.ops.truncate(self.accepted);
        FastCommits { ops: self.ops, trouble }
    }

    /// Takes the records of a block; Some: the area ends in it.
    fn block(&mut self, block: &[u8]) -> Option<End> {
        let mut at = 0;
        while at + HEADER <= block.len() {
            let (tag, len) = (le16(block, at), usize::from(le16(block, at + 2)));
            let Some(value) = block.get(at + HEADER..at + HEADER + len) else {
                return Some(End::Bad("a record that leaves its block"));
            };
            if let Some(end) = self.record(tag, value, &block[at..at + HEADER + len]) {
                return Some(end);
            }
            at += HEADER + len;
        }
        None
    }

    fn record(&mut self, tag: u16, value: &[u8], whole: &[u8]) -> Option<End> {
        if !self.len_is_right(tag, value.len()) {
            return Some(End::Bad("a record of impossible length"));
        }
        match tag {
            tag::TAIL => {
                // Of the tail only the part before the checksum itself is summed.
                let crc = crc32c(self.crc, &whole[..HEADER + 4]);
                self.crc = 0;
                if le32(value, 0) != self.tid || le32(value, 4) != crc {
                    return Some(End::Bad("a wrong checksum"));
                }
                self.accepted = self.ops.len();
                self.any_tail = true;
                return None;
            }
            tag::HEAD if le32(value, 0) != 0 => return Some(End::Bad("unknown features")),
            tag::HEAD if le32(value, 4) != self.tid => return Some(End::Quiet),
            tag::HEAD | tag::PAD => {}
            tag::ADD_RANGE => self.ops.push(added(value)),
            tag::DEL_RANGE => {
                let first = u64::from(le32(value, 4));
                let blocks = first..first + u64::from(le32(value, 8));
                self.ops.push(Op::Unmap { ino: le32(value, 0), blocks });
            }
            tag::INODE => self.ops.push(Op::Inode { ino: le32(value, 0), body: value[4..].to_vec() }),
            tag::CREATE => self.ops.push(named(NameOp::Create, value)),
            tag::LINK => self.ops.push(named(NameOp::Link, value)),
            tag::UNLINK => self.ops.push(named(NameOp::Unlink, value)),
            _ => return Some(End::Bad("an unknown record")),
        }
        self.crc = crc32c(self.crc, whole);
        None
    }

    fn len_is_right(&self, tag: u16, len: usize) -> bool {
        match tag {
            tag::ADD_RANGE => len == 16,
            tag::DEL_RANGE => len == 12,
            tag::CREATE | tag::LINK | tag::UNLINK => (9..=8 + 255).contains(&len),
            tag::INODE => (4 + 128..=4 + self.inode_size).contains(&len),
            tag::TAIL => len >= 8,
            tag::HEAD => len == 8,
            _ => true,
        }
    }
}

fn added(value: &[u8]) -> Op {
    let first = u64::from(le32(value, 4));
    let raw = le16(value, 8);
    let unwritten = raw > MAX_WRITTEN;
    let len = u64::from(if unwritten { raw - MAX_WRITTEN } else { raw });
    let image = u64::from(le32(value, 12)) | u64::from(le16(value, 10)) << 32;
    Op::Map { ino: le32(value, 0), blocks: first..first + len, image, unwritten }
}

fn named(op: NameOp, value: &[u8]) -> Op {
    Op::Name { op, parent: le32(value, 0), ino: le32(value, 4), name: value[8..].to_vec() }
}
