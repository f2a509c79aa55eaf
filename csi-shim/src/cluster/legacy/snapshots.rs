//! A VolumeSnapshot of the older API: cut, told of, deleted.
//!
//! Its snapshot of CSI has a name that follows from its uid, so a repeated step finds what an earlier one made. The finalizer
//! is there before anything is made, and goes when all of it is gone.

use super::super::error::{Error, unless_absent};
use super::super::objects::{VolumeSnapshot, contents, handle, reference, volume_snapshots};
use super::super::queue::Next;
use super::super::{Cluster, Legacy};
use super::conditions::Outcome;
use super::objects::{self, API_VERSION, DATA, DataSpec, DataStatus, Reference, SNAPSHOT, Snapshot, Source};
use super::{Key, MADE_FOR, owned_by};
use crate::DRIVER_NAME;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use std::time::Duration;

/// What was made for a snapshot is taken away before it goes.
const FINALIZER: &str = "csi.cowslip.io/legacy-snapshot";
/// VolumeSnapshotData stays as long as its VolumeSnapshot.
const DATA_FINALIZER: &str = "csi.cowslip.io/legacy-snapshot-data";

/// A claim that is not there, or has no volume, may come.
const CLAIM_AWAITED: Duration = Duration::from_secs(3);
/// Nothing is expected but what is told.
const RARELY: Duration = Duration::from_secs(60);

/// The name of the snapshot of CSI that is made for one of the older API.
pub fn cut_name(snapshot: &Snapshot) -> String {
    format!("legacy-{}", snapshot.metadata.uid.as_deref().unwrap_or_default())
}

/// Sees to the VolumeSnapshots of the older API.
pub struct Snapshots<'a> {
    cluster: &'a Cluster,
}

