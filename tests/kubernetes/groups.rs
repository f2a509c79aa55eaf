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

/// The names of a group's snapshots.
fn members(ns: &Namespace, group: &str) -> Vec<String> {
    let all = ns.get("volumesnapshots");
    let of_group = |one: &&Value| one["status"]["volumeGroupSnapshotName"] == group;
    let name = |one: &Value| one["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    all["items"].as_array().expect("a list").iter().filter(of_group).map(name).collect()
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
        let members = members(&ns, name);
        assert_eq!(members.len(), 2, "{name}: {members:?}");
        for member in &members {
            let content = ns.cluster.get(&format!("volumesnapshotcontent {}", ns.content_name(member)));
            let label = &content["metadata"]["labels"]["snapshot.storage.kubernetes.io/managed-by"];
            assert_eq!(*label, format!("node-{node}"), "{content}");
        }
    }
    // A member is a snapshot like any other.
    let member = members(&ns, "a-2").remove(0);
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
