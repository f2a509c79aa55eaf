//! The service: each call is taken apart here and done elsewhere.

use super::agent::Agent;
use super::errors::invalid;
use super::provision::lock_of_label;
use super::snapshots::required;
use super::transfer::QUEUE;
use api::v1::agent_server;
use api::v1::{self, import_request, provision_volume_request};
use api::{Error, ErrorKind, Result};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Events that one step of a follower takes from the history.
const EVENTS_A_STEP: usize = 64;

/// The service.
pub struct Service(pub Arc<Agent>);

type Answer<T> = std::result::Result<Response<T>, Status>;
type Stream<T> = ReceiverStream<std::result::Result<T, Status>>;

/// What a thread that may block sends, on its way to the client. It notices when nobody listens any more.
fn forward<T: Send + 'static>(mut messages: mpsc::Receiver<Result<T>>) -> Stream<T> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = messages.recv() => message,
                () = sender.closed() => return,
            };
            let Some(message) = message else { return };
            if sender.send(message.map_err(Status::from)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

fn answer<T>(result: Result<T>) -> Answer<T> {
    result.map(Response::new).map_err(Status::from)
}

#[tonic::async_trait]
impl agent_server::Agent for Service {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::Status> {
        answer(self.0.look(|agent| Ok(agent.status())).await)
    }

    async fn get_doctor_facts(&self, _: Request<v1::GetDoctorFactsRequest>) -> Answer<v1::DoctorFacts> {
        answer(self.0.look(|agent| Ok(v1::DoctorFacts { facts: agent.doctor_facts() })).await)
    }

    type WatchEventsStream = Stream<v1::Event>;
    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        let (sender, receiver) = mpsc::channel(EVENTS_A_STEP);
        tokio::spawn(send_events(Arc::clone(&self.0), request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type ScrubStream = Stream<v1::ScrubProgress>;
    async fn scrub(&self, request: Request<v1::ScrubRequest>) -> Answer<Self::ScrubStream> {
        let (sink, messages) = mpsc::channel(1);
        let (agent, request) = (Arc::clone(&self.0), request.into_inner());
        tokio::task::spawn_blocking(move || agent.scrub(request, &sink));
        Ok(Response::new(forward(messages)))
    }

    async fn list_volumes(&self, _: Request<v1::ListVolumesRequest>) -> Answer<v1::ListVolumesResponse> {
        answer(self.0.look(|agent| Ok(v1::ListVolumesResponse { volumes: agent.list_volumes() })).await)
    }

    async fn get_volume(&self, request: Request<v1::GetVolumeRequest>) -> Answer<v1::Volume> {
        let name = request.into_inner().name;
        answer(self.0.look(move |agent| agent.get_volume(&name)).await)
    }

    async fn create_volume(&self, request: Request<v1::CreateVolumeRequest>) -> Answer<v1::Volume> {
        let request = request.into_inner();
        let name = request.name.clone();
        let source = request.from.as_ref().map_or(name.clone(), |from| from.volume.clone());
        answer(self.0.alone(&[&name, &source], move |agent| agent.create_volume(request)).await)
    }

    async fn rename_volume(&self, request: Request<v1::RenameVolumeRequest>) -> Answer<v1::Volume> {
        let v1::RenameVolumeRequest { name, new_name } = request.into_inner();
        let names = [name.clone(), new_name.clone()];
        let names = names.each_ref().map(String::as_str);
        answer(self.0.alone(&names, move |agent| agent.rename_volume(&name, &new_name)).await)
    }

    async fn resize_volume(&self, request: Request<v1::ResizeVolumeRequest>) -> Answer<v1::Volume> {
        let v1::ResizeVolumeRequest { name, size_bytes } = request.into_inner();
        let lock = name.clone();
        answer(self.0.alone(&[&lock], move |agent| agent.resize_volume(&name, size_bytes)).await)
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Answer<v1::DeleteVolumeResponse> {
        let name = request.into_inner().name;
        let lock = name.clone();
        let done = self.0.alone(&[&lock], move |agent| agent.delete_volume(&name)).await;
        answer(done.map(|()| v1::DeleteVolumeResponse {}))
    }

    async fn attach_volume(&self, request: Request<v1::AttachVolumeRequest>) -> Answer<v1::Volume> {
        let name = request.into_inner().name;
        let lock = name.clone();
        answer(self.0.alone(&[&lock], move |agent| agent.attach_volume(&name)).await)
    }

    async fn detach_volume(&self, request: Request<v1::DetachVolumeRequest>) -> Answer<v1::Volume> {
        let name = request.into_inner().name;
        let lock = name.clone();
        answer(self.0.alone(&[&lock], move |agent| agent.detach_volume(&name)).await)
    }

    async fn rollback(&self, request: Request<v1::RollbackRequest>) -> Answer<v1::Volume> {
        let to = required(request.into_inner().snapshot.as_ref())?.clone();
        let lock = to.volume.clone();
        answer(self.0.alone(&[&lock], move |agent| agent.rollback(&to)).await)
    }

    async fn clone(&self, request: Request<v1::CloneRequest>) -> Answer<v1::Volume> {
        let v1::CloneRequest { snapshot, new_name, size_bytes, labels } = request.into_inner();
        let from = required(snapshot.as_ref())?.clone();
        let names = [from.volume.clone(), new_name.clone()];
        let names = names.each_ref().map(String::as_str);
        let labels = labels.into_iter().collect();
        let work = move |agent: &Agent| agent.clone_snapshot(&from, &new_name, size_bytes, labels);
        answer(self.0.alone(&names, work).await)
    }

    async fn list_mounts(&self, request: Request<v1::ListMountsRequest>) -> Answer<v1::ListMountsResponse> {
        let name = request.into_inner().volume;
        let mounts = self.0.look(move |agent| agent.list_mounts(&name)).await;
        answer(mounts.map(|mounts| v1::ListMountsResponse { mounts }))
    }

    async fn create_snapshots(
        &self,
        request: Request<v1::CreateSnapshotsRequest>,
    ) -> Answer<v1::CreateSnapshotsResponse> {
        let v1::CreateSnapshotsRequest { snapshots, freeze, labels } = request.into_inner();
        let names: Vec<String> = snapshots.iter().map(|of| of.volume.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let labels = labels.into_iter().collect();
        let cut = self.0.alone(&names, move |agent| agent.create_snapshots(&snapshots, freeze, labels)).await;
        answer(cut.map(Into::into))
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Answer<v1::ListSnapshotsResponse> {
        let v1::ListSnapshotsRequest { volume, brief } = request.into_inner();
        let snapshots = self.0.look(move |agent| agent.list_snapshots(&volume, brief)).await;
        answer(snapshots.map(|snapshots| v1::ListSnapshotsResponse { snapshots }))
    }

    async fn get_snapshot(&self, request: Request<v1::GetSnapshotRequest>) -> Answer<v1::Snapshot> {
        let of = required(request.into_inner().snapshot.as_ref())?.clone();
        answer(self.0.look(move |agent| agent.get_snapshot(&of)).await)
    }

    async fn delete_snapshots(
        &self,
        request: Request<v1::DeleteSnapshotsRequest>,
    ) -> Answer<v1::DeleteSnapshotsResponse> {
        let which = request.into_inner().snapshots;
        let names: Vec<String> = which.iter().map(|of| of.volume.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let done = self.0.alone(&names, move |agent| agent.delete_snapshots(&which)).await;
        answer(done.map(|()| v1::DeleteSnapshotsResponse {}))
    }

    async fn import(&self, request: Request<Streaming<v1::ImportRequest>>) -> Answer<v1::ImportResponse> {
        let mut stream = request.into_inner();
        let Some(import_request::Part::Header(header)) = stream.message().await?.and_then(|first| first.part)
        else {
            return answer(Err(invalid("an import begins with a header")));
        };
        let (sender, parts) = mpsc::channel(QUEUE);
        let lock = header.volume.clone();
        let names = [lock.as_str()];
        let work = self.0.alone(&names, move |agent| agent.import(header, parts));
        let feed = async move {
            // The sender goes away at the end: a stream without an end message is a cut-off import.
            while let Some(Ok(message)) = stream.next().await {
                let Some(part) = message.part else { continue };
                if sender.send(part).await.is_err() {
                    break; // the worker gave up, and says why
                }
            }
        };
        let (result, ()) = tokio::join!(work, feed);
        answer(result)
    }

    type ExportStream = Stream<v1::ExportResponse>;
    async fn export(&self, request: Request<v1::ExportRequest>) -> Answer<Self::ExportStream> {
        let request = request.into_inner();
        let lock = request.volume.clone();
        let agent = Arc::clone(&self.0);
        let export = self.0.alone(&[&lock], move |_| agent.open_export(&request)).await?;
        let (sink, messages) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || export.send(&sink));
        Ok(Response::new(forward(messages)))
    }

    async fn read_snapshot(
        &self,
        request: Request<v1::ReadSnapshotRequest>,
    ) -> Answer<v1::ReadSnapshotResponse> {
        let request = request.into_inner();
        let data = self.0.look(move |agent| agent.read_snapshot(&request)).await;
        answer(data.map(|data| v1::ReadSnapshotResponse { data }))
    }

    async fn list_extents(
        &self,
        request: Request<v1::ListExtentsRequest>,
    ) -> Answer<v1::ListExtentsResponse> {
        let request = request.into_inner();
        answer(self.0.look(move |agent| agent.list_extents(&request)).await)
    }

    async fn read_changes(
        &self,
        request: Request<v1::ReadChangesRequest>,
    ) -> Answer<v1::ReadChangesResponse> {
        let request = request.into_inner();
        answer(self.0.look(move |agent| agent.read_changes(request)).await)
    }

    async fn find_volumes(
        &self,
        request: Request<v1::FindVolumesRequest>,
    ) -> Answer<v1::ListVolumesResponse> {
        let request = request.into_inner();
        let volumes = self.0.look(move |agent| agent.find_volumes(request)).await;
        answer(volumes.map(|volumes| v1::ListVolumesResponse { volumes }))
    }

    async fn find_snapshots(
        &self,
        request: Request<v1::FindSnapshotsRequest>,
    ) -> Answer<v1::ListSnapshotsResponse> {
        let request = request.into_inner();
        let snapshots = self.0.look(move |agent| agent.find_snapshots(request)).await;
        answer(snapshots.map(|snapshots| v1::ListSnapshotsResponse { snapshots }))
    }

    async fn provision_volume(&self, request: Request<v1::ProvisionVolumeRequest>) -> Answer<v1::Volume> {
        let request = request.into_inner();
        let source = match request.source {
            Some(provision_volume_request::Source::VolumeId(id)) => Some(id),
            _ => None,
        };
        let more = [request.name.clone(), lock_of_label(&request.labels, &request.unique_label)];
        answer(self.by_id(source, more, move |agent, names| agent.provision_volume(request, names)).await)
    }

    async fn provision_snapshots(
        &self,
        request: Request<v1::ProvisionSnapshotsRequest>,
    ) -> Answer<v1::CreateSnapshotsResponse> {
        let request = request.into_inner();
        let ids = request.volume_ids.clone();
        let more = [lock_of_label(&request.labels, &request.unique_label)];
        let work = move |agent: &Agent, names: &[String]| agent.provision_snapshots(request, names);
        answer(self.by_id(ids, more, work).await.map(Into::into))
    }

    async fn delete_objects(
        &self,
        request: Request<v1::DeleteObjectsRequest>,
    ) -> Answer<v1::DeleteObjectsResponse> {
        let request = request.into_inner();
        let (ids, snapshots) = (request.volume_ids.clone(), request.snapshot_ids.clone());
        // A snapshot is deleted under the lock of its volume, which may be gone.
        let of = move |agent: &Agent| {
            let infos = snapshots.into_iter().filter_map(|id| agent.pool.snapshot_by_id(id).ok());
            let mut names = agent.names_of(ids);
            names.extend(infos.map(|info| info.volume));
            Ok(names)
        };
        let names = self.0.look(of).await?;
        let work = move |agent: &Agent, names: &[String]| agent.delete_objects(&request, names);
        answer(self.by_name(names, work).await.map(|()| v1::DeleteObjectsResponse {}))
    }

    async fn format_volume(
        &self,
        request: Request<v1::FormatVolumeRequest>,
    ) -> Answer<v1::FormatVolumeResponse> {
        let v1::FormatVolumeRequest { volume_id, fs } = request.into_inner();
        let work = move |agent: &Agent, names: &[String]| {
            agent.format_volume(&agent.locked_volume(volume_id, names)?, &fs)
        };
        let formatted = self.by_id([volume_id], [], work).await;
        answer(formatted.map(|formatted| v1::FormatVolumeResponse { formatted }))
    }

    async fn grow_file_system(
        &self,
        request: Request<v1::GrowFileSystemRequest>,
    ) -> Answer<v1::GrowFileSystemResponse> {
        let id = request.into_inner().volume_id;
        let work =
            move |agent: &Agent, names: &[String]| agent.grow_file_system(&agent.locked_volume(id, names)?);
        answer(self.by_id([id], [], work).await.map(|()| v1::GrowFileSystemResponse {}))
    }
}

impl Service {
    /// Runs `work` as the only operation on the volumes with these ids and the names `more`; it is told what is locked.
    async fn by_id<T: Send + 'static>(
        &self,
        ids: impl IntoIterator<Item = u64>,
        more: impl IntoIterator<Item = String>,
        work: impl FnOnce(&Agent, &[String]) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let ids: Vec<u64> = ids.into_iter().collect();
        let mut names = match ids.is_empty() {
            // A look is a turn of another thread, which takes its time, too.
            true => Vec::new(),
            false => self.0.look(move |agent| Ok(agent.names_of(ids))).await?,
        };
        names.extend(more);
        self.by_name(names, work).await
    }

    /// Runs `work` as the only operation on what has these names, which it is told.
    async fn by_name<T: Send + 'static>(
        &self,
        names: Vec<String>,
        work: impl FnOnce(&Agent, &[String]) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let told = names.clone();
        let locked: Vec<&str> = names.iter().map(String::as_str).collect();
        self.0.alone(&locked, move |agent| work(agent, &told)).await
    }
}

/// Sends the history and, if asked for, what comes after it, until the client or the agent goes away.
async fn send_events(
    agent: Arc<Agent>,
    request: v1::WatchEventsRequest,
    sender: mpsc::Sender<std::result::Result<v1::Event, Status>>,
) {
    let (mut newest, mut closing) = (agent.events.subscribe(), agent.closing());
    let mut sequence = request.after_sequence;
    loop {
        newest.borrow_and_update();
        let step = agent.events.after(sequence, EVENTS_A_STEP);
        let empty = step.is_empty();
        for event in step {
            sequence = event.sequence;
            if (request.volume.is_empty() || request.volume == event.volume)
                && sender.send(Ok(event)).await.is_err()
            {
                return;
            }
        }
        if !empty {
            continue;
        }
        if !request.follow {
            return;
        }
        tokio::select! {
            changed = newest.changed() => if changed.is_err() { return },
            // The guard of the value may not live over the next await.
            () = async { drop(closing.wait_for(|closing| *closing).await) } => {
                let gone = Error::new(ErrorKind::Unreachable, "the agent stops");
                // A client that has gone away does not wait for it.
                let _ = sender.send(Err(gone.into())).await;
                return;
            }
            () = sender.closed() => return,
        }
    }
}
