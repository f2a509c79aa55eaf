//! The agent from outside: the real binary on a temporary pool without devices, through its API.

#[path = "../../tests/ring.rs"]
mod ring;

use api::v1::{self, Chunk, SnapshotRef, TransferEnd, import_request};
use api::{Client, Error, ErrorKind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio_stream::StreamExt;

const COWSLIP: &str = env!("CARGO_BIN_EXE_cowslip");
const MIB: u64 = 1 << 20;
/// Polls of a starting or stopping agent, 50 ms each.
const POLLS: u32 = 600;

/// An agent that is killed when it goes out of scope.
struct Agent {
    dir: tempfile::TempDir,
    process: Option<Child>,
}

impl Agent {
    fn new() -> Self {
        // A pool is opened with O_DIRECT, which a tmpfs may refuse.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let options = store::InitOptions { size_bytes: Some(256 * MIB), ..Default::default() };
        store::Pool::init(&dir.path().join("pool"), &options).unwrap();
        let mut agent = Self { dir, process: None };
        agent.write_config("");
        agent.start();
        agent
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn write_config(&self, more: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "pool = '{dir}/pool'\nsocket = '{dir}/agent.sock'\nrun_dir = '{dir}/run'\n\
             device_dir = '{dir}/dev'\nsnapshots_dir = 'none'\ntransport = 'none'\n{more}"
        );
        std::fs::write(self.dir.path().join("config.toml"), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(COWSLIP);
        command.arg("agent").arg("--config").arg(self.dir.path().join("config.toml"));
        for variable in ["NOTIFY_SOCKET", "COWSLIP_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null());
        command
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        self.process = Some(self.command().stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    async fn client(&mut self) -> Client {
        for _ in 0..POLLS {
            if let Ok(client) = Client::connect(&self.socket()).await {
                return client;
            }
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the agent ended ({ended:?}):\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the agent does not serve:\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Asks the agent to stop; its exit code.
    async fn stop(&mut self) -> Option<i32> {
        let mut process = self.process.take().unwrap();
        let kill = Command::new("kill").arg("-TERM").arg(process.id().to_string()).status().unwrap();
        assert!(kill.success());
        for _ in 0..POLLS {
            if let Some(status) = process.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        process.kill().unwrap();
        panic!("the agent does not stop:\n{}", self.log());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        ring::remove(&self.dir.path().join("run"));
    }
}

fn of(volume: &str, name: &str) -> SnapshotRef {
    SnapshotRef { volume: volume.into(), name: name.into() }
}

async fn create(client: &mut Client, name: &str, size_bytes: u64) -> Result<v1::Volume, Error> {
    let request = v1::CreateVolumeRequest { name: name.into(), size_bytes, ..Default::default() };
    Ok(client.create_volume(request).await?.into_inner())
}

async fn snapshot(client: &mut Client, specs: &[SnapshotRef]) -> Result<Vec<v1::Snapshot>, Error> {
    let request =
        v1::CreateSnapshotsRequest { snapshots: specs.to_vec(), freeze: true, labels: Default::default() };
    Ok(client.create_snapshots(request).await?.into_inner().snapshots)
}

async fn import(
    client: &mut Client,
    header: v1::ImportHeader,
    chunks: Vec<Chunk>,
    end: Option<TransferEnd>,
) -> Result<v1::ImportResponse, Error> {
    let mut parts = vec![import_request::Part::Header(header)];
    parts.extend(chunks.into_iter().map(import_request::Part::Chunk));
    parts.extend(end.map(import_request::Part::End));
    let stream = parts.into_iter().map(|part| v1::ImportRequest { part: Some(part) });
    Ok(client.import(tokio_stream::iter(stream)).await?.into_inner())
}

/// The image, its digest, and the number of data bytes that came.
async fn export(
    client: &mut Client,
    volume: &str,
    snapshot: &str,
) -> Result<(Vec<u8>, Vec<u8>, usize), Error> {
    use v1::export_response::Part;
    let request =
        v1::ExportRequest { volume: volume.into(), snapshot: snapshot.into(), freeze: true, digest: true };
    let mut stream = client.export(request).await?.into_inner();
    let (mut image, mut data, mut digest) = (Vec::new(), 0, None);
    while let Some(message) = stream.next().await {
        match message?.part.unwrap() {
            Part::Header(header) => image.resize(usize::try_from(header.size_bytes).unwrap(), 0),
            Part::Chunk(chunk) => {
                let at = usize::try_from(chunk.offset).unwrap();
                image[at..at + chunk.data.len()].copy_from_slice(&chunk.data);
                data += chunk.data.len();
            }
            Part::End(end) => digest = Some(end.blake3),
        }
    }
    Ok((image, digest.expect("the export has an end"), data))
}

async fn clone_snapshot(client: &mut Client, request: v1::CloneRequest) -> Result<v1::Volume, Error> {
    // By its path: `client.clone()` is the method of the trait.
    Ok(v1::agent_client::AgentClient::clone(client, request).await?.into_inner())
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_live_their_life() {
    let mut agent = Agent::new();
    let mut client = agent.client().await;
    let made = create(&mut client, "größe 1", 64 * MIB).await.unwrap();
    assert_eq!((made.name.as_str(), made.size_bytes, made.attached), ("größe 1", 64 * MIB, false));
    assert_eq!(kind(create(&mut client, "größe 1", 64 * MIB).await), ErrorKind::Exists);
    assert_eq!(kind(create(&mut client, "a/b", MIB).await), ErrorKind::Invalid);
    assert_eq!(kind(create(&mut client, "odd", MIB + 1).await), ErrorKind::Invalid);

    let rename = v1::RenameVolumeRequest { name: "größe 1".into(), new_name: "v".into() };
    assert_eq!(client.rename_volume(rename).await.unwrap().into_inner().id, made.id);
    let resize = |size_bytes| v1::ResizeVolumeRequest { name: "v".into(), size_bytes };
    assert_eq!(client.resize_volume(resize(96 * MIB)).await.unwrap().into_inner().size_bytes, 96 * MIB);
    let shrunk = client.resize_volume(resize(MIB)).await.map_err(Error::from);
    assert_eq!(kind(shrunk), ErrorKind::Invalid);

    let attach =
        client.attach_volume(v1::AttachVolumeRequest { name: "v".into() }).await.map_err(Error::from);
    let error = attach.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("none"), "{error}");
    let detach = v1::DetachVolumeRequest { name: "v".into() };
    assert!(!client.detach_volume(detach).await.unwrap().into_inner().attached);

    client.delete_volume(v1::DeleteVolumeRequest { name: "v".into() }).await.unwrap();
    let gone = client.get_volume(v1::GetVolumeRequest { name: "v".into() }).await.map_err(Error::from);
    assert_eq!(kind(gone), ErrorKind::NotFound);
    assert!(client.list_volumes(v1::ListVolumesRequest {}).await.unwrap().into_inner().volumes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_needs_a_device_and_nothing_is_left_without() {
    let mut agent = Agent::new();
    let mut client = agent.client().await;
    let request = |fs: &str| v1::CreateVolumeRequest {
        name: "v".into(),
        size_bytes: 64 * MIB,
        fs: fs.into(),
        ..Default::default()
    };
    let error = client.create_volume(request("ext4")).await.map_err(Error::from);
    assert_eq!(kind(error), ErrorKind::Unsupported);
    assert!(client.list_volumes(v1::ListVolumesRequest {}).await.unwrap().into_inner().volumes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_and_go_with_their_holes() {
    let mut agent = Agent::new();
    let mut client = agent.client().await;
    let mut image = vec![0u8; 5 << 20];
    image[..4096].fill(1);
    image[(3 << 20) + 5..(3 << 20) + 105].fill(2);
    let chunks = || {
        vec![
            Chunk { offset: 0, data: image[..4096].to_vec() },
            Chunk { offset: (3 << 20) + 5, data: image[(3 << 20) + 5..(3 << 20) + 105].to_vec() },
        ]
    };
    let digest = blake3::hash(&image).as_bytes().to_vec();
    let header =
        |volume: &str| v1::ImportHeader { volume: volume.into(), digest: true, ..Default::default() };
    let end = |blake3: Vec<u8>| Some(TransferEnd { total_bytes: 5 << 20, blake3 });

    let made = import(&mut client, header("v"), chunks(), end(digest.clone())).await.unwrap();
    assert_eq!(made.blake3, digest);
    assert_eq!(made.volume.unwrap().size_bytes, 5 * MIB);
    let (exported, sent_digest, data) = export(&mut client, "v", "").await.unwrap();
    assert!(exported == image);
    assert_eq!(sent_digest, digest);
    assert!(data < 2 << 20, "{data} bytes of data for two blocks");

    // The temporary snapshot is gone when the export is.
    for _ in 0..POLLS {
        let list = client.list_snapshots(v1::ListSnapshotsRequest::default()).await.unwrap();
        if list.into_inner().snapshots.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let list = client.list_snapshots(v1::ListSnapshotsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.snapshots, []);

    let wrong = import(&mut client, header("w"), chunks(), end(vec![7; 32])).await;
    assert_eq!(kind(wrong), ErrorKind::Damaged);
    let cut_off = import(&mut client, header("w"), chunks(), None).await;
    assert_eq!(kind(cut_off), ErrorKind::Unreachable);
    let small = v1::ImportHeader { size_bytes: MIB, ..header("w") };
    assert_eq!(kind(import(&mut client, small, chunks(), end(digest.clone())).await), ErrorKind::Invalid);
    assert_eq!(kind(import(&mut client, header("v"), chunks(), end(digest)).await), ErrorKind::Exists);
    let volumes = client.list_volumes(v1::ListVolumesRequest {}).await.unwrap().into_inner().volumes;
    assert_eq!(volumes.len(), 1, "a failed import leaves no volume");
}

async fn import_filled(client: &mut Client, name: &str, byte: u8) {
    let header = v1::ImportHeader { volume: name.into(), ..Default::default() };
    let chunks = vec![Chunk { offset: 0, data: vec![byte; 8192] }];
    let end = Some(TransferEnd { total_bytes: MIB, blake3: Vec::new() });
    import(client, header, chunks, end).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_live_their_life() {
    let mut agent = Agent::new();
    let mut client = agent.client().await;
    import_filled(&mut client, "a", 1).await;
    import_filled(&mut client, "b", 2).await;
    let made = snapshot(&mut client, &[of("b", "s"), of("a", "s")]).await.unwrap();
    let shown: Vec<_> = made.iter().map(|s| (s.volume.as_str(), s.consistency())).collect();
    assert_eq!(shown, [("b", v1::Consistency::Detached), ("a", v1::Consistency::Detached)]);
    assert_eq!(made[0].size_bytes, MIB);
    assert_eq!(kind(snapshot(&mut client, &[of("a", "t"), of("a", "s")]).await), ErrorKind::Exists);
    assert_eq!(kind(snapshot(&mut client, &[of("a", "t"), of("none", "t")]).await), ErrorKind::NotFound);
    assert_eq!(kind(snapshot(&mut client, &[]).await), ErrorKind::Invalid);
    let list = v1::ListSnapshotsRequest { volume: "a".into(), brief: false };
    assert_eq!(client.list_snapshots(list).await.unwrap().into_inner().snapshots.len(), 1);

    let read = |offset, length, snapshot_id| v1::ReadSnapshotRequest {
        snapshot: Some(of("b", "latest")),
        offset,
        length,
        snapshot_id,
    };
    let data = client.read_snapshot(read(8000, 400, made[0].id)).await.unwrap().into_inner().data;
    assert_eq!(data, [vec![2; 192], vec![0; 208]].concat());
    for (request, expected) in [
        (read(MIB - 1, 2, 0), ErrorKind::Invalid),
        (read(u64::MAX, 2, 0), ErrorKind::Invalid),
        (read(0, 1 << 21, 0), ErrorKind::Invalid),
        (read(0, 1, made[0].id ^ 1), ErrorKind::NotFound),
    ] {
        assert_eq!(kind(client.read_snapshot(request).await.map_err(Error::from)), expected);
    }

    let clone = v1::CloneRequest {
        snapshot: Some(of("b", "s")),
        new_name: "c".into(),
        size_bytes: 2 * MIB,
        labels: [("k".to_owned(), "v".to_owned())].into(),
    };
    let cloned = clone_snapshot(&mut client, clone.clone()).await.unwrap();
    assert_eq!((cloned.size_bytes, cloned.origin.as_deref()), (2 * MIB, Some("b@s")));
    assert_eq!(cloned.labels["k"], "v");
    let small = v1::CloneRequest { size_bytes: 4096, new_name: "d".into(), ..clone };
    assert_eq!(kind(clone_snapshot(&mut client, small).await), ErrorKind::Invalid);
    let (image, ..) = export(&mut client, "c", "").await.unwrap();
    assert!(image[..8192].iter().all(|byte| *byte == 2) && image[8192..].iter().all(|byte| *byte == 0));

    let to = v1::RollbackRequest { snapshot: Some(of("a", "s")) };
    assert_eq!(client.rollback(to).await.unwrap().into_inner().name, "a");
    // Snapshots outlive their volume; all are looked up before one is deleted.
    client.delete_volume(v1::DeleteVolumeRequest { name: "b".into() }).await.unwrap();
    let delete = |names: Vec<SnapshotRef>| v1::DeleteSnapshotsRequest { snapshots: names };
    let missing = client.delete_snapshots(delete(vec![of("b", "s"), of("b", "none")])).await;
    assert_eq!(kind(missing.map_err(Error::from)), ErrorKind::NotFound);
    let kept = v1::GetSnapshotRequest { snapshot: Some(of("b", "s")) };
    client.get_snapshot(kept).await.unwrap();
    client.delete_snapshots(delete(vec![of("b", "s"), of("a", "s")])).await.unwrap();
    let left =
        client.list_snapshots(v1::ListSnapshotsRequest::default()).await.unwrap().into_inner().snapshots;
    assert_eq!(left.iter().filter(|s| s.name == "s").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn extents_show_data_and_differences() {
    let mut agent = Agent::new();
    let mut client = agent.client().await;
    let header = v1::ImportHeader { volume: "v".into(), ..Default::default() };
    let chunks = [0, 4, 5, 100].map(|block| Chunk { offset: block * 4096, data: vec![1; 4096] });
    let end = Some(TransferEnd { total_bytes: MIB, blake3: Vec::new() });
    import(&mut client, header, chunks.to_vec(), end).await.unwrap();
    snapshot(&mut client, &[of("v", "old")]).await.unwrap();
    snapshot(&mut client, &[of("v", "new")]).await.unwrap();
    let request = |base: &str, offset, max_extents| v1::ListExtentsRequest {
        snapshot: Some(of("v", "new")),
        base: base.into(),
        offset,
        max_extents,
    };
    let all = client.list_extents(request("", 0, 0)).await.unwrap().into_inner();
    let shown = |extents: &[v1::Extent]| -> Vec<(u64, u64)> {
        extents.iter().map(|extent| (extent.offset / 4096, extent.length / 4096)).collect()
    };
    assert_eq!(shown(&all.extents), [(0, 1), (4, 2), (100, 1)]);
    assert_eq!((all.next_offset, all.size_bytes), (0, MIB));
    let first = client.list_extents(request("", 0, 2)).await.unwrap().into_inner();
    assert_eq!((shown(&first.extents), first.next_offset), (vec![(0, 1), (4, 2)], 100 * 4096));
    let same = client.list_extents(request("old", 0, 0)).await.unwrap().into_inner();
    assert_eq!((shown(&same.extents), same.next_offset), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_kept_and_followed() {
    let mut agent = Agent::new();
    let mut client = agent.client().await;
    create(&mut client, "v", MIB).await.unwrap();
    create(&mut client, "w", MIB).await.unwrap();
    let request = v1::WatchEventsRequest { follow: false, after_sequence: 0, volume: "w".into() };
    let mut history = client.watch_events(request).await.unwrap().into_inner();
    let event = history.next().await.unwrap().unwrap();
    assert_eq!((event.kind.as_str(), event.volume.as_str()), ("volume_created", "w"));
    assert!(history.next().await.is_none());

    let request = v1::WatchEventsRequest { follow: true, after_sequence: event.sequence, volume: "v".into() };
    let mut followed = client.watch_events(request).await.unwrap().into_inner();
    client.delete_volume(v1::DeleteVolumeRequest { name: "v".into() }).await.unwrap();
    let event = followed.next().await.unwrap().unwrap();
    assert_eq!((event.kind.as_str(), event.volume.as_str()), ("volume_deleted", "v"));
    // An agent that stops ends the stream with a reason.
    assert_eq!(agent.stop().await, Some(0), "{}", agent.log());
    let error = Error::from(followed.next().await.unwrap().unwrap_err());
    assert_eq!(error.kind, ErrorKind::Unreachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_everything_and_the_socket_goes_with_the_agent() {
    let mut agent = Agent::new();
    let mut client = agent.client().await;
    import_filled(&mut client, "v", 9).await;
    snapshot(&mut client, &[of("v", "s")]).await.unwrap();
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.volumes, status.snapshots, status.attached), (1, 1, 0));
    assert_eq!(status.agent.unwrap().transport, "none");
    assert_eq!(status.pool.unwrap().state, "ok");
    assert_eq!(agent.stop().await, Some(0), "{}", agent.log());
    assert!(!agent.socket().exists());

    agent.start();
    let mut client = agent.client().await;
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.pool.unwrap().recovery, "clean");
    let (image, ..) = export(&mut client, "v", "s").await.unwrap();
    assert!(image[..8192].iter().all(|byte| *byte == 9));

    // Killed: a dead socket stays, and what was acknowledged is there.
    create(&mut client, "after", MIB).await.unwrap();
    let mut process = agent.process.take().unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(agent.socket().exists());
    agent.start();
    let mut client = agent.client().await;
    client.get_volume(v1::GetVolumeRequest { name: "after".into() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_pool_is_refused() {
    let mut agent = Agent::new();
    agent.client().await;
    let second = agent.command().arg("--socket").arg(agent.dir.path().join("second.sock")).output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(4), "{error}");
    assert!(error.contains("pool"), "{error}");
    // The first one is as it was.
    agent.client().await.get_status(v1::GetStatusRequest {}).await.unwrap();
}

#[test]
fn what_cannot_be_served_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let check = |text: &str, code: i32, words: &[&str]| {
        std::fs::write(&config, text.replace("DIR", &dir.path().display().to_string())).unwrap();
        let output = Command::new(COWSLIP).arg("agent").arg("--config").arg(&config).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}: {error}");
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    };
    let common = "socket = 'DIR/agent.sock'\nrun_dir = 'DIR/run'\nsnapshots_dir = 'none'\n";
    check("poool = '/x'", 2, &["config.toml:1:", "poool"]);
    check(
        &format!("{common}pool = 'DIR/none'\ntransport = 'none'"),
        3,
        &["DIR/none".trim_start_matches("DIR")],
    );
    check(&format!("{common}socket_group = 'no such group'\ntransport = 'none'"), 2, &["no such group"]);
    ring::remove(&dir.path().join("run"));
}
