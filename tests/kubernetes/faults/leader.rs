//! The one process that does what the cluster needs once ends at any instant; a node leaves the cluster.

use crate::cluster::{Cluster, Namespace};
use crate::legacy::{DATA, SNAPSHOT, promoted, snapshot};
use crate::objects::chosen;
use serde_json::Value;
use std::thread::sleep;
use std::time::Duration;

const LEASE: &str = "cowslip-csi-cluster";
/// The command line of a replica, of which there is one on a node.
const REPLICA: &str = "cowslip-csi cluster";

/// The pod that leads.
fn leader(cluster: &Cluster) -> String {
    let mut holder = String::new();
    cluster.eventually("a replica leads", || {
        let lease = cluster.get(&format!("lease -n cowslip {LEASE}"));
        holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        // The other one, as soon as the one that was deleted is deposed.
        !holder.is_empty() && cluster.try_kubectl(&["-n", "cowslip", "get", "pod", &holder]).code == Some(0)
    });
    holder
}

/// The node of a pod of the driver.
fn node_of(cluster: &Cluster, pod: &str) -> u32 {
    let node = cluster.kubectl(&format!("-n cowslip get pod {pod} -o jsonpath={{.spec.nodeName}}"));
    node.strip_prefix("node-").and_then(|number| number.parse().ok()).expect("it has a node")
}

#[test]
fn the_leader_ends_at_any_instant() {
    let Some(ns) = Namespace::new("leader") else { return };
    ns.apply(&chosen("data", 1));
    ns.wait("jsonpath={.status.phase}=Bound pvc/data");
    ns.apply(&snapshot("first", "data"));
    ns.wait(&format!("condition=Ready {SNAPSHOT}/first"));
    for round in 0..3 {
        let names: Vec<String> = (0..4).map(|n| format!("{round}-{n}")).collect();
        for name in &names {
            ns.apply(&snapshot(&format!("cut-{name}"), "data"));
            ns.apply(&promoted(&format!("copy-{name}"), "16Mi", "first"));
        }
        sleep(Duration::from_millis(300 * round));
        let holder = leader(ns.cluster);
        match round {
            // Its container comes again under the same name.
            0 => signal(ns.cluster, &holder, "KILL"),
            // Another replica has to see that it is gone.
            1 => delete(ns.cluster, &holder),
            // It is not gone, only stopped: when it goes on, it leads no more.
            _ => signal(ns.cluster, &holder, "STOP"),
        }
        for name in &names {
            ns.wait(&format!("condition=Ready {SNAPSHOT}/cut-{name}"));
            ns.wait(&format!("jsonpath={{.status.phase}}=Bound pvc/copy-{name}"));
        }
        // Deleted while nobody leads.
        if round == 1 {
            delete(ns.cluster, &leader(ns.cluster));
        }
        if round == 2 {
            ns.cluster.eventually("another replica leads", || leader(ns.cluster) != holder);
            signal(ns.cluster, &holder, "CONT");
        }
        for name in &names {
            ns.kubectl(&format!("delete {SNAPSHOT} cut-{name} --wait=false"));
            ns.kubectl(&format!("delete pvc copy-{name} --wait=false"));
        }
    }
    ns.cluster.eventually("nothing but the first is left", || {
        let count = |kind: &str| ns.kubectl(&format!("get {kind} -o name")).lines().count();
        count(SNAPSHOT) == 1 && count("pvc") == 1 && count("volumesnapshots.snapshot.storage.k8s.io") == 1
    });
    ns.cluster.eventually("the pools hold no more than that", || ns.pooled().len() == 2);
    let holder = leader(ns.cluster);
    let resident_kib = ns.cluster.resident_kib(node_of(ns.cluster, &holder), REPLICA);
    println!("{holder} leads and has {resident_kib} KiB resident");
    assert!(resident_kib <= 32 << 10);
    ns.end();
}

/// Sends a signal to a replica.
fn signal(cluster: &Cluster, pod: &str, signal: &str) {
    let mut kill = cluster.inside(node_of(cluster, pod), "pkill");
    let sent = kill.args([&format!("-{signal}"), "-f", REPLICA]).status();
    assert!(sent.is_ok_and(|status| status.success()), "the replica was not there");
}

fn delete(cluster: &Cluster, pod: &str) {
    cluster.kubectl(&format!("-n cowslip delete pod {pod} --force --grace-period=0"));
}

