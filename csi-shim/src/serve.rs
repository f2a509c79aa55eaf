//! The driver of one node, from its start to its end.

use crate::agent::Agent;
use crate::browse;
use crate::controller::ControllerService;
use crate::csi::controller_server::ControllerServer;
use crate::csi::group_controller_server::GroupControllerServer;
use crate::csi::identity_server::IdentityServer;
use crate::csi::node_server::NodeServer;
use crate::csi::snapshot_metadata_server::SnapshotMetadataServer;
use crate::endpoint::{BindError, Endpoint};
use crate::group::GroupService;
use crate::identity::IdentityService;
use crate::metadata::MetadataService;
use crate::node::NodeService;
use crate::pending::Pending;
use std::future::Future;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// Longest time for calls in flight to finish once the driver is asked to end; kubelet gives a pod 30 s.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Why the driver ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It never listened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The transport failed.
    #[error("serving failed, {endpoint}: {source}")]
    Transport {
        /// Where it listened.
        endpoint: Endpoint,
        /// What the transport says.
        source: tonic::transport::Error,
    },
}

/// Serves CSI at `endpoint` for `agent` until `stop` is done, and then until
/// the calls in flight are answered, 10 seconds at most.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    endpoint: &Endpoint,
    agent: Agent,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let (listener, _bound) = endpoint.bind().await?;
    tracing::info!(%endpoint, agent = %agent.socket().display(), node = agent.node(), "serving");
    let pending = Pending::default();
    let (drain, draining) = oneshot::channel::<()>();
    let server = Server::builder()
        .add_service(IdentityServer::new(IdentityService::new(agent.socket().to_owned())))
        .add_service(ControllerServer::new(ControllerService::new(agent.clone(), pending.clone())))
        .add_service(GroupControllerServer::new(GroupService::new(agent.clone(), pending.clone())))
        .add_service(SnapshotMetadataServer::new(MetadataService::new(agent.clone())))
        .add_service(NodeServer::new(NodeService::new(agent.clone(), pending)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            // A sender that is gone asks for the same.
            let _ = draining.await;
        });
    tokio::pin!(server);
    let ended = tokio::select! {
        ended = &mut server => ended,
        () = browse::keep(&agent) => unreachable!("it ends never"),
        () = stop => {
            tracing::info!("ending");
            drop(drain);
            tokio::time::timeout(DRAIN_DEADLINE, server).await.unwrap_or_else(|_| {
                tracing::warn!("calls in flight were cut off after {} s", DRAIN_DEADLINE.as_secs());
                Ok(())
            })
        }
    };
    ended.map_err(|source| ServeError::Transport { endpoint: endpoint.clone(), source })
}
