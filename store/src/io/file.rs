//! A pool on a file or a block device, by direct I/O.
//!
//! Invariant (fencing): the exclusive lock sits on the one open description that carries all pool I/O. It is
//! close-on-exec, never duplicated and never handed to anybody, so the kernel lets go of it only when the
//! last write in flight of a killed owner has landed (H1).
#![allow(unsafe_code)] // flock, fallocate, fstatfs and ioctl have no safe wrapper in std

use super::{AlignedBuf, BlockDev, buffer};
use crate::mutation::Mutation;
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the pool file in a pool directory.
pub const POOL_FILE: &str = "pool.cowslip";

/// How the pool is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Sole owner; waits until the writes of a dead owner have landed.
    ExclusiveWait,
    /// Sole owner, or `Busy` at once.
    Exclusive,
    /// Reader beside other readers, or `Busy` at once.
    Shared,
}

/// A pool file or device.
pub struct FileDev {
    file: File,
    len: u64,
    is_device: bool,
    /// Nothing can be in flight when it is closed.
    idle: bool,
}

/// The file or device that a pool path means: a directory holds [`POOL_FILE`].
pub fn resolve(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(POOL_FILE) } else { path.to_path_buf() }
}

fn open_direct(path: &Path, write: bool, extra: i32) -> io::Result<File> {
    let open = |direct| OpenOptions::new().read(true).write(write).custom_flags(direct | extra).open(path);
    match open(if Mutation::PageCache.on() { 0 } else { libc::O_DIRECT }) {
        // Some file systems (old tmpfs) have no direct I/O.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => open(0),
        other => other,
    }
}

/// Waits between two looks at a lock that a dying owner still holds.
const LOCK_POLL: Duration = Duration::from_millis(1);

fn flock(file: &File, lock: Lock) -> io::Result<()> {
    if Mutation::NoLock.on() {
        return Ok(());
    }
    let op = if lock == Lock::Shared { libc::LOCK_SH } else { libc::LOCK_EX };
    loop {
        // SAFETY: the descriptor is open; flock touches no memory.
        if unsafe { libc::flock(file.as_raw_fd(), op | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EWOULDBLOCK) if lock == Lock::ExclusiveWait => std::thread::sleep(LOCK_POLL),
            _ => return Err(e),
        }
    }
}

impl FileDev {
    /// Opens the file or device at `path` (see [`resolve`]) and locks it before anything is read.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when somebody else has it, `Io`.
    pub fn open(path: &Path, lock: Lock) -> Result<Self> {
        let path = &resolve(path);
        let write = lock != Lock::Shared;
        let name = path.display();
        let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::not_found(format!("there is no pool at {name}"))
                .hint("`cowslip pool init PATH` makes one"),
            _ => Error::io(format!("open pool {name}"), e),
        })?;
        let is_device = meta.file_type().is_block_device();
        if !is_device && !meta.is_file() {
            return Err(Error::invalid(format!("{name} is neither a pool directory nor a block device")));
        }
        let exclusive = if is_device && write { libc::O_EXCL } else { 0 };
        let opened = loop {
            match open_direct(path, write, exclusive) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && lock == Lock::ExclusiveWait => {
                    std::thread::sleep(LOCK_POLL);
                }
                other => break other,
            }
        };
        let busy = || {
            Error::busy(format!("pool {name} is in use by another process"))
                .hint("an agent serves it: use the agent (without --pool), or stop it first")
        };
        let file = opened.map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => busy(),
            _ => Error::io(format!("open pool {name}"), e),
        })?;
        flock(&file, lock).map_err(|e| match e.raw_os_error() {
            Some(libc::EWOULDBLOCK) => busy(),
            _ => Error::io(format!("lock pool {name}"), e),
        })?;
        let len = device_len(&file, is_device).map_err(|e| Error::io(format!("measure pool {name}"), e))?;
        Ok(Self { file, len, is_device, idle: lock == Lock::Shared })
    }

    /// Closes it when no write is in flight.
    pub fn close(mut self) {
        self.idle = true;
    }

    /// Sets the length of a new pool file; all of it is a hole.
    pub fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(len)?;
        self.len = len;
        Ok(())
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// The open file, for questions about its file system.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// A child that another thread forked and that has not called exec yet has the description too, and with it the lock: the
/// next to open the pool would find it busy. So the lock goes by itself, unless the kernel may still be writing (H1).
impl Drop for FileDev {
    fn drop(&mut self) {
        if self.idle {
            // SAFETY: the descriptor is open; flock touches no memory.
            unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) };
        }
    }
}

