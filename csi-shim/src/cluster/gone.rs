//! Objects that are to go, and whose node is gone: nobody is left who would let them go.
//!
//! A node that was removed from the cluster takes its volumes and snapshots along. What Kubernetes keeps of them waits for
//! ever for the sidecars of that node, and holds up whoever deletes it: a namespace, for example. Here it is let go. Only
//! what is being deleted, and only when the node has been missing for a while without a break: one that is merely switched
//! off stays in the cluster, and one that comes back in time sees to its objects itself.

use super::Cluster;
use super::error::{Error, unless_absent};
use super::objects::{self, handle};
use super::places::node_of;
use super::queue::{Next, Queue};
use k8s_openapi::api::core::v1::{Node, ObjectReference, PersistentVolume};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::Instant;

/// How often a node is looked for, while it is there and while it is not.
const PRESENT: Duration = Duration::from_secs(30);
const ABSENT: Duration = Duration::from_secs(5);

/// The finalizers by which the sidecars of the node hold an object.
const HOLDS: [&str; 3] = [
    "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection",
    "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection",
    "external-provisioner.volume.kubernetes.io/finalizer",
];

/// What may have to be let go, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Thing {
    /// A PersistentVolume.
    Volume(String),
    /// A VolumeSnapshotContent.
    Snapshot(String),
    /// A VolumeGroupSnapshotContent.
    Group(String),
}

/// Lets objects of nodes go that are gone.
pub struct Gone<'a> {
    cluster: &'a Cluster,
    queue: Queue<Thing>,
    missing: Mutex<HashMap<String, Missing>>,
}

/// A node that is not in the cluster: the first and the last time that was seen, without a break.
struct Missing {
    since: Instant,
    last: Instant,
}

impl Missing {
    /// For how long it is missing, seen to be so again now.
    fn again(&mut self, now: Instant) -> Duration {
        if now - self.last > 2 * PRESENT {
            self.since = now;
        }
        self.last = now;
        now - self.since
    }
}

/// Whether a volume would be deleted by its node.
pub fn is_to_go(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let released = matches!(phase, Some("Released" | "Failed")) && policy == Some("Delete");
    released || volume.metadata.deletion_timestamp.is_some()
}

