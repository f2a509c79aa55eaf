//! Volumes in use: grown, as devices, many of one set.

use crate::cluster::Namespace;
use crate::objects::{as_block, block_pod, claim, class, of_class, pod, restored};
use integration_tests::may_grow_ext4;
use serde_json::json;

/// KiB of the file system at /data.
pub fn file_system_kib(ns: &Namespace, pod: &str) -> u64 {
    let line = ns.shell(pod, "df -P -k /data | tail -n 1");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("df prints blocks")
}

fn ask_for(ns: &Namespace, claim: &str, size: &str) {
    let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}}).to_string();
    ns.cluster.try_kubectl(&["-n", &ns.name, "patch", "pvc", claim, "-p", &patch]).with(0);
}

/// XFS and btrfs grow while a pod writes. So does ext4, where the machine lets the driver's container have CAP_SYS_RESOURCE; where
/// it does not, the claim says that a pod has to start anew, and then it has grown.
#[test]
fn expanded_online() {
    let Some(ns) = Namespace::new("expanding") else { return };
    for (fs, size, larger) in
        [("xfs", "320Mi", "640Mi"), ("btrfs", "128Mi", "512Mi"), ("ext4", "64Mi", "256Mi")]
    {
        let name = format!("grown-{fs}");
        ns.apply(&class(&format!("expanding-{fs}"), fs));
        ns.apply(&of_class(claim(&name, size), &format!("expanding-{fs}")));
        ns.pod(&pod(&name, &[(&name, "/data")]));
        ns.shell(
            &name,
            "(while :; do date >>/data/log; sleep 0.1; done) >/dev/null 2>&1 & echo kept >/data/note",
        );
        let before = file_system_kib(&ns, &name);
        ask_for(&ns, &name, larger);
        if fs == "ext4" && !may_grow_ext4() {
            ns.wait(&format!("condition=FileSystemResizePending pvc/{name}"));
            assert_eq!(file_system_kib(&ns, &name), before);
            ns.kubectl(&format!("delete pod {name}"));
            ns.pod(&pod(&name, &[(&name, "/data")]));
        }
        ns.wait(&format!("jsonpath={{.status.capacity.storage}}={larger} pvc/{name}"));
        assert!(file_system_kib(&ns, &name) > before * 3 / 2, "{fs}");
        assert_eq!(ns.shell(&name, "cat /data/note"), "kept\n");
        ns.cluster.kubectl(&format!("delete storageclass expanding-{fs}"));
    }
    ns.end();
}

#[test]
fn raw_block() {
    let Some(ns) = Namespace::new("block") else { return };
    ns.apply(&as_block(claim("disk", "64Mi")));
    ns.pod(&block_pod("writer", &[("disk", "/dev/disk")]));
    ns.shell("writer", "yes old | head -c 1048576 | dd of=/dev/disk bs=1M seek=7 conv=fsync 2>/dev/null");
    let sum = |pod: &str, device: &str| ns.shell(pod, &format!("md5sum <{device}"));
    let old = sum("writer", "/dev/disk");
    ns.snapshot("cut", "disk");
    ns.shell("writer", "yes new | head -c 1048576 | dd of=/dev/disk bs=1M seek=7 conv=fsync 2>/dev/null");
    ns.apply(&as_block(restored("copy", "64Mi", "cut")));
    ns.pod(&block_pod("reader", &[("copy", "/dev/copy")]));
    assert_eq!(sum("reader", "/dev/copy"), old);
    assert_ne!(sum("writer", "/dev/disk"), old);
    ask_for(&ns, "disk", "128Mi");
    ns.cluster.eventually("the device has grown", || {
        ns.shell("writer", "blockdev --getsize64 /dev/disk").trim() == "134217728"
    });
    ns.end();
}

/// A set of three, each with a volume of its own, which it gets back when it is moved down and up again.
#[test]
fn stateful_set_of_three() {
    let Some(ns) = Namespace::new("stateful") else { return };
    let template = pod("", &[]);
    let mut spec = template["spec"].clone();
    spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    ns.apply(&json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "set"},
        "spec": {
            "serviceName": "set", "replicas": 3, "selector": {"matchLabels": {"app": "set"}},
            "podManagementPolicy": "Parallel",
            "template": {"metadata": {"labels": {"app": "set"}}, "spec": spec},
            "volumeClaimTemplates": [claim("data", "64Mi")],
        },
    }));
    let ready = || ns.wait("jsonpath={.status.readyReplicas}=3 statefulset/set");
    ready();
    for n in 0..3 {
        ns.shell(&format!("set-{n}"), &format!("echo {n} >/data/n"));
    }
    let nodes: Vec<u32> = (0..3).map(|n| ns.node_of(&format!("set-{n}"))).collect();
    ns.kubectl("scale statefulset set --replicas=0");
    ns.kubectl("wait --for=delete pod -l app=set --timeout=120s");
    ns.kubectl("scale statefulset set --replicas=3");
    ready();
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(ns.shell(&format!("set-{n}"), "cat /data/n"), format!("{n}\n"));
        assert_eq!(ns.node_of(&format!("set-{n}")), *node, "volumes stay on their node, and pods with them");
    }
    ns.kubectl("delete statefulset set");
    ns.end();
}
