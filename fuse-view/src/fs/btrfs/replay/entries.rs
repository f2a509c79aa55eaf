//! Entries of directories in replay: those that went, those that came.

use super::{Replay, corrupt, set};
use crate::Result;
use crate::fs::btrfs::entry::{self, Entry, Reference};
use crate::fs::btrfs::inode::field;
use crate::fs::btrfs::key::{Key, extref_hash, kind, name_hash};
use crate::fs::btrfs::node::Bytes;
use crate::fs::btrfs::shadow::Shadow;
use crate::fs::bytes::le64;
use crate::fs::kind::entry_of_mode;

/// Keeps the entries of an item for which `wanted`, and removes the item when none is left.
pub(super) fn keep(
    shadow: &mut Shadow,
    key: Key,
    item: &Bytes,
    mut wanted: impl FnMut(&Entry) -> bool,
) -> Result<()> {
    let mut kept = Vec::new();
    let mut start = 0;
    for entry in entry::entries(item) {
        let entry = entry.map_err(corrupt)?;
        if wanted(&entry) {
            kept.extend(&item[start..entry.end]);
        }
        start = entry.end;
    }
    match kept.len() {
        0 => shadow.remove(key),
        len if len == item.len() => Ok(()),
        _ => shadow.put(key, &kept),
    }
}

