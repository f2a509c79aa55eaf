//! Directories: their blocks, the entries in them, listing and search.
//!
//! A cookie is the byte offset of the next entry plus 1, so listing goes on in constant time. Bit 62 of a cookie
//! remembers that something before it was damaged: what is readable is listed first, and the end of the listing is
//! then an error instead of an end. Bit 61 marks names that fast commits added: they come after those of the blocks.
//!
//! Facts: the kernel's `Documentation/filesystems/ext4/directory.rst`.

use super::Ext4;
use super::checksum::crc32c;
use super::fast::DirEdit;
use super::inline::INLINE_HEAD;
use super::inode::{Inode, fit, flag};
use super::mapping::Until;
use super::names::{Encoding, fold};
use super::superblock::{compat, incompat};
use crate::fs::bytes::{le16, le32, u8_at};
use crate::fs::kind;
use crate::fs::run::Place;
use crate::{DirEntry, Error, FileKind, Ino, Piece, Result, Wanted};

const DAMAGED: u64 = 1 << 62;
/// Marks cookies of names that fast commits added, which come last.
const ADDED: u64 = 1 << 61;
const ENTRY_HEAD: usize = 8;
/// Entry that carries the checksum of a block: 12 bytes, no name, this type.
const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xDE;

/// One entry as it is on disk, its length verified.
pub(super) struct RawEntry<'a> {
    /// Offset in its block.
    pub at: usize,
    /// Offset of the next entry.
    pub next: usize,
    /// 0: unused.
    pub ino: u32,
    pub name: &'a [u8],
    pub file_type: u8,
}

impl RawEntry<'_> {
    /// Whether this is a name to show: in use, and not `.` or `..`.
    fn is_shown(&self) -> bool {
        self.ino != 0 && self.name != b"." && self.name != b".."
    }

    /// Whether the name can be a name at all.
    fn is_sane(&self) -> bool {
        !self.name.is_empty() && !self.name.iter().any(|&b| b == b'/' || b == 0)
    }
}

/// The entries of a block, or of the part of an inode that stands for one; ends after the first bad one.
pub(super) struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    typed: bool,
    inodes: u32,
}

impl<'a> Iterator for Entries<'a> {
    type Item = std::result::Result<RawEntry<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        if at >= self.bytes.len() {
            return None;
        }
        let entry = self.parse(at);
        self.at = entry.as_ref().map_or(self.bytes.len(), |e| e.next);
        Some(entry)
    }
}

impl<'a> Entries<'a> {
    fn parse(&self, at: usize) -> std::result::Result<RawEntry<'a>, &'static str> {
        let room = self.bytes.len() - at;
        let rec_len = record_len(le16(self.bytes, at + 4), self.bytes.len());
        let name_len = if self.typed {
            usize::from(u8_at(self.bytes, at + 6))
        } else {
            usize::from(le16(self.bytes, at + 6))
        };
        if rec_len < ENTRY_HEAD + 4 || !rec_len.is_multiple_of(4) || rec_len > room {
            return Err("an entry of impossible length");
        }
        let ino = le32(self.bytes, at);
        // The name of an unused entry is not looked at: the tail of a block is one of those.
        let name = if ino == 0 {
            Some(&[][..])
        } else {
            self.bytes.get(at + ENTRY_HEAD..at + ENTRY_HEAD + name_len)
        };
        let Some(name) = name.filter(|name| ENTRY_HEAD + name.len() <= rec_len && name.len() <= 255) else {
            return Err("a name that leaves its entry");
        };
        if ino > self.inodes {
            return Err("an entry for an inode beyond the last");
        }
        let file_type = if self.typed { u8_at(self.bytes, at + 7) } else { 0 };
        Ok(RawEntry { at, next: at + rec_len, ino, name, file_type })
    }
}

/// Length of an entry: blocks of 64 KiB need one value that 16 bits do not have.
fn record_len(stored: u16, block_size: usize) -> usize {
    let len = usize::from(stored);
    if block_size < 1 << 16 {
        len
    } else if len == 0xFFFF || len == 0 {
        block_size
    } else {
        (len & 0xFFFC) | (len & 3) << 16
    }
}

/// A listing under way.
struct Listing<'a> {
    out: Vec<DirEntry>,
    max: usize,
    /// What was found damaged in this call, the first.
    damage: Option<String>,
    damaged_before: bool,
    encoding: Option<Encoding>,
    /// Names that are not as the directory says.
    edit: Option<&'a DirEdit>,
    /// Of what is not wanted nothing is made; None: all is.
    wanted: Option<Wanted<'a>>,
}

