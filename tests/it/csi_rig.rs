//! `cowslip-csi node` in front of a rig's agent, and what kubelet and the sidecars say to it.

use crate::rig::Rig;
use csi_shim::csi::controller_client::ControllerClient;
use csi_shim::csi::group_controller_client::GroupControllerClient;
use csi_shim::csi::node_client::NodeClient;
use csi_shim::csi::snapshot_metadata_client::SnapshotMetadataClient;
use csi_shim::csi::volume_capability::access_mode::Mode;
use csi_shim::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use csi_shim::csi::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use csi_shim::csi::{self, CapacityRange, VolumeCapability, VolumeContentSource};
use hyper_util::rt::TokioIo;
use integration_tests::binary;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// How long what nobody uses may be busy.
const BUSY: Duration = Duration::from_secs(10);

pub const MIB: u64 = 1 << 20;

/// The name of the node.
pub const NODE: &str = "here";

/// A driver, its log in the rig's directory; killed when dropped.
pub struct Driver {
    child: Child,
    socket: PathBuf,
    pub log: PathBuf,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Driver {
    pub fn start(rig: &Rig) -> Self {
        let (socket, log) = (rig.path("csi.sock"), rig.path("csi.log"));
        let file = fs::File::options().create(true).append(true).open(&log).expect("a log");
        let mut command = Command::new(binary("cowslip-csi"));
        command.arg("node").arg("--endpoint").arg(format!("unix://{}", socket.display()));
        command.arg("--agent").arg(rig.path("agent.sock")).args(["--node-name", NODE]);
        command.env("RUST_LOG", "debug").stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Self { child: command.spawn().expect("cowslip-csi starts"), socket, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was killed");
    }

    /// A connection, as soon as the driver listens.
    pub async fn channel(&self) -> Channel {
        connect(&self.socket).await
    }
}

/// A connection to a driver's socket, as soon as it listens there.
pub async fn connect(socket: &Path) -> Channel {
    let path = socket.to_owned();
    for _ in 0..6000 {
        if UnixStream::connect(&path).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::from_static("http://csi");
    endpoint.connect_with_connector(connector).await.expect("the driver listens on its endpoint")
}

/// A rig with a driver, and clients of it.
pub struct Csi {
    // Dropped in this order: the driver ends before what it mounts on goes.
    pub driver: Driver,
    pub controller: ControllerClient<Channel>,
    pub groups: GroupControllerClient<Channel>,
    pub metadata: SnapshotMetadataClient<Channel>,
    pub node: NodeClient<Channel>,
    pub rig: Rig,
}

pub type Answer<T> = Result<T, Status>;

/// The code of a call that must fail.
#[track_caller]
pub fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    let status = answer.expect_err("the call fails");
    assert!(status.details().is_empty());
    assert!(status.message().len() < 1000, "{status}");
    status.code()
}

pub fn mount(fs: &str) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs.into(), ..Default::default() };
    capability(AccessType::Mount(mount), Mode::SingleNodeWriter)
}

pub fn block() -> VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), Mode::SingleNodeWriter)
}

pub fn capability(access: AccessType, mode: Mode) -> VolumeCapability {
    VolumeCapability { access_type: Some(access), access_mode: Some(AccessMode { mode: mode.into() }) }
}

pub fn from_snapshot(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(Source::Snapshot(SnapshotSource { snapshot_id: id.into() })) })
}

pub fn from_volume(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(Source::Volume(VolumeSource { volume_id: id.into() })) })
}

/// A request for a volume of that size.
pub fn volume(name: &str, bytes: u64, capability: VolumeCapability) -> csi::CreateVolumeRequest {
    let required_bytes = i64::try_from(bytes).expect("a size");
    csi::CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
        volume_capabilities: vec![capability],
        ..Default::default()
    }
}

impl Csi {
    /// A new pool of that size with agent and driver; None, said: this machine cannot.
    pub async fn new(size: &str) -> Option<Self> {
        let rig = Rig::new(size)?;
        Some(Self::on(rig).await)
    }

    pub async fn on(rig: Rig) -> Self {
        let driver = Driver::start(&rig);
        let channel = driver.channel().await;
        Self {
            driver,
            controller: ControllerClient::new(channel.clone()),
            groups: GroupControllerClient::new(channel.clone()),
            metadata: SnapshotMetadataClient::new(channel.clone()),
            node: NodeClient::new(channel),
            rig,
        }
    }

