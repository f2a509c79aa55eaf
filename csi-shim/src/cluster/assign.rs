//! Which node sees to a snapshot: the label that Kubernetes' sidecars on the nodes go by, where nothing else sets it.
//!
//! The snapshot-controller labels single snapshots only. Groups, their members, and snapshots that were there before would
//! be seen by no sidecar, neither when they are to be made nor when they are to go.
//!
//! A node's sidecar also sees only those classes of groups that are labelled for it, and a label has one value. So the class
//! goes round: it is labelled for the node of one group until that group is made, then for the node of the next.

use super::Cluster;
use super::error::{Error, unless_absent};
use super::gone::release;
use super::objects::{self, GroupContent};
use super::queue::{Next, Queue};
use crate::labels::MANAGED_BY;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A node that no volume or snapshot has told of yet may be told of soon.
const UNKNOWN: Duration = Duration::from_secs(2);
/// How long a class stays with a node whose group is not made.
const TURN: Duration = Duration::from_secs(10);
/// A sidecar hears of the class and of the group by different ways.
const HEARD: Duration = Duration::from_millis(300);

/// Labels what has no label.
pub struct Assign<'a> {
    cluster: &'a Cluster,
    contents: Queue<String>,
    groups: Queue<String>,
}

impl<'a> Assign<'a> {
    /// With nothing to do yet.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, contents: Queue::default(), groups: Queue::default() }
    }

    /// A snapshot without the label.
    pub fn content(&self, name: String) {
        self.contents.add(name);
    }

    /// A group, as it is now.
    pub fn group(&self, group: &GroupContent) {
        if objects::labelled_for(group).is_none() || objects::is_to_be_made(group) {
            self.groups.add(group.name_any());
        }
    }

    /// For ever.
    pub async fn run(&self) {
        let figures = &self.cluster.figures;
        tokio::join!(
            self.contents.work("snapshots", figures, async |name| self.assign_content(name).await),
            self.groups.work("groups", figures, async |name| self.assign_group(name).await),
        );
    }

    async fn assign_content(&self, name: &str) -> Result<Next, Error> {
        let contents = objects::contents(&self.cluster.client);
        let read = Error::of("read a VolumeSnapshotContent");
        let Some(content) = contents.get_opt(name).await.map_err(read)? else { return Ok(Next::Done) };
        if objects::labelled_for(&content).is_some() {
            return Ok(Next::Done);
        }
        let Some(node) = objects::handle(&content).and_then(|handle| self.cluster.places.of(handle)) else {
            return Ok(Next::After(UNKNOWN));
        };
        label(&contents, &content, &node).await?;
        tracing::info!(content = name, node, "labelled");
        Ok(Next::Done)
    }

    async fn assign_group(&self, name: &str) -> Result<Next, Error> {
        let groups = objects::group_contents(&self.cluster.client);
        let read = || Error::of("read a VolumeGroupSnapshotContent");
        let Some(group) = groups.get_opt(name).await.map_err(read())? else { return Ok(Next::Done) };
        let labelled = objects::labelled_for(&group).map(str::to_owned);
        let is_to_go = group.metadata.deletion_timestamp.is_some();
        if labelled.is_none() && is_to_go && objects::group_handle(&group).is_none() {
            // No sidecar has ever seen it: there is nothing of it on any node, and nobody else lets it go.
            return release(&groups, &group).await.map(|()| Next::Done);
        }
        if labelled.is_some() && !objects::is_to_be_made(&group) {
            return Ok(Next::Done);
        }
        let node = match labelled {
            Some(node) => node,
            None => match self.node_of_group(&group).await? {
                Some(node) => node,
                None => return Ok(Next::After(UNKNOWN)),
            },
        };
        if objects::is_to_be_made(&group)
            && let Some(class) = &group.spec.volume_group_snapshot_class_name
        {
            self.lend_class(class, &node).await?;
        }
        if objects::labelled_for(&group).is_none() {
            label(&groups, &group, &node).await?;
            tracing::info!(group = name, node, "labelled");
        }
        // One after the other: the class is this node's until the group is made.
        let turn = Instant::now();
        while turn.elapsed() < TURN {
            sleep(HEARD).await;
            let made = groups.get_opt(name).await.map_err(read())?;
            if made.is_none_or(|group| !objects::is_to_be_made(&group)) {
                return Ok(Next::Done);
            }
        }
        Ok(Next::After(TURN))
    }

    /// The node of all volumes of the group; None, told: there is no such node, or it is not known yet.
    async fn node_of_group(&self, group: &GroupContent) -> Result<Option<String>, Error> {
        let handles = match &group.spec.source.group_snapshot_handles {
            Some(existing) => std::slice::from_ref(&existing.volume_group_snapshot_handle),
            None => &group.spec.source.volume_handles[..],
        };
        let nodes: BTreeSet<_> = handles.iter().map(|handle| self.cluster.places.of(handle)).collect();
        let nodes: Option<Vec<String>> = nodes.into_iter().collect();
        match nodes.as_deref() {
            Some([node]) => Ok(Some(node.clone())),
            Some([]) | None => Ok(None),
            Some(nodes) => {
                let why = format!(
                    "the claims of a group must be on one node, these are on {}: make a group for each node",
                    nodes.join(" and ")
                );
                let about = group.spec.volume_group_snapshot_ref.clone();
                let about = about.unwrap_or_else(|| objects::reference(group));
                self.cluster.teller.warn(&about, "SeveralNodes", &why).await;
                Ok(None)
            }
        }
    }

    /// Lets the sidecar of that node see the class.
    async fn lend_class(&self, name: &str, node: &str) -> Result<(), Error> {
        let classes = objects::group_classes(&self.cluster.client);
        let read = Error::of("read a VolumeGroupSnapshotClass");
        // Without it the sidecar says what is missing.
        let Some(class) = classes.get_opt(name).await.map_err(read)? else { return Ok(()) };
        if objects::labelled_for(&class) != Some(node) {
            label(&classes, &class, node).await?;
            sleep(HEARD).await;
        }
        Ok(())
    }
}

/// Labels an object for a node.
async fn label<K>(api: &Api<K>, object: &K, node: &str) -> Result<(), Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let patch = json!({"metadata": {"labels": {MANAGED_BY: node}}});
    let patched = api.patch_metadata(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
    unless_absent(patched).map(drop).map_err(Error::of("label what a node sees to"))
}
