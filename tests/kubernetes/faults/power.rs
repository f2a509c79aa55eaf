//! A node's plug is pulled under load: its processes and mounts are gone at once, and /run with them.

use crate::cluster::Namespace;
use crate::objects::{claim, on_node, pod, restored};
use std::fs;
use std::path::Path;

/// Writes records with a number each, syncs each to the disk, and prints its number then.
const WRITER: &str = "i=$(wc -l </data/log 2>/dev/null || echo 0); while :; do i=$((i+1)); echo record $i >>/data/log; \
                      sync /data/log && echo $i; done";

/// The last number that a container printed, by the newest of its logs.
fn acknowledged(logs: &Path, pod: &str) -> u64 {
    let of_pod = fs::read_dir(logs)
        .expect("logs")
        .flatten()
        .find(|dir| dir.file_name().to_string_lossy().contains(pod));
    let mut files: Vec<_> =
        fs::read_dir(of_pod.expect("the pod's logs").path().join("main")).expect("logs").flatten().collect();
    files.sort_by_key(fs::DirEntry::file_name);
    let text = fs::read_to_string(files.last().expect("a log").path()).expect("it can be read");
    // A line may be cut off by the end of the power.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().last().and_then(|line| line.split(' ').next_back()?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_node_without_power_keeps_what_was_synced() {
    let Some(ns) = Namespace::new("power") else { return };
    let names = ["first", "second", "third"];
    for name in names {
        ns.apply(&claim(name, "128Mi"));
        let mut pod = on_node(pod(name, &[(name, "/data")]), 2);
        pod["spec"]["containers"][0]["command"] = serde_json::json!(["sh", "-c", WRITER]);
        ns.apply(&pod);
    }
    for name in names {
        ns.wait(&format!("condition=Ready pod/{name}"));
    }
    let logs = ns.cluster.logs_of_pods(2);
    ns.cluster.eventually("records are written", || {
        names.iter().all(|name| acknowledged(&logs, &format!("power_{name}")) > 50)
    });
    ns.snapshot("before", "first");
    ns.cluster.power("crash", 2);
    let synced = names.map(|name| acknowledged(&logs, &format!("power_{name}")));
    println!("synced before the power went: {synced:?}");
    ns.cluster.power("start", 2);
    ns.cluster.eventually("the agent serves again", || ns.cluster.try_agent(2, "status").code == Some(0));
    for (name, synced) in names.iter().zip(synced) {
        let mut log = String::new();
        ns.cluster.eventually("the pod goes on where it was", || {
            let read = ns.try_shell(name, "cat /data/log");
            log = read.stdout;
            read.code == Some(0) && log.lines().count() as u64 > synced
        });
        for (n, line) in log.lines().enumerate().take(usize::try_from(synced).expect("a count")) {
            assert_eq!(
                line,
                format!("record {}", n + 1),
                "{name} has every record that was synced, up to {synced}"
            );
        }
    }
    // The snapshot from before is whole too.
    ns.apply(&restored("copy", "128Mi", "before"));
    ns.pod(&on_node(pod("copy", &[("copy", "/data")]), 2));
    let copy = ns.shell("copy", "cat /data/log");
    assert!(copy.lines().count() > 50);
    assert!(copy.lines().enumerate().all(|(n, line)| line == format!("record {}", n + 1)));
    ns.end();
}
