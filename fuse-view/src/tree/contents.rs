//! What a snapshot shows: a file system, partitions, or raw bytes.

use super::{SnapshotEntry, VolumeEntry, synthetic::RawView};
use crate::{
    BlockRead, Error, FsView, Result,
    cache::{CacheBudget, CachedBlocks},
    container, fs,
};
use std::{
    any::Any,
    sync::{Arc, OnceLock},
};

/// What was found in a snapshot or partition.
pub enum Contents {
    /// A file system.
    Files(Arc<dyn FsView>),
    /// Partitions, and where each is read from.
    Partitions(Vec<(container::Partition, Arc<dyn BlockRead>)>),
    /// Neither: bytes.
    Raw,
}

impl Contents {
    /// Finds out what `source` holds, and opens its file system with small reads cached within `budget`.
    pub fn open(source: Arc<dyn BlockRead>, budget: &CacheBudget) -> Result<Self> {
        let source: Arc<dyn BlockRead> = Arc::new(CachedBlocks::new(source, budget));
        Ok(match container::open(&source)? {
            container::Contents::FileSystem(_) => Self::Files(fs::open(source)?),
            container::Contents::Partitions(partitions) => Self::Partitions(partitions),
            container::Contents::Raw => Self::Raw,
        })
    }
}

/// The snapshot that a source is or is part of.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Its volume.
    pub volume: VolumeEntry,
    /// Itself.
    pub snapshot: SnapshotEntry,
}

/// Finds out what a source holds. An error other than [`Error::Io`] is shown to the user beside the raw bytes.
pub type Opener = dyn Fn(&Opened, Arc<dyn BlockRead>) -> Result<Contents> + Send + Sync;

/// An open snapshot.
pub struct OpenSnapshot {
    pub shown: Shown,
    of: Opened,
}

/// What stands in the directory of an open snapshot.
pub enum Shown {
    /// The files of this file system.
    Files(Arc<dyn FsView>),
    /// `p1/`, `p2/`, …, or the names of logical volumes.
    Partitions(Vec<Partition>),
}

/// A partition; its file system is opened at the first look inside.
pub struct Partition {
    pub number: u32,
    pub directory: String,
    source: Arc<dyn BlockRead>,
    view: OnceLock<Arc<dyn FsView>>,
}

impl OpenSnapshot {
    /// Looks into `source`. Fails only when it cannot be read.
    pub fn open(of: Opened, source: Arc<dyn BlockRead>, opener: &Opener) -> Result<Self> {
        let created_at = of.snapshot.created_at;
        let shown = match opener(&of, source.clone()) {
            Ok(Contents::Files(view)) => Shown::Files(view),
            Ok(Contents::Partitions(partitions)) => {
                let partition = |(part, source): (container::Partition, _)| Partition {
                    number: part.number,
                    directory: part.directory,
                    source,
                    view: OnceLock::new(),
                };
                Shown::Partitions(partitions.into_iter().map(partition).collect())
            }
            Ok(Contents::Raw) => Shown::Files(raw(source, b"volume.raw", None, created_at)),
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(why) => Shown::Files(raw(source, b"volume.raw", Some(&why), created_at)),
        };
        Ok(Self { shown, of })
    }

    /// The file system of partition `number`.
    pub fn partition(&self, number: u32, opener: &Opener) -> Result<Arc<dyn FsView>> {
        let found = match &self.shown {
            Shown::Partitions(partitions) => partitions.iter().find(|partition| partition.number == number),
            Shown::Files(_) => None,
        };
        let partition = found.ok_or_else(|| Error::NotFound(format!("partition {number}")))?;
        if let Some(view) = partition.view.get() {
            return Ok(view.clone());
        }
        let source = partition.source.clone();
        let created_at = self.of.snapshot.created_at;
        let view = match opener(&self.of, source.clone()) {
            Ok(Contents::Files(view)) => view,
            // A partition table inside of a partition is nobody's but a virtual machine's.
            Ok(Contents::Raw | Contents::Partitions(_)) => raw(source, b"partition.raw", None, created_at),
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(why) => raw(source, b"partition.raw", Some(&why), created_at),
        };
        Ok(partition.view.get_or_init(|| view).clone())
    }
}

fn raw(
    source: Arc<dyn BlockRead>,
    name: &'static [u8],
    why: Option<&Error>,
    created_at: i64,
) -> Arc<dyn FsView> {
    Arc::new(RawView::new(source, name, why, created_at))
}

/// A file system with what keeps it open.
pub struct Pinned {
    pub view: Arc<dyn FsView>,
    pub pin: Arc<dyn Any + Send + Sync>,
}
