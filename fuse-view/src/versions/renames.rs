//! The other name of a file: where an inode that lost its name is to be found now, or was before.

use crate::{
    Attr, BlockRead, Error, FileKind, FsView, Ino, Result,
    cache::{CacheBudget, CachedBlocks},
    container,
    history::History,
    tree::SnapshotEntry,
    walk,
};
use std::{collections::HashSet, sync::Arc};

/// Memory for the search.
const CACHE_BYTES: u64 = 16 << 20;
/// Entries read at once from a directory.
const BATCH: usize = 1024;

/// The path of inode `ino` in `snapshot`, if it is the same file there and has another name than `path`. The
/// directory of `path` is looked through first, then everything.
pub fn name_of(
    history: &dyn History,
    snapshot: &SnapshotEntry,
    ino: Ino,
    attr: &Attr,
    path: &[u8],
) -> Result<Option<Vec<u8>>> {
    let source = history.open(snapshot)?;
    let source: Arc<dyn BlockRead> = Arc::new(CachedBlocks::new(source, &CacheBudget::new(CACHE_BYTES)));
    let inside = match container::locate(&source, path) {
        Err(Error::Io { what, source }) => return Err(Error::Io { what, source }),
        Err(_) => return Ok(None),
        Ok(inside) => inside,
    };
    let view = &*inside.view;
    let alive = view.attr(ino).is_ok_and(|there| is_same_file(&there, attr));
    if !alive {
        return Ok(None);
    }
    let found = search(view, ino, &inside.path);
    Ok(found.map(|found| [inside.prefix, found].concat()))
}

/// Whether an inode number stands for the same file in two snapshots: numbers are given again.
pub fn is_same_file(a: &Attr, b: &Attr) -> bool {
    let born = match (a.btime, b.btime) {
        (Some(a), Some(b)) => a == b,
        _ => (a.mtime, a.size) == (b.mtime, b.size),
    };
    a.kind == b.kind && born
}

/// A name of `ino` other than `path`.
fn search(view: &dyn FsView, ino: Ino, path: &[u8]) -> Option<Vec<u8>> {
    let parent_end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    let parent = &path[..parent_end];
    let mut seen = HashSet::new();
    let mut pending: Vec<(Ino, Vec<u8>)> = vec![(view.root(), Vec::new())];
    if let Ok(found) = walk::find(view, parent, true) {
        let path = if found.path == b"/" { Vec::new() } else { found.path };
        pending.push((found.ino, path));
    }
    while let Some((dir, at)) = pending.pop() {
        if !seen.insert(dir) {
            continue;
        }
        let mut cookie = 0;
        // What cannot be listed cannot be searched; the rest can.
        while let Ok(batch) = view.readdir(dir, cookie, BATCH) {
            let Some(last) = batch.last() else { break };
            cookie = last.cookie;
            for entry in batch.iter().filter(|entry| walk::is_plain_name(&entry.name)) {
                let full = || [&at[..], b"/", &entry.name].concat();
                if entry.ino == ino && full() != path {
                    return Some(full());
                }
                let kind = entry.kind.or_else(|| view.attr(entry.ino).ok().map(|attr| attr.kind));
                if kind == Some(FileKind::Dir) {
                    pending.push((entry.ino, full()));
                }
            }
        }
    }
    None
}
