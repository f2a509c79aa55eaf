//! A connection's name and its making.
//!
//! The name stands in three places: with the `/dev/fuse` descriptor in the holder, as the file's name (which the loop
//! device shows in /sys/block/loopN/loop/backing_file), and there it is found again. It carries all that the next
//! process must know: whose volume it is, the connection's number (which makes it unique) and the payload agreed on.

use crate::error::{Context, Result};
use crate::sys::{fd, mount, stat};
use crate::{Error, VolumeKey};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

const PREFIX: &str = "cowslip-loop";
/// Ends the name of what keeps a connection's requests.
pub(super) const REQUESTS: &str = ".requests";
/// The misc device /dev/fuse.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Parsed form of `cowslip-loop.POOL.VOLUME.CONNECTION.PAYLOAD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub key: VolumeKey,
    /// Number of the connection: minor device number of its file system, the name in /sys/fs/fuse/connections.
    pub connection: u32,
    /// Largest payload, bytes.
    pub max_payload: u32,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let VolumeKey { pool_id, volume_id } = &self.key;
        write!(f, "{PREFIX}.{pool_id}.{volume_id:x}.{}.{}", self.connection, self.max_payload)
    }
}

impl Name {
    /// Name of the file in memory that keeps the connection's requests.
    pub(super) fn of_requests(&self) -> String {
        format!("{self}{REQUESTS}")
    }

    /// None: a descriptor of something else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        if parts.next()? != PREFIX {
            return None;
        }
        let name = Self {
            key: VolumeKey {
                pool_id: parts.next()?.to_owned(),
                volume_id: u64::from_str_radix(parts.next()?, 16).ok()?,
            },
            connection: parts.next()?.parse().ok()?,
            max_payload: parts.next()?.parse().ok()?,
        };
        // Spelt in one way only, and with a payload that a version can have agreed on.
        let sane = (4096..=64 << 20).contains(&name.max_payload) && name.max_payload.is_multiple_of(4096);
        (sane && name.to_string() == text).then_some(name)
    }
}

/// Opens `/dev/fuse`.
pub(super) fn open_fuse() -> Result<OwnedFd> {
    match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(file) => Ok(file.into()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            Err(Error::Unsupported {
                missing: "no /dev/fuse on this machine".into(),
                hint: "load the kernel module `fuse` (modprobe fuse)",
            })
        }
        Err(e) => Err(e).context("open", "/dev/fuse"),
    }
}

/// Whether a descriptor is one of `/dev/fuse`.
pub(super) fn is_fuse(fuse: &OwnedFd) -> bool {
    fd::device_number(fuse.as_fd()) == Some(FUSE_DEVICE)
}

/// Makes the file system of a connection; a server must answer already. The mount has no path.
pub(super) fn mount_fuse(fuse: &OwnedFd) -> Result<OwnedFd> {
    let number = fuse.as_raw_fd().to_string();
    let options = [
        ("source", "cowslip"),
        ("fd", number.as_str()),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ];
    mount::detached("fuse", &options).context("mount", "a FUSE file system")
}

/// Number of the connection whose mount this is.
pub(super) fn number(mount: &OwnedFd) -> Result<u32> {
    Ok(stat::of_fd(mount.as_fd()).context("stat", "a FUSE file system")?.device.1)
}

/// Opens the file under its name.
pub(super) fn open_file(mount: &OwnedFd, name: &Name) -> Result<OwnedFd> {
    mount::open_at(mount.as_fd(), Path::new(&name.to_string()), libc::O_RDWR)
        .context("open", "the file of a FUSE connection")
}

/// Ends a connection: everything that waits in it, and all that comes, is answered with an error.
pub(super) fn abort(number: u32) -> Result<()> {
    let control = mount::detached("fusectl", &[]).context("mount", "the FUSE control file system")?;
    let path = format!("{number}/abort");
    let file = match mount::open_at(control.as_fd(), Path::new(&path), libc::O_WRONLY) {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()), // ended before
        Err(e) => return Err(e).context("open", format!("/sys/fs/fuse/connections/{path}")),
    };
    std::io::Write::write_all(&mut std::fs::File::from(file), b"1")
        .context("abort", format!("FUSE connection {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_survives_a_round_trip_and_nothing_else_is_taken_for_one() {
        let key = VolumeKey { pool_id: "0123456789abcdef0123456789abcdef".into(), volume_id: u64::MAX };
        let name = Name { key, connection: 57, max_payload: 1 << 20 };
        let text = name.to_string();
        assert!(text.len() < 250, "fits a file name and a descriptor name");
        assert_eq!(Name::parse(&text), Some(name));
        let pool = "cowslip-loop.0123456789abcdef0123456789abcdef";
        for bad in [
            "",
            "cowslip-loop",
            "other.0123.1.2.4096",
            &format!("{pool}.1.2"),
            &format!("{pool}.1.2.4096.9"),
            &format!("{pool}.x.2.4096"),
            &format!("{pool}.1.2.4097"),
            &format!("{pool}.1.2.0"),
            &format!("{pool}.01.2.4096"),
        ] {
            assert_eq!(Name::parse(bad), None, "{bad}");
        }
    }
}
