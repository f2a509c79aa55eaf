//! Loop devices: making one over an open file, finding one by its file's name, taking it away.

use crate::error::{Context, Result};
use crate::sys::loops;
use crate::{Error, block_queue, mounts};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Major number of loop devices.
pub(super) const MAJOR: u32 = 7;
/// How long a short-lived opener (udev's probe) is waited for.
const SETTLE: Duration = Duration::from_secs(2);
/// How many lost races for a free device are taken for bad luck.
const ATTEMPTS: u32 = 64;

/// Number of a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoopDevice(pub u32);

impl LoopDevice {
    /// `/dev/loopN`.
    pub(super) fn path(self) -> PathBuf {
        format!("/dev/loop{}", self.0).into()
    }

    fn sys(self, attribute: &str) -> PathBuf {
        format!("/sys/block/loop{}/{attribute}", self.0).into()
    }

    /// Takes a free loop device for `file`. `name` is what LOOP_GET_STATUS shows.
    pub(super) fn configure(file: BorrowedFd<'_>, name: &str, block_size: u32) -> Result<Self> {
        let control = match File::options().read(true).write(true).open("/dev/loop-control") {
            Ok(control) => control,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Unsupported {
                    missing: "no /dev/loop-control on this machine".into(),
                    hint: "load the kernel module `loop` (modprobe loop)",
                });
            }
            Err(e) => return Err(e).context("open", "/dev/loop-control"),
        };
        for _ in 0..ATTEMPTS {
            let device = Self(
                loops::free_number(control.as_fd())
                    .context("find a free loop device", "/dev/loop-control")?,
            );
            let node = device.open(0).context("open", device.path().display())?;
            match loops::configure(node.as_fd(), file, block_size, name) {
                Ok(()) => return Ok(device),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {} // somebody else took it in between
                Err(e) => return Err(e).context("configure", device.path().display()),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY)).context("configure", "any free loop device")
    }

    /// The device whose file has this name.
    pub(super) fn find(name: &str) -> Option<Self> {
        let devices = std::fs::read_dir("/sys/block").ok()?;
        devices
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("loop")?.parse().ok())
            .map(Self)
            .find(|device| device.backing_name().as_deref() == Some(name))
    }

    /// Name of the file it is over, as the last part of the kernel's path. None: it is free.
    pub(super) fn backing_name(self) -> Option<String> {
        let path = std::fs::read_to_string(self.sys("loop/backing_file")).ok()?;
        Some(path.trim_end().rsplit('/').next()?.to_owned())
    }

    fn open(self, flags: libc::c_int) -> io::Result<File> {
        File::options().read(true).write(true).custom_flags(flags | libc::O_CLOEXEC).open(self.path())
    }

    /// Sets what the loop driver leaves wrong for us: no I/O scheduler (the disk below has its own order), and block
    /// requests no larger than one FUSE payload.
    pub(super) fn tune(self, max_payload: u32) {
        block_queue::set(&self.sys("queue/scheduler"), "none");
        block_queue::set(&self.sys("queue/max_sectors_kb"), &(max_payload / 1024).to_string());
    }

    /// Whether it bypasses the page cache of its file.
    pub(super) fn is_direct(self) -> bool {
        std::fs::read_to_string(self.sys("loop/dio")).is_ok_and(|dio| dio.trim() == "1")
    }

    /// Size in bytes.
    pub(super) fn size(self) -> Result<u64> {
        let path = self.sys("size");
        let text = std::fs::read_to_string(&path).context("read", path.display())?;
        text.trim()
            .parse::<u64>()
            .map(|sectors| sectors * 512)
            .map_err(io::Error::other)
            .context("read", path.display())
    }

    /// Takes over the file's size.
    pub(super) fn take_size(self) -> Result<()> {
        let node = self.open(0).context("open", self.path().display())?;
        loops::take_size(node.as_fd()).context("resize", self.path().display())
    }

    /// Takes the file away if nobody uses the device; else says who does, and nothing has changed.
    pub(super) fn clear_unused(self) -> std::result::Result<(), ClearError> {
        let path = self.path();
        let io = |what| move |e: io::Error| ClearError::Io(what, e);
        if let Some(user) = mounts::user_of((MAJOR, self.0), &path) {
            return Err(ClearError::Busy(user));
        }
        // Exclusive: fails while it is mounted anywhere, swapped on, or part of another device.
        let node = match self.open(libc::O_EXCL) {
            Ok(node) => node,
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                let user = mounts::user_of((MAJOR, self.0), &path);
                return Err(ClearError::Busy(user.unwrap_or_else(|| "claimed by the kernel".into())));
            }
            Err(e) => return Err(ClearError::Io("open", e)),
        };
        if let Err(e) = node.sync_all() {
            tracing::warn!(device = %path.display(), error = %e, "what was written last could not be stored");
        }
        loops::clear(node.as_fd()).map_err(io("clear"))?;
        drop(node);
        // Somebody may have opened it since. Usually that is udev looking at it.
        let start = Instant::now();
        while self.backing_name().is_some() {
            if start.elapsed() > SETTLE {
                let node = self.open(0).map_err(io("open"))?;
                if loops::keep(node.as_fd()).is_ok() {
                    let user = mounts::user_of((MAJOR, self.0), &path);
                    return Err(ClearError::Busy(user.unwrap_or_else(|| "opened just now".into())));
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Takes the file away, now or when the last user closes the device.
    pub(super) fn clear_lazily(self) -> Result<()> {
        let node = self.open(0).context("open", self.path().display())?;
        loops::clear(node.as_fd()).context("clear", self.path().display())
    }
}

/// Why a device could not be cleared.
pub(super) enum ClearError {
    /// It is in use, by whom.
    Busy(String),
    /// Operation and error.
    Io(&'static str, io::Error),
}
