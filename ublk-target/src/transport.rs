//! What every transport does: the two traits behind which ublk and FUSE + loop are alike.

use crate::{Disk, Result, links::Links};
use std::path::Path;
use std::sync::Arc;

/// Which volume of which pool: what a live device is recognised by, in every process that ever serves it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeKey {
    /// Pool id, 32 hex digits.
    pub pool_id: String,
    /// Volume id, never reused in the pool.
    pub volume_id: u64,
}

/// A volume and its present name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Which volume.
    pub key: VolumeKey,
    /// Its name, which may change: UTF-8, 1 to 255 bytes, no `/`.
    pub volume_name: String,
    /// Logical block size of a new device in bytes: 4096, or 512 for guests that need it. A live device keeps its own.
    pub block_size: u32,
}

impl Identity {
    /// With logical blocks of 4096 bytes.
    pub fn new(key: VolumeKey, volume_name: impl Into<String>) -> Self {
        Self { key, volume_name: volume_name.into(), block_size: 4096 }
    }

    /// Refuses what no device can have.
    pub(crate) fn check(&self) -> Result<()> {
        Links::check(&self.volume_name)?;
        if matches!(self.block_size, 512 | 4096) {
            return Ok(());
        }
        Err(crate::Error::Invalid {
            what: format!("block size of volume {}: {}", self.volume_name, self.block_size),
            why: "must be 512 or 4096".into(),
        })
    }

    /// Whether a device of `old` bytes has to grow, now that its disk has `new`. It cannot shrink.
    pub(crate) fn must_grow(&self, device: &Path, old: u64, new: u64) -> Result<bool> {
        if new < old {
            return Err(crate::Error::Invalid {
                what: format!("size of volume {}: {new} bytes", self.volume_name),
                why: format!("{} has {old} and cannot shrink", device.display()),
            });
        }
        Ok(new > old)
    }

    /// Takes the volume's new name, and gives the device's link that name too.
    pub(crate) fn rename(&mut self, volume_name: &str, links: &Links, device: &Path) -> Result<()> {
        links.set(volume_name, device)?;
        if volume_name != self.volume_name {
            links.remove(&self.volume_name, device)?;
            volume_name.clone_into(&mut self.volume_name);
        }
        Ok(())
    }

    /// The error of a device that somebody else has ended.
    pub(crate) fn gone(&self, device: &Path) -> crate::Error {
        crate::Error::Gone { volume: self.volume_name.clone(), device: device.display().to_string() }
    }
}

/// Answers which name and disk a live device belongs to. None: it must not be served any more; its I/O is failed.
pub type Resolve<'a> = dyn Fn(&VolumeKey) -> Option<(String, Arc<dyn Disk>)> + 'a;

/// A device found alive at start.
pub enum Recovered {
    /// It is served again; nothing it was asked for is lost.
    Live(Box<dyn Attached>),
    /// It answers EIO from now on and goes away when its last user closes it.
    Failed {
        /// Whose device it was.
        key: VolumeKey,
        /// Why.
        reason: String,
    },
    /// It could not be served: its I/O waits, the next start tries again.
    Waiting {
        /// Whose device it is.
        key: VolumeKey,
        /// Why.
        reason: String,
    },
}

/// A way to show disks as block devices.
pub trait Transport: Send + Sync {
    /// The word shown to users: `ublk` or `loop`.
    fn kind(&self) -> &'static str;
    /// Makes a block device of `disk` and serves it. It outlives this process.
    fn attach(&self, disk: Arc<dyn Disk>, identity: &Identity) -> Result<Box<dyn Attached>>;
    /// Serves the devices again that an earlier process left alive; to be called once, before anything is attached,
    /// and only when no write of that process can land any more (the pool's lock is held).
    fn recover(&self, resolve: &Resolve<'_>) -> Vec<Recovered>;
}

/// A volume's live device.
///
/// Dropping it stops serving and leaves the device alive: its I/O waits for the next process. Only
/// [`detach`](Self::detach) ends it.
pub trait Attached: Send + Sync {
    /// The transport's word, as [`Transport::kind`] has it.
    fn kind(&self) -> &'static str;
    /// Whose device it is.
    fn identity(&self) -> &Identity;
    /// Path of the device node.
    fn device(&self) -> &Path;
    /// Whether requests are served. False when somebody took the device away.
    fn is_alive(&self) -> bool;
    /// Shows the disk's present, larger size; to be called after the disk has grown. The device may be mounted.
    fn resize(&self) -> Result<()>;
    /// Gives the device's link the volume's new name.
    fn rename(&mut self, volume_name: &str) -> Result<()>;
    /// Ends the device. [`Error::Busy`](crate::Error::Busy) with the user's name when it is open or mounted; then it
    /// goes on as before. A second call does nothing.
    fn detach(&self) -> Result<()>;
    /// The file system is frozen and thawed through the mounts of this device number, `(major, minor)`.
    fn device_number(&self) -> (u32, u32);
    /// How often data were copied on a device whose requests go without copies where that is possible. None: all of
    /// this device's are copied.
    fn copies(&self) -> Option<u64> {
        None
    }
}