impl Replay<'_> {
    /// Unlinks what lies in a range of indexes for which the log speaks, and is not in the log.
    pub(super) fn delete_entries(&mut self, dir: u64) -> Result<()> {
        if !self.exists(dir)? {
            return Ok(());
        }
        for item in self.log().walk(Key::new(dir, kind::DIR_LOG_INDEX, 0)) {
            let (key, item) = item?;
            if !key.is(dir, kind::DIR_LOG_INDEX) {
                break;
            }
            let last = le64(&item, 0);
            self.delete_range(dir, key.offset, last, false)?;
        }
        Ok(())
    }

    /// Unlinks all of a directory that has no name any more.
    pub(super) fn delete_all_entries(&mut self, dir: u64) -> Result<()> {
        self.delete_range(dir, 0, u64::MAX, true)
    }

    fn delete_range(&mut self, dir: u64, first: u64, last: u64, all: bool) -> Result<()> {
        let mut from = Key::new(dir, kind::DIR_INDEX, first);
        while let Some((key, item)) = self.subvol().next(from)? {
            if !key.is(dir, kind::DIR_INDEX) || key.offset > last {
                break;
            }
            let entry = first_entry(&item)?;
            if all || self.logged_entry(key, entry.name)?.is_none() {
                self.recount_later(entry.location.id)?;
                self.unlink(dir, entry.location.id, entry.name)?;
            }
            let Some(next) = key.after() else { break };
            from = next;
        }
        Ok(())
    }

    /// The entry of this key and name in the log.
    fn logged_entry(&self, key: Key, name: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.log().get(key)?.filter(|item| entry::find(item, name).is_some()))
    }

    /// An entry of the log, by its index.
    pub(super) fn entry(&mut self, key: Key, item: &Bytes) -> Result<()> {
        let logged = first_entry(item)?;
        let (dir, name, target) = (key.id, logged.name, logged.location);
        self.inode_item(dir)?;
        let target_exists = self.subvol().get(target)?.is_some();
        let by_name = self.make_room(dir, self.entry_by_name(dir, name)?, &logged, target_exists)?;
        let by_index =
            self.make_room(dir, self.entry_by_index(dir, key.offset, name)?, &logged, target_exists)?;
        if by_name && by_index {
            return Ok(());
        }
        // A name that the inode itself has in the log comes with its back references.
        if self.logged_reference(target.id, dir, name)? {
            return Ok(());
        }
        if !self.exists(target.id)? || self.has_reference(target.id, dir, name)? {
            return Ok(());
        }
        if self.entry_by_name(dir, name)?.is_some() {
            return Ok(());
        }
        self.add_reference(target.id, dir, key.offset, name)?;
        self.add_entry(dir, target.id, name, key.offset)?;
        if logged.kind != DIRECTORY {
            self.recount_later(target.id)?;
        }
        Ok(())
    }

    /// Unlinks `held` if it leads elsewhere than the entry of the log, and that exists; whether it is the same entry.
    fn make_room(
        &mut self,
        dir: u64,
        held: Option<(Key, u8)>,
        logged: &Entry,
        target_exists: bool,
    ) -> Result<bool> {
        let Some((location, entry_kind)) = held else { return Ok(false) };
        if location == logged.location && entry_kind == logged.kind {
            return Ok(true);
        }
        if target_exists {
            self.drop_entry(dir, location.id, logged.name)?;
        }
        Ok(false)
    }

    /// Unlinks a name that is in the way.
    pub(super) fn drop_entry(&mut self, dir: u64, ino: u64, name: &[u8]) -> Result<()> {
        self.recount_later(ino)?;
        self.unlink(dir, ino, name)
    }

    /// Where a name leads, and its type, found as a lookup does.
    pub(super) fn entry_by_name(&self, dir: u64, name: &[u8]) -> Result<Option<(Key, u8)>> {
        let item = self.subvol().get(Key::new(dir, kind::DIR_ITEM, name_hash(name)))?;
        Ok(item.and_then(|item| entry::find(&item, name).map(|e| (e.location, e.kind))))
    }

    /// Where the entry of this index and name leads, and its type.
    pub(super) fn entry_by_index(&self, dir: u64, index: u64, name: &[u8]) -> Result<Option<(Key, u8)>> {
        let item = self.subvol().get(Key::new(dir, kind::DIR_INDEX, index))?;
        Ok(item.and_then(|item| entry::find(&item, name).map(|e| (e.location, e.kind))))
    }

    /// Removes a name: both entries and the back reference.
    pub(super) fn unlink(&mut self, dir: u64, ino: u64, name: &[u8]) -> Result<()> {
        let key = Key::new(dir, kind::DIR_ITEM, name_hash(name));
        let item = self.subvol().get(key)?.filter(|item| entry::find(item, name).is_some());
        let item = item.ok_or_else(|| corrupt("a name to be removed is not in its directory"))?;
        keep(&mut self.shadow, key, &item, |entry| entry.name != name)?;
        let index = self.remove_reference(ino, dir, name)?;
        let index = index.ok_or_else(|| corrupt("a name to be removed is not among those of its inode"))?;
        self.shadow.remove(Key::new(dir, kind::DIR_INDEX, index))?;
        self.resize_dir(dir, name, false)
    }

    /// Adds a name: both entries.
    pub(super) fn add_entry(&mut self, dir: u64, ino: u64, name: &[u8], index: u64) -> Result<()> {
        let location = Key::new(ino, kind::INODE, 0);
        let entry_kind = entry_kind(self.mode(ino)?);
        let new = Entry { location, kind: entry_kind, name, data: &[], end: 0 }.to_bytes(self.generation);
        let by_name = Key::new(dir, kind::DIR_ITEM, name_hash(name));
        let by_index = Key::new(dir, kind::DIR_INDEX, index);
        let held = self.subvol().get(by_name)?;
        if held.as_ref().is_some_and(|item| entry::find(item, name).is_some()) {
            return Err(corrupt("a name to be added is there already"));
        }
        if self.subvol().get(by_index)?.is_some() {
            return Err(corrupt("the index of a name to be added is taken"));
        }
        let mut item = held.map(|item| item.to_vec()).unwrap_or_default();
        item.extend(&new);
        self.shadow.put(by_name, &item)?;
        self.shadow.put(by_index, &new)?;
        self.resize_dir(dir, name, true)
    }

    /// The size of a directory is twice the length of its names.
    fn resize_dir(&mut self, dir: u64, name: &[u8], added: bool) -> Result<()> {
        let mut item = self.inode_item(dir)?.to_vec();
        let (size, change) = (le64(&item, field::SIZE), 2 * name.len() as u64);
        let size = if added { size.saturating_add(change) } else { size.saturating_sub(change) };
        set(&mut item, field::SIZE, &size.to_le_bytes());
        self.shadow.put(Key::new(dir, kind::INODE, 0), &item)
    }

    /// Whether the log has this name among those of the inode.
    pub(super) fn logged_reference(&self, ino: u64, dir: u64, name: &[u8]) -> Result<bool> {
        let log = self.log();
        for key in reference_keys(ino, dir, name) {
            if let Some(item) = log.get(key)?
                && names(key, &item)?.iter().any(|r| r.dir == dir && r.name == name)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The keys under which an inode may keep the name `name` in `dir`.
pub(super) fn reference_keys(ino: u64, dir: u64, name: &[u8]) -> [Key; 2] {
    [Key::new(ino, kind::INODE_REF, dir), Key::new(ino, kind::INODE_EXTREF, extref_hash(dir, name))]
}

/// The references in an item.
pub(super) fn names(key: Key, item: &Bytes) -> Result<Vec<Reference<'_>>> {
    entry::references(key, item).map_err(corrupt)
}

/// The entry of a DIR_INDEX item, which has only one.
fn first_entry(item: &Bytes) -> Result<Entry<'_>> {
    entry::entries(item).next().unwrap_or(Err("an entry without content")).map_err(corrupt)
}

const DIRECTORY: u8 = 2;

/// The type in an entry for an inode of this mode.
fn entry_kind(mode: u32) -> u8 {
    u16::try_from(mode & libc::S_IFMT).map_or(0, entry_of_mode)
}
