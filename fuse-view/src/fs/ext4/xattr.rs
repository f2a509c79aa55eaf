//! Extended attributes: in the inode, in a block of their own, and large values in inodes of their own.
//!
//! Facts: the kernel's `Documentation/filesystems/ext4/attributes.rst`.

use super::Ext4;
use super::acl::acl_to_kernel;
use super::checksum::{crc32c, crc32c_without};
use super::inode::{Inode, fit, flag};
use super::superblock::incompat;
use crate::fs::bytes::{le16, le32, u8_at};
use crate::{Error, FileKind, Piece, Result};
use std::ops::Range;

const MAGIC: u32 = 0xEA02_0000;
const ENTRY_HEAD: usize = 16;
const BLOCK_HEAD: usize = 32;
const INODE_HEAD: usize = 4;
/// What the kernel's system calls can set and return.
const LONGEST_VALUE: u64 = 65536;
/// Index of names that begin with `system.`; here only the rest of inline content.
const SYSTEM: u8 = 7;

/// One attribute as stored.
struct RawXattr<'a> {
    index: u8,
    name: &'a [u8],
    value: Value,
}

enum Value {
    /// A range of the area that values are counted from.
    Here(Range<usize>),
    /// Content of an inode, of this many bytes.
    Inode { ino: u32, len: u64 },
}

/// What comes before the name; None: an attribute for the kernel's eyes only.
fn prefix(index: u8) -> Option<&'static [u8]> {
    Some(match index {
        0 => b"",
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        8 => b"system.richacl",
        10 => b"gnu.",
        _ => return None,
    })
}

/// The attributes whose entries begin at `first` of `area`; values are counted from `values_from`.
fn parse(
    area: &[u8],
    first: usize,
    values_from: usize,
) -> std::result::Result<Vec<RawXattr<'_>>, &'static str> {
    let mut found = Vec::new();
    let mut at = first;
    // An entry takes at least 16 bytes, so the area bounds their number.
    while at + 4 <= area.len() && le32(area, at) != 0 {
        let name_at = at + ENTRY_HEAD;
        let name_len = usize::from(u8_at(area, at));
        let name = area.get(name_at..name_at + name_len).ok_or("an attribute name that leaves its area")?;
        let (inode, len) = (le32(area, at + 4), le32(area, at + 8));
        let value = if inode != 0 {
            Value::Inode { ino: inode, len: u64::from(len) }
        } else {
            let start = values_from + usize::from(le16(area, at + 2));
            let end = start.saturating_add(fit(usize::MAX, u64::from(len)));
            if len != 0 && end > area.len() {
                return Err("an attribute value that leaves its area");
            }
            Value::Here(if len == 0 { 0..0 } else { start..end })
        };
        found.push(RawXattr { index: u8_at(area, at + 1), name, value });
        at = name_at + name_len.next_multiple_of(4);
    }
    Ok(found)
}

