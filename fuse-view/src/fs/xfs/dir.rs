//! Directories: listing and search.
//!
//! A cookie is the byte offset of the next entry plus 1, so listing goes on in constant time. Bit 62 of a cookie
//! remembers that something before it was damaged: what is readable is listed first, and the end of the listing is
//! then an error instead of an end.

use super::Xfs;
use super::entry::{Entries, Entry, Shortform};
use super::inode::{Format, Inode, Which};
use super::{fit, index};
use crate::{DirEntry, Error, FileKind, Ino, Result};

const DAMAGED: u64 = 1 << 62;
/// Offset in a directory where entries end and the index of their hashes begins.
pub(super) const INDEX_OFFSET: u64 = 32 << 30;

/// A listing under way.
struct Listing {
    out: Vec<DirEntry>,
    max: usize,
    /// What was found damaged in this call, the first.
    damage: Option<String>,
    damaged_before: bool,
}

impl Listing {
    fn full(&self) -> bool {
        self.out.len() >= self.max
    }

    fn damaged(&mut self, what: String) {
        tracing::debug!("{what}");
        self.damage.get_or_insert(what);
    }

    /// Adds the entries that lie `base` bytes from the start of the directory, from byte `from` on.
    fn add<'a>(
        &mut self,
        dir: &Inode,
        entries: impl Iterator<Item = std::result::Result<Entry<'a>, &'static str>>,
        base: u64,
        from: u64,
    ) {
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(what) => return self.damaged(format!("xfs directory {}, byte {base}: {what}", dir.ino)),
            };
            if base + (entry.at as u64) < from || !entry.is_shown() {
                continue;
            }
            if !entry.is_sane() {
                self.damaged(format!("xfs directory {}: a name with / or NUL", dir.ino));
                continue;
            }
            let mark = if self.damaged_before || self.damage.is_some() { DAMAGED } else { 0 };
            let cookie = (base + entry.next as u64 + 1) | mark;
            self.out.push(DirEntry { name: entry.name.to_vec(), ino: entry.ino, kind: entry.kind, cookie });
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
                let what = format!("xfs directory {}: a part of it could not be read", dir.ino);
                return Err(Error::Corrupt(what));
            }
        }
        Ok(self.out)
    }
}

impl Xfs {
    /// The inode of a directory, or an error that it is none.
    pub(super) fn dir_inode(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::Dir {
            return Err(Error::WrongKind(format!("inode {ino} is not a directory")));
        }
        Ok(inode)
    }

    fn shortform<'a>(&self, dir: &'a Inode) -> Option<Shortform<'a>> {
        let fork = dir.fork(Which::Data).filter(|_| dir.format() == Format::Local)?;
        let bytes = dir.fork_bytes(fork);
        Some(Shortform::new(&bytes[..fit(bytes.len(), dir.size)], self.sb.ftype))
    }

    /// Offset after which there are no entries; more than the image has are not walked.
    fn entries_end(&self) -> u64 {
        INDEX_OFFSET.min(self.image.len())
    }

    /// Calls `each` with the blocks of entries from byte `from` of the directory on, until it answers false. Damage is
    /// passed on and does not end the walk.
    pub(super) fn walk_blocks(
        &self,
        dir: &Inode,
        from: u64,
        mut each: impl FnMut(std::result::Result<(&super::block::Block, u64), String>) -> bool,
    ) -> Result<()> {
        let unit = 1u64 << self.sb.dir_block_bits;
        let mut at = from - from % unit;
        while at < self.entries_end() {
            let go_on = match self.meta_block(dir, Which::Data, at >> self.sb.block_bits) {
                Ok(Ok(block)) => each(Ok((&block, at))),
                Ok(Err(hole)) => {
                    let end = at.saturating_add(hole.saturating_mul(1 << self.sb.block_bits));
                    at = (end - end % unit).max(at + unit);
                    continue;
                }
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => each(Err(e.to_string())),
            };
            if !go_on {
                break;
            }
            at += unit;
        }
        Ok(())
    }

    /// Entries after `cookie`, at most `max`.
    pub(super) fn list(&self, dir: &Inode, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let from = (cookie & !DAMAGED).saturating_sub(1);
        let mut listing =
            Listing { out: Vec::new(), max: max.max(1), damage: None, damaged_before: cookie & DAMAGED != 0 };
        if let Some(entries) = self.shortform(dir) {
            listing.add(dir, entries, 0, from);
            return listing.finish(dir);
        }
        self.walk_blocks(dir, from, |block| {
            match block {
                Ok((block, base)) => {
                    // A cookie is where an entry starts, if it is one of ours.
                    let within = fit(usize::MAX, from.saturating_sub(base)) & !7;
                    match Entries::new(block, within, self.sb.ftype) {
                        Ok(entries) => listing.add(dir, entries, base, from),
                        Err(what) => listing.damaged(format!("xfs directory {}: {what}", dir.ino)),
                    }
                }
                Err(what) => listing.damaged(what),
            }
            !listing.full()
        })?;
        listing.finish(dir)
    }

    /// Finds `name`.
    pub(super) fn find(&self, dir: &Inode, name: &[u8]) -> Result<Ino> {
        let absent =
            || Error::NotFound(format!("{} in directory {}", String::from_utf8_lossy(name), dir.ino));
        if name.is_empty() || name.len() > 255 {
            return Err(absent());
        }
        if let Some(entries) = self.shortform(dir) {
            match name {
                b"." => return Ok(dir.ino),
                b".." => return Ok(entries.parent()),
                _ => {}
            }
            return self.find_among(dir, entries, name)?.ok_or_else(absent);
        }
        match self.find_by_hash(dir, name) {
            Ok(found) => found.ok_or_else(absent),
            Err(e @ Error::Io { .. }) => Err(e),
            Err(damage) => {
                tracing::debug!("xfs directory {}: {damage}; searching all of it", dir.ino);
                self.find_linear(dir, name)?.ok_or_else(absent)
            }
        }
    }

    /// Finds `name` among entries; damage after it does not matter.
    fn find_among<'a>(
        &self,
        dir: &Inode,
        entries: impl Iterator<Item = std::result::Result<Entry<'a>, &'static str>>,
        name: &[u8],
    ) -> Result<Option<Ino>> {
        let mut folded = None;
        for entry in entries {
            let entry = entry.map_err(|what| Error::Corrupt(format!("xfs directory {}: {what}", dir.ino)))?;
            if entry.name == name {
                return Ok(Some(entry.ino));
            }
            if self.sb.case_insensitive && index::same_but_for_case(entry.name, name) {
                folded.get_or_insert(entry.ino);
            }
        }
        Ok(folded)
    }

    fn find_linear(&self, dir: &Inode, name: &[u8]) -> Result<Option<Ino>> {
        let mut damage = None;
        let mut found = None;
        self.walk_blocks(dir, 0, |block| {
            let answer = match block {
                Ok((block, _)) => Entries::new(block, 0, self.sb.ftype)
                    .map_err(|what| Error::Corrupt(format!("xfs directory {}: {what}", dir.ino)))
                    .and_then(|entries| self.find_among(dir, entries, name)),
                Err(what) => Err(Error::Corrupt(what)),
            };
            match answer {
                Ok(ino) => found = ino,
                Err(e) => damage = Some(e),
            }
            found.is_none()
        })?;
        // The name may have been in the part that is lost: that it does not exist would be a guess.
        match (found, damage) {
            (None, Some(damage)) => Err(damage),
            (found, _) => Ok(found),
        }
    }
}
