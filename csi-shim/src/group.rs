//! The GroupController service: snapshots of several volumes of this node at one point.
//!
//! The agent freezes all, cuts all in one record of its log, and thaws. So there is no part of a group that could be
//! left behind: either all its snapshots are there, with the group's id as their label, or none.

use crate::agent::{Agent, Connection, Found, status};
use crate::checks::{self, shown};
use crate::controller::{delete_objects, snapshot, timestamp};
use crate::csi::group_controller_server::GroupController;
use crate::csi::group_controller_service_capability::{Rpc, Type, rpc};
use crate::csi::{self, GroupControllerServiceCapability, VolumeGroupSnapshot};
use crate::ids::{Id, Kind};
use crate::labels;
use crate::parameters::{Class, Parameters, hash_of};
use crate::pending::Pending;
use crate::{Answer, answer};
use api::v1::{ProvisionSnapshotsRequest, Snapshot};
use api::{Error, ErrorKind};
use std::collections::{BTreeSet, HashMap};
use tonic::{Request, Status};

/// The service.
#[derive(Debug)]
pub struct GroupService {
    agent: Agent,
    pending: Pending,
}

impl GroupService {
    /// For that agent.
    pub fn new(agent: Agent, pending: Pending) -> Self {
        Self { agent, pending }
    }
}

