//! What no safe function offers: growing a mounted file system, and waiting for a file's news.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `_IOW('f', 16, __u64)`: EXT4_IOC_RESIZE_FS, the new size in file-system blocks.
const EXT4_RESIZE_FS: libc::Ioctl = 0x4008_6610;
/// `_IOW('X', 110, struct xfs_growfs_data)`: XFS_IOC_FSGROWFSDATA.
const XFS_GROW_DATA: libc::Ioctl = 0x4010_586e;
/// `_IOR('X', 100, struct xfs_fsop_geom_v1)`: XFS_IOC_FSGEOMETRY_V1.
const XFS_GEOMETRY_V1: libc::Ioctl = 0x8070_5864_u32 as libc::Ioctl;
/// `_IOW(0x94, 3, struct btrfs_ioctl_vol_args)`: BTRFS_IOC_RESIZE.
const BTRFS_RESIZE: libc::Ioctl = 0x5000_9403;

/// The argument of [`XFS_GROW_DATA`].
#[repr(C)]
struct XfsGrowData {
    new_blocks: u64,
    max_inode_percent: u32,
    padding: u32,
}

/// The answer of [`XFS_GEOMETRY_V1`]; what is not read has no name here.
#[repr(C)]
struct XfsGeometry {
    block_bytes: u32,
    realtime_extent_blocks: u32,
    group_blocks: u32,
    groups: u32,
    log_blocks: u32,
    sector_bytes: u32,
    inode_bytes: u32,
    max_inode_percent: u32,
    rest: [u64; 10],
}

/// The argument of [`BTRFS_RESIZE`]: a C string in a fixed field.
#[repr(C)]
struct BtrfsArguments {
    fd: i64,
    name: [u8; 4088],
}

const _: () = assert!(
    size_of::<XfsGrowData>() == 16 && size_of::<XfsGeometry>() == 112 && size_of::<BtrfsArguments>() == 4096
);

fn checked(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Grows the ext4 mounted at `dir` to `blocks` of its own blocks.
///
/// # Errors
/// EPERM without CAP_SYS_RESOURCE, whatever the size; others of the system.
pub fn grow_ext4(dir: &Path, blocks: u64) -> io::Result<()> {
    let dir = File::open(dir)?;
    // SAFETY: the request reads one u64 behind the pointer, which lives until the call returns.
    checked(unsafe { libc::ioctl(dir.as_raw_fd(), EXT4_RESIZE_FS, &raw const blocks) })
}

/// Grows the XFS mounted at `dir` to as many whole blocks as fit `bytes`.
///
/// # Errors
/// Those of the system.
pub fn grow_xfs(dir: &Path, bytes: u64) -> io::Result<()> {
    let dir = File::open(dir)?;
    let mut geometry = XfsGeometry {
        block_bytes: 0,
        realtime_extent_blocks: 0,
        group_blocks: 0,
        groups: 0,
        log_blocks: 0,
        sector_bytes: 0,
        inode_bytes: 0,
        max_inode_percent: 0,
        rest: [0; 10],
    };
    // SAFETY: the request writes at most the 112 bytes of the struct, which any bits are valid for.
    checked(unsafe { libc::ioctl(dir.as_raw_fd(), XFS_GEOMETRY_V1, &raw mut geometry) })?;
    let block_bytes = u64::from(geometry.block_bytes).max(1);
    let grow = XfsGrowData {
        new_blocks: bytes / block_bytes,
        max_inode_percent: geometry.max_inode_percent,
        padding: 0,
    };
    // SAFETY: the request reads the 16 bytes of the struct, which lives until the call returns.
    checked(unsafe { libc::ioctl(dir.as_raw_fd(), XFS_GROW_DATA, &raw const grow) })
}

/// Grows the only device of the btrfs mounted at `dir` to its whole size.
///
/// # Errors
/// Those of the system.
pub fn grow_btrfs(dir: &Path) -> io::Result<()> {
    let dir = File::open(dir)?;
    let mut arguments = BtrfsArguments { fd: 0, name: [0; 4088] };
    arguments.name[..3].copy_from_slice(b"max");
    // SAFETY: the request reads the 4096 bytes of the struct, with a NUL in its name, until the call returns.
    checked(unsafe { libc::ioctl(dir.as_raw_fd(), BTRFS_RESIZE, &raw const arguments) })
}

/// Tells when the file has something of high priority to tell, as the mount table has when it changes (proc(5)).
///
/// # Errors
/// Those of epoll_ctl(2).
pub fn watched(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: the file has its descriptor until it is dropped, and gives it to nobody.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?)
}