impl Ext4 {
    /// All attributes that the kernel would list, with full names, sorted.
    pub(super) fn all_xattrs(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut found = Vec::new();
        if let Some(area) = xattr_area(inode) {
            self.collect(inode, area, INODE_HEAD, INODE_HEAD, &mut found)?;
        }
        if inode.xattr_block != 0 {
            let block = self.xattr_block(inode)?;
            self.collect(inode, &block, BLOCK_HEAD, 0, &mut found)?;
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found.dedup_by(|later, first| later.0 == first.0);
        Ok(found)
    }

    /// Adds what `area` holds to `found`; a name that is there already stays as it is.
    fn collect(
        &self,
        inode: &Inode,
        area: &[u8],
        first: usize,
        values_from: usize,
        found: &mut Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<()> {
        for raw in parse(area, first, values_from).map_err(|what| bad(inode, what))? {
            let Some(prefix) = prefix(raw.index) else { continue };
            let value = match raw.value {
                Value::Here(range) => area.get(range).unwrap_or_default().to_vec(),
                Value::Inode { ino, len } => self.value_inode(inode, ino, len)?,
            };
            let value = if matches!(raw.index, 2 | 3) {
                acl_to_kernel(&value)
                    .ok_or_else(|| bad(inode, "an access control list of impossible form"))?
            } else {
                value
            };
            found.push(([prefix, raw.name].concat(), value));
        }
        Ok(())
    }

    fn xattr_block(&self, inode: &Inode) -> Result<Piece> {
        let sb = &self.sb;
        if !sb.holds(inode.xattr_block, 1) {
            return Err(bad(inode, "the block of attributes is outside of the file system"));
        }
        let piece = self.block(inode.xattr_block)?;
        if le32(&piece, 0) != MAGIC || le32(&piece, 8) != 1 {
            return Err(bad(inode, "the block of attributes has no header"));
        }
        if sb.checksums() {
            let seed = crc32c(sb.csum_seed, &inode.xattr_block.to_le_bytes());
            if crc32c_without(seed, &piece, 0x10, 4) != le32(&piece, 0x10) {
                return Err(bad(inode, "the checksum of the block of attributes is wrong"));
            }
        }
        Ok(piece)
    }

    /// A value that has an inode of its own.
    fn value_inode(&self, owner: &Inode, ino: u32, len: u64) -> Result<Vec<u8>> {
        if !self.sb.has(incompat::EA_INODE) || len > LONGEST_VALUE {
            return Err(bad(owner, "an attribute value of impossible size"));
        }
        let inode = self.inode(ino)?;
        if !inode.has(flag::EA_INODE)
            || inode.kind != FileKind::File
            || inode.size != len
            || inode.has(flag::INLINE_DATA)
        {
            return Err(bad(owner, "an attribute value in an inode that is no such inode"));
        }
        let mut value = vec![0; fit(usize::MAX, len)];
        self.read_mapped(&inode, 0, &mut value)?;
        // The access time of such an inode is the checksum of its content.
        if self.sb.checksums() && le32(inode.raw(), 0x8) != crc32c(self.sb.csum_seed, &value) {
            return Err(bad(owner, "the checksum of a large attribute value is wrong"));
        }
        Ok(value)
    }

    /// The part of inline content that does not fit into `i_block`.
    pub(super) fn inline_rest(&self, inode: &Inode) -> Result<Option<Vec<u8>>> {
        let Some(area) = xattr_area(inode) else { return Ok(None) };
        for raw in parse(area, INODE_HEAD, INODE_HEAD).map_err(|what| bad(inode, what))? {
            if raw.index == SYSTEM && raw.name == b"data" {
                return match raw.value {
                    Value::Here(range) => Ok(area.get(range).map(<[u8]>::to_vec)),
                    Value::Inode { .. } => Err(bad(inode, "inline content in another inode")),
                };
            }
        }
        Ok(None)
    }
}

/// The area of attributes in an inode, if it is in use.
fn xattr_area(inode: &Inode) -> Option<&[u8]> {
    inode.xattr_area().filter(|area| le32(area, 0) == MAGIC)
}

fn bad(inode: &Inode, what: &str) -> Error {
    Error::Corrupt(format!("ext4 inode {}: {what}", inode.ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u8, name: &[u8], offset: u16, ino: u32, len: u32) -> Vec<u8> {
        let mut e = vec![u8::try_from(name.len()).unwrap(), index];
        e.extend(offset.to_le_bytes());
        e.extend(ino.to_le_bytes());
        e.extend(len.to_le_bytes());
        e.extend([0; 4]);
        e.extend(name);
        e.resize(e.len().next_multiple_of(4), 0);
        e
    }

    #[test]
    fn entries_and_values() {
        let mut area = [entry(1, b"ab", 60, 0, 3), entry(4, b"", 0, 9, 5), vec![0; 4]].concat();
        area.resize(60, 0);
        area.extend(b"xyz");
        let found = parse(&area, 0, 0).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].index, found[0].name), (1, &b"ab"[..]));
        assert!(matches!(&found[0].value, Value::Here(r) if area[r.clone()] == *b"xyz"));
        assert!(matches!(found[1].value, Value::Inode { ino: 9, len: 5 }));
    }

    #[test]
    fn lies_are_refused() {
        assert!(parse(&entry(1, b"a", 0, 0, u32::MAX), 0, 0).is_err());
        assert!(parse(&entry(1, b"a", u16::MAX, 0, 1), 0, 0).is_err());
        assert!(parse(&entry(1, b"name", 0, 0, 0)[..18], 0, 0).is_err());
        assert!(parse(&[], 0, 0).unwrap().is_empty());
        assert!(parse(&[1, 2, 3], 32, 0).unwrap().is_empty());
    }
}
