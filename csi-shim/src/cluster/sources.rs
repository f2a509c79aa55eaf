//! Claims that are made of a snapshot or of another claim: on the node of their source.
//!
//! The scheduler does not know where a source lies. It puts the claim's pod on any node with room, whose driver refuses,
//! and may do so again and again. So the node is chosen here, by the annotation with which the scheduler itself does so: the
//! scheduler then keeps to it, and the volume is made at once, whether there is a pod already or not. That takes nothing
//! from anybody, for a copy can be in its source's pool only.

use super::Cluster;
use super::error::{Error, unless_absent};
use super::objects::{self, contents, volume_snapshots};
use super::places::node_of;
use super::queue::{Key, Next, Queue};
use crate::DRIVER_NAME;
use crate::labels::SELECTED_NODE;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// A source that is being made is there soon.
const SOON: Duration = Duration::from_secs(2);
/// A source, or a node, that is not there may come.
const LATER: Duration = Duration::from_secs(10);
/// A node that gave a claim back, because its pool is full, is not asked again before that.
const REST: Duration = Duration::from_secs(10);

/// Chooses the nodes of such claims.
pub struct Sources<'a> {
    cluster: &'a Cluster,
    queue: Queue<Key>,
    /// When a node was chosen for a claim, by the claim's uid; what is older than [`REST`] is forgotten.
    chosen: Mutex<HashMap<String, Instant>>,
}

/// What a claim is made of, by its name in the claim's namespace.
#[derive(Debug, PartialEq, Eq)]
enum Source<'a> {
    Snapshot(&'a str),
    Claim(&'a str),
}

/// What is known of a source.
enum Place {
    /// It is on that node.
    On(String),
    /// It is not there, or it is of another driver.
    Nowhere,
    /// It is being made.
    Unknown,
}

impl<'a> Sources<'a> {
    /// With nothing to do yet.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, queue: Queue::default(), chosen: Mutex::default() }
    }

    /// A claim, as it is now.
    pub fn seen(&self, claim: &PersistentVolumeClaim) {
        if source_of(claim).is_some() {
            self.queue.add(Key::of(&claim.metadata));
        }
    }

    /// For ever.
    pub async fn run(&self) {
        self.queue.work("sources", &self.cluster.figures, async |key| self.look(key).await).await;
    }

    async fn look(&self, key: &Key) -> Result<Next, Error> {
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.cluster.client.clone(), &key.namespace);
        let claim = claims.get_opt(&key.name).await.map_err(Error::of("read a claim"))?;
        let Some((claim, source)) = claim.as_ref().and_then(|claim| Some((claim, source_of(claim)?))) else {
            return Ok(Next::Done);
        };
        if !self.is_ours(claim).await? {
            return Ok(Next::Done);
        }
        let node = match self.place(&key.namespace, &source).await? {
            Place::On(node) => node,
            Place::Nowhere => return Ok(Next::After(LATER)),
            Place::Unknown => return Ok(Next::After(SOON)),
        };
        if claim.annotations().get(SELECTED_NODE) == Some(&node) {
            return Ok(Next::Done);
        }
        let uid = claim.uid().unwrap_or_default();
        if let Some(rest) = self.rest(&uid) {
            return Ok(Next::After(rest));
        }
        let about = claim.object_ref(&());
        let nodes = Api::<Node>::all(self.cluster.client.clone());
        if nodes.get_metadata_opt(&node).await.map_err(Error::of("look for a node"))?.is_none() {
            let why = format!("its source is on node {node}, which has left the cluster");
            self.cluster.teller.warn(&about, "NodeGone", &why).await;
            return Ok(Next::After(LATER));
        }
        // With the version that was read: what the scheduler or the node's provisioner has changed meanwhile is looked at anew.
        let version = claim.resource_version();
        let patch = json!({"metadata": {"resourceVersion": version, "annotations": {SELECTED_NODE: node}}});
        let patched = claims.patch_metadata(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        unless_absent(patched).map_err(Error::of("choose the node of a claim"))?;
        self.chosen.lock().insert(uid, Instant::now());
        let note = format!("the volume is made on node {node}, where its source is");
        self.cluster.teller.note(&about, "SourceNode", &note).await;
        Ok(Next::Done)
    }

    /// Whether this driver makes the claim's volume.
    async fn is_ours(&self, claim: &PersistentVolumeClaim) -> Result<bool, Error> {
        let Some(name) = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()) else {
            return Ok(false);
        };
        let classes = Api::<StorageClass>::all(self.cluster.client.clone());
        let class = classes.get_opt(name).await.map_err(Error::of("read a StorageClass"))?;
        Ok(class.is_some_and(|class| class.provisioner == DRIVER_NAME))
    }

    async fn place(&self, namespace: &str, source: &Source<'_>) -> Result<Place, Error> {
        match source {
            Source::Snapshot(name) => self.place_of_snapshot(namespace, name).await,
            Source::Claim(name) => self.place_of_claim(namespace, name).await,
        }
    }

    async fn place_of_snapshot(&self, namespace: &str, name: &str) -> Result<Place, Error> {
        let client = &self.cluster.client;
        let snapshot = volume_snapshots(client, namespace).get_opt(name).await;
        let Some(snapshot) = snapshot.map_err(Error::of("read a VolumeSnapshot"))? else {
            return Ok(Place::Nowhere);
        };
        // The node's provisioner would be asked in vain before, and then wait for its own next turn.
        let status = snapshot.status.filter(|status| status.ready_to_use == Some(true));
        let Some(content) = status.and_then(|status| status.bound_volume_snapshot_content_name) else {
            return Ok(Place::Unknown);
        };
        let content = contents(client).get_opt(&content).await;
        let content = content.map_err(Error::of("read a VolumeSnapshotContent"))?;
        let Some(content) = content.filter(|content| content.spec.driver == DRIVER_NAME) else {
            return Ok(Place::Nowhere);
        };
        let told = objects::labelled_for(&content).map(str::to_owned);
        let node = told.or_else(|| self.cluster.places.of(objects::handle(&content)?));
        Ok(node.map_or(Place::Unknown, Place::On))
    }

    async fn place_of_claim(&self, namespace: &str, name: &str) -> Result<Place, Error> {
        let client = &self.cluster.client;
        let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
        let Some(claim) = claims.get_opt(name).await.map_err(Error::of("read a claim"))? else {
            return Ok(Place::Nowhere);
        };
        let Some(volume) = objects::volume_of(&claim) else { return Ok(Place::Unknown) };
        let volume = Api::<PersistentVolume>::all(client.clone()).get_opt(volume).await;
        let volume = volume.map_err(Error::of("read a volume"))?;
        let node = volume.as_ref().and_then(node_of).map(str::to_owned);
        Ok(node.map_or(Place::Nowhere, Place::On))
    }

    /// How long a claim, for which a node was chosen just now, is left alone.
    fn rest(&self, uid: &str) -> Option<Duration> {
        let mut chosen = self.chosen.lock();
        chosen.retain(|_, at| at.elapsed() < REST);
        chosen.get(uid).map(|at| REST.saturating_sub(at.elapsed()))
    }
}

