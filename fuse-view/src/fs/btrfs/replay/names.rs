//! Back references in replay: the names of an inode, as the inode itself has them.

use super::entries::{names, reference_keys};
use super::{Replay, corrupt};
use crate::Result;
use crate::fs::btrfs::entry::{Reference, references_to_bytes};
use crate::fs::btrfs::key::{Key, kind};
use crate::fs::btrfs::node::Bytes;

impl Replay<'_> {
    /// A back reference item of the log: the names of an inode in a directory become those of the log.
    pub(super) fn references(&mut self, key: Key, item: &Bytes) -> Result<()> {
        let ino = key.id;
        let logged = names(key, item)?;
        // Not every directory above need be in the log. Those that are not are left to the count of links.
        let Some(first) = logged.first() else { return self.shadow.put(key, item) };
        if !self.exists(first.dir)? {
            return Ok(());
        }
        self.inode_item(ino)?;
        for reference in &logged {
            if !self.exists(reference.dir)? {
                continue;
            }
            if self.has_entry(ino, reference)? {
                continue;
            }
            // The parent of the root directory is itself: that reference never changes.
            if ino == reference.dir {
                return Ok(());
            }
            self.clear_way(ino, reference)?;
            self.add_entry(reference.dir, ino, reference.name, reference.index)?;
        }
        self.unlink_unlogged(key, &logged)?;
        self.shadow.put(key, item)
    }

    /// Whether the directory has this name at this index, leading to the inode both ways.
    fn has_entry(&self, ino: u64, reference: &Reference) -> Result<bool> {
        let leads_here = |found: Option<(Key, u8)>| found.is_some_and(|(location, _)| location.id == ino);
        Ok(leads_here(self.entry_by_index(reference.dir, reference.index, reference.name)?)
            && leads_here(self.entry_by_name(reference.dir, reference.name)?))
    }

    /// Unlinks what stands in the way of a name: names of the inode in that directory which the log does not have, and
    /// others that hold its name.
    fn clear_way(&mut self, ino: u64, wanted: &Reference) -> Result<()> {
        for key in reference_keys(ino, wanted.dir, wanted.name) {
            let Some(item) = self.subvol().get(key)? else { continue };
            for held in names(key, &item)?.iter().filter(|held| held.dir == wanted.dir) {
                if !self.logged_under(key.kind, ino, held)? {
                    self.unlink(held.dir, ino, held.name)?;
                }
            }
        }
        if let Some((location, _)) = self.entry_by_index(wanted.dir, wanted.index, wanted.name)? {
            self.drop_entry(wanted.dir, location.id, wanted.name)?;
        }
        if let Some((location, _)) = self.entry_by_name(wanted.dir, wanted.name)? {
            self.drop_entry(wanted.dir, location.id, wanted.name)?;
        }
        Ok(())
    }

    /// Whether the log has this name in an item of the same kind.
    fn logged_under(&self, item_kind: u8, ino: u64, held: &Reference) -> Result<bool> {
        let keys = reference_keys(ino, held.dir, held.name);
        let Some(key) = keys.into_iter().find(|key| key.kind == item_kind) else { return Ok(false) };
        let Some(item) = self.log().get(key)? else { return Ok(false) };
        Ok(names(key, &item)?.iter().any(|r| r.dir == held.dir && r.name == held.name))
    }

    /// Unlinks the names that the item of the subvolume has and that of the log has not.
    fn unlink_unlogged(&mut self, key: Key, logged: &[Reference]) -> Result<()> {
        let Some(item) = self.subvol().get(key)? else { return Ok(()) };
        for held in names(key, &item)? {
            if !logged.iter().any(|r| r.dir == held.dir && r.name == held.name) {
                self.unlink(held.dir, key.id, held.name)?;
            }
        }
        Ok(())
    }

    pub(super) fn has_reference(&self, ino: u64, dir: u64, name: &[u8]) -> Result<bool> {
        let view = self.subvol();
        let key = Key::new(ino, kind::INODE_REF, dir);
        let Some(item) = view.get(key)? else { return Ok(false) };
        Ok(names(key, &item)?.iter().any(|r| r.name == name))
    }

    /// Adds a name to those of an inode.
    pub(super) fn add_reference(&mut self, ino: u64, dir: u64, index: u64, name: &[u8]) -> Result<()> {
        let key = Key::new(ino, kind::INODE_REF, dir);
        let mut item = self.subvol().get(key)?.map(|item| item.to_vec()).unwrap_or_default();
        item.extend(references_to_bytes(key, std::iter::once(Reference { dir, index, name })));
        self.shadow.put(key, &item)
    }

    /// Removes a name from those of an inode; its index in the directory, None: it was not there.
    pub(super) fn remove_reference(&mut self, ino: u64, dir: u64, name: &[u8]) -> Result<Option<u64>> {
        for key in reference_keys(ino, dir, name) {
            let Some(item) = self.subvol().get(key)? else { continue };
            let held = names(key, &item)?;
            let Some(found) = held.iter().find(|r| r.dir == dir && r.name == name) else { continue };
            let others = held.iter().filter(|r| r.dir != dir || r.name != name).cloned();
            let rest = references_to_bytes(key, others);
            if rest.is_empty() {
                self.shadow.remove(key)?;
            } else {
                self.shadow.put(key, &rest)?;
            }
            return Ok(Some(found.index));
        }
        Ok(None)
    }

    /// How many names an inode has.
    pub(super) fn count_names(&self, ino: u64) -> Result<u32> {
        let mut count = 0u32;
        for item in self.subvol().walk(Key::new(ino, kind::INODE_REF, 0)) {
            let (key, item) = item?;
            if key.id != ino || key.kind > kind::INODE_EXTREF {
                break;
            }
            let here = u32::try_from(names(key, &item)?.len()).map_err(|_| corrupt("too many names"))?;
            count = count.saturating_add(here);
        }
        Ok(count)
    }
}
