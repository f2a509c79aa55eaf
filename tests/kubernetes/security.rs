//! Who may speak to the driver, what it refuses, and what it keeps to itself.

use crate::cluster::{Cluster, NODES, Namespace};
use crate::csi_rig::{connect, mount, volume};
use crate::objects::{claim, of_class, on_node, pod};
use csi_shim::csi;
use csi_shim::csi::controller_client::ControllerClient;
use csi_shim::csi::node_client::NodeClient;
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tonic::Code;

const SOCKET: &str = "plugins/csi.cowslip.io/csi.sock";

#[test]
fn the_socket_is_roots_alone() {
    let Some(cluster) = Cluster::running() else { return };
    for node in NODES {
        let socket = fs::metadata(cluster.kubelet(node, SOCKET)).expect("the driver listens");
        assert_eq!((socket.mode() & 0o7777, socket.uid(), socket.gid()), (0o600, 0, 0));
    }
}

#[test]
fn malicious_ids_names_and_parameters_are_refused() {
    let Some(cluster) = Cluster::running() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let channel = connect(&cluster.kubelet(1, SOCKET)).await;
        let (mut controller, mut node) = (ControllerClient::new(channel.clone()), NodeClient::new(channel));
        let huge = "x".repeat(10 << 20);
        let before = cluster.pooled("volume").len();
        for evil in ["../../etc/passwd", "/dev/sda", "v1:../..:x", "a\0b", "\u{1b}[2J", "-rf", huge.as_str()]
        {
            // A volume that is not there is deleted already; nothing else comes of any id.
            let delete = csi::DeleteVolumeRequest { volume_id: evil.into(), ..Default::default() };
            let deleted = controller.delete_volume(delete).await;
            assert!(evil.len() < 1000 && deleted.is_ok() || deleted.is_err(), "{deleted:?}");
            let stage = csi::NodeStageVolumeRequest {
                volume_id: evil.into(),
                staging_target_path: "/var/lib/kubelet/evil".into(),
                volume_capability: Some(mount("ext4")),
                ..Default::default()
            };
            node.node_stage_volume(stage).await.expect_err("no such volume");
            let unpublish = csi::NodeUnpublishVolumeRequest {
                volume_id: "x".into(),
                target_path: format!("/var/lib/kubelet/{evil}/.."),
            };
            node.node_unpublish_volume(unpublish).await.expect_err("no such path");
            let mut parameters = volume("evil-parameter", 16 << 20, mount("ext4"));
            parameters.parameters = HashMap::from([("fsType".to_owned(), evil.to_owned())]);
            controller.create_volume(parameters).await.expect_err("no such file system");
            let mut key = volume("evil-key", 16 << 20, mount("ext4"));
            key.parameters = HashMap::from([(evil.to_owned(), "x".to_owned())]);
            controller.create_volume(key).await.expect_err("no such parameter");
        }
        for evil in ["a\0b", "\u{1b}[2J", "", huge.as_str(), &"n".repeat(129)] {
            let refused =
                controller.create_volume(volume(evil, 16 << 20, mount("ext4"))).await.expect_err("no name");
            assert!(refused.message().len() < 1000);
            assert!(
                matches!(refused.code(), Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted),
                "{refused}"
            );
        }
        // A name with a path in it is a name like any other, and leads nowhere.
        let made = controller
            .create_volume(volume("../../etc/passwd", 16 << 20, mount("ext4")))
            .await
            .expect("a name");
        let id = made.into_inner().volume.expect("a volume").volume_id;
        let named = cluster.pooled("volume");
        assert!(
            named.iter().all(|(_, one)| !one["name"].as_str().unwrap_or_default().contains('/')),
            "{named:?}"
        );
        let delete = csi::DeleteVolumeRequest { volume_id: id, ..Default::default() };
        controller.delete_volume(delete).await.expect("it is there");
        // Others make volumes meanwhile; these left none.
        let left: Vec<_> = cluster
            .pooled("volume")
            .into_iter()
            .filter(|(_, one)| one["name"].as_str().unwrap_or_default().contains("evil"))
            .collect();
        assert_eq!(left.len(), 0, "{left:?}, {before} before");
    });
}

/// An inline volume can name a claim of its own namespace and nothing else: no volume, no handle, no namespace.
#[test]
fn a_pod_cannot_name_another_volume() {
    let Some(ns) = Namespace::new("naming") else { return };
    ns.claim_in_pod("victim", "64Mi");
    let node = ns.node_of("victim");
    let handle = ns.volume_handle("victim");
    let Some(other) = Namespace::new("naming-other") else { return };
    let attempts = [
        json!({"snapshotsOf": "victim", "csi.storage.k8s.io/pod.namespace": "naming"}),
        json!({"snapshotsOf": "victim", "namespace": "naming"}),
        json!({"volumeHandle": handle}),
        json!({}),
    ];
    for (n, attributes) in attempts.iter().enumerate() {
        let mut pod = crate::objects::browser(&format!("attempt-{n}"), "victim");
        pod["spec"]["volumes"][0]["csi"]["volumeAttributes"] = attributes.clone();
        other.apply(&on_node(pod, node));
    }
    for (n, attempt) in attempts.iter().enumerate() {
        let name = format!("attempt-{n}");
        other.cluster.eventually("the refusal is told", || {
            other.told_of(&name).contains("FailedMount")
                || other.told_of(&name).contains("MountVolume.SetUp failed")
        });
        assert_eq!(other.get(&format!("pod {name}"))["status"]["phase"], "Pending", "{attempt}");
    }
    other.end();
    ns.end();
}

/// A class may name secrets: the driver wants none, and nobody writes them down.
#[test]
fn secrets_are_not_logged() {
    let Some(ns) = Namespace::new("secrets") else { return };
    const SECRET: &str = "correct-horse-battery-staple";
    ns.kubectl(&format!("create secret generic key --from-literal=password={SECRET}"));
    // What the provisioner is told to hand on, it must be let read.
    ns.kubectl("create role reader --verb=get --resource=secrets");
    ns.kubectl("create rolebinding reader --role=reader --serviceaccount=cowslip:cowslip-csi-node");
    let mut class = crate::objects::class("secretive", "ext4");
    for use_of in ["provisioner", "node-stage", "node-publish", "node-expand"] {
        class["parameters"][format!("csi.storage.k8s.io/{use_of}-secret-name")] = "key".into();
        class["parameters"][format!("csi.storage.k8s.io/{use_of}-secret-namespace")] = ns.name.clone().into();
    }
    ns.apply(&class);
    ns.apply(&of_class(claim("data", "64Mi"), "secretive"));
    ns.pod(&pod("data", &[("data", "/data")]));
    ns.shell("data", "echo fine >/data/note");
    ns.kubectl("delete pod,pvc data");
    let mut read = 0;
    for node in NODES {
        search(&ns.cluster.logs_of_pods(node), SECRET, &mut read);
    }
    assert!(read > 4, "the logs of the driver and its sidecars on each node were read: {read}");
    ns.end();
    Cluster::running().expect("it runs").kubectl("delete storageclass secretive");
}

/// Fails where a file below `dir` contains the text.
fn search(dir: &Path, text: &str, read: &mut usize) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            search(&path, text, read);
        } else if let Ok(content) = fs::read(&path) {
            let found = content.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!found, "a secret stands in {}", path.display());
            *read += 1;
        }
    }
}
