//! Where commands get their data: an agent, or a pool read without one. Commands that only read are written
//! against [`Backend`]; those that change something need the agent.

mod agent;
mod pool;

pub use agent::{AgentBackend, reference};
pub use pool::PoolBackend;

use super::{
    failure::Result,
    model::{Snapshot, Status, Volume},
    names::{DiskName, SnapshotName},
};
use crate::changes::{Changes, Wanted};
use fuse_view::BlockRead;
use std::{ops::Range, sync::Arc};
use store::SnapshotBrief;

/// Where to mount or was mounted: a directory of this host that shows a volume's file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mountpoint {
    /// Directory, as bytes.
    pub dir: Vec<u8>,
    /// The directory inside the file system that is mounted there; `/` unless it is a bind mount.
    pub root: Vec<u8>,
    /// Number of the partition, 0 for the whole device.
    pub partition: u32,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// How to export.
#[derive(Debug, Clone, Copy)]
pub struct ExportOptions {
    /// Freeze a mounted file system for the temporary snapshot of a volume.
    pub freeze: bool,
    /// Ask the sender for its digest, to compare.
    pub digest: bool,
}

/// Receives a raw image in ascending order; what no chunk covers is zeros.
pub trait ImageSink {
    /// The length of the image, before any chunk, and what the user should know about its content.
    fn begin(&mut self, size_bytes: u64, warnings: &[String]) -> Result<()>;
    /// Bytes at an offset, after all earlier chunks.
    fn chunk(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    /// Everything was delivered; the sender's BLAKE3 of the image, where it has one.
    fn end(&mut self, blake3: Option<[u8; 32]>) -> Result<()>;
}

/// What every command that only reads can ask for.
pub trait Backend: Send + Sync {
    /// The agent, the pool and their state.
    fn status(&self) -> Result<Status>;
    /// All volumes.
    fn volumes(&self) -> Result<Vec<Volume>>;
    /// One volume.
    fn volume(&self, name: &str) -> Result<Volume>;
    /// Snapshots of one volume or of all.
    fn snapshots(&self, volume: Option<&str>) -> Result<Vec<Snapshot>>;
    /// One snapshot; its name may be `latest`.
    fn snapshot(&self, name: &SnapshotName) -> Result<Snapshot>;
    /// The raw content of a snapshot.
    fn open_snapshot(&self, name: &SnapshotName) -> Result<Arc<dyn BlockRead>>;
    /// Sends the raw image of a volume or snapshot to `sink`.
    fn export(&self, disk: &DiskName, options: ExportOptions, sink: &mut dyn ImageSink) -> Result<()>;
    /// The snapshots of a volume, oldest first, without what takes counting.
    fn history(&self, volume: &str) -> Result<Vec<SnapshotBrief>>;
    /// The raw content of a snapshot that `history` told of.
    fn open_brief(&self, volume: &str, snapshot: &SnapshotBrief) -> Result<Arc<dyn BlockRead>>;
    /// What the snapshots of a volume after the one with id `from` change of some ranges.
    fn changes(&self, volume: &str, from: u64, wanted: &Wanted) -> Result<Changes>;
    /// Byte ranges, ascending, in which two snapshots of one volume may differ.
    fn differences(&self, old: &SnapshotName, new: &SnapshotName) -> Result<Vec<Range<u64>>>;
    /// Where a volume is mounted now.
    fn mountpoints(&self, volume: &str) -> Result<Vec<Mountpoint>>;
}
