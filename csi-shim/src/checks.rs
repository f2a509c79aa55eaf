//! What a request may say. Everything here refuses before anything is done.

use crate::csi::volume_capability::AccessType;
use crate::csi::volume_capability::access_mode::Mode;
use crate::csi::{CapacityRange, TopologyRequirement, VolumeCapability};
use crate::{FILE_SYSTEMS, TOPOLOGY_KEY};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use tonic::Status;

/// Longest string of a request, bytes (the specification's general limit).
const MAX_STRING_BYTES: usize = 128;
/// Most bytes of a map, keys and values together (the specification's limit).
const MAX_MAP_BYTES: usize = 4096;
/// Longest path that Linux takes, bytes.
const MAX_PATH_BYTES: usize = 4096;
/// Volumes are multiples of this.
pub const BLOCK_BYTES: u64 = 4096;
/// Size of a volume that nobody gave one.
const DEFAULT_BYTES: u64 = 1 << 30;
/// The largest volume.
pub const MAX_VOLUME_BYTES: u64 = 1 << 50;

/// What somebody sent, as it may stand in a message: escaped, and not much of it.
pub fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(100).flat_map(char::escape_debug).collect();
    if text.chars().nth(100).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// A name that an orchestrator gives: 1 to 128 bytes, no control characters but white space.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn name(name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(Status::invalid_argument("name is missing"));
    }
    if name.len() > MAX_STRING_BYTES {
        let length = name.len();
        return Err(Status::invalid_argument(format!(
            "name has {length} bytes, more than {MAX_STRING_BYTES}"
        )));
    }
    if name.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
        return Err(Status::invalid_argument(format!("name {} has a control character", shown(name))));
    }
    Ok(())
}

/// What the pool calls an object that the orchestrator calls `name`: the same where it can be part of a path and of
/// a command line, else a hash of it.
pub fn pool_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.chars().all(plain) && !name.starts_with(['-', '.']) && name != "latest" {
        name.to_owned()
    } else {
        format!("csi-{}", &crate::ids::hash_of_name(name)[..32])
    }
}

/// A field that must not be empty.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn required(field: &str, value: &str) -> Result<(), Status> {
    if value.is_empty() { Err(Status::invalid_argument(format!("{field} is missing"))) } else { Ok(()) }
}

/// Parameters and contexts: not larger than the specification lets them be.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn map(field: &str, map: &HashMap<String, String>) -> Result<(), Status> {
    if map.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_MAP_BYTES {
        return Err(Status::invalid_argument(format!("{field} has more than {MAX_MAP_BYTES} bytes")));
    }
    match map.iter().find(|(key, value)| (*key).chars().chain(value.chars()).any(char::is_control)) {
        Some((key, _)) => {
            Err(Status::invalid_argument(format!("{field} {} has a control character", shown(key))))
        }
        None => Ok(()),
    }
}

/// A path that kubelet gives: absolute, without `..`.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn path(field: &str, text: &str) -> Result<PathBuf, Status> {
    required(field, text)?;
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute()
        || path.file_name().is_none()
        || !plain
        || text.len() > MAX_PATH_BYTES
        || text.chars().any(char::is_control)
    {
        return Err(Status::invalid_argument(format!(
            "{field} {} is not an absolute path without `..`",
            shown(text)
        )));
    }
    // Without double and trailing slashes, as mount tables have it.
    Ok(path.components().collect())
}

/// How a volume is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// As a device.
    Block,
    /// Through its file system.
    Mount {
        /// The type that was asked for; empty: none.
        fs: String,
        /// Options of the mount.
        options: Vec<String>,
    },
}

/// A capability that this driver can give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// How.
    pub access: Access,
    /// By whom.
    pub mode: Mode,
}

