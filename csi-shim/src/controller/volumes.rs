//! CreateVolume and what goes with it.
//!
//! A volume carries the hash of its name and of its arguments as labels, written in the record that makes it. So a
//! repeated call finds what an earlier one made, whoever has died in between.

use super::{convert, delete_objects};
use crate::FILE_SYSTEMS;
use crate::agent::{Agent, Connection, Found, foreign};
use crate::checks::{self, Access, Capability, shown};
use crate::csi::volume_content_source::Type as Source;
use crate::csi::{self, validate_volume_capabilities_response};
use crate::ids::hash_of_name;
use crate::labels;
use crate::parameters::{Class, Parameters, hash_of};
use api::v1::{ProvisionVolumeRequest, ResizeVolumeRequest, Volume, provision_volume_request};
use std::collections::HashMap;
use tonic::Status;

/// What is asked for, after the checks.
struct Wanted {
    name: String,
    capabilities: Vec<Capability>,
    parameters: Parameters,
    range: Option<csi::CapacityRange>,
    source: Option<Source>,
}

impl Wanted {
    fn parse(request: csi::CreateVolumeRequest) -> Result<Self, Status> {
        checks::name(&request.name)?;
        let capabilities = checks::capabilities(&request.volume_capabilities)?;
        let parameters = Parameters::parse(Class::Storage, &request.parameters)?;
        if !request.mutable_parameters.is_empty() {
            return Err(Status::invalid_argument(
                "mutable_parameters are not supported: volumes have no limits",
            ));
        }
        checks::range(request.capacity_range.as_ref())?;
        let source = match request.volume_content_source {
            None => None,
            Some(source) => Some(source.r#type.ok_or_else(|| {
                Status::invalid_argument("volume_content_source is neither a snapshot nor a volume")
            })?),
        };
        Ok(Self { name: request.name, capabilities, parameters, range: request.capacity_range, source })
    }

    /// The file system that the volume will get, where it is known.
    fn file_system(&self) -> Option<&str> {
        let asked = self.capabilities.iter().find_map(|one| match &one.access {
            Access::Mount { fs, .. } => Some(fs.as_str()),
            Access::Block => None,
        })?;
        let class = self.parameters.fs.as_deref();
        Some(Some(asked).filter(|fs| !fs.is_empty()).or(class).unwrap_or(FILE_SYSTEMS[0].0))
    }

    /// A hash of all that another call with the same name must have too, but for the size.
    fn hash(&self) -> String {
        let access = |one: &Capability| match &one.access {
            Access::Block => "access block".to_owned(),
            Access::Mount { fs, .. } => format!("access mount {fs}"),
        };
        let mut arguments: Vec<String> = self.capabilities.iter().map(access).collect();
        arguments
            .push(format!("source {}", self.source.as_ref().map(convert::source_label).unwrap_or_default()));
        arguments.push(format!("fs {:?}", self.parameters.fs));
        arguments.push(format!("consistency {:?}", self.parameters.consistency));
        hash_of(&mut arguments)
    }

    fn labels(&self, size_bytes: u64) -> HashMap<String, String> {
        let mut all = self.parameters.metadata.clone();
        let own = [(labels::NAME, hash_of_name(&self.name)), (labels::ARGUMENTS, self.hash())];
        all.extend(own.map(|(key, value)| (key.to_owned(), value)));
        all.insert(labels::SIZE.to_owned(), size_bytes.to_string());
        if let Some(source) = &self.source {
            all.insert(labels::SOURCE.to_owned(), convert::source_label(source));
        }
        if let Some(fs) = &self.parameters.fs {
            all.insert(labels::FS.to_owned(), fs.clone());
        }
        all
    }
}

/// Makes a volume, or answers with the one that an earlier call made.
pub async fn create(
    agent: &Agent,
    request: csi::CreateVolumeRequest,
) -> Result<csi::CreateVolumeResponse, Status> {
    let here = checks::allows_node(request.accessibility_requirements.as_ref(), agent.node());
    let wanted = Wanted::parse(request)?;
    if !here {
        return Err(elsewhere(format!("the volume may not be on node {}", agent.node())));
    }
    let mut connection = agent.connect().await?;
    let made = match provision(&mut connection, &wanted).await {
        Ok(made) => made,
        // Whatever the reason: what an earlier call made is the answer, even if its source has gone since.
        Err(refused) => match find(&mut connection, &wanted).await? {
            Some(made) => complete(&mut connection, made).await?,
            None => return Err(refused),
        },
    };
    let volume = convert::volume(&connection, &made, agent.node());
    Ok(csi::CreateVolumeResponse { volume: Some(volume) })
}

/// The code at which the provisioner gives this node up and lets the scheduler take another.
fn elsewhere(message: String) -> Status {
    Status::resource_exhausted(message)
}

