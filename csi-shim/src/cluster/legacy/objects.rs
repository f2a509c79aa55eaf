//! The kinds of the older API.

use kube::Client;
use kube::api::{Api, ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::core::Object;
use serde::{Deserialize, Serialize};

/// The group, and with its version.
const GROUP: &str = "volumesnapshot.external-storage.k8s.io";
pub const API_VERSION: &str = "volumesnapshot.external-storage.k8s.io/v1";
pub const SNAPSHOT: &str = "VolumeSnapshot";
pub const DATA: &str = "VolumeSnapshotData";

/// A snapshot as its user sees it.
pub type Snapshot = Object<SnapshotSpec, SnapshotStatus>;
/// Where a snapshot is.
pub type Data = Object<DataSpec, DataStatus>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSpec {
    pub persistent_volume_claim_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_data_name: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    /// `True` or `False`.
    pub status: String,
    pub last_transition_time: Option<String>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataSpec {
    pub volume_snapshot_ref: Reference,
    pub persistent_volume_ref: Reference,
    pub openebs_volume: Source,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// An object by its kind and its name; `NAMESPACE/NAME` where it has a namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reference {
    pub kind: String,
    pub name: String,
}

/// The snapshot itself: its id, and the size of its volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    pub snapshot_id: String,
    pub capacity: String,
}

/// VolumeSnapshots of a namespace.
pub fn snapshots(client: &Client, namespace: &str) -> Api<Snapshot> {
    Api::namespaced_with(client.clone(), namespace, &snapshot_kind())
}

/// The metadata of all VolumeSnapshots.
pub fn snapshots_metadata(client: &Client) -> Api<PartialObjectMeta<Snapshot>> {
    Api::all_with(client.clone(), &snapshot_kind())
}

fn snapshot_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", SNAPSHOT), "volumesnapshots")
}

/// The kind of VolumeSnapshotData.
pub fn data_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, "v1", DATA), "volumesnapshotdatas")
}

/// VolumeSnapshotDatas.
pub fn datas(client: &Client) -> Api<Data> {
    Api::all_with(client.clone(), &data_kind())
}
