//! One file system as a tree.

use super::{
    Lifetime, Node, OpenFile, TOP, Tree, TreeEntry, TreeListing, entries, inner, list, lookup_attr, outer,
    xattr_names_of, xattr_of,
};
use crate::{Attr, FsView, Result, StatFs};
use std::sync::Arc;

/// The number of the only file system.
const ONLY: u32 = 1;

/// A tree of the files of one file system.
pub struct SingleView(Arc<dyn FsView>);

impl SingleView {
    /// The tree of `view`.
    pub fn new(view: Arc<dyn FsView>) -> Self {
        Self(view)
    }
}

impl Tree for SingleView {
    fn root(&self) -> Node {
        Node { fs: ONLY, ino: TOP }
    }

    fn is_static(&self) -> bool {
        true
    }

    fn lifetime(&self, _node: Node) -> Lifetime {
        Lifetime::Forever
    }

    fn reveal(&self, _dir: Node) -> Result<bool> {
        Ok(false)
    }

    fn lookup(&self, dir: Node, name: &[u8]) -> Result<Node> {
        let ino = self.0.lookup(inner(&*self.0, dir.ino), name)?;
        Ok(outer(&*self.0, ONLY, ino))
    }

    fn readdir(&self, dir: Node, cookie: u64, max: usize) -> Result<Vec<TreeEntry>> {
        entries(&*self.0, ONLY, dir.ino, cookie, max)
    }

    fn list(&self, dir: Node, cookie: u64, max: usize) -> Result<TreeListing> {
        list(&*self.0, ONLY, dir.ino, cookie, max)
    }

    fn lookup_attr(&self, dir: Node, name: &[u8]) -> Result<(Node, Attr)> {
        lookup_attr(&*self.0, ONLY, dir.ino, name)
    }

    fn attr(&self, node: Node) -> Result<Attr> {
        self.0.attr(inner(&*self.0, node.ino))
    }

    fn readlink(&self, node: Node) -> Result<Vec<u8>> {
        self.0.readlink(inner(&*self.0, node.ino))
    }

    fn xattr(&self, node: Node, name: &[u8]) -> Result<Option<Vec<u8>>> {
        xattr_of(&*self.0, node.ino, name)
    }

    fn xattr_names(&self, node: Node) -> Result<Vec<Vec<u8>>> {
        xattr_names_of(&*self.0, node.ino)
    }

    fn open(&self, node: Node) -> Result<OpenFile> {
        Ok(OpenFile { view: self.0.clone(), ino: inner(&*self.0, node.ino), _pin: None })
    }

    fn statfs(&self, _node: Node) -> Result<StatFs> {
        Ok(self.0.statfs())
    }
}
