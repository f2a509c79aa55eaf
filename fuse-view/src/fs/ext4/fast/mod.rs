//! Fast commits as a layer over the file system: inodes, mappings and names that they changed. What recovery does to
//! orphans afterwards is in the same layer.
//!
//! The kernel replays them into its own structures and allocates blocks for that. Nothing can be allocated here, so the
//! reader asks this layer first. It is empty unless the journal held fast commits.

mod ranges;
mod replay;

pub(super) use ranges::Mapped;
pub(super) use replay::{replay, with_blocks};

use crate::Piece;
use ranges::Ranges;
use std::collections::{BTreeMap, HashMap};

/// What fast commits changed.
#[derive(Default)]
pub(super) struct FastLayer {
    inodes: HashMap<u32, InodeEdit>,
    dirs: HashMap<u32, DirEdit>,
}

/// A changed inode.
pub(super) struct InodeEdit {
    /// As it would be in its slot.
    pub raw: Piece,
    /// Its mapping, where that differs from what `raw` says.
    pub map: Ranges,
    /// It was sent as a whole: its blocks are counted anew.
    recount: bool,
}

/// Names of a directory that changed.
#[derive(Default)]
pub(super) struct DirEdit {
    /// Some: nothing of the directory was on the disk before, and this is its parent.
    pub new_below: Option<u32>,
    /// Inode and type of an entry; None: removed.
    names: BTreeMap<Vec<u8>, Option<(u32, u8)>>,
}

/// A name that was added: its name, its inode, its type as directories have it.
pub(super) type Added<'a> = (&'a [u8], u32, u8);

impl FastLayer {
    pub fn inode(&self, ino: u32) -> Option<&InodeEdit> {
        self.inodes.get(&ino)
    }

    /// The file `ino` has nothing from block `end` on, and `raw` is its inode after that.
    pub fn cut(&mut self, ino: u32, raw: Piece, end: u64) {
        let new = || InodeEdit { raw: raw.clone(), map: Ranges::default(), recount: false };
        let edit = self.inodes.entry(ino).or_insert_with(new);
        edit.raw = raw;
        edit.map.set(end..u64::MAX, Mapped::Hole);
    }

    pub fn dir(&self, ino: u32) -> Option<&DirEdit> {
        self.dirs.get(&ino)
    }
}

impl DirEdit {
    /// What became of `name`: None: nothing; Some(None): removed.
    pub fn get(&self, name: &[u8]) -> Option<Option<u32>> {
        self.names.get(name).map(|entry| entry.map(|(ino, _)| ino))
    }

    /// The names that were added, in a fixed order.
    pub fn added(&self) -> impl Iterator<Item = Added<'_>> {
        self.names.iter().filter_map(|(name, entry)| entry.map(|(ino, kind)| (&name[..], ino, kind)))
    }
}
