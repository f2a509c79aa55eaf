//! mount(2), umount2(2), statfs(2) and poll(2), which std does not offer.

#![allow(unsafe_code)] // one system call a function; each passes live pointers, and strings that end with NUL

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
    let result = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast())
    };
    match result {
        0 => Ok(Some(device.into())),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
            error => Err(error),
        },
    }
}

/// Asks whatever serves `dir`. The kernel may answer other questions of a dead mount from its caches; this one
/// is ENOTCONN then.
pub fn probe(dir: &Path) -> io::Result<()> {
    let dir = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: statfs is plain integers, for which zero is valid.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: dir ends with NUL, answer is written by the call; both live through it.
    match unsafe { libc::statfs(dir.as_ptr(), &raw mut answer) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the FUSE connection behind `device` still has a mount.
pub fn is_connected(device: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: device.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: poll is one live entry, as said; a timeout of 0 does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 0 || poll.revents & libc::POLLERR == 0
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