    pub async fn create(&mut self, request: csi::CreateVolumeRequest) -> Answer<csi::Volume> {
        let made = self.controller.create_volume(request).await?.into_inner();
        Ok(made.volume.expect("an answer has the volume"))
    }

    pub async fn delete(&mut self, id: &str) -> Answer<()> {
        let request = csi::DeleteVolumeRequest { volume_id: id.into(), ..Default::default() };
        self.controller.delete_volume(request).await.map(drop)
    }

    pub async fn cut(
        &mut self,
        name: &str,
        volume: &str,
        parameters: &[(&str, &str)],
    ) -> Answer<csi::Snapshot> {
        let request = csi::CreateSnapshotRequest {
            name: name.into(),
            source_volume_id: volume.into(),
            parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        };
        let cut = self.controller.create_snapshot(request).await?.into_inner();
        Ok(cut.snapshot.expect("an answer has the snapshot"))
    }

    pub async fn delete_snapshot(&mut self, id: &str) -> Answer<()> {
        let request = csi::DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        self.controller.delete_snapshot(request).await.map(drop)
    }

    /// Where kubelet stages the volume, and where it shows it to pods.
    pub fn staging(&self, name: &str) -> PathBuf {
        self.rig.path(&format!("kubelet/staging/{name}"))
    }

    pub fn target(&self, name: &str) -> PathBuf {
        self.rig.path(&format!("kubelet/pods/{name}/mount"))
    }

    pub async fn stage(&mut self, id: &str, name: &str, capability: &VolumeCapability) -> Answer<()> {
        let staging = self.staging(name);
        fs::create_dir_all(&staging).expect("a staging directory");
        let request = csi::NodeStageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: text(&staging),
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await.map(drop)
    }

    pub fn publication(
        &self,
        id: &str,
        name: &str,
        capability: &VolumeCapability,
    ) -> csi::NodePublishVolumeRequest {
        csi::NodePublishVolumeRequest {
            volume_id: id.into(),
            staging_target_path: text(&self.staging(name)),
            target_path: text(&self.target(name)),
            volume_capability: Some(capability.clone()),
            ..Default::default()
        }
    }

    /// Stages and publishes; where a pod sees it.
    pub async fn publish(&mut self, id: &str, name: &str, capability: &VolumeCapability) -> Answer<PathBuf> {
        self.stage(id, name, capability).await?;
        let request = self.publication(id, name, capability);
        self.node.node_publish_volume(request).await?;
        Ok(self.target(name))
    }

    pub async fn unpublish_only(&mut self, id: &str, name: &str) -> Answer<()> {
        let request =
            csi::NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: text(&self.target(name)) };
        self.node.node_unpublish_volume(request).await.map(drop)
    }

    /// The opposite of [`Csi::publish`]. Programs that other tests start make things busy for an instant, see
    /// [`integration_tests::rig::unmount`]; as kubelet does, it tries again.
    pub async fn unpublish(&mut self, id: &str, name: &str) -> Answer<()> {
        let started = Instant::now();
        loop {
            match self.unpublish_once(id, name).await {
                Err(refused) if refused.message().contains("busy") && started.elapsed() < BUSY => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                ended => return ended,
            }
        }
    }

    async fn unpublish_once(&mut self, id: &str, name: &str) -> Answer<()> {
        self.unpublish_only(id, name).await?;
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: text(&self.staging(name)),
        };
        self.node.node_unstage_volume(request).await.map(drop)
    }

    pub async fn stats(&mut self, id: &str, path: &Path) -> Answer<Vec<csi::VolumeUsage>> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: text(path),
            ..Default::default()
        };
        Ok(self.node.node_get_volume_stats(request).await?.into_inner().usage)
    }

    pub async fn expand(&mut self, id: &str, path: &Path, bytes: u64) -> Answer<i64> {
        let required_bytes = i64::try_from(bytes).expect("a size");
        let request = csi::NodeExpandVolumeRequest {
            volume_id: id.into(),
            volume_path: text(path),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
            ..Default::default()
        };
        Ok(self.node.node_expand_volume(request).await?.into_inner().capacity_bytes)
    }

    /// Ends everything in order and checks the pool.
    pub fn finish(mut self) {
        self.driver.kill();
        self.rig.stop_and_check();
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().expect("the rig's paths are UTF-8").to_owned()
}

pub fn bytes(n: u64) -> i64 {
    i64::try_from(n).expect("a size")
}