#[tonic::async_trait]
impl GroupController for GroupService {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<csi::GroupControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::GroupControllerGetCapabilitiesResponse> {
        let all = Rpc { r#type: rpc::Type::CreateDeleteGetVolumeGroupSnapshot.into() };
        let capabilities = vec![GroupControllerServiceCapability { r#type: Some(Type::Rpc(all)) }];
        answer(
            "GroupControllerGetCapabilities",
            Ok(csi::GroupControllerGetCapabilitiesResponse { capabilities }),
        )
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<csi::CreateVolumeGroupSnapshotRequest>,
    ) -> Answer<csi::CreateVolumeGroupSnapshotResponse> {
        let request = request.into_inner();
        let key = format!("group name {}", crate::ids::hash_of_name(&request.name));
        let agent = self.agent.clone();
        let work = async move { create(&agent, request).await };
        let made = self.pending.alone(&key, work).await;
        let made = made.map(|group| csi::CreateVolumeGroupSnapshotResponse { group_snapshot: Some(group) });
        answer("CreateVolumeGroupSnapshot", made)
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<csi::DeleteVolumeGroupSnapshotRequest>,
    ) -> Answer<csi::DeleteVolumeGroupSnapshotResponse> {
        let request = request.into_inner();
        let agent = self.agent.clone();
        let key = request.group_snapshot_id.clone();
        let work = async move { delete(&agent, &request.group_snapshot_id, &request.snapshot_ids).await };
        let done = self.pending.alone(&key, work).await;
        answer("DeleteVolumeGroupSnapshot", done.map(|()| csi::DeleteVolumeGroupSnapshotResponse {}))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<csi::GetVolumeGroupSnapshotRequest>,
    ) -> Answer<csi::GetVolumeGroupSnapshotResponse> {
        let request = request.into_inner();
        let look = async {
            checks::required("group_snapshot_id", &request.group_snapshot_id)?;
            let mut agent = self.agent.connect().await?;
            let id = &request.group_snapshot_id;
            let members = match find(&mut agent, id).await? {
                Found::Here(members) => members,
                Found::Absent | Found::Elsewhere => {
                    return Err(Status::not_found(format!("there is no group snapshot {}", shown(id))));
                }
            };
            check_members(&agent, &members, &request.snapshot_ids)?;
            Ok(csi::GetVolumeGroupSnapshotResponse { group_snapshot: Some(group(&agent, id, &members)) })
        };
        answer("GetVolumeGroupSnapshot", look.await)
    }
}

/// The snapshots of a group, where it has any.
async fn find(agent: &mut Connection, id: &str) -> Result<Found<Vec<Snapshot>>, Status> {
    match Id::parse(Kind::Group, id) {
        None => Ok(Found::Absent),
        Some(parsed) if parsed.host != agent.host => Ok(Found::Elsewhere),
        Some(_) => {
            let label = HashMap::from([(labels::GROUP.to_owned(), id.to_owned())]);
            let members = agent.snapshots_with(label).await?;
            Ok(if members.is_empty() { Found::Absent } else { Found::Here(members) })
        }
    }
}

fn group(agent: &Connection, id: &str, members: &[Snapshot]) -> VolumeGroupSnapshot {
    VolumeGroupSnapshot {
        group_snapshot_id: id.to_owned(),
        snapshots: members.iter().map(|member| snapshot(agent, member)).collect(),
        creation_time: members.first().map(|member| timestamp(member.created_at)),
        ready_to_use: true,
    }
}

/// Refuses a list with snapshots that the group does not have.
fn check_members(agent: &Connection, members: &[Snapshot], listed: &[String]) -> Result<(), Status> {
    let own: BTreeSet<String> = members.iter().map(|member| agent.snapshot_id(member.id)).collect();
    match listed.iter().find(|id| !own.contains(*id)) {
        Some(stranger) => {
            Err(Status::invalid_argument(format!("snapshot {} is not of this group", shown(stranger))))
        }
        None => Ok(()),
    }
}

async fn create(
    agent: &Agent,
    request: csi::CreateVolumeGroupSnapshotRequest,
) -> Result<VolumeGroupSnapshot, Status> {
    checks::name(&request.name)?;
    if request.source_volume_ids.is_empty() {
        return Err(Status::invalid_argument("source_volume_ids are missing"));
    }
    let parameters = Parameters::parse(Class::Snapshot, &request.parameters)?;
    let mut arguments: Vec<String> =
        request.source_volume_ids.iter().map(|id| format!("source {id}")).collect();
    arguments.push(format!("consistency {:?}", parameters.consistency));
    let arguments = hash_of(&mut arguments);
    let mut agent = agent.connect().await?;
    let id = Id::of_group(agent.host, &request.name).to_string();
    let members = match earlier(&mut agent, &id, &request.name, &arguments).await? {
        Some(members) => members,
        None => {
            let mut labels = parameters.metadata.clone();
            labels.insert(labels::GROUP.to_owned(), id.clone());
            labels.insert(labels::ARGUMENTS.to_owned(), arguments.clone());
            let cut = ProvisionSnapshotsRequest {
                volume_ids: numbers(&mut agent, &request.source_volume_ids).await?,
                name: checks::pool_name(&request.name),
                labels,
                unique_label: labels::GROUP.to_owned(),
                freeze: parameters.freeze().into(),
            };
            match agent.client.provision_snapshots(cut).await.map_err(Error::from) {
                Ok(cut) => cut.into_inner().snapshots,
                // A call that nobody waits for any more has made it meanwhile.
                Err(error) if error.kind == ErrorKind::Exists => {
                    let made = earlier(&mut agent, &id, &request.name, &arguments).await?;
                    made.ok_or_else(|| status(error))?
                }
                Err(error) => return Err(status(error)),
            }
        }
    };
    Ok(group(&agent, &id, &members))
}

/// What an earlier call with this name made.
async fn earlier(
    agent: &mut Connection,
    id: &str,
    name: &str,
    arguments: &str,
) -> Result<Option<Vec<Snapshot>>, Status> {
    let Found::Here(members) = find(agent, id).await? else { return Ok(None) };
    if members.iter().any(|one| one.labels.get(labels::ARGUMENTS).is_none_or(|with| with != arguments)) {
        return Err(Status::already_exists(format!(
            "there is a group snapshot {} of other volumes or of another class",
            shown(name)
        )));
    }
    Ok(Some(members))
}

/// The volumes to cut, all of them here.
async fn numbers(agent: &mut Connection, ids: &[String]) -> Result<Vec<u64>, Status> {
    let mut numbers = Vec::with_capacity(ids.len());
    for id in ids {
        match agent.find_volume(id).await? {
            Found::Here(volume) => numbers.push(volume.id),
            Found::Absent => return Err(Status::not_found(format!("there is no volume {}", shown(id)))),
            Found::Elsewhere => {
                return Err(Status::failed_precondition(format!(
                    "volume {} is on another node: the volumes of a group must be on one",
                    shown(id)
                )));
            }
        }
    }
    Ok(numbers)
}

async fn delete(agent: &Agent, id: &str, listed: &[String]) -> Result<(), Status> {
    checks::required("group_snapshot_id", id)?;
    let mut agent = agent.connect().await?;
    let Some(members) = find(&mut agent, id).await?.here_or_gone("group snapshot", id)? else {
        return Ok(());
    };
    // Those that are gone already are of no group any more.
    let mut living = Vec::new();
    for one in listed {
        if let Found::Here(_) = agent.find_snapshot(one).await? {
            living.push(one.clone());
        }
    }
    check_members(&agent, &members, &living)?;
    delete_objects(&mut agent, Vec::new(), members.iter().map(|member| member.id).collect()).await
}
