//! A file system in several pieces of its source: all of it, but where things lie.

use crate::{Attr, DirEntry, FsView, Ino, Result, StatFs};
use std::ops::Range;
use std::sync::Arc;

/// Tells nothing of places, as those of the file system are not those of the source.
pub(super) struct Unplaced(pub Arc<dyn FsView>);

impl FsView for Unplaced {
    fn format(&self) -> &'static str {
        self.0.format()
    }

    fn label(&self) -> String {
        self.0.label()
    }

    fn replay(&self) -> String {
        self.0.replay()
    }

    fn root(&self) -> Ino {
        self.0.root()
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        self.0.lookup(dir, name)
    }

    fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> Result<Vec<DirEntry>> {
        self.0.readdir(dir, cookie, max)
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        self.0.attr(ino)
    }

    fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.0.read_at(ino, offset, buf)
    }

    fn next_data(&self, ino: Ino, offset: u64) -> Result<Option<Range<u64>>> {
        self.0.next_data(ino, offset)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.0.readlink(ino)
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.0.xattrs(ino)
    }

    fn statfs(&self) -> StatFs {
        self.0.statfs()
    }
}
