//! Devices through the life of an agent: mounted, killed under, stopped under, found again.

#[path = "../../tests/ring.rs"]
mod ring;
#[path = "../../tests/skip.rs"]
mod skip;

use api::v1::{self, SnapshotRef};
use api::{Client, Error, ErrorKind};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const COWSLIP: &str = env!("CARGO_BIN_EXE_cowslip");
/// Polls of a starting or stopping agent, 50 ms each.
const POLLS: u32 = 600;

/// A pool, its agents, one mountpoint. Everything goes away with it, on failure too.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        // A pool is opened with O_DIRECT, which a tmpfs may refuse.
        let host = Self { dir: tempfile::tempdir_in("/var/tmp").unwrap() };
        let options = store::InitOptions { size_bytes: Some(512 << 20), ..Default::default() };
        store::Pool::init(&host.path("pool"), &options).unwrap();
        fs::create_dir(host.path("mnt")).unwrap();
        let dir = host.dir.path().display();
        let text = format!(
            "pool = '{dir}/pool'\nsocket = '{dir}/agent.sock'\nrun_dir = '{dir}/run'\n\
             device_dir = '{dir}/dev'\nsnapshots_dir = 'none'\ntransport = 'loop'\n"
        );
        fs::write(host.path("config.toml"), text).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(COWSLIP);
        command.arg("agent").arg("--config").arg(self.path("config.toml"));
        for variable in ["NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC"] {
            command.env_remove(variable);
        }
        let log_too = log.try_clone().unwrap();
        let mut parent = command.stdin(Stdio::null()).stdout(log_too).stderr(log).spawn().unwrap();
        // Collects it whenever it ends.
        std::thread::spawn(move || parent.wait());
    }

    /// A connection to an agent that is not the process `not`, and its process id.
    async fn agent(&self, not: u32) -> (Client, u32) {
        for _ in 0..POLLS {
            if let Ok(mut client) = Client::connect(&self.path("agent.sock")).await
                && let Ok(status) = client.get_status(v1::GetStatusRequest {}).await
                && let Some(agent) = status.into_inner().agent
                && agent.pid != not
            {
                return (client, agent.pid);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the agent does not serve:\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
    }

    /// Processes of these agents: each names its configuration.
    fn processes(&self) -> Vec<String> {
        let config = self.path("config.toml").display().to_string();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let ours = |pid: &String| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&config))
        };
        pids.filter(|pid| pid.parse::<u32>().is_ok()).filter(ours).collect()
    }

    async fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..POLLS {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what}:\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Without an agent an unmount would wait for ever: the processes first, then their devices fail.
        let failed = std::thread::panicking();
        for pid in self.processes() {
            run("kill", &["-KILL", &pid]);
        }
        if failed {
            run("umount", &["-l", &self.path("mnt").display().to_string()]);
        }
        ring::remove(&self.path("run"));
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
}

/// What this machine lacks for devices.
fn lacking() -> Option<String> {
    let usable = |path: &str| fs::File::options().read(true).write(true).open(path).is_ok();
    if let Some(path) = ["/dev/fuse", "/dev/loop-control"].into_iter().find(|path| !usable(path)) {
        return Some(format!("{path} cannot be used; run as root where there are FUSE and loop devices"));
    }
    (!run("unshare", &["--mount", "true"])).then(|| "mounting is not allowed here".into())
}

/// Asks the agent whose serving process is `pid` to stop, through its parent.
fn stop(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    assert!(run("kill", &["-TERM", &parent]));
}

fn detach() -> v1::DetachVolumeRequest {
    v1::DetachVolumeRequest { name: "v".into() }
}

fn delete() -> v1::DeleteVolumeRequest {
    v1::DeleteVolumeRequest { name: "v".into() }
}

fn roll_back() -> v1::RollbackRequest {
    v1::RollbackRequest { snapshot: Some(SnapshotRef { volume: "v".into(), name: "s".into() }) }
}

