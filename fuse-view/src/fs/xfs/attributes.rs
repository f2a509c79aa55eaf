//! Extended attributes: inside the inode, in leaves, with values of their own.
//!
//! Facts: "XFS Algorithms & Data Structures", the chapter on extended attributes.

use super::block::{Block, Magic};
use super::inode::{Format, Inode, Which};
use super::{Xfs, acl, checksum, fit};
use crate::fs::bytes::{be16, be32, be64, bytes16, u8_at};
use crate::fs::run::Place;
use crate::{Error, Piece, Result};
use std::collections::HashSet;

/// Flags of an entry.
mod flag {
    pub const LOCAL: u8 = 1;
    pub const ROOT: u8 = 2;
    pub const SECURE: u8 = 4;
    pub const PARENT: u8 = 8;
    /// Being written, or being removed: never shown.
    pub const INCOMPLETE: u8 = 0x80;
}

/// The kernel's own limit of a value.
const MAX_VALUE_BYTES: u64 = 64 << 10;
/// Bytes of names and values that are given out for one file.
const MAX_TOTAL_BYTES: usize = 64 << 20;
const MAX_LEVEL: u16 = 8;
/// Header of each block of a value in version 5.
const VALUE_HEADER: usize = 56;

/// An attribute as it is kept: name space, name, value.
pub(super) type Stored = (u8, Vec<u8>, Vec<u8>);

/// What was found so far.
#[derive(Default)]
struct Found {
    all: Vec<Stored>,
    bytes: usize,
}

impl Found {
    fn add(&mut self, flags: u8, name: &[u8], value: Vec<u8>) -> std::result::Result<(), &'static str> {
        self.bytes += name.len() + value.len();
        if self.bytes > MAX_TOTAL_BYTES {
            return Err("more than 64 MiB of attributes");
        }
        self.all.push((flags & (flag::ROOT | flag::SECURE), name.to_vec(), value));
        Ok(())
    }
}

impl Xfs {
    /// Attributes under the names the kernel gives them, sorted.
    pub(super) fn all_xattrs(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut out = Vec::new();
        let mut stored = self.stored_attributes(inode)?;
        self.completed.correct_attributes(inode.ino, &mut stored);
        for (space, name, value) in stored {
            if space & flag::ROOT != 0
                && let Some(shown) = acl::shown_as(&name)
            {
                let list =
                    acl::acl_to_kernel(&value).ok_or_else(|| bad(inode, "a list of access that is none"))?;
                out.push((shown.to_vec(), list));
            }
            let prefix: &[u8] = match space {
                flag::ROOT => b"trusted.",
                flag::SECURE => b"security.",
                0 => b"user.",
                _ => return Err(bad(inode, "an attribute in two name spaces")),
            };
            out.push(([prefix, &name].concat(), value));
        }
        out.sort();
        Ok(out)
    }

    fn stored_attributes(&self, inode: &Inode) -> Result<Vec<Stored>> {
        let mut found = Found::default();
        let Some(fork) = inode.fork(Which::Attributes) else { return Ok(found.all) };
        if fork.format == Format::Local {
            shortform(inode.fork_bytes(fork), &mut found).map_err(|what| bad(inode, what))?;
            return Ok(found.all);
        }
        let mut leaf = self.first_leaf(inode)?;
        let mut seen = HashSet::new();
        loop {
            self.leaf(inode, &leaf, &mut found)?;
            let next = leaf.forward();
            if next == 0 {
                return Ok(found.all);
            }
            if !seen.insert(next) {
                return Err(bad(inode, "its leaves of attributes go in circles"));
            }
            leaf = self.attr_block(inode, next)?;
            if leaf.magic != Magic::AttrLeaf {
                return Err(bad(inode, "a leaf of attributes is something else"));
            }
        }
    }

    fn attr_block(&self, inode: &Inode, block: u32) -> Result<Block> {
        self.meta_block(inode, Which::Attributes, u64::from(block))?
            .map_err(|_| bad(inode, "a hole where a block of attributes should be"))
    }

    fn first_leaf(&self, inode: &Inode) -> Result<Block> {
        let mut block = self.attr_block(inode, 0)?;
        let mut above = MAX_LEVEL + 1;
        while block.magic == Magic::Node {
            if block.level() == 0 || block.level() >= above || block.count() == 0 {
                return Err(bad(inode, "a node of its attributes is impossible"));
            }
            above = block.level();
            block = self.attr_block(inode, be32(block.bytes(), block.header() + 4))?;
        }
        if block.magic != Magic::AttrLeaf {
            return Err(bad(inode, "a leaf of attributes is something else"));
        }
        Ok(block)
    }

