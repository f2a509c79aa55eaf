//! Many at once, the same twice, and what is taken away while it is made.

use crate::cluster::{Cluster, NODES, Namespace};
use crate::csi_rig::{connect, mount, volume};
use crate::objects::{chosen, claim, pod, snapshot};
use csi_shim::csi;
use csi_shim::csi::controller_client::ControllerClient;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

fn list(items: impl Iterator<Item = Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>()})
}

fn node_for(n: usize) -> u32 {
    NODES[n % NODES.len()]
}

#[test]
fn fifty_claims_and_snapshots_at_once() {
    let Some(ns) = Namespace::new("fifty") else { return };
    ns.apply(&list((0..50).map(|n| chosen(&format!("c{n}"), node_for(n)))));
    ns.wait("jsonpath={.status.phase}=Bound pvc --all");
    ns.apply(&list((0..50).map(|n| snapshot(&format!("s{n}"), &format!("c{n}")))));
    ns.wait("jsonpath={.status.readyToUse}=true volumesnapshot --all");
    assert_eq!(ns.pooled().len(), 100);
    ns.end();
}

#[test]
fn deleted_while_it_is_made() {
    let Some(ns) = Namespace::new("deleted") else { return };
    // Claims at every stage: hardly asked for, being made, made.
    for round in 0..4 {
        let names: Vec<String> = (0..6).map(|n| format!("c{round}-{n}")).collect();
        ns.apply(&list(names.iter().enumerate().map(|(n, name)| chosen(name, node_for(n)))));
        std::thread::sleep(std::time::Duration::from_millis(150 * round));
        ns.kubectl(&format!("delete --wait=false pvc {}", names.join(" ")));
    }
    // Snapshots, with and without their claims; the same names again.
    ns.apply(&list((0..6).map(|n| chosen(&format!("data{n}"), node_for(n)))));
    ns.wait("jsonpath={.status.phase}=Bound pvc/data0 pvc/data1 pvc/data2 pvc/data3 pvc/data4 pvc/data5");
    for round in 0..3 {
        let names: Vec<String> = (0..6).map(|n| format!("s{n}")).collect();
        ns.apply(&list((0..6).map(|n| snapshot(&format!("s{n}"), &format!("data{n}")))));
        std::thread::sleep(std::time::Duration::from_millis(200 * round));
        ns.kubectl(&format!("delete volumesnapshot {}", names.join(" ")));
    }
    ns.apply(&list((0..6).map(|n| snapshot(&format!("last{n}"), &format!("data{n}")))));
    ns.kubectl("delete --wait=false pvc --all");
    // A pod that goes at once, with its claim.
    ns.apply(&claim("fleeting", "16Mi"));
    ns.apply(&pod("fleeting", &[("fleeting", "/data")]));
    ns.cluster
        .eventually("its volume is being made", || ns.get("pvc fleeting")["status"]["phase"] == "Bound");
    ns.kubectl("delete --grace-period=0 --force pod fleeting");
    ns.kubectl("delete pvc fleeting");
    // Nothing of all that may be left.
    ns.end();
}

async fn controller(cluster: &Cluster, node: u32) -> ControllerClient<Channel> {
    let socket = cluster.kubelet(node, "plugins/csi.cowslip.io/csi.sock");
    ControllerClient::new(connect(&socket).await)
}

/// What a sidecar that lost its memory may ask: the same name at the same time, and then with other arguments.
#[test]
fn the_same_name_twice() {
    let Some(cluster) = Cluster::running() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let driver = controller(cluster, 1).await;
        let request = |bytes: u64| volume("twice", bytes, mount("ext4"));
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..20u64 {
            let (mut driver, request) =
                (driver.clone(), request(if n % 2 == 0 { 16 << 20 } else { 32 << 20 }));
            calls.spawn(async move { driver.create_volume(request).await });
        }
        let mut made = std::collections::BTreeSet::new();
        for answer in calls.join_all().await {
            match answer {
                Ok(answer) => {
                    let volume = answer.into_inner().volume.expect("a volume");
                    made.insert((volume.volume_id, volume.capacity_bytes));
                }
                Err(status) => {
                    assert!(matches!(status.code(), Code::Aborted | Code::AlreadyExists), "{status}");
                }
            }
        }
        assert_eq!(made.len(), 1, "one volume, whoever asks: {made:?}");
        let (id, bytes) = made.into_iter().next().expect("one");
        let mut driver = driver;
        let refused = driver.create_volume(request(64 << 20)).await.expect_err("another size");
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
        let again =
            driver.create_volume(request(bytes.try_into().expect("a size"))).await.expect("the same again");
        assert_eq!(again.into_inner().volume.expect("a volume").volume_id, id);
        let delete = csi::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
        // At once, and again when it is gone.
        let mut second = driver.clone();
        let (one, two) =
            tokio::join!(driver.delete_volume(delete.clone()), second.delete_volume(delete.clone()));
        for answer in [one, two] {
            assert!(
                answer.as_ref().map_or_else(|status| status.code() == Code::Aborted, |_| true),
                "{answer:?}"
            );
        }
        driver.delete_volume(delete).await.expect("what is gone is deleted");
    });
}
