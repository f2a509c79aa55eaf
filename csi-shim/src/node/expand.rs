//! NodeExpandVolume: the volume, its device and its file system, while a pod uses them.

use super::device::{Device, FileSystem};
use super::{blocking, device_of, failed, mounts, unused, volume_and_path};
use crate::agent::{Agent, foreign};
use crate::checks::{self, BLOCK_BYTES, shown};
use crate::{csi, sys};
use api::v1::ResizeVolumeRequest;
use std::io;
use std::path::Path;
use tonic::Status;

/// Grows a volume to what is required; a smaller size changes nothing.
pub async fn expand(
    agent: &Agent,
    request: csi::NodeExpandVolumeRequest,
) -> Result<csi::NodeExpandVolumeResponse, Status> {
    let (mut agent, volume, path) = volume_and_path(agent, &request.volume_id, &request.volume_path).await?;
    if request.volume_capability.is_some() {
        checks::capability(request.volume_capability.as_ref())?;
    }
    let (least, most) = checks::range(request.capacity_range.as_ref())?;
    let size_bytes = least.unwrap_or(0).next_multiple_of(BLOCK_BYTES).max(volume.size_bytes);
    if let Some(most) = most.filter(|most| *most < size_bytes) {
        return Err(Status::out_of_range(format!(
            "{size_bytes} bytes are needed, and at most {most} allowed"
        )));
    }
    let device = device_of(&volume).await?;
    let (at, number) = (path.clone(), device.clone());
    let mounted = blocking(move || {
        if number.is_node(&at) {
            return Ok(false);
        }
        match mounts::at(&at).map_err(failed("read the mount table", &at))? {
            Some(mount) if mount.is_of(&number) => Ok(true),
            _ => Err(Status::not_found(format!(
                "the volume is not at volume_path {}",
                shown(&at.to_string_lossy())
            ))),
        }
    })
    .await?;
    let grow = ResizeVolumeRequest { name: volume.name, size_bytes };
    agent.client.resize_volume(grow).await.map_err(foreign)?;
    if mounted {
        let (grown, at) = (device.clone(), path.clone());
        let denied = blocking(move || grow_mounted(&grown, &at)).await?;
        if denied {
            unused::grow(&mut agent, volume.id, device, &path).await?;
        }
    }
    let capacity_bytes = i64::try_from(size_bytes).unwrap_or(i64::MAX);
    Ok(csi::NodeExpandVolumeResponse { capacity_bytes })
}

/// Grows the file system on `device`, mounted at `path`, to the size of the device. True: this process may not.
fn grow_mounted(device: &Device, path: &Path) -> Result<bool, Status> {
    let found = device.file_system().map_err(failed("read the device", &device.node))?;
    let found = found.ok_or_else(|| Status::internal("the device's superblock cannot be read"))?;
    let now = device.now_bytes().map_err(failed("ask for the size of the device", &device.node))?;
    // A mounted XFS does not write its superblock at once; growing it to the size that it has changes nothing.
    if found.kind != "xfs" && found.size_bytes + found.block_bytes > now {
        return Ok(false);
    }
    match grow(path, found, now) {
        Ok(()) => Ok(false),
        Err(error) if found.kind == "ext4" && error.kind() == io::ErrorKind::PermissionDenied => Ok(true),
        Err(error) => Err(failed("grow the file system", path)(error)),
    }
}

/// Grows the file system mounted at `path` to `bytes`.
///
/// # Errors
/// Those of the system.
pub fn grow(path: &Path, found: FileSystem, bytes: u64) -> io::Result<()> {
    match found.kind {
        "ext4" => sys::grow_ext4(path, bytes / found.block_bytes.max(1)),
        "xfs" => sys::grow_xfs(path, bytes),
        _ => sys::grow_btrfs(path),
    }
}
