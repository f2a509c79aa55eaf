//! Snapshots by the API that was there before CSI had them: manifests written for it work as they are.

use crate::cluster::{Cluster, Namespace, manifest};
use crate::objects::{as_block, block_pod, chosen, claim, pod};
use serde_json::{Value, json};

/// The kinds, by names that mean nothing else.
pub const SNAPSHOT: &str = "volumesnapshots.volumesnapshot.external-storage.k8s.io";
pub const DATA: &str = "volumesnapshotdatas.volumesnapshot.external-storage.k8s.io";

/// The text of a snapshot of a claim.
pub fn snapshot(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "volumesnapshot.external-storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"persistentVolumeClaimName": claim},
    })
}

/// A claim of what such a snapshot holds.
pub fn promoted(name: &str, size: &str, snapshot: &str) -> Value {
    let mut claim = claim(name, size);
    claim["spec"]["storageClassName"] = "openebs-snapshot-promoter".into();
    claim["metadata"]["annotations"] = json!({"snapshot.alpha.kubernetes.io/snapshot": snapshot});
    claim
}

/// The condition of a snapshot that holds: its type and its reason.
fn holds(ns: &Namespace, name: &str) -> (String, String) {
    let snapshot = ns.get(&format!("{SNAPSHOT} {name}"));
    let all = snapshot["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let held: Vec<_> = all.iter().filter(|condition| condition["status"] == "True").collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match held[..] {
        [] => Default::default(),
        [one] => (text(&one["type"]), text(&one["reason"])),
        _ => panic!("several conditions hold: {all:?}"),
    }
}

/// Waits for such a condition.
#[track_caller]
fn becomes(ns: &Namespace, name: &str, kind: &str, reason: &str) {
    ns.cluster.eventually(&format!("{name} is {kind}, {reason}"), || {
        holds(ns, name) == (kind.to_owned(), reason.to_owned())
    });
}

/// The VolumeSnapshotDatas of a namespace.
fn datas(cluster: &Cluster, namespace: &str) -> Vec<Value> {
    let all = cluster.get(DATA);
    let of_this = |data: &&Value| {
        let of = data["spec"]["volumeSnapshotRef"]["name"].as_str();
        of.is_some_and(|name| name.starts_with(&format!("{namespace}/")))
    };
    all["items"].as_array().expect("a list").iter().filter(of_this).cloned().collect()
}

/// Ends a namespace that had such snapshots.
#[track_caller]
fn end(ns: Namespace) {
    let (cluster, name) = (ns.cluster, ns.name.clone());
    ns.end();
    assert_eq!(datas(cluster, &name), [] as [Value; 0]);
}

