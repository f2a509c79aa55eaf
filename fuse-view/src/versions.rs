//! The distinct versions of a path over all snapshots of a volume.
//!
//! Each snapshot is compared with the one before it by the blocks that the look-up in that one read; where all of
//! them are shared, nothing is looked up. The cost follows what changed, not the number of snapshots times the size
//! of the file.
//!
//! A version ends where type, mode, owner, size, modification time, target, extended attributes or content change.
//! A snapshot that cannot be read is told, and the version before it goes on behind it.

mod look;
mod renames;

use crate::{
    Attr, Error, Result,
    history::{Change, Changes, History},
    memo::Memo,
    tree::SnapshotEntry,
};
use look::Look;
pub(crate) use renames::is_same_file;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// Blocks that are carried from snapshot to snapshot at most; a look-up that needs more (a large log to replay) is
/// done anew in each.
const MAX_CARRIED_BYTES: u64 = 16 << 20;
/// Ranges that are compared at most: more make no message.
const MAX_RANGES: usize = 32 << 10;

/// What became of the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// It is in the oldest snapshot.
    First,
    /// It was not there before. With its path in the snapshot before, where the file had another name then.
    Created(Option<Vec<u8>>),
    /// It is another version.
    Modified,
    /// It is not there any more. With its path now, where the file has another name now.
    Deleted(Option<Vec<u8>>),
}

/// One version of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What happened.
    pub event: Event,
    /// The first snapshot with it.
    pub snapshot: SnapshotEntry,
    /// The last snapshot with it.
    pub last: SnapshotEntry,
    /// Snapshots from the first to the last.
    pub count: usize,
    /// Attributes and, of a symbolic link, the target; None once it was deleted.
    pub file: Option<(Attr, Option<Vec<u8>>)>,
}

/// What a walk through the snapshots tells.
pub enum Told {
    /// A version, complete.
    Version(Box<Version>),
    /// A snapshot that could not be read, and why.
    Unreadable(SnapshotEntry, Error),
}

/// Follows `path` through all snapshots and hands what it finds to `each`, versions oldest first. Returns how many
/// there are; 0: the path is in no snapshot.
///
/// # Errors
/// [`Error::Io`] of a snapshot, and what `each` answers.
pub fn versions<E: From<Error>>(
    history: &dyn History,
    path: &[u8],
    each: impl FnMut(Told) -> std::result::Result<(), E>,
) -> std::result::Result<usize, E> {
    versions_carrying(history, path, MAX_CARRIED_BYTES, each)
}

/// As [`versions`], with at most `max_carried_bytes` of blocks carried from snapshot to snapshot; where a look-up needs
/// more, it is done anew in each.
///
/// # Errors
/// As [`versions`].
pub fn versions_carrying<E: From<Error>>(
    history: &dyn History,
    path: &[u8],
    max_carried_bytes: u64,
    each: impl FnMut(Told) -> std::result::Result<(), E>,
) -> std::result::Result<usize, E> {
    let snapshots = history.snapshots()?;
    if snapshots.is_empty() {
        return Ok(0);
    }
    let index = snapshots.iter().enumerate().map(|(at, snapshot)| (snapshot.id, at)).collect();
    let mut follower = Follower {
        history,
        path,
        max_carried_bytes,
        snapshots,
        index,
        each,
        last: None,
        row: None,
        since: 0,
        told: 0,
    };
    follower.follow()?;
    Ok(follower.told)
}

struct Follower<'a, F> {
    history: &'a dyn History,
    path: &'a [u8],
    max_carried_bytes: u64,
    snapshots: Vec<SnapshotEntry>,
    index: HashMap<u64, usize>,
    each: F,
    /// The last snapshot that could be looked at.
    last: Option<Look>,
    /// The version that goes on, but for its end.
    row: Option<Version>,
    /// Index of its first snapshot.
    since: usize,
    told: usize,
}