/// The volume that an earlier call with this name made.
async fn find(agent: &mut Connection, wanted: &Wanted) -> Result<Option<Volume>, Status> {
    let name = HashMap::from([(labels::NAME.to_owned(), hash_of_name(&wanted.name))]);
    let Some(found) = agent.volumes_with(name).await?.into_iter().next() else { return Ok(None) };
    let other = |what: &str| {
        Err(Status::already_exists(format!("there is a volume {} of another {what}", shown(&wanted.name))))
    };
    if found.labels.get(labels::ARGUMENTS) != Some(&wanted.hash()) {
        return other("source, access type or class");
    }
    let (least, most) = checks::range(wanted.range.as_ref())?;
    let size = intended_size(&found);
    if least.is_some_and(|least| size < least) || most.is_some_and(|most| size > most) {
        return other("size");
    }
    Ok(Some(found))
}

/// The size that the volume has, or gets once its making is completed.
fn intended_size(volume: &Volume) -> u64 {
    let wanted = volume.labels.get(labels::SIZE).and_then(|size| size.parse().ok());
    volume.size_bytes.max(wanted.unwrap_or(0))
}

/// Finishes what an interrupted call left to be done: a clone grows after it was made.
async fn complete(agent: &mut Connection, volume: Volume) -> Result<Volume, Status> {
    let size_bytes = intended_size(&volume);
    if volume.size_bytes == size_bytes {
        return Ok(volume);
    }
    let request = ResizeVolumeRequest { name: volume.name, size_bytes };
    Ok(agent.client.resize_volume(request).await.map_err(foreign)?.into_inner())
}

async fn provision(agent: &mut Connection, wanted: &Wanted) -> Result<Volume, Status> {
    let (source, source_size) = match &wanted.source {
        None => (None, None),
        Some(Source::Snapshot(from)) => {
            let found = agent.find_snapshot(&from.snapshot_id).await?;
            let found = source_here(found, "snapshot", &from.snapshot_id)?;
            (Some(provision_volume_request::Source::SnapshotId(found.id)), Some(found.size_bytes))
        }
        Some(Source::Volume(from)) => {
            let found = agent.find_volume(&from.volume_id).await?;
            let found = source_here(found, "volume", &from.volume_id)?;
            (Some(provision_volume_request::Source::VolumeId(found.id)), Some(found.size_bytes))
        }
    };
    let floor = match (&source, wanted.file_system()) {
        (None, Some(fs)) => FILE_SYSTEMS.iter().find(|(name, _)| *name == fs).map_or(0, |(_, least)| *least),
        _ => 0,
    };
    let size_bytes = checks::new_size(wanted.range.as_ref(), source_size, floor)?;
    let request = ProvisionVolumeRequest {
        name: checks::pool_name(&wanted.name),
        size_bytes,
        labels: wanted.labels(size_bytes),
        unique_label: labels::NAME.to_owned(),
        source,
        freeze: wanted.parameters.freeze().into(),
    };
    Ok(agent.client.provision_volume(request).await.map_err(foreign)?.into_inner())
}

fn source_here<T>(found: Found<T>, what: &str, id: &str) -> Result<T, Status> {
    match found {
        Found::Here(found) => Ok(found),
        Found::Absent => Err(Status::not_found(format!("there is no {what} {}", shown(id)))),
        Found::Elsewhere => Err(elsewhere(format!(
            "the {what} is on another node, where alone a volume can be made of it: {}",
            shown(id)
        ))),
    }
}

/// Deletes a volume; its snapshots stay.
pub async fn delete(agent: &Agent, id: &str) -> Result<(), Status> {
    checks::required("volume_id", id)?;
    let mut agent = agent.connect().await?;
    match agent.find_volume(id).await?.here_or_gone("volume", id)? {
        None => Ok(()),
        Some(volume) => delete_objects(&mut agent, vec![volume.id], Vec::new()).await,
    }
}

/// Whether a volume can be used like that.
pub async fn validate(
    agent: &Agent,
    request: csi::ValidateVolumeCapabilitiesRequest,
) -> Result<csi::ValidateVolumeCapabilitiesResponse, Status> {
    checks::required("volume_id", &request.volume_id)?;
    if request.volume_capabilities.is_empty() {
        return Err(Status::invalid_argument("volume_capabilities are missing"));
    }
    agent.connect().await?.volume(&request.volume_id).await?;
    let possible = checks::capabilities(&request.volume_capabilities)
        .and_then(|_| Parameters::parse(Class::Storage, &request.parameters))
        .and_then(|_| match request.mutable_parameters.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid_argument("mutable_parameters are not supported")),
        });
    let confirmed = validate_volume_capabilities_response::Confirmed {
        volume_context: request.volume_context,
        volume_capabilities: request.volume_capabilities,
        parameters: request.parameters,
        mutable_parameters: HashMap::new(),
    };
    Ok(match possible {
        Ok(()) => {
            csi::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() }
        }
        Err(why) => {
            csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message: why.message().to_owned() }
        }
    })
}
