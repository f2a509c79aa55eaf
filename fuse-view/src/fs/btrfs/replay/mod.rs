//! Replay of the log trees: what was fsynced after the last commit.
//!
//! Each subvolume has a log tree of its own, and each is replayed into a [`Shadow`] over the committed tree with the
//! kernel's own steps, item by item, so that the result is what a mount would show. The log is read three times: inodes
//! first, then directory entries, then all the rest; at the end links are counted anew. A step that the kernel refuses
//! makes it refuse the mount: then nothing of the log is taken, and that is told.
//!
//! What is not imitated, as nothing shows it: references to extents, generations, items of orphans, and the change time
//! of an inode that lost a name in replay, which the kernel takes from its clock.

mod entries;
mod extents;
mod names;

use super::blocks::{Blocks, TreeRoot};
use super::inode::{INODE_BYTES, field};
use super::items::View;
use super::key::{Key, id, kind};
use super::node::Bytes;
use super::shadow::Shadow;
use super::subvol::{RootItem, find_root, is_subvol};
use super::superblock::{Superblock, incompat};
use crate::fs::bytes::{le32, le64};
use crate::overlay::Scratch;
use crate::{Error, Result};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The changes of all logs.
#[derive(Default)]
pub(super) struct Replayed {
    /// By subvolume.
    pub shadows: HashMap<u64, Arc<Shadow>>,
    /// Checksums of data, an item for each sector.
    pub sums: Option<Shadow>,
}

/// The order in which the items of a log are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Inodes,
    Entries,
    Rest,
}

/// Replays all logs.
pub(super) fn replay(
    sb: &Superblock,
    blocks: &Blocks,
    roots: TreeRoot,
    scratch: &Scratch,
) -> Result<Replayed> {
    // Log trees belong to the transaction after the last commit.
    let generation = sb.generation.wrapping_add(1);
    let tree = TreeRoot { address: sb.log_root, level: sb.log_root_level, generation };
    let mut sums = Shadow::new(scratch);
    let mut shadows = HashMap::new();
    for item in View::plain(blocks, tree).walk(Key::new(id::TREE_LOG, kind::ROOT, 0)) {
        let (key, item) = item?;
        if !key.is(id::TREE_LOG, kind::ROOT) {
            break;
        }
        let subvol = key.offset;
        let log = RootItem::parse(&item).ok_or_else(|| corrupt("a root item that is too short"))?.tree;
        let Some(root) = find_root(&View::plain(blocks, roots), subvol)?.filter(|root| root.refs > 0) else {
            continue;
        };
        if !is_subvol(subvol) {
            return Err(corrupt("a log of what is not a subvolume"));
        }
        let mut one = Replay {
            blocks,
            log,
            tree: root.tree,
            shadow: Shadow::new(scratch),
            sums: &mut sums,
            recount: BTreeSet::new(),
            generation,
            no_holes: sb.has(incompat::NO_HOLES),
        };
        for stage in [Stage::Inodes, Stage::Entries, Stage::Rest] {
            one.run(stage)?;
        }
        one.recount_links()?;
        shadows.insert(subvol, Arc::new(one.shadow));
    }
    Ok(Replayed { shadows, sums: Some(sums) })
}

fn corrupt(what: &str) -> Error {
    Error::Corrupt(format!("btrfs log: {what}"))
}

/// The replay of one log tree.
struct Replay<'a> {
    blocks: &'a Blocks,
    log: TreeRoot,
    tree: TreeRoot,
    shadow: Shadow,
    sums: &'a mut Shadow,
    /// Inodes whose links are counted at the end.
    recount: BTreeSet<u64>,
    generation: u64,
    no_holes: bool,
}

