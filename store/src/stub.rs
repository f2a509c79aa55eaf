#![allow(missing_docs, unused_variables, clippy::unimplemented, clippy::needless_pass_by_value)]
use crate::*;
use std::{path::{Path, PathBuf}, sync::Arc};

#[derive(Debug, Clone, Default)]
pub struct InitOptions { pub size_bytes: Option<u64>, pub force: bool }

#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Directory for the ring (must be a tmpfs); None: acknowledge only what is durable.
    pub ring_dir: Option<PathBuf>,
    /// Wait for the lock of a dying agent (true), or answer Busy (false).
    pub wait_for_lock: bool,
    /// Budget of the map-node cache, bytes.
    pub cache_bytes: u64,
}

pub struct Pool;
pub struct Volume;
pub struct Snapshot;

/// One finding of check.
#[derive(Debug, Clone)]
pub struct Finding { pub place: String, pub message: String }
#[derive(Debug, Clone, Default)]
pub struct CheckReport { pub findings: Vec<Finding>, pub blocks_checked: u64, pub nodes_checked: u64, pub versions: u64, pub used_bytes: u64 }

impl Pool {
    /// Makes a pool at PATH: a directory (made if absent; holds `pool.cowslip`) or a block device.
    pub fn init(path: &Path, options: &InitOptions) -> Result<PoolInfo> { unimplemented!() }
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<Pool>> { unimplemented!() }
    /// Replays into memory, writes nothing, shared lock; mutations answer Unsupported.
    pub fn open_read_only(path: &Path) -> Result<Arc<Pool>> { unimplemented!() }
    /// progress(done_blocks, all_blocks)
    pub fn check(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport> { unimplemented!() }
    /// Writes a text (or JSON lines) description of WHAT: superblock | catalog | log | segments | volume:NAME | map:NAME
    pub fn dump(path: &Path, what: &str, json: bool, out: &mut dyn std::io::Write) -> Result<()> { unimplemented!() }
    pub fn recovery(&self) -> Recovery { unimplemented!() }
    pub fn info(&self) -> PoolInfo { unimplemented!() }
    pub fn volumes(&self) -> Vec<VolumeInfo> { unimplemented!() }
    pub fn volume(&self, name: &str) -> Result<VolumeInfo> { unimplemented!() }
    pub fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>> { unimplemented!() }
    /// `name` may be `latest`.
    pub fn snapshot(&self, volume: &str, name: &str) -> Result<SnapshotInfo> { unimplemented!() }
    pub fn create_volume(&self, name: &str, size_bytes: u64, labels: Labels) -> Result<VolumeInfo> { unimplemented!() }
    pub fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo> { unimplemented!() }
    pub fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<VolumeInfo> { unimplemented!() }
    /// Busy while an open handle (open_volume) exists or it is marked attached.
    pub fn delete_volume(&self, name: &str) -> Result<()> { unimplemented!() }
    /// Remembers durably that the volume is to be attached at start.
    pub fn set_attached(&self, name: &str, attached: bool) -> Result<()> { unimplemented!() }
    /// All at one consistent point; durable when it returns.
    pub fn create_snapshots(&self, specs: &[SnapshotSpec], labels: Labels) -> Result<Vec<SnapshotInfo>> { unimplemented!() }
    pub fn delete_snapshot(&self, volume: &str, name: &str) -> Result<()> { unimplemented!() }
    pub fn clone_snapshot(&self, volume: &str, name: &str, new: &str, labels: Labels) -> Result<VolumeInfo> { unimplemented!() }
    /// Open handles of the volume go on and see the new content (callers drop caches above).
    pub fn rollback(&self, volume: &str, name: &str) -> Result<VolumeInfo> { unimplemented!() }
    /// All callers of one volume share one handle.
    pub fn open_volume(&self, name: &str) -> Result<Arc<Volume>> { unimplemented!() }
    pub fn open_snapshot(&self, volume: &str, name: &str) -> Result<Arc<Snapshot>> { unimplemented!() }
    /// Versions whose deletion is not finished.
    pub fn pending_deletions(&self) -> u64 { unimplemented!() }
    /// Waits until pending deletions are done.
    pub fn settle(&self) -> Result<()> { unimplemented!() }
    pub fn flush(&self) -> Result<()> { unimplemented!() }
    /// Flush, checkpoint, mark clean. Later operations answer Poisoned.
    pub fn close(&self) -> Result<()> { unimplemented!() }
}

impl Volume {
    pub fn id(&self) -> u64 { unimplemented!() }
    pub fn size_bytes(&self) -> u64 { unimplemented!() }
    /// Any offset and length within the size; fastest when offset, length and the buffer's address are multiples of 4096.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> { unimplemented!() }
    /// Survives the death of the process when it returns; survives power loss after flush, or with `fua`.
    pub fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<()> { unimplemented!() }
    pub fn flush(&self) -> Result<()> { unimplemented!() }
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> { unimplemented!() }
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> { unimplemented!() }
    /// The next mapped byte range at or after `offset`.
    pub fn next_data(&self, offset: u64) -> Result<Option<std::ops::Range<u64>>> { unimplemented!() }
}

impl Snapshot {
    pub fn id(&self) -> u64 { unimplemented!() }
    pub fn size_bytes(&self) -> u64 { unimplemented!() }
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> { unimplemented!() }
    pub fn next_data(&self, offset: u64) -> Result<Option<std::ops::Range<u64>>> { unimplemented!() }
    /// (physical block, birth epoch): equal identities hold equal bytes. None: a hole, or not known.
    pub fn identity(&self, offset: u64) -> Result<Option<(u64, u64)>> { unimplemented!() }
}
