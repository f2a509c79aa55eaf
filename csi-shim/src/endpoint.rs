//! The socket that the driver listens on: a Unix socket for its owner alone.
//!
//! Invariants: nobody can connect before the mode is 0600; a socket that somebody listens on, and a file
//! that is no socket, are never removed; no other file is made beside it (the specification forbids it).

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fmt, fs};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// Connections that wait to be accepted; a node's sidecars are a handful.
const BACKLOG: u32 = 128;

/// Where to listen: `unix:///PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

/// Why a text is no endpoint.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not unix:// and an absolute path, such as unix:///csi/csi.sock")]
pub struct InvalidEndpoint(String);

impl std::str::FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        match text.strip_prefix("unix://").map(Path::new) {
            Some(path) if path.is_absolute() && path.file_name().is_some() => Ok(Self(path.to_owned())),
            _ => Err(InvalidEndpoint(text.to_owned())),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

/// Why the endpoint cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process serves it.
    #[error("somebody listens already, {}", .0.display())]
    InUse(PathBuf),
    /// Something else has its name.
    #[error("there is a file that is not a socket, {}", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {operation}, {}: {source}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl BindError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::InUse(_) => "stop the other process, or give this one an --endpoint of its own",
            Self::NotASocket(_) => "give another --endpoint; the file was left alone",
            Self::Io { .. } => {
                "the directory must exist and be writable, and the path at most 107 bytes long"
            }
        }
    }
}

/// The path of a socket that is listened on; removes it when dropped, unless it is somebody else's by then.
#[derive(Debug)]
pub struct BoundPath {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            // Whoever comes next removes it as a stale one if this fails.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Endpoint {
    /// Listens, for connections of the owner alone.
    ///
    /// # Errors
    /// [`BindError`]; nothing on disk has changed then, but for a stale socket that was removed.
    pub async fn bind(&self) -> Result<(UnixListener, BoundPath), BindError> {
        let path = &self.0;
        let failed = |operation| move |source| BindError::Io { operation, path: path.clone(), source };
        remove_stale(path).await?;
        let socket = UnixSocket::new_stream().map_err(failed("make a socket"))?;
        socket.bind(path).map_err(failed("bind"))?;
        let metadata = fs::symlink_metadata(path).map_err(failed("look at the socket"))?;
        let bound = BoundPath { path: path.clone(), inode: (metadata.dev(), metadata.ino()) };
        // Before listen(), which is what lets anybody connect.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("set the mode"))?;
        let listener = socket.listen(BACKLOG).map_err(failed("listen"))?;
        Ok((listener, bound))
    }
}

/// Makes room at `path` if a process that is gone left its socket there.
async fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |operation| move |source| BindError::Io { operation, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at the path")(e)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Err(e) => Err(failed("ask who listens")(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(dir: &tempfile::TempDir) -> Endpoint {
        format!("unix://{}/csi.sock", dir.path().display()).parse().unwrap()
    }

    #[test]
    fn only_absolute_unix_paths_are_endpoints() {
        for good in ["unix:///csi/csi.sock", "unix:///a"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for bad in ["", "/csi.sock", "unix:", "unix://", "unix:///", "unix://csi.sock", "tcp://127.0.0.1:1"] {
            assert_eq!(bad.parse::<Endpoint>(), Err(InvalidEndpoint(bad.to_owned())));
        }
    }

    #[tokio::test]
    async fn the_socket_is_the_owners_alone_and_goes_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir);
        let (_listener, bound) = endpoint.bind().await.unwrap();
        let mode = fs::metadata(&endpoint.0).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        drop(bound);
        assert!(!endpoint.0.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir);
        drop(std::os::unix::net::UnixListener::bind(&endpoint.0).unwrap());
        let (_listener, _bound) = endpoint.bind().await.unwrap();
        UnixStream::connect(&endpoint.0).await.unwrap();
    }

    #[tokio::test]
    async fn a_live_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir);
        let (_listener, _bound) = endpoint.bind().await.unwrap();
        assert!(matches!(endpoint.bind().await, Err(BindError::InUse(_))));
        UnixStream::connect(&endpoint.0).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir);
        fs::write(&endpoint.0, "mine").unwrap();
        assert!(matches!(endpoint.bind().await, Err(BindError::NotASocket(_))));
        assert_eq!(fs::read(&endpoint.0).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn the_successors_socket_outlives_the_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir);
        let (_old_listener, old) = endpoint.bind().await.unwrap();
        fs::rename(&endpoint.0, dir.path().join("away")).unwrap();
        let (_listener, _bound) = endpoint.bind().await.unwrap();
        drop(old);
        UnixStream::connect(&endpoint.0).await.unwrap();
    }
}
