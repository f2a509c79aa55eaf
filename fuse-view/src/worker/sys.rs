//! close_range(2), which no safe crate has.

#![allow(unsafe_code)] // one system call

use std::io;

/// Closes every descriptor but the standard ones: somebody may have let one through to this process.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: plain numbers. Nothing of this process has opened anything yet, so that nobody's descriptor is closed.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
