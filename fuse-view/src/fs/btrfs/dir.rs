//! Directories: search by the hash of a name, listing by index.
//!
//! A cookie is the index of the entry plus 1: the order is that of the kernel, and listing goes on in logarithmic time.
//! Bit 62 of a cookie remembers that something before it was damaged: what is readable is listed first, and the end of
//! the listing is then an error instead of an end.

use super::Btrfs;
use super::entry::{self, Entry, NAME_MAX};
use super::inode::Inode;
use super::key::{Key, kind, name_hash};
use super::subvol::Target;
use crate::fs::bytes::{le16, le64};
use crate::{Attr, DirEntry, Error, FileKind, Ino, Result};

const DAMAGED: u64 = 1 << 62;
/// Owners of empty directories that are remembered.
const MAX_EMPTY: usize = 4096;

impl Btrfs {
    /// Finds a name.
    pub(super) fn find(&self, dir: &Inode, name: &[u8]) -> Result<Ino> {
        let absent = || Error::NotFound(String::from_utf8_lossy(name).into_owned());
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(absent());
        }
        let key = Key::new(dir.ino, kind::DIR_ITEM, name_hash(name));
        let item = dir.subvol.view(&self.blocks).get(key)?.ok_or_else(absent)?;
        for entry in entry::entries(&item) {
            let entry = entry.map_err(|what| damaged(dir, what))?;
            if entry.name == name && entry.is_sane() {
                return self.leads_to(dir, &entry);
            }
        }
        Err(absent())
    }

    /// Entries after `cookie`.
    pub(super) fn list(&self, dir: &Inode, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        let mut out: Vec<DirEntry> = Vec::new();
        let mut damage = None;
        let damaged_before = cookie & DAMAGED != 0;
        let view = dir.subvol.view(&self.blocks);
        for item in view.walk(Key::new(dir.ino, kind::DIR_INDEX, cookie & !DAMAGED)) {
            if out.len() >= max {
                break;
            }
            let listed = item.and_then(|(key, bytes)| {
                if key.is(dir.ino, kind::DIR_INDEX) {
                    self.listed(dir, key.offset, &bytes).map(Some)
                } else {
                    Ok(None)
                }
            });
            match listed {
                Ok(Some(mut entry)) => {
                    if damaged_before || damage.is_some() {
                        entry.cookie |= DAMAGED;
                    }
                    out.push(entry);
                }
                Ok(None) => break,
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => {
                    damage.get_or_insert(e);
                }
            }
        }
        match damage {
            Some(e) if out.is_empty() && max > 0 => Err(e),
            Some(_) => {
                // What comes next was seen to be damaged only in this call: the last cookie carries it on.
                if let Some(last) = out.last_mut() {
                    last.cookie |= DAMAGED;
                }
                Ok(out)
            }
            None if out.is_empty() && damaged_before && max > 0 => {
                Err(damaged(dir, "part of it cannot be read"))
            }
            None => Ok(out),
        }
    }

    /// One item of the listing.
    fn listed(&self, dir: &Inode, index: u64, item: &[u8]) -> Result<DirEntry> {
        let entry = entry::entries(item).next().unwrap_or(Err("an entry without content"));
        let entry = entry.map_err(|what| damaged(dir, what))?;
        if !entry.is_sane() || index >= DAMAGED - 1 {
            return Err(damaged(dir, "an entry that is no name"));
        }
        let ino = self.leads_to(dir, &entry)?;
        Ok(DirEntry { name: entry.name.to_vec(), ino, kind: entry.file_kind(), cookie: index + 1 })
    }

    /// The inode that an entry of `dir` leads to.
    fn leads_to(&self, dir: &Inode, entry: &Entry) -> Result<Ino> {
        match entry.location.kind {
            kind::INODE => self.number(dir.subvol.id, entry.location.id),
            kind::ROOT => self.subvol_at(dir, entry),
            _ => Err(damaged(dir, "an entry that leads neither to an inode nor to a subvolume")),
        }
    }

    /// The root directory of the subvolume at this name. A snapshot does not contain the subvolumes that the original
    /// contained: there the name is an empty directory.
    fn subvol_at(&self, dir: &Inode, entry: &Entry) -> Result<Ino> {
        let child = entry.location.id;
        let reference = self.roots().get(Key::new(dir.subvol.id, kind::ROOT_REF, child))?;
        let here = reference.is_some_and(|item| {
            let len = usize::from(le16(&item, 16));
            le64(&item, 0) == dir.ino && item.get(18..18 + len) == Some(entry.name)
        });
        if here && let Some(subvol) = self.find_subvol(child)? {
            return self.number(child, subvol.root_dir);
        }
        let ino = self.numbers.pack(Target::Empty { subvol: dir.subvol.id, missing: child })?;
        let mut empty = self.empty.lock();
        if empty.len() >= MAX_EMPTY {
            empty.clear();
        }
        empty.insert(ino, dir.ino);
        Ok(ino)
    }

    /// Attributes of a directory that stands for a subvolume which is not there: it belongs to the owner of the directory
    /// that it is in. Once that is forgotten, the owner of the subvolume stands in.
    pub(super) fn attr_of_empty(&self, ino: Ino) -> Result<Attr> {
        let Target::Empty { subvol, .. } = self.numbers.unpack(ino) else {
            return Err(Error::NotFound(format!("inode {ino}")));
        };
        let subvol = self.subvol(subvol)?;
        let dir = self.empty.lock().get(&ino).copied().unwrap_or(subvol.root_dir);
        let dir = self.inode(subvol, dir)?;
        let attr = dir.attr(ino, self.blocks.sector_bytes);
        Ok(Attr { kind: FileKind::Dir, mode: 0o755, size: 0, blocks_512: 0, nlink: 1, rdev: (0, 0), ..attr })
    }
}

fn damaged(dir: &Inode, what: &str) -> Error {
    Error::Corrupt(format!("btrfs directory {} of subvolume {}: {what}", dir.ino, dir.subvol.id))
}
