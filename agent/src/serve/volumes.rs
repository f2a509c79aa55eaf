//! Operations on volumes. Each runs under its volumes' locks (`Agent::alone`).

use super::agent::Agent;
use super::convert;
use super::devices::{Device, mounts_of};
use super::errors::{invalid, of_device, of_io, of_store};
use super::events::Subject;
use super::{mkfs, sys};
use api::v1::{self, CreateVolumeRequest, SnapshotRef};
use api::{Error, ErrorKind, Result};
use std::fs::File;
use store::{Labels, VolumeInfo};

impl Agent {
    /// All volumes.
    pub fn list_volumes(&self) -> Vec<v1::Volume> {
        self.pool.volumes().into_iter().map(|info| convert::volume(info, &self.devices)).collect()
    }

    /// One volume.
    pub fn get_volume(&self, name: &str) -> Result<v1::Volume> {
        let info = self.pool.volume(name).map_err(of_store)?;
        Ok(convert::volume(info, &self.devices))
    }

    /// A volume without its figures, which take a walk of its map.
    fn info(&self, name: &str) -> Result<VolumeInfo> {
        self.pool.volume_by_name(name).map_err(of_store)
    }

    /// A new volume: blank, with a file system, or from a snapshot.
    pub fn create_volume(&self, request: CreateVolumeRequest) -> Result<v1::Volume> {
        let CreateVolumeRequest { name, size_bytes, fs, from, labels } = request;
        let labels: Labels = labels.into_iter().collect();
        if let Some(from) = from {
            if !fs.is_empty() {
                return Err(invalid(format!("volume {name}: a file system {fs} and a source were given"))
                    .hint("a volume made of a snapshot has the snapshot's file system: leave one out"));
            }
            return self.clone_snapshot(&from, &name, size_bytes, labels);
        }
        let maker = match fs.as_str() {
            "" => None,
            fs => {
                self.devices.require()?;
                Some(mkfs::find(fs)?)
            }
        };
        self.pool.create_volume(&name, size_bytes, labels).map_err(of_store)?;
        if let Some(maker) = maker
            && let Err(error) = self.make_file_system(&name, &maker)
        {
            return Err(self.undo_create(&name, error));
        }
        self.events.info("volume_created", Subject::volume(&name), format!("volume {name} was created"));
        self.get_volume(&name)
    }

    fn make_file_system(&self, name: &str, maker: &mkfs::Maker) -> Result<()> {
        let info = self.info(name)?;
        let device = self.devices.attach(&self.pool, &info)?;
        let node = device.read().device().to_owned();
        drop(device);
        let made = maker.run(&node);
        let detached = self.devices.detach(info.id);
        made.and(detached)
    }

    /// A volume that could not be made as it was asked for goes away again.
    fn undo_create(&self, name: &str, error: Error) -> Error {
        let undo = || -> Result<()> {
            self.devices.detach(self.info(name)?.id)?;
            self.pool.delete_volume(name).map_err(of_store)
        };
        match undo() {
            Ok(()) => error,
            Err(left) => Error {
                message: format!("{}; and volume {name} is left behind: {left}", error.message),
                ..error
            },
        }
    }

    /// A new volume with the content of a snapshot, grown to `size_bytes` (0: as large as the snapshot).
    pub fn clone_snapshot(
        &self,
        from: &SnapshotRef,
        new: &str,
        size_bytes: u64,
        labels: Labels,
    ) -> Result<v1::Volume> {
        let source = self.pool.snapshot(&from.volume, &from.name).map_err(of_store)?;
        if size_bytes != 0 && size_bytes < source.size_bytes {
            return Err(invalid(format!(
                "volume {new}: {size_bytes} bytes are too few for {}@{} of {} bytes",
                from.volume, source.name, source.size_bytes
            ))
            .hint("leave the size out, or give a larger one"));
        }
        self.pool.clone_snapshot(&from.volume, &source.name, new, labels).map_err(of_store)?;
        if size_bytes > source.size_bytes
            && let Err(error) = self.pool.resize_volume(new, size_bytes)
        {
            return Err(self.undo_create(new, of_store(error)));
        }
        let message = format!("volume {new} was cloned from {}@{}", from.volume, source.name);
        self.events.info("volume_cloned", Subject::volume(new), message);
        self.get_volume(new)
    }

    /// Another name; an attached device goes on under its node and gets a new link.
    pub fn rename_volume(&self, name: &str, new_name: &str) -> Result<v1::Volume> {
        let info = self.pool.rename_volume(name, new_name).map_err(of_store)?;
        if let Some(device) = self.devices.get(info.id) {
            let renamed = device.write().rename(&info.name);
            if let Err(error) = renamed {
                let message = format!("the device of {new_name} keeps its old link: {error}");
                self.events.warn("device_link_failed", Subject::volume(new_name), message);
            }
        }
        self.events.info(
            "volume_renamed",
            Subject::volume(new_name),
            format!("volume {name} is now {new_name}"),
        );
        Ok(convert::volume(info, &self.devices))
    }

