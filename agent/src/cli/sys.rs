//! System calls that std does not offer.
#![allow(unsafe_code)] // holes, paths that stay inside a directory, leaving the terminal, unmounting

use std::{
    ffi::CString,
    fs::File,
    io,
    ops::Range,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// The next range of `file` that may hold data, at or after `offset` and below `len`. A file system or device
/// that knows nothing of holes answers with all of it.
pub fn next_data(file: &File, offset: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    if offset >= len {
        return Ok(None);
    }
    let start = match seek(file, offset, libc::SEEK_DATA) {
        Ok(start) => start,
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(Some(offset..len)),
        Err(e) => return Err(e),
    };
    let end = seek(file, start, libc::SEEK_HOLE)?;
    Ok((start < len).then(|| start..end.min(len)))
}

fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: lseek takes no pointers and the descriptor is open for the life of `file`.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Opens the directory `path` as if `top` were the root directory, without leaving its mount (openat2(2)).
/// Crossing into another mount is EXDEV.
pub fn open_dir_inside(top: &File, path: &Path) -> io::Result<File> {
    let path = if path.as_os_str().is_empty() { c_path(Path::new("."))? } else { c_path(path)? };
    // SAFETY: `open_how` is plain integers, for which all zeros is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC).unsigned_abs().into();
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_XDEV | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the path ends in NUL and `how` has the size that is told; both outlive the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_openat2, top.as_raw_fd(), path.as_ptr(), &raw const how, size_of_val(&how))
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Makes this process the leader of a session of its own, out of reach of the terminal's signals.
pub fn new_session() -> io::Result<()> {
    // SAFETY: setsid takes no arguments and only changes this process.
    if unsafe { libc::setsid() } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Connects standard output and error with /dev/null.
pub fn silence() -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    for fd in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: dup2 takes two numbers; `null` is open, and the standard streams are meant to be replaced.
        if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Unmounts `dir`.
pub fn umount(dir: &Path) -> io::Result<()> {
    let dir = c_path(dir)?;
    // SAFETY: the path ends in NUL and outlives the call.
    if unsafe { libc::umount2(dir.as_ptr(), libc::UMOUNT_NOFOLLOW) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_skipped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 << 20).unwrap();
        file.write_all_at(b"x", 5 << 20).unwrap();
        let data = next_data(&file, 0, 10 << 20).unwrap().unwrap();
        assert!(data.contains(&(5 << 20)), "{data:?}");
        assert!(next_data(&file, 10 << 20, 10 << 20).unwrap().is_none());
        let null = File::open("/dev/null").unwrap();
        assert!(next_data(&null, 0, 0).unwrap().is_none());
    }
}
