//! The agent, as the services see it: a connection that is kept, objects by their ids, errors as CSI knows them.

use crate::checks::shown;
use crate::ids::{Host, Id, Kind};
use api::v1::{FindSnapshotsRequest, FindVolumesRequest, GetStatusRequest, Snapshot, Volume};
use api::{Client, Error, ErrorKind};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::{Code, Status};

/// The agent behind a socket, now or later.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: Arc<PathBuf>,
    /// Name of the node.
    node: Arc<str>,
    /// The connection of the last call: to make one and to learn whose pool it leads to costs more than most calls.
    kept: Arc<Mutex<Option<Connection>>>,
}

/// An agent that answers.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Its API.
    pub client: Client,
    /// Its pool.
    pub host: Host,
}

/// Where an id leads.
#[derive(Debug)]
pub enum Found<T> {
    /// To this, here.
    Here(T),
    /// Nowhere: it is gone, or never was.
    Absent,
    /// To another host.
    Elsewhere,
}

impl Agent {
    /// The agent of the node called `node`, at `socket`.
    pub fn new(socket: PathBuf, node: &str) -> Self {
        Self { socket: Arc::new(socket), node: node.into(), kept: Arc::default() }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Connects, unless an earlier call did and the agent is still the same.
    ///
    /// # Errors
    /// `UNAVAILABLE` if it does not answer.
    pub async fn connect(&self) -> Result<Connection, Status> {
        let kept = self.kept.lock().clone();
        if let Some(kept) = kept.filter(|kept| kept.client.is_connected()) {
            return Ok(kept);
        }
        let mut client = Client::connect(&self.socket).await.map_err(status)?;
        let told = ask_status(&mut client).await?;
        let pool = told.pool.as_ref().map_or("", |pool| pool.id.as_str());
        let host = Host::parse(pool)
            .ok_or_else(|| Status::unavailable(format!("the agent's pool has no id: {}", shown(pool))))?;
        let made = Connection { client, host };
        *self.kept.lock() = Some(made.clone());
        Ok(made)
    }
}

async fn ask_status(client: &mut Client) -> Result<api::v1::Status, Status> {
    Ok(client.get_status(GetStatusRequest {}).await.map_err(foreign)?.into_inner())
}

impl Connection {
    /// What the agent tells of itself.
    ///
    /// # Errors
    /// Those of the agent.
    pub async fn status(&mut self) -> Result<api::v1::Status, Status> {
        ask_status(&mut self.client).await
    }

    /// The id of a volume here.
    pub fn volume_id(&self, number: u64) -> String {
        Id { host: self.host, kind: Kind::Volume, number }.to_string()
    }

    /// The id of a snapshot here.
    pub fn snapshot_id(&self, number: u64) -> String {
        Id { host: self.host, kind: Kind::Snapshot, number }.to_string()
    }

    /// The volume with that id.
    ///
    /// # Errors
    /// Those of the agent but `not_found`.
    pub async fn find_volume(&mut self, id: &str) -> Result<Found<Volume>, Status> {
        let Some(id) = Id::parse(Kind::Volume, id) else { return Ok(Found::Absent) };
        if id.host != self.host {
            return Ok(Found::Elsewhere);
        }
        let request = FindVolumesRequest { id: id.number, labels: HashMap::new() };
        let found = absent_is_none(self.client.find_volumes(request).await)?;
        Ok(found.and_then(|found| found.volumes.into_iter().next()).map_or(Found::Absent, Found::Here))
    }

    /// The snapshot with that id.
    ///
    /// # Errors
    /// Those of the agent but `not_found`.
    pub async fn find_snapshot(&mut self, id: &str) -> Result<Found<Snapshot>, Status> {
        let Some(id) = Id::parse(Kind::Snapshot, id) else { return Ok(Found::Absent) };
        if id.host != self.host {
            return Ok(Found::Elsewhere);
        }
        let request = FindSnapshotsRequest { id: id.number, labels: HashMap::new() };
        let found = absent_is_none(self.client.find_snapshots(request).await)?;
        Ok(found.and_then(|found| found.snapshots.into_iter().next()).map_or(Found::Absent, Found::Here))
    }

