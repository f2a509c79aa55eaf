//! What the commands print, with the field names that scripts rely on. Made from the API's messages or from a
//! pool opened read only, so both look the same.

use super::{failure::Result, output::escape, times::rfc3339};
use serde::Serialize;
use std::collections::BTreeMap;

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Volume {
    pub name: String,
    pub id: u64,
    pub size_bytes: u64,
    /// Bytes mapped, shared ones included.
    pub used_bytes: u64,
    /// Bytes that deleting it would free now.
    pub exclusive_bytes: u64,
    pub origin: Option<String>,
    pub created_at: String,
    pub attached: bool,
    pub device: Option<String>,
    pub transport: Option<String>,
    /// Names, oldest first.
    pub snapshots: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// Why it has no device although it should have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attach_error: Option<String>,
}

impl From<api::v1::Volume> for Volume {
    fn from(volume: api::v1::Volume) -> Self {
        Self {
            name: volume.name,
            id: volume.id,
            size_bytes: volume.size_bytes,
            used_bytes: volume.used_bytes,
            exclusive_bytes: volume.exclusive_bytes,
            origin: volume.origin,
            created_at: rfc3339(volume.created_at, 0),
            attached: volume.attached,
            device: volume.device,
            transport: volume.transport,
            snapshots: volume.snapshots,
            labels: volume.labels.into_iter().collect(),
            attach_error: volume.attach_error,
        }
    }
}

impl From<store::VolumeInfo> for Volume {
    /// No agent holds the pool, so the volume has no device whatever it is marked for.
    fn from(volume: store::VolumeInfo) -> Self {
        Self {
            name: volume.name,
            id: volume.id,
            size_bytes: volume.size_bytes,
            used_bytes: volume.used_bytes,
            exclusive_bytes: volume.exclusive_bytes,
            origin: volume.origin,
            created_at: rfc3339(volume.created_at, 0),
            attached: false,
            device: None,
            transport: None,
            snapshots: volume.snapshots,
            labels: volume.labels,
            attach_error: None,
        }
    }
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    pub volume: String,
    pub name: String,
    pub id: u64,
    pub size_bytes: u64,
    /// Bytes that deleting it would free now.
    pub exclusive_bytes: u64,
    pub created_at: String,
    /// `fs`, `crash` or `detached`.
    pub consistency: String,
    pub clones: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// The word for a consistency level of the API.
pub fn consistency_word(level: api::v1::Consistency) -> &'static str {
    match level {
        api::v1::Consistency::Fs => store::Consistency::Fs.as_str(),
        api::v1::Consistency::Detached => store::Consistency::Detached.as_str(),
        api::v1::Consistency::Crash | api::v1::Consistency::Unspecified => store::Consistency::Crash.as_str(),
    }
}

impl From<api::v1::Snapshot> for Snapshot {
    fn from(snapshot: api::v1::Snapshot) -> Self {
        Self {
            consistency: consistency_word(snapshot.consistency()).to_owned(),
            volume: snapshot.volume,
            name: snapshot.name,
            id: snapshot.id,
            size_bytes: snapshot.size_bytes,
            exclusive_bytes: snapshot.exclusive_bytes,
            created_at: rfc3339(snapshot.created_at, 0),
            clones: snapshot.clones,
            labels: snapshot.labels.into_iter().collect(),
        }
    }
}

impl From<store::SnapshotInfo> for Snapshot {
    fn from(snapshot: store::SnapshotInfo) -> Self {
        Self {
            volume: snapshot.volume,
            name: snapshot.name,
            id: snapshot.id,
            size_bytes: snapshot.size_bytes,
            exclusive_bytes: snapshot.exclusive_bytes,
            created_at: rfc3339(snapshot.created_at, 0),
            consistency: snapshot.consistency.as_str().to_owned(),
            clones: snapshot.clones,
            labels: snapshot.labels,
        }
    }
}

/// The agent, its pool and what they hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Absent when the pool is read without an agent.
    pub agent: Option<Agent>,
    pub pool: Pool,
    pub volumes: u64,
    pub snapshots: u64,
    /// Volumes that have a device now.
    pub attached: u64,
    /// Volumes and snapshots whose space is still being freed.
    pub pending_deletions: u64,
    /// What needs attention.
    pub warnings: Vec<String>,
}