impl Listing<'_> {
    fn full(&self) -> bool {
        self.out.len() >= self.max
    }

    fn damaged(&mut self, what: String) {
        tracing::debug!("{what}");
        self.damage.get_or_insert(what);
    }

    fn mark(&self) -> u64 {
        if self.damaged_before || self.damage.is_some() { DAMAGED } else { 0 }
    }

    /// Adds the names that fast commits added, from number `from` on.
    fn add_new(&mut self, from: u64) {
        let Some(edit) = self.edit else { return };
        for (number, (name, ino, kind)) in (0..).zip(edit.added()).skip(fit(usize::MAX, from)) {
            if self.full() {
                return;
            }
            let cookie = ADDED | (number + 1) | self.mark();
            let (ino, kind) = (Ino::from(ino), kind::of_entry(kind));
            if self.wants(ino, kind) {
                self.out.push(DirEntry { name: name.to_vec(), ino, kind, cookie });
            }
        }
    }

    fn wants(&self, ino: Ino, kind: Option<FileKind>) -> bool {
        self.wanted.is_none_or(|wanted| wanted(ino, kind))
    }

    fn push(&mut self, entry: &RawEntry<'_>, block_at: u64) {
        let (ino, kind) = (Ino::from(entry.ino), kind::of_entry(entry.file_type));
        if !self.wants(ino, kind) {
            return;
        }
        let name = self.encoding.map_or_else(|| entry.name.to_vec(), |encoding| encoding.show(entry.name));
        let cookie = (block_at + entry.next as u64 + 1) | self.mark();
        self.out.push(DirEntry { name, ino, kind, cookie });
    }

    /// Adds the entries of `bytes`, which stand at byte `block_at` of the directory, from byte `from` on.
    fn add(&mut self, fs: &Ext4, dir: &Inode, bytes: &[u8], block_at: u64, from: u64) {
        for entry in fs.entries(bytes) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(what) => {
                    return self.damaged(format!("ext4 directory {}, byte {block_at}: {what}", dir.ino));
                }
            };
            if block_at + (entry.at as u64) < from || !entry.is_shown() {
                continue;
            }
            if self.encoding.is_none() && !entry.is_sane() {
                self.damaged(format!("ext4 directory {}: a name with / or NUL, or empty", dir.ino));
                continue;
            }
            if self.edit.is_some_and(|edit| edit.get(entry.name).is_some()) {
                continue;
            }
            self.push(&entry, block_at);
            if self.full() {
                return;
            }
        }
    }

    fn finish(self, dir: &Inode) -> Result<Vec<DirEntry>> {
        if self.out.is_empty() {
            if let Some(what) = self.damage {
                return Err(Error::Corrupt(what));
            }
            if self.damaged_before {
                return Err(Error::Corrupt(format!(
                    "ext4 directory {}: a part of it could not be read",
                    dir.ino
                )));
            }
        }
        Ok(self.out)
    }
}

