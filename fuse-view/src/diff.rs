//! What differs between two snapshots of a volume: names added, deleted and renamed, files modified.
//!
//! Both trees are walked together. Where the blocks of an inode and of its content are shared, nothing of it is
//! looked at. What is not shared and belongs to no file that was looked at makes the walk thorough: then the content
//! of every file is compared by where it lies. So the answer is exact, and its cost follows what changed.
//!
//! A directory is modified when its owner, mode or attributes changed; names in it speak for themselves.

mod common;
mod inodes;
mod pair;
mod trees;

use crate::{
    Attr, BlockRead, Error, FileKind, Piece, Result,
    container::{self, Inside},
    listing::ListingError,
    memo::{BLOCK, joined},
    walk,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Reads above this are content.
const MAX_METADATA_BYTES: usize = 64 * 1024;

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Only the newer snapshot has it.
    Added,
    /// Only the older snapshot has it.
    Deleted,
    /// Both have it, and it is not the same.
    Modified,
    /// It had another path.
    Renamed,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What happened.
    pub kind: Kind,
    /// Path: in the newer snapshot, of what was deleted in the older one.
    pub path: Vec<u8>,
    /// Path in the older snapshot, of what was renamed.
    pub from: Option<Vec<u8>>,
    /// Whether what was renamed was modified, too.
    pub modified: bool,
    /// Attributes: in the newer snapshot, of what was deleted in the older one.
    pub attr: Attr,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Report {
    /// Sorted by path.
    pub differences: Vec<Difference>,
    /// What could not be compared.
    pub errors: Vec<ListingError>,
}

/// One thing of a [`Report`].
pub enum Found {
    /// A difference.
    Difference(Difference),
    /// What could not be compared.
    Unreadable(ListingError),
}

/// Ascending byte ranges, apart from each other.
#[derive(Debug, Clone, Default)]
pub struct Ranges(Arc<[Range<u64>]>);

impl Ranges {
    /// Of ranges in any order.
    pub fn new(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.sort_by_key(|range| range.start);
        Self(joined(ranges.into_iter()).into())
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[Range<u64>] {
        &self.0
    }

    /// Whether a byte of `range` is in one of them.
    pub fn meet(&self, range: &Range<u64>) -> bool {
        let after = self.0.partition_point(|one| one.end <= range.start);
        self.0.get(after).is_some_and(|one| one.start < range.end)
    }

    /// What of them lies in `range`.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let from = self.0.partition_point(|one| one.end <= range.start);
        let met = self.0[from..].iter().take_while(move |one| one.start < range.end);
        met.map(move |one| one.start.max(range.start)..one.end.min(range.end))
    }

    /// Whether something of these is in none of `others`.
    pub fn exceed(&self, others: &Self) -> bool {
        self.0.iter().any(|range| {
            let mut at = range.start;
            while at < range.end {
                let after = others.0.partition_point(|one| one.end <= at);
                match others.0.get(after) {
                    Some(one) if one.start <= at => at = one.end,
                    _ => return true,
                }
            }
            false
        })
    }
}

/// Compares `path` in two snapshots of one volume. `changed` holds every byte range in which they may differ; past
/// the end of the shorter one all do.
///
/// # Errors
/// [`Error::NotFound`] where neither has `path`, and what opening gives. What cannot be read of a tree is in the
/// report. `cancel`: whether to give up, which is [`Error::Io`] with `Interrupted`.
pub fn diff(
    old: &Arc<dyn BlockRead>,
    new: &Arc<dyn BlockRead>,
    path: &[u8],
    changed: &Ranges,
    cancel: &AtomicBool,
) -> Result<Report> {
    let common = common::Common { old: old.clone(), new: new.clone(), changed: changed.clone() };
    let (old, new) = (&Side::open(&(Arc::new(common) as _), path)?, &Side::open(new, path)?);
    let inodes = &inodes::Inodes::find(old, new, changed)?;
    let compare =
        |thorough| trees::Trees::new([old, new], changed, inodes.as_ref(), cancel, thorough).compare();
    let quick = compare(false)?;
    // Blocks that changed, and that nothing which was looked at accounts for, may be content of any other file.
    if quick.is_all(changed)? {
        return Ok(quick.report());
    }
    Ok(compare(true)?.report())
}

/// What is damaged is not known.
fn known<T>(told: Result<Option<T>>) -> Result<Option<T>> {
    match told {
        Err(error @ Error::Io { .. }) => Err(error),
        told => Ok(told.unwrap_or_default()),
    }
}

/// One of the two snapshots.
struct Side {
    recorder: Arc<Recorder>,
    inside: Inside,
}

impl Side {
    fn open(source: &Arc<dyn BlockRead>, path: &[u8]) -> Result<Self> {
        let recorder = Arc::new(Recorder { inner: source.clone(), blocks: Mutex::default() });
        let recorded: Arc<dyn BlockRead> = recorder.clone();
        Ok(Self { recorder, inside: container::locate(&recorded, path)? })
    }

    /// What was asked for, if it is there, with its path.
    fn top(&self) -> Result<Option<walk::Found>> {
        match walk::find(&*self.inside.view, &self.inside.path, false) {
            Err(Error::NotFound(_) | Error::WrongKind(_)) => Ok(None),
            found => found.map(Some),
        }
    }

    /// The bookkeeping of the file system, as ranges of the source.
    fn bookkeeping(&self) -> Result<Option<Vec<Range<u64>>>> {
        let start = self.inside.start;
        let ranges = known(self.inside.view.bookkeeping())?;
        Ok(ranges.map(|all| all.into_iter().map(|range| range.start + start..range.end + start).collect()))
    }
}

/// Remembers which blocks of metadata were read.
struct Recorder {
    inner: Arc<dyn BlockRead>,
    blocks: Mutex<HashSet<u64>>,
}

impl Recorder {
    fn note(&self, offset: u64, len: usize) {
        if len <= MAX_METADATA_BYTES {
            let blocks = offset / BLOCK..offset.saturating_add(len as u64).div_ceil(BLOCK);
            self.blocks.lock().extend(blocks);
        }
    }

    /// The ranges that were read.
    fn ranges(&self) -> Vec<Range<u64>> {
        self.blocks.lock().iter().map(|block| block * BLOCK..(block + 1) * BLOCK).collect()
    }
}

impl BlockRead for Recorder {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.note(offset, buf.len());
        self.inner.read_at(offset, buf)
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn piece(&self, offset: u64, len: usize) -> Result<Piece> {
        self.note(offset, len);
        self.inner.piece(offset, len)
    }
}

fn check(cancel: &AtomicBool) -> Result<()> {
    if !cancel.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(Error::Io { what: "compare".into(), source: std::io::ErrorKind::Interrupted.into() })
}

/// What of a file's attributes is compared. The size of a directory and its times follow from the names in it.
fn shown(attr: &Attr) -> impl PartialEq {
    let dir = attr.kind == FileKind::Dir;
    let of_file = (!dir).then_some((attr.size, attr.mtime));
    (attr.kind, attr.mode, attr.uid, attr.gid, attr.rdev, of_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_meet_and_exceed() {
        let ranges = Ranges::new(vec![30..40, 10..20, 20..25]);
        for (range, meets) in
            [(0..10, false), (0..11, true), (24..30, true), (25..30, false), (39..50, true), (40..50, false)]
        {
            assert_eq!(ranges.meet(&range), meets, "{range:?}");
        }
        assert!(!ranges.exceed(&Ranges::new(vec![0..22, 22..25, 28..41])));
        assert!(ranges.exceed(&Ranges::new(vec![0..22, 23..25, 28..41])));
        assert!(ranges.exceed(&Ranges::new(vec![0..20, 20..39])));
        assert!(!Ranges::default().exceed(&Ranges::default()));
    }
}
