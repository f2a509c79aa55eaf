//! Each call of CSI alone, as a sidecar or kubelet makes it, one after another.

use crate::csi_rig::{connect, mount, volume};
use csi_shim::csi;
use csi_shim::csi::controller_client::ControllerClient;
use csi_shim::csi::node_client::NodeClient;
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::{Response, Status};

/// A call and how long each took, ascending.
pub struct Call {
    pub name: &'static str,
    took: Vec<Duration>,
}

impl Call {
    /// Milliseconds that so many percent of the calls took at most.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let at = (self.took.len() * percent).div_ceil(100).saturating_sub(1);
        self.took.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
    }
}

#[derive(Default)]
struct Calls(Vec<Call>);

impl Calls {
    async fn time<T>(
        &mut self,
        name: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> T {
        let started = Instant::now();
        let answer = call.await.unwrap_or_else(|status| panic!("{name}: {status}"));
        let took = started.elapsed();
        match self.0.iter_mut().find(|call| call.name == name) {
            Some(call) => call.took.push(took),
            None => self.0.push(Call { name, took: vec![took] }),
        }
        answer.into_inner()
    }
}

/// Times every call of the life of `count` volumes of the driver behind the socket.
pub fn measure(socket: &Path, count: u32) -> Vec<Call> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut calls = Calls::default();
    runtime.block_on(async {
        let channel = connect(socket).await;
        let (mut controller, mut node) = (ControllerClient::new(channel.clone()), NodeClient::new(channel));
        for n in 0..count {
            life(&mut calls, &mut controller, &mut node, n).await;
        }
    });
    for call in &mut calls.0 {
        call.took.sort();
    }
    calls.0
}

type Controller = ControllerClient<tonic::transport::Channel>;
type Node = NodeClient<tonic::transport::Channel>;

async fn life(calls: &mut Calls, controller: &mut Controller, node: &mut Node, n: u32) {
    let capability = mount("ext4");
    let request = volume(&format!("bench-{n}"), 16 << 20, capability.clone());
    let made = calls.time("CreateVolume", controller.create_volume(request)).await;
    let id = made.volume.expect("a volume").volume_id;
    let staging = format!("/var/lib/kubelet/bench/{n}/staging");
    let target = format!("/var/lib/kubelet/bench/{n}/target");
    let stage = csi::NodeStageVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: staging.clone(),
        volume_capability: Some(capability.clone()),
        ..Default::default()
    };
    calls.time("NodeStageVolume", node.node_stage_volume(stage)).await;
    let publish = csi::NodePublishVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: staging.clone(),
        target_path: target.clone(),
        volume_capability: Some(capability),
        ..Default::default()
    };
    calls.time("NodePublishVolume", node.node_publish_volume(publish)).await;
    let stats = csi::NodeGetVolumeStatsRequest {
        volume_id: id.clone(),
        volume_path: target.clone(),
        ..Default::default()
    };
    calls.time("NodeGetVolumeStats", node.node_get_volume_stats(stats)).await;
    let cut = csi::CreateSnapshotRequest {
        name: format!("bench-{n}"),
        source_volume_id: id.clone(),
        ..Default::default()
    };
    let cut = calls.time("CreateSnapshot", controller.create_snapshot(cut)).await;
    let list = csi::ListSnapshotsRequest::default();
    calls.time("ListSnapshots", controller.list_snapshots(list)).await;
    let unpublish = csi::NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path: target };
    calls.time("NodeUnpublishVolume", node.node_unpublish_volume(unpublish)).await;
    let unstage = csi::NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path: staging };
    calls.time("NodeUnstageVolume", node.node_unstage_volume(unstage)).await;
    let snapshot_id = cut.snapshot.expect("a snapshot").snapshot_id;
    let uncut = csi::DeleteSnapshotRequest { snapshot_id, ..Default::default() };
    calls.time("DeleteSnapshot", controller.delete_snapshot(uncut)).await;
    let delete = csi::DeleteVolumeRequest { volume_id: id, ..Default::default() };
    calls.time("DeleteVolume", controller.delete_volume(delete)).await;
}
