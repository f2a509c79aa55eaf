//! Each call of CSI alone, as a sidecar or kubelet makes it, one after another.

use crate::csi_rig::{connect, from_snapshot, mount, volume};
use csi_shim::csi;
use csi_shim::csi::controller_client::ControllerClient;
use csi_shim::csi::group_controller_client::GroupControllerClient;
use csi_shim::csi::identity_client::IdentityClient;
use csi_shim::csi::node_client::NodeClient;
use csi_shim::csi::snapshot_metadata_client::SnapshotMetadataClient;
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

/// A call and how long each took, ascending; none: the driver does not offer it.
pub struct Call {
    pub name: &'static str,
    took: Vec<Duration>,
}

impl Call {
    /// Milliseconds that so many percent of the calls took at most.
    pub fn percentile_ms(&self, percent: usize) -> Option<f64> {
        let at = (self.took.len() * percent).div_ceil(100).saturating_sub(1);
        self.took.get(at).map(|took| took.as_secs_f64() * 1000.0)
    }
}

#[derive(Default)]
struct Calls(Vec<Call>);

impl Calls {
    /// What the call answers. None: the driver does not offer it.
    async fn time<T>(
        &mut self,
        name: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Option<T> {
        let started = Instant::now();
        let answer = call.await;
        let took = answer.is_ok().then(|| started.elapsed());
        match self.0.iter_mut().find(|call| call.name == name) {
            Some(call) => call.took.extend(took),
            None => self.0.push(Call { name, took: took.into_iter().collect() }),
        }
        match answer {
            Ok(answer) => Some(answer.into_inner()),
            Err(status) if status.code() == Code::Unimplemented => None,
            Err(status) => panic!("{name}: {status}"),
        }
    }
}

/// Times every call of the life of `count` volumes of the driver behind the socket.
pub fn measure(socket: &Path, count: u32) -> Vec<Call> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut calls = runtime.block_on(async {
        let channel = connect(socket).await;
        let mut driver = Driver {
            calls: Calls::default(),
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            groups: GroupControllerClient::new(channel.clone()),
            metadata: SnapshotMetadataClient::new(channel.clone()),
            node: NodeClient::new(channel),
        };
        for n in 0..count {
            driver.questions().await;
            driver.life(n).await;
        }
        driver.calls.0
    });
    for call in &mut calls {
        call.took.sort();
    }
    calls
}

struct Driver {
    calls: Calls,
    identity: IdentityClient<Channel>,
    controller: ControllerClient<Channel>,
    groups: GroupControllerClient<Channel>,
    metadata: SnapshotMetadataClient<Channel>,
    node: NodeClient<Channel>,
}

/// Places of a volume in the node's file system.
struct Places {
    staging: String,
    target: String,
}

/// Reads a stream to its end.
async fn drained<T>(answer: Result<Response<Streaming<T>>, Status>) -> Result<Response<()>, Status> {
    let mut stream = answer?.into_inner();
    while stream.message().await?.is_some() {}
    Ok(Response::new(()))
}

impl Driver {
    /// What is asked without a volume.
    async fn questions(&mut self) {
        let Self { calls, identity, controller, node, .. } = self;
        calls.time("GetPluginInfo", identity.get_plugin_info(csi::GetPluginInfoRequest {})).await;
        let request = csi::GetPluginCapabilitiesRequest {};
        calls.time("GetPluginCapabilities", identity.get_plugin_capabilities(request)).await;
        calls.time("Probe", identity.probe(csi::ProbeRequest {})).await;
        calls.time("NodeGetInfo", node.node_get_info(csi::NodeGetInfoRequest {})).await;
        calls.time("GetCapacity", controller.get_capacity(csi::GetCapacityRequest::default())).await;
    }

    async fn life(&mut self, n: u32) {
        let capability = mount("ext4");
        let request = volume(&format!("bench-{n}"), 16 << 20, capability.clone());
        let made = self.calls.time("CreateVolume", self.controller.create_volume(request)).await;
        let id = made.expect("drivers make volumes").volume.expect("a volume").volume_id;
        let places = Places {
            staging: format!("/var/lib/kubelet/bench/{n}/staging"),
            target: format!("/var/lib/kubelet/bench/{n}/target"),
        };
        self.look(&id, &capability).await;
        self.show(&id, &places, &capability).await;
        let snapshot = self.snapshot(&id, n).await;
        self.groups(&id, n).await;
        self.expand(&id, &places, &capability).await;
        self.hide(&id, &places).await;
        self.restore(&snapshot, n).await;
        let uncut = csi::DeleteSnapshotRequest { snapshot_id: snapshot, ..Default::default() };
        self.calls.time("DeleteSnapshot", self.controller.delete_snapshot(uncut)).await;
        self.delete(id).await;
    }

    async fn delete(&mut self, volume_id: String) {
        let request = csi::DeleteVolumeRequest { volume_id, ..Default::default() };
        self.calls.time("DeleteVolume", self.controller.delete_volume(request)).await;
    }

