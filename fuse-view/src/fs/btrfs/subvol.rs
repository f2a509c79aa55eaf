//! Subvolumes: where the tree of each begins, which one is shown as the root, and inode numbers across all of them.
//!
//! Every subvolume counts inodes on its own, so an [`Ino`] is made of both numbers. The subvolume that is shown as the
//! root is number 0 there: its inodes have the numbers that the kernel shows. How many bits belong to the subvolume
//! follows from the largest one, so the same image always gives the same numbers.

use super::blocks::{Blocks, TreeRoot};
use super::items::View;
use super::key::{Key, id, kind, name_hash};
use super::shadow::Shadow;
use crate::fs::bytes::{le32, le64, u8_at};
use crate::{Error, Ino, Result};
use std::sync::Arc;

/// Bytes of the oldest form of a root item.
const OLDEST_ROOT_ITEM: usize = 239;
/// Most bits of the number of a subvolume; the kernel's own limit is 48.
const MAX_SUBVOL_BITS: u32 = 40;
/// Set in the number of a directory that stands for a subvolume which is not there.
const EMPTY: u64 = 1 << 63;

/// One subvolume or snapshot.
pub(super) struct Subvol {
    pub id: u64,
    pub tree: TreeRoot,
    /// Its root directory.
    pub root_dir: u64,
    pub shadow: Option<Arc<Shadow>>,
}

impl Subvol {
    pub fn view<'a>(&'a self, blocks: &'a Blocks) -> View<'a> {
        View { blocks, tree: self.tree, shadow: self.shadow.as_deref() }
    }
}

/// What a root item says.
pub(super) struct RootItem {
    pub tree: TreeRoot,
    pub root_dir: u64,
    /// 0: deleted, and not cleaned up yet.
    pub refs: u32,
}

impl RootItem {
    pub fn parse(item: &[u8]) -> Option<Self> {
        (item.len() >= OLDEST_ROOT_ITEM).then(|| Self {
            tree: TreeRoot { address: le64(item, 176), level: u8_at(item, 238), generation: le64(item, 160) },
            root_dir: le64(item, 168),
            refs: le32(item, 216),
        })
    }
}

/// The root of tree `tree`, as the tree of roots `roots` has it; None: there is no such tree.
pub(super) fn find_root(roots: &View, tree: u64) -> Result<Option<RootItem>> {
    // The offset is the generation at which a snapshot was taken; the last one counts.
    match roots.prev(Key::new(tree, kind::ROOT, u64::MAX))? {
        Some((key, item)) if key.is(tree, kind::ROOT) => RootItem::parse(&item)
            .map(Some)
            .ok_or_else(|| Error::Corrupt(format!("btrfs tree {tree}: its root item is too short"))),
        _ => Ok(None),
    }
}

/// The subvolume that a mount without options shows.
pub(super) fn default_subvol(roots: &View) -> Result<u64> {
    let key = Key::new(id::ROOT_TREE_DIR, kind::DIR_ITEM, name_hash(b"default"));
    let Some(item) = roots.get(key)? else { return Ok(id::FS_TREE) };
    let found = super::entry::find(&item, b"default").map(|entry| entry.location.id);
    Ok(found.filter(|&subvol| is_subvol(subvol)).unwrap_or(id::FS_TREE))
}

/// Whether a tree of this number is a subvolume.
pub(super) fn is_subvol(tree: u64) -> bool {
    tree == id::FS_TREE || (id::FIRST_FREE..=id::LAST_FREE).contains(&tree)
}

/// What an [`Ino`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// An inode of a subvolume.
    Inode { subvol: u64, ino: u64 },
    /// The empty directory in `subvol` where a snapshot does not contain subvolume `missing`.
    Empty { subvol: u64, missing: u64 },
}

/// Inode numbers made of two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    /// The subvolume shown as the root.
    pub root: u64,
    subvol_bits: u32,
}

impl Numbers {
    /// Numbers for the subvolumes of `roots`.
    pub fn new(roots: &View, root: u64) -> Result<Self> {
        let last = roots.prev(Key::new(id::LAST_FREE, u8::MAX, u64::MAX))?;
        let largest = last.map_or(id::FS_TREE, |(key, _)| key.id).max(root);
        Ok(Self::with_largest(root, largest))
    }

    fn with_largest(root: u64, largest: u64) -> Self {
        Self { root, subvol_bits: (u64::BITS - largest.leading_zeros()).clamp(3, MAX_SUBVOL_BITS) }
    }

    /// Bits below the subvolume's.
    fn low_bits(self) -> u32 {
        63 - self.subvol_bits
    }

    /// The number for `target`.
    pub fn pack(self, target: Target) -> Result<Ino> {
        let (flag, subvol, low) = match target {
            Target::Inode { subvol, ino } => (0, subvol, ino),
            Target::Empty { subvol, missing } => (EMPTY, subvol, missing),
        };
        let code = if subvol == self.root { 0 } else { subvol };
        if code >> self.subvol_bits != 0 || low >> self.low_bits() != 0 {
            return Err(Error::Unsupported(format!(
                "btrfs: subvolume {subvol} and inode {low} do not fit one number"
            )));
        }
        Ok(flag | code << self.low_bits() | low)
    }

    /// What a number stands for.
    pub fn unpack(self, ino: Ino) -> Target {
        let code = (ino & !EMPTY) >> self.low_bits();
        let subvol = if code == 0 { self.root } else { code };
        let low = ino & ((1 << self.low_bits()) - 1);
        if ino & EMPTY == 0 {
            Target::Inode { subvol, ino: low }
        } else {
            Target::Empty { subvol, missing: low }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways() {
        for (root, largest) in [(5, 5), (5, 256), (257, 70_000), (5, 1 << 39)] {
            let numbers = Numbers::with_largest(root, largest);
            for subvol in [5, 256, 257, largest] {
                for target in [
                    Target::Inode { subvol, ino: 256 },
                    Target::Inode { subvol, ino: 1 << 22 },
                    Target::Empty { subvol, missing: 300 },
                ] {
                    if subvol <= largest {
                        assert_eq!(numbers.unpack(numbers.pack(target).unwrap()), target);
                    }
                }
            }
            assert_eq!(numbers.pack(Target::Inode { subvol: root, ino: 256 }).unwrap(), 256);
            assert!(numbers.pack(Target::Inode { subvol: u64::MAX, ino: 256 }).is_err());
            assert!(numbers.pack(Target::Inode { subvol: 5, ino: u64::MAX }).is_err());
        }
    }
}