impl<'a> Snapshots<'a> {
    /// Of that cluster.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster }
    }

    /// One step for one of them.
    pub async fn look(&self, key: &Key) -> Result<Next, Error> {
        let api = objects::snapshots(&self.cluster.client, &key.namespace);
        let read = Error::of("read a VolumeSnapshot of the older API");
        let Some(snapshot) = api.get_opt(&key.name).await.map_err(read)? else { return Ok(Next::Done) };
        if snapshot.metadata.deletion_timestamp.is_some() {
            return self.delete(&api, key, &snapshot).await;
        }
        if !snapshot.finalizers().iter().any(|one| one == FINALIZER) {
            // Its change is told of, and is the next step.
            hold(&api, &snapshot, FINALIZER, true).await?;
            return Ok(Next::Done);
        }
        let (outcome, cut_at, next) = self.make(&api, key, &snapshot).await?;
        self.report(&api, &snapshot, outcome, cut_at).await?;
        Ok(next)
    }

    /// Goes on making it; how it is going, and when it was cut.
    async fn make(&self, api: &Api<Snapshot>, key: &Key, snapshot: &Snapshot) -> Result<Step, Error> {
        let cuts = volume_snapshots(&self.cluster.client, &key.namespace);
        let name = cut_name(snapshot);
        let Some(cut) = cuts.get_opt(&name).await.map_err(Error::of("read a VolumeSnapshot"))? else {
            if snapshot.status.as_ref().is_some_and(|status| status.creation_timestamp.is_some()) {
                let gone = format!(
                    "the snapshot {name}, which holds the data, was deleted by itself: delete this one too"
                );
                return Ok((Outcome::error("SnapshotLost", gone), None, Next::After(RARELY)));
            }
            return match self.claim_refused(key, snapshot).await? {
                Some(refused) => Ok((refused, None, Next::After(CLAIM_AWAITED))),
                None => {
                    self.cut(&cuts, snapshot).await?;
                    Ok((cutting(), None, Next::Done))
                }
            };
        };
        let status = cut.status.clone().unwrap_or_default();
        if status.ready_to_use != Some(true) {
            let failure = status.error.and_then(|error| error.message);
            let outcome = match failure {
                Some(why) => Outcome::error("SnapshotFailed", format!("{why}; it is tried again")),
                None => cutting(),
            };
            return Ok((outcome, None, Next::After(RARELY)));
        }
        if let Some(why) = self.bind(api, snapshot, &cut).await? {
            return Ok((Outcome::pending("Binding", why), None, Next::After(CLAIM_AWAITED)));
        }
        Ok((Outcome::ready(), status.creation_time, Next::Done))
    }

    /// Why no snapshot can be taken of the claim.
    async fn claim_refused(&self, key: &Key, snapshot: &Snapshot) -> Result<Option<Outcome>, Error> {
        let name = &snapshot.spec.persistent_volume_claim_name;
        if let Some(data) = &snapshot.spec.snapshot_data_name
            && *data != data_name(snapshot)
        {
            let why = format!(
                "snapshotDataName {data} is not this snapshot's: leave it out, it is written when the snapshot is taken"
            );
            return Ok(Some(Outcome::error("DataNotOurs", why)));
        }
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.cluster.client.clone(), &key.namespace);
        let Some(claim) = claims.get_opt(name).await.map_err(Error::of("read a claim"))? else {
            let why = format!("there is no claim {name} in namespace {}", key.namespace);
            return Ok(Some(Outcome::error("ClaimNotFound", why)));
        };
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let Some(volume) = volume.filter(|_| bound) else {
            let why = format!("claim {name} has no volume yet: it gets one when a pod uses it");
            return Ok(Some(Outcome::pending("ClaimNotBound", why)));
        };
        let volumes = Api::<PersistentVolume>::all(self.cluster.client.clone());
        let volume = volumes.get_opt(volume).await.map_err(Error::of("read a volume"))?;
        let csi = volume.and_then(|volume| volume.spec).and_then(|spec| spec.csi);
        if csi.as_ref().is_none_or(|csi| csi.driver != DRIVER_NAME) {
            let whose = csi.map_or("no CSI driver".to_owned(), |csi| csi.driver);
            let why = format!(
                "the volume of claim {name} is of {whose}; only those of {DRIVER_NAME} can be snapshotted here"
            );
            return Ok(Some(Outcome::error("VolumeNotOurs", why)));
        }
        Ok(None)
    }

    async fn cut(&self, cuts: &Api<VolumeSnapshot>, snapshot: &Snapshot) -> Result<(), Error> {
        let cut = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": SNAPSHOT,
            "metadata": {
                "name": cut_name(snapshot),
                "labels": {MADE_FOR: SNAPSHOT},
                "ownerReferences": [owned_by(API_VERSION, SNAPSHOT, &snapshot.metadata)],
            },
            "spec": {
                "volumeSnapshotClassName": self.classes().snapshot_class,
                "source": {"persistentVolumeClaimName": snapshot.spec.persistent_volume_claim_name},
            },
        });
        created(cuts, cut, "take a snapshot").await
    }

    fn classes(&self) -> &Legacy {
        self.cluster.options.legacy.as_ref().expect("this runs only with the older API")
    }

    /// Tells where the snapshot is; why that is not possible yet.
    async fn bind(
        &self,
        api: &Api<Snapshot>,
        snapshot: &Snapshot,
        cut: &VolumeSnapshot,
    ) -> Result<Option<&'static str>, Error> {
        let status = cut.status.clone().unwrap_or_default();
        let name = data_name(snapshot);
        let datas = objects::datas(&self.cluster.client);
        if datas.get_opt(&name).await.map_err(Error::of("read a VolumeSnapshotData"))?.is_none() {
            let content = status.bound_volume_snapshot_content_name.unwrap_or_default();
            let content = contents(&self.cluster.client).get_opt(&content).await;
            let content = content.map_err(Error::of("read a VolumeSnapshotContent"))?;
            let Some(id) = content.as_ref().and_then(handle) else {
                return Ok(Some("its content is not there yet"));
            };
            let capacity = status.restore_size.unwrap_or_default();
            let data = self.data(snapshot, id, &capacity, status.creation_time.as_deref()).await?;
            created(&datas, data, "make a VolumeSnapshotData").await?;
        }
        if snapshot.spec.snapshot_data_name.as_ref() != Some(&name) {
            let patch = json!({"spec": {"snapshotDataName": name}});
            let patched =
                api.patch(&snapshot.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            unless_absent(patched).map_err(Error::of("name the data of a VolumeSnapshot"))?;
        }
        Ok(None)
    }

    async fn data(
        &self,
        snapshot: &Snapshot,
        id: &str,
        capacity: &str,
        cut_at: Option<&str>,
    ) -> Result<serde_json::Value, Error> {
        let namespace = snapshot.namespace().unwrap_or_default();
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.cluster.client.clone(), &namespace);
        // Where the claim is gone meanwhile, so is the name of its volume.
        let claim = claims.get_opt(&snapshot.spec.persistent_volume_claim_name).await;
        let claim = claim.map_err(Error::of("read a claim"))?;
        let volume = claim.and_then(|claim| claim.spec).and_then(|spec| spec.volume_name);
        let spec = DataSpec {
            volume_snapshot_ref: Reference {
                kind: SNAPSHOT.to_owned(),
                name: format!("{namespace}/{}", snapshot.name_any()),
            },
            persistent_volume_ref: Reference {
                kind: "PersistentVolume".to_owned(),
                name: volume.unwrap_or_default(),
            },
            openebs_volume: Source { snapshot_id: id.to_owned(), capacity: capacity.to_owned() },
        };
        let ready = Outcome::ready().conditions(&[], &now());
        let status = DataStatus { creation_timestamp: cut_at.map(str::to_owned), conditions: ready };
        Ok(json!({
            "apiVersion": API_VERSION,
            "kind": DATA,
            "metadata": {"name": data_name(snapshot), "finalizers": [DATA_FINALIZER]},
            "spec": spec,
            "status": status,
        }))
    }

    /// Writes how it went where the user looks, if it has changed.
    async fn report(
        &self,
        api: &Api<Snapshot>,
        snapshot: &Snapshot,
        outcome: Outcome,
        cut_at: Option<String>,
    ) -> Result<(), Error> {
        let mut status = snapshot.status.clone().unwrap_or_default();
        status.conditions = outcome.conditions(&status.conditions, &now());
        status.creation_timestamp = status.creation_timestamp.or(cut_at);
        if snapshot.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let patch = json!({"status": status});
        let written =
            api.patch_status(&snapshot.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        unless_absent(written).map_err(Error::of("write the status of a VolumeSnapshot"))?;
        let about = reference(snapshot);
        match outcome.kind {
            "Error" => self.cluster.teller.warn(&about, outcome.reason, &outcome.message).await,
            _ => self.cluster.teller.note(&about, outcome.reason, &outcome.message).await,
        }
        Ok(())
    }

    /// Deletes what was made for it, then lets it go. What was made of it stays: volumes need no snapshot.
    async fn delete(&self, api: &Api<Snapshot>, key: &Key, snapshot: &Snapshot) -> Result<Next, Error> {
        if !snapshot.finalizers().iter().any(|one| one == FINALIZER) {
            return Ok(Next::Done);
        }
        let cuts = volume_snapshots(&self.cluster.client, &key.namespace);
        let name = cut_name(snapshot);
        let what = "delete the snapshot that holds the data";
        unless_absent(cuts.delete(&name, &DeleteParams::default()).await).map_err(Error::of(what))?;
        if let Some(cut) = cuts.get_opt(&name).await.map_err(Error::of(what))? {
            if let Some(why) = cut.status.and_then(|status| status.error).and_then(|error| error.message) {
                let failed = Outcome::error("DeletionFailed", format!("{why}; it is tried again"));
                self.report(api, snapshot, failed, None).await?;
            }
            // Its end is told of.
            return Ok(Next::After(RARELY));
        }
        let datas = objects::datas(&self.cluster.client);
        let what = "delete a VolumeSnapshotData";
        if let Some(data) = datas.get_opt(&data_name(snapshot)).await.map_err(Error::of(what))? {
            unless_absent(datas.delete(&data.name_any(), &DeleteParams::default()).await)
                .map_err(Error::of(what))?;
            let data = datas.get_opt(&data.name_any()).await.map_err(Error::of(what))?;
            if let Some(data) = data {
                hold(&datas, &data, DATA_FINALIZER, false).await?;
            }
        }
        hold(api, snapshot, FINALIZER, false).await?;
        Ok(Next::Done)
    }
}

