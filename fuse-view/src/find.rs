//! Walks the names of a tree. Unlike [`crate::listing`] it looks at no inode whose directory tells its type, which is
//! what a search by name needs.

use crate::{DirEntry, Error, FileKind, FsView, Ino, listing::ListingError, walk::is_plain_name};
use std::collections::HashSet;

/// Entries read at once from a directory.
const BATCH: usize = 1024;
/// Longest path that is followed.
const MAX_PATH_BYTES: usize = 64 * 1024;

/// A name that was met.
pub struct Found<'a> {
    /// Its path.
    pub path: &'a [u8],
    /// What it names.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
}

impl Found<'_> {
    /// The last component of the path; `/` of the root.
    pub fn name(&self) -> &[u8] {
        let start = self.path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
        if start < self.path.len() { &self.path[start..] } else { self.path }
    }
}

fn entries(view: &dyn FsView, dir: Ino, cookie: u64, attributes: bool) -> Result<Vec<DirEntry>, Error> {
    if !attributes {
        return view.readdir(dir, cookie, BATCH);
    }
    let listing = view.list(dir, cookie, BATCH)?;
    Ok(listing.entries.into_iter().map(|(entry, _)| entry).collect())
}

/// Hands `top`, whose path is shown as `path`, and every name below it to `each`, until that fails. What cannot be
/// read is handed over as an error, and the walk goes on. Memory follows the number of directories. `attributes`:
/// `each` will ask for most of them, so that they come with the names.
pub fn walk<E>(
    view: &dyn FsView,
    top: Ino,
    path: &[u8],
    attributes: bool,
    mut each: impl FnMut(Result<Found, ListingError>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |path: &[u8], source| ListingError { path: path.to_vec(), source };
    let kind = match view.attr(top) {
        Ok(attr) => attr.kind,
        Err(error) => return each(Err(failed(path, error))),
    };
    each(Ok(Found { path, ino: top, kind }))?;
    let mut pending: Vec<(Ino, Vec<u8>)> = Vec::new();
    if kind == FileKind::Dir {
        pending.push((top, path.to_vec()));
    }
    let mut entered = HashSet::new();
    let mut full = Vec::new();
    while let Some((dir, at)) = pending.pop() {
        if !entered.insert(dir) || at.len() > MAX_PATH_BYTES {
            let why =
                Error::Corrupt(format!("directory {dir} is met a second time, or its path is too long"));
            each(Err(failed(&at, why)))?;
            continue;
        }
        let first_below = pending.len();
        let mut cookie = 0;
        loop {
            let batch = match entries(view, dir, cookie, attributes) {
                Ok(batch) => batch,
                Err(error) => {
                    each(Err(failed(&at, error)))?;
                    break;
                }
            };
            let Some(last) = batch.last() else { break };
            cookie = last.cookie;
            for entry in &batch {
                full.clear();
                full.extend_from_slice(&at);
                if !at.ends_with(b"/") {
                    full.push(b'/');
                }
                full.extend_from_slice(&entry.name);
                if !is_plain_name(&entry.name) {
                    each(Err(failed(&full, Error::Corrupt("a name that no file can have".into()))))?;
                    continue;
                }
                let kind = match entry.kind {
                    Some(kind) => kind,
                    None => match view.attr(entry.ino) {
                        Ok(attr) => attr.kind,
                        Err(error) => {
                            each(Err(failed(&full, error)))?;
                            continue;
                        }
                    },
                };
                each(Ok(Found { path: &full, ino: entry.ino, kind }))?;
                if kind == FileKind::Dir {
                    pending.push((entry.ino, full.clone()));
                }
            }
        }
        // The first directory of a directory is walked first.
        pending[first_below..].reverse();
    }
    Ok(())
}
