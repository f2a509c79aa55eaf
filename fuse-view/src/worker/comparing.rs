//! The worker's side of comparisons: it walks and compares by itself, and tells the host what it finds.
//!
//! They ask for millions of small things, which one by one would be as many changes of process.

use super::{
    inside::{HostBlocks, hear_answer, on_lane},
    wire::{CONTENT_BYTES, Fault, Length, Question, Reply, Shape, Version},
};
use crate::{
    BlockRead, Error, Result,
    cache::{CacheBudget, CachedBlocks},
    diff::{self, Difference, Ranges},
    history::{Changes, History},
    tree::SnapshotEntry,
    versions::{self, Told},
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, atomic::AtomicBool},
};

/// Differences in one message at most, and bytes of their paths.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 128 << 10;

/// Tells all that differs.
pub fn diff(budget: &CacheBudget, old: HostBlocks, new: HostBlocks, path: &[u8]) -> Result<()> {
    let changed: Vec<Range<u64>> = ask(Question::Changed)?;
    let [old, new] = [old, new]
        .map(|blocks| -> Arc<dyn BlockRead> { Arc::new(CachedBlocks::new(Arc::new(blocks), budget)) });
    // Who gives up ends this process.
    let report = diff::diff(&old, &new, path, &Ranges::new(changed), &AtomicBool::new(false))?;
    let bytes = |of: &Difference| {
        let [from, target] = [&of.from, &of.target].map(|path| path.as_ref().map_or(0, Vec::len));
        of.path.len() + from + target
    };
    batches(report.differences, bytes, Question::Differs)?;
    let errors = report.errors.into_iter().map(|error| (error.path, Fault::from(&error.source)));
    batches(errors, |(path, _)| path.len(), Question::Failed)
}

/// Tells `all`, so many at once that a message holds them.
fn batches<T>(
    all: impl IntoIterator<Item = T>,
    bytes: impl Fn(&T) -> usize,
    tell: impl Fn(Vec<T>) -> Question,
) -> Result<()> {
    let (mut batch, mut filled) = (Vec::new(), 0);
    for one in all {
        filled += bytes(&one);
        batch.push(one);
        if batch.len() >= BATCH || filled >= BATCH_BYTES {
            ask::<()>(tell(std::mem::take(&mut batch)))?;
            filled = 0;
        }
    }
    if batch.is_empty() { Ok(()) } else { ask(tell(batch)) }
}

/// Tells the versions of `path`.
pub fn versions(path: &[u8]) -> Result<()> {
    let snapshots = Snapshots { closed: Arc::default(), opened: Mutex::default() };
    versions::versions(&snapshots, path, |told| -> Result<()> {
        ask(match told {
            Told::Version(version) => {
                let versions::Version { event, snapshot, last, count, file } = *version;
                Question::Version(Version { event, snapshot: snapshot.id, last: last.id, count, file })
            }
            Told::Unreadable(snapshot, error) => Question::Unreadable(snapshot.id, Fault::from(&error)),
        })
    })?;
    Ok(())
}

/// The snapshots that the host has.
struct Snapshots {
    /// Sources that nothing here uses any more.
    closed: Arc<Mutex<Vec<u32>>>,
    /// Those that came with what they change: sources and lengths by id. They are looked at next.
    opened: Mutex<HashMap<u64, Arc<Snapshot>>>,
}

impl Snapshots {
    fn hold(&self, (source, len): (u32, u64)) -> Arc<Snapshot> {
        // Where two of them differ is told by the host.
        let shape = Shape { len, identities: false };
        Arc::new(Snapshot { blocks: HostBlocks { source, shape }, closed: self.closed.clone() })
    }
}

impl History for Snapshots {
    fn snapshots(&self) -> Result<Vec<SnapshotEntry>> {
        ask(Question::Snapshots)
    }

    fn open(&self, snapshot: &SnapshotEntry) -> Result<Arc<dyn BlockRead>> {
        if let Some(opened) = self.opened.lock().remove(&snapshot.id) {
            return Ok(opened);
        }
        let closed = std::mem::take(&mut *self.closed.lock());
        Ok(self.hold(ask(Question::Snapshot { id: snapshot.id, closed })?))
    }

    fn changes(&self, from: u64, read: &[Range<u64>], watch: &[Range<u64>]) -> Result<Changes> {
        // What came before and was not looked at is of no use any more.
        drop(std::mem::take(&mut *self.opened.lock()));
        let closed = std::mem::take(&mut *self.closed.lock());
        let (changes, opened): (Changes, Vec<(u32, u64)>) =
            ask(Question::Changes { from, read: read.to_vec(), watch: watch.to_vec(), closed })?;
        let ids = changes.changes.iter().map(|change| change.id);
        *self.opened.lock() = ids.zip(opened.into_iter().map(|one| self.hold(one))).collect();
        Ok(changes)
    }
}

/// One of them.
struct Snapshot {
    blocks: HostBlocks,
    closed: Arc<Mutex<Vec<u32>>>,
}

impl BlockRead for Snapshot {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.blocks.read_at(offset, buf)
    }

    fn len(&self) -> u64 {
        self.blocks.len()
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.closed.lock().push(self.blocks.source);
    }
}

/// Asks the host, and takes its answer piece by piece.
fn ask<T: DeserializeOwned>(question: Question) -> Result<T> {
    let mut said = Reply::<()>::Ask(question);
    let mut answer = Vec::new();
    loop {
        let len = on_lane(|lane| {
            lane.send(&said)?;
            let told: Length = hear_answer(lane)?;
            if let Ok(len) = told {
                let (at, len) = (answer.len(), usize::try_from(len).unwrap_or(0));
                answer.resize(len.min(at + CONTENT_BYTES), 0);
                lane.take(0, &mut answer[at..])?;
            }
            Ok(told)
        });
        if answer.len() as u64 >= len.map_err(Error::from)? {
            let nonsense = |_| Error::Corrupt("the host's answer makes no sense".into());
            return postcard::from_bytes(&answer).map_err(nonsense);
        }
        said = Reply::Rest { at: answer.len() as u64 };
    }
}
