//! Snapshots by the API `volumesnapshot.external-storage.k8s.io/v1`, older than the one of CSI, for manifests and tools that
//! speak it.
//!
//! It is a second front to the same snapshots. For each of its VolumeSnapshots there is one of CSI, made and deleted with it
//! ([`snapshots`]); a claim of the promoter's class gets a volume that a claim of the driver's own class brought forth
//! ([`restore`]). So all that holds for the driver's snapshots holds for these.

mod conditions;
mod objects;
mod restore;
mod snapshots;

use super::Cluster;
use super::feeds::{config, every, every_with};
use super::objects::volume_snapshots_metadata;
use super::queue::{Key, Queue};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use kube::api::{Api, PartialObjectMeta};

/// Which snapshot a claim is to be made of.
const ANNOTATION: &str = "snapshot.alpha.kubernetes.io/snapshot";
/// The provisioner of classes for such claims.
const PROMOTER: &str = "volumesnapshot.external-storage.k8s.io/snapshot-promoter";
/// Who is to make a claim's volume, as Kubernetes says on the claim.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// On what is made for an object of this API: its kind.
const MADE_FOR: &str = "csi.cowslip.io/made-for";

/// For ever.
pub async fn run(cluster: &Cluster) {
    let client = &cluster.client;
    let (snapshots, claims) = (Queue::<Key>::default(), Queue::<Key>::default());
    let asked = objects::snapshots_metadata(client);
    let asked = every("VolumeSnapshot (legacy)", asked, |seen| snapshots.add(Key::of(&seen.metadata)));
    let made = volume_snapshots_metadata(client);
    let made = every_with("VolumeSnapshot", made, config().labels(&made_for(objects::SNAPSHOT)), |seen| {
        if let Some(owner) = Key::of_owner(&seen.metadata) {
            snapshots.add(owner);
        }
    });
    let all = Api::<PartialObjectMeta<PersistentVolumeClaim>>::all(client.clone());
    let all =
        every("PersistentVolumeClaim", all, |seen| wanted(seen).into_iter().for_each(|key| claims.add(key)));
    let cutting = snapshots::Snapshots::new(cluster);
    let restoring = restore::Restore::new(cluster);
    tokio::join!(
        asked,
        made,
        all,
        snapshots.work("legacy snapshots", &cluster.figures, async |key| cutting.look(key).await),
        claims.work("legacy restores", &cluster.figures, async |key| restoring.look(key).await),
    );
}

/// The claim to look at when this one was seen.
fn wanted(claim: &PartialObjectMeta<PersistentVolumeClaim>) -> Option<Key> {
    if claim.labels().contains_key(MADE_FOR) {
        return Key::of_owner(&claim.metadata);
    }
    let annotations = claim.annotations();
    let promoted = annotations.get(PROVISIONER).is_some_and(|by| by == PROMOTER);
    (promoted || annotations.contains_key(ANNOTATION)).then(|| Key::of(&claim.metadata))
}

/// Selects what is made for objects of that kind.
fn made_for(kind: &str) -> String {
    format!("{MADE_FOR}={kind}")
}

/// Makes an object go with the one that it is made for.
fn owned_by(api_version: &str, kind: &str, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    }
}