    /// A larger size, of the volume first and then of its device.
    pub fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<v1::Volume> {
        let before = self.info(name)?;
        if size_bytes != before.size_bytes {
            self.pool.resize_volume(name, size_bytes).map_err(of_store)?;
        }
        // Also without a change: an earlier attempt may have grown the volume alone.
        if let Some(device) = self.devices.get(before.id) {
            device.read().resize().map_err(of_device)?;
        }
        if size_bytes != before.size_bytes {
            let message = format!("volume {name} grew from {} to {size_bytes} bytes", before.size_bytes);
            self.events.info("volume_resized", Subject::volume(name), message);
        }
        self.get_volume(name)
    }

    /// Gone; its snapshots stay.
    pub fn delete_volume(&self, name: &str) -> Result<()> {
        let info = self.info(name)?;
        self.devices.check_not_waiting(info.id, name)?;
        if let Some(device) = self.devices.get(info.id) {
            // Names the mountpoint, where there is one.
            drop(self.devices.claim(&device, name)?);
            let node = device.read().device().to_owned();
            return Err(Error::new(
                ErrorKind::Busy,
                format!("volume {name} is attached as {}", node.display()),
            )
            .hint(format!("cowslip volume detach {name}")));
        }
        if info.attached {
            // It should have a device and has none: nobody can be using it.
            self.pool.set_attached(name, false).map_err(of_store)?;
        }
        self.pool.delete_volume(name).map_err(of_store)?;
        self.devices.set_failure(info.id, None);
        self.events.info("volume_deleted", Subject::volume(name), format!("volume {name} was deleted"));
        Ok(())
    }

    /// A device for the volume, now and after a restart.
    pub fn attach_volume(&self, name: &str) -> Result<v1::Volume> {
        let info = self.info(name)?;
        let had_device = self.devices.get(info.id).is_some_and(|device| device.read().is_alive());
        let device = self.devices.attach(&self.pool, &info)?;
        if !info.attached {
            self.pool.set_attached(name, true).map_err(of_store)?;
        }
        if !had_device {
            let node = device.read().device().to_owned();
            let message = format!("volume {name} is attached as {}", node.display());
            self.events.info("volume_attached", Subject::volume(name), message);
        }
        self.get_volume(name)
    }

    /// No device any more, now and after a restart.
    pub fn detach_volume(&self, name: &str) -> Result<v1::Volume> {
        let info = self.info(name)?;
        self.devices.check_not_waiting(info.id, name)?;
        if self.devices.get(info.id).is_some() {
            self.devices.detach(info.id)?;
            self.events.info("volume_detached", Subject::volume(name), format!("volume {name} was detached"));
        }
        self.devices.set_failure(info.id, None);
        if info.attached {
            self.pool.set_attached(name, false).map_err(of_store)?;
        }
        self.get_volume(name)
    }

    /// The content of a snapshot again. The device, if there is one, is ours alone meanwhile.
    pub fn rollback(&self, to: &SnapshotRef) -> Result<v1::Volume> {
        let info = self.info(&to.volume)?;
        self.devices.check_not_waiting(info.id, &to.volume)?;
        let snapshot = self.pool.snapshot(&to.volume, &to.name).map_err(of_store)?;
        let device = self.devices.get(info.id).filter(|device| device.read().is_alive());
        let claim = device.as_ref().map(|device| self.devices.claim(device, &to.volume)).transpose()?;
        if let Some(claim) = &claim {
            // Written back before, so that nothing old lands on the new content.
            drop_buffers(claim, &to.volume)?;
        }
        self.pool.rollback(&to.volume, &snapshot.name).map_err(of_store)?;
        if let (Some(claim), Some(device)) = (claim, device) {
            self.show_new_content(&info, claim, &device)?;
        }
        let message = format!("volume {} was rolled back to {}", to.volume, snapshot.name);
        self.events.info("volume_rolled_back", Subject::snapshot(&to.volume, &snapshot.name), message);
        self.get_volume(&to.volume)
    }

    /// A device shows what its volume holds now; one whose size shrank is made anew.
    fn show_new_content(&self, before: &VolumeInfo, claim: File, device: &Device) -> Result<()> {
        drop_buffers(&claim, &before.name)?;
        drop(claim);
        let after = self.info(&before.name)?;
        if after.size_bytes < before.size_bytes || after.id != before.id {
            self.devices.detach(before.id)?;
            self.devices.attach(&self.pool, &after)?;
        } else if after.size_bytes > before.size_bytes {
            device.read().resize().map_err(of_device)?;
        }
        Ok(())
    }

    /// Where the volume is mounted.
    pub fn list_mounts(&self, name: &str) -> Result<Vec<v1::Mount>> {
        let info = self.info(name)?;
        let Some(device) = self.devices.get(info.id) else { return Ok(Vec::new()) };
        Ok(mounts_of(&device)?.into_iter().map(Into::into).collect())
    }
}

fn drop_buffers(device: &File, volume: &str) -> Result<()> {
    sys::drop_buffers(device).map_err(|e| of_io(format!("drop the buffers of volume {volume}"), &e))
}