impl<'a> Replay<'a> {
    /// The log as it is on disk.
    fn log(&self) -> View<'a> {
        View::plain(self.blocks, self.log)
    }

    /// The subvolume with the changes made so far.
    fn subvol(&self) -> View<'_> {
        View { blocks: self.blocks, tree: self.tree, shadow: Some(&self.shadow) }
    }

    fn run(&mut self, stage: Stage) -> Result<()> {
        let mut dead = false;
        for item in self.log().walk(Key::new(0, 0, 0)) {
            let (key, item) = item?;
            if key.kind == kind::INODE {
                if item.len() < INODE_BYTES {
                    return Err(corrupt("an inode item that is too short"));
                }
                // Without a name left it dies, if at all, with the entries that the log no longer has.
                dead = le32(&item, field::NLINK) == 0;
            }
            if dead {
                continue;
            }
            match (stage, key.kind) {
                (Stage::Inodes, kind::INODE) => self.inode(key, &item)?,
                (Stage::Entries, kind::DIR_INDEX) => self.entry(key, &item)?,
                (Stage::Rest, kind::XATTR) => self.shadow.put(key, &item)?,
                (Stage::Rest, kind::INODE_REF | kind::INODE_EXTREF) => self.references(key, &item)?,
                (Stage::Rest, kind::EXTENT_DATA) => self.extent(key, &item)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// An inode: what it lost goes first, then its item is taken.
    fn inode(&mut self, key: Key, item: &Bytes) -> Result<()> {
        let mode = le32(item, field::MODE) & libc::S_IFMT;
        self.delete_xattrs(key.id)?;
        if mode == libc::S_IFDIR {
            self.delete_entries(key.id)?;
        }
        self.take_inode(key, item, mode)?;
        if mode == libc::S_IFREG {
            let size = self.inode_field(key.id, field::SIZE)?;
            let from = size.checked_next_multiple_of(self.blocks.sector_bytes);
            if let Some(from) = from {
                let dropped = self.drop_extents(key.id, from, u64::MAX)?;
                self.add_bytes(key.id, 0, dropped)?;
            }
        }
        self.recount_later(key.id)
    }

    /// Copies an inode item, but for what the items of the subvolume itself say.
    fn take_inode(&mut self, key: Key, item: &Bytes, mode: u32) -> Result<()> {
        let logged_size = le64(item, field::SIZE);
        let exists_only = le64(item, field::GENERATION) == 0;
        let old = self.subvol().get(key)?.filter(|old| old.len() >= INODE_BYTES);
        let mut new = item.to_vec();
        if let Some(old) = &old {
            let old_mode = le32(old, field::MODE) & libc::S_IFMT;
            if exists_only {
                // The log only says that it is there; size 0 means that it was never fsynced itself.
                if mode == libc::S_IFREG && old_mode == libc::S_IFREG && logged_size != 0 {
                    let mut kept = old.to_vec();
                    set(&mut kept, field::SIZE, &logged_size.to_le_bytes());
                    self.shadow.put(key, &kept)?;
                }
                return Ok(());
            }
            set(&mut new, field::NBYTES, &le64(old, field::NBYTES).to_le_bytes());
            if mode == libc::S_IFDIR {
                // Entries change it as they come and go.
                let size = if old_mode == libc::S_IFDIR { le64(old, field::SIZE) } else { 0 };
                set(&mut new, field::SIZE, &size.to_le_bytes());
            }
        } else {
            set(&mut new, field::NBYTES, &0u64.to_le_bytes());
            if mode == libc::S_IFDIR {
                set(&mut new, field::SIZE, &0u64.to_le_bytes());
            }
        }
        if exists_only {
            set(&mut new, field::GENERATION, &self.generation.to_le_bytes());
        }
        self.shadow.put(key, &new)
    }

    /// Removes the attributes that the log, which always has all of an inode, does not have.
    fn delete_xattrs(&mut self, ino: u64) -> Result<()> {
        let held: Vec<(Key, Bytes)> = self
            .subvol()
            .walk(Key::new(ino, kind::XATTR, 0))
            .take_while(|item| item.as_ref().map_or(true, |(key, _)| key.is(ino, kind::XATTR)))
            .collect::<Result<_>>()?;
        for (key, item) in held {
            let logged = self.log().get(key)?;
            let is_logged =
                |name: &[u8]| logged.as_ref().is_some_and(|item| super::entry::find(item, name).is_some());
            entries::keep(&mut self.shadow, key, &item, |entry| is_logged(entry.name))?;
        }
        Ok(())
    }

    /// Counts the links of all inodes whose names may have changed; directories without a name lose their content.
    fn recount_links(&mut self) -> Result<()> {
        while let Some(ino) = self.recount.pop_last() {
            let names = self.count_names(ino)?;
            self.set_inode_field(ino, field::NLINK, &names.to_le_bytes())?;
            if names == 0 && self.mode(ino)? == libc::S_IFDIR {
                self.delete_all_entries(ino)?;
            }
        }
        Ok(())
    }

    fn inode_item(&self, ino: u64) -> Result<Bytes> {
        let item = self.subvol().get(Key::new(ino, kind::INODE, 0))?;
        item.filter(|item| item.len() >= INODE_BYTES)
            .ok_or_else(|| Error::Corrupt(format!("btrfs log: inode {ino} is not in the subvolume")))
    }

    fn exists(&self, ino: u64) -> Result<bool> {
        Ok(self.subvol().get(Key::new(ino, kind::INODE, 0))?.is_some())
    }

    fn inode_field(&self, ino: u64, at: usize) -> Result<u64> {
        Ok(le64(&self.inode_item(ino)?, at))
    }

    /// The type bits of the mode.
    fn mode(&self, ino: u64) -> Result<u32> {
        Ok(le32(&self.inode_item(ino)?, field::MODE) & libc::S_IFMT)
    }

    fn set_inode_field(&mut self, ino: u64, at: usize, value: &[u8]) -> Result<()> {
        let mut item = self.inode_item(ino)?.to_vec();
        set(&mut item, at, value);
        self.shadow.put(Key::new(ino, kind::INODE, 0), &item)
    }

    /// Changes the bytes that an inode is said to hold.
    fn add_bytes(&mut self, ino: u64, added: u64, dropped: u64) -> Result<()> {
        if added == dropped {
            return Ok(());
        }
        let bytes = self.inode_field(ino, field::NBYTES)?.saturating_add(added).saturating_sub(dropped);
        self.set_inode_field(ino, field::NBYTES, &bytes.to_le_bytes())
    }

    fn recount_later(&mut self, ino: u64) -> Result<()> {
        // The kernel reads the inode here, and gives up if it is not there.
        self.inode_item(ino)?;
        self.recount.insert(ino);
        Ok(())
    }
}

/// Replaces a field of an item.
fn set(item: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = item.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}
