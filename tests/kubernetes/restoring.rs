//! Snapshots, restores and clones: the manifests that users of other drivers have, and every order of deletion.

use crate::cluster::{Namespace, manifest};
use crate::objects::{claim, cloned, of_class, pod, restored, snapshot};
use crate::volumes::file_system_kib;

/// The manifests of simplyblock's documentation, as they are printed there.
#[test]
fn simplyblock_manifests() {
    let Some(ns) = Namespace::new("simplyblock") else { return };
    let class = "simplyblock-storage-class";
    ns.apply(&of_class(claim("my-persistent-volume-claim", "256Mi"), class));
    ns.pod(&pod("database", &[("my-persistent-volume-claim", "/mounted")]));
    ns.shell("database", "head -c 20000000 /dev/urandom >/mounted/data; echo old >/mounted/note");
    let old = ns.shell("database", "cd /mounted && md5sum data note");
    ns.apply_text(&manifest("simplyblock-snapshot.yaml"));
    ns.wait("jsonpath={.status.readyToUse}=true volumesnapshot/my-volume-snapshot");
    ns.shell(
        "database",
        "echo new >/mounted/note; head -c 20000000 /dev/urandom >/mounted/data; rm -rf /mounted/lost+found",
    );
    ns.apply_text(&manifest("simplyblock-restore.yaml"));
    ns.apply_text(&manifest("simplyblock-pod.yaml"));
    ns.wait("condition=Ready pod/restored-database");
    assert_eq!(ns.shell("restored-database", "cd /mounted && md5sum data note"), old);
    assert_eq!(ns.shell("database", "cat /mounted/note"), "new\n");
    // Nothing was copied, and the file system was held still: the agent knows both.
    let node = ns.node_of("restored-database");
    let handle = ns.get("volumesnapshot my-volume-snapshot");
    assert_eq!(handle["status"]["restoreSize"], "256Mi");
    let name = ns.snapshot_name("my-volume-snapshot");
    let all = ns.cluster.agent(node, "snapshot list");
    let cut =
        all.as_array().expect("a list").iter().find(|one| one["name"] == name.as_str()).expect("it is there");
    assert_eq!(cut["consistency"], "fs");
    let restored = ns.volume_name("my-restored-snapshot-volume");
    assert!(
        cut["clones"].as_array().expect("a list").iter().any(|clone| *clone == restored.as_str()),
        "{cut}"
    );
    ns.end();
}

/// Source, snapshot, restored claim and clone can go in any order: what is left keeps its content.
#[test]
fn deleted_in_every_order() {
    let Some(ns) = Namespace::new("orders") else { return };
    let orders = [
        ["source", "cut", "copy"],
        ["source", "copy", "cut"],
        ["cut", "source", "copy"],
        ["cut", "copy", "source"],
        ["copy", "source", "cut"],
        ["copy", "cut", "source"],
    ];
    // All at once: each has names of its own.
    let of = |n: usize, what: &str| format!("{what}-{n}");
    for n in 0..orders.len() {
        ns.apply(&claim(&of(n, "source"), "64Mi"));
        ns.apply(&pod(&of(n, "source"), &[(&of(n, "source"), "/data")]));
    }
    for n in 0..orders.len() {
        ns.wait(&format!("condition=Ready pod/{}", of(n, "source")));
        ns.shell(&of(n, "source"), &format!("echo {n} >/data/n; sync -f /data"));
        ns.apply(&snapshot(&of(n, "cut"), &of(n, "source")));
    }
    for n in 0..orders.len() {
        ns.wait(&format!("jsonpath={{.status.readyToUse}}=true volumesnapshot/{}", of(n, "cut")));
        ns.apply(&restored(&of(n, "copy"), "64Mi", &of(n, "cut")));
        ns.apply(&pod(&of(n, "copy"), &[(&of(n, "copy"), "/data")]));
    }
    for (n, order) in orders.iter().enumerate() {
        ns.wait(&format!("condition=Ready pod/{}", of(n, "copy")));
        for (done, what) in order.iter().enumerate() {
            let name = of(n, what);
            match *what {
                "cut" => ns.kubectl(&format!("delete volumesnapshot {name}")),
                _ => ns.kubectl(&format!("delete pod/{name} pvc/{name}")),
            };
            for rest in order[done + 1..].iter().filter(|rest| **rest != "cut") {
                assert_eq!(ns.shell(&of(n, rest), "cat /data/n"), format!("{n}\n"), "{order:?} after {what}");
            }
            if order[done + 1..] == ["cut"] {
                // Only the snapshot is left of them: it still gives the content back.
                let again = of(n, "again");
                ns.apply(&restored(&again, "64Mi", &of(n, "cut")));
                ns.apply(&pod(&again, &[(&again, "/data")]));
                ns.wait(&format!("condition=Ready pod/{again}"));
                assert_eq!(ns.shell(&again, "cat /data/n"), format!("{n}\n"), "{order:?}");
            }
        }
    }
    ns.end();
}

/// To a larger size, with each file system, beside the source on its node; and a clone of a claim in use.
#[test]
fn restored_larger_beside_the_source() {
    let Some(ns) = Namespace::new("larger") else { return };
    for (fs, size, larger) in
        [("ext4", "64Mi", "128Mi"), ("xfs", "320Mi", "640Mi"), ("btrfs", "128Mi", "256Mi")]
    {
        let class = format!("larger-{fs}");
        ns.apply(&crate::objects::class(&class, fs));
        let (source, cut, copy, clone) =
            (format!("{fs}-source"), format!("{fs}-cut"), format!("{fs}-copy"), format!("{fs}-clone"));
        ns.apply(&of_class(claim(&source, size), &class));
        ns.pod(&pod(&source, &[(&source, "/data")]));
        ns.shell(&source, "echo old >/data/note; head -c 3000000 /dev/urandom >/data/bytes");
        let sum = ns.shell(&source, "md5sum </data/bytes");
        ns.snapshot(&cut, &source);
        ns.shell(&source, "echo new >/data/note");
        ns.apply(&of_class(restored(&copy, larger, &cut), &class));
        ns.apply(&of_class(cloned(&clone, larger, &source), &class));
        for (name, note) in [(&copy, "old\n"), (&clone, "new\n")] {
            ns.pod(&pod(name, &[(name, "/data")]));
            assert_eq!(ns.node_of(name), ns.node_of(&source), "beside its source");
            assert_eq!(ns.shell(name, "cat /data/note"), note, "{fs}");
            assert_eq!(ns.shell(name, "md5sum </data/bytes"), sum, "{fs}");
            assert!(
                file_system_kib(&ns, name) > file_system_kib(&ns, &source) * 3 / 2,
                "{fs}: the file system of {name} has grown"
            );
        }
        ns.cluster.kubectl(&format!("delete storageclass {class}"));
    }
    // A smaller one is refused, and the claim says so.
    ns.apply(&restored("smaller", "32Mi", "ext4-cut"));
    ns.apply(&pod("smaller", &[("smaller", "/data")]));
    ns.cluster.eventually("the claim is told that its source is larger", || {
        ns.told_of("smaller").contains("less than")
    });
    ns.end();
}
