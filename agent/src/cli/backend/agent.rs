//! The agent over its socket. Calls block; a small runtime of our own drives the connection.

use super::{Backend, ExportOptions, ImageSink, Mountpoint};
use crate::changes::{Change, Changes, Wanted};
use crate::cli::{
    failure::{Failure, Kind, Result},
    interrupt,
    model::{Event, Snapshot, Status, Volume},
    names::{DiskName, SnapshotName},
};
use api::v1;
use fuse_view::BlockRead;
use std::{
    future::Future,
    io,
    ops::Range,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use store::SnapshotBrief;
use tokio::runtime::Runtime;

/// A connection to the agent.
pub struct AgentBackend {
    runtime: Arc<Runtime>,
    client: api::Client,
}

/// A snapshot as the API names it.
pub fn reference(name: &SnapshotName) -> v1::SnapshotRef {
    v1::SnapshotRef { volume: name.volume.clone(), name: name.name.clone() }
}

impl AgentBackend {
    /// Connects to the agent at `socket`.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| Failure::io("start the client", &e))?;
        let client = runtime.block_on(api::Client::connect(socket))?;
        Ok(Self { runtime: Arc::new(runtime), client })
    }

    /// Connects, and waits at most `patience` until the agent answers.
    pub fn connect_patiently(socket: &Path, patience: Duration) -> Result<Self> {
        let started = Instant::now();
        loop {
            let failure = match Self::connect(socket) {
                Ok(backend) => match backend.status() {
                    Ok(_) => return Ok(backend),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            if failure.kind() != Kind::Unreachable {
                return Err(failure);
            }
            let left = patience.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(failure);
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Runs one call on a client of its own.
    pub fn call<T, F>(&self, request: impl FnOnce(api::Client) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let answer = self.runtime.block_on(request(self.client.clone()));
        answer.map(tonic::Response::into_inner).map_err(|status| api::Error::from(status).into())
    }

    /// Runs a future on the client's runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// A client for calls that stream.
    pub fn client(&self) -> api::Client {
        self.client.clone()
    }

    /// Scrubs the pool until its end or a signal, handing each step to `each`.
    pub fn scrub(&self, request: v1::ScrubRequest, mut each: impl FnMut(v1::ScrubProgress)) -> Result<()> {
        let mut stream = self.call(|mut client| async move { client.scrub(request).await })?;
        self.runtime.block_on(async {
            loop {
                let step = tokio::select! {
                    step = stream.message() => step.map_err(api::Error::from)?,
                    () = interrupt::wait() => return Ok(()),
                };
                let Some(step) = step else { return Ok(()) };
                each(step);
            }
        })
    }

    /// Hands each event to `each`, history first; with `follow` until the agent ends or `each` fails.
    pub fn events(
        &self,
        follow: bool,
        volume: &str,
        mut each: impl FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let request = v1::WatchEventsRequest { follow, after_sequence: 0, volume: volume.to_owned() };
        let mut stream = self.call(|mut client| async move { client.watch_events(request).await })?;
        while let Some(event) = self.runtime.block_on(stream.message()).map_err(api::Error::from)? {
            each(event.into())?;
        }
        Ok(())
    }
}

impl From<api::Error> for Failure {
    fn from(error: api::Error) -> Self {
        use api::ErrorKind as Api;
        let kind = match error.kind {
            Api::Invalid => Kind::Usage,
            Api::NotFound => Kind::NotFound,
            Api::Exists => Kind::Exists,
            Api::Busy => Kind::Busy,
            Api::NoSpace => Kind::NoSpace,
            Api::Unreachable => Kind::Unreachable,
            Api::Damaged => Kind::Damaged,
            Api::Unsupported => Kind::Unsupported,
            Api::Poisoned | Api::Io | Api::Denied => Kind::Failed,
        };
        let failure = Self::new(kind, error.message);
        match error.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl Backend for AgentBackend {
    fn status(&self) -> Result<Status> {
        self.call(|mut client| async move { client.get_status(v1::GetStatusRequest {}).await })
            .map(Status::from)
    }

    fn volumes(&self) -> Result<Vec<Volume>> {
        let answer =
            self.call(|mut client| async move { client.list_volumes(v1::ListVolumesRequest {}).await })?;
        Ok(answer.volumes.into_iter().map(Volume::from).collect())
    }

    fn volume(&self, name: &str) -> Result<Volume> {
        let request = v1::GetVolumeRequest { name: name.to_owned() };
        self.call(|mut client| async move { client.get_volume(request).await }).map(Volume::from)
    }

    fn snapshots(&self, volume: Option<&str>) -> Result<Vec<Snapshot>> {
        let request =
            v1::ListSnapshotsRequest { volume: volume.unwrap_or_default().to_owned(), brief: false };
        let answer = self.call(|mut client| async move { client.list_snapshots(request).await })?;
        Ok(answer.snapshots.into_iter().map(Snapshot::from).collect())
    }

    fn snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        let request = v1::GetSnapshotRequest { snapshot: Some(reference(name)) };
        self.call(|mut client| async move { client.get_snapshot(request).await }).map(Snapshot::from)
    }

    fn open_snapshot(&self, name: &SnapshotName) -> Result<Arc<dyn BlockRead>> {
        let snapshot = self.snapshot(name)?;
        Ok(Arc::new(RemoteSnapshot {
            runtime: self.runtime.clone(),
            client: self.client.clone(),
            // `latest` may mean another snapshot by the next read.
            name: v1::SnapshotRef { volume: snapshot.volume, name: snapshot.name },
            id: snapshot.id,
            len: snapshot.size_bytes,
        }))
    }

    fn export(&self, disk: &DiskName, options: ExportOptions, sink: &mut dyn ImageSink) -> Result<()> {
        let (volume, snapshot) = match disk {
            DiskName::Volume(name) => (name.clone(), String::new()),
            DiskName::Snapshot(name) => (name.volume.clone(), name.name.clone()),
        };
        let request = v1::ExportRequest { volume, snapshot, freeze: options.freeze, digest: options.digest };
        let mut stream = self.call(|mut client| async move { client.export(request).await })?;
        let next = |stream: &mut tonic::Streaming<v1::ExportResponse>| {
            self.runtime.block_on(async {
                tokio::select! {
                    message = stream.message() => message.map_err(|status| api::Error::from(status).into()),
                    () = interrupt::wait() => Err(Failure::interrupted()),
                }
            })
        };
        let mut size_bytes = None;
        while let Some(message) = next(&mut stream)? {
            use v1::export_response::Part;
            match (message.part, size_bytes) {
                (Some(Part::Header(header)), None) => {
                    size_bytes = Some(header.size_bytes);
                    sink.begin(header.size_bytes, &header.warnings)?;
                }
                (Some(Part::Chunk(chunk)), Some(_)) => sink.chunk(chunk.offset, &chunk.data)?,
                (Some(Part::End(end)), Some(size)) if end.total_bytes == size => {
                    return sink.end(<[u8; 32]>::try_from(end.blake3).ok());
                }
                _ => return Err(Failure::failed(format!("the agent sent {disk} out of order"))),
            }
        }
        Err(Failure::failed(format!("the agent stopped in the middle of {disk}"))
            .hint("see `cowslip events`"))
    }

    fn history(&self, volume: &str) -> Result<Vec<SnapshotBrief>> {
        let request = v1::ListSnapshotsRequest { volume: volume.to_owned(), brief: true };
        let answer = self.call(|mut client| async move { client.list_snapshots(request).await })?;
        let brief = |of: v1::Snapshot| SnapshotBrief {
            name: of.name,
            id: of.id,
            created_at: of.created_at,
            size_bytes: of.size_bytes,
        };
        Ok(answer.snapshots.into_iter().map(brief).collect())
    }

    fn open_brief(&self, volume: &str, snapshot: &SnapshotBrief) -> Result<Arc<dyn BlockRead>> {
        Ok(Arc::new(RemoteSnapshot {
            runtime: self.runtime.clone(),
            client: self.client.clone(),
            name: v1::SnapshotRef { volume: volume.to_owned(), name: snapshot.name.clone() },
            id: snapshot.id,
            len: snapshot.size_bytes,
        }))
    }

    fn changes(&self, volume: &str, from: u64, wanted: &Wanted) -> Result<Changes> {
        let extents = |ranges: &[Range<u64>]| {
            ranges.iter().map(|r| v1::Extent { offset: r.start, length: r.end - r.start }).collect()
        };
        let request = v1::ReadChangesRequest {
            volume: volume.to_owned(),
            from_id: from,
            read: extents(&wanted.read),
            watch: extents(&wanted.watch),
        };
        let answer = self.call(|mut client| async move { client.read_changes(request).await })?;
        let change = |of: v1::SnapshotChange| Change {
            snapshot: SnapshotBrief {
                name: of.name,
                id: of.id,
                created_at: of.created_at,
                size_bytes: of.size_bytes,
            },
            watched: of.watched,
            blocks: of.blocks.into_iter().map(|chunk| (chunk.offset, chunk.data)).collect(),
        };
        let changes = answer.changes.into_iter().map(change).collect();
        Ok(Changes { changes, through: answer.through_id, end: answer.end })
    }

    fn differences(&self, old: &SnapshotName, new: &SnapshotName) -> Result<Vec<Range<u64>>> {
        let (mut found, mut offset) = (Vec::new(), 0);
        loop {
            let request = v1::ListExtentsRequest {
                snapshot: Some(reference(new)),
                base: old.name.clone(),
                offset,
                max_extents: 0,
            };
            let answer = self.call(|mut client| async move { client.list_extents(request).await })?;
            found.extend(answer.extents.into_iter().map(|e| e.offset..e.offset.saturating_add(e.length)));
            if answer.next_offset <= offset {
                return Ok(found);
            }
            offset = answer.next_offset;
        }
    }

    fn mountpoints(&self, volume: &str) -> Result<Vec<Mountpoint>> {
        let request = v1::ListMountsRequest { volume: volume.to_owned() };
        let answer = self.call(|mut client| async move { client.list_mounts(request).await })?;
        let convert = |mount: v1::Mount| Mountpoint {
            dir: mount.mountpoint,
            root: mount.root,
            partition: mount.partition,
            read_only: mount.read_only,
        };
        Ok(answer.mounts.into_iter().map(convert).collect())
    }
}

/// A snapshot read through the API.
struct RemoteSnapshot {
    runtime: Arc<Runtime>,
    client: api::Client,
    name: v1::SnapshotRef,
    id: u64,
    len: u64,
}

impl RemoteSnapshot {
    fn read_piece(&self, offset: u64, buf: &mut [u8]) -> fuse_view::Result<()> {
        let place =
            || format!("read {} bytes at {offset} of {}@{}", buf.len(), self.name.volume, self.name.name);
        let request = v1::ReadSnapshotRequest {
            snapshot: Some(self.name.clone()),
            offset,
            length: u32::try_from(buf.len()).unwrap_or(u32::MAX),
            snapshot_id: self.id,
        };
        let mut client = self.client.clone();
        let answer = self.runtime.block_on(async move { client.read_snapshot(request).await });
        let failed = |source| fuse_view::Error::Io { what: place(), source };
        let data = match answer {
            Ok(answer) => answer.into_inner().data,
            Err(status) => return Err(failed(io::Error::other(api::Error::from(status)))),
        };
        if data.len() != buf.len() {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        buf.copy_from_slice(&data);
        Ok(())
    }
}

impl BlockRead for RemoteSnapshot {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> fuse_view::Result<()> {
        let count = buf.len();
        if offset.checked_add(count as u64).is_none_or(|end| end > self.len) {
            let what = format!("{count} bytes at {offset} lie past the end, {} bytes", self.len);
            return Err(fuse_view::Error::Corrupt(what));
        }
        let mut at = offset;
        for piece in buf.chunks_mut(api::MAX_DATA_BYTES) {
            self.read_piece(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn has_identities(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_api_has_its_exit_code() {
        for kind in api::ErrorKind::ALL {
            let failure = Failure::from(api::Error::new(kind, "x").hint("y"));
            assert_eq!(failure.exit_code(), kind.exit_code(), "{kind}");
            assert_eq!(failure.hint_text(), Some("y"));
        }
    }
}
