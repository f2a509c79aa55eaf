//! Lists a tree while walking it, for `ls -R` and `find`.
//!
//! Invariants: memory is bounded by the depth of the tree and its number of directories (their inode numbers,
//! which is how loops are found), never by the size of a directory; what cannot be read is one error item
//! that names its path, and the walk goes on behind it.

use crate::{
    Attr, DirEntry, Error, FileKind, FsView, Ino,
    walk::{is_plain_name, show},
};
use std::collections::HashSet;

/// Deepest directory entered. The kernel's longest path has fewer components than that.
const MAX_DEPTH: usize = 2048;
/// Entries read at once from a directory at the top; deeper ones take fewer, down to `MIN_BATCH`.
const MAX_BATCH: usize = 1024;
const MIN_BATCH: usize = 16;

/// A file met by a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path: the one the listing started with, then names below it.
    pub path: Vec<u8>,
    /// Attributes.
    pub attr: Attr,
    /// Target, of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// 0 for the start itself, 1 for what is in it, …
    pub depth: usize,
}

/// Something that could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", show(path))]
pub struct ListingError {
    /// Path of it.
    pub path: Vec<u8>,
    /// Why.
    pub source: Error,
}

/// A walk in progress; yields every directory before what is in it, in the order of the directory.
pub struct Listing<'a> {
    view: &'a dyn FsView,
    recursive: bool,
    start: Option<(Ino, Vec<u8>)>,
    stack: Vec<Cursor>,
    seen_dirs: HashSet<Ino>,
    /// Path of the directory on top of the stack.
    path: Vec<u8>,
}

/// A place in a directory.
struct Cursor {
    dir: Ino,
    cookie: u64,
    batch: std::vec::IntoIter<(DirEntry, crate::Result<Attr>)>,
    /// Bytes of the path of the directory.
    path_len: usize,
    ended: bool,
}

impl<'a> Listing<'a> {
    /// Lists `ino`, whose path is to be shown as `path`, and what is in it: the whole tree if `recursive`.
    pub fn new(view: &'a dyn FsView, ino: Ino, path: &[u8], recursive: bool) -> Self {
        Self {
            view,
            recursive,
            start: Some((ino, path.to_vec())),
            stack: Vec::new(),
            seen_dirs: HashSet::new(),
            path: Vec::new(),
        }
    }

    fn entry(
        &mut self,
        ino: Ino,
        attr: crate::Result<Attr>,
        path: Vec<u8>,
        depth: usize,
    ) -> Result<Entry, ListingError> {
        let looked = attr.and_then(|attr| {
            let link = attr.kind == FileKind::Symlink;
            let target = if link { Some(self.view.readlink(ino)?) } else { None };
            Ok((attr, target))
        });
        let (attr, target) = match looked {
            Ok(looked) => looked,
            Err(source) => return Err(ListingError { path, source }),
        };
        if attr.kind == FileKind::Dir && (self.recursive || depth == 0) {
            self.enter(ino, &path, depth)?;
        }
        Ok(Entry { path, attr, target, depth })
    }

    fn enter(&mut self, dir: Ino, path: &[u8], depth: usize) -> Result<(), ListingError> {
        let refuse = |why: String| Err(ListingError { path: path.to_vec(), source: Error::Corrupt(why) });
        if !self.seen_dirs.insert(dir) {
            return refuse(format!("directory {dir} is met a second time"));
        }
        if depth >= MAX_DEPTH {
            return refuse(format!("directories nested deeper than {MAX_DEPTH}"));
        }
        self.path.clear();
        self.path.extend_from_slice(path);
        let batch = Vec::new().into_iter();
        self.stack.push(Cursor { dir, cookie: 0, batch, path_len: path.len(), ended: false });
        Ok(())
    }

    /// The next name in the innermost directory that has one.
    fn advance(&mut self) -> Option<Result<(DirEntry, crate::Result<Attr>), ListingError>> {
        loop {
            let depth = self.stack.len();
            let cursor = self.stack.last_mut()?;
            self.path.truncate(cursor.path_len);
            if let Some((entry, attr)) = cursor.batch.next() {
                cursor.cookie = entry.cookie;
                return Some(Ok((entry, attr)));
            }
            if cursor.ended {
                self.stack.pop();
                continue;
            }
            let max = (MAX_BATCH >> (2 * (depth - 1)).min(8)).max(MIN_BATCH);
            match self.view.list(cursor.dir, cursor.cookie, max) {
                Ok(batch) => {
                    cursor.ended = batch.entries.is_empty();
                    cursor.batch = batch.entries.into_iter();
                }
                Err(source) => {
                    cursor.ended = true;
                    return Some(Err(ListingError { path: self.path.clone(), source }));
                }
            }
        }
    }
}

impl Iterator for Listing<'_> {
    type Item = Result<Entry, ListingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((ino, path)) = self.start.take() {
            return Some(self.entry(ino, self.view.attr(ino), path, 0));
        }
        let (entry, attr) = match self.advance()? {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        let depth = self.stack.len();
        let mut path = self.path.clone();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        if !is_plain_name(&entry.name) {
            let source = Error::Corrupt("a name that no file can have".into());
            return Some(Err(ListingError { path, source }));
        }
        Some(self.entry(entry.ino, attr, path, depth))
    }
}
