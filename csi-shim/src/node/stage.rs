//! NodeStageVolume: a device, a file system on it, a mount of it. NodeUnstageVolume: the way back.

use super::device::{Device, FileSystem};
use super::{attach, blocking, expand, failed, mounts};
use crate::agent::{Agent, Connection, Found, foreign};
use crate::checks::{self, Access, shown};
use crate::{FILE_SYSTEMS, csi, labels};
use api::v1::{DetachVolumeRequest, FormatVolumeRequest, GrowFileSystemRequest, Volume};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tonic::Status;

/// Attaches a volume and mounts it at the staging path; a block volume is only attached.
pub async fn stage(agent: &Agent, request: csi::NodeStageVolumeRequest) -> Result<(), Status> {
    checks::required("volume_id", &request.volume_id)?;
    checks::required("staging_target_path", &request.staging_target_path)?;
    let capability = checks::capability(request.volume_capability.as_ref())?;
    let dir = checks::path("staging_target_path", &request.staging_target_path)?;
    let mut agent = agent.connect().await?;
    let (volume, device) = attach(&mut agent, &request.volume_id).await?;
    let Access::Mount { fs, options } = capability.access else { return Ok(()) };
    if is_staged(&device, &dir).await? {
        return Ok(());
    }
    let asked = [fs.as_str(), volume.labels.get(labels::FS).map_or("", String::as_str), FILE_SYSTEMS[0].0];
    let fs = asked.into_iter().find(|fs| !fs.is_empty()).unwrap_or_default();
    let found = file_system(&mut agent, &volume, &device, fs).await?;
    mount(&device, found, &dir, &options).await?;
    if found.size_bytes + found.block_bytes > device.size_bytes {
        return Ok(());
    }
    grow(&mut agent, &volume, &device, found, &dir, &options).await
}

/// Whether the volume is mounted there already.
async fn is_staged(device: &Device, dir: &Path) -> Result<bool, Status> {
    let (device, dir) = (device.clone(), dir.to_owned());
    blocking(move || match mounts::at(&dir).map_err(failed("read the mount table", &dir))? {
        None => Ok(false),
        Some(mount) if mount.is_of(&device) => Ok(true),
        Some(mount) => Err(Status::failed_precondition(format!(
            "something else is mounted at the staging path: {}",
            shown(&mount.source.to_string_lossy())
        ))),
    })
    .await
}

/// The file system on the device; made first on a blank volume that has no source.
async fn file_system(
    agent: &mut Connection,
    volume: &Volume,
    device: &Device,
    fs: &str,
) -> Result<FileSystem, Status> {
    if !volume.labels.contains_key(labels::SOURCE) {
        let request = FormatVolumeRequest { volume_id: volume.id, fs: fs.to_owned() };
        agent.client.format_volume(request).await.map_err(foreign)?;
    }
    let device = device.clone();
    let name = volume.name.clone();
    blocking(move || {
        let found = device.file_system().map_err(failed("read the device", &device.node))?;
        found.ok_or_else(|| {
            Status::failed_precondition(format!(
                "volume {} holds no ext4, XFS or btrfs, and is left as it is: use it as a block volume, or restore a \
                 snapshot that was taken after the volume was first mounted",
                shown(&name)
            ))
        })
    })
    .await
}

async fn mount(device: &Device, found: FileSystem, dir: &Path, options: &[String]) -> Result<(), Status> {
    let (device, dir, options) = (device.clone(), dir.to_owned(), options.to_vec());
    blocking(move || {
        fs::create_dir_all(&dir).map_err(failed("make the staging directory", &dir))?;
        mounts::mount(&device, found.kind, &dir, &options).map_err(|error| {
            let message =
                format!("cannot mount {} at {}: {error}", found.kind, shown(&dir.to_string_lossy()));
            // The kernel's word for an option that the file system does not know.
            match error.raw_os_error() {
                Some(libc::EINVAL) if !options.is_empty() => Status::invalid_argument(message),
                _ => Status::internal(message),
            }
        })
    })
    .await
}

/// Grows a mounted file system to the size of its device. Where this process may not grow an ext4 that is mounted, the
/// agent grows it unmounted.
async fn grow(
    agent: &mut Connection,
    volume: &Volume,
    device: &Device,
    found: FileSystem,
    dir: &Path,
    options: &[String],
) -> Result<(), Status> {
    let (grown, at) = (device.clone(), dir.to_owned());
    let online = tokio::task::spawn_blocking(move || expand::grow(&at, found, grown.size_bytes)).await;
    match online.map_err(|failure| Status::internal(failure.to_string()))? {
        Ok(()) => return Ok(()),
        Err(error) if found.kind == "ext4" && error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) => {
            unmount(dir.to_owned()).await?;
            return Err(failed("grow the file system", dir)(error));
        }
    }
    unmount(dir.to_owned()).await?;
    agent.client.grow_file_system(GrowFileSystemRequest { volume_id: volume.id }).await.map_err(foreign)?;
    mount(device, found, dir, options).await
}

async fn unmount(dir: PathBuf) -> Result<(), Status> {
    blocking(move || mounts::unmount_all(&dir).map_err(failed("unmount", &dir))).await
}

/// Unmounts and detaches. A volume that is gone, or was never staged, is fine.
pub async fn unstage(agent: &Agent, request: &csi::NodeUnstageVolumeRequest) -> Result<(), Status> {
    checks::required("volume_id", &request.volume_id)?;
    let dir = checks::path("staging_target_path", &request.staging_target_path)?;
    unmount(dir).await?;
    let mut agent = agent.connect().await?;
    match agent.find_volume(&request.volume_id).await? {
        Found::Here(volume) => {
            let request = DetachVolumeRequest { name: volume.name };
            agent.client.detach_volume(request).await.map(drop).map_err(foreign)
        }
        Found::Absent | Found::Elsewhere => Ok(()),
    }
}
