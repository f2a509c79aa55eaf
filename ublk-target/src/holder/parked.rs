//! A holder without an agent: it waits on a socket for the next supervisor.
//!
//! Invariant: what is held is let go only after a successor has said that it has all of it, or on SIGTERM.

use super::wire::{self, Held, Peer, Served};
use crate::error::{Context, Result};
use crate::sys::process::{self, Signals};
use crate::sys::{fd, socket};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one message of a successor may take. Others wait meanwhile.
const MESSAGE: Duration = Duration::from_secs(5);

/// `<agent's socket>.holder`.
pub(super) fn path(agent_socket: &Path) -> PathBuf {
    let mut path = agent_socket.as_os_str().to_owned();
    path.push(".holder");
    path.into()
}

/// Opens the socket that successors come to.
pub(super) fn listen(path: &Path) -> Result<OwnedFd> {
    socket::listen(path).context("listen on", path.display())
}

/// Waits until a successor has taken everything over.
pub(super) fn wait(listener: &OwnedFd, path: &Path, signals: &mut Signals, held: &mut Held) {
    loop {
        let Ok(ready) = fd::wait_readable(&[listener.as_fd(), signals.fd()], None) else { return };
        while let Some(signal) = signals.next() {
            if signal == libc::SIGTERM {
                let _ = std::fs::remove_file(path);
                return; // somebody wants the devices to end
            }
        }
        if ready.first() == Some(&true)
            && let Ok(peer) = socket::accept(listener.as_fd())
            && hand_over(&peer, path, held).unwrap_or(false)
        {
            return;
        }
    }
}

/// Whether the peer has taken everything. The socket's file goes before the peer is told: it may make its own then.
fn hand_over(peer: &OwnedFd, path: &Path, held: &mut Held) -> io::Result<bool> {
    check_peer(peer)?;
    socket::set_timeout(peer.as_fd(), MESSAGE)?;
    loop {
        match wire::serve(peer.as_fd(), Peer::Successor, held)? {
            Served::Request | Served::Deadline(_) => {}
            Served::Closed => return Ok(false),
            Served::Taken => {
                let _ = std::fs::remove_file(path);
                let _ = wire::confirm(peer.as_fd());
                return Ok(true);
            }
        }
    }
}

fn check_peer(peer: &OwnedFd) -> io::Result<()> {
    let uid = socket::peer_uid(peer.as_fd())?;
    if uid == process::effective_uid() || uid == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Takes everything over from a parked holder. Nothing is held when there is none.
pub(super) fn fetch(path: &Path) -> Result<Held> {
    let holder = match socket::connect(path, libc::SOCK_SEQPACKET) {
        Ok(holder) => holder,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ECONNREFUSED)) => {
            return Ok(Held::default());
        }
        Err(e) => return Err(e).context("connect to", path.display()),
    };
    let transfer = || -> io::Result<Held> {
        check_peer(&holder)?;
        socket::set_timeout(holder.as_fd(), MESSAGE)?;
        let held = Held(wire::get_all(holder.as_fd())?);
        // From here on it may let go, and whether it says so makes no difference.
        let _ = wire::taken(holder.as_fd());
        Ok(held)
    };
    transfer().context("take over the devices held at", path.display())
}
