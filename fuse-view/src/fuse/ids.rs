//! Inode numbers that the kernel and users see.
//!
//! A number is made of the file system's and the inode's own: the same file has the same number for as long as
//! the mount lives, hard links stay visible, and nothing needs to be remembered. Only inodes too large for that
//! (of file systems that use all 64 bits) are interned, and dropped when the kernel forgets them.

use crate::tree::Node;
use fuser::INodeNo;
use parking_lot::Mutex;
use std::collections::HashMap;

/// Bits of a number that hold the inode.
const INO_BITS: u32 = 36;
/// Bits of a number that hold the file system: above those of the inode, below the two highest.
const FS_BITS: u32 = 26;
/// Marks interned numbers.
const INTERNED: u64 = 1 << 62;

/// The numbers of a mounted tree, whose root has number 1.
pub struct Ids {
    root: Node,
    interned: Mutex<Interned>,
}

#[derive(Default)]
struct Interned {
    by_node: HashMap<Node, u64>,
    /// With the lookups that the kernel has not forgotten.
    by_id: HashMap<u64, (Node, u64)>,
    next: u64,
}

impl Ids {
    /// Numbers for a tree with this root.
    pub fn new(root: Node) -> Self {
        Self { root, interned: Mutex::new(Interned::default()) }
    }

    /// The number of `node`, which the kernel is going to remember once more.
    pub fn remember(&self, node: Node) -> INodeNo {
        self.packed(node).unwrap_or_else(|| {
            let mut interned = self.interned.lock();
            let Interned { by_node, by_id, next } = &mut *interned;
            let id = *by_node.entry(node).or_insert_with(|| {
                *next += 1;
                INTERNED | *next
            });
            by_id.entry(id).or_insert((node, 0)).1 += 1;
            INodeNo(id)
        })
    }

    /// The number of `node` for display only.
    pub fn show(&self, node: Node) -> INodeNo {
        self.packed(node).unwrap_or_else(|| {
            // What the kernel does not remember has no number yet; this one stands for unknown.
            INodeNo(self.interned.lock().by_node.get(&node).copied().unwrap_or(u64::from(u32::MAX)))
        })
    }

    /// What number `id` stands for.
    pub fn node(&self, INodeNo(id): INodeNo) -> Option<Node> {
        if id == 1 {
            return Some(self.root);
        }
        if id & INTERNED != 0 {
            return self.interned.lock().by_id.get(&id).map(|(node, _)| *node);
        }
        Some(Node { fs: u32::try_from(id >> INO_BITS).ok()?, ino: id & ((1 << INO_BITS) - 1) })
    }

    /// The kernel forgets `lookups` lookups of `id`.
    pub fn forget(&self, INodeNo(id): INodeNo, lookups: u64) {
        if id & INTERNED == 0 {
            return;
        }
        let mut interned = self.interned.lock();
        let Some((node, left)) = interned.by_id.get_mut(&id) else { return };
        *left = left.saturating_sub(lookups);
        if *left == 0 {
            let node = *node;
            interned.by_id.remove(&id);
            interned.by_node.remove(&node);
        }
    }

    fn packed(&self, node: Node) -> Option<INodeNo> {
        if node == self.root {
            return Some(INodeNo(1));
        }
        // File system 0 has no files but its root, so that no packed number is 0 or 1.
        let fits = node.fs > 0 && node.fs >> FS_BITS == 0 && node.ino >> INO_BITS == 0;
        fits.then(|| INodeNo(u64::from(node.fs) << INO_BITS | node.ino))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Node = Node { fs: 1, ino: 0 };

    #[test]
    fn numbers_lead_back_to_their_nodes() {
        let ids = Ids::new(ROOT);
        assert_eq!(ids.remember(ROOT), INodeNo(1));
        let mut seen = std::collections::HashSet::new();
        for fs in [1, 2, (1 << FS_BITS) - 1, 1 << FS_BITS, u32::MAX] {
            for ino in [0, 1, 2, (1 << INO_BITS) - 1, 1 << INO_BITS, u64::MAX] {
                let node = Node { fs, ino };
                let id = ids.remember(node);
                assert_eq!(ids.node(id), Some(node));
                assert_eq!(ids.remember(node), id);
                assert_eq!(ids.show(node), id);
                assert!(seen.insert(id));
            }
        }
    }

    #[test]
    fn interned_numbers_are_dropped_when_forgotten() {
        let ids = Ids::new(ROOT);
        let node = Node { fs: 3, ino: u64::MAX };
        let id = ids.remember(node);
        ids.remember(node);
        ids.forget(id, 1);
        assert_eq!(ids.node(id), Some(node));
        ids.forget(id, 1);
        ids.forget(id, 7);
        assert_eq!(ids.node(id), None);
        let interned = ids.interned.lock();
        assert!(interned.by_id.is_empty() && interned.by_node.is_empty());
    }
}