impl Ext4 {
    /// The inode of a directory, or an error that it is none.
    pub(super) fn dir_inode(&self, ino: u32) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::Dir {
            return Err(Error::WrongKind(format!("inode {ino} is not a directory")));
        }
        Ok(inode)
    }

    pub(super) fn entries<'a>(&self, bytes: &'a [u8]) -> Entries<'a> {
        Entries { bytes, at: 0, typed: self.sb.has(incompat::FILETYPE), inodes: self.sb.inodes }
    }

    /// Number of blocks of a directory; more than the image has are not walked.
    pub(super) fn dir_blocks(&self, dir: &Inode) -> u64 {
        let blocks = dir.size.div_ceil(1 << self.sb.block_bits);
        blocks.min(self.dev.len() >> self.sb.block_bits)
    }

    /// Block `block` of a directory with its checksum verified; None: a hole of that many blocks.
    pub(super) fn dir_block(&self, dir: &Inode, block: u64) -> Result<std::result::Result<Piece, u64>> {
        let run = self.map(dir, block, Until::Contiguous)?;
        let Place::Data(start) = run.place else { return Ok(Err(run.len)) };
        let found = self.block(start)?;
        if self.sb.checksums() && !self.dir_checksum_holds(dir, &found) {
            return Err(Error::Corrupt(format!(
                "ext4 directory {}, block {block}: its checksum is wrong",
                dir.ino
            )));
        }
        Ok(Ok(found))
    }

    /// The checksum of a leaf is in its last entry, that of a node of the hash tree after its last possible entry.
    fn dir_checksum_holds(&self, dir: &Inode, bytes: &[u8]) -> bool {
        // A block that became a node of the hash tree may still carry the tail it had as a leaf: the tree goes first.
        let Some(at) = tree_entries_at(bytes) else {
            let tail = bytes.len() - TAIL;
            let found = le32(bytes, tail) == 0 && usize::from(le16(bytes, tail + 4)) == TAIL;
            return found
                && u8_at(bytes, tail + 7) == TAIL_TYPE
                && le32(bytes, tail + 8) == crc32c(dir.seed, &bytes[..tail]);
        };
        let (limit, count) = (usize::from(le16(bytes, at)), usize::from(le16(bytes, at + 2)));
        let (used, tail) = (at + 8 * count, at + 8 * limit);
        if count > limit || tail + 8 > bytes.len() {
            return false;
        }
        let crc = crc32c(crc32c(dir.seed, &bytes[..used]), &bytes[tail..tail + 4]);
        le32(bytes, tail + 4) == crc32c(crc, &[0; 4])
    }

    /// Entries after `cookie` that are wanted (None: all are), at most `max`.
    pub(super) fn list(
        &self,
        dir: &Inode,
        cookie: u64,
        max: usize,
        wanted: Option<Wanted<'_>>,
    ) -> Result<Vec<DirEntry>> {
        let position = cookie & !(DAMAGED | ADDED);
        let from = position.saturating_sub(1);
        let edit = self.fast.dir(dir.ino);
        let mut listing = Listing {
            out: Vec::new(),
            max: max.max(1),
            damage: None,
            damaged_before: cookie & DAMAGED != 0,
            encoding: self.encoding(dir),
            edit,
            wanted,
        };
        if cookie & ADDED != 0 {
            listing.add_new(position);
            return listing.finish(dir);
        }
        if edit.is_none_or(|edit| edit.new_below.is_none()) {
            self.list_on_disk(dir, from, &mut listing)?;
        }
        if !listing.full() {
            listing.add_new(0);
        }
        listing.finish(dir)
    }

    /// The entries that the directory itself has, from byte `from` on.
    fn list_on_disk(&self, dir: &Inode, from: u64, listing: &mut Listing<'_>) -> Result<()> {
        if dir.has(flag::INLINE_DATA) {
            let (bytes, split) = self.inline_dir(dir)?;
            for part in [INLINE_HEAD..split, split..bytes.len()] {
                if from < part.end as u64 && !listing.full() {
                    listing.add(self, dir, &bytes[part.clone()], part.start as u64, from);
                }
            }
            return Ok(());
        }
        let bits = self.sb.block_bits;
        let end = self.dir_blocks(dir);
        let mut block = from >> bits;
        while block < end && !listing.full() {
            match self.dir_block(dir, block) {
                Ok(Ok(found)) => listing.add(self, dir, &found, block << bits, from),
                Ok(Err(hole)) => block = block.saturating_add(hole - 1),
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => listing.damaged(e.to_string()),
            }
            block += 1;
        }
        Ok(())
    }

    /// Finds `name`.
    pub(super) fn find(&self, dir: &Inode, name: &[u8]) -> Result<u32> {
        let absent =
            || Error::NotFound(format!("{} in directory {}", String::from_utf8_lossy(name), dir.ino));
        if name.is_empty() || name.len() > 255 {
            return Err(absent());
        }
        if let Some(edit) = self.fast.dir(dir.ino) {
            match (edit.new_below, edit.get(name)) {
                (_, Some(found)) => return found.ok_or_else(absent),
                (Some(_), _) if name == b"." => return Ok(dir.ino),
                (Some(parent), _) if name == b".." => return Ok(parent),
                (Some(_), None) => return Err(absent()),
                (None, None) => {}
            }
        }
        if dir.has(flag::INLINE_DATA) {
            return self.find_inline(dir, name)?.ok_or_else(absent);
        }
        let indexed = dir.has(flag::INDEX) && self.sb.compat & compat::DIR_INDEX != 0;
        // Names under a key or without case are hashed in another form than they are asked for here.
        let plain = !dir.has(flag::ENCRYPT) && !dir.has(flag::CASEFOLD) && name != b"." && name != b"..";
        if indexed && plain {
            match self.find_in_tree(dir, name) {
                Ok(found) => return found?.ok_or_else(absent),
                Err(damage) => tracing::debug!("ext4 directory {}: {damage}; searching all of it", dir.ino),
            }
        }
        match self.find_linear(dir, name, None)? {
            Some(found) => Ok(found),
            // The name as it was asked for goes first: a directory may have both.
            None if dir.has(flag::CASEFOLD) && !dir.has(flag::ENCRYPT) => {
                let Some(folded) = fold(name) else { return Err(absent()) };
                self.find_linear(dir, name, Some(&folded))?.ok_or_else(absent)
            }
            None => Err(absent()),
        }
    }

    /// Looks at every block; with `folded` at names that are equal to it without case.
    fn find_linear(&self, dir: &Inode, name: &[u8], folded: Option<&str>) -> Result<Option<u32>> {
        let end = self.dir_blocks(dir);
        let mut damage = None;
        let mut block = 0;
        while block < end {
            match self.dir_block(dir, block) {
                Ok(Ok(found)) => match self.find_in_block(dir, &found, name, folded) {
                    Ok(Some(ino)) => return Ok(Some(ino)),
                    Ok(None) => {}
                    Err(e) => damage = Some(e),
                },
                Ok(Err(hole)) => block = block.saturating_add(hole - 1),
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => damage = Some(e),
            }
            block += 1;
        }
        // The name may have been in the part that is lost: that it does not exist would be a guess.
        damage.map_or(Ok(None), Err)
    }

    /// Finds `name` in one block; damage after it does not matter.
    pub(super) fn find_in_block(
        &self,
        dir: &Inode,
        bytes: &[u8],
        name: &[u8],
        folded: Option<&str>,
    ) -> Result<Option<u32>> {
        let encoding = self.encoding(dir);
        for entry in self.entries(bytes) {
            let entry =
                entry.map_err(|what| Error::Corrupt(format!("ext4 directory {}: {what}", dir.ino)))?;
            let same = match (encoding, folded) {
                (Some(encoding), _) if entry.is_shown() => encoding.show(entry.name) == name,
                (_, Some(folded)) => fold(entry.name).is_some_and(|found| found == folded),
                _ => entry.name == name,
            };
            if entry.ino != 0 && same {
                return Ok(Some(entry.ino));
            }
        }
        Ok(None)
    }
}

