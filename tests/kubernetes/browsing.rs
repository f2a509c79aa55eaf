//! Snapshots of a claim as files in a pod: of the pod's own namespace, and nothing else.

use crate::cluster::Namespace;
use crate::objects::{browser, on_node};

#[test]
fn a_pod_browses_the_snapshots_of_its_namespace() {
    let Some(ns) = Namespace::new("browse") else { return };
    let Some(other) = Namespace::new("browse-other") else { return };
    ns.claim_in_pod("data", "64Mi");
    ns.shell("data", "mkdir /data/etc; echo first >/data/etc/note");
    ns.snapshot("monday", "data");
    ns.shell("data", "echo second >/data/etc/note");
    ns.snapshot("tuesday", "data");
    ns.shell("data", "rm -r /data/etc");
    let node = ns.node_of("data");
    ns.pod(&on_node(browser("browser", "data"), node));
    let at = |snapshot: &str| format!("/snapshots/{}", ns.snapshot_name(snapshot));
    let mut shown: Vec<String> = ns.shell("browser", "ls /snapshots").lines().map(str::to_owned).collect();
    shown.retain(|name| !matches!(name.as_str(), "latest" | "by-time"));
    let mut cut = ["monday", "tuesday"].map(|name| ns.snapshot_name(name));
    cut.sort();
    shown.sort();
    assert_eq!(shown, cut);
    assert_eq!(ns.shell("browser", &format!("cat {}/etc/note", at("monday"))), "first\n");
    assert_eq!(ns.shell("browser", &format!("cat {}/etc/note", at("tuesday"))), "second\n");
    for attempt in
        ["rm -r SNAP/etc", "echo x >SNAP/etc/note", "touch /snapshots/x", "mount -o remount,rw /snapshots"]
    {
        let ended = ns.try_shell("browser", &attempt.replace("SNAP", &at("monday")));
        assert_ne!(ended.code, Some(0), "{attempt}: {ended:?}");
    }
    // Another namespace can name the claim as it likes: it is not there.
    for (pod, named) in [("same", "data"), ("path", "../browse/data"), ("whole", "browse/data")] {
        other.apply(&on_node(browser(pod, named), node));
    }
    for pod in ["same", "path", "whole"] {
        other
            .cluster
            .eventually("the refusal is told", || other.told_of(pod).contains("has no volume on this node"));
        assert_eq!(other.get(&format!("pod {pod}"))["status"]["phase"], "Pending");
    }
    // A claim of the same name shows its own.
    other.kubectl("delete pods --all --grace-period=1");
    other.apply(&crate::objects::claim("data", "64Mi"));
    other.pod(&on_node(crate::objects::pod("data", &[("data", "/data")]), node));
    other.shell("data", "echo third >/data/note");
    other.snapshot("monday", "data");
    other.pod(&on_node(browser("browser", "data"), node));
    let listed = other.shell("browser", "ls /snapshots");
    assert!(cut.iter().all(|name| !listed.contains(name)), "{listed}");
    let own = other.snapshot_name("monday");
    assert_eq!(other.shell("browser", &format!("cat /snapshots/{own}/note")), "third\n");
    other.end();
    ns.end();
}
