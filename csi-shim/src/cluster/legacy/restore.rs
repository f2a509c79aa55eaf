//! A claim of the promoter's class: gets a volume that is made of a snapshot.
//!
//! The driver makes volumes for claims of its own class only. So there is a second claim of that class, with the snapshot of
//! CSI as its source and the node that has it already chosen. When it has its volume, the volume is written over to the claim
//! of the user, in one change, and the second claim, which has lost it, is deleted.
//!
//! Nothing of this can be left behind: the second claim has the user's claim as its owner and goes with it, its volume with it
//! too; and a volume that was written over to a claim which is gone meanwhile is deleted as any released volume is.

use super::super::error::{Error, unless_absent};
use super::super::objects::{contents, labelled_for, volume_of, volume_snapshots};
use super::super::queue::{Key, Next};
use super::super::{Cluster, Legacy};
use super::objects::{self, SNAPSHOT, Snapshot};
use super::snapshots::{created, cut_name};
use super::{ANNOTATION, MADE_FOR, PROMOTER, owned_by};
use crate::DRIVER_NAME;
use crate::labels::SELECTED_NODE;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Resource, ResourceExt};
use serde_json::json;
use std::time::Duration;

/// What is awaited may come without being told.
const SOON: Duration = Duration::from_secs(3);
/// Only a change that is told of helps.
const RARELY: Duration = Duration::from_secs(60);

/// Sees to claims of the promoter's class.
pub struct Restore<'a> {
    cluster: &'a Cluster,
}

