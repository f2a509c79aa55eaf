//! Where a [`super::SnapshotTree`] learns of volumes and snapshots.

use crate::{BlockRead, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A volume, or the name under which snapshots of a deleted one are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Name: the directory.
    pub name: String,
    /// Stable id, unique among volumes, below 2⁶².
    pub id: u64,
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    /// Name: the directory.
    pub name: String,
    /// Stable id, unique among the snapshots of all volumes, growing with time, below 2⁶².
    pub id: u64,
    /// Creation time, seconds since the epoch, UTC.
    pub created_at: i64,
}

/// The volumes and snapshots that there are at this moment. Asked often: answers come from memory.
pub trait SnapshotProvider: Send + Sync {
    /// All volumes.
    fn volumes(&self) -> Vec<VolumeEntry>;
    /// The snapshots of the volume called `volume`; none if there is no such volume.
    fn snapshots(&self, volume: &str) -> Vec<SnapshotEntry>;
    /// One snapshot by its name.
    fn named(&self, volume: &str, snapshot: &str) -> Option<SnapshotEntry> {
        self.snapshots(volume).into_iter().find(|entry| entry.name == snapshot)
    }
    /// One snapshot by its id.
    fn with_id(&self, volume: &str, id: u64) -> Option<SnapshotEntry> {
        self.snapshots(volume).into_iter().find(|entry| entry.id == id)
    }
    /// Opens a snapshot, both by name.
    fn open(&self, volume: &str, snapshot: &str) -> Result<Arc<dyn BlockRead>>;
}
