//! Memory that the kernel can always copy to and from, also while the process is being killed.
//!
//! Invariant of [`LockedBuffer::new`]: until it is dropped every page is present, writable and locked. A FUSE copy that meets a page which is
//! not there in a process with a fatal signal ends that request with EIO. What could take a page's mapping
//! away is therefore switched off: swap and reclaim (mlock), copy-on-write after fork (DONTFORK), collapsing into huge
//! pages (NOHUGEPAGE), NUMA hinting (a policy of its own). What stays is compaction moving a page in
//! just that instant; `vm.compact_unevictable_allowed=0` closes it.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// A page.
pub(crate) const PAGE: usize = 4096;

/// `MPOL_LOCAL` of linux/mempolicy.h: a policy without hinting faults.
const MPOL_LOCAL: libc::c_long = 4;

/// Zeroed, page aligned, locked memory.
pub(crate) struct LockedBuffer {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned by this value alone and has no tie to a thread.
unsafe impl Send for LockedBuffer {}

impl LockedBuffer {
    /// Maps and locks `len` bytes, rounded up to pages. Fails with ENOMEM or EPERM where RLIMIT_MEMLOCK is too small.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let buffer = Self::map(len, None)?;
        // SAFETY: the range is the mapping just made; mlock faults every page in, writable.
        check(unsafe { libc::mlock(buffer.address.as_ptr().cast(), buffer.len) }.into())?;
        Ok(buffer)
    }

    /// Likewise, `len` bytes of a file in memory from byte `offset` on, which others may map as well.
    pub(crate) fn shared(file: BorrowedFd<'_>, offset: usize, len: usize) -> io::Result<Self> {
        let buffer = Self::map(len, Some((file, offset)))?;
        let address = buffer.address.as_ptr().cast();
        // SAFETY: the range is the mapping just made. mlock faults shared pages in for reading; not every kernel lets
        // them be written to then without another fault.
        unsafe {
            check(libc::mlock(address, buffer.len).into())?;
            libc::madvise(address, buffer.len, libc::MADV_POPULATE_WRITE);
        }
        Ok(buffer)
    }

    /// Maps `len` bytes for pieces of `piece` bytes, of which the first `resident` are locked in memory now and the
    /// others from their first use on. For transfers that a fault does no harm to: it costs time, once.
    pub(crate) fn on_demand(len: usize, piece: usize, resident: usize) -> io::Result<Self> {
        let buffer = Self::map(len, None)?;
        let address = buffer.address.as_ptr();
        // SAFETY: the range is the mapping just made; the pages are locked when they are touched.
        let locked = unsafe { libc::syscall(libc::SYS_mlock2, address, buffer.len, libc::MLOCK_ONFAULT) };
        check(locked)?;
        for from in (0..buffer.len).step_by(piece.max(PAGE)) {
            let now = resident.min(piece).min(buffer.len - from);
            // SAFETY: the range lies in the mapping. A refusal leaves these pages to their first use too.
            unsafe { libc::madvise(address.add(from).cast(), now, libc::MADV_POPULATE_WRITE) };
        }
        Ok(buffer)
    }

    fn map(len: usize, file: Option<(BorrowedFd<'_>, usize)>) -> io::Result<Self> {
        let len = len.next_multiple_of(PAGE);
        let (flags, fd, offset) = match file {
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            Some((file, offset)) => (libc::MAP_SHARED, file.as_raw_fd(), offset),
        };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset)
        };
        let Some(address) = NonNull::new(address.cast::<u8>()).filter(|_| address != libc::MAP_FAILED) else {
            return Err(io::Error::last_os_error());
        };
        let buffer = Self { address, len };
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP, libc::MADV_NOHUGEPAGE] {
            // SAFETY: the range is the mapping made above. Kernels built without one of these refuse it, harmlessly.
            unsafe { libc::madvise(address.as_ptr().cast(), len, advice) };
        }
        // SAFETY: as above; no node mask is read with this mode.
        unsafe { libc::syscall(libc::SYS_mbind, address.as_ptr(), len, MPOL_LOCAL, 0usize, 0usize, 0usize) };
        Ok(buffer)
    }
}

impl std::ops::Deref for LockedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `len` readable bytes, initialised by the kernel, and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for LockedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.len) }
    }
}

impl Drop for LockedBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and no reference into it outlives self.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}
