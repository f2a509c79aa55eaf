//! Which volume has which device.
//!
//! Invariants: changes to a volume's entry happen under that volume's lock (`locks`), so what an
//! operation reads here stays true until it ends; the map's own lock is never held over I/O.
//! Dropping this leaves every device alive, its I/O waiting for the next agent.

use super::errors::{of_device, of_io, of_store};
use super::mounts;
use super::transport::Chosen;
use api::{Error, ErrorKind, Result};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{Labels, Pool, VolumeInfo};
use ublk_target::{Attached, Identity, Recovered, Transport, VolumeKey};

/// A live device.
pub type Device = Arc<RwLock<Box<dyn Attached>>>;

/// The devices of this agent.
pub struct Devices {
    chosen: Chosen,
    device_dir: PathBuf,
    pool_id: String,
    live: Mutex<HashMap<u64, Device>>,
    /// Why a volume that should have a device has none.
    failures: Mutex<HashMap<u64, String>>,
    /// Volumes with a live device that could not be served again: its users wait for the next agent.
    /// What they write may not meet another content, so these volumes stay as they are.
    waiting: Mutex<HashMap<u64, String>>,
}

/// A device that an earlier agent left and this one does not serve.
pub struct Lost {
    /// Name of the volume, if there still is one.
    pub volume: Option<String>,
    /// Its I/O waits for the next agent; false: it fails.
    pub waits: bool,
    /// Why.
    pub reason: String,
}

/// What is shown of a volume's device.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Stable name, or the node where there is no such link.
    pub device: Option<PathBuf>,
    /// `loop` or `ublk`.
    pub transport: Option<&'static str>,
    /// Why there is none although there should be one.
    pub failure: Option<String>,
}

impl Devices {
    /// No devices yet.
    pub fn new(chosen: Chosen, device_dir: &Path, pool_id: String) -> Self {
        Self {
            chosen,
            device_dir: device_dir.to_owned(),
            pool_id,
            live: Mutex::default(),
            failures: Mutex::default(),
            waiting: Mutex::default(),
        }
    }

