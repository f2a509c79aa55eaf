//! The objects of Kubernetes that its own client library does not know, snapshots as CSI has them; and what is read of others.

use crate::labels::MANAGED_BY;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::core::Object;
use kube::{Client, ResourceExt};
use serde::{Deserialize, Serialize};

/// A snapshot as its user sees it.
pub type VolumeSnapshot = Object<serde_json::Value, SnapshotStatus>;
/// A snapshot as the driver sees it.
pub type Content = Object<ContentSpec, ContentStatus>;
/// A group of snapshots as the driver sees it.
pub type GroupContent = Object<GroupContentSpec, GroupContentStatus>;

/// What became of a snapshot.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    pub bound_volume_snapshot_content_name: Option<String>,
    pub creation_time: Option<String>,
    pub ready_to_use: Option<bool>,
    pub restore_size: Option<String>,
    pub error: Option<Failure>,
}

/// What went wrong last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Failure {
    pub message: Option<String>,
}

/// What a snapshot is to be, or is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentSpec {
    pub driver: String,
    #[serde(default)]
    pub source: ContentSource,
}

/// Of which volume, or which snapshot that was there before.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentSource {
    pub volume_handle: Option<String>,
    pub snapshot_handle: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContentStatus {
    pub snapshot_handle: Option<String>,
}

/// What a group of snapshots is to be, or is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupContentSpec {
    pub driver: String,
    pub volume_group_snapshot_class_name: Option<String>,
    pub volume_group_snapshot_ref: Option<ObjectReference>,
    #[serde(default)]
    pub source: GroupContentSource,
}

/// Of which volumes, or which group that was there before.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupContentSource {
    #[serde(default)]
    pub volume_handles: Vec<String>,
    pub group_snapshot_handles: Option<GroupHandles>,
}

/// A group that was there before.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupHandles {
    pub volume_group_snapshot_handle: String,
}

/// What became of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupContentStatus {
    pub volume_group_snapshot_handle: Option<String>,
}

/// A kind of the API, whether it is there or not.
fn kind(group: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
}

/// The group of snapshots.
pub const SNAPSHOTS: &str = "snapshot.storage.k8s.io";
const GROUPS: &str = "groupsnapshot.storage.k8s.io";

/// VolumeSnapshots of a namespace.
pub fn volume_snapshots(client: &Client, namespace: &str) -> Api<VolumeSnapshot> {
    Api::namespaced_with(client.clone(), namespace, &volume_snapshot_kind())
}

/// The metadata of all VolumeSnapshots.
pub fn volume_snapshots_metadata(client: &Client) -> Api<PartialObjectMeta<VolumeSnapshot>> {
    Api::all_with(client.clone(), &volume_snapshot_kind())
}

fn volume_snapshot_kind() -> ApiResource {
    kind(SNAPSHOTS, "VolumeSnapshot", "volumesnapshots")
}

/// VolumeSnapshotContents.
pub fn contents(client: &Client) -> Api<Content> {
    Api::all_with(client.clone(), &kind(SNAPSHOTS, "VolumeSnapshotContent", "volumesnapshotcontents"))
}

/// VolumeGroupSnapshotContents.
pub fn group_contents(client: &Client) -> Api<GroupContent> {
    let kind = kind(GROUPS, "VolumeGroupSnapshotContent", "volumegroupsnapshotcontents");
    Api::all_with(client.clone(), &kind)
}

/// VolumeGroupSnapshotClasses.
pub fn group_classes(client: &Client) -> Api<DynamicObject> {
    let kind = kind(GROUPS, "VolumeGroupSnapshotClass", "volumegroupsnapshotclasses");
    Api::all_with(client.clone(), &kind)
}

/// The node that an object is labelled for.
pub fn labelled_for<K: ResourceExt>(object: &K) -> Option<&str> {
    object.labels().get(MANAGED_BY).map(String::as_str)
}

/// An object to tell events of, also where its type does not say what it is.
pub fn reference<P: Clone, U: Clone>(object: &Object<P, U>) -> ObjectReference {
    let types = object.types.clone().unwrap_or_default();
    ObjectReference {
        api_version: Some(types.api_version),
        kind: Some(types.kind),
        name: object.metadata.name.clone(),
        namespace: object.metadata.namespace.clone(),
        uid: object.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The volume of a claim, as soon as it has one.
pub fn volume_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// The id of a snapshot, or of the volume that it is of: both are in one pool.
pub fn handle(content: &Content) -> Option<&str> {
    let made = content.status.as_ref().and_then(|status| status.snapshot_handle.as_deref());
    let source = &content.spec.source;
    made.or(source.snapshot_handle.as_deref()).or(source.volume_handle.as_deref())
}

/// The id of a group, as soon as it has one.
pub fn group_handle(group: &GroupContent) -> Option<&str> {
    let made = group.status.as_ref().and_then(|status| status.volume_group_snapshot_handle.as_deref());
    let before = group.spec.source.group_snapshot_handles.as_ref();
    made.or(before.map(|handles| handles.volume_group_snapshot_handle.as_str()))
}

/// Whether a group has yet to be made.
pub fn is_to_be_made(group: &GroupContent) -> bool {
    group_handle(group).is_none() && group.metadata.deletion_timestamp.is_none()
}
