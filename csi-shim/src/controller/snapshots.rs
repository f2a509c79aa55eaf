//! CreateSnapshot and DeleteSnapshot.

use super::{convert, delete_objects};
use crate::agent::{Agent, Connection, status};
use crate::checks::{self, shown};
use crate::csi;
use crate::ids::hash_of_name;
use crate::labels;
use crate::parameters::{Class, Parameters, hash_of};
use api::v1::{ProvisionSnapshotsRequest, Snapshot};
use api::{Error, ErrorKind};
use std::collections::HashMap;
use tonic::Status;

/// Cuts a volume, or answers with what an earlier call cut.
pub async fn create(
    agent: &Agent,
    request: csi::CreateSnapshotRequest,
) -> Result<csi::CreateSnapshotResponse, Status> {
    checks::name(&request.name)?;
    checks::required("source_volume_id", &request.source_volume_id)?;
    let parameters = Parameters::parse(Class::Snapshot, &request.parameters)?;
    let arguments = hash_of(&mut [
        format!("source {}", request.source_volume_id),
        format!("consistency {:?}", parameters.consistency),
    ]);
    let mut agent = agent.connect().await?;
    let cut = match find(&mut agent, &request.name, &arguments).await? {
        Some(cut) => cut,
        None => provision(&mut agent, &request, &parameters, &arguments).await?,
    };
    Ok(csi::CreateSnapshotResponse { snapshot: Some(convert::snapshot(&agent, &cut)) })
}

/// The snapshot that an earlier call with this name made.
async fn find(agent: &mut Connection, name: &str, arguments: &str) -> Result<Option<Snapshot>, Status> {
    let label = HashMap::from([(labels::NAME.to_owned(), hash_of_name(name))]);
    let Some(found) = agent.snapshots_with(label).await?.into_iter().next() else { return Ok(None) };
    if found.labels.get(labels::ARGUMENTS).is_none_or(|made_with| made_with != arguments) {
        return Err(Status::already_exists(format!(
            "there is a snapshot {} of another volume or class",
            shown(name)
        )));
    }
    Ok(Some(found))
}

async fn provision(
    agent: &mut Connection,
    request: &csi::CreateSnapshotRequest,
    parameters: &Parameters,
    arguments: &str,
) -> Result<Snapshot, Status> {
    let volume = agent.volume(&request.source_volume_id).await?;
    let mut labels = parameters.metadata.clone();
    labels.insert(labels::NAME.to_owned(), hash_of_name(&request.name));
    labels.insert(labels::ARGUMENTS.to_owned(), arguments.to_owned());
    let cut = ProvisionSnapshotsRequest {
        volume_ids: vec![volume.id],
        name: checks::pool_name(&request.name),
        labels,
        unique_label: labels::NAME.to_owned(),
        freeze: parameters.freeze().into(),
    };
    match agent.client.provision_snapshots(cut).await.map_err(Error::from) {
        Ok(answer) => {
            let answer = answer.into_inner();
            for warning in &answer.warnings {
                tracing::warn!(snapshot = %shown(&request.name), "{warning}");
            }
            let made = answer.snapshots.into_iter().next();
            made.ok_or_else(|| Status::internal("the agent answered without the snapshot"))
        }
        // A call that nobody waits for any more has made it meanwhile.
        Err(error) if error.kind == ErrorKind::Exists => {
            find(agent, &request.name, arguments).await?.ok_or_else(|| status(error))
        }
        Err(error) => Err(status(error)),
    }
}

/// Deletes a snapshot; volumes made of it stay.
pub async fn delete(agent: &Agent, id: &str) -> Result<(), Status> {
    checks::required("snapshot_id", id)?;
    let mut agent = agent.connect().await?;
    match agent.find_snapshot(id).await?.here_or_gone("snapshot", id)? {
        None => Ok(()),
        Some(snapshot) => delete_objects(&mut agent, Vec::new(), vec![snapshot.id]).await,
    }
}
