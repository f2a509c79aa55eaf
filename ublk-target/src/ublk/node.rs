//! The block device in /dev and /sys, and what udev is told about it.

use super::control::kernel;
use crate::error::{Context, Error, Result};
use crate::{VolumeKey, block_queue};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the node may take to appear, and to be openable: it is there a moment before.
const APPEARANCE: Duration = Duration::from_secs(10);

/// `/dev/ublkbN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node(pub u32);

impl Node {
    pub(super) fn path(self) -> PathBuf {
        format!("/dev/ublkb{}", self.0).into()
    }

    fn sys(self, attribute: &str) -> PathBuf {
        format!("/sys/block/ublkb{}/{attribute}", self.0).into()
    }

    fn read(self, attribute: &str) -> Result<String> {
        let path = self.sys(attribute);
        fs::read_to_string(&path).map(|text| text.trim().to_owned()).context("read", path.display())
    }

    /// `(major, minor)`.
    pub(super) fn number(self) -> Result<(u32, u32)> {
        let text = self.read("dev")?;
        let parsed =
            text.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        parsed.ok_or_else(|| Error::Invalid {
            what: self.sys("dev").display().to_string(),
            why: format!("{text:?} is no device number"),
        })
    }

    /// Size in bytes.
    pub(super) fn size(self) -> Result<u64> {
        let sectors = self.read("size")?.parse::<u64>().map_err(io::Error::other);
        sectors.map(|sectors| sectors * super::abi::SECTOR).context("read", self.sys("size").display())
    }

    /// Waits until it can be opened.
    pub(super) fn wait(self) -> Result<()> {
        let start = Instant::now();
        loop {
            match File::open(self.path()) {
                Ok(file) => return self.check(&file),
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENOENT | libc::ENODEV)) => {
                    if start.elapsed() > APPEARANCE {
                        return Err(e).context("open", self.path().display());
                    }
                }
                Err(e) => return Err(e).context("open", self.path().display()),
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whoever writes to a device that is not there makes a file of its name, and the kernel then makes no node.
    fn check(self, file: &File) -> Result<()> {
        let metadata = file.metadata().context("look at", self.path().display())?;
        if metadata.file_type().is_block_device() {
            return Ok(());
        }
        Err(Error::Invalid {
            what: self.path().display().to_string(),
            why: "is in the way of the device of that name and no device itself: remove it".into(),
        })
    }

    /// Opens it for us alone: fails with EBUSY while it is mounted anywhere, swapped on, or part of another device.
    pub(super) fn claim(self) -> io::Result<File> {
        File::options().read(true).custom_flags(libc::O_EXCL).open(self.path())
    }

    /// The disk below has its own order: a scheduler only adds latency.
    pub(super) fn tune(self) {
        block_queue::set(&self.sys("queue/scheduler"), "none");
    }
}

/// The properties of devices that udev cannot see: ublk has no serial number and no model. One file a device, named as
/// the device is, read by the rule in systemd/udev.
#[derive(Debug, Clone)]
pub(super) struct Properties {
    dir: PathBuf,
}

impl Properties {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self, node: Node) -> PathBuf {
        self.dir.join(format!("ublkb{}", node.0))
    }

    /// Before the device exists, so that its first event finds them. Without them it works as well.
    pub(super) fn set(&self, node: Node, key: &VolumeKey) {
        let path = self.path(node);
        let written = fs::create_dir_all(&self.dir).and_then(|()| fs::write(&path, properties(key)));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "udev will not know the serial number of a device");
        }
    }

    pub(super) fn remove(&self, node: Node) {
        let _ = fs::remove_file(self.path(node));
    }

    /// Removes those of devices for which `is_live` is false.
    pub(super) fn sweep(&self, is_live: impl Fn(u32) -> bool) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let number = entry.file_name().to_str().and_then(|name| name.strip_prefix("ublkb")?.parse().ok());
            if number.is_some_and(|number| !is_live(number)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Lines of `KEY=value`, as IMPORT{file} takes them.
fn properties(key: &VolumeKey) -> String {
    let (id, serial) = (key.volume_id, serial(key));
    [
        format!("COWSLIP_VOLUME={id}\n"),
        "ID_VENDOR=Cowslip\nID_MODEL=Cowslip_volume\n".into(),
        format!("ID_SERIAL=Cowslip_{serial}\nID_SERIAL_SHORT={serial}\n"),
    ]
    .concat()
}

/// A volume's serial number: the first half of its pool's id, and its own id.
pub(super) fn serial(key: &VolumeKey) -> String {
    let pool: String = key.pool_id.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    format!("{pool}-{}", key.volume_id)
}

/// The error for a device that cannot be made larger while it lives.
pub(super) fn cannot_grow() -> Error {
    Error::Unsupported {
        missing: format!("ublk of {} cannot change a live device's size", kernel()),
        hint: "detach and attach the volume to see its new size",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_say_whose_device_it_is_and_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let all = Properties::new(&dir.path().join("made"));
        let key = VolumeKey { pool_id: "0123456789abcdef0123456789abcdef".into(), volume_id: 42 };
        for id in [3, 4, 5] {
            all.set(Node(id), &key);
        }
        let text = fs::read_to_string(dir.path().join("made/ublkb4")).unwrap();
        assert!(text.contains("ID_SERIAL_SHORT=0123456789abcdef-42\n"), "{text}");
        assert!(text.lines().all(|line| line.split_once('=').is_some_and(|(_, value)| !value.contains(' '))));
        all.remove(Node(3));
        all.remove(Node(9));
        all.sweep(|id| id == 5);
        let left: Vec<_> =
            fs::read_dir(dir.path().join("made")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["ublkb5"]);
    }
}