/// Waits until the pods of the driver are as they should be.
fn rolled_out(cluster: &Cluster, what: &str) {
    cluster.kubectl(&format!("-n cowslip rollout status {what} --timeout=600s"));
}

/// Node 2 leaves with all that is on it. What is deleted of it goes, and what is on the other node stays; when it comes back
/// what is left in its pool can be deleted there.
#[test]
fn a_node_leaves_the_cluster() {
    let Some(ns) = Namespace::new("gone") else { return };
    let patch =
        r#"[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--gone-after=3"}]"#;
    ns.cluster
        .try_kubectl(&["-n", "cowslip", "patch", "deployment", LEASE, "--type=json", "-p", patch])
        .with(0);
    rolled_out(ns.cluster, "deployment/cowslip-csi-cluster");
    for node in [1, 2] {
        let name = format!("data-{node}");
        ns.apply(&chosen(&name, node));
        ns.wait(&format!("jsonpath={{.status.phase}}=Bound pvc/{name}"));
        ns.snapshot(&format!("cut-{node}"), &name);
        ns.apply(&snapshot(&format!("legacy-{node}"), &name));
        ns.wait(&format!("condition=Ready {SNAPSHOT}/legacy-{node}"));
    }
    // Switched off only: nothing is let go.
    ns.cluster.power("crash", 2);
    for what in
        ["volumesnapshots.snapshot.storage.k8s.io cut-2", &format!("{SNAPSHOT} legacy-2"), "pvc data-2"]
    {
        ns.kubectl(&format!("delete {what} --wait=false"));
    }
    sleep(Duration::from_secs(10));
    assert!(ns.kubectl("get volumesnapshots.snapshot.storage.k8s.io -o name").contains("cut-2"));

    ns.cluster.kubectl("delete node node-2");
    ns.cluster.eventually("what was on the node goes", || {
        let of = |kind: &str| -> Vec<String> {
            ns.kubectl(&format!("get {kind} -o name")).lines().map(str::to_owned).collect()
        };
        let left = ["volumesnapshots.snapshot.storage.k8s.io", SNAPSHOT, "pvc", DATA].map(of).concat();
        // Of the other node: two of CSI, one of them for the older API, then one of each. A UID may have "-2" within.
        left.len() == 5 && !left.iter().any(|name| name.ends_with("-2"))
    });
    let of_this = |volume: &&Value| volume["spec"]["claimRef"]["namespace"] == ns.name.as_str();
    ns.cluster.eventually("its volume goes too", || {
        let all = ns.cluster.get("pv");
        all["items"].as_array().expect("a list").iter().filter(of_this).count() == 1
    });
    // What is on the other node works as ever.
    ns.apply(&promoted("copy", "16Mi", "legacy-1"));
    ns.wait("jsonpath={.status.phase}=Bound pvc/copy");

    ns.cluster.power("start", 2);
    ns.cluster.kubectl("wait --for=create node/node-2 --timeout=600s");
    ns.cluster.kubectl("wait --for=condition=Ready node/node-2 --timeout=600s");
    ns.cluster.eventually("its agent serves", || ns.cluster.try_agent(2, "status").code == Some(0));
    let left = |kind: &str, label: &str| -> Vec<Value> {
        let all = ns.cluster.pooled(kind).into_iter().filter(|(node, _)| *node == 2).map(|(_, one)| one);
        all.filter(|one| one["labels"][label] == ns.name.as_str()).collect()
    };
    let snapshots = left("snapshot", "csi.storage.k8s.io/volumesnapshot/namespace");
    assert_eq!(snapshots.len(), 2, "{snapshots:?}");
    for snapshot in snapshots {
        let (volume, name) =
            (snapshot["volume"].as_str().expect("a volume"), snapshot["name"].as_str().expect("a name"));
        ns.cluster.try_agent(2, &format!("snapshot delete {volume}@{name}")).with(0);
    }
    for volume in left("volume", "csi.storage.k8s.io/pvc/namespace") {
        let name = volume["name"].as_str().expect("a name");
        ns.cluster.try_agent(2, &format!("volume delete {name}")).with(0);
    }
    ns.cluster.kubectl("-n cowslip rollout undo deployment/cowslip-csi-cluster");
    rolled_out(ns.cluster, "deployment/cowslip-csi-cluster");
    rolled_out(ns.cluster, "daemonset/cowslip-csi-node");
    ns.end();
}
