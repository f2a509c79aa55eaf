//! Reading, writing and waiting on descriptors.

use super::check;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// One `readv`.
pub(crate) fn readv(fd: BorrowedFd<'_>, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let count = i32::try_from(buffers.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: IoSliceMut has the layout of iovec and each covers exclusively borrowed memory.
    check(unsafe { libc::readv(fd.as_raw_fd(), buffers.as_mut_ptr().cast(), count) } as libc::c_long)
}

/// One `writev`.
pub(crate) fn writev(fd: BorrowedFd<'_>, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
    let count = i32::try_from(buffers.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: IoSlice has the layout of iovec and each covers borrowed, initialised memory.
    check(unsafe { libc::writev(fd.as_raw_fd(), buffers.as_ptr().cast(), count) } as libc::c_long)
}

/// A file in memory, of `len` zeros.
pub(crate) fn memory_file(name: &str, len: u64) -> io::Result<OwnedFd> {
    let name = super::c_path(name.as_ref())?;
    // SAFETY: the name is a string that ends with NUL.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    check(fd.into())?;
    // SAFETY: memfd_create has just made this descriptor.
    let file = unsafe { std::fs::File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file.into())
}

/// Length of a file.
pub(crate) fn len(fd: BorrowedFd<'_>) -> io::Result<u64> {
    std::fs::File::from(fd.try_clone_to_owned()?).metadata().map(|metadata| metadata.len())
}

/// Reads all of `bytes` at `offset`.
pub(crate) fn read_exact_at(fd: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let rest @ [_, ..] = &mut bytes[done..] {
        let at = libc::off_t::try_from(offset + done as u64).map_err(io::Error::other)?;
        // SAFETY: the memory is exclusively borrowed.
        let read = unsafe { libc::pread(fd.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at) };
        done += progress(read)?;
    }
    Ok(())
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all_at(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let rest @ [_, ..] = &bytes[done..] {
        let at = libc::off_t::try_from(offset + done as u64).map_err(io::Error::other)?;
        // SAFETY: the memory is borrowed.
        let written = unsafe { libc::pwrite(fd.as_raw_fd(), rest.as_ptr().cast(), rest.len(), at) };
        done += progress(written)?;
    }
    Ok(())
}

fn progress(result: libc::ssize_t) -> io::Result<usize> {
    match check(result as libc::c_long) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}

/// Waits until one of `fds` can be read, has an error or is hung up; which ones. None of them: the time is over.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polls: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    // Rounded up: a deadline is not polled for in a busy loop during its last millisecond.
    let ms = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    let count =
        libc::nfds_t::try_from(polls.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `polls` is an exclusively borrowed array of `count` entries.
    match check(unsafe { libc::poll(polls.as_mut_ptr(), count, ms) }.into()) {
        Ok(_) => Ok(polls.iter().map(|p| p.revents != 0).collect()),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(vec![false; polls.len()]),
        Err(e) => Err(e),
    }
}

/// Takes the exclusive lock of an open file (flock(2)); false: somebody else has it.
pub(crate) fn try_lock(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: numbers only.
    match check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }.into()) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// Gives it back, also for those who share the open file.
pub(crate) fn unlock(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) }.into())?;
    Ok(())
}

/// Takes the ownership of a descriptor that this process was started with (its number came through the environment).
///
/// Fails with EBADF when it is not open. The caller vouches, by the environment's word, that nobody else owns it.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl on any number is defined; a closed one is answered with EBADF.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: it is open, and was opened for this process before it began: no other owner exists in it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `major:minor` of the device node behind a descriptor; None for other kinds of files.
pub(crate) fn device_number(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the struct when it answers 0, and only then it is read.
    let stat = unsafe {
        if libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    let kind = stat.st_mode & libc::S_IFMT;
    (kind == libc::S_IFCHR || kind == libc::S_IFBLK)
        .then(|| (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)))
}
