//! Messages with a descriptor, on Unix sockets that keep message bounds.

use super::{c_path, check};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    check(result.into())?;
    // SAFETY: the system call has just made this descriptor, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// Two connected sequenced-packet sockets.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors into the array.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }.into())?;
    Ok((owned(fds[0])?, owned(fds[1])?))
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: sockaddr_un is plain integers, for which zero is a value.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_un>() };
    address.sun_family = 1; // AF_UNIX
    // A leading '@' stands for the NUL of an abstract name, which has no NUL at its end.
    let abstract_name = bytes.first() == Some(&b'@');
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    if abstract_name {
        address.sun_path[0] = 0;
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + usize::from(!abstract_name);
    Ok((address, libc::socklen_t::try_from(len).map_err(io::Error::other)?))
}

/// A socket connected to `path` (`@` at its start: an abstract name). `kind` is SOCK_SEQPACKET or SOCK_DGRAM.
pub(crate) fn connect(path: &Path, kind: libc::c_int) -> io::Result<OwnedFd> {
    let (address, len) = address(path)?;
    // SAFETY: numbers only.
    let socket = owned(unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `address` holds `len` initialised bytes.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) }.into())?;
    Ok(socket)
}

/// A listening sequenced-packet socket at `path`, mode 0600, replacing what lies there.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    let (address, len) = address(path)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // SAFETY: numbers only.
    let socket = owned(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) })?;
    // The mode of the socket's file is that of the socket before bind: nobody else can connect in between.
    // SAFETY: numbers only.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), 0o600) }.into())?;
    // SAFETY: `address` holds `len` initialised bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) }.into())?;
    let file = c_path(path)?;
    // SAFETY: a NUL-terminated path.
    check(unsafe { libc::chmod(file.as_ptr(), 0o600) }.into())?;
    // SAFETY: numbers only.
    check(unsafe { libc::listen(socket.as_raw_fd(), 16) }.into())?;
    Ok(socket)
}

/// The next connection.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: no address is asked for.
    owned(unsafe {
        libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
    })
}

/// User id of the process at the other end, as it was when it connected.
pub(crate) fn peer_uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = 12; // three 32-bit numbers
    // SAFETY: the kernel writes at most `len` bytes, the size of ucred.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    check(result.into())?;
    Ok(peer.uid)
}

/// Limits how long one send or receive waits (EAGAIN then).
pub(crate) fn set_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let seconds = libc::time_t::try_from(timeout.as_secs()).map_err(io::Error::other)?;
    let time = libc::timeval { tv_sec: seconds, tv_usec: timeout.subsec_micros().into() };
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let len = libc::socklen_t::try_from(size_of::<libc::timeval>()).map_err(io::Error::other)?;
        // SAFETY: the kernel reads one timeval.
        let result = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const time).cast(), len)
        };
        check(result.into())?;
    }
    Ok(())
}

/// Room for the control message of one descriptor, aligned as cmsghdr wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends one message, with a descriptor or without.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    // SAFETY: msghdr is plain integers and pointers, for which zero is a value.
    let mut header = unsafe { std::mem::zeroed::<libc::msghdr>() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if let Some(fd) = fd {
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: the macros compute on sizes and on pointers into `control`, which is 64 aligned bytes: one header
        // (16) and one descriptor (4) fit.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(4) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(4) as _;
            std::ptr::write_unaligned(libc::CMSG_DATA(first).cast::<RawFd>(), fd.as_raw_fd());
        }
    }
    // SAFETY: the header points at memory that lives through the call; the message is only read.
    let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    check(result as libc::c_long)?;
    Ok(())
}

/// Receives one message into `buffer`: its length (0: the other end is closed) and its descriptor, if it has one.
///
/// A message that is larger than the buffer is refused with EMSGSIZE; further descriptors are closed by the kernel.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain integers and pointers, for which zero is a value.
    let mut header = unsafe { std::mem::zeroed::<libc::msghdr>() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    // Not CMSG_SPACE, whose padding has room for a second descriptor.
    // SAFETY: a computation on a size.
    header.msg_controllen = unsafe { libc::CMSG_LEN(4) } as _;
    // SAFETY: the header points at exclusively borrowed memory that lives through the call.
    let len =
        check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) }
            as libc::c_long)?;
    let mut received = None;
    // SAFETY: the kernel has set msg_controllen to what it wrote; CMSG_FIRSTHDR answers null when that is no header.
    // The room admits exactly one descriptor, which the kernel made for this process.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        if !first.is_null()
            && (*first).cmsg_level == libc::SOL_SOCKET
            && (*first).cmsg_type == libc::SCM_RIGHTS
            && (*first).cmsg_len >= libc::CMSG_LEN(4) as _
        {
            let raw = std::ptr::read_unaligned(libc::CMSG_DATA(first).cast::<RawFd>());
            received = Some(OwnedFd::from_raw_fd(raw));
        }
    }
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((len, received))
}
