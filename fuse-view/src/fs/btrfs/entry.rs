//! Directory entries and extended attributes: one form for both, several of them in an item.

use super::key::{KEY_BYTES, Key};
use crate::FileKind;
use crate::fs::bytes::{le16, u8_at};
use crate::fs::kind;

/// Bytes before the name.
const HEAD: usize = 30;
/// Longest name.
pub(super) const NAME_MAX: usize = 255;
/// Bit of the type: the name is encrypted.
const ENCRYPTED: u8 = 0x80;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// The inode or root item it leads to.
    pub location: Key,
    pub kind: u8,
    pub name: &'a [u8],
    /// Value of an attribute.
    pub data: &'a [u8],
    /// Where it ends in its item.
    pub end: usize,
}

impl Entry<'_> {
    /// Type of the file, where it is one that a name may lead to.
    pub fn file_kind(&self) -> Option<FileKind> {
        kind::of_entry(self.kind & !ENCRYPTED)
    }

    /// Whether the name can be a name at all.
    pub fn is_sane(&self) -> bool {
        !self.name.is_empty()
            && self.name.len() <= NAME_MAX
            && self.name != b"."
            && self.name != b".."
            && !self.name.iter().any(|&b| b == b'/' || b == 0)
    }

    /// As stored, for an entry that replay adds.
    pub fn to_bytes(&self, generation: u64) -> Vec<u8> {
        let len = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes();
        let mut out = self.location.to_bytes().to_vec();
        out.extend(generation.to_le_bytes());
        out.extend(len(self.data));
        out.extend(len(self.name));
        out.push(self.kind);
        out.extend(self.name);
        out.extend(self.data);
        out
    }
}

/// The entries of an item; ends with an error at the first that leaves it.
pub(super) struct Entries<'a> {
    item: &'a [u8],
    at: usize,
}

/// The entries of `item`.
pub(super) fn entries(item: &[u8]) -> Entries<'_> {
    Entries { item, at: 0 }
}

/// The entry with this name.
pub(super) fn find<'a>(item: &'a [u8], name: &[u8]) -> Option<Entry<'a>> {
    entries(item).filter_map(Result::ok).find(|entry| entry.name == name)
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.item.len() {
            return None;
        }
        let bytes = &self.item[self.at..];
        let name_end = HEAD + usize::from(le16(bytes, KEY_BYTES + 10));
        let end = name_end + usize::from(le16(bytes, KEY_BYTES + 8));
        let (Some(name), Some(data)) = (bytes.get(HEAD..name_end), bytes.get(name_end..end)) else {
            self.at = self.item.len();
            return Some(Err("an entry leaves its item"));
        };
        self.at += end;
        Some(Ok(Entry { location: Key::read(bytes, 0), kind: u8_at(bytes, 29), name, data, end: self.at }))
    }
}

/// A name that leads to an inode, as the inode itself keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference<'a> {
    /// The directory.
    pub dir: u64,
    pub index: u64,
    pub name: &'a [u8],
}

/// The references in an item of kind INODE_REF (whose key ends in the directory) or INODE_EXTREF.
pub(super) fn references(key: Key, item: &[u8]) -> Result<Vec<Reference<'_>>, &'static str> {
    let extended = key.kind == super::key::kind::INODE_EXTREF;
    let head = if extended { 18 } else { 10 };
    let mut found = Vec::new();
    let mut rest = item;
    while !rest.is_empty() {
        let len = usize::from(le16(rest, head - 2));
        let name = rest.get(head..head + len).ok_or("a back reference leaves its item")?;
        let index = crate::fs::bytes::le64(rest, head - 10);
        let dir = if extended { crate::fs::bytes::le64(rest, 0) } else { key.offset };
        found.push(Reference { dir, index, name });
        rest = &rest[head + len..];
    }
    Ok(found)
}

/// Back references as stored in an item of this key.
pub(super) fn references_to_bytes<'a>(key: Key, references: impl Iterator<Item = Reference<'a>>) -> Vec<u8> {
    let mut out = Vec::new();
    for reference in references {
        if key.kind == super::key::kind::INODE_EXTREF {
            out.extend(reference.dir.to_le_bytes());
        }
        out.extend(reference.index.to_le_bytes());
        out.extend(u16::try_from(reference.name.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(reference.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::key::kind;
    use super::*;

    #[test]
    fn entries_round_trip() {
        let location = Key::new(300, 1, 0);
        let one = Entry { location, kind: 1, name: b"name", data: b"", end: 34 };
        let two = Entry { location, kind: 8, name: b"user.x", data: b"value", end: 34 + 41 };
        let item = [one.to_bytes(7), two.to_bytes(7)].concat();
        let back: Vec<_> = entries(&item).map(Result::unwrap).collect();
        assert_eq!(back, [one, two]);
        assert_eq!(find(&item, b"user.x").unwrap().data, b"value");
        for cut in [1, 29, 33, 35, 70] {
            assert!(entries(&item[..cut]).last().unwrap().is_err(), "{cut}");
        }
    }

    #[test]
    fn references_round_trip() {
        for key in [Key::new(300, kind::INODE_REF, 256), Key::new(300, kind::INODE_EXTREF, 9)] {
            let refs = [
                Reference { dir: 256, index: 2, name: b"a" },
                Reference { dir: 256, index: 3, name: b"longer" },
            ];
            let item = references_to_bytes(key, refs.iter().cloned());
            assert_eq!(references(key, &item).unwrap(), refs);
            assert!(references(key, &item[..item.len() - 1]).is_err());
            assert!(references(key, &item[..5]).is_err());
        }
    }
}
