//! NodePublishVolume and NodeUnpublishVolume: the staged volume where the pod sees it.

use super::device::Device;
use super::mounts::{self, Mount};
use super::{blocking, device_of, failed};
use crate::agent::Agent;
use crate::browse;
use crate::checks::{self, Access, Capability, shown};
use crate::csi;
use crate::csi::volume_capability::access_mode::Mode;
use rustix::mount::MountFlags;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tonic::Status;

/// Where kubelet mounts directories of volumes into containers; such a mount is no publication.
const SUBPATHS: &str = "volume-subpaths";

/// Shows the staged volume at the target path.
pub async fn publish(agent: &Agent, request: csi::NodePublishVolumeRequest) -> Result<(), Status> {
    checks::required("volume_id", &request.volume_id)?;
    checks::required("target_path", &request.target_path)?;
    checks::map("volume_context", &request.volume_context)?;
    let capability = checks::capability(request.volume_capability.as_ref())?;
    let target = checks::path("target_path", &request.target_path)?;
    if browse::is_wanted(&request.volume_context) {
        return browse::publish(agent, &request.volume_context, target).await;
    }
    let staging = match request.staging_target_path.as_str() {
        "" => {
            return Err(Status::failed_precondition(
                "staging_target_path is missing: the volume is to be staged",
            ));
        }
        staging => checks::path("staging_target_path", staging)?,
    };
    let mut agent = agent.connect().await?;
    let volume = agent.volume(&request.volume_id).await?;
    let device = device_of(&volume).await?;
    let publication = Publication { device, capability, staging, target, read_only: request.readonly };
    blocking(move || publication.make()).await
}

struct Publication {
    device: Device,
    capability: Capability,
    staging: PathBuf,
    target: PathBuf,
    read_only: bool,
}

impl Publication {
    fn is_block(&self) -> bool {
        self.capability.access == Access::Block
    }

    /// Whether a mount shows this volume in the way that is asked for.
    fn shows(&self, mount: &Mount) -> bool {
        if self.is_block() { mount.is_node_of(&self.device) } else { mount.is_of(&self.device) }
    }

    fn make(&self) -> Result<(), Status> {
        let table =
            mounts::table().map_err(failed("read the mount table", Path::new("/proc/self/mountinfo")))?;
        let read_only = self.read_only || self.capability.mode == Mode::SingleNodeReaderOnly;
        if let Some(there) = table.iter().rfind(|mount| mount.mountpoint == self.target) {
            return match self.shows(there) {
                true if there.read_only == read_only || self.is_block() => Ok(()),
                true => Err(Status::already_exists("the volume is published there with another readonly")),
                false => Err(Status::already_exists(format!(
                    "something else is mounted at the target path: {}",
                    shown(&there.source.to_string_lossy())
                ))),
            };
        }
        let staged = table.iter().rfind(|mount| mount.mountpoint == self.staging);
        if !self.is_block() && !staged.is_some_and(|mount| mount.is_of(&self.device)) {
            return Err(Status::failed_precondition("the volume is not staged at staging_target_path"));
        }
        if self.capability.mode == Mode::SingleNodeSingleWriter
            && let Some(other) = table.iter().find(|mount| self.is_publication(mount))
        {
            return Err(Status::failed_precondition(format!(
                "the volume is for one pod, and published at {} already",
                shown(&other.mountpoint.to_string_lossy())
            )));
        }
        let from = if self.is_block() { &self.device.node } else { &self.staging };
        self.make_target().map_err(failed("make the target", &self.target))?;
        let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mounts::bind(from, &self.target, flags).map_err(failed("mount at the target", &self.target))
    }

    /// Whether it is a publication of this volume for somebody.
    fn is_publication(&self, mount: &Mount) -> bool {
        mount.mountpoint != self.staging
            && self.shows(mount)
            && (self.is_block() || mount.root == Path::new("/"))
            && !mount.mountpoint.components().any(|part| part.as_os_str() == SUBPATHS)
    }

    /// A directory, or a file for a device.
    fn make_target(&self) -> io::Result<()> {
        let wrong = |what| Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        match fs::symlink_metadata(&self.target) {
            Ok(there) if self.is_block() && !there.is_file() => wrong("it is no file"),
            Ok(there) if !self.is_block() && !there.is_dir() => wrong("it is no directory"),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = self.target.parent() {
                    fs::create_dir_all(parent)?;
                }
                match self.is_block() {
                    true => fs::File::options().write(true).create_new(true).open(&self.target).map(drop),
                    false => fs::create_dir(&self.target),
                }
            }
            Err(error) => Err(error),
        }
    }
}

/// Takes the volume away from the target path, and the path itself. What is not there is fine.
pub async fn unpublish(request: &csi::NodeUnpublishVolumeRequest) -> Result<(), Status> {
    checks::required("volume_id", &request.volume_id)?;
    let target = checks::path("target_path", &request.target_path)?;
    blocking(move || {
        mounts::unmount_all(&target).map_err(failed("unmount", &target))?;
        remove(&target).map_err(failed("remove the target", &target))
    })
    .await
}

/// Removes the place of a mount: an empty directory, an empty file, or nothing.
fn remove(target: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(target) {
        Ok(there) if there.is_dir() => fs::remove_dir(target),
        Ok(there) if there.is_file() && there.len() == 0 => fs::remove_file(target),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not empty and was not made here")),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_publication_makes_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        remove(&place("absent")).unwrap();
        fs::create_dir(place("dir")).unwrap();
        remove(&place("dir")).unwrap();
        fs::write(place("file"), "").unwrap();
        remove(&place("file")).unwrap();
        assert!(!place("dir").exists() && !place("file").exists());
        fs::write(place("mine"), "content").unwrap();
        remove(&place("mine")).unwrap_err();
        fs::create_dir_all(place("full/sub")).unwrap();
        remove(&place("full")).unwrap_err();
        std::os::unix::fs::symlink(place("mine"), place("link")).unwrap();
        remove(&place("link")).unwrap_err();
        assert!(place("mine").exists() && place("full/sub").exists() && place("link").is_symlink());
    }
}
