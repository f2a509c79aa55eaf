//! statx(2) without waiting for a server behind the file.

use super::{c_path, check};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// What is asked of a file.
pub(crate) struct Stat {
    /// Device that holds the file, `(major, minor)`.
    pub device: (u32, u32),
    /// Device that the file is, for device nodes.
    pub node: (u32, u32),
    /// Whether it is a block device.
    pub is_block: bool,
    /// Id of the mount it was reached through, as in mountinfo. 0 before kernel 5.8.
    pub mount_id: u64,
}

fn statx(dir: libc::c_int, path: &Path, flags: libc::c_int) -> io::Result<Stat> {
    let path = c_path(path)?;
    let mask = libc::STATX_TYPE | libc::STATX_MNT_ID;
    // SAFETY: statx is plain integers, for which zero is a value; the path is NUL-terminated; the kernel fills it.
    let stat = unsafe {
        let mut stat = std::mem::zeroed::<libc::statx>();
        check(libc::statx(dir, path.as_ptr(), flags | libc::AT_STATX_DONT_SYNC, mask, &raw mut stat).into())?;
        stat
    };
    Ok(Stat {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        node: (stat.stx_rdev_major, stat.stx_rdev_minor),
        is_block: u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFBLK,
        mount_id: if stat.stx_mask & libc::STATX_MNT_ID == 0 { 0 } else { stat.stx_mnt_id },
    })
}

/// Of a path.
pub(crate) fn of_path(path: &Path) -> io::Result<Stat> {
    statx(libc::AT_FDCWD, path, 0)
}

/// Of an open file.
pub(crate) fn of_fd(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    statx(fd.as_raw_fd(), Path::new(""), libc::AT_EMPTY_PATH)
}
