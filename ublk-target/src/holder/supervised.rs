//! The agent's side of a supervising parent.

use super::{FdStore, wire};
use crate::sys::{fd, socket};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// Environment variable with the socket's number and the supervisor's process id, `FD:PID`. The process id keeps
/// processes further down, which inherit the variable but not the socket, from believing it.
pub(super) const VARIABLE: &str = "COWSLIP_HOLDER";
/// The parent does nothing but answer: longer than this it is not there.
const ANSWER: Duration = Duration::from_secs(10);

/// Deposits with the parent process that runs [`supervise`](super::supervise).
pub struct SupervisedStore {
    socket: Mutex<OwnedFd>,
}

impl SupervisedStore {
    /// None: this process is not supervised.
    pub fn from_environment() -> io::Result<Option<Self>> {
        let Ok(value) = std::env::var(VARIABLE) else { return Ok(None) };
        let Some((number, parent)) = parse(&value) else {
            return Err(io::Error::other(format!("{VARIABLE}={value} is not FD:PID")));
        };
        if parent != std::os::unix::process::parent_id() {
            return Ok(None);
        }
        let socket = fd::adopt(number)?;
        socket::set_timeout(socket.as_fd(), ANSWER)?;
        Ok(Some(Self { socket: Mutex::new(socket) }))
    }

    pub(super) fn variable(socket: &OwnedFd) -> String {
        format!("{}:{}", socket.as_raw_fd(), std::process::id())
    }
}

fn parse(value: &str) -> Option<(RawFd, u32)> {
    let (number, parent) = value.split_once(':')?;
    Some((number.parse().ok()?, parent.parse().ok()?))
}

impl FdStore for SupervisedStore {
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        wire::put(self.socket.lock().as_fd(), name, fd)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        wire::remove(self.socket.lock().as_fd(), name)
    }

    fn take_all(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        wire::get_all(self.socket.lock().as_fd())
    }

    fn set_deadline(&self, limit: Option<Duration>) -> io::Result<()> {
        wire::set_deadline(self.socket.lock().as_fd(), limit)
    }
}