/// A claim cannot have its volume yet: why, in one word and in a sentence.
struct Waits(&'static str, String);

impl<'a> Restore<'a> {
    /// Of that cluster.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster }
    }

    fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.cluster.client.clone(), namespace)
    }

    fn classes(&self) -> &Legacy {
        self.cluster.options.legacy.as_ref().expect("this runs only with the older API")
    }

    /// One step for one of them.
    pub async fn look(&self, key: &Key) -> Result<Next, Error> {
        let claims = self.claims(&key.namespace);
        let claim = claims.get_opt(&key.name).await.map_err(Error::of("read a claim"))?;
        let Some(claim) = claim.filter(|claim| claim.metadata.deletion_timestamp.is_none()) else {
            return Ok(Next::Done);
        };
        let Some(class) = self.promoter(&claim).await? else { return Ok(Next::Done) };
        let second = second_name(&claim);
        let found = claims.get_opt(&second).await.map_err(Error::of("read a claim"))?;
        if volume_of(&claim).is_some() {
            if phase(&claim) != Some("Bound") {
                return Ok(Next::After(RARELY));
            }
            if let Some(second) = found {
                self.delete(&claims, &second).await?;
                self.cluster
                    .teller
                    .note(&claim.object_ref(&()), "Restored", "the volume was made of the snapshot")
                    .await;
            }
            return Ok(Next::Done);
        }
        match found {
            None => match self.begin(&claims, key, &claim).await? {
                Ok(()) => Ok(Next::After(RARELY)),
                Err(waits) => self.wait(&claim, &waits).await,
            },
            Some(second) => self.hand_over(&claim, &second, &class).await,
        }
    }

    /// The claim's class, if volumes of it are made here.
    async fn promoter(&self, claim: &PersistentVolumeClaim) -> Result<Option<StorageClass>, Error> {
        let name =
            claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
        if name.is_empty() {
            return Ok(None);
        }
        let classes = Api::<StorageClass>::all(self.cluster.client.clone());
        let class = classes.get_opt(name).await.map_err(Error::of("read a StorageClass"))?;
        Ok(class.filter(|class| class.provisioner == PROMOTER))
    }

    async fn wait(&self, claim: &PersistentVolumeClaim, Waits(reason, why): &Waits) -> Result<Next, Error> {
        self.cluster.teller.warn(&claim.object_ref(&()), reason, why).await;
        Ok(Next::After(SOON))
    }

    /// Makes the second claim.
    async fn begin(
        &self,
        claims: &Api<PersistentVolumeClaim>,
        key: &Key,
        claim: &PersistentVolumeClaim,
    ) -> Result<Result<(), Waits>, Error> {
        let (snapshot, node) = match self.source(key, claim).await? {
            Ok(source) => source,
            Err(waits) => return Ok(Err(waits)),
        };
        let spec = claim.spec.clone().unwrap_or_default();
        let second = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": second_name(claim),
                "labels": {MADE_FOR: "PersistentVolumeClaim"},
                "annotations": {SELECTED_NODE: node},
                "ownerReferences": [owned_by("v1", "PersistentVolumeClaim", &claim.metadata)],
            },
            "spec": {
                "storageClassName": self.classes().storage_class,
                "accessModes": spec.access_modes,
                "volumeMode": spec.volume_mode,
                "resources": spec.resources,
                "dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": SNAPSHOT, "name": cut_name(&snapshot)},
            },
        });
        created(claims, second, "make the second claim of a restore").await?;
        Ok(Ok(()))
    }

    /// The snapshot that the claim names, and its node.
    async fn source(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
    ) -> Result<Result<(Snapshot, String), Waits>, Error> {
        let waits = |reason, why: String| Ok(Err(Waits(reason, why)));
        let Some(name) = claim.annotations().get(ANNOTATION) else {
            return waits(
                "NoSnapshotNamed",
                format!("the claim needs the annotation {ANNOTATION}: SNAPSHOT"),
            );
        };
        let client = &self.cluster.client;
        let snapshots = objects::snapshots(client, &key.namespace);
        let read = Error::of("read a VolumeSnapshot of the older API");
        let Some(snapshot) = snapshots.get_opt(name).await.map_err(read)? else {
            return waits(
                "SnapshotNotFound",
                format!("there is no snapshot {name} in namespace {}", key.namespace),
            );
        };
        if snapshot.metadata.deletion_timestamp.is_some() {
            return waits("SnapshotDeleted", format!("snapshot {name} is being deleted"));
        }
        let cuts = volume_snapshots(client, &key.namespace);
        let cut = cuts.get_opt(&cut_name(&snapshot)).await.map_err(Error::of("read a VolumeSnapshot"))?;
        let status = cut.and_then(|cut| cut.status).filter(|status| status.ready_to_use == Some(true));
        let Some(content) = status.and_then(|status| status.bound_volume_snapshot_content_name) else {
            return waits(
                "SnapshotNotReady",
                format!("snapshot {name} is not ready: its conditions say why"),
            );
        };
        let content = contents(client).get_opt(&content).await;
        let content = content.map_err(Error::of("read a VolumeSnapshotContent"))?;
        let Some(node) = content.as_ref().and_then(labelled_for).map(str::to_owned) else {
            return waits("SnapshotWithoutNode", format!("no node sees to snapshot {name} yet"));
        };
        let nodes = Api::<Node>::all(client.clone());
        if nodes.get_metadata_opt(&node).await.map_err(Error::of("look for a node"))?.is_none() {
            return waits(
                "NodeGone",
                format!("snapshot {name} is on node {node}, which has left the cluster"),
            );
        }
        Ok(Ok((snapshot, node)))
    }

    /// Writes the volume over to the claim, once the second claim has it.
    async fn hand_over(
        &self,
        claim: &PersistentVolumeClaim,
        second: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> Result<Next, Error> {
        let Some(name) = volume_of(second).filter(|_| phase(second) != Some("Pending")) else {
            if let Some(why) = self.failure(second).await? {
                return self.wait(claim, &Waits("ProvisioningFailed", why)).await;
            }
            return Ok(Next::After(SOON));
        };
        let volumes = Api::<PersistentVolume>::all(self.cluster.client.clone());
        let volume = volumes.get_opt(name).await.map_err(Error::of("read a volume"))?;
        let Some(volume) = volume.filter(|volume| volume.metadata.deletion_timestamp.is_none()) else {
            self.delete(&self.claims(&claim.namespace().unwrap_or_default()), second).await?;
            return Ok(Next::After(SOON));
        };
        let spec = volume.spec.clone().unwrap_or_default();
        let owner = spec.claim_ref.as_ref().and_then(|claim| claim.uid.clone());
        if owner == claim.uid() {
            // Kubernetes binds it now.
            return Ok(Next::After(SOON));
        }
        if owner != second.uid() || spec.csi.is_none_or(|csi| csi.driver != DRIVER_NAME) {
            let why = format!(
                "volume {name}, made for it, was given to somebody else: delete claim {}",
                second.name_any()
            );
            return self.wait(claim, &Waits("VolumeLost", why)).await;
        }
        // With the version that was read: a volume that is being released, or deleted, is not handed over.
        let patch = json!({
            "metadata": {"resourceVersion": volume.resource_version()},
            "spec": {
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": claim.namespace(),
                    "name": claim.name_any(),
                    "uid": claim.uid(),
                    "resourceVersion": null,
                },
                "storageClassName": class.name_any(),
                "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
                "mountOptions": class.mount_options,
            },
        });
        let patched = volumes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        unless_absent(patched).map_err(Error::of("hand a volume over to its claim"))?;
        tracing::info!(volume = name, claim = claim.name_any(), namespace = claim.namespace(), "handed over");
        Ok(Next::After(SOON))
    }

    /// Why the second claim has no volume yet, as its own events say.
    async fn failure(&self, second: &PersistentVolumeClaim) -> Result<Option<String>, Error> {
        let events =
            Api::<Event>::namespaced(self.cluster.client.clone(), &second.namespace().unwrap_or_default());
        let of = format!("involvedObject.uid={},type=Warning", second.uid().unwrap_or_default());
        let found =
            events.list(&ListParams::default().fields(&of)).await.map_err(Error::of("read events"))?;
        let at = |event: &Event| event.last_timestamp.as_ref().map(|time| time.0);
        let last = found
            .items
            .into_iter()
            .max_by_key(|event| at(event).or(event.metadata.creation_timestamp.as_ref().map(|time| time.0)));
        Ok(last.and_then(|event| event.message))
    }

    async fn delete(
        &self,
        claims: &Api<PersistentVolumeClaim>,
        second: &PersistentVolumeClaim,
    ) -> Result<(), Error> {
        let same = Preconditions { uid: second.uid(), ..Preconditions::default() };
        let how = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        let deleted = claims.delete(&second.name_any(), &how).await;
        unless_absent(deleted).map(drop).map_err(Error::of("delete the second claim of a restore"))
    }
}

/// The name of the second claim: it follows from the claim, so a repeated step finds it.
fn second_name(claim: &PersistentVolumeClaim) -> String {
    format!("restore-{}", claim.uid().unwrap_or_default())
}

fn phase(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.status.as_ref()?.phase.as_deref()
}
