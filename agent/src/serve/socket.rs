//! The agent's socket: made with the right owner and mode, a dead one replaced, a living one left alone.

use super::errors::of_io;
use api::{Error, ErrorKind, Result};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A bound socket; its file goes away with it.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Binds `path` with mode 0660 and `group`. The caller holds the pool, so a socket that nobody
    /// listens on is a dead agent's.
    ///
    /// # Errors
    /// Busy if a process listens there; Invalid if the path is something else than a socket.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<Self> {
        let place = path.display();
        if let Some(parent) = path.parent() {
            make_dir(parent, 0o755)?;
        }
        remove_dead(path)?;
        let listener = UnixListener::bind(path).map_err(|e| of_io(format!("bind socket {place}"), &e))?;
        let socket = Self { path: path.to_owned(), listener: Some(listener) };
        let set = || -> io::Result<()> {
            // Before the group is set only the owner may connect.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            std::os::unix::fs::chown(path, None, group)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o660))
        };
        set().map_err(|e| of_io(format!("owner and mode of socket {place}"), &e))?;
        Ok(socket)
    }

    /// The listener, for the server.
    pub fn listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nothing to do if somebody removed it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes `dir` and its parents with `mode`; an existing one keeps its own.
pub fn make_dir(dir: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .map_err(|e| of_io(format!("make directory {}", dir.display()), &e))
}

fn remove_dead(path: &Path) -> Result<()> {
    let place = path.display();
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| of_io(format!("socket {place}"), &e))?,
    };
    if !meta.file_type().is_socket() {
        return Err(Error::new(ErrorKind::Invalid, format!("{place} exists and is no socket"))
            .hint("move it away, or give another path with --socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::new(ErrorKind::Busy, format!("another process listens on {place}"))
            .hint("stop that agent, or give another path with --socket")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|e| of_io(format!("remove dead socket {place}"), &e))
        }
        Err(error) => Err(of_io(format!("socket {place}"), &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_socket_has_mode_0660_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/agent.sock");
        let socket = Socket::bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let living = UnixListener::bind(&path).unwrap();
        let error = Socket::bind(&path, None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy);
        assert!(path.exists());
        drop(living);
        Socket::bind(&path, None).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path, None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
