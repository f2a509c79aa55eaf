//! What the pool tells about itself, its volumes and its snapshots. Plain data, no locks.

use std::collections::BTreeMap;

/// Labels: `key=value`, kept with a volume or snapshot.
pub type Labels = BTreeMap<String, String>;

/// Label of a volume whose blocks are never torn by a power cut: with the value `true` every overwrite goes to a
/// new block, as the first one after a snapshot does.
pub const ATOMIC_LABEL: &str = "cowslip.io/atomic";

/// How consistent the content of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// The file system was frozen for the cut: its journal is clean.
    Fs,
    /// As after a power cut at that instant.
    Crash,
    /// The volume was not attached.
    Detached,
}

impl Consistency {
    /// The word shown to users: `fs`, `crash` or `detached`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fs => "fs",
            Self::Crash => "crash",
            Self::Detached => "detached",
        }
    }
}

/// Whether the pool takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolState {
    /// Room is left.
    Ok,
    /// Little room is left: snapshots are refused.
    Low,
    /// No room: new allocations answer ENOSPC.
    Full,
    /// An I/O error on metadata: reads go on, writes answer EIO until the pool is opened again.
    Failed,
}

impl PoolState {
    /// The word shown to users: `ok`, `low`, `full` or `failed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Low => "low",
            Self::Full => "full",
            Self::Failed => "failed",
        }
    }
}

/// How the last open found the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Closed cleanly before.
    Clean,
    /// The host rebooted or lost power: everything flushed is there.
    PowerLoss,
    /// The agent died on a living host: everything acknowledged is there. Live devices go on.
    Resumed,
    /// The agent died on a living host and the ring with its unflushed records is gone:
    /// everything flushed is there, but live devices must be failed, never resumed.
    RingLost,
}

/// A pool at one moment.
#[derive(Debug, Clone)]
pub struct PoolInfo {
    /// Pool id, 32 hex digits.
    pub id: String,
    /// Path of the pool file or device.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes in use by data and metadata.
    pub used_bytes: u64,
    /// Bytes that new data can take.
    pub free_bytes: u64,
    /// State.
    pub state: PoolState,
    /// Number of opens since the pool was made.
    pub generation: u64,
    /// How unflushed records are kept: `ring` or `write-through`, with the reason.
    pub ring: String,
    /// What a thread with a queue of its own can use: `io_uring`, or `positioned I/O` with the reason. Everybody else
    /// (FUSE + loop, the checkpointer) uses positioned I/O.
    pub io: &'static str,
    /// Bytes that have a checksum: what snapshots hold.
    pub sealed_bytes: u64,
}

/// A volume at one moment.
#[derive(Debug, Clone)]
pub struct VolumeInfo {
    /// Name.
    pub name: String,
    /// Stable id, never reused in a pool.
    pub id: u64,
    /// Size of the device in bytes.
    pub size_bytes: u64,
    /// Bytes mapped by the volume, shared ones included.
    pub used_bytes: u64,
    /// Bytes that deleting the volume would free now.
    pub exclusive_bytes: u64,
    /// The snapshot it was cloned from or rolled back to, as `VOL@SNAP`, while that exists.
    pub origin: Option<String>,
    /// Creation time, seconds since the epoch, UTC.
    pub created_at: i64,
    /// Whether the agent is to attach it at start.
    pub attached: bool,
    /// Names of its snapshots, oldest first.
    pub snapshots: Vec<String>,
    /// Labels.
    pub labels: Labels,
}

/// A snapshot at one moment.
#[derive(Debug, Clone)]
pub struct SnapshotInfo {
    /// Name of the volume it was taken of (which may have been deleted since).
    pub volume: String,
    /// Id of that volume.
    pub volume_id: u64,
    /// Name.
    pub name: String,
    /// Stable id, never reused in a pool.
    pub id: u64,
    /// Size of the device in bytes at the cut.
    pub size_bytes: u64,
    /// Bytes that deleting the snapshot would free now.
    pub exclusive_bytes: u64,
    /// Creation time, seconds since the epoch, UTC.
    pub created_at: i64,
    /// Consistency level.
    pub consistency: Consistency,
    /// Names of the volumes cloned from it (or rolled back to it).
    pub clones: Vec<String>,
    /// Labels.
    pub labels: Labels,
}

/// A volume by its name: a live one, or a deleted one of which snapshots are left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeBrief {
    /// Name.
    pub name: String,
    /// Stable id, never reused in a pool.
    pub id: u64,
}

/// A snapshot without what takes counting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotBrief {
    /// Name.
    pub name: String,
    /// Stable id, never reused in a pool, growing with time.
    pub id: u64,
    /// Creation time, seconds since the epoch, UTC.
    pub created_at: i64,
    /// Size of the device in bytes at the cut.
    pub size_bytes: u64,
}

/// A snapshot to take.
#[derive(Debug, Clone)]
pub struct SnapshotSpec {
    /// Volume name.
    pub volume: String,
    /// Snapshot name.
    pub name: String,
    /// Consistency level that the caller arranged.
    pub consistency: Consistency,
}
