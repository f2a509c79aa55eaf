//! Which node a volume is on: where its pod runs, where its source is, where there is room.

use crate::cluster::{NODES, Namespace};
use crate::objects::{chosen_of, claim, cloned, on_node, pod, restored};
use serde_json::json;

#[test]
fn a_volume_is_made_where_its_pod_runs() {
    let Some(ns) = Namespace::new("late") else { return };
    for node in NODES {
        ns.apply(&claim(&format!("data-{node}"), "64Mi"));
    }
    ns.cluster.eventually("the claims wait for their pods", || {
        NODES.iter().all(|node| ns.told_of(&format!("data-{node}")).contains("waiting for first consumer"))
    });
    assert_eq!(ns.pooled(), [] as [String; 0]);
    for node in NODES {
        let name = format!("data-{node}");
        ns.pod(&on_node(pod(&name, &[(&name, "/data")]), node));
        let volume = ns.volume_name(&name);
        let all = ns.cluster.pooled("volume");
        let there: Vec<u32> =
            all.iter().filter(|(_, one)| one["name"] == volume.as_str()).map(|(n, _)| *n).collect();
        assert_eq!(there, [node]);
        let affinity =
            &ns.cluster.get(&format!("pv {volume}"))["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
        let term = &affinity[0]["matchExpressions"][0];
        assert_eq!(term["key"], "topology.csi.cowslip.io/node");
        assert_eq!(term["values"], json!([format!("node-{node}")]));
    }
    // The scheduler knows what room there is.
    let capacities = ns.cluster.get("csistoragecapacities -n cowslip");
    for node in NODES {
        let of_node = |one: &&serde_json::Value| {
            one["nodeTopology"]["matchLabels"]["topology.csi.cowslip.io/node"] == format!("node-{node}")
                && one["storageClassName"] == "cowslip"
        };
        let of_node =
            capacities["items"].as_array().expect("a list").iter().find(of_node).expect("a capacity");
        assert_ne!(of_node["capacity"], "0", "{of_node}");
    }
    ns.end();
}

/// A claim that is larger than a pool: its pod is not put there, and nothing is made.
#[test]
fn more_than_there_is_room_for() {
    let Some(ns) = Namespace::new("too-large") else { return };
    ns.apply(&claim("huge", "100Ti"));
    ns.apply(&pod("huge", &[("huge", "/data")]));
    ns.cluster.eventually("the scheduler finds no room", || {
        ns.told_of("huge").contains("did not have enough free storage")
    });
    assert_eq!(ns.pooled(), [] as [String; 0]);
    ns.end();
}

/// What is made of a snapshot or of a claim is on the node of its source, wherever else its pod might run.
#[test]
fn a_restore_goes_where_its_source_is() {
    let Some(ns) = Namespace::new("sources") else { return };
    for node in NODES {
        let name = format!("data-{node}");
        ns.apply(&claim(&name, "64Mi"));
        ns.pod(&on_node(pod(&name, &[(&name, "/data")]), node));
        ns.shell(&name, &format!("echo {node} >/data/note; sync -f /data"));
        ns.snapshot(&format!("cut-{node}"), &name);
        // A claim, its pod and its source in any order: the scheduler has chosen the wrong node for the first two here.
        let wrong = NODES.into_iter().find(|other| *other != node).expect("there are two");
        for (name, late) in [(format!("late-{node}"), true), (format!("wrong-{node}"), false)] {
            let cut = if late { format!("late-{node}") } else { format!("cut-{node}") };
            ns.apply(&chosen_of(restored(&name, "64Mi", &cut), wrong));
            ns.apply(&pod(&name, &[(&name, "/data")]));
        }
        // As users write it.
        for n in 0..3 {
            let name = format!("copy-{node}-{n}");
            ns.apply(&restored(&name, "64Mi", &format!("cut-{node}")));
            ns.apply(&pod(&name, &[(&name, "/data")]));
        }
        ns.apply(&cloned(&format!("clone-{node}"), "64Mi", &name));
        ns.snapshot(&format!("late-{node}"), &name);
    }
    for node in NODES {
        // It is made at once, as it can be nowhere else.
        ns.wait(&format!("jsonpath={{.status.phase}}=Bound pvc/clone-{node}"));
        ns.apply(&pod(&format!("clone-{node}"), &[(&format!("clone-{node}"), "/data")]));
        let copies = (0..3).map(|n| format!("copy-{node}-{n}"));
        for name in copies.chain(["late", "wrong", "clone"].map(|what| format!("{what}-{node}"))) {
            ns.wait(&format!("condition=Ready pod/{name}"));
            assert_eq!(ns.node_of(&name), node, "{name}");
            assert_eq!(ns.shell(&name, "cat /data/note"), format!("{node}\n"), "{name}");
        }
    }
    ns.end();
}

/// A pod that must not be on its source's node is told why it waits.
#[test]
fn a_restore_that_asks_for_the_wrong_node() {
    let Some(ns) = Namespace::new("wrong-node") else { return };
    ns.apply(&claim("data", "64Mi"));
    ns.pod(&on_node(pod("data", &[("data", "/data")]), 1));
    ns.shell("data", "echo here >/data/note");
    ns.snapshot("cut", "data");
    for name in ["there", "must"] {
        ns.apply(&restored(name, "64Mi", "cut"));
    }
    ns.apply(&on_node(pod("there", &[("there", "/data")]), 1));
    ns.apply(&on_node(pod("must", &[("must", "/data")]), 2));
    ns.wait("condition=Ready pod/there");
    assert_eq!(ns.shell("there", "cat /data/note"), "here\n");
    ns.cluster.eventually("who looks is told why", || {
        let told = ns.told_of("must");
        told.contains("the volume is made on node node-1, where its source is")
            && told.contains("node(s) didn't match PersistentVolume's node affinity")
    });
    ns.end();
}