/// A running agent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agent {
    pub version: String,
    pub pid: u32,
    pub started_at: String,
    pub transport: String,
    pub transport_reason: String,
    pub socket: String,
    pub snapshots_dir: Option<String>,
    pub supervisor: String,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pool {
    pub path: String,
    pub id: String,
    pub size_bytes: u64,
    pub used_bytes: u64,
    pub free_bytes: u64,
    /// `ok`, `low`, `full` or `failed`.
    pub state: String,
    pub generation: u64,
    pub ring: String,
    /// How the pool was found when it was opened.
    pub recovery: Option<String>,
    /// Bytes that have a checksum: what snapshots hold.
    pub sealed_bytes: u64,
    /// Blocks of 4 KiB found damaged since the pool was opened.
    pub damaged_blocks: u64,
    /// End of the last complete scrub since the host booted.
    pub scrubbed_at: Option<String>,
    /// What puts aged volumes back in order does now.
    pub resequencing: Option<String>,
    /// Bytes put in order since the agent started.
    pub resequenced_bytes: u64,
}

impl From<api::v1::Status> for Status {
    fn from(status: api::v1::Status) -> Self {
        let pool = status.pool.unwrap_or_default();
        Self {
            agent: status.agent.map(|agent| Agent {
                version: agent.version,
                pid: agent.pid,
                started_at: rfc3339(agent.started_at, 0),
                transport: agent.transport,
                transport_reason: agent.transport_reason,
                socket: agent.socket,
                snapshots_dir: agent.snapshots_dir,
                supervisor: agent.supervisor,
            }),
            pool: Pool {
                path: pool.path,
                id: pool.id,
                size_bytes: pool.size_bytes,
                used_bytes: pool.used_bytes,
                free_bytes: pool.free_bytes,
                state: pool.state,
                generation: pool.generation,
                ring: pool.ring,
                recovery: Some(pool.recovery),
                sealed_bytes: pool.sealed_bytes,
                damaged_blocks: pool.damaged_blocks,
                scrubbed_at: pool.scrubbed_at.map(|at| rfc3339(at, 0)),
                resequencing: Some(pool.resequencing),
                resequenced_bytes: pool.resequenced_bytes,
            },
            volumes: status.volumes,
            snapshots: status.snapshots,
            attached: status.attached,
            pending_deletions: status.pending_deletions,
            warnings: status.warnings,
        }
    }
}

