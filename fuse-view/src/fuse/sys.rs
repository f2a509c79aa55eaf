//! mount(2) and umount2(2), which std does not offer.

#![allow(unsafe_code)] // two system calls; each passes live NUL-ended strings

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};

/// Longest symbolic name of the file system, shown as its source and type (`fuse.cowslip`).
pub const NAME: &str = "cowslip";

/// Mounts a FUSE file system at `dir` and returns the descriptor that serves it; None if we may not.
pub fn mount(dir: &Path, allow_other: bool) -> io::Result<Option<OwnedFd>> {
    let device = match File::options().read(true).write(true).open("/dev/fuse") {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        opened => opened?,
    };
    let is = fs::metadata("/proc/self")?;
    let allow_other = if allow_other { ",allow_other" } else { "" };
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{allow_other}",
        device.as_raw_fd(),
        is.uid(),
        is.gid()
    );
    let target = CString::new(dir.as_os_str().as_bytes())?;
    let (source, kind, options) =
        (CString::new(NAME)?, CString::new(format!("fuse.{NAME}"))?, CString::new(options)?);
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all strings end with NUL and live through the call.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    match result {
        0 => Ok(Some(device.into())),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
            error => Err(error),
        },
    }
}

/// Unmounts what is mounted at `dir`; EBUSY while it is used.
pub fn unmount(dir: &Path) -> io::Result<()> {
    umount2(dir, libc::UMOUNT_NOFOLLOW)
}

/// Takes what is mounted at `dir` out of the tree of directories at once.
pub fn detach(dir: &Path) -> io::Result<()> {
    umount2(dir, libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH)
}

fn umount2(dir: &Path, flags: libc::c_int) -> io::Result<()> {
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: dir ends with NUL and lives through the call.
    match unsafe { libc::umount2(dir.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