    async fn look(&mut self, id: &str, capability: &csi::VolumeCapability) {
        let Self { calls, controller, .. } = self;
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: id.to_owned(),
            volume_capabilities: vec![capability.clone()],
            ..Default::default()
        };
        calls.time("ValidateVolumeCapabilities", controller.validate_volume_capabilities(request)).await;
        calls.time("ListVolumes", controller.list_volumes(csi::ListVolumesRequest::default())).await;
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
        calls.time("ControllerGetVolume", controller.controller_get_volume(request)).await;
    }

    async fn show(&mut self, id: &str, places: &Places, capability: &csi::VolumeCapability) {
        let Self { calls, node, .. } = self;
        let stage = csi::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: places.staging.clone(),
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        calls.time("NodeStageVolume", node.node_stage_volume(stage)).await;
        let publish = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: places.staging.clone(),
            target_path: places.target.clone(),
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        calls.time("NodePublishVolume", node.node_publish_volume(publish)).await;
        let stats = csi::NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: places.target.clone(),
            ..Default::default()
        };
        calls.time("NodeGetVolumeStats", node.node_get_volume_stats(stats)).await;
    }

    /// Of the volume, which is in use; its id.
    async fn snapshot(&mut self, id: &str, n: u32) -> String {
        let Self { calls, controller, metadata, .. } = self;
        let cut = csi::CreateSnapshotRequest {
            name: format!("bench-{n}"),
            source_volume_id: id.to_owned(),
            ..Default::default()
        };
        let cut = calls.time("CreateSnapshot", controller.create_snapshot(cut)).await;
        let snapshot = cut.expect("drivers take snapshots").snapshot.expect("a snapshot").snapshot_id;
        let list = csi::ListSnapshotsRequest::default();
        calls.time("ListSnapshots", controller.list_snapshots(list)).await;
        let get = csi::GetSnapshotRequest { snapshot_id: snapshot.clone(), ..Default::default() };
        calls.time("GetSnapshot", controller.get_snapshot(get)).await;
        let allocated =
            csi::GetMetadataAllocatedRequest { snapshot_id: snapshot.clone(), ..Default::default() };
        let answer = async { drained(metadata.get_metadata_allocated(allocated).await).await };
        calls.time("GetMetadataAllocated, all of it", answer).await;
        let delta = csi::GetMetadataDeltaRequest {
            base_snapshot_id: snapshot.clone(),
            target_snapshot_id: snapshot.clone(),
            ..Default::default()
        };
        let answer = async { drained(metadata.get_metadata_delta(delta).await).await };
        calls.time("GetMetadataDelta, no change", answer).await;
        snapshot
    }

    /// A group of one.
    async fn groups(&mut self, id: &str, n: u32) {
        let Self { calls, groups, .. } = self;
        let cut = csi::CreateVolumeGroupSnapshotRequest {
            name: format!("bench-group-{n}"),
            source_volume_ids: vec![id.to_owned()],
            ..Default::default()
        };
        let cut = calls.time("CreateVolumeGroupSnapshot", groups.create_volume_group_snapshot(cut)).await;
        let Some(group) = cut.and_then(|cut| cut.group_snapshot) else { return };
        let snapshot_ids: Vec<String> =
            group.snapshots.into_iter().map(|member| member.snapshot_id).collect();
        let get = csi::GetVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id.clone(),
            snapshot_ids: snapshot_ids.clone(),
            ..Default::default()
        };
        calls.time("GetVolumeGroupSnapshot", groups.get_volume_group_snapshot(get)).await;
        let delete = csi::DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id,
            snapshot_ids,
            ..Default::default()
        };
        calls.time("DeleteVolumeGroupSnapshot", groups.delete_volume_group_snapshot(delete)).await;
    }

    /// To twice its size.
    async fn expand(&mut self, id: &str, places: &Places, capability: &csi::VolumeCapability) {
        let Self { calls, controller, node, .. } = self;
        let range = Some(csi::CapacityRange { required_bytes: 32 << 20, limit_bytes: 0 });
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: range,
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        calls.time("ControllerExpandVolume", controller.controller_expand_volume(request)).await;
        let request = csi::NodeExpandVolumeRequest {
            volume_id: id.to_owned(),
            volume_path: places.target.clone(),
            staging_target_path: places.staging.clone(),
            capacity_range: range,
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        calls.time("NodeExpandVolume", node.node_expand_volume(request)).await;
    }

    async fn hide(&mut self, id: &str, places: &Places) {
        let Self { calls, node, .. } = self;
        let (volume_id, target_path) = (id.to_owned(), places.target.clone());
        let unpublish = csi::NodeUnpublishVolumeRequest { volume_id, target_path };
        calls.time("NodeUnpublishVolume", node.node_unpublish_volume(unpublish)).await;
        let (volume_id, staging_target_path) = (id.to_owned(), places.staging.clone());
        let unstage = csi::NodeUnstageVolumeRequest { volume_id, staging_target_path };
        calls.time("NodeUnstageVolume", node.node_unstage_volume(unstage)).await;
    }

    async fn restore(&mut self, snapshot: &str, n: u32) {
        let request = csi::CreateVolumeRequest {
            volume_content_source: from_snapshot(snapshot),
            ..volume(&format!("bench-restored-{n}"), 16 << 20, mount("ext4"))
        };
        let made =
            self.calls.time("CreateVolume of a snapshot", self.controller.create_volume(request)).await;
        if let Some(made) = made.and_then(|made| made.volume) {
            self.delete(made.volume_id).await;
        }
    }
}
