//! Groups of snapshots where snapshots are made on the nodes: each is made on its node, by one class for all of them.

use crate::cluster::{NODES, Namespace};
use crate::objects::{chosen, restored};
use serde_json::{Value, json};

const CLASS: &str = "cowslip-groups";

/// The class of all groups in these tests.
pub fn class() -> Value {
    json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotClass", "metadata": {"name": CLASS},
        "driver": "csi.cowslip.io", "deletionPolicy": "Delete",
    })
}

/// A group of the claims with that label.
pub fn group(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshot", "metadata": {"name": name},
        "spec": {"volumeGroupSnapshotClassName": CLASS, "source": {"selector": {"matchLabels": {"app": app}}}},
    })
}

/// The snapshots of a group of two claims that is ready: (claim, snapshot). The snapshot-controller says of a snapshot which group
/// it is of after it said that the group is ready.
#[track_caller]
pub fn two_members(ns: &Namespace, group: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |one: &Value| {
        (text(&one["spec"]["source"]["persistentVolumeClaimName"]), text(&one["metadata"]["name"]))
    };
    let mut members = Vec::new();
    ns.cluster.eventually("both snapshots know their group", || {
        let all = ns.get("volumesnapshots");
        let all = all["items"].as_array().expect("a list").iter();
        members = all.filter(|one| one["status"]["volumeGroupSnapshotName"] == group).map(of).collect();
        members.len() == 2
    });
    for (_, member) in &members {
        ns.wait(&format!("jsonpath={{.status.readyToUse}}=true volumesnapshot/{member}"));
    }
    members
}

#[test]
fn one_class_serves_all_nodes() {
    let Some(ns) = Namespace::new("groups") else { return };
    ns.apply(&class());
    for node in NODES {
        for n in [1, 2] {
            let mut claim = chosen(&format!("data-{node}-{n}"), node);
            claim["metadata"]["labels"] = json!({"app": format!("on-{node}"), "all": "yes"});
            ns.apply(&claim);
        }
    }
    // All at once, on both nodes.
    let groups: Vec<_> = NODES
        .into_iter()
        .flat_map(|node| [(node, format!("a-{node}")), (node, format!("b-{node}"))])
        .collect();
    for (node, name) in &groups {
        ns.apply(&group(name, &format!("on-{node}")));
    }
    for (node, name) in &groups {
        ns.wait(&format!("jsonpath={{.status.readyToUse}}=true volumegroupsnapshot/{name}"));
        for (_, member) in two_members(&ns, name) {
            let content = ns.cluster.get(&format!("volumesnapshotcontent {}", ns.content_name(&member)));
            let label = &content["metadata"]["labels"]["snapshot.storage.kubernetes.io/managed-by"];
            assert_eq!(*label, format!("node-{node}"), "{content}");
        }
    }
    // A member is a snapshot like any other.
    let (_, member) = two_members(&ns, "a-2").remove(0);
    ns.apply(&restored("copy", "16Mi", &member));
    ns.wait("jsonpath={.status.phase}=Bound pvc/copy");

    // Over several nodes there is no common point in time.
    let mut all = group("all", "");
    all["spec"]["source"]["selector"]["matchLabels"] = json!({"all": "yes"});
    ns.apply(&all);
    ns.cluster.eventually("whoever asked for it is told", || {
        ns.told_of("all")
            .contains("the claims of a group must be on one node, these are on node-1 and node-2")
    });
    ns.end();
}