    /// `loop`, `ublk` or `none`.
    pub fn kind(&self) -> &'static str {
        self.chosen.transport.as_ref().map_or("none", |transport| transport.kind())
    }

    /// Why this transport.
    pub fn reason(&self) -> &str {
        &self.chosen.reason
    }

    /// Fails if this host cannot make devices.
    pub fn require(&self) -> Result<&dyn Transport> {
        self.chosen.transport.as_deref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("no block devices here: {}", self.chosen.reason))
                .hint("`cowslip doctor` tells what is missing")
        })
    }

    /// The device of a volume.
    pub fn get(&self, id: u64) -> Option<Device> {
        self.live.lock().get(&id).cloned()
    }

    /// All volumes with a device.
    pub fn ids(&self) -> Vec<u64> {
        self.live.lock().keys().copied().collect()
    }

    /// What to show of volume `id`, called `name`.
    pub fn shown(&self, id: u64, name: &str) -> Shown {
        let Some(device) = self.get(id) else {
            let failure = self.failures.lock().get(&id).or(self.waiting.lock().get(&id)).cloned();
            return Shown { failure, ..Shown::default() };
        };
        let device = device.read();
        let link = self.device_dir.join(name);
        let path = if link.symlink_metadata().is_ok() { link } else { device.device().to_owned() };
        Shown { device: Some(path), transport: Some(device.kind()), failure: None }
    }

    /// Remembers why `id` has no device, or that it needs none.
    pub fn set_failure(&self, id: u64, failure: Option<String>) {
        let mut failures = self.failures.lock();
        match failure {
            Some(why) => failures.insert(id, why),
            None => failures.remove(&id),
        };
    }

    /// Busy for a volume whose users wait for the next agent.
    pub fn check_not_waiting(&self, id: u64, volume: &str) -> Result<()> {
        match self.waiting.lock().get(&id) {
            None => Ok(()),
            Some(why) => {
                Err(Error::new(ErrorKind::Busy, format!("the device of volume {volume} waits: {why}"))
                    .hint("restart the agent: it tries again to serve the device"))
            }
        }
    }

    /// Makes a device of the volume, if it has none that works.
    pub fn attach(&self, pool: &Pool, volume: &VolumeInfo) -> Result<Device> {
        if let Some(device) = self.get(volume.id) {
            if device.read().is_alive() {
                return Ok(device);
            }
            self.live.lock().remove(&volume.id);
        }
        self.check_not_waiting(volume.id, &volume.name)?;
        let transport = self.require()?;
        let block_size = block_size(&volume.name, &volume.labels)?;
        let disk = pool.open_volume(&volume.name).map_err(of_store)?;
        let identity = Identity { block_size, ..Identity::new(self.key(volume.id), &volume.name) };
        let device = transport.attach(disk, &identity).map_err(of_device)?;
        let device = Arc::new(RwLock::new(device));
        self.live.lock().insert(volume.id, Arc::clone(&device));
        self.set_failure(volume.id, None);
        Ok(device)
    }

    /// Takes the device away. Busy, naming who uses it, while somebody does.
    pub fn detach(&self, id: u64) -> Result<()> {
        if let Some(device) = self.get(id) {
            device.read().detach().map_err(of_device)?;
            self.live.lock().remove(&id);
        }
        self.set_failure(id, None);
        Ok(())
    }

    /// Stops serving the device and leaves it alive. False: an operation still uses it.
    pub fn park(&self, id: u64) -> bool {
        let device = self.live.lock().remove(&id);
        device.is_none_or(|device| Arc::into_inner(device).is_some())
    }

    /// Serves again what an earlier agent left alive. `serve` is false when acknowledged writes are
    /// lost: then every device is failed. Answers with those that are not served.
    pub fn recover(&self, pool: &Pool, serve: bool) -> Vec<Lost> {
        let volumes: HashMap<u64, String> = pool.volumes().into_iter().map(|v| (v.id, v.name)).collect();
        let resolve = |key: &VolumeKey| {
            let name = volumes.get(&key.volume_id).filter(|_| serve && key.pool_id == self.pool_id)?;
            let disk = pool.open_volume(name).ok()?;
            Some((name.clone(), disk as Arc<dyn ublk_target::Disk>))
        };
        let mut lost = Vec::new();
        let transports = self.chosen.transport.iter().chain(&self.chosen.others);
        for device in transports.flat_map(|transport| transport.recover(&resolve)) {
            match device {
                Recovered::Live(device) => {
                    let id = device.identity().key.volume_id;
                    self.live.lock().insert(id, Arc::new(RwLock::new(device)));
                }
                Recovered::Failed { key, reason } => {
                    lost.push(Lost { volume: volumes.get(&key.volume_id).cloned(), waits: false, reason });
                }
                Recovered::Waiting { key, reason } => {
                    self.waiting.lock().insert(key.volume_id, reason.clone());
                    lost.push(Lost { volume: volumes.get(&key.volume_id).cloned(), waits: true, reason });
                }
            }
        }
        lost
    }

    /// Opens the device for us alone, so that nobody mounts it meanwhile. Busy, naming the mountpoint,
    /// while somebody uses it.
    pub fn claim(&self, device: &Device, volume: &str) -> Result<File> {
        let device = device.read();
        mounts::claim(device.device()).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => in_use(device.as_ref(), volume),
            _ => of_io(format!("open {} (volume {volume})", device.device().display()), &error),
        })
    }

    fn key(&self, volume_id: u64) -> VolumeKey {
        VolumeKey { pool_id: self.pool_id.clone(), volume_id }
    }
}

/// Label of volumes for guests that need other logical blocks than of 4096 bytes.
const BLOCK_SIZE_LABEL: &str = "cowslip.io/block-size";

fn block_size(volume: &str, labels: &Labels) -> Result<u32> {
    match labels.get(BLOCK_SIZE_LABEL).map(String::as_str) {
        None | Some("4096") => Ok(4096),
        Some("512") => Ok(512),
        Some(other) => Err(Error::new(
            ErrorKind::Invalid,
            format!("volume {volume} has the label {BLOCK_SIZE_LABEL}={other}"),
        )
        .hint("512 and 4096 can be had: make a clone with another label")),
    }
}

/// The mounts of a device as the API shows them.
pub fn mounts_of(device: &Device) -> Result<Vec<mounts::DeviceMount>> {
    let node = device.read().device().to_owned();
    mounts::of_device(&node).map_err(|e| of_io(format!("mounts of {}", node.display()), &e))
}

fn in_use(device: &dyn Attached, volume: &str) -> Error {
    let node = device.device();
    let user = ublk_target::mounts::user_of(device.device_number(), node);
    let user = user.unwrap_or_else(|| "held by somebody who cannot be seen from here".into());
    Error::new(ErrorKind::Busy, format!("volume {volume} ({}) is in use: {user}", node.display()))
        .hint("unmount it, or end the processes that have it open, and try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_gives_the_block_size() {
        let labelled = |value: &str| Labels::from([(BLOCK_SIZE_LABEL.to_owned(), value.to_owned())]);
        assert_eq!(block_size("v", &Labels::new()).unwrap(), 4096);
        assert_eq!(block_size("v", &labelled("512")).unwrap(), 512);
        assert_eq!(block_size("v", &labelled("4096")).unwrap(), 4096);
        let error = block_size("v", &labelled("1024")).unwrap_err();
        assert!(error.message.contains("1024") && error.hint.is_some_and(|hint| hint.contains("512")));
    }
}
