//! The items of a tree in the order of their keys, with those that replay changed laid over them.

use super::blocks::{Blocks, TreeRoot};
use super::key::Key;
use super::node::{Bytes, Node};
use super::shadow::Shadow;
use crate::{Error, Result};
use std::sync::Arc;

/// A tree as it is read: the blocks, where it begins, and what replay changed.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub blocks: &'a Blocks,
    pub tree: TreeRoot,
    pub shadow: Option<&'a Shadow>,
}

impl<'a> View<'a> {
    /// A tree as it is on disk.
    pub fn plain(blocks: &'a Blocks, tree: TreeRoot) -> Self {
        Self { blocks, tree, shadow: None }
    }

    /// The item of exactly this key.
    pub fn get(&self, key: Key) -> Result<Option<Bytes>> {
        if let Some(change) = self.shadow.and_then(|shadow| shadow.get(key)) {
            return change.map(|place| self.changed(place)).transpose();
        }
        let leaf = self.leaf(key, &mut None)?;
        let at = leaf.below(key);
        Ok((at < leaf.count() && leaf.key(at) == key).then(|| Bytes::of(&leaf, at)))
    }

    /// The first item at or after `from`.
    pub fn next(&self, from: Key) -> Result<Option<(Key, Bytes)>> {
        self.walk(from).next().transpose()
    }

    /// The last item at or before `key`.
    pub fn prev(&self, key: Key) -> Result<Option<(Key, Bytes)>> {
        let mut upto = key;
        loop {
            let on_disk = self.prev_on_disk(upto)?;
            let Some((changed, change)) = self.shadow.and_then(|shadow| shadow.at_or_before(upto)) else {
                return Ok(on_disk);
            };
            match (on_disk, change) {
                (Some((key, bytes)), _) if key > changed => return Ok(Some((key, bytes))),
                (_, Some(place)) => return Ok(Some((changed, self.changed(place)?))),
                (_, None) => match changed.before() {
                    Some(before) => upto = before,
                    None => return Ok(None),
                },
            }
        }
    }

    /// All items from `from` on.
    pub fn walk(&self, from: Key) -> Walk<'a> {
        Walk { view: *self, from: Some(from), leaf: None, at: 0, next_leaf: None }
    }

    fn changed(&self, place: (u64, u32)) -> Result<Bytes> {
        self.shadow.map_or_else(|| Ok(Bytes::Own(Vec::new().into())), |shadow| shadow.bytes(place))
    }

    fn prev_on_disk(&self, key: Key) -> Result<Option<(Key, Bytes)>> {
        let leaf = self.leaf(key, &mut None)?;
        Ok(leaf.at_or_before(key).map(|at| (leaf.key(at), Bytes::of(&leaf, at))))
    }

    /// The address of the leaf on disk in which `key` is or would be.
    pub fn leaf_address(&self, key: Key) -> Result<u64> {
        let mut node = self.blocks.root(&self.tree)?;
        let mut address = self.tree.address;
        while node.level() > 0 {
            let at = node.at_or_before(key).unwrap_or(0);
            let generation;
            (address, generation) = node.child(at);
            if node.level() == 1 {
                break;
            }
            node = self.blocks.node(address, node.level() - 1, generation, Some(node.key(at)))?;
        }
        Ok(address)
    }

    /// The leaf in which `key` is or would be. `next` becomes the first key of the leaf after it, also on an error.
    fn leaf(&self, key: Key, next: &mut Option<Key>) -> Result<Arc<Node>> {
        let mut node = self.blocks.root(&self.tree)?;
        while node.level() > 0 {
            let at = node.at_or_before(key).unwrap_or(0);
            if at + 1 < node.count() {
                *next = Some(node.key(at + 1));
            }
            let (address, generation) = node.child(at);
            node = self.blocks.node(address, node.level() - 1, generation, Some(node.key(at)))?;
        }
        Ok(node)
    }
}

/// Items in order. After an error the walk goes on behind the leaf that could not be read.
pub(super) struct Walk<'a> {
    view: View<'a>,
    /// Items before this are done with; None: there are no more.
    from: Option<Key>,
    leaf: Option<Arc<Node>>,
    at: usize,
    next_leaf: Option<Key>,
}

impl Walk<'_> {
    /// Puts `leaf` and `at` on the first item on disk at or after `from`; false: there is none.
    fn seek(&mut self, from: Key) -> Result<bool> {
        let mut want = from;
        loop {
            if let Some(leaf) = &self.leaf {
                // Mostly the next item, or the first one of the next leaf.
                while self.at < leaf.count() && leaf.key(self.at) < want {
                    self.at += 1;
                }
                if self.at < leaf.count() {
                    return Ok(true);
                }
                let Some(next) = self.next_leaf else { return Ok(false) };
                if leaf.count() > 0 && next <= leaf.key(leaf.count() - 1) {
                    return Err(Error::Corrupt("btrfs: the leaves of a tree are not in order".into()));
                }
                want = want.max(next);
            }
            self.leaf = None;
            self.next_leaf = None;
            let leaf = self.view.leaf(want, &mut self.next_leaf)?;
            self.at = leaf.below(want);
            self.leaf = Some(leaf);
        }
    }

    /// What comes after an error: the leaf behind the bad one.
    fn skip_leaf(&mut self, from: Key) {
        self.leaf = None;
        self.from = self.next_leaf.take().filter(|&next| next > from);
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<(Key, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let from = self.from?;
            let on_disk = match self.seek(from) {
                Ok(true) => self.leaf.as_ref().map(|leaf| (leaf.key(self.at), Bytes::of(leaf, self.at))),
                Ok(false) => None,
                Err(e) => {
                    self.skip_leaf(from);
                    return Some(Err(e));
                }
            };
            let changed = self.view.shadow.and_then(|shadow| shadow.at_or_after(from));
            let (key, answer) = match (on_disk, changed) {
                (None, None) => {
                    self.from = None;
                    return None;
                }
                (Some((key, bytes)), changed) if changed.is_none_or(|(other, _)| key < other) => {
                    (key, Some(Ok((key, bytes))))
                }
                (_, Some((key, Some(place)))) => {
                    (key, Some(self.view.changed(place).map(|bytes| (key, bytes))))
                }
                (_, Some((key, None))) => (key, None),
                (Some((key, bytes)), None) => (key, Some(Ok((key, bytes)))),
            };
            self.from = key.after();
            if answer.is_some() {
                return answer;
            }
        }
    }
}
