//! The CSI driver's Identity service, asked over its socket as kubelet's sidecars ask it.

use crate::csi_rig::connect;
use csi_shim::csi::controller_client::ControllerClient;
use csi_shim::csi::identity_client::IdentityClient;
use csi_shim::csi::node_client::NodeClient;
use csi_shim::csi::{
    ControllerPublishVolumeRequest, GetPluginCapabilitiesRequest, GetPluginInfoRequest, ListVolumesRequest,
    NodeGetInfoRequest, ProbeRequest, ProbeResponse,
};
use integration_tests::binary;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

/// `cowslip-csi node` with sockets in a directory of its own; killed when dropped.
struct Driver {
    child: Child,
    dir: TempDir,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Driver {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { child: command(dir.path()).spawn().expect("cowslip-csi starts"), dir }
    }

    fn endpoint(&self) -> PathBuf {
        self.dir.path().join("csi.sock")
    }

    fn agent(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// A connection, as soon as the driver listens.
    async fn channel(&self) -> Channel {
        connect(&self.endpoint()).await
    }

    async fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel().await)
    }

    async fn is_ready(&self) -> bool {
        let ProbeResponse { ready } =
            self.identity().await.probe(ProbeRequest {}).await.expect("a probe never fails").into_inner();
        ready.expect("the answer says whether it is ready")
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(binary("cowslip-csi"));
    command.arg("node").arg("--endpoint").arg(format!("unix://{}", dir.join("csi.sock").display()));
    command.arg("--agent").arg(dir.join("agent.sock")).args(["--node-name", "here"]);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// An agent that only says how its pool is.
#[derive(Clone)]
struct StandIn {
    pool_state: &'static str,
}

impl NamedService for StandIn {
    const NAME: &'static str = "cowslip.agent.v1.Agent";
}

impl UnaryService<api::v1::GetStatusRequest> for StandIn {
    type Response = api::v1::Status;
    type Future = Ready<Result<Response<api::v1::Status>, Status>>;

    fn call(&mut self, _: Request<api::v1::GetStatusRequest>) -> Self::Future {
        let pool = api::v1::PoolStatus { state: self.pool_state.to_owned(), ..Default::default() };
        ready(Ok(Response::new(api::v1::Status { pool: Some(pool), ..Default::default() })))
    }
}

impl tower::Service<http::Request<Body>> for StandIn {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert_eq!(request.uri().path(), "/cowslip.agent.v1.Agent/GetStatus");
        let service = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<api::v1::Status, api::v1::GetStatusRequest>::default();
            Ok(Grpc::new(codec).unary(service, request).await)
        })
    }
}

impl StandIn {
    fn start(self, socket: &Path) -> JoinHandle<()> {
        // What an agent that was killed leaves.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).expect("the socket can be bound");
        tokio::spawn(async {
            let server = Server::builder().add_service(self);
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.expect("it serves");
        })
    }
}

#[tokio::test]
async fn it_says_who_it_is_and_what_it_can_do() {
    let driver = Driver::start();
    let mut identity = driver.identity().await;
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.expect("it answers").into_inner();
    assert_eq!(info.name, "csi.cowslip.io");
    let version = Command::new(binary("cowslip-csi")).arg("--version").output().expect("it runs").stdout;
    assert_eq!(String::from_utf8_lossy(&version), format!("cowslip-csi {}\n", info.vendor_version));
    let answer = identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.expect("it answers");
    assert_eq!(
        answer.into_inner().capabilities.len(),
        5,
        "controller, topology, groups, metadata, expansion"
    );
}

#[tokio::test]
async fn what_it_does_not_claim_is_unimplemented_without_details() {
    let driver = Driver::start();
    let mut controller = ControllerClient::new(driver.channel().await);
    let request = ControllerPublishVolumeRequest::default();
    let status = controller.controller_publish_volume(request).await.expect_err("nothing is to be done");
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.details().is_empty());
}

#[tokio::test]
async fn without_an_agent_calls_are_to_be_tried_again() {
    let driver = Driver::start();
    let mut node = NodeClient::new(driver.channel().await);
    let info =
        node.node_get_info(NodeGetInfoRequest {}).await.expect("the node's name is known").into_inner();
    assert_eq!(info.node_id, "here");
    let mut controller = ControllerClient::new(driver.channel().await);
    let status = controller.list_volumes(ListVolumesRequest::default()).await.expect_err("nobody can tell");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("systemctl start cowslip"), "{status}");
}

#[tokio::test]
async fn it_is_ready_while_the_agent_is_well() {
    let driver = Driver::start();
    assert!(!driver.is_ready().await, "there is no agent");
    for (pool_state, ready) in [("ok", true), ("full", true), ("failed", false)] {
        let agent = StandIn { pool_state }.start(&driver.agent());
        assert_eq!(driver.is_ready().await, ready, "{pool_state}");
        agent.abort();
        // Its socket is closed when the task is gone.
        assert!(agent.await.expect_err("it was aborted").is_cancelled());
        assert!(!driver.is_ready().await, "the agent went away");
    }
}

#[tokio::test]
async fn an_agent_that_hangs_is_not_waited_for_for_ever() {
    let driver = Driver::start();
    // Connections are made by the kernel; nobody answers them.
    let _listener = UnixListener::bind(driver.agent()).expect("the socket can be bound");
    assert!(!driver.is_ready().await);
}

#[tokio::test]
async fn its_socket_is_the_owners_alone_and_has_one_server() {
    let driver = Driver::start();
    driver.identity().await;
    let mode = std::fs::metadata(driver.endpoint()).expect("there is a socket").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);

    let second = command(driver.dir.path()).stderr(Stdio::piped()).output().expect("it runs");
    assert_eq!(second.status.code(), Some(4));
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("\nerror: somebody listens already, ") && text.contains("\nhint: "), "{text}");
    driver.identity().await.get_plugin_info(GetPluginInfoRequest {}).await.expect("the first still serves");
}

#[tokio::test]
async fn it_takes_the_place_of_one_that_was_killed() {
    let mut driver = Driver::start();
    driver.identity().await;
    driver.child.kill().expect("it runs");
    driver.child.wait().expect("it was killed");
    assert!(driver.endpoint().exists(), "nobody removed the socket");
    driver.child = command(driver.dir.path()).spawn().expect("cowslip-csi starts");
    driver.identity().await.get_plugin_info(GetPluginInfoRequest {}).await.expect("it serves");
}

#[tokio::test]
async fn sigterm_ends_it_cleanly() {
    let mut driver = Driver::start();
    let idle = driver.identity().await;
    let pid = driver.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    let status = driver.child.wait().expect("it ends");
    assert!(status.success(), "{status}");
    assert!(!driver.endpoint().exists(), "the socket goes with it");
    drop(idle);
}

#[test]
fn an_endpoint_that_is_none_is_a_usage_error() {
    for endpoint in ["tcp://127.0.0.1:9", "csi.sock", "unix://csi.sock"] {
        let output = Command::new(binary("cowslip-csi"))
            .args(["node", "--endpoint", endpoint])
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{endpoint}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(endpoint) && text.contains("unix:///csi/csi.sock"), "{text}");
    }
}

#[test]
fn the_log_can_be_json() {
    let mut driver = command(Path::new("/nonexistent"));
    let output = driver.args(["--log-format", "json"]).stderr(Stdio::piped()).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.starts_with("{\"timestamp\":") && text.contains("\"node\":\"here\""), "{text}");
    assert!(text.contains("\nerror: cannot bind, /nonexistent/csi.sock: "), "{text}");
}
