//! Mounts that no path leads to: fsopen(2), fsconfig(2), fsmount(2).

use super::{c_path, check};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
/// `MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC`.
const ATTRIBUTES: libc::c_uint = 0x2 | 0x4 | 0x8;

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the system call has just made this descriptor, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A detached mount of a new instance of a file system; gone when the descriptor and all files in it are closed.
pub(crate) fn detached(fs_type: &str, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let fs_type = c_string(fs_type)?;
    // SAFETY: a NUL-terminated name and a flag.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, fs_type.as_ptr(), FSOPEN_CLOEXEC) })?;
    let raw = context.as_raw_fd();
    for (key, value) in options {
        let (key, value) = (c_string(key)?, c_string(value)?);
        // SAFETY: two NUL-terminated strings that live through the call.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, raw, FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr(), 0)
        })?;
    }
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, raw, FSCONFIG_CMD_CREATE, none, none, 0) })?;
    // SAFETY: numbers only.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, raw, FSMOUNT_CLOEXEC, ATTRIBUTES) })
}

/// Opens `path` below the directory `dir`.
pub(crate) fn open_at(dir: BorrowedFd<'_>, path: &Path, flags: libc::c_int) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: a NUL-terminated path that lives through the call; no file is created, so no mode is read.
    owned(unsafe { libc::openat(dir.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC) }.into())
}
