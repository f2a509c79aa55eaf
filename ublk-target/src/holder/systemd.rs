//! systemd's file-descriptor store: sd_notify(3), sd_listen_fds(3), `FileDescriptorStoreMax=` in the unit.

use super::{FdStore, check_name};
use crate::sys::{fd, socket};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// First descriptor passed, by the protocol.
const LISTEN_FDS_START: i32 = 3;
/// How long systemd may take to read its socket.
const BARRIER: Duration = Duration::from_secs(10);

/// Deposits with systemd.
pub struct SystemdStore {
    socket: PathBuf,
    passed: Mutex<Vec<(String, OwnedFd)>>,
}

impl SystemdStore {
    /// None: not started as a service that may notify.
    pub fn from_environment() -> Option<Self> {
        let socket = PathBuf::from(std::env::var_os("NOTIFY_SOCKET")?);
        Some(Self { socket, passed: Mutex::new(passed()) })
    }

    /// Waits until systemd has read what was sent before: it closes the pipe's end that it is sent.
    fn barrier(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let (reader, writer) = io::pipe()?;
        socket::send(socket, b"BARRIER=1", Some(writer.as_fd()))?;
        drop(writer);
        if fd::wait_readable(&[reader.as_fd()], Some(BARRIER))? == [true] {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::ETIMEDOUT))
    }

    fn notify(&self, message: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let socket = socket::connect(&self.socket, libc::SOCK_DGRAM)?;
        socket::send(socket.as_fd(), message.as_bytes(), fd)?;
        self.barrier(socket.as_fd())
    }
}

/// What the environment says was passed to this very process.
fn passed() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let count = i32::try_from(number("LISTEN_FDS").unwrap_or(0)).unwrap_or(0);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    (0..count)
        .zip(names)
        .filter_map(|(index, name)| {
            // Sockets of socket units are not ours to take.
            let ours = name.starts_with("cowslip-");
            ours.then(|| fd::adopt(LISTEN_FDS_START + index).ok().map(|fd| (name, fd))).flatten()
        })
        .collect()
}

impl FdStore for SystemdStore {
    /// FDPOLL=0, because otherwise systemd polls it, and is woken by every request on a FUSE connection.
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        check_name(name)?;
        self.notify(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(fd))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)
    }

    fn take_all(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        Ok(std::mem::take(&mut *self.passed.lock()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixDatagram;

    /// What systemd receives: messages, and the file that came with the first.
    fn receive(socket: &UnixDatagram) -> (String, Option<OwnedFd>) {
        let mut buffer = [0; 1024];
        let (len, fd) = socket::receive(socket.as_fd(), &mut buffer).unwrap();
        (String::from_utf8(buffer[..len].to_vec()).unwrap(), fd)
    }

    #[test]
    fn deposits_reach_systemd_before_put_returns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let put = receive(&systemd);
            let (barrier, pipe) = receive(&systemd);
            sender.send(()).unwrap();
            drop(pipe);
            let remove = receive(&systemd);
            let _ = receive(&systemd);
            (put, barrier, remove)
        });
        let store = SystemdStore { socket: path, passed: Mutex::default() };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"the same file").unwrap();
        store.put("cowslip-loop.x", file.as_fd()).unwrap();
        receiver.try_recv().expect("the barrier was read before put returned");
        store.remove("cowslip-loop.x").unwrap();
        let ((put, fd), barrier, (remove, none)) = thread.join().unwrap();
        assert_eq!(put, "FDSTORE=1\nFDNAME=cowslip-loop.x\nFDPOLL=0");
        assert_eq!(barrier, "BARRIER=1");
        assert_eq!(remove, "FDSTOREREMOVE=1\nFDNAME=cowslip-loop.x");
        assert!(none.is_none());
        let mut received = std::fs::File::from(fd.unwrap());
        let mut text = String::new();
        received.rewind().unwrap();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "the same file");
        for bad in ["", "a:b", "a b", "\n", "ü", &"x".repeat(256)] {
            assert!(store.put(bad, file.as_fd()).is_err(), "{bad:?}");
        }
    }
}