/// One capability.
///
/// # Errors
/// `INVALID_ARGUMENT` for what is missing, or can never be given.
pub fn capability(wanted: Option<&VolumeCapability>) -> Result<Capability, Status> {
    let refused = |why: String| Err(Status::invalid_argument(why));
    let Some(wanted) = wanted else { return refused("volume_capability is missing".into()) };
    let mode = wanted.access_mode.as_ref().map_or(Mode::Unknown, |mode| mode.mode());
    match mode {
        Mode::SingleNodeWriter
        | Mode::SingleNodeReaderOnly
        | Mode::SingleNodeSingleWriter
        | Mode::SingleNodeMultiWriter => {}
        Mode::Unknown => return refused("access_mode is missing".into()),
        other => {
            return refused(format!(
                "access mode {} is not possible: a volume is on one node; use ReadWriteOnce or ReadWriteOncePod",
                other.as_str_name()
            ));
        }
    }
    let access = match &wanted.access_type {
        None => return refused("access_type is missing".into()),
        Some(AccessType::Block(_)) => Access::Block,
        Some(AccessType::Mount(mount)) => {
            if !mount.volume_mount_group.is_empty() {
                return refused("volume_mount_group is not supported".into());
            }
            if !mount.fs_type.is_empty() {
                file_system(&mount.fs_type)?;
            }
            let options: Vec<String> =
                mount.mount_flags.iter().flat_map(|flags| flags.split(',')).map(str::to_owned).collect();
            if options.iter().map(String::len).sum::<usize>() > MAX_MAP_BYTES
                || options.iter().any(|option| option.chars().any(char::is_control))
            {
                return refused("mount_flags are too long, or have a control character".into());
            }
            Access::Mount { fs: mount.fs_type.clone(), options }
        }
    };
    Ok(Capability { access, mode })
}

/// All capabilities of a request, at least one.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn capabilities(wanted: &[VolumeCapability]) -> Result<Vec<Capability>, Status> {
    if wanted.is_empty() {
        return Err(Status::invalid_argument("volume_capabilities are missing"));
    }
    wanted.iter().map(|one| capability(Some(one))).collect()
}

/// A file system that volumes can have.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn file_system(name: &str) -> Result<(), Status> {
    if FILE_SYSTEMS.iter().any(|(known, _)| *known == name) {
        return Ok(());
    }
    let known: Vec<&str> = FILE_SYSTEMS.iter().map(|(name, _)| *name).collect();
    Err(Status::invalid_argument(format!("file system {} is none of {}", shown(name), known.join(", "))))
}

/// The bounds of a capacity, bytes; None: no bound.
///
/// # Errors
/// `OUT_OF_RANGE` for negative ones and those that contradict each other.
pub fn range(range: Option<&CapacityRange>) -> Result<(Option<u64>, Option<u64>), Status> {
    let bound = |bytes: i64| u64::try_from(bytes).map_err(|_| Status::out_of_range("a capacity is negative"));
    let Some(range) = range else { return Ok((None, None)) };
    let (least, most) = (bound(range.required_bytes)?, bound(range.limit_bytes)?);
    if least > MAX_VOLUME_BYTES {
        return Err(Status::out_of_range(format!("{least} bytes are more than a volume can have, 1 PiB")));
    }
    if most != 0 && most < least {
        return Err(Status::out_of_range(format!("limit {most} is below what is required, {least}")));
    }
    Ok((Some(least).filter(|b| *b != 0), Some(most).filter(|b| *b != 0)))
}

/// The size for a new volume: what is required rounded up to whole blocks, at least `floor`; without a requirement
/// as large as the source, or 1 GiB.
///
/// # Errors
/// `OUT_OF_RANGE`.
pub fn new_size(wanted: Option<&CapacityRange>, source: Option<u64>, floor: u64) -> Result<u64, Status> {
    let (least, most) = range(wanted)?;
    if let (Some(least), Some(source)) = (least, source)
        && least < source
    {
        return Err(Status::out_of_range(format!("{least} bytes are fewer than the source has, {source}")));
    }
    let most = most.map_or(MAX_VOLUME_BYTES, |most| most - most % BLOCK_BYTES);
    let default = source.unwrap_or_else(|| DEFAULT_BYTES.min(most));
    let size = least.unwrap_or(default).next_multiple_of(BLOCK_BYTES).max(floor).max(BLOCK_BYTES);
    if size > most {
        return Err(Status::out_of_range(format!("{size} bytes are needed, and at most {most} allowed")));
    }
    Ok(size)
}

/// Whether a topology requirement lets a volume be on `node`.
pub fn allows_node(requirement: Option<&TopologyRequirement>, node: &str) -> bool {
    let Some(requirement) = requirement else { return true };
    let mut choices = requirement.requisite.iter();
    let is_here = |topology: &crate::csi::Topology| {
        topology.segments.get(TOPOLOGY_KEY).is_some_and(|name| name == node)
    };
    match (requirement.requisite.is_empty(), requirement.preferred.is_empty()) {
        (true, true) => true,
        (true, false) => requirement.preferred.iter().any(is_here),
        (false, _) => choices.any(is_here),
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