    /// The volume with that id, which must be here.
    ///
    /// # Errors
    /// `NOT_FOUND`, and those of the agent.
    pub async fn volume(&mut self, id: &str) -> Result<Volume, Status> {
        self.find_volume(id).await?.here("volume", id)
    }

    /// The snapshot with that id, which must be here.
    ///
    /// # Errors
    /// `NOT_FOUND`, and those of the agent.
    pub async fn snapshot(&mut self, id: &str) -> Result<Snapshot, Status> {
        self.find_snapshot(id).await?.here("snapshot", id)
    }

    /// Volumes with all these labels.
    ///
    /// # Errors
    /// Those of the agent.
    pub async fn volumes_with(&mut self, labels: HashMap<String, String>) -> Result<Vec<Volume>, Status> {
        let request = FindVolumesRequest { id: 0, labels };
        Ok(self.client.find_volumes(request).await.map_err(foreign)?.into_inner().volumes)
    }

    /// Snapshots with all these labels.
    ///
    /// # Errors
    /// Those of the agent.
    pub async fn snapshots_with(&mut self, labels: HashMap<String, String>) -> Result<Vec<Snapshot>, Status> {
        let request = FindSnapshotsRequest { id: 0, labels };
        Ok(self.client.find_snapshots(request).await.map_err(foreign)?.into_inner().snapshots)
    }
}

impl<T> Found<T> {
    fn here(self, what: &str, id: &str) -> Result<T, Status> {
        match self {
            Self::Here(found) => Ok(found),
            Self::Absent => Err(Status::not_found(format!("there is no {what} {}", shown(id)))),
            Self::Elsewhere => {
                Err(Status::not_found(format!("the {what} is not in the pool of this node: {}", shown(id))))
            }
        }
    }

    /// What is here, or None where nothing is; for calls that delete.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` for what is in another pool: here it can neither be deleted nor said to be gone.
    pub fn here_or_gone(self, what: &str, id: &str) -> Result<Option<T>, Status> {
        match self {
            Self::Here(found) => Ok(Some(found)),
            Self::Absent => Ok(None),
            Self::Elsewhere => Err(Status::failed_precondition(format!(
                "the {what} is in the pool of another node, or in an earlier pool of this one: {}; delete it there, \
                 or take its finalizers away if that pool is lost",
                shown(id)
            ))),
        }
    }
}

fn absent_is_none<T>(answer: Result<tonic::Response<T>, Status>) -> Result<Option<T>, Status> {
    match answer.map_err(Error::from) {
        Ok(found) => Ok(Some(found.into_inner())),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(status(error)),
    }
}

/// The code that CSI gives to a kind of failure.
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Exists => Code::AlreadyExists,
        ErrorKind::Busy | ErrorKind::Unsupported => Code::FailedPrecondition,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Unreachable | ErrorKind::Poisoned => Code::Unavailable,
        ErrorKind::Damaged => Code::DataLoss,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Io => Code::Internal,
    }
}

/// The answer to a call that failed at the agent.
#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
pub fn status(error: Error) -> Status {
    let message = match &error.hint {
        Some(hint) => format!("{}; {hint}", error.message),
        None => error.message.clone(),
    };
    Status::new(code(error.kind), message)
}

/// The answer to a call whose call to the agent failed.
pub fn foreign(answer: Status) -> Status {
    status(Error::from(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_hint_and_no_details() {
        let answer = foreign(Status::from(Error::new(ErrorKind::NoSpace, "full").hint("delete snapshots")));
        assert_eq!((answer.code(), answer.message()), (Code::ResourceExhausted, "full; delete snapshots"));
        assert!(answer.details().is_empty() && answer.metadata().is_empty());
    }

    #[test]
    fn deletion_tells_what_is_gone_from_what_is_elsewhere() {
        assert_eq!(Found::Here(1).here_or_gone("volume", "x").unwrap(), Some(1));
        assert_eq!(Found::<u8>::Absent.here_or_gone("volume", "x").unwrap(), None);
        let elsewhere = Found::<u8>::Elsewhere.here_or_gone("volume", "x").unwrap_err();
        assert_eq!(elsewhere.code(), Code::FailedPrecondition);
        assert_eq!(Found::<u8>::Elsewhere.here("volume", "x").unwrap_err().code(), Code::NotFound);
    }
}
