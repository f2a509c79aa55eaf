//! The system calls that std lacks: the groups of a socket's peer, the buffers of a block device.
#![allow(unsafe_code)] // getsockopt with an array, and one ioctl without an argument

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IO(0x12, 97)` of linux/fs.h.
const BLKFLSBUF: libc::Ioctl = 0x1261;

/// More groups than a process can be in (NGROUPS_MAX of Linux).
const MAX_GROUPS: usize = 65_536;

/// Supplementary groups of the process that connected the Unix socket (SO_PEERGROUPS).
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<libc::gid_t>> {
    let mut groups = vec![0 as libc::gid_t; 64];
    loop {
        let mut bytes =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `bytes` bytes to `groups`, which has that many, and the
        // length it needs to `bytes`; both live through the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MAX_GROUPS {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Writes back and drops what the kernel caches of a block device.
pub fn drop_buffers(device: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument and touches no memory of this process.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn groups_of_a_peer_are_our_own() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut groups = peer_groups(ours.as_fd()).unwrap();
        groups.sort_unstable();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let mut expected: Vec<u32> = line.split_whitespace().map(|gid| gid.parse().unwrap()).collect();
        expected.sort_unstable();
        assert_eq!(groups, expected);
    }

    #[test]
    fn a_file_is_no_block_device() {
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(drop_buffers(&file).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
