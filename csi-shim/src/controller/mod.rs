//! The Controller service: volumes and snapshots of this node's pool.

mod convert;
mod list;
mod snapshots;
mod volumes;

pub use convert::group_id_of;
pub(crate) use convert::{snapshot, timestamp};

use crate::agent::{Agent, foreign};
use crate::checks;
use crate::csi::controller_server::Controller;
use crate::csi::controller_service_capability::rpc::Type as Rpc;
use crate::csi::{self, controller_service_capability};
use crate::pending::Pending;
use crate::{Answer, answer};
use tonic::{Request, Status};

/// What the service can do.
const CAPABILITIES: [Rpc; 9] = [
    Rpc::CreateDeleteVolume,
    Rpc::CreateDeleteSnapshot,
    Rpc::CloneVolume,
    Rpc::ListVolumes,
    Rpc::ListSnapshots,
    Rpc::GetCapacity,
    Rpc::GetVolume,
    Rpc::GetSnapshot,
    Rpc::SingleNodeMultiWriter,
];

/// The service.
#[derive(Debug)]
pub struct ControllerService {
    agent: Agent,
    pending: Pending,
}

impl ControllerService {
    /// For that agent.
    pub fn new(agent: Agent, pending: Pending) -> Self {
        Self { agent, pending }
    }
}

fn not_here<T>(method: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("{method} is not among the capabilities")))
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Answer<csi::CreateVolumeResponse> {
        let request = request.into_inner();
        let key = format!("volume name {}", crate::ids::hash_of_name(&request.name));
        let agent = self.agent.clone();
        let work = async move { volumes::create(&agent, request).await };
        answer("CreateVolume", self.pending.alone(&key, work).await)
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Answer<csi::DeleteVolumeResponse> {
        let id = request.into_inner().volume_id;
        let agent = self.agent.clone();
        let key = id.clone();
        let work = async move { volumes::delete(&agent, &id).await };
        let done = self.pending.alone(&key, work).await;
        answer("DeleteVolume", done.map(|()| csi::DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Answer<csi::ControllerPublishVolumeResponse> {
        not_here("ControllerPublishVolume")
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Answer<csi::ControllerUnpublishVolumeResponse> {
        not_here("ControllerUnpublishVolume")
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<csi::ValidateVolumeCapabilitiesResponse> {
        answer("ValidateVolumeCapabilities", volumes::validate(&self.agent, request.into_inner()).await)
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Answer<csi::ListVolumesResponse> {
        answer("ListVolumes", list::volumes(&self.agent, &request.into_inner()).await)
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Answer<csi::GetCapacityResponse> {
        answer("GetCapacity", list::capacity(&self.agent, &request.into_inner()).await)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::ControllerGetCapabilitiesResponse> {
        let capability = |rpc: Rpc| csi::ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(controller_service_capability::Rpc {
                r#type: rpc.into(),
            })),
        };
        let capabilities = CAPABILITIES.into_iter().map(capability).collect();
        answer("ControllerGetCapabilities", Ok(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Answer<csi::CreateSnapshotResponse> {
        let request = request.into_inner();
        let key = format!("snapshot name {}", crate::ids::hash_of_name(&request.name));
        let agent = self.agent.clone();
        let work = async move { snapshots::create(&agent, request).await };
        answer("CreateSnapshot", self.pending.alone(&key, work).await)
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Answer<csi::DeleteSnapshotResponse> {
        let id = request.into_inner().snapshot_id;
        let agent = self.agent.clone();
        let key = id.clone();
        let work = async move { snapshots::delete(&agent, &id).await };
        let done = self.pending.alone(&key, work).await;
        answer("DeleteSnapshot", done.map(|()| csi::DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Answer<csi::ListSnapshotsResponse> {
        answer("ListSnapshots", list::snapshots(&self.agent, &request.into_inner()).await)
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Answer<csi::GetSnapshotResponse> {
        let id = request.into_inner().snapshot_id;
        let look = async {
            checks::required("snapshot_id", &id)?;
            let mut agent = self.agent.connect().await?;
            let found = agent.snapshot(&id).await?;
            Ok(csi::GetSnapshotResponse { snapshot: Some(snapshot(&agent, &found)) })
        };
        answer("GetSnapshot", look.await)
    }

    async fn controller_expand_volume(
        &self,
        _: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Answer<csi::ControllerExpandVolumeResponse> {
        not_here("ControllerExpandVolume")
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Answer<csi::ControllerGetVolumeResponse> {
        let id = request.into_inner().volume_id;
        let look = async {
            checks::required("volume_id", &id)?;
            let mut agent = self.agent.connect().await?;
            let found = agent.volume(&id).await?;
            Ok(csi::ControllerGetVolumeResponse {
                volume: Some(convert::volume(&agent, &found, self.agent.node())),
                status: Some(csi::controller_get_volume_response::VolumeStatus::default()),
            })
        };
        answer("ControllerGetVolume", look.await)
    }

    async fn controller_modify_volume(
        &self,
        _: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Answer<csi::ControllerModifyVolumeResponse> {
        not_here("ControllerModifyVolume")
    }
}

/// Deletes objects of the pool, those that are there.
pub(crate) async fn delete_objects(
    agent: &mut crate::agent::Connection,
    volume_ids: Vec<u64>,
    snapshot_ids: Vec<u64>,
) -> Result<(), Status> {
    let request = api::v1::DeleteObjectsRequest { volume_ids, snapshot_ids };
    agent.client.delete_objects(request).await.map(drop).map_err(foreign)
}
