//! The Identity service: who the driver is, what it can do, whether it can do it now.

use crate::DRIVER_NAME;
use crate::csi::identity_server::Identity;
use crate::csi::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use crate::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};
use api::{Client, Error, ErrorKind};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Longest time the agent may take to answer a probe; sidecars themselves wait no longer than a few seconds.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Answers for the agent behind one socket.
#[derive(Debug)]
pub struct IdentityService {
    agent: PathBuf,
}

impl IdentityService {
    /// For the agent that listens on the socket `agent`, now or later.
    pub fn new(agent: PathBuf) -> Self {
        Self { agent }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let services = [
            service::Type::ControllerService,
            service::Type::VolumeAccessibilityConstraints,
            service::Type::GroupControllerService,
            service::Type::SnapshotMetadataService,
        ];
        let services = services.map(|r#type| Type::Service(Service { r#type: r#type.into() }));
        let online = volume_expansion::Type::Online.into();
        let expansion = Type::VolumeExpansion(VolumeExpansion { r#type: online });
        let all = services.into_iter().chain([expansion]);
        let capabilities = all.map(|one| PluginCapability { r#type: Some(one) }).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// "Not ready" and no failure while the agent is away: sidecars wait for readiness, but end at an error.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let ready = match check_agent(&self.agent).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(hint = error.hint.as_deref(), "not ready: {error}");
                false
            }
        };
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}

/// Asks the agent at `socket` how it is.
///
/// # Errors
/// [`ErrorKind::Unreachable`] if it does not answer in time, [`ErrorKind::Poisoned`] if its pool has failed.
async fn check_agent(socket: &Path) -> api::Result<()> {
    let ask = async {
        let mut agent = Client::connect(socket).await?;
        Ok::<_, Error>(agent.get_status(api::v1::GetStatusRequest {}).await?.into_inner())
    };
    let status = tokio::time::timeout(PROBE_DEADLINE, ask).await.map_err(|_| {
        let waited = PROBE_DEADLINE.as_secs();
        Error::new(
            ErrorKind::Unreachable,
            format!("no answer within {waited} s, agent at {}", socket.display()),
        )
        .hint("look at the agent's log: journalctl -u cowslip")
    })??;
    match status.pool {
        Some(pool) if pool.state == "failed" => {
            Err(Error::new(ErrorKind::Poisoned, format!("the pool takes no writes, {}", pool.path))
                .hint("ask `cowslip doctor` on the node"))
        }
        _ => Ok(()),
    }
}