impl<'a> Gone<'a> {
    /// With nothing to do yet.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, queue: Queue::default(), missing: Mutex::default() }
    }

    /// An object, which is to go or is not.
    pub fn seen(&self, thing: Thing, is_to_go: bool) {
        if is_to_go {
            self.queue.add(thing);
        }
    }

    /// For ever.
    pub async fn run(&self) {
        self.queue.work("gone", &self.cluster.figures, async |thing| self.look(thing).await).await;
    }

    async fn look(&self, thing: &Thing) -> Result<Next, Error> {
        let client = &self.cluster.client;
        let read = Error::of("read what is being deleted");
        match thing {
            Thing::Volume(name) => {
                let volumes = Api::<PersistentVolume>::all(client.clone());
                let Some(volume) = volumes.get_opt(name).await.map_err(read)? else { return Ok(Next::Done) };
                let about = volume.object_ref(&());
                let node = node_of(&volume).map(str::to_owned);
                self.free(&volumes, &volume, &about, is_to_go(&volume), node).await
            }
            Thing::Snapshot(name) => {
                let contents = objects::contents(client);
                let Some(content) = contents.get_opt(name).await.map_err(read)? else {
                    return Ok(Next::Done);
                };
                let node = self.node(objects::labelled_for(&content), handle(&content));
                let to_go = content.metadata.deletion_timestamp.is_some();
                self.free(&contents, &content, &objects::reference(&content), to_go, node).await
            }
            Thing::Group(name) => {
                let groups = objects::group_contents(client);
                let Some(group) = groups.get_opt(name).await.map_err(read)? else { return Ok(Next::Done) };
                let first = group.spec.source.volume_handles.first().map(String::as_str);
                let node = self.node(objects::labelled_for(&group), objects::group_handle(&group).or(first));
                let to_go = group.metadata.deletion_timestamp.is_some();
                self.free(&groups, &group, &objects::reference(&group), to_go, node).await
            }
        }
    }

    fn node(&self, label: Option<&str>, id: Option<&str>) -> Option<String> {
        label.map(str::to_owned).or_else(|| self.cluster.places.of(id?))
    }

    /// Lets the object go if it is to go and its node has been gone for long enough.
    async fn free<K>(
        &self,
        api: &Api<K>,
        object: &K,
        about: &ObjectReference,
        is_to_go: bool,
        node: Option<String>,
    ) -> Result<Next, Error>
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        let Some(node) = node.filter(|_| is_to_go) else { return Ok(Next::Done) };
        let nodes = Api::<Node>::all(self.cluster.client.clone());
        let found = nodes.get_metadata_opt(&node).await.map_err(Error::of("look for a node"))?;
        if let Some(wait) = self.wait(&node, found.is_some()) {
            return Ok(Next::After(wait));
        }
        release(api, object).await?;
        self.cluster.figures.freed();
        let note = format!(
            "node {node} has left the cluster: this is let go without it. Should the node come back with its pool, what is \
             left there can be deleted with `cowslip` on it"
        );
        self.cluster.teller.note(about, "NodeGone", &note).await;
        Ok(Next::Done)
    }

    /// How long to wait until the node is looked for again; None: it is gone for good.
    fn wait(&self, node: &str, found: bool) -> Option<Duration> {
        let mut missing = self.missing.lock();
        if found {
            missing.remove(node);
            return Some(PRESENT);
        }
        let now = Instant::now();
        let absent = missing.entry(node.to_owned()).or_insert(Missing { since: now, last: now }).again(now);
        let rest = self.cluster.options.gone_after.checked_sub(absent)?;
        Some(rest.min(ABSENT)).filter(|rest| !rest.is_zero())
    }
}

/// Deletes the object, and takes the hold of the node's sidecars off it.
pub async fn release<K>(api: &Api<K>, object: &K) -> Result<(), Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let name = object.name_any();
    if object.meta().deletion_timestamp.is_none() {
        let same = Preconditions { uid: object.uid(), resource_version: object.resource_version() };
        let how = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        unless_absent(api.delete(&name, &how).await)
            .map_err(Error::of("delete a volume of a node that is gone"))?;
    }
    let what = "let an object of a node go that is gone";
    let found = api.get_metadata_opt(&name).await.map_err(Error::of(what))?;
    let Some(object) = found.filter(|found| found.uid() == object.uid()) else { return Ok(()) };
    let others: Vec<_> = object.finalizers().iter().filter(|one| !HOLDS.contains(&one.as_str())).collect();
    let patch = json!({"metadata": {"finalizers": others, "resourceVersion": object.resource_version()}});
    let patched = api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
    unless_absent(patched).map(drop).map_err(Error::of(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_go_that_their_node_would_delete() {
        let volume = |phase: &str, policy: &str| -> PersistentVolume {
            let volume =
                json!({"spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}});
            serde_json::from_value(volume).unwrap()
        };
        assert!(is_to_go(&volume("Released", "Delete")));
        assert!(is_to_go(&volume("Failed", "Delete")));
        assert!(!is_to_go(&volume("Released", "Retain")));
        assert!(!is_to_go(&volume("Bound", "Delete")));
        assert!(!is_to_go(&PersistentVolume::default()));
    }

    #[test]
    fn a_node_that_was_not_looked_for_meanwhile_is_missing_anew() {
        let start = Instant::now();
        let mut missing = Missing { since: start, last: start };
        assert_eq!(missing.again(start + ABSENT), ABSENT);
        assert_eq!(missing.again(start + 2 * ABSENT), 2 * ABSENT);
        assert_eq!(missing.again(start + 2 * ABSENT + 3 * PRESENT), Duration::ZERO);
    }
}
