//! The loop driver's ioctls and those that freeze a file system. Numbers and layouts: linux/loop.h, linux/fs.h.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use zerocopy::{FromZeros, Immutable, IntoBytes};

const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::Ioctl = 0xC004_5877;
const FITHAW: libc::Ioctl = 0xC004_5878;

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[derive(FromZeros, IntoBytes, Immutable)]
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

/// The number of a loop device that is free at this moment; another may take it first. `control` is /dev/loop-control.
pub(crate) fn free_number(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: this ioctl takes no argument.
    let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }.into())?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Puts the loop device over `file`, with direct I/O. EBUSY: somebody else was quicker.
pub(crate) fn configure(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    block_size: u32,
    name: &str,
) -> io::Result<()> {
    let mut config = LoopConfig::new_zeroed();
    config.fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    config.block_size = block_size;
    config.info.flags = LO_FLAGS_DIRECT_IO;
    let shown = &name.as_bytes()[..name.len().min(config.info.file_name.len() - 1)];
    config.info.file_name[..shown.len()].copy_from_slice(shown);
    // SAFETY: LOOP_CONFIGURE reads one loop_config, whose size is asserted above.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }.into())?;
    Ok(())
}

/// Takes the file away: now when `device` is the only opener, else at the last close.
pub(crate) fn clear(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this ioctl takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) }.into())?;
    Ok(())
}

/// Revokes a [`clear`] that waits for the last close.
pub(crate) fn keep(device: BorrowedFd<'_>) -> io::Result<()> {
    let mut info = LoopInfo64::new_zeroed();
    // SAFETY: LOOP_GET_STATUS64 fills one loop_info64, whose size is asserted above.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) }.into())?;
    info.flags &= !LO_FLAGS_AUTOCLEAR;
    // SAFETY: LOOP_SET_STATUS64 reads one loop_info64.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) }.into())?;
    Ok(())
}

/// Makes the device as large as its file now is.
pub(crate) fn take_size(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this ioctl takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) }.into())?;
    Ok(())
}

/// Freezes the file system that `dir` lies on. EBUSY: it is frozen; EOPNOTSUPP: it cannot be.
pub(crate) fn freeze(dir: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is ignored by the kernel.
    check(unsafe { libc::ioctl(dir.as_raw_fd(), FIFREEZE, 0) }.into())?;
    Ok(())
}

/// Thaws it. EINVAL: it was not frozen.
pub(crate) fn thaw(dir: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is ignored by the kernel.
    check(unsafe { libc::ioctl(dir.as_raw_fd(), FITHAW, 0) }.into())?;
    Ok(())
}