/// A volume with a file system, attached: its device.
async fn attached_volume(client: &mut Client) -> String {
    let create = v1::CreateVolumeRequest {
        name: "v".into(),
        size_bytes: 64 << 20,
        fs: "ext4".into(),
        ..Default::default()
    };
    assert!(!client.create_volume(create).await.unwrap().into_inner().attached);
    let attach = v1::AttachVolumeRequest { name: "v".into() };
    let attached = client.attach_volume(attach.clone()).await.unwrap().into_inner();
    let again = client.attach_volume(attach).await.unwrap().into_inner();
    assert_eq!(attached.device, again.device);
    attached.device.unwrap()
}

/// Nothing pulls a mounted device away, and every refusal says where it is mounted.
async fn refused_while_mounted(client: &mut Client, mountpoint: &str) {
    for (kind, message) in [
        kind(client.detach_volume(detach()).await),
        kind(client.delete_volume(delete()).await),
        kind(client.rollback(roll_back()).await),
    ] {
        assert_eq!(kind, ErrorKind::Busy);
        assert!(message.contains(mountpoint), "{message}");
    }
    let mounts = client.list_mounts(v1::ListMountsRequest { volume: "v".into() }).await.unwrap().into_inner();
    assert_eq!(mounts.mounts[0].mountpoint, mountpoint.as_bytes());
}

fn kind<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> (ErrorKind, String) {
    let error = Error::from(result.unwrap_err());
    (error.kind, error.message)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_volume_outlives_its_agents() {
    if let Some(why) = lacking() {
        skip::skip(&why);
        return;
    }
    let host = Host::new();
    host.start();
    let (mut client, first) = host.agent(0).await;
    let device = attached_volume(&mut client).await;
    assert_eq!(Path::new(&device), host.path("dev/v"));
    let mountpoint = host.path("mnt").display().to_string();
    assert!(run("mount", &[&device, &mountpoint]));

    fs::write(host.path("mnt/file"), "before").unwrap();
    let of = SnapshotRef { volume: "v".into(), name: "s".into() };
    let cut = v1::CreateSnapshotsRequest { snapshots: vec![of], freeze: true, ..Default::default() };
    let cut = client.create_snapshots(cut).await.unwrap().into_inner();
    assert_eq!((cut.snapshots[0].consistency(), cut.warnings), (v1::Consistency::Fs, Vec::new()));
    refused_while_mounted(&mut client, &mountpoint).await;

    // Killed: the parent starts another, and the file system never notices.
    assert!(run("kill", &["-KILL", &first.to_string()]));
    fs::write(host.path("mnt/file"), "after the kill").unwrap();
    let (_, second) = host.agent(first).await;

    // Stopped: the device waits for the next agent.
    stop(second);
    host.wait_until("the agent does not stop", || !Path::new(&format!("/proc/{second}")).exists()).await;
    host.start();
    let (mut client, third) = host.agent(second).await;
    assert_eq!(fs::read_to_string(host.path("mnt/file")).unwrap(), "after the kill");
    assert!(run("sync", &["-f", &mountpoint]));
    assert!(run("umount", &[&mountpoint]));

    // Free again: rolled back under the same device, grown, detached.
    client.rollback(roll_back()).await.unwrap();
    assert!(run("mount", &[&device, &mountpoint]));
    assert_eq!(fs::read_to_string(host.path("mnt/file")).unwrap(), "before");
    assert!(run("umount", &[&mountpoint]));
    let resize = v1::ResizeVolumeRequest { name: "v".into(), size_bytes: 80 << 20 };
    client.resize_volume(resize).await.unwrap();
    let length = Command::new("blockdev").args(["--getsize64", &device]).output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&length).trim(), (80 << 20).to_string());
    assert!(!client.detach_volume(detach()).await.unwrap().into_inner().attached);
    client.detach_volume(detach()).await.unwrap();
    client.delete_volume(delete()).await.unwrap();
    assert!(fs::symlink_metadata(host.path("dev/v")).is_err());
    stop(third);
    host.wait_until("processes are left behind", || host.processes().is_empty()).await;
}