impl<F> Follower<'_, F> {
    fn follow<E: From<Error>>(&mut self) -> std::result::Result<(), E>
    where
        F: FnMut(Told) -> std::result::Result<(), E>,
    {
        let first = self.history.open(&self.snapshots[0])?;
        let mut memo = self.look(0, Memo::new(first), false)?;
        let mut at = 0;
        // Whether what `last` watches is the same in the snapshot `at`.
        let mut unchanged = true;
        loop {
            let (read, watch) = self.needed(&memo);
            let from = self.snapshots[at].id;
            let carried = total(&read) <= self.max_carried_bytes && read.len() + watch.len() <= MAX_RANGES;
            let answer = if carried { self.history.changes(from, &read, &watch)? } else { self.step(at) };
            let mut again = false;
            for change in answer.changes {
                // One that was made since the list was.
                let Some(&next) = self.index.get(&change.id) else { continue };
                at = next;
                unchanged = unchanged && !change.watched;
                let source = self.history.open(&self.snapshots[at])?;
                let next = if carried { memo.advance(source, change.blocks) } else { Memo::new(source) };
                memo = self.look(at, next, unchanged)?;
                unchanged = unchanged || self.last.as_ref().is_some_and(|last| last.index == at);
                let (needs, watches) = self.needed(&memo);
                if !within(&needs, &read) || !within(&watches, &watch) {
                    again = true;
                    break;
                }
            }
            if again {
                continue;
            }
            match self.index.get(&answer.through) {
                Some(&through) if !answer.end && through > at => at = through,
                // The snapshot `at` changed something itself, and the answer ended with it.
                Some(&through) if !answer.end && through == at && from != answer.through => {}
                _ => break,
            }
        }
        let newest = self.snapshots.len() - 1;
        self.finish(newest)
    }

    /// Without a comparison: everything of the next snapshot may have changed.
    fn step(&self, at: usize) -> Changes {
        let Some(next) = self.snapshots.get(at + 1) else {
            return Changes { end: true, ..Changes::default() };
        };
        let change = Change { id: next.id, watched: true, blocks: Vec::new() };
        Changes { changes: vec![change], through: next.id, end: false }
    }

    /// What the state depends on: blocks, and ranges of content.
    fn needed(&self, memo: &Memo) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
        let content = self.last.as_ref().map(Look::content).unwrap_or_default();
        let mut watch = memo.bypassed();
        watch.extend(content);
        watch.sort_by_key(|range| range.start);
        (memo.touched(), crate::memo::joined(watch.into_iter()))
    }

    /// Looks at the snapshot with index `at`, and tells what became of the path.
    fn look<E: From<Error>>(
        &mut self,
        at: usize,
        memo: Memo,
        unchanged: bool,
    ) -> std::result::Result<Arc<Memo>, E>
    where
        F: FnMut(Told) -> std::result::Result<(), E>,
    {
        let memo = Arc::new(memo);
        match Look::new(at, memo.clone(), self.path) {
            Ok(now) => self.compare(now, unchanged)?,
            Err(error @ Error::Io { .. }) => return Err(error.into()),
            Err(error) => (self.each)(Told::Unreadable(self.snapshots[at].clone(), error))?,
        }
        Ok(memo)
    }

    fn compare<E: From<Error>>(&mut self, now: Look, unchanged: bool) -> std::result::Result<(), E>
    where
        F: FnMut(Told) -> std::result::Result<(), E>,
    {
        let event = match (&self.last, &now.file) {
            (None, None) => None,
            (None, Some(_)) if now.index == 0 => Some(Event::First),
            (None, Some(_)) => Some(Event::Created(None)),
            (Some(last), file) => match (&last.file, file) {
                (None, None) => None,
                (None, Some(_)) => Some(Event::Created(self.other_name(&now, last)?)),
                (Some(_), None) => Some(Event::Deleted(self.other_name(last, &now)?)),
                (Some(_), Some(_)) => (!last.same(&now, unchanged)?).then_some(Event::Modified),
            },
        };
        if let Some(event) = event {
            if now.index > 0 {
                self.finish(now.index - 1)?;
            }
            self.since = now.index;
            let snapshot = self.snapshots[now.index].clone();
            let file = now.file.as_ref().map(|file| (file.attr.clone(), file.target.clone()));
            self.row = Some(Version { event, last: snapshot.clone(), snapshot, count: 0, file });
        }
        self.last = Some(now);
        Ok(())
    }

    /// The path in the snapshot of `other` of what `of` shows, if it is there by another name.
    fn other_name(&self, of: &Look, other: &Look) -> Result<Option<Vec<u8>>> {
        let Some((ino, attr)) = of.identity() else { return Ok(None) };
        renames::name_of(self.history, &self.snapshots[other.index], ino, attr, self.path)
    }

    /// Tells the version that ends with the snapshot of index `until`.
    fn finish<E>(&mut self, until: usize) -> std::result::Result<(), E>
    where
        F: FnMut(Told) -> std::result::Result<(), E>,
    {
        let Some(row) = self.row.take() else { return Ok(()) };
        self.told += 1;
        let count = until + 1 - self.since;
        (self.each)(Told::Version(Box::new(Version { last: self.snapshots[until].clone(), count, ..row })))
    }
}

fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Whether `all`, ascending and apart, hold every one of `ranges`.
fn within(ranges: &[Range<u64>], all: &[Range<u64>]) -> bool {
    ranges.iter().all(|range| {
        let after = all.partition_point(|one| one.start <= range.start);
        after.checked_sub(1).and_then(|at| all.get(at)).is_some_and(|one| range.end <= one.end)
    })
}