/// How it goes, when the snapshot was cut if it was, and when to look again.
type Step = (Outcome, Option<String>, Next);

/// The time as Kubernetes writes it.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn cutting() -> Outcome {
    Outcome::pending("Cutting", "the snapshot is being taken")
}

/// The name of the data of a snapshot.
fn data_name(snapshot: &Snapshot) -> String {
    format!("k8s-volume-snapshot-{}", snapshot.metadata.uid.as_deref().unwrap_or_default())
}

/// Makes an object, unless an earlier attempt has.
pub async fn created<K>(api: &Api<K>, object: serde_json::Value, what: &'static str) -> Result<(), Error>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object: K =
        serde_json::from_value(object).map_err(kube::Error::SerdeError).map_err(Error::of(what))?;
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(Error::of(what)(error)),
    }
}

/// Puts a finalizer on an object, or takes it off; refused if the object has changed.
async fn hold<K>(api: &Api<K>, object: &K, finalizer: &str, held: bool) -> Result<(), Error>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut all: Vec<&str> =
        object.finalizers().iter().map(String::as_str).filter(|one| *one != finalizer).collect();
    if held {
        all.push(finalizer);
    }
    let patch = json!({"metadata": {"finalizers": all, "resourceVersion": object.resource_version()}});
    let patched = api.patch_metadata(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
    unless_absent(patched).map(drop).map_err(Error::of("hold an object, or let it go"))
}