/// A snapshot is taken, its volume goes on, the snapshot is restored and deleted: as the manifests that people have say it.
#[test]
fn manifests_as_they_are() {
    let Some(cluster) = Cluster::running() else { return };
    // They name their namespace.
    let ns = Namespace { cluster, name: "default".to_owned() };
    ns.claim_in_pod("demo-vol1-claim", "1Gi");
    ns.shell(
        "demo-vol1-claim",
        "dd if=/dev/urandom of=/data/file bs=1M count=8 2>/dev/null; echo monday >/data/day; sync",
    );
    let sum = ns.shell("demo-vol1-claim", "sha256sum </data/file");
    let before = ns.pooled().len();

    assert_eq!(
        ns.create_text(&manifest("openebs-snapshot.yaml")),
        "volumesnapshot.volumesnapshot.external-storage.k8s.io/snapshot-demo created\n"
    );
    ns.wait(&format!("condition=Ready {SNAPSHOT}/snapshot-demo"));
    let shown = ns.kubectl(&format!("get {SNAPSHOT}"));
    let columns: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(columns[0], ["NAME", "AGE"]);
    assert_eq!((columns.len(), columns[1][0]), (2, "snapshot-demo"));

    let snapshot = ns.get(&format!("{SNAPSHOT} snapshot-demo"));
    assert!(snapshot["status"]["creationTimestamp"].is_string(), "{snapshot}");
    let data = datas(cluster, "default");
    let [data] = &data[..] else { panic!("one VolumeSnapshotData: {data:?}") };
    assert_eq!(snapshot["spec"]["snapshotDataName"], data["metadata"]["name"]);
    assert_eq!(
        data["spec"]["volumeSnapshotRef"],
        json!({"kind": "VolumeSnapshot", "name": "default/snapshot-demo"})
    );
    assert_eq!(
        data["spec"]["persistentVolumeRef"],
        json!({"kind": "PersistentVolume", "name": ns.volume_name("demo-vol1-claim")})
    );
    assert!(
        data["spec"]["openebsVolume"]["snapshotId"].as_str().is_some_and(|id| id.starts_with("v1:")),
        "{data}"
    );
    assert_eq!(data["spec"]["openebsVolume"]["capacity"], "1Gi");

    ns.shell("demo-vol1-claim", "echo tuesday >/data/day; rm /data/file; sync");
    ns.create_text(&manifest("openebs-restore.yaml"));
    ns.pod(&pod("restored", &[("demo-snap-vol-claim", "/data")]));
    assert_eq!(ns.shell("restored", "cat /data/day"), "monday\n");
    assert_eq!(ns.shell("restored", "sha256sum </data/file"), sum);
    assert_eq!(ns.shell("demo-vol1-claim", "cat /data/day"), "tuesday\n");
    // It is as large as was asked for, and so is its file system.
    let claim = ns.get("pvc demo-snap-vol-claim");
    // In whole KiB.
    assert_eq!(claim["status"]["capacity"]["storage"], "4882816Ki");
    let size = ns.shell("restored", "df -m /data | tail -1 | awk '{print $2}'");
    assert!(size.trim().parse::<u64>().expect("MiB") > 4000, "{size}");
    let volume = cluster.get(&format!("pv {}", ns.volume_name("demo-snap-vol-claim")));
    assert_eq!(volume["spec"]["storageClassName"], "openebs-snapshot-promoter");
    // What brought its volume forth is gone.
    ns.cluster
        .eventually("only the two claims are left", || ns.kubectl("get pvc -o name").lines().count() == 2);

    // The snapshot goes with its data; what was restored from it stays.
    ns.kubectl(&format!("delete {SNAPSHOT} snapshot-demo"));
    assert_eq!(datas(cluster, "default"), [] as [Value; 0]);
    assert_eq!(ns.kubectl("get volumesnapshots.snapshot.storage.k8s.io -o name"), "");
    assert_eq!(ns.shell("restored", "sha256sum </data/file"), sum);
    ns.kubectl("delete pod demo-vol1-claim restored --grace-period=1");
    ns.kubectl("delete pvc demo-vol1-claim demo-snap-vol-claim");
    ns.cluster.eventually("nothing is left of it in the pools", || ns.pooled().len() < before);
    assert_eq!(ns.pooled(), [] as [String; 0]);
}

/// Neither the claim that a snapshot was taken of, nor what was restored from it, takes the snapshot along.
#[test]
fn a_snapshot_outlives_its_claims() {
    let Some(ns) = Namespace::new("legacy-outlives") else { return };
    ns.claim_in_pod("data", "64Mi");
    ns.shell("data", "echo kept >/data/note; sync");
    ns.apply(&snapshot("cut", "data"));
    becomes(&ns, "cut", "Ready", "SnapshotCreated");
    ns.apply(&promoted("first", "64Mi", "cut"));
    ns.pod(&pod("first", &[("first", "/data")]));
    ns.kubectl("delete pod data first --grace-period=1");
    ns.kubectl("delete pvc data first");
    ns.cluster.eventually("the claims' volumes are gone", || ns.kubectl("get pvc -o name").is_empty());
    assert_eq!(holds(&ns, "cut").0, "Ready");
    ns.apply(&promoted("second", "128Mi", "cut"));
    ns.pod(&pod("second", &[("second", "/data")]));
    assert_eq!(ns.shell("second", "cat /data/note"), "kept\n");
    end(ns);
}

/// A block volume comes back as one.
#[test]
fn a_block_volume() {
    let Some(ns) = Namespace::new("legacy-block") else { return };
    ns.apply(&as_block(claim("data", "64Mi")));
    ns.pod(&block_pod("data", &[("data", "/dev/data")]));
    ns.shell("data", "echo blocks | dd of=/dev/data conv=fsync 2>/dev/null");
    ns.apply(&snapshot("cut", "data"));
    becomes(&ns, "cut", "Ready", "SnapshotCreated");
    ns.apply(&as_block(promoted("copy", "64Mi", "cut")));
    ns.pod(&block_pod("copy", &[("copy", "/dev/data")]));
    assert_eq!(ns.shell("copy", "head -c 6 /dev/data"), "blocks");
    end(ns);
}