/// The source of a claim that has no volume yet.
fn source_of(claim: &PersistentVolumeClaim) -> Option<Source<'_>> {
    if claim.metadata.deletion_timestamp.is_some() || objects::volume_of(claim).is_some() {
        return None;
    }
    let source = claim.spec.as_ref()?.data_source.as_ref()?;
    match (source.api_group.as_deref().unwrap_or_default(), source.kind.as_str()) {
        (objects::SNAPSHOTS, "VolumeSnapshot") => Some(Source::Snapshot(&source.name)),
        ("", "PersistentVolumeClaim") => Some(Source::Claim(&source.name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: &serde_json::Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": spec})).unwrap()
    }

    #[test]
    fn claims_without_a_volume_have_their_source_looked_for() {
        let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        let copied = json!({"kind": "PersistentVolumeClaim", "name": "p"});
        let foreign = json!({"apiGroup": "example.com", "kind": "PersistentVolumeClaim", "name": "p"});
        assert_eq!(source_of(&claim(&json!({"dataSource": snapshot}))), Some(Source::Snapshot("s")));
        assert_eq!(source_of(&claim(&json!({"dataSource": copied}))), Some(Source::Claim("p")));
        assert_eq!(source_of(&claim(&json!({"dataSource": foreign}))), None);
        assert_eq!(source_of(&claim(&json!({}))), None);
        assert_eq!(source_of(&claim(&json!({"dataSource": copied, "volumeName": "v"}))), None);
    }
}
