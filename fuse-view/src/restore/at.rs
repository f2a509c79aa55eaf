//! System calls relative to an open directory, which std does not offer. Every name is one component or, for
//! [`open_beneath`], a path that the kernel keeps below its directory; nothing here follows a symbolic link.

#![allow(unsafe_code)] // thin wrappers of system calls; each passes live descriptors and NUL-ended strings

use crate::{Attr, FileKind, Timestamp};
use std::{
    ffi::CString,
    fs::File,
    io,
    mem::size_of,
    os::fd::{AsRawFd, FromRawFd, RawFd},
};

/// A C string of `bytes`; NUL inside of it is EINVAL.
fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens `path` below `dir` by openat2(2): no symbolic links, no way out of `dir`.
pub fn open_beneath(dir: &File, path: &[u8], flags: libc::c_int, mode: u32) -> io::Result<File> {
    let path = c_string(path)?;
    // SAFETY: open_how is plain integers, for which zero is valid (and means "unset" for fields to come).
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
    how.mode = u64::from(mode);
    // O_PATH|O_NOFOLLOW names a symbolic link itself, which RESOLVE_NO_SYMLINKS allows at the end of a path.
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: dir is open, path ends with NUL, how and its size match; all live through the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    check(fd)?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Makes a directory.
pub fn make_dir(dir: &File, name: &[u8], mode: u32) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: dir is open and name ends with NUL.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// Makes a symbolic link.
pub fn make_symlink(dir: &File, name: &[u8], target: &[u8]) -> io::Result<()> {
    let (name, target) = (c_string(name)?, c_string(target)?);
    // SAFETY: dir is open, both strings end with NUL.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Makes the special file that `attr` describes, with no permissions yet.
pub fn make_node(dir: &File, name: &[u8], attr: &Attr) -> io::Result<()> {
    let kind = match attr.kind {
        FileKind::CharDev => libc::S_IFCHR,
        FileKind::BlockDev => libc::S_IFBLK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::File | FileKind::Dir | FileKind::Symlink => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let name = c_string(name)?;
    let device = libc::makedev(attr.rdev.0, attr.rdev.1);
    // SAFETY: dir is open and name ends with NUL.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), kind, device) }).map(drop)
}

/// Gives `file`, opened with O_PATH or not, a further name.
pub fn link(file: &File, dir: &File, name: &[u8]) -> io::Result<()> {
    let (from, name) = (proc_path(file)?, c_string(name)?);
    // SAFETY: dir is open, both strings end with NUL.
    check(unsafe {
        libc::linkat(libc::AT_FDCWD, from.as_ptr(), dir.as_raw_fd(), name.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    })
    .map(drop)
}

/// Renames `from` to `to` in `dir`; unless `replace`, an existing `to` is EEXIST.
pub fn rename(dir: &File, from: &[u8], to: &[u8], replace: bool) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let flags = if replace { 0 } else { libc::RENAME_NOREPLACE };
    let fd = dir.as_raw_fd();
    // SAFETY: dir is open, both strings end with NUL.
    check(unsafe { libc::renameat2(fd, from.as_ptr(), fd, to.as_ptr(), flags) }).map(drop)
}

/// Removes a file that is not a directory.
pub fn remove(dir: &File, name: &[u8]) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: dir is open and name ends with NUL.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Changes owner and group of `file`, which may be open with O_PATH, also a symbolic link.
pub fn change_owner(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: file is open; the empty path with AT_EMPTY_PATH means the file itself.
    check(unsafe { libc::fchownat(file.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) }).map(drop)
}

/// Sets access and modification time of `file`, which may be open with O_PATH, also a symbolic link.
pub fn set_times(file: &File, atime: Timestamp, mtime: Timestamp) -> io::Result<()> {
    let spec = |time: Timestamp| libc::timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds.min(999_999_999)),
    };
    let times = [spec(atime), spec(mtime)];
    // SAFETY: file is open, times are the two that the call reads.
    check(unsafe { libc::utimensat(file.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) })
        .map(drop)
}

/// Sets an extended attribute of `file`, which may be open with O_PATH, also a symbolic link.
pub fn set_xattr(file: &File, name: &[u8], value: &[u8]) -> io::Result<()> {
    let (path, name) = (proc_path(file)?, c_string(name)?);
    // SAFETY: both strings end with NUL; value is read for its length.
    check(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
        .map(drop)
}

/// Sets the permission bits of `file`, which may be open with O_PATH, and must not be a symbolic link.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    let path = proc_path(file)?;
    // SAFETY: path ends with NUL.
    check(unsafe { libc::chmod(path.as_ptr(), mode) }).map(drop)
}

/// A path that leads to exactly the open `file`, for calls that refuse O_PATH descriptors.
fn proc_path(file: &File) -> io::Result<CString> {
    c_string(format!("/proc/self/fd/{}", file.as_raw_fd()).as_bytes())
}

/// Writes back everything of the file system that holds `dir`; tells errors of earlier writes.
pub fn sync_file_system(dir: &File) -> io::Result<()> {
    // SAFETY: dir is open.
    check(unsafe { libc::syncfs(dir.as_raw_fd()) }).map(drop)
}