impl From<store::PoolInfo> for Pool {
    fn from(pool: store::PoolInfo) -> Self {
        Self {
            path: pool.path,
            id: pool.id,
            size_bytes: pool.size_bytes,
            used_bytes: pool.used_bytes,
            free_bytes: pool.free_bytes,
            state: pool.state.as_str().to_owned(),
            generation: pool.generation,
            ring: pool.ring,
            recovery: None,
            sealed_bytes: pool.sealed_bytes,
            damaged_blocks: 0,
            scrubbed_at: None,
            resequencing: None,
            resequenced_bytes: 0,
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    pub sequence: u64,
    pub time: String,
    /// `info`, `warning` or `error`.
    pub severity: &'static str,
    pub kind: String,
    pub volume: Option<String>,
    pub snapshot: Option<String>,
    pub message: String,
}

impl From<api::v1::Event> for Event {
    fn from(event: api::v1::Event) -> Self {
        use api::v1::event::Severity;
        let some = |text: String| if text.is_empty() { None } else { Some(text) };
        let nanoseconds = i32::try_from(event.time_ms.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
        Self {
            sequence: event.sequence,
            time: rfc3339(event.time_ms.div_euclid(1000), nanoseconds),
            severity: match event.severity() {
                Severity::Info => "info",
                Severity::Warning => "warning",
                Severity::Error => "error",
            },
            kind: event.kind,
            volume: some(event.volume),
            snapshot: some(event.snapshot),
            message: event.message,
        }
    }
}

/// A file inside a snapshot or image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileRow {
    /// Escaped where it is not UTF-8; then `path_base64` has the bytes.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Four octal digits.
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    pub nlink: u32,
    pub modified_at: String,
    /// Of a symbolic link.
    pub target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_base64: Option<String>,
    /// `MAJOR:MINOR` of a device node.
    pub rdev: Option<String>,
}

/// The word for a type of file.
pub fn kind_word(kind: fuse_view::FileKind) -> &'static str {
    use fuse_view::FileKind as Kind;
    match kind {
        Kind::File => "file",
        Kind::Dir => "dir",
        Kind::Symlink => "symlink",
        Kind::CharDev => "chardev",
        Kind::BlockDev => "blockdev",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

/// The letter of `ls -l` for a type of file.
pub fn kind_letter(kind: fuse_view::FileKind) -> char {
    use fuse_view::FileKind as Kind;
    match kind {
        Kind::File => '-',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::CharDev => 'c',
        Kind::BlockDev => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    }
}

/// Text of bytes; where they are not UTF-8, the escaped form and their base64.
pub fn text_and_base64(bytes: &[u8]) -> (String, Option<String>) {
    use base64::Engine as _;
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (escape(bytes), Some(base64::engine::general_purpose::STANDARD.encode(bytes))),
    }
}

impl FileRow {
    /// A row of `ls`.
    pub fn new(path: &[u8], attr: &fuse_view::Attr, target: Option<&[u8]>) -> Self {
        use fuse_view::FileKind as Kind;
        let (text, path_base64) = text_and_base64(path);
        let (target, target_base64) = target.map(text_and_base64).map_or((None, None), |(t, b)| (Some(t), b));
        let is_device = matches!(attr.kind, Kind::CharDev | Kind::BlockDev);
        Self {
            path: text,
            path_base64,
            kind: kind_word(attr.kind),
            mode: format!("{:04o}", attr.mode),
            uid: attr.uid,
            gid: attr.gid,
            size_bytes: attr.size,
            nlink: attr.nlink,
            modified_at: rfc3339(attr.mtime.seconds, i32::try_from(attr.mtime.nanoseconds).unwrap_or(0)),
            target,
            target_base64,
            rdev: is_device.then(|| format!("{}:{}", attr.rdev.0, attr.rdev.1)),
        }
    }
}

/// Serializes anything above; these types have no map keys or numbers that JSON cannot hold.
pub fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| super::failure::Failure::failed(format!("write JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_view::{Attr, FileKind, Timestamp};

    fn attr(kind: FileKind) -> Attr {
        Attr {
            ino: 12,
            kind,
            mode: 0o4755,
            uid: 1000,
            gid: 100,
            size: 5,
            blocks_512: 8,
            nlink: 1,
            rdev: (8, 1),
            atime: Timestamp::default(),
            mtime: Timestamp { seconds: -1, nanoseconds: 500_000_000 },
            ctime: Timestamp::default(),
            btime: None,
        }
    }

    #[test]
    fn a_file_has_the_documented_fields() {
        let row = FileRow::new(b"/etc/passwd", &attr(FileKind::File), None);
        assert_eq!(
            json(&row).unwrap(),
            r#"{"path":"/etc/passwd","type":"file","mode":"4755","uid":1000,"gid":100,"size_bytes":5,"nlink":1,"modified_at":"1969-12-31T23:59:59.5Z","target":null,"rdev":null}"#
        );
    }

    #[test]
    fn paths_that_are_not_text_carry_their_bytes() {
        let row = FileRow::new(b"/a\xff\n", &attr(FileKind::Symlink), Some(b"\x80"));
        let value: serde_json::Value = serde_json::from_str(&json(&row).unwrap()).unwrap();
        assert_eq!(value["path"], r"/a\xff\n");
        assert_eq!(value["path_base64"], "L2H/Cg==");
        assert_eq!(value["target"], r"\x80");
        assert_eq!(value["target_base64"], "gA==");
    }

    #[test]
    fn device_nodes_carry_their_numbers() {
        let row = FileRow::new(b"/dev/sda1", &attr(FileKind::BlockDev), None);
        assert_eq!(row.rdev.as_deref(), Some("8:1"));
    }

    #[test]
    fn an_event_has_milliseconds_and_nulls() {
        let event = Event::from(api::v1::Event {
            sequence: 7,
            time_ms: 1_700_000_000_250,
            severity: api::v1::event::Severity::Warning.into(),
            kind: "pool_low".into(),
            message: "little room is left".into(),
            ..Default::default()
        });
        assert_eq!(
            json(&event).unwrap(),
            r#"{"sequence":7,"time":"2023-11-14T22:13:20.25Z","severity":"warning","kind":"pool_low","volume":null,"snapshot":null,"message":"little room is left"}"#
        );
    }
}