fn device_len(file: &File, is_device: bool) -> io::Result<u64> {
    if !is_device {
        return Ok(file.metadata()?.len());
    }
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut len = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 to the address given.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut len) };
    if rc == 0 { Ok(len) } else { Err(io::Error::last_os_error()) }
}

fn ended_early(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("{what} beyond the end of the pool"))
}

impl BlockDev for FileDev {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if buffer::is_aligned(buf) {
            return self.file.read_exact_at(buf, offset).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => ended_early("read"),
                _ => e,
            });
        }
        let mut bounce = AlignedBuf::reused(buf.len());
        self.read_at(offset, &mut bounce)?;
        buf.copy_from_slice(&bounce);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(ended_early("write"));
        }
        if buffer::is_aligned(buf) {
            return self.file.write_all_at(buf, offset);
        }
        let mut bounce = AlignedBuf::reused(buf.len());
        bounce.copy_from_slice(buf);
        self.file.write_all_at(&bounce, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn back(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_device {
            return Ok(());
        }
        self.allocate(libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_device {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn host_free(&self) -> Option<u64> {
        if self.is_device {
            return None;
        }
        let s = statfs(&self.file).ok()?;
        Some(s.f_bavail * u64::try_from(s.f_bsize).unwrap_or(0))
    }
}

impl FileDev {
    /// fallocate(2).
    fn allocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (libc::off_t::try_from(offset), libc::off_t::try_from(len));
        let (Ok(offset), Ok(len)) = (offset, len) else { return Err(ended_early("allocation")) };
        loop {
            // SAFETY: the descriptor is open; fallocate touches no memory of ours.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } == 0 {
                return Ok(());
            }
            let e = io::Error::last_os_error();
            if e.raw_os_error() != Some(libc::EINTR) {
                return Err(e);
            }
        }
    }
}

/// fstatfs(2).
pub fn statfs(file: &File) -> io::Result<libc::statfs> {
    // SAFETY: an all-zero statfs is a valid value of this plain C struct.
    let mut out: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: fstatfs fills the struct given.
    let rc = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut out) };
    if rc == 0 { Ok(out) } else { Err(io::Error::last_os_error()) }
}

/// Makes a new file on btrfs NOCOW, so that an overwrite needs no space (H30). Others refuse, harmlessly.
pub fn set_nocow(file: &File) {
    const FS_IOC_GETFLAGS: libc::c_ulong = 0x8008_6601;
    const FS_IOC_SETFLAGS: libc::c_ulong = 0x4008_6602;
    const FS_NOCOW_FL: libc::c_long = 0x0080_0000;
    let mut flags: libc::c_long = 0;
    // SAFETY: both ioctls read or write one long at the address given.
    unsafe {
        if libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &raw mut flags) == 0 {
            flags |= FS_NOCOW_FL;
            libc::ioctl(file.as_raw_fd(), FS_IOC_SETFLAGS, &raw const flags);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_forked_child_does_not_keep_a_pool_that_is_closed() {
        let file = tempfile::NamedTempFile::new().expect("makes a file");
        let open = |lock| FileDev::open(file.path(), lock);
        // What a child has between fork and exec.
        let child = |dev: &FileDev| dev.file.try_clone().expect("duplicates");

        let read = open(Lock::Shared).expect("opens");
        let _childs = child(&read);
        drop(read);
        let written = open(Lock::Exclusive).expect("nobody has it");
        let _childs = child(&written);
        written.close();
        let died = open(Lock::Exclusive).expect("nobody has it");
        let childs = child(&died);
        drop(died); // writes may be in flight
        assert_eq!(open(Lock::Exclusive).err().map(|e| e.kind()), Some(ErrorKind::Busy));
        drop(childs);
        open(Lock::Exclusive).expect("nobody has it");
    }
}