/// Whoever asks for what is not possible is told why; what becomes possible is done without being asked for again.
#[test]
fn what_is_not_possible_yet() {
    let Some(ns) = Namespace::new("legacy-refused") else { return };
    ns.apply(&snapshot("early", "data"));
    becomes(&ns, "early", "Error", "ClaimNotFound");
    assert!(ns.told_of("early").contains("there is no claim data in namespace legacy-refused"));
    ns.apply(&promoted("copy", "16Mi", "early"));
    ns.cluster.eventually("the claim is told", || ns.told_of("copy").contains("snapshot early is not ready"));

    ns.apply(&claim("data", "16Mi"));
    becomes(&ns, "early", "Pending", "ClaimNotBound");
    ns.kubectl("annotate pvc data volume.kubernetes.io/selected-node=node-1");
    becomes(&ns, "early", "Ready", "SnapshotCreated");
    ns.wait("jsonpath={.status.phase}=Bound pvc/copy");

    // Of a volume that is not the driver's.
    ns.cluster.kubectl("delete pv legacy-foreign --ignore-not-found");
    ns.apply(&json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "legacy-foreign"},
        "spec": {
            "capacity": {"storage": "16Mi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": ns.name, "name": "foreign"},
        },
    }));
    let mut foreign = claim("foreign", "16Mi");
    foreign["spec"]["storageClassName"] = "".into();
    ns.apply(&foreign);
    ns.wait("jsonpath={.status.phase}=Bound pvc/foreign");
    ns.apply(&snapshot("foreign", "foreign"));
    becomes(&ns, "foreign", "Error", "VolumeNotOurs");
    assert!(ns.told_of("foreign").contains("only those of csi.cowslip.io"));

    ns.apply(&promoted("nothing", "16Mi", "no-such"));
    ns.cluster.eventually("the claim is told", || {
        ns.told_of("nothing").contains("there is no snapshot no-such in namespace legacy-refused")
    });
    ns.apply(&promoted("small", "8Mi", "early"));
    ns.cluster.eventually("the claim is told", || ns.told_of("small").contains("less than"));
    let bad = ns.cluster.try_apply(&ns.name, &snapshot("early", "other").to_string());
    bad.with(1).saying(&["a snapshot is of one claim for ever"]);
    ns.kubectl("delete pvc foreign");
    ns.cluster.kubectl("delete pv legacy-foreign");
    end(ns);
}

/// Everything is deleted while it is being made, at different instants. Nothing is left.
#[test]
fn deleted_while_being_made() {
    let Some(ns) = Namespace::new("legacy-hurry") else { return };
    ns.apply(&chosen("data", 1));
    ns.wait("jsonpath={.status.phase}=Bound pvc/data");
    ns.apply(&snapshot("kept", "data"));
    becomes(&ns, "kept", "Ready", "SnapshotCreated");
    for round in 0..6 {
        let (cut, copy) = (format!("cut-{round}"), format!("copy-{round}"));
        ns.apply(&snapshot(&cut, "data"));
        ns.apply(&promoted(&copy, "16Mi", "kept"));
        std::thread::sleep(std::time::Duration::from_millis(150 * round));
        ns.kubectl(&format!("delete {SNAPSHOT} {cut} --wait=false"));
        ns.kubectl(&format!("delete pvc {copy} --wait=false"));
    }
    ns.cluster.eventually("only what was kept is left", || {
        let names = |kind: &str| ns.kubectl(&format!("get {kind} -o name")).lines().count();
        names(SNAPSHOT) == 1 && names("pvc") == 1 && names("volumesnapshots.snapshot.storage.k8s.io") == 1
    });
    assert_eq!(datas(ns.cluster, &ns.name).len(), 1);
    // A volume and a snapshot.
    ns.cluster.eventually("the pools hold no more than that", || ns.pooled().len() == 2);
    end(ns);
}
