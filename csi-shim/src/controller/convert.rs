//! From what the agent tells to what CSI tells.

use crate::agent::Connection;
use crate::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use crate::csi::{self, VolumeContentSource};
use crate::{TOPOLOGY_KEY, labels};
use std::collections::HashMap;

/// A number of bytes. The pool's own limits lie far below the largest.
pub(super) fn bytes(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Seconds since the epoch as a time stamp.
pub(crate) fn timestamp(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos: 0 }
}

/// The topology of whatever is on `node`.
pub(super) fn topology(node: &str) -> csi::Topology {
    csi::Topology { segments: HashMap::from([(TOPOLOGY_KEY.to_owned(), node.to_owned())]) }
}

/// The source of a volume as its label has it.
pub(super) fn source_label(source: &Type) -> String {
    match source {
        Type::Snapshot(source) => format!("snapshot {}", source.snapshot_id),
        Type::Volume(source) => format!("volume {}", source.volume_id),
    }
}

fn source_of(label: &str) -> Option<VolumeContentSource> {
    let (kind, id) = label.split_once(' ')?;
    let id = id.to_owned();
    let source = match kind {
        "snapshot" => Type::Snapshot(SnapshotSource { snapshot_id: id }),
        "volume" => Type::Volume(VolumeSource { volume_id: id }),
        _ => return None,
    };
    Some(VolumeContentSource { r#type: Some(source) })
}

/// A volume of this node.
pub(super) fn volume(agent: &Connection, volume: &api::v1::Volume, node: &str) -> csi::Volume {
    csi::Volume {
        capacity_bytes: bytes(volume.size_bytes),
        volume_id: agent.volume_id(volume.id),
        volume_context: HashMap::new(),
        content_source: volume.labels.get(labels::SOURCE).and_then(|label| source_of(label)),
        accessible_topology: vec![topology(node)],
    }
}

/// The id of the group that a snapshot belongs to.
pub fn group_id_of(snapshot: &api::v1::Snapshot) -> Option<&str> {
    snapshot.labels.get(labels::GROUP).map(String::as_str)
}

/// A snapshot of this node. It can be used at once.
pub(crate) fn snapshot(agent: &Connection, snapshot: &api::v1::Snapshot) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: bytes(snapshot.size_bytes),
        snapshot_id: agent.snapshot_id(snapshot.id),
        source_volume_id: agent.volume_id(snapshot.volume_id),
        creation_time: Some(timestamp(snapshot.created_at)),
        ready_to_use: true,
        group_snapshot_id: group_id_of(snapshot).unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_comes_back_from_its_label() {
        for source in [
            Type::Snapshot(SnapshotSource { snapshot_id: "v1:a:b".into() }),
            Type::Volume(VolumeSource { volume_id: "v1:a:c".into() }),
        ] {
            assert_eq!(source_of(&source_label(&source)).and_then(|s| s.r#type), Some(source));
        }
        assert_eq!(source_of("tape 1"), None);
    }
}