    fn leaf(&self, inode: &Inode, leaf: &Block, found: &mut Found) -> Result<()> {
        let bytes = leaf.bytes();
        let entries = bytes[leaf.header()..]
            .get(..leaf.count() * 8)
            .ok_or_else(|| bad(inode, "a leaf of attributes is too full"))?;
        let outside = || bad(inode, "an attribute that leaves its leaf");
        for entry in entries.chunks_exact(8) {
            let (at, flags) = (usize::from(be16(entry, 4)), u8_at(entry, 6));
            if flags & (flag::INCOMPLETE | flag::PARENT) != 0 {
                continue;
            }
            let item = bytes.get(at..).ok_or_else(outside)?;
            let (name, value) = if flags & flag::LOCAL != 0 {
                let (value_len, name_len) = (usize::from(be16(item, 0)), usize::from(u8_at(item, 2)));
                let both = item.get(3..3 + name_len + value_len).ok_or_else(outside)?;
                let (name, value) = both.split_at(name_len);
                (name, value.to_vec())
            } else {
                let name = item.get(9..9 + usize::from(u8_at(item, 8))).ok_or_else(outside)?;
                (name, self.remote_value(inode, be32(item, 0), u64::from(be32(item, 4)))?)
            };
            found.add(flags, name, value).map_err(|what| bad(inode, what))?;
        }
        Ok(())
    }

    /// A value of `len` bytes in blocks of its own, from block `block` of the fork on.
    fn remote_value(&self, inode: &Inode, block: u32, len: u64) -> Result<Vec<u8>> {
        if len > MAX_VALUE_BYTES {
            return Err(bad(inode, "a value of an attribute is too long"));
        }
        let mut value = vec![0; fit(usize::MAX, len)];
        let start = u64::from(block) << self.sb.block_bits;
        if !self.sb.v5() {
            self.read_mapped(inode, Which::Attributes, u64::MAX, start, &mut value)?;
            return Ok(value);
        }
        let room = self.sb.block_size() - VALUE_HEADER;
        for (i, part) in value.chunks_mut(room).enumerate() {
            let bytes = self.value_block(inode, u64::from(block) + i as u64)?;
            let offset = u64::from(be32(&bytes, 4));
            if offset != (i * room) as u64 || (be32(&bytes, 8) as usize) < part.len() {
                return Err(bad(inode, "a part of a value is another one"));
            }
            part.copy_from_slice(&bytes[VALUE_HEADER..VALUE_HEADER + part.len()]);
        }
        Ok(value)
    }

    fn value_block(&self, inode: &Inode, block: u64) -> Result<Piece> {
        let len = self.sb.block_size();
        let Place::Data(start) = self.map(inode, Which::Attributes, block)?.place else {
            return Err(bad(inode, "a hole where a value should be"));
        };
        let byte = self.sb.byte_of(start, 1).unwrap_or_default();
        let bytes = self.image.piece(byte, len)?;
        let patched = self.image.is_patched(byte, len);
        if be32(&bytes, 0) != u32::from_be_bytes(*b"XARM") || !(patched || checksum::holds(&bytes, 12)) {
            return Err(bad(inode, "a part of a value has no magic, or its checksum is wrong"));
        }
        if be64(&bytes, 32) != inode.ino
            || be64(&bytes, 40) != byte >> 9
            || bytes16(&bytes, 16) != self.sb.meta_uuid
        {
            return Err(bad(inode, "a part of a value belongs elsewhere"));
        }
        Ok(bytes)
    }
}

/// Attributes inside the inode.
fn shortform(fork: &[u8], found: &mut Found) -> std::result::Result<(), &'static str> {
    let total = usize::from(be16(fork, 0));
    let mut rest = fork.get(4..total.max(4)).ok_or("attributes that leave the inode")?;
    for _ in 0..u8_at(fork, 2) {
        let (name_len, value_len) = (usize::from(u8_at(rest, 0)), usize::from(u8_at(rest, 1)));
        let flags = u8_at(rest, 2);
        let both = rest.get(3..3 + name_len + value_len).ok_or("an attribute that leaves the inode")?;
        if flags & (flag::INCOMPLETE | flag::PARENT) == 0 {
            found.add(flags, &both[..name_len], both[name_len..].to_vec())?;
        }
        rest = &rest[3 + both.len()..];
    }
    Ok(())
}

fn bad(inode: &Inode, what: &str) -> Error {
    Error::Corrupt(format!("xfs inode {}: {what}", inode.ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_inside_the_inode() {
        let fork = [0, 17, 2, 0, 1, 2, 0, b'a', b'x', b'y', 3, 1, 4, b's', b'e', b'c', b'1', 9];
        let mut found = Found::default();
        shortform(&fork, &mut found).unwrap();
        let want = [(0, b"a".to_vec(), b"xy".to_vec()), (4, b"sec".to_vec(), b"1".to_vec())];
        assert_eq!(found.all, want);
        assert!(shortform(&fork[..16], &mut Found::default()).is_err());
        shortform(&[0, 4, 0, 0], &mut Found::default()).unwrap();
        let hidden = [0, 8, 1, 0, 1, 0, flag::PARENT, b'p'];
        let mut found = Found::default();
        shortform(&hidden, &mut found).unwrap();
        assert!(found.all.is_empty());
    }
}
