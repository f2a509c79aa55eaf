//! The rescue path: a pool opened read only in this process. Refused while an agent holds the pool.

use super::{Backend, ExportOptions, ImageSink, Mountpoint};
use crate::changes::{Changes, Wanted, changes};
use crate::cli::{
    failure::{Failure, Kind, Result},
    interrupt,
    model::{Pool, Snapshot, Status, Volume},
    names::{DiskName, SnapshotName},
};
use fuse_view::{BlockRead, source::SnapshotSource};
use std::{ops::Range, path::Path, sync::Arc};
use store::SnapshotBrief;

const CHUNK_BYTES: u64 = 1 << 20;

/// A pool opened read only.
pub struct PoolBackend {
    pool: Arc<store::Pool>,
}

impl PoolBackend {
    /// Opens the pool at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let pool = store::Pool::open_read_only(path).map_err(|error| {
            let failure = Failure::from(error).about(path);
            match failure.kind() {
                Kind::Busy => {
                    failure.or_hint("an agent serves this pool: leave --pool out to ask it, or stop it")
                }
                Kind::NotFound => failure.or_hint("make a pool with `cowslip pool init PATH`"),
                _ => failure,
            }
        })?;
        Ok(Self { pool })
    }
}

impl Backend for PoolBackend {
    fn status(&self) -> Result<Status> {
        let volumes = self.pool.volumes().len();
        let snapshots = self.snapshots(None)?.len();
        Ok(Status {
            agent: None,
            pool: Pool::from(self.pool.info()),
            volumes: volumes as u64,
            snapshots: snapshots as u64,
            attached: 0,
            pending_deletions: self.pool.pending_deletions(),
            warnings: Vec::new(),
        })
    }

    fn volumes(&self) -> Result<Vec<Volume>> {
        Ok(self.pool.volumes().into_iter().map(Volume::from).collect())
    }

    fn volume(&self, name: &str) -> Result<Volume> {
        Ok(self.pool.volume(name)?.into())
    }

    fn snapshots(&self, volume: Option<&str>) -> Result<Vec<Snapshot>> {
        let all = self.pool.snapshots(volume)?;
        Ok(all.into_iter().map(Snapshot::from).collect())
    }

    fn snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        Ok(self.pool.snapshot(&name.volume, &name.name)?.into())
    }

    fn open_snapshot(&self, name: &SnapshotName) -> Result<Arc<dyn BlockRead>> {
        Ok(Arc::new(SnapshotSource(self.pool.open_snapshot(&name.volume, &name.name)?)))
    }

    fn export(&self, disk: &DiskName, _options: ExportOptions, sink: &mut dyn ImageSink) -> Result<()> {
        match disk {
            DiskName::Snapshot(name) => {
                let snapshot = self.pool.open_snapshot(&name.volume, &name.name)?;
                let next = |offset| snapshot.next_data(offset);
                copy(snapshot.size_bytes(), next, |offset, buf| snapshot.read_at(offset, buf), sink)
            }
            DiskName::Volume(name) => {
                let volume = self.pool.open_volume(name)?;
                let next = |offset| volume.next_data(offset);
                copy(volume.size_bytes(), next, |offset, buf| volume.read_at(offset, buf), sink)
            }
        }
    }

    fn history(&self, volume: &str) -> Result<Vec<SnapshotBrief>> {
        Ok(self.pool.snapshots_in_brief(volume, 0)?)
    }

    fn open_brief(&self, _volume: &str, snapshot: &SnapshotBrief) -> Result<Arc<dyn BlockRead>> {
        Ok(Arc::new(SnapshotSource(self.pool.open_snapshot_by_id(snapshot.id)?)))
    }

    fn changes(&self, volume: &str, from: u64, wanted: &Wanted) -> Result<Changes> {
        Ok(changes(&self.pool, volume, from, wanted)?)
    }

    fn differences(&self, old: &SnapshotName, new: &SnapshotName) -> Result<Vec<Range<u64>>> {
        let base = self.pool.open_snapshot(&old.volume, &old.name)?;
        let snapshot = self.pool.open_snapshot(&new.volume, &new.name)?;
        let (mut at, mut found) = (0, Vec::new());
        while let Some(range) = snapshot.next_difference(&base, at)? {
            at = range.end;
            found.push(range);
        }
        Ok(found)
    }

    fn mountpoints(&self, volume: &str) -> Result<Vec<Mountpoint>> {
        // Nobody serves the pool, so nothing of it is mounted; the name is still checked.
        self.pool.volume(volume)?;
        Ok(Vec::new())
    }
}

fn copy(
    size_bytes: u64,
    next_data: impl Fn(u64) -> store::Result<Option<Range<u64>>>,
    read_at: impl Fn(u64, &mut [u8]) -> store::Result<()>,
    sink: &mut dyn ImageSink,
) -> Result<()> {
    sink.begin(size_bytes, &[])?;
    let mut buf = Vec::new();
    let mut offset = 0;
    while let Some(data) = next_data(offset)? {
        let mut at = data.start.max(offset);
        let end = data.end.min(size_bytes);
        while at < end {
            interrupt::check()?;
            let len = (end - at).min(CHUNK_BYTES);
            buf.resize(usize::try_from(len).unwrap_or(0), 0);
            read_at(at, &mut buf)?;
            sink.chunk(at, &buf)?;
            at += len;
        }
        if data.end <= offset {
            break;
        }
        offset = data.end;
    }
    sink.end(None)
}
