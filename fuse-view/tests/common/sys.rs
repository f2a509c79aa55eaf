//! System calls that std does not offer.
#![allow(unsafe_code)] // Plain calls into libc with checked lengths; nothing is kept after the call.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn done(rc: impl Into<i64>) -> io::Result<usize> {
    usize::try_from(rc.into()).map_err(|_| io::Error::last_os_error())
}

pub fn is_root() -> bool {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Now, since the epoch, by the clock that the kernel stamps files with: up to a tick behind `SystemTime::now`.
pub fn stamp_now() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which lives through the call.
    done(unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) }).unwrap();
    Duration::new(now.tv_sec.try_into().unwrap(), now.tv_nsec.try_into().unwrap())
}

pub fn mknod(path: &Path, mode: u32, major: u32, minor: u32) -> io::Result<()> {
    let path = c(path);
    // SAFETY: a NUL-terminated path that lives through the call.
    done(unsafe { libc::mknod(path.as_ptr(), mode, libc::makedev(major, minor)) }).map(drop)
}

pub fn fallocate(file: &File, mode: i32, at: i64, len: i64) -> io::Result<()> {
    // SAFETY: an open descriptor and plain numbers.
    done(unsafe { libc::fallocate(file.as_raw_fd(), mode, at, len) }).map(drop)
}

/// SEEK_DATA or SEEK_HOLE; None: ENXIO.
pub fn seek(file: &File, at: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: an open descriptor and plain numbers.
    let rc = unsafe { libc::lseek(file.as_raw_fd(), i64::try_from(at).unwrap(), whence) };
    match u64::try_from(rc) {
        Ok(at) => Ok(Some(at)),
        Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c(path), CString::new(name).unwrap());
    // SAFETY: NUL-terminated strings, and a value with its length.
    done(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
        .map(drop)
}

/// Lets two names change places.
pub fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let (a, b) = (c(a), c(b));
    let (at, swap) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
    // SAFETY: NUL-terminated paths that live through the call.
    done(unsafe { libc::renameat2(at, a.as_ptr(), at, b.as_ptr(), swap) }).map(drop)
}

/// Gives an open file without a name one.
pub fn link_open(file: &File, path: &Path) -> io::Result<()> {
    let path = c(path);
    // SAFETY: an open descriptor, an empty path that stands for it, and a NUL-terminated path.
    let rc = unsafe {
        libc::linkat(file.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, path.as_ptr(), libc::AT_EMPTY_PATH)
    };
    done(rc).map(drop)
}

/// All attributes, sorted by name.
pub fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = c(path);
    let mut names = vec![0u8; 65536];
    // SAFETY: a NUL-terminated path, and a buffer with its length.
    let len =
        done(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) } as i64)?;
    let mut found = Vec::new();
    for name in names[..len].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let cname = CString::new(name).unwrap();
        let mut value = vec![0u8; 65536];
        // SAFETY: NUL-terminated strings, and a buffer with its length.
        let rc =
            unsafe { libc::lgetxattr(path.as_ptr(), cname.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(done(rc as i64)?);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let path = c(path);
    let time = libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    // SAFETY: a NUL-terminated path and an array of two, as the call wants.
    let rc = unsafe {
        libc::utimensat(libc::AT_FDCWD, path.as_ptr(), [time, time].as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    };
    done(rc).map(drop)
}

/// Makes all of `to` share the blocks of `from` (FICLONE).
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: two open descriptors; the call takes the number of the second.
    done(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }).map(drop)
}

#[repr(C)]
struct CloneRange {
    from: i64,
    from_offset: u64,
    len: u64,
    to_offset: u64,
}

/// Makes a range of `to` share the blocks of a range of `from` (FICLONERANGE).
pub fn clone_range(from: &File, at: u64, len: u64, to: &File, to_at: u64) -> io::Result<()> {
    let range = CloneRange { from: from.as_raw_fd().into(), from_offset: at, len, to_offset: to_at };
    // SAFETY: the structure is laid out as the kernel's `file_clone_range` and lives through the call.
    done(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) }).map(drop)
}

#[repr(C)]
struct ExchangeRange {
    file: i32,
    pad: u32,
    offset: u64,
    other_offset: u64,
    len: u64,
    flags: u64,
}

/// Exchanges the first `len` bytes of two files of an XFS (XFS_IOC_EXCHANGE_RANGE).
pub fn exchange_range(a: &File, b: &File, len: u64) -> io::Result<()> {
    const EXCHANGE_RANGE: libc::c_ulong = 0x4028_5881;
    let range = ExchangeRange { file: a.as_raw_fd(), pad: 0, offset: 0, other_offset: 0, len, flags: 0 };
    // SAFETY: the structure is laid out as the kernel's `xfs_exchange_range` and lives through the call.
    done(unsafe { libc::ioctl(b.as_raw_fd(), EXCHANGE_RANGE, &raw const range) }).map(drop)
}

pub fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c(path), CString::new(name).unwrap());
    // SAFETY: NUL-terminated strings that live through the call.
    done(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

#[repr(C)]
struct AddKey {
    spec_kind: u32,
    spec_reserved: u32,
    identifier: [u8; 32],
    raw_size: u32,
    key_id: u32,
    reserved: [u32; 8],
    raw: [u8; 64],
}

/// Makes the empty directory `dir` of the file system mounted there an encrypted one (fscrypt, policy version 2).
pub fn encrypt(dir: &File) -> io::Result<()> {
    const ADD_KEY: libc::c_ulong = 0xC050_6617;
    const SET_POLICY: libc::c_ulong = 0x800C_6613;
    let mut key = AddKey {
        spec_kind: 2,
        spec_reserved: 0,
        identifier: [0; 32],
        raw_size: 64,
        key_id: 0,
        reserved: [0; 8],
        raw: [7; 64],
    };
    // SAFETY: the structure is laid out as the kernel's `fscrypt_add_key_arg` with 64 bytes of key behind it.
    done(unsafe { libc::ioctl(dir.as_raw_fd(), ADD_KEY, &raw mut key) })?;
    // Version 2, AES-256-XTS for content, AES-256-CTS for names, names padded to 32 bytes.
    let mut policy = [0u8; 24];
    policy[..4].copy_from_slice(&[2, 1, 4, 3]);
    policy[8..].copy_from_slice(&key.identifier[..16]);
    // SAFETY: 24 bytes laid out as the kernel's `fscrypt_policy_v2`.
    done(unsafe { libc::ioctl(dir.as_raw_fd(), SET_POLICY, policy.as_ptr()) }).map(drop)
}
