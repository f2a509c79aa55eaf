//! One file in both snapshots.

use super::{
    Ranges, Side, shown,
    trees::{Both, End, Trees},
};
use crate::{
    Extent, FileKind, Ino, Result,
    content::{self, Content},
};

pub(super) use crate::versions::is_same_file;

/// Whether the inode `ino` is the same in both, byte for byte, by the blocks that hold it.
pub(super) fn is_shared_inode(trees: &Trees, ino: Ino) -> Result<bool> {
    if let Some(inodes) = trees.inodes {
        return Ok(inodes.are_shared(ino));
    }
    let at = |side: &Side| -> Result<_> {
        let range = side.inside.view.inode_at(ino)?;
        Ok(range.map(|range| range.start + side.inside.start..range.end + side.inside.start))
    };
    Ok(match (at(trees.old)?, at(trees.new)?) {
        (Some(old), Some(new)) => old == new && !trees.changed.meet(&new),
        _ => false,
    })
}

/// Whether directory `ino` holds the same names in both, by the blocks that hold it.
pub(super) fn is_shared_dir(trees: &Trees, ino: Ino) -> Result<bool> {
    if !is_shared_inode(trees, ino)? {
        return Ok(false);
    }
    let (old, new) = (content(trees.old, ino), content(trees.new, ino));
    let mut offset = 0_u64;
    loop {
        match (old.extent(offset)?, new.extent(offset)?) {
            (None, None) => return Ok(true),
            (Some(a), Some(b)) if a == b => match b {
                Extent::Data { at, len } if trees.changed.meet(&(at..at.saturating_add(len))) => {
                    return Ok(false);
                }
                Extent::Packed { .. } | Extent::Opaque { .. } => return Ok(false),
                _ => offset = offset.saturating_add(b.bytes().max(1)),
            },
            _ => return Ok(false),
        }
    }
}

/// Whether the file is modified.
pub(super) fn compare(trees: &mut Trees, both: &Both) -> Result<bool> {
    let (old, new) = (&both.old, &both.new);
    let quiet = old.ino == new.ino && is_shared_inode(trees, new.ino)?;
    if quiet && !trees.thorough {
        return Ok(false);
    }
    if !quiet {
        explain(trees, old, new)?;
    }
    let (a, b) = (&*trees.old.inside.view, &*trees.new.inside.view);
    if shown(&old.attr) != shown(&new.attr) || a.xattrs(old.ino)? != b.xattrs(new.ino)? {
        return Ok(true);
    }
    Ok(match new.attr.kind {
        FileKind::Symlink => a.readlink(old.ino)? != b.readlink(new.ino)?,
        FileKind::File => {
            let shared = |range| !trees.changed.meet(&range);
            let (old, size) = (content(trees.old, old.ino), new.attr.size);
            !content::same(old, content(trees.new, new.ino), size, &shared)?
        }
        _ => false,
    })
}

/// Notes where the content of a file that was looked at lies in both.
pub(super) fn explain(trees: &mut Trees, old: &End, new: &End) -> Result<()> {
    explain_one(trees, trees.old, old)?;
    explain_one(trees, trees.new, new)
}

/// Notes where the content of a file lies, and reads what else belongs to it.
pub(super) fn explain_one(trees: &mut Trees, side: &Side, end: &End) -> Result<()> {
    if trees.thorough {
        return Ok(());
    }
    side.inside.view.xattrs(end.ino)?;
    match end.attr.kind {
        FileKind::File | FileKind::Dir => {
            let ranges = content(side, end.ino).ranges()?;
            trees.explained.extend(ranges.unwrap_or_default());
        }
        FileKind::Symlink => drop(side.inside.view.readlink(end.ino)?),
        _ => {}
    }
    Ok(())
}

fn content(side: &Side, ino: Ino) -> Content<'_> {
    Content { view: &*side.inside.view, start: side.inside.start, ino }
}

impl Ranges {
    /// All bytes: nothing is known of what two sources share.
    pub fn everything() -> Self {
        Self::new(std::iter::once(0..u64::MAX).collect())
    }
}