/// Where the count of a node of the hash tree stands: after a fake empty entry, or after `.`, `..` and the root's head.
pub(super) fn tree_entries_at(bytes: &[u8]) -> Option<usize> {
    let first = record_len(le16(bytes, 4), bytes.len());
    if le32(bytes, 0) == 0 && first == bytes.len() {
        return Some(8);
    }
    let second = record_len(le16(bytes, 16), bytes.len());
    (first == 12 && second == bytes.len() - 12 && u8_at(bytes, 29) == 8).then_some(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(bytes: &[u8]) -> (Vec<Vec<u8>>, bool) {
        let mut names = Vec::new();
        for entry in (Entries { bytes, at: 0, typed: true, inodes: 100 }) {
            match entry {
                Ok(e) => names.push(e.name.to_vec()),
                Err(_) => return (names, true),
            }
        }
        (names, false)
    }

    fn entry(ino: u32, rec_len: u16, name: &[u8]) -> Vec<u8> {
        let mut e = ino.to_le_bytes().to_vec();
        e.extend(rec_len.to_le_bytes());
        e.extend([u8::try_from(name.len()).unwrap(), 1]);
        e.extend(name);
        e.resize(usize::from(rec_len).max(e.len()), 0);
        e
    }

    #[test]
    fn entries_end_at_the_first_bad_one() {
        let good = [entry(5, 12, b"a"), entry(6, 16, b"longer")].concat();
        assert_eq!(walk(&good), (vec![b"a".to_vec(), b"longer".to_vec()], false));
        for (bad, what) in [
            (entry(7, 0, b""), "no length"),
            (entry(7, 10, b"x"), "odd length"),
            (entry(7, 8, b""), "too short"),
            (entry(7, 12, b"longer than that"), "name leaves the entry"),
            (entry(101, 12, b"x"), "inode beyond the last"),
            (entry(7, 12, b"x")[..8].to_vec(), "cut"),
        ] {
            let bytes = [good.clone(), bad, vec![0; 3]].concat();
            let (names, damaged) = walk(&bytes);
            assert!(names.len() == 2 && damaged, "{what}: {names:?} {damaged}");
        }
    }

    #[test]
    fn long_records() {
        assert_eq!(record_len(0xFFFF, 1 << 16), 1 << 16);
        assert_eq!(record_len(0, 1 << 16), 1 << 16);
        assert_eq!(record_len(12, 1 << 16), 12);
        assert_eq!(record_len(0xFFFC, 4096), 0xFFFC);
    }
}
