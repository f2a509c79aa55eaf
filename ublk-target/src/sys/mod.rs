//! System calls that the standard library does not offer, each behind a safe function.
//!
//! Everything unsafe of this crate is in this folder, but for the promise of a queue's ring (`ublk/queue/io.rs`). All descriptors made here are close-on-exec.
#![allow(unsafe_code)] // system calls

pub(crate) mod buffer;
pub(crate) mod fd;
pub(crate) mod loops;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod socket;
pub(crate) mod stat;
pub(crate) mod uring;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The result of a system call that answers -1 and errno.
fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A path as the kernel takes it; a NUL inside is refused.
fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
