//! The Node service: volumes of this node's pool as mounts and device files.
//!
//! Whatever it needs to know it reads from the mount table and asks of the agent: a call that is repeated, after
//! whoever died, goes on where the last one stopped.

mod device;
mod expand;
mod mounts;
mod publish;
mod stage;
mod stats;
mod unused;

pub(crate) use mounts::{Mount, at as mount_at, bind, table as mount_table};

use crate::agent::{Agent, Connection, foreign};
use crate::checks::{self, shown};
use crate::csi::node_server::Node;
use crate::csi::node_service_capability::rpc::Type as Rpc;
use crate::csi::{self, node_service_capability};
use crate::pending::Pending;
use crate::{Answer, TOPOLOGY_KEY, answer};
use api::v1::{AttachVolumeRequest, Volume};
use device::Device;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use tonic::{Request, Status};

/// What the service can do.
const CAPABILITIES: [Rpc; 4] =
    [Rpc::StageUnstageVolume, Rpc::GetVolumeStats, Rpc::ExpandVolume, Rpc::SingleNodeMultiWriter];

/// The service.
#[derive(Debug)]
pub struct NodeService {
    agent: Agent,
    pending: Pending,
}

impl NodeService {
    /// For that agent.
    pub fn new(agent: Agent, pending: Pending) -> Self {
        Self { agent, pending }
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Answer<csi::NodeStageVolumeResponse> {
        let request = request.into_inner();
        let (agent, key) = (self.agent.clone(), request.volume_id.clone());
        let work = async move { stage::stage(&agent, request).await };
        let done = self.pending.alone(&key, work).await;
        answer("NodeStageVolume", done.map(|()| csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Answer<csi::NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        let (agent, key) = (self.agent.clone(), request.volume_id.clone());
        let work = async move { stage::unstage(&agent, &request).await };
        let done = self.pending.alone(&key, work).await;
        answer("NodeUnstageVolume", done.map(|()| csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Answer<csi::NodePublishVolumeResponse> {
        let request = request.into_inner();
        let (agent, key) = (self.agent.clone(), request.volume_id.clone());
        let work = async move { publish::publish(&agent, request).await };
        let done = self.pending.alone(&key, work).await;
        answer("NodePublishVolume", done.map(|()| csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        let key = request.volume_id.clone();
        let work = async move { publish::unpublish(&request).await };
        let done = self.pending.alone(&key, work).await;
        answer("NodeUnpublishVolume", done.map(|()| csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        answer("NodeGetVolumeStats", stats::stats(&self.agent, request.into_inner()).await)
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        let request = request.into_inner();
        let (agent, key) = (self.agent.clone(), request.volume_id.clone());
        let work = async move { expand::expand(&agent, request).await };
        answer("NodeExpandVolume", self.pending.alone(&key, work).await)
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        let capability = |rpc: Rpc| csi::NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(node_service_capability::Rpc {
                r#type: rpc.into(),
            })),
        };
        let capabilities = CAPABILITIES.into_iter().map(capability).collect();
        answer("NodeGetCapabilities", Ok(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<csi::NodeGetInfoRequest>) -> Answer<csi::NodeGetInfoResponse> {
        let node = self.agent.node().to_owned();
        let segments = HashMap::from([(TOPOLOGY_KEY.to_owned(), node.clone())]);
        let info = csi::NodeGetInfoResponse {
            node_id: node,
            max_volumes_per_node: 0,
            accessible_topology: Some(csi::Topology { segments }),
        };
        answer("NodeGetInfo", Ok(info))
    }
}

/// Does `work`, which may block, on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|failure| {
        tracing::error!("a call ended abnormally: {failure}");
        Err(Status::internal("the call ended abnormally; the driver's log says where"))
    })
}

/// The system's answer to `what` at `path`.
fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> Status + 'a {
    move |error| {
        let message = format!("cannot {what}, {}: {error}", shown(&path.to_string_lossy()));
        match error.kind() {
            io::ErrorKind::ResourceBusy => Status::failed_precondition(message),
            io::ErrorKind::PermissionDenied => Status::permission_denied(message),
            _ => Status::internal(message),
        }
    }
}

/// The volume with that id, attached, and its device.
async fn attach(agent: &mut Connection, id: &str) -> Result<(Volume, Device), Status> {
    let volume = agent.volume(id).await?;
    let request = AttachVolumeRequest { name: volume.name };
    let attached = agent.client.attach_volume(request).await.map_err(foreign)?.into_inner();
    if attached.id != volume.id {
        return Err(Status::aborted("the volume got another name just now; try again"));
    }
    let device = device_of(&attached).await?;
    Ok((attached, device))
}

/// The device of a volume that is attached.
async fn device_of(volume: &Volume) -> Result<Device, Status> {
    let Some(path) = volume.device.clone() else {
        let why = volume.attach_error.as_deref().unwrap_or("it was not staged");
        return Err(Status::failed_precondition(format!(
            "volume {} has no device: {why}",
            shown(&volume.name)
        )));
    };
    blocking(move || Device::at(Path::new(&path)).map_err(failed("find the device", Path::new(&path)))).await
}

/// A volume by its id, for calls that name one of its paths too.
async fn volume_and_path(
    agent: &Agent,
    id: &str,
    path: &str,
) -> Result<(Connection, Volume, std::path::PathBuf), Status> {
    checks::required("volume_id", id)?;
    checks::required("volume_path", path)?;
    let mut agent = agent.connect().await?;
    let volume = agent.volume(id).await?;
    // Nothing is where no volume can be.
    let path = checks::path("volume_path", path).map_err(|why| Status::not_found(why.message()))?;
    Ok((agent, volume, path))
}
