//! Objects of Kubernetes as the tests make them.

use serde_json::{Value, json};

/// What the tests' pods run: an image under the name that manifests use.
const IMAGE: &str = "alpine:3";

/// A claim of that size.
pub fn claim(name: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {
            "storageClassName": "cowslip", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
        },
    })
}

/// A claim of what a snapshot holds.
pub fn restored(name: &str, size: &str, snapshot: &str) -> Value {
    let mut claim = claim(name, size);
    claim["spec"]["dataSource"] =
        json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot});
    claim
}

/// A claim of what another one holds.
pub fn cloned(name: &str, size: &str, of: &str) -> Value {
    let mut claim = claim(name, size);
    claim["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": of});
    claim
}

/// The same object with another class.
pub fn of_class(mut claim: Value, class: &str) -> Value {
    claim["spec"]["storageClassName"] = class.into();
    claim
}

/// A claim that is made on that node before any pod wants it, as the scheduler would have decided.
pub fn chosen(name: &str, node: u32) -> Value {
    chosen_of(claim(name, "16Mi"), node)
}

/// The same of another claim.
pub fn chosen_of(mut claim: Value, node: u32) -> Value {
    claim["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": format!("node-{node}")});
    claim
}

/// The same claim as a device.
pub fn as_block(mut claim: Value) -> Value {
    claim["spec"]["volumeMode"] = "Block".into();
    claim
}

/// A storage class of the driver with that file system.
pub fn class(name: &str, fs: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "csi.cowslip.io", "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true, "parameters": {"fsType": fs},
    })
}

/// A snapshot of a claim.
pub fn snapshot(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"volumeSnapshotClassName": "cowslip", "source": {"persistentVolumeClaimName": claim}},
    })
}

/// A pod that sleeps, with claims mounted where they are said to be.
pub fn pod(name: &str, claims: &[(&str, &str)]) -> Value {
    let mounts: Vec<Value> =
        claims.iter().map(|(claim, at)| json!({"name": claim, "mountPath": at})).collect();
    let mut pod = bare(name, claims);
    pod["spec"]["containers"][0]["volumeMounts"] = mounts.into();
    pod
}

/// A pod that sleeps, with claims as devices where they are said to be.
pub fn block_pod(name: &str, claims: &[(&str, &str)]) -> Value {
    let devices: Vec<Value> =
        claims.iter().map(|(claim, at)| json!({"name": claim, "devicePath": at})).collect();
    let mut pod = bare(name, claims);
    pod["spec"]["containers"][0]["volumeDevices"] = devices.into();
    pod
}

fn bare(name: &str, claims: &[(&str, &str)]) -> Value {
    let volume = |claim: &str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
    let volumes: Vec<Value> = claims.iter().map(|(claim, _)| volume(claim)).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": IMAGE, "command": ["sleep", "365d"]}],
            "volumes": volumes,
        },
    })
}

/// The same pod, which only that node may run.
pub fn on_node(mut pod: Value, node: u32) -> Value {
    pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": format!("node-{node}")});
    pod
}

/// A pod that sleeps and shows the snapshots of a claim at /snapshots.
pub fn browser(name: &str, claim: &str) -> Value {
    let mut pod = bare(name, &[]);
    pod["spec"]["volumes"] = json!([{
        "name": "snapshots",
        "csi": {"driver": "csi.cowslip.io", "volumeAttributes": {"snapshotsOf": claim}},
    }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{
        "name": "snapshots", "mountPath": "/snapshots", "mountPropagation": "HostToContainer",
    }]);
    pod
}
