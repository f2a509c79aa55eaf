//! Trees made of several file systems: what a FUSE mount serves.
//!
//! A [`Node`] names a file by its file system and its inode there. [`SingleView`] is one file system,
//! [`SnapshotTree`] the tree `/snapshots/<volume>/<snapshot>/…`.

mod contents;
mod gmt;
mod provider;
mod single;
mod slots;
mod snapshots;
mod synthetic;

pub use contents::{Contents, Opened};
pub use provider::{SnapshotEntry, SnapshotProvider, VolumeEntry};
pub use single::SingleView;
pub use snapshots::{Limits, SnapshotTree};

use crate::{Attr, DirEntry, FileKind, FsView, Ino, Result, StatFs};
use std::{any::Any, sync::Arc};

/// Name of the extended attribute that every file of a tree answers with [`FsView::replay`].
pub const REPLAY_XATTR: &[u8] = b"user.cowslip.replay";

/// A file in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    /// Number of the file system in the tree, never reused.
    pub fs: u32,
    /// Inode in that file system; [`TOP`] is its root.
    pub ino: Ino,
}

/// The root directory of every file system of a tree, whatever its own number there.
pub const TOP: Ino = 0;

/// One name in a directory of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// Name.
    pub name: Vec<u8>,
    /// What it names.
    pub node: Node,
    /// Type, where the directory tells it.
    pub kind: Option<FileKind>,
    /// Pass this to `readdir` to go on after this entry. Never 0.
    pub cookie: u64,
}

/// Entries of a directory of a tree with their attributes.
#[derive(Debug)]
pub struct TreeListing {
    /// In the order of their cookies.
    pub entries: Vec<(TreeEntry, Result<Attr>)>,
    /// Whether nothing follows. False where that is not known.
    pub end: bool,
}

/// For how long what a tree tells of a node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It never changes: a file in a snapshot.
    Forever,
    /// It may change: a list of volumes or snapshots, or a name in one.
    Short,
    /// It must be asked for each time: `latest`.
    Now,
}

/// A file that stays readable while this lives: its file system is not closed.
#[derive(Clone)]
pub struct OpenFile {
    /// Its file system.
    pub view: Arc<dyn FsView>,
    /// Its inode there.
    pub ino: Ino,
    /// Keeps what `view` is part of open.
    pub(crate) _pin: Option<Arc<dyn Any + Send + Sync>>,
}

/// A tree of file systems, read only. All methods may be called from many threads.
pub trait Tree: Send + Sync {
    /// The root.
    fn root(&self) -> Node;
    /// Whether nothing in it ever changes or is closed.
    fn is_static(&self) -> bool;
    /// For how long a name that leads to `node`, its attributes and its entries hold.
    fn lifetime(&self, node: Node) -> Lifetime;
    /// Must be called before looking into directory `dir` for somebody. True: attributes that were told
    /// before are wrong, and whether he may look inside is to be decided anew.
    fn reveal(&self, dir: Node) -> Result<bool>;
    /// Finds `name` in directory `dir`.
    fn lookup(&self, dir: Node, name: &[u8]) -> Result<Node>;
    /// Entries of `dir` after `cookie` (0: from the start), at most `max`; an empty answer is the end.
    fn readdir(&self, dir: Node, cookie: u64, max: usize) -> Result<Vec<TreeEntry>>;
    /// As [`Tree::readdir`], with the attributes of each entry.
    fn list(&self, dir: Node, cookie: u64, max: usize) -> Result<TreeListing> {
        list_each(self, dir, cookie, max)
    }
    /// Attributes; `ino` in them is the one inside the file system.
    fn attr(&self, node: Node) -> Result<Attr>;
    /// As [`Tree::lookup`], with the attributes.
    fn lookup_attr(&self, dir: Node, name: &[u8]) -> Result<(Node, Attr)> {
        let node = self.lookup(dir, name)?;
        Ok((node, self.attr(node)?))
    }
    /// Target of a symbolic link.
    fn readlink(&self, node: Node) -> Result<Vec<u8>>;
    /// Value of an extended attribute.
    fn xattr(&self, node: Node, name: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Names of the extended attributes.
    fn xattr_names(&self, node: Node) -> Result<Vec<Vec<u8>>>;
    /// Opens a file or directory.
    fn open(&self, node: Node) -> Result<OpenFile>;
    /// Size of the file system of `node`.
    fn statfs(&self, node: Node) -> Result<StatFs>;
}

/// `node`'s inode as its own file system numbers it.
fn inner(view: &dyn FsView, ino: Ino) -> Ino {
    if ino == TOP { view.root() } else { ino }
}

/// The node of `ino` in file system `fs`.
fn outer(view: &dyn FsView, fs: u32, ino: Ino) -> Node {
    Node { fs, ino: if ino == view.root() { TOP } else { ino } }
}

/// An entry of a directory of `view`, as one of file system `fs` of a tree.
fn tree_entry(view: &dyn FsView, fs: u32, entry: DirEntry) -> TreeEntry {
    let node = outer(view, fs, entry.ino);
    TreeEntry { node, name: entry.name, kind: entry.kind, cookie: entry.cookie }
}

/// Entries of a directory of `view`.
fn entries(view: &dyn FsView, fs: u32, dir: Ino, cookie: u64, max: usize) -> Result<Vec<TreeEntry>> {
    let entries = view.readdir(inner(view, dir), cookie, max)?.into_iter();
    Ok(entries.map(|entry| tree_entry(view, fs, entry)).collect())
}

/// Entries of a directory, each asked for its attributes.
fn list_each(tree: &(impl Tree + ?Sized), dir: Node, cookie: u64, max: usize) -> Result<TreeListing> {
    let entries = tree.readdir(dir, cookie, max)?;
    let end = entries.is_empty();
    let entries = entries.into_iter().map(|entry| {
        let attr = tree.attr(entry.node);
        (entry, attr)
    });
    Ok(TreeListing { entries: entries.collect(), end })
}

/// Entries of a directory of `view` with their attributes.
fn list(view: &dyn FsView, fs: u32, dir: Ino, cookie: u64, max: usize) -> Result<TreeListing> {
    let listing = view.list(inner(view, dir), cookie, max)?;
    let entries = listing.entries.into_iter().map(|(entry, attr)| (tree_entry(view, fs, entry), attr));
    Ok(TreeListing { entries: entries.collect(), end: listing.end })
}

/// What `name` names in a directory of `view`.
fn lookup_attr(view: &dyn FsView, fs: u32, dir: Ino, name: &[u8]) -> Result<(Node, Attr)> {
    let (ino, attr) = view.lookup_attr(inner(view, dir), name)?;
    Ok((outer(view, fs, ino), attr))
}

fn xattr_of(view: &dyn FsView, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
    if name == REPLAY_XATTR {
        return Ok(Some(view.replay().into_bytes()));
    }
    let xattrs = view.xattrs(inner(view, ino))?;
    Ok(xattrs.into_iter().find(|(known, _)| known == name).map(|(_, value)| value))
}

/// The names of the file's own attributes. [`REPLAY_XATTR`] answers by its name and is not listed, or every copy that
/// keeps attributes would carry it away.
fn xattr_names_of(view: &dyn FsView, ino: Ino) -> Result<Vec<Vec<u8>>> {
    let xattrs = view.xattrs(inner(view, ino))?.into_iter().map(|(name, _)| name);
    Ok(xattrs.filter(|name| name != REPLAY_XATTR).collect())
}
